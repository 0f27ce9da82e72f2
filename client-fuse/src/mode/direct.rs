//! `direct` mode: every operation asks the server.
//!
//! Promises:
//! - What one client has written is seen by the next read, stat or lookup of any other.
//! - A write is at the server when it returns, and durable after fsync. It survives a server that loses its memory
//!   before that, because the client keeps it until it is committed.
//!
//! State: none that is used without asking. The attributes last seen are kept to know an object's type.
//!
//! Rules:
//! 1. Attributes and names are valid for no time at all.
//! 2. Files are opened past the kernel's pages. Mapped pages are the one thing that is cached; they are dropped when
//!    size or modification time turn out to have changed, and at each open if `change` has.
//! 3. Each write is one request, answered before the write returns, retained until a commit has vouched for it.

use std::time::Duration;

use larder_protocol::attr::FileType;
use larder_protocol::runtime::BootTime;

use super::{CachePolicy, OpenPlan, Writes};
use crate::core::attr_cache::{AttrCache, Limits, Miss};

/// The policy of `direct` mounts.
#[derive(Debug)]
pub struct Direct;

impl CachePolicy for Direct {
    fn attr_limits(&self, _kind: FileType) -> Limits {
        Limits { min: Duration::ZERO, max: Duration::ZERO }
    }

    fn usable(&self, _attrs: &AttrCache, _now: BootTime) -> Result<Duration, Miss> {
        Err(Miss::Uncached)
    }

    fn entry_ttl(&self, _dir: Duration) -> Duration {
        Duration::ZERO
    }

    fn negative_ttl(&self, _dir: Duration) -> Duration {
        Duration::ZERO
    }

    fn open(&self, flags: i32) -> OpenPlan {
        let writes = if flags & libc::O_APPEND != 0 { Writes::Appended } else { Writes::Through };
        OpenPlan { revalidate: true, direct_io: true, writes, flush_on_close: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_valid_for_any_time() {
        assert_eq!(Direct.attr_limits(FileType::Directory).max, Duration::ZERO);
        assert_eq!(Direct.entry_ttl(Duration::from_secs(9)), Duration::ZERO);
        assert_eq!(Direct.negative_ttl(Duration::from_secs(9)), Duration::ZERO);
        assert_eq!(Direct.open(libc::O_RDWR).writes, Writes::Through);
        assert_eq!(Direct.open(libc::O_WRONLY | libc::O_APPEND).writes, Writes::Appended);
    }
}
