//! What a volume does by itself: settling files, syncing, freeing, tidying.

use std::sync::{Arc, Weak};
use std::time::Duration;

use larder_protocol::error::ErrorCode;
use larder_protocol::runtime::RuntimeExt;

use super::Volume;
use super::context::Effects;
use super::data::Removal;

/// How often acknowledged changes are synced under `process` durability.
const SYNC_EVERY: Duration = Duration::from_millis(50);
/// How often files are looked for that can be settled.
const SETTLE_EVERY: Duration = Duration::from_millis(500);
/// How often the metadata engine is tidied.
const TIDY_EVERY: Duration = Duration::from_secs(1);
/// How long a file must be left alone before it is settled.
const SETTLE_AFTER: Duration = Duration::from_secs(1);

/// Begins a volume's upkeep. It ends with the volume, or when it is closed.
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
    // Each on its own: a large file that is being settled must not hold up the syncing of what was acknowledged.
    if !volume.data.durable {
        every(volume, SYNC_EVERY, |volume| async move { volume.sync_acknowledged().await });
    }
    every(volume, SETTLE_EVERY, |volume| async move { volume.settle().await });
    every(volume, TIDY_EVERY, |volume| async move {
        volume.on_meta("tidy the metadata", |meta| meta.tidy()).await;
    });
}

/// Does something again and again for as long as the volume is there and not closed.
fn every<F: Future<Output = ()> + Send>(
    volume: &Arc<Volume>,
    pause: Duration,
    work: impl Fn(Arc<Volume>) -> F + Send + Sync + 'static,
) {
    let weak = Arc::downgrade(volume);
    let (runtime, ending) = (Arc::clone(&volume.runtime), volume.data.ending.clone());
    let task = async move {
        loop {
            tokio::select! {
                biased;
                () = ending.cancelled() => return,
                () = runtime.sleep(pause) => {}
            }
            let Some(volume) = weak.upgrade() else { return };
            work(volume).await;
        }
    };
    volume.data.later(task);
}

/// Carries out what a committed batch leaves to do outside of the metadata.
fn follow(volume: &Arc<Volume>, effects: Effects) {
    for vnode in &effects.freed {
        volume.data.forget(*vnode);
        volume.data.drop_scratch_of(*vnode);
    }
    if let Some(promises) = volume.promises.get()
        && !effects.freed.is_empty()
    {
        promises.freed(effects.freed.iter().map(|vnode| volume.object(*vnode)));
    }
    let removals = effects.removed.into_iter();
    let removals =
        removals.map(|(id, intent)| Removal { id, intent, removing: volume.data.removals.begin() }).collect::<Vec<_>>();
    if volume.data.durable {
        volume.remove_old(removals);
    } else {
        // Not before the batch is durable: a power cut would leave the record of contents that are gone.
        volume.data.to_remove.lock().extend(removals);
    }
}

impl Volume {
    pub(super) fn remove_old(&self, removals: Vec<Removal>) {
        for removal in removals {
            let data = Arc::clone(&self.data);
            self.data.later(async move { data.remove_content(removal).await });
        }
    }

    async fn settle(&self) {
        let data = &self.data;
        if let Some(moment) = self.runtime.boottime().checked_sub(SETTLE_AFTER) {
            data.settle_idle(moment).await;
        }
        if data.durable {
            data.discard_all(data.take_undecided()).await;
        }
        data.drop_unused();
        data.finish_removals().await;
        data.store_touched();
        if let Err(error) = data.writer.flush_lazy().await {
            tracing::warn!("volume {}: cannot commit what was left for later: {error}", self.name);
        }
    }

