//! Making room: what is kept only for somebody's convenience gives way to those who need the room.
//!
//! Contents that nothing refers to any more are removed after the batch that says so, by tasks of their own; staged
//! contents and copies stay for clients that may come back for them. On a full disk both would let operations fail that
//! have room enough. So whoever finds none waits for removals and drops what nobody used lately, and tries again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use larder_protocol::error::ErrorCode;
use larder_protocol::limits::MAX_PAYLOAD;
use larder_protocol::runtime::BootTime;

use super::Data;

/// On a full disk, how long staged contents and copies are kept after they were last used. A client that is not cut
/// off comes for the next piece sooner, also over a link of 1 Mbit/s.
pub(super) const KEPT_WHEN_FULL: Duration = Duration::from_secs(30);
/// How long an operation waits for room at most, as long as some is on its way.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Removals of contents that are under way.
#[derive(Debug, Default)]
pub(in crate::volume) struct Removals(AtomicUsize);

impl Removals {
    /// Counts removals that are to come. Each is to [`end`](Removals::end).
    pub(in crate::volume) fn begin(&self, count: usize) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn end(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    fn is_any(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }
}

impl Data {
    /// Runs something again that found no room, for as long as some can be made. To be called with no gate held:
    /// removals wait for these.
    pub(in crate::volume) async fn with_room<T, F>(self: &Arc<Self>, run: impl Fn() -> F) -> Result<T, ErrorCode>
    where
        F: Future<Output = Result<T, ErrorCode>>,
    {
        let mut result = run().await;
        let until = self.runtime.boottime().saturating_add(PATIENCE);
        while matches!(result, Err(ErrorCode::NoSpace)) && self.make_room(MAX_PAYLOAD as u64, until).await {
            result = run().await;
        }
        result
    }

    /// Waits for room for `bytes` until then, if anything can be given back. Says whether it is worth another try.
    pub(super) async fn make_room(self: &Arc<Self>, bytes: u64, until: BootTime) -> bool {
        let mut gained = self.drop_idle().await;
        while self.removals.is_any() && self.runtime.boottime() < until {
            self.runtime.sleep(LOOK_EVERY).await;
            gained = true;
            if self.room.has_room_for(bytes) {
                break;
            }
        }
        gained
    }

    /// Drops staged contents and copies that nobody used lately. Says whether there were any.
    async fn drop_idle(self: &Arc<Self>) -> bool {
        let Some(moment) = self.runtime.boottime().checked_sub(KEPT_WHEN_FULL) else { return false };
        let (stages, copies) = (self.stages.take_unused(moment), self.kept.take_unused(moment));
        for stage in &stages {
            self.drop_stage(stage).await;
        }
        for kept in &copies {
            self.drop_kept(kept).await;
        }
        !(stages.is_empty() && copies.is_empty())
    }
}
