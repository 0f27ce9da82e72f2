//! Contents in ordinary files.
//!
//! `<directory>/<bits 16 to 23 of the vnode>/<bits 8 to 15>/<vnode>.<version>`, all in hex: vnodes made one after the
//! other share a directory, so that its entry is in memory and one sync of it covers many of them.
//!
//! File systems end files early (ext4 at 16 TiB), so that a content file is cut into segments of [`SEGMENT`] bytes. The
//! first one has the name above; the one that starts at `n` segments adds `.<n>` to it.
//!
//! - **S1** If there are segments after the first, the first has exactly the length of a segment, and has it before any
//!   of them is made. So a content file that fits into one pays nothing for this: only where the first segment is full
//!   is the directory searched for more.
//! - **S2** Every segment but the last is full or missing. A missing one is a hole, and so is, where a crash left a short
//!   one, what that lacks.
//! - **S3** The content file's size is where its last segment starts, plus the length of that.
//!
//! Growing fills the last segment, then makes the new one; shrinking fills the segment that will be the last, removes
//! those after it from the end, then cuts it. A crash in between thus leaves a size between that before and that after,
//! and nothing but zeros where nothing was written. Removing takes the first segment last, so that a removal done
//! again finds the others.

mod copying;
mod durability;
mod handles;
mod layout;
mod names;
mod reading;
mod segments;
mod space;
mod writeback;

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use larder_protocol::attr::Timestamp;
use larder_protocol::service::file::SeekWhat;
use rustix::fs::Advice;
use rustix::io::Errno;

use self::durability::Durability;
use self::handles::Handles;
use self::layout::Layouts;
use self::names::SegmentId;
use self::segments::{end_of, pieces};
use super::{Content, ContentId, ContentStat, Space};

/// Bytes of a segment: half of what ext4 with blocks of 4 KiB takes.
pub const SEGMENT: u64 = 1 << 43;

/// Content files in a directory.
#[derive(Debug)]
pub struct FileContent {
    directory: PathBuf,
    segment_size: u64,
    handles: Handles,
    layouts: Layouts,
    durability: Durability,
}

impl FileContent {
    /// Opens the directory, and makes it if it is not there.
    ///
    /// # Errors
    /// The operating system's.
    pub fn open(directory: &Path) -> io::Result<FileContent> {
        FileContent::open_with_segments(directory, SEGMENT)
    }

