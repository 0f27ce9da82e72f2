//! The caching policies: what a mode decides, apart from how the file system carries it out.

pub mod afs;
pub mod direct;
pub mod nfs;

use std::time::Duration;

use larder_protocol::attr::FileType;
use larder_protocol::runtime::BootTime;

use crate::core::attr_cache::{AttrCache, Limits, Miss};
use crate::vfs::{Mode, MountOptions};

/// What becomes of an open file's writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    /// They are kept and coalesced, and sent at close, fsync, under memory pressure or when old.
    Buffered,
    /// Each is sent before it returns.
    Through,
    /// Each is appended at the server.
    Appended,
}

/// How a file is to be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenPlan {
    /// Whether the server is asked for the file's attributes, however fresh those known are.
    pub revalidate: bool,
    /// Whether the kernel's pages are bypassed.
    pub direct_io: bool,
    /// What becomes of writes.
    pub writes: Writes,
    /// Whether close waits for the data to be durable.
    pub flush_on_close: bool,
}

/// One mode's decisions.
pub trait CachePolicy: Send + Sync + 'static {
    /// How long attributes of such an object may be used.
    fn attr_limits(&self, kind: FileType) -> Limits;

    /// Whether cached attributes may be used now, and for how long.
    ///
    /// # Errors
    /// The rule that says no.
    fn usable(&self, attrs: &AttrCache, now: BootTime) -> Result<Duration, Miss>;

    /// How long a name may be used whose directory's attributes are valid for `dir`.
    fn entry_ttl(&self, dir: Duration) -> Duration;

    /// The same for the absence of a name.
    fn negative_ttl(&self, dir: Duration) -> Duration;

    /// How to open a file with these flags (open(2)).
    fn open(&self, flags: i32) -> OpenPlan;
}

/// The policy of a mount.
pub fn policy(options: &MountOptions) -> Box<dyn CachePolicy> {
    match options.mode {
        Mode::Nfs => Box::new(nfs::Nfs::new(options)),
        Mode::Afs => Box::new(afs::AfsPolicy),
        Mode::Direct => Box::new(direct::Direct),
    }
}
