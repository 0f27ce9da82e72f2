//! The contents of files too large for the metadata: one content file for each version of a vnode.
//!
//! Nothing above this trait knows where the bytes are. Calls may block; the caller decides on which thread. There is
//! one writer for a content file at a time (the vnode's gate), readers may run beside it.

pub mod files;
pub mod memory;

use std::io;

use bytes::Bytes;
use larder_protocol::attr::Timestamp;
use larder_protocol::service::file::SeekWhat;

/// Names a content file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentId {
    /// The vnode.
    pub vnode: u64,
    /// The version: the vnode's change attribute when the content file was begun.
    pub version: u64,
}

/// A content file's size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContentStat {
    /// Bytes.
    pub size: u64,
    /// Units of 512 bytes that it occupies.
    pub blocks: u64,
    /// When it was last written, as far as is known: never later than it was.
    pub modified: Timestamp,
}

/// Room under the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Bytes in all.
    pub total: u64,
    /// Bytes free.
    pub free: u64,
    /// Bytes free to others than root.
    pub available: u64,
    /// Files (inodes) that can still be made; `u64::MAX` where that has no bound.
    pub files_free: u64,
}

/// Where content files are. Every method fails with the operating system's error; `NotFound` means the content file.
#[expect(clippy::missing_errors_doc, reason = "one sentence above speaks for all")]
pub trait Content: Send + Sync + 'static {
    /// Makes an empty content file, or leaves the one that is there as it is.
    fn create(&self, id: ContentId) -> io::Result<()>;

    /// Reads up to `len` bytes, less only at the end, if that takes no disk access; `None` if it would.
    fn read_cached(&self, id: ContentId, offset: u64, len: usize) -> io::Result<Option<Bytes>>;

    /// Reads up to `len` bytes, less only at the end.
    fn read(&self, id: ContentId, offset: u64, len: usize) -> io::Result<Bytes>;

    /// Writes all of `data`, extending the file (with a hole before it) where it reaches past the end.
    fn write(&self, id: ContentId, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Begins to make what was written to a range durable, so that [`sync`](Content::sync) has less to wait for. A hint.
    fn begin_sync(&self, _id: ContentId, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    /// The size.
    fn stat(&self, id: ContentId) -> io::Result<ContentStat>;

    /// Cuts or extends to `size`.
    fn truncate(&self, id: ContentId, size: u64) -> io::Result<()>;

    /// Makes a hole; the size stays.
    fn punch(&self, id: ContentId, offset: u64, len: u64) -> io::Result<()>;

    /// Reserves space, extending the file unless `keep_size`. Far past the end and with `keep_size`, an implementation
    /// may be unable to (`EOPNOTSUPP`).
    fn reserve(&self, id: ContentId, offset: u64, len: u64, keep_size: bool) -> io::Result<()>;

    /// The next data or hole at or after `offset`; the end counts as a hole. `None` past the end, or if no data
    /// follows.
    fn seek(&self, id: ContentId, offset: u64, what: SeekWhat) -> io::Result<Option<u64>>;

    /// Copies up to `len` bytes and says how many; less only at the source's end.
    fn copy(&self, from: ContentId, from_offset: u64, to: ContentId, to_offset: u64, len: u64) -> io::Result<u64>;

    /// Makes the content file durable: data, size and that it exists.
    fn sync(&self, id: ContentId) -> io::Result<()>;

    /// Forgets what memory holds of it, so that the next read shows what the disk has. After a failed
    /// [`sync`](Content::sync) the page cache is no witness any more.
    fn distrust(&self, id: ContentId) -> io::Result<()>;

    /// Removes it; it need not be there. A power cut may bring it back until
    /// [`sync_removals`](Content::sync_removals).
    fn remove(&self, id: ContentId) -> io::Result<()>;

    /// Makes all content files durable.
    fn sync_all(&self) -> io::Result<()>;

    /// Makes durable all removals that have returned. After an error none of them may be relied upon; the next call
    /// tries again.
    fn sync_removals(&self) -> io::Result<()>;

    /// Calls `each` with every content file there is, in no order; anything else found in its place is named to
    /// `strange`.
    fn list(&self, each: &mut dyn FnMut(ContentId), strange: &mut dyn FnMut(String)) -> io::Result<()>;

    /// Room under the store.
    fn space(&self) -> io::Result<Space>;
}
