//! Whether the disk under the store has room for more.
//!
//! The last few megabytes are kept back: removing files writes to the metadata too, and must be possible on a full
//! store, or nothing could ever be freed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use larder_protocol::runtime::{BootTime, SharedRuntime};
use parking_lot::Mutex;

use crate::volume::content::Content;

/// How long an answer of the operating system is good for, if there is much more room than the reserve.
const GOOD_FOR: Duration = Duration::from_millis(50);
/// Much more room: what a fast disk cannot take in that time.
const PLENTY: u64 = 1 << 30;
/// The reserve is an eighth of the disk, within these bounds.
const MIN_RESERVE: u64 = 4 << 20;
const MAX_RESERVE: u64 = 64 << 20;
/// So few files that a disk has places for are soon used up.
const SCARCE_FILES: u64 = 1000;

/// Watches the room under a volume.
pub(crate) struct RoomGauge {
    content: Arc<dyn Content>,
    runtime: SharedRuntime,
    /// When there was last plenty of room.
    plenty: Mutex<Option<BootTime>>,
    /// Somebody found no room.
    wanted: AtomicBool,
}

impl RoomGauge {
    pub(crate) fn new(content: Arc<dyn Content>, runtime: SharedRuntime) -> RoomGauge {
        RoomGauge { content, runtime, plenty: Mutex::new(None), wanted: AtomicBool::new(false) }
    }

    /// Whether there is more left than the reserve. When the operating system does not say, yes: the write itself
    /// will find out.
    pub(crate) fn has_room(&self) -> bool {
        self.has_room_for(0)
    }

    /// Whether an empty disk of this size would have room for so many bytes.
    pub(crate) fn can_ever_have(&self, bytes: u64) -> bool {
        self.content.space().map_or(true, |space| bytes < space.total.saturating_sub(reserve(space.total)))
    }

    /// Whether there will soon be no more than the reserve, or no place for another file.
    pub(crate) fn is_scarce(&self) -> bool {
        let space = self.content.space();
        space.is_ok_and(|space| {
            space.available <= reserve(space.total).saturating_mul(2) || space.files_free <= SCARCE_FILES
        })
    }

    /// Notes that somebody found no room for so many bytes, if the disk is the reason.
    pub(crate) fn want(&self, bytes: u64) {
        if self.can_ever_have(bytes) && !self.has_room_for(bytes) {
            self.wanted.store(true, Ordering::Release);
        }
    }

    /// Whether somebody found no room since this was asked last.
    pub(crate) fn was_wanted(&self) -> bool {
        self.wanted.swap(false, Ordering::AcqRel)
    }

    /// As [`has_room`](RoomGauge::has_room), after taking up `bytes` more.
    pub(crate) fn has_room_for(&self, bytes: u64) -> bool {
        let now = self.runtime.boottime();
        let mut plenty = self.plenty.lock();
        if bytes < PLENTY && plenty.is_some_and(|at| now.saturating_sub(at) < GOOD_FOR) {
            return true;
        }
        let Ok(space) = self.content.space() else { return true };
        let reserve = reserve(space.total);
        *plenty = (space.available > reserve + PLENTY).then_some(now);
        space.available > reserve.saturating_add(bytes) && space.files_free > 0
    }
}

/// Bytes kept back on a disk of this size.
pub(crate) fn reserve(total: u64) -> u64 {
    (total / 8).clamp(MIN_RESERVE, MAX_RESERVE)
}
