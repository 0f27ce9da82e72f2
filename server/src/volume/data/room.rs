//! Whether the disk under the store has room for more.
//!
//! The last few megabytes are kept back: removing files writes to the metadata too, and must be possible on a full
//! store, or nothing could ever be freed.

use std::sync::Arc;
use std::time::Duration;

use larder_protocol::runtime::{BootTime, SharedRuntime};
use parking_lot::Mutex;

use crate::volume::content::Content;

/// How long an answer of the operating system is good for.
const GOOD_FOR: Duration = Duration::from_millis(50);
/// The reserve is a fiftieth of the disk, within these bounds.
const MIN_RESERVE: u64 = 4 << 20;
const MAX_RESERVE: u64 = 64 << 20;

/// Watches the room under a volume.
pub(crate) struct RoomGauge {
    content: Arc<dyn Content>,
    runtime: SharedRuntime,
    last: Mutex<Option<(BootTime, bool)>>,
}

impl RoomGauge {
    pub(crate) fn new(content: Arc<dyn Content>, runtime: SharedRuntime) -> RoomGauge {
        RoomGauge { content, runtime, last: Mutex::new(None) }
    }

    /// Whether there is more left than the reserve. When the operating system does not say, yes: the write itself
    /// will find out.
    pub(crate) fn has_room(&self) -> bool {
        let now = self.runtime.boottime();
        let mut last = self.last.lock();
        if let Some((at, answer)) = *last
            && now.saturating_sub(at) < GOOD_FOR
        {
            return answer;
        }
        let answer = self.content.space().map_or(true, |space| {
            space.available > reserve(space.total) && space.files_free > 0
        });
        *last = Some((now, answer));
        answer
    }
}

/// Bytes kept back on a disk of this size.
pub(crate) fn reserve(total: u64) -> u64 {
    (total / 50).clamp(MIN_RESERVE, MAX_RESERVE)
}
