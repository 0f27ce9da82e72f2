//! `nfs` mode: attributes and blocks are cached and polled, as NFS does.
//!
//! Promises:
//! - What one client wrote and closed, another sees at its next open (close-to-open).
//! - Attributes are never older than `acregmax` (`acdirmax` for directories).
//! - A program sees its own client's writes at once.
//! - `close` and `fsync` return when the data is durable at the server, or with the error.
//! - Appends of several clients to one file lose and tear nothing.
//!
//! State: for each node its attributes with their age; the `change` at which the kernel's pages were good; data
//! on its way to the server.
//!
//! Rules:
//! 1. An attribute is used until it expires: adaptively between the minimum and the maximum, counted from before the
//!    request. Validity given to the kernel never exceeds what remains ([`crate::core::attr_cache`]).
//! 2. `open` revalidates with the server unless `nocto`; a changed `change` drops the kernel's pages
//!    ([`crate::core::page_cache`]) and ends the validity of its attributes, of which the size is one.
//! 3. A cached block is used only while its file's attributes are unexpired or just revalidated: the kernel asks for
//!    attributes before it reads from its pages (`AUTO_INVAL_DATA`), and drops them if size or modification time have
//!    changed; a change that shows in neither is told to the kernel.
//! 4. Writes are buffered and coalesced; sent at close, fsync, memory pressure or after 30 s; `close` returns after
//!    commit, with the error if there was one ([`crate::core::write_behind`]). Writes of others than root to a file with setuid
//!    or setgid bits are sent at once, because the server takes these away.
//! 5. Files opened with `O_APPEND` append at the server, past the kernel's pages, because the kernel's idea of the
//!    end is stale. Mapped pages of such a file are written where they belong.
//! 6. A server that goes away is a slow operation (`hard`) or an error after its time (`soft`); the end of the mount
//!    ends every wait ([`crate::rpc`]).
//! 7. Locks are the kernel's, among the programs of one client; the mount's options say `nolock`.

use std::time::Duration;

use larder_protocol::attr::FileType;
use larder_protocol::runtime::BootTime;

use super::{CachePolicy, OpenPlan, Writes};
use crate::core::attr_cache::{AttrCache, Limits, Miss};
use crate::vfs::{LookupCache, MountOptions};

/// The policy of `nfs` mounts.
#[derive(Debug)]
pub struct Nfs {
    files: Limits,
    dirs: Limits,
    nocto: bool,
    names: LookupCache,
}

impl Nfs {
    /// With the options of a mount.
    pub fn new(options: &MountOptions) -> Nfs {
        Nfs {
            files: Limits { min: options.acregmin.min(options.acregmax), max: options.acregmax },
            dirs: Limits { min: options.acdirmin.min(options.acdirmax), max: options.acdirmax },
            nocto: options.nocto,
            names: options.lookupcache,
        }
    }
}

impl CachePolicy for Nfs {
    /// Rule 1.
    fn attr_limits(&self, kind: FileType) -> Limits {
        if kind == FileType::Directory { self.dirs } else { self.files }
    }

    /// Rule 1.
    fn usable(&self, attrs: &AttrCache, now: BootTime) -> Result<Duration, Miss> {
        attrs.remaining(now)
    }

    /// Rule 1: a name changes only with its directory.
    fn entry_ttl(&self, dir: Duration) -> Duration {
        if self.names == LookupCache::None { Duration::ZERO } else { dir }
    }

    fn negative_ttl(&self, dir: Duration) -> Duration {
        if self.names == LookupCache::All { dir } else { Duration::ZERO }
    }

    /// Rules 2, 4 and 5.
    fn open(&self, flags: i32) -> OpenPlan {
        let appended = flags & libc::O_APPEND != 0 && flags & libc::O_ACCMODE != libc::O_RDONLY;
        let direct = flags & libc::O_DIRECT != 0;
        OpenPlan {
            revalidate: !self.nocto,
            direct_io: appended || direct,
            writes: match (appended, direct) {
                (true, _) => Writes::Appended,
                (false, true) => Writes::Through,
                (false, false) => Writes::Buffered,
            },
            flush_on_close: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_1_limits_follow_the_options_and_the_maximum_wins() {
        let options =
            MountOptions { acregmin: Duration::from_secs(9), acregmax: Duration::from_secs(5), ..Default::default() };
        let nfs = Nfs::new(&options);
        assert_eq!(nfs.attr_limits(FileType::Regular).min, Duration::from_secs(5));
        assert_eq!(nfs.attr_limits(FileType::Directory).max, Duration::from_secs(60));
    }

    #[test]
    fn rule_1_names_live_as_long_as_their_directory() {
        let dir = Duration::from_secs(7);
        let ttl = |lookupcache| {
            let nfs = Nfs::new(&MountOptions { lookupcache, ..Default::default() });
            (nfs.entry_ttl(dir), nfs.negative_ttl(dir))
        };
        assert_eq!(ttl(LookupCache::All), (dir, dir));
        assert_eq!(ttl(LookupCache::Positive), (dir, Duration::ZERO));
        assert_eq!(ttl(LookupCache::None), (Duration::ZERO, Duration::ZERO));
    }

    #[test]
    fn rules_2_and_5_decide_how_files_open() {
        let nfs = Nfs::new(&MountOptions::default());
        let plan = nfs.open(libc::O_RDWR);
        assert!(plan.revalidate && !plan.direct_io && plan.writes == Writes::Buffered);
        let append = nfs.open(libc::O_WRONLY | libc::O_APPEND);
        assert!(append.direct_io && append.writes == Writes::Appended);
        assert!(!Nfs::new(&MountOptions { nocto: true, ..Default::default() }).open(0).revalidate);
    }
}
