//! Making room: what is kept only for somebody's convenience gives way to those who need the room.
//!
//! Contents that nothing refers to any more are removed after the batch that says so, by tasks of their own; staged
//! contents and copies stay for clients that may come back for them. On a full disk both would let operations fail that
//! have room enough. So whoever finds none drops what nobody used lately, waits for removals, and tries again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use larder_protocol::error::ErrorCode;
use larder_protocol::limits::MAX_IN_FLIGHT;
use larder_protocol::runtime::BootTime;
use tokio::sync::Semaphore;

use super::Data;

/// On a full disk, how long staged contents and copies are kept after they were last used. A client that is not cut
/// off comes for the next piece sooner, also over a link of 1 Mbit/s.
pub(super) const KEPT_WHEN_FULL: Duration = Duration::from_secs(30);
/// How long an operation waits for room at most, as long as some is on its way.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is tried again. Not everything that says that there is no room means the disk, and others may be faster in
/// taking what there is.
const AGAIN: u32 = 64;
/// Mutations of a volume that may wait at the same time. Each holds a slot of its client meanwhile, and whoever would make
/// room by removing something needs one, too.
const WITH_SLOTS: usize = 32;
/// Requests without a slot that may. Each holds a place on its connection, and some must be left.
pub(super) const WITHOUT_SLOTS: usize = MAX_IN_FLIGHT / 2;
/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Counts removals of contents: a token for each, from the moment that nobody can use the contents any more until the
/// disk has their room again. Not for what an operation that fails takes back itself: it would be tried again for that.
#[derive(Debug, Default)]
pub(in crate::volume) struct Removals {
    begun: AtomicU64,
    ended: AtomicU64,
}

/// A removal that is under way.
#[derive(Debug)]
pub(in crate::volume) struct Removing(Arc<Removals>);

impl Removals {
    /// Begins one.
    pub(in crate::volume) fn begin(self: &Arc<Self>) -> Removing {
        self.begun.fetch_add(1, Ordering::AcqRel);
        Removing(Arc::clone(self))
    }

    fn ended(&self) -> u64 {
        self.ended.load(Ordering::Acquire)
    }

    /// Whether any are under way.
    pub(super) fn is_any(&self) -> bool {
        // In this order: what begins in between counts as under way.
        let ended = self.ended();
        self.begun.load(Ordering::Acquire) > ended
    }
}

impl Drop for Removing {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::AcqRel);
    }
}

/// How many more may wait for room.
#[derive(Debug)]
pub(in crate::volume) struct Waiting {
    with_slots: Semaphore,
    without_slots: Semaphore,
}

impl Default for Waiting {
    fn default() -> Waiting {
        Waiting { with_slots: Semaphore::new(WITH_SLOTS), without_slots: Semaphore::new(WITHOUT_SLOTS) }
    }
}

/// Who asks for room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::volume) enum By {
    /// A mutation, in a slot of its client.
    Mutation,
    /// Another request.
    Request,
}

impl Data {
    /// Runs something that takes up to `bytes`, and runs it again if it found no room and some can be made. To be called
    /// with no gate held: removals wait for these.
    pub(in crate::volume) async fn with_room<T, F>(
        self: &Arc<Self>,
        by: By,
        bytes: u64,
        run: impl Fn() -> F,
    ) -> Result<T, ErrorCode>
    where
        F: Future<Output = Result<T, ErrorCode>>,
    {
        let mut ended = self.removals.ended();
        let mut result = run().await;
        let mut until = None;
        for _ in 0..AGAIN {
            if !matches!(result, Err(ErrorCode::NoSpace)) {
                break;
            }
            let until = *until.get_or_insert_with(|| self.runtime.boottime().saturating_add(PATIENCE));
            // It may have looked for room just before there was some.
            let came_late = self.removals.ended() != ended && self.room.has_room_for(bytes);
            if !came_late && !self.make_room(by, bytes, until).await {
                break;
            }
            if self.hurry.is_cancelled() || self.runtime.boottime() >= until {
                break;
            }
            ended = self.removals.ended();
            // A store may have dropped what was staged for it. There is room now: its client stages it again.
            result = run().await;
        }
        match result {
            // Whether there would have been room is for the next life to say.
            Err(ErrorCode::NoSpace) if until.is_some() && self.hurry.is_cancelled() => Err(ErrorCode::Unavailable),
            Err(ErrorCode::NoSpace) => {
                self.room.want(bytes);
                Err(ErrorCode::NoSpace)
            }
            result => result,
        }
    }

    /// Waits until there is room for `bytes` which was not there, if anything can be given back.
    async fn make_room(self: &Arc<Self>, by: By, bytes: u64, until: BootTime) -> bool {
        if !self.room.can_ever_have(bytes) || self.room.has_room_for(bytes) {
            return false;
        }
        self.drop_idle();
        let places = match by {
            By::Mutation => &self.waiting.with_slots,
            By::Request => &self.waiting.without_slots,
        };
        let Ok(_waiting) = places.try_acquire() else { return false };
        self.wait_for_removals(until, || self.room.has_room_for(bytes)).await;
        self.room.has_room_for(bytes)
    }

    /// Waits until what is being removed is gone, for a while.
    pub(in crate::volume) async fn removals_ended(&self) {
        let until = self.runtime.boottime().saturating_add(PATIENCE);
        self.wait_for_removals(until, || false).await;
    }

    /// Waits until nothing is being removed, or it is enough, or so long.
    async fn wait_for_removals(&self, until: BootTime, is_enough: impl Fn() -> bool) {
        while self.removals.is_any() && self.runtime.boottime() < until && !self.hurry.is_cancelled() && !is_enough() {
            self.runtime.sleep(LOOK_EVERY).await;
        }
    }

    /// Drops staged contents and copies that nobody used lately.
    fn drop_idle(self: &Arc<Self>) {
        if let Some(moment) = self.runtime.boottime().checked_sub(KEPT_WHEN_FULL) {
            let removals = &self.removals;
            self.drop_later(self.stages.take_unused(moment, removals), self.kept.take_unused(moment, removals));
        }
    }
}