    /// Whether it went well; what did not is in the log.
    pub(super) async fn on_meta(
        &self,
        what: &str,
        work: impl FnOnce(&dyn super::meta::Metadata) -> super::error::StoreResult<()> + Send + 'static,
    ) -> bool {
        let meta = Arc::clone(&self.data.meta);
        match self.runtime.blocking(move || work(&*meta)).await {
            Some(Ok(())) => return true,
            Some(Err(error)) => tracing::error!("volume {}: cannot {what}: {error}", self.name),
            None => tracing::error!("volume {}: a thread panicked that was to {what}", self.name),
        }
        false
    }

    /// Settles what can be settled now, so that a close that comes soon has little to do. What fails is in the log.
    pub async fn settle_all(&self) {
        self.data.settle_idle(Duration::MAX).await;
        if let Err(code) = self.sync().await {
            tracing::warn!("volume {}: cannot sync what was acknowledged: {code}", self.name);
        }
        self.on_meta("tidy the metadata", |meta| meta.tidy()).await;
    }

    /// Ends the waits for room, for a clean end: who waits asks the server's next life.
    pub fn hurry(&self) {
        self.data.hurry.cancel();
    }

    /// Settles and syncs everything, for a clean end. No request may come after it.
    ///
    /// # Errors
    /// `Io` if something could not be made durable; it is named in the log, and recovery will look after it.
    pub async fn close(self: &Arc<Self>) -> Result<(), ErrorCode> {
        // Or the process ends in the middle of what goes on.
        self.data.hurry.cancel();
        self.data.ending.cancel();
        self.data.tasks.close();
        self.data.tasks.wait().await;
        let left = self.data.settle_idle(Duration::MAX).await;
        let is_synced = self.data.sync_acknowledged().await;
        self.data.drop_scratch().await;
        let to_remove = std::mem::take(&mut *self.data.to_remove.lock());
        let undecided = self.data.take_undecided();
        if !(to_remove.is_empty() && undecided.is_empty())
            && self.on_meta("sync the metadata", |meta| meta.sync()).await
        {
            for removal in to_remove {
                self.data.remove_content(removal).await;
            }
            self.data.discard_all(undecided).await;
        }
        self.data.finish_removals().await;
        self.data.store_touched();
        self.data.writer.flush_lazy().await?;
        // Nor in what a request has left that was cut off, or one of these batches.
        self.data.tasks.wait().await;
        let meta = Arc::clone(&self.data.meta);
        self.runtime.blocking(move || meta.sync().and_then(|()| meta.tidy())).await.ok_or(ErrorCode::Internal)??;
        if left == 0 && is_synced { Ok(()) } else { Err(ErrorCode::Io) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use larder_protocol::cell::Quota;
    use larder_protocol::ids::{Epoch, VolumeId};
    use larder_protocol::runtime::{BusyPoll, SharedRuntime, SystemRuntime};

    use super::*;
    use crate::volume::{Durability, VolumeConfig, create, open};

    #[test]
    fn nothing_goes_on_when_a_volume_is_closed() {
        let (runtime, executors) = SystemRuntime::start("test", 2, BusyPoll::none()).unwrap();
        let runtime: SharedRuntime = Arc::new(runtime);
        for durability in [Durability::Power, Durability::Process] {
            let dir = tempfile::tempdir().unwrap();
            let id = VolumeId(7);
            create(dir.path(), id, "test", Quota::default()).unwrap();
            let dir = dir.path().to_owned();
            let volume = open(VolumeConfig { id, dir, durability, epoch: Epoch(1), runtime: runtime.clone() }).unwrap();
            assert!(volume.data.tasks.len() >= 2);
            let executor = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let is_done = Arc::new(AtomicBool::new(false));
            volume.data.later({
                let (runtime, is_done) = (runtime.clone(), is_done.clone());
                async move {
                    runtime.sleep(Duration::from_millis(300)).await;
                    is_done.store(true, Ordering::SeqCst);
                }
            });
            executor.block_on(volume.close()).unwrap();
            assert!(volume.data.tasks.is_empty() && is_done.load(Ordering::SeqCst));
        }
        executors.stop(Duration::from_secs(10));
    }
}
