//! The disk cache of whole files.
//!
//! 1. **The place of a file says what it is.** A file that may hold data that the server has not is in `dirty`, with all
//!    that it takes to store it in its name; a clean copy is in `files`. Going from one to the other is one rename, so a
//!    process that is killed leaves the truth behind. (Against a power cut: [`DiskCache::sync_dirty`].)
//! 2. **A clean copy is used only as it was installed**: of the version asked for, its file of the size, time of change
//!    and inode that it had then. That is looked at each time. The contents are compared with their checksums at the
//!    first use in a process up to [`VERIFY_MAX`], and whatever the size at the first use after the machine started anew:
//!    a power cut may have kept a file's size and time and lost its data. What does not match is dropped.
//! 3. **Data that the server may lack is never dropped**, whatever its age or the limit, but by [`DiskCache::discard`]
//!    and [`DiskCache::forget_conflict`].
//! 4. **Memory says what holds, the index follows** ([`DiskCache::flush`]). After a crash, a clean copy that the index
//!    does not know, or knows otherwise, is dropped; so nothing depends on when the index is written.
//! 5. **The limit** is on the sizes of all files together (not on the blocks they occupy). To stay under it, clean
//!    copies go, the least recently used first, but none that is open or pinned. What was admitted before (open, dirty,
//!    fetched at the same time) may exceed it for a while.
//! 6. **The directory may be deleted at any time.** Open files stay good; what vanished is fetched again.
//! 7. Locks are taken in this order: index, home, state, the place of a file. Contents are read, and files removed,
//!    without the state's; files are moved under it, so that whoever has it finds each file where it should be.
//!
//! Everything blocks: it is for threads that may.

mod contents;
mod dirty;
mod error;
mod file;
mod home;
mod index;
mod layout;
mod opening;
mod state;
#[cfg(test)]
mod tests;
mod upkeep;

use std::io;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;

use larder_protocol::ids::ClientId;
use parking_lot::Mutex;

pub use self::dirty::LeftDirty;
pub use self::error::CacheError;
use self::file::Spare;
pub use self::file::{CHECK_BLOCK, CacheFile, checksum, checksums_of};
use self::home::{Identity, Lock};
use self::index::{Index, IndexError};
use self::layout::Layout;
use self::state::State;
pub use self::upkeep::{Evicted, Listed, ListedState, Usage, Verified};

/// The largest file whose contents are checked at its first use in each process.
pub const VERIFY_MAX: u64 = 8 << 20;

/// How to open a cache.
#[derive(Clone, Debug)]
pub struct Options {
    /// The cache directory. It is made if it is not there.
    pub dir: PathBuf,
    /// Bytes that the files may have together (rule 5).
    pub limit: u64,
    /// The server and volume, such as `host:port/root`. A cache is of use for one only.
    pub volume: String,
    /// The client's identity if the directory has none yet: a random number.
    pub new_client: u128,
    /// Nanoseconds since 1970: the incarnation is at least this, in case the directory's was lost.
    pub wall_nanos: u64,
}

/// The disk cache of one mount.
#[derive(Debug)]
pub struct DiskCache {
    layout: Arc<Layout>,
    limit: u64,
    volume: String,
    identity: Identity,
    boot: NonZeroU64,
    state: Mutex<State>,
    index: Mutex<Index>,
    home: Mutex<Lock>,
    /// Made by [`DiskCache::prepare`].
    spare: Mutex<Option<Spare>>,
}

impl DiskCache {
    /// The client's durable identity, and its incarnation, which is higher at each open.
    pub fn identity(&self) -> (ClientId, u64) {
        (self.identity.client, self.identity.incarnation)
    }

    /// Bytes that the files may have together.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Writes to the index what has changed since it was last written. To be called every second or so, and at the end.
    ///
    /// Also makes anew what somebody removed of the cache directory.
    ///
    /// # Errors
    /// What the system says; `ResourceBusy` if the directory was removed and another mount has begun to use it. What
    /// could not be written is tried again next time.
    pub fn flush(&self) -> io::Result<()> {
        let mut index = self.index.lock();
        self.restore_home()?;
        if !index.is_in_place() {
            self.begin_index_anew(&mut index)?;
        }
        match self.write_changes(&mut index) {
            Err(error @ IndexError::Damaged(_)) => {
                index.put_aside(&error)?;
                self.begin_index_anew(&mut index)?;
                Ok(self.write_changes(&mut index)?)
            }
            result => Ok(result?),
        }
    }

    fn begin_index_anew(&self, index: &mut Index) -> io::Result<()> {
        index.begin_anew()?;
        self.state.lock().all_changed();
        Ok(())
    }

    fn write_changes(&self, index: &mut Index) -> Result<(), IndexError> {
        let (changes, batch) = self.state.lock().take_changes();
        if batch.is_empty() {
            return Ok(());
        }
        let result = index.write(&batch);
        if result.is_err() {
            self.state.lock().changes.merge(changes);
        }
        result
    }

    /// Makes anew what says whose the directory is, if that was removed.
    fn restore_home(&self) -> io::Result<()> {
        let mut lock = self.home.lock();
        let held = lock.holds(&self.layout.lock());
        if held && self.layout.identity().exists() && self.layout.volume().exists() {
            return Ok(());
        }
        tracing::warn!("the cache directory {} was removed, in whole or in part", self.layout.dir().display());
        self.layout.make_dirs()?;
        if !held {
            *lock = Lock::take(&self.layout.lock())?.ok_or_else(|| {
                let dir = self.layout.dir().to_owned();
                io::Error::new(io::ErrorKind::ResourceBusy, CacheError::InUse { dir })
            })?;
        }
        home::write_volume(&self.layout, &self.volume)?;
        self.identity.write(&self.layout)
    }
}
