//! A file of the cache, and checksums of contents.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use larder_protocol::ids::Fid;
use parking_lot::Mutex;

use super::layout::{Layout, Place, remove};

/// Bytes that one checksum covers. The last block of a file may be shorter; an empty file has none.
pub const CHECK_BLOCK: usize = 1 << 20;

/// The CRC32C of one block.
pub fn checksum(block: &[u8]) -> u32 {
    crc32c::crc32c(block)
}

/// The checksums of a file's blocks.
///
/// # Errors
/// What reading says.
pub fn checksums_of(file: &File) -> io::Result<Vec<u32>> {
    let mut sums = Vec::new();
    blocks(file, |sum| {
        sums.push(sum);
        true
    })?;
    Ok(sums)
}

/// Whether a file has just these checksums.
///
/// # Errors
/// What reading says.
pub(super) fn has_checksums(file: &File, wanted: &[u32]) -> io::Result<bool> {
    let mut wanted = wanted.iter();
    let all = blocks(file, |sum| wanted.next() == Some(&sum))?;
    Ok(all && wanted.next().is_none())
}

/// How many checksums a file of `size` bytes has.
pub(super) fn blocks_in(size: u64) -> u64 {
    size.div_ceil(CHECK_BLOCK as u64)
}

/// Calls `each` with the checksum of each block while it says to go on; whether it did to the end.
fn blocks(file: &File, mut each: impl FnMut(u32) -> bool) -> io::Result<bool> {
    // Small files are common: no megabyte for each.
    let size = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    let mut buffer = vec![0; size.saturating_add(1).min(CHECK_BLOCK)];
    let mut offset = 0;
    loop {
        let mut filled = 0;
        while filled < CHECK_BLOCK {
            if filled == buffer.len() {
                // It is growing.
                buffer.resize(CHECK_BLOCK, 0);
            }
            match file.read_at(&mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if filled == 0 {
            return Ok(true);
        }
        if !each(checksum(&buffer[..filled])) {
            return Ok(false);
        }
        if filled < CHECK_BLOCK {
            return Ok(true);
        }
        offset += CHECK_BLOCK as u64;
    }
}

/// The last change of a file's contents, in nanoseconds since 1970.
pub(super) fn mtime(found: &std::fs::Metadata) -> i64 {
    found.mtime().saturating_mul(1_000_000_000).saturating_add(found.mtime_nsec())
}

/// Opens a file of the cache.
pub(super) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32).open(path)
}

/// An open file of the cache. One that is not installed when it is dropped is removed.
#[derive(Debug)]
pub struct CacheFile {
    fid: Fid,
    id: u64,
    file: File,
    layout: Arc<Layout>,
    /// Changed only under the lock of the cache's state, and always after the file was moved.
    pub(super) place: Mutex<Place>,
}

impl CacheFile {
    /// A file that is open at `place`.
    pub(super) fn new(layout: Arc<Layout>, fid: Fid, id: u64, place: Place, file: File) -> Arc<CacheFile> {
        Arc::new(CacheFile { fid, id, file, layout, place: Mutex::new(place) })
    }

    /// What it is a copy of.
    pub fn fid(&self) -> Fid {
        self.fid
    }

    /// The file itself, open for reading and writing.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Whether it is not in the cache any more, but only with those who have it open.
    pub fn is_gone(&self) -> bool {
        *self.place.lock() == Place::Gone
    }

    /// Whether it is to be kept when nobody has it open: it is neither gone nor replaced, nor too large.
    pub fn is_kept(&self) -> bool {
        !matches!(*self.place.lock(), Place::Gone | Place::Replaced)
    }

    /// Its number, which it keeps wherever it is moved.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Where it is now. Nothing need be there if somebody removed it.
    pub fn path(&self) -> PathBuf {
        self.at(*self.place.lock())
    }

    /// Where it is if it is at `place`.
    pub(super) fn at(&self, place: Place) -> PathBuf {
        self.layout.path(self.fid, self.id, place)
    }
}

impl Drop for CacheFile {
    fn drop(&mut self) {
        let place = *self.place.get_mut();
        if !matches!(place, Place::New | Place::Replaced) {
            return;
        }
        let path = self.at(place);
        if is_at(&self.file, &path) {
            remove(&path);
        }
    }
}

/// Whether an open file is the one at `path`. If the directory was deleted, another mount may have begun anew there, with
/// the same numbers.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), path.symlink_metadata()) {
        (Ok(own), Ok(found)) => (own.dev(), own.ino()) == (found.dev(), found.ino()),
        _ => false,
    }
}

/// An empty file that is not meant for anything yet, made while there was time. Removed when it is dropped.
#[derive(Debug)]
pub(super) struct Spare {
    id: u64,
    path: PathBuf,
    /// There until it is taken.
    file: Option<File>,
}

impl Spare {
    /// A file with this number.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn make(layout: &Layout, id: u64) -> io::Result<Spare> {
        let path = layout.new_file(id);
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Spare { id, path, file: Some(file) })
    }

    /// The file, to be used for `fid`; `None` if somebody has removed it.
    pub(super) fn take(mut self, layout: &Arc<Layout>, fid: Fid) -> Option<Arc<CacheFile>> {
        let file = self.file.take_if(|file| is_at(file, &self.path))?;
        Some(CacheFile::new(Arc::clone(layout), fid, self.id, Place::New, file))
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        if self.file.as_ref().is_some_and(|file| is_at(file, &self.path)) {
            remove(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn checksums_are_those_of_the_blocks() {
        assert_eq!(checksum(b"123456789"), 0xe306_9283, "CRC32C, not CRC32");
        let data: Vec<u8> = (0..2 * CHECK_BLOCK + 5).map(|index| (index % 251) as u8).collect();
        for size in [0, 1, CHECK_BLOCK - 1, CHECK_BLOCK, CHECK_BLOCK + 1, data.len()] {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&data[..size]).unwrap();
            let wanted: Vec<u32> = data[..size].chunks(CHECK_BLOCK).map(checksum).collect();
            assert_eq!(checksums_of(&file).unwrap(), wanted, "{size}");
            assert_eq!(wanted.len() as u64, blocks_in(size as u64));
            assert!(has_checksums(&file, &wanted).unwrap());
            let mut longer = wanted.clone();
            longer.push(1);
            assert!(!has_checksums(&file, &longer).unwrap(), "{size}: a block is missing");
            file.write_all(b"!").unwrap();
            assert!(!has_checksums(&file, &wanted).unwrap(), "{size}: a byte too many");
        }
    }
}
