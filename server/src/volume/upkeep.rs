//! What a volume does by itself: settling files, syncing, freeing, tidying.

use std::sync::{Arc, Weak};
use std::time::Duration;

use larder_protocol::error::ErrorCode;
use larder_protocol::runtime::RuntimeExt;

use super::Volume;
use super::context::Effects;

/// How often acknowledged changes are synced under `process` durability; also the beat of the rest.
const BEAT: Duration = Duration::from_millis(50);
/// Beats between looks for files to settle and for lazy changes.
const SETTLE_EVERY: u64 = 10;
/// Beats between tidying of the metadata engine.
const TIDY_EVERY: u64 = 20;
/// How long a file must be left alone before it is settled.
const SETTLE_AFTER: Duration = Duration::from_secs(1);

/// Begins a volume's upkeep. It ends with the volume.
pub(super) fn start(volume: &Arc<Volume>) {
    let weak = Arc::downgrade(volume);
    volume.data.writer.on_effects(Box::new({
        let weak = Weak::clone(&weak);
        move |effects| {
            if let Some(volume) = weak.upgrade() {
                follow(&volume, effects);
            }
        }
    }));
    let runtime = Arc::clone(&volume.runtime);
    volume.runtime.spawn(Box::pin(async move {
        let mut beat = 0_u64;
        loop {
            runtime.sleep(BEAT).await;
            let Some(volume) = weak.upgrade() else { return };
            beat += 1;
            volume.keep_up(beat).await;
        }
    }));
}

/// Carries out what a committed batch leaves to do outside of the metadata.
fn follow(volume: &Arc<Volume>, effects: Effects) {
    for vnode in effects.freed {
        volume.data.forget(vnode);
    }
    for (id, intent) in effects.removed {
        let data = Arc::clone(&volume.data);
        volume.runtime.spawn(Box::pin(async move { data.remove_content(id, intent).await }));
    }
}

impl Volume {
    async fn keep_up(self: &Arc<Self>, beat: u64) {
        let data = &self.data;
        if !data.durable && data.meta.durable_up_to() < data.writer.header().sequence {
            self.on_meta("sync the metadata", |meta| meta.sync()).await;
        }
        if beat.is_multiple_of(SETTLE_EVERY) {
            let moment = self.runtime.boottime().checked_sub(SETTLE_AFTER);
            if let Some(moment) = moment {
                data.settle_idle(moment).await;
            }
            if let Err(error) = data.writer.flush_lazy().await {
                tracing::warn!("volume {}: cannot commit what was left for later: {error}", self.name);
            }
        }
        if beat.is_multiple_of(TIDY_EVERY) {
            self.on_meta("tidy the metadata", |meta| meta.tidy()).await;
        }
    }

    async fn on_meta(
        &self,
        what: &str,
        work: impl FnOnce(&dyn super::meta::Metadata) -> super::error::StoreResult<()> + Send + 'static,
    ) {
        let meta = Arc::clone(&self.data.meta);
        match self.runtime.blocking(move || work(&*meta)).await {
            Some(Ok(())) => {}
            Some(Err(error)) => tracing::error!("volume {}: cannot {what}: {error}", self.name),
            None => tracing::error!("volume {}: a thread panicked that was to {what}", self.name),
        }
    }

    /// Settles and syncs everything, for a clean end. No request may come after it.
    ///
    /// # Errors
    /// `Io` if something could not be made durable; it is named in the log, and recovery will look after it.
    pub async fn close(self: &Arc<Self>) -> Result<(), ErrorCode> {
        let left = self.data.settle_idle(Duration::MAX).await;
        self.data.writer.flush_lazy().await?;
        let meta = Arc::clone(&self.data.meta);
        self.runtime.blocking(move || meta.sync().and_then(|()| meta.tidy())).await.ok_or(ErrorCode::Internal)??;
        if left == 0 { Ok(()) } else { Err(ErrorCode::Io) }
    }
}
