//! Making durable what was acknowledged (under `process` durability): beat by beat, and when a program asks for it.
//!
//! What a program has synced with fsync(2) survives a power cut under either durability. Under `power` everything that is
//! acknowledged does; under `process` the program's client asks for a beat out of turn.
//!
//! - **Y1** A beat makes durable all that was acknowledged before it began: contents first, for a record must not be durable
//!   before what it describes.
//! - **Y2** Whoever asks is answered by a beat that began after that; all who ask meanwhile share the next one.
//! - **Y3** The first who asks waits for all that is on the disk under the volume: of what the process before had acknowledged,
//!   and not made durable, no list is left.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use larder_protocol::error::ErrorCode;
use larder_protocol::runtime::RuntimeExt;
use tokio::sync::Mutex;

use super::Volume;

/// The beats of a volume.
#[derive(Debug, Default)]
pub(super) struct Beats {
    /// Held by the one that runs.
    turn: Mutex<()>,
    /// How many have begun.
    begun: AtomicU64,
    /// The last that went well.
    done: AtomicU64,
    /// Whether what the process before left is durable (Y3).
    is_old_durable: AtomicBool,
}

impl Volume {
    /// Makes durable whatever has been acknowledged so far (Y1).
    ///
    /// # Errors
    /// `Io` if the disk failed: then some of it is not.
    pub async fn sync(&self) -> Result<(), ErrorCode> {
        if self.data.durable {
            return Ok(());
        }
        let before = self.beats.begun.load(Ordering::Acquire);
        let _turn = self.beats.turn.lock().await;
        let is_old_durable = self.beats.is_old_durable.load(Ordering::Acquire);
        if is_old_durable && self.beats.done.load(Ordering::Acquire) > before {
            // It began after this was asked for (Y2).
            return Ok(());
        }
        if !is_old_durable {
            self.sync_old().await?;
        }
        if self.beat().await { Ok(()) } else { Err(ErrorCode::Io) }
    }

    /// One beat, in its turn.
    pub(super) async fn sync_acknowledged(&self) {
        let _turn = self.beats.turn.lock().await;
        self.beat().await;
    }

    /// Whether it went well; what did not is in the log. The caller has the turn.
    async fn beat(&self) -> bool {
        let data = &self.data;
        let number = self.beats.begun.fetch_add(1, Ordering::AcqRel) + 1;
        let to_remove = std::mem::take(&mut *data.to_remove.lock());
        let undecided = data.take_undecided();
        let mut is_well = data.sync_acknowledged().await;
        // The batch that ended a doubt may not be counted yet.
        let behind = !undecided.is_empty() || data.meta.durable_up_to() < data.writer.header().sequence;
        if !behind || self.on_meta("sync the metadata", |meta| meta.sync()).await {
            self.remove_old(to_remove);
            data.discard_all(undecided).await;
        } else {
            is_well = false;
            data.to_remove.lock().extend(to_remove);
            data.undecided.lock().extend(undecided);
        }
        if is_well {
            self.beats.done.store(number, Ordering::Release);
        }
        is_well
    }

    async fn sync_old(&self) -> Result<(), ErrorCode> {
        let content = self.data.content.clone();
        match self.runtime.blocking(move || content.sync_all()).await {
            Some(Ok(())) => {
                self.beats.is_old_durable.store(true, Ordering::Release);
                Ok(())
            }
            Some(Err(error)) => {
                tracing::error!("volume {}: cannot sync its disk: {error}", self.name());
                Err(ErrorCode::Io)
            }
            None => Err(ErrorCode::Internal),
        }
    }
}