    /// As [`open`](FileContent::open), with segments of another size (bytes, not zero), which must be the same for
    /// every process that ever opens the directory.
    ///
    /// # Errors
    /// The operating system's; `InvalidInput` if the size is zero.
    pub fn open_with_segments(directory: &Path, segment_size: u64) -> io::Result<FileContent> {
        if segment_size == 0 {
            return Err(ErrorKind::InvalidInput.into());
        }
        match fs::create_dir(directory) {
            Ok(()) => {
                if let Some(parent) = directory.parent() {
                    File::open(parent)?.sync_all()?;
                }
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        Ok(FileContent {
            directory: directory.to_owned(),
            segment_size,
            handles: Handles::new(directory),
            layouts: Layouts::new(directory),
            durability: Durability::new(directory),
        })
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where a content file is: its first segment.
    pub fn path(&self, id: ContentId) -> PathBuf {
        self.directory.join(SegmentId::first(id).relative_path())
    }
}

/// Tries again when a signal came in between.
fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}

fn write_all(file: &File, mut offset: u64, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        let written = retry(|| rustix::io::pwrite(file, data, offset))?;
        if written == 0 {
            return Err(ErrorKind::WriteZero.into());
        }
        data = &data[written..];
        offset += written as u64;
    }
    Ok(())
}

impl Content for FileContent {
    fn create(&self, id: ContentId) -> io::Result<()> {
        match self.handles.create(SegmentId::first(id)) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.durability.make_levels(id)?;
                self.handles.create(SegmentId::first(id))?;
            }
            result => drop(result?),
        }
        // One that was there already may come from a process that ended before it synced the name.
        self.durability.name_changed(id);
        Ok(())
    }

    fn read_cached(&self, id: ContentId, offset: u64, len: usize) -> io::Result<Option<Bytes>> {
        self.read_from_memory(id, offset, len)
    }

    fn read(&self, id: ContentId, offset: u64, len: usize) -> io::Result<Bytes> {
        self.read_from_disk(id, offset, len)
    }

    fn write(&self, id: ContentId, offset: u64, data: &[u8]) -> io::Result<()> {
        let end = end_of(offset, data.len() as u64)?;
        let first = self.first(id)?;
        if end < self.segment_size {
            return write_all(&first, offset, data);
        }
        let mut rest = data;
        for piece in pieces(self.segment_size, offset, end) {
            // A piece is no longer than the data.
            let (now, later) = rest.split_at(piece.len as usize);
            let file = self.reach(id, piece.segment, piece.end())?;
            let written = write_all(&file, piece.start, now);
            self.touch(id, piece.segment)?;
            written?;
            rest = later;
        }
        Ok(())
    }

    fn begin_sync(&self, id: ContentId, offset: u64, len: u64) -> io::Result<()> {
        let end = end_of(offset, len)?;
        // Few files reach further, and theirs is only a hint less.
        if end >= self.segment_size { Ok(()) } else { writeback::begin(&*self.first(id)?, offset, len) }
    }

    fn stat(&self, id: ContentId) -> io::Result<ContentStat> {
        let first = self.first(id)?;
        let stat = rustix::fs::fstat(&*first)?;
        let modified = Timestamp { secs: stat.st_mtime, nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or(0) };
        let (size, blocks) = (stat.st_size.cast_unsigned(), stat.st_blocks.cast_unsigned());
        let mut sum = ContentStat { size, blocks, modified };
        if sum.size < self.segment_size {
            return Ok(sum);
        }
        let numbers = self.layout(id, |layout| Ok(layout.numbers().clone()))?;
        for number in numbers {
            let Some(file) = self.segment(id, number)? else { continue };
            let stat = rustix::fs::fstat(&*file)?;
            sum.size = number * self.segment_size + stat.st_size.cast_unsigned();
            sum.blocks += stat.st_blocks.cast_unsigned();
        }
        Ok(sum)
    }

    fn truncate(&self, id: ContentId, size: u64) -> io::Result<()> {
        self.set_size(id, size)
    }

    fn punch(&self, id: ContentId, offset: u64, len: u64) -> io::Result<()> {
        self.punch_hole(id, offset, len)
    }

    fn reserve(&self, id: ContentId, offset: u64, len: u64, keep_size: bool) -> io::Result<()> {
        self.reserve_space(id, offset, len, keep_size)
    }

    fn seek(&self, id: ContentId, offset: u64, what: SeekWhat) -> io::Result<Option<u64>> {
        self.seek_from(id, offset, what)
    }

    fn copy(&self, from: ContentId, from_offset: u64, to: ContentId, to_offset: u64, len: u64) -> io::Result<u64> {
        self.copy_range((from, from_offset), (to, to_offset), len)
    }

    fn sync(&self, id: ContentId) -> io::Result<()> {
        // First its length, on which all others rest (S1).
        let first = self.first(id)?;
        retry(|| rustix::fs::fdatasync(&*first))?;
        if self.is_full(&first)? {
            let touched = self.layout(id, |layout| Ok(layout.touched()))?;
            for number in touched.keys() {
                if let Some(file) = self.segment(id, *number)? {
                    retry(|| rustix::fs::fdatasync(&*file))?;
                }
            }
            self.layout(id, |layout| {
                layout.synced(&touched);
                Ok(())
            })?;
        }
        self.durability.sync_names(id)
    }

    fn distrust(&self, id: ContentId) -> io::Result<()> {
        self.handles.forget(SegmentId::first(id));
        let first = self.first(id)?;
        rustix::fs::fadvise(&*first, 0, None, Advice::DontNeed)?;
        self.layouts.forget(id);
        if self.is_full(&first)? {
            for number in self.layout(id, |layout| Ok(layout.numbers().clone()))? {
                self.handles.forget(SegmentId { id, number });
                if let Some(file) = self.segment(id, number)? {
                    rustix::fs::fadvise(&*file, 0, None, Advice::DontNeed)?;
                }
            }
        }
        Ok(())
    }

    fn remove(&self, id: ContentId) -> io::Result<()> {
        self.remove_all(id)
    }

    fn sync_all(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(fs::File::open(&self.directory)?)?)
    }

    fn sync_removals(&self) -> io::Result<()> {
        self.durability.sync_removals()
    }

    fn list(&self, each: &mut dyn FnMut(ContentId), strange: &mut dyn FnMut(String)) -> io::Result<()> {
        names::list(&self.directory, each, strange)
    }

    fn space(&self) -> io::Result<Space> {
        let stat = rustix::fs::statvfs(&self.directory)?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        // File systems that make inodes as they need them count none.
        let files_free = if stat.f_files == 0 { u64::MAX } else { stat.f_favail };
        let (total, free, available) = (bytes(stat.f_blocks), bytes(stat.f_bfree), bytes(stat.f_bavail));
        Ok(Space { total, free, available, files_free })
    }
}

#[cfg(test)]
mod tests;
