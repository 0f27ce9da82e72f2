//! Reading, and finding data and holes.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use bytes::Bytes;
use larder_protocol::service::file::SeekWhat;
use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::segments::{len as file_len, pieces};
use super::{FileContent, retry};
use crate::volume::content::ContentId;

impl FileContent {
    pub(super) fn read_from_memory(&self, id: ContentId, offset: u64, len: usize) -> io::Result<Option<Bytes>> {
        let first = self.first(id)?;
        let end = offset.saturating_add(len as u64);
        if end <= self.segment_size {
            let mut buffer = Vec::with_capacity(len);
            let is_whole = fill_without_waiting(&first, &mut buffer, offset, len)?;
            return Ok(is_whole.then(|| finished(buffer)));
        }
        if self.is_full(&first)? && !self.layouts.knows(id) {
            return Ok(None);
        }
        let end = end.min(self.size(id)?);
        // At most `len`.
        let mut buffer = Vec::with_capacity(end.saturating_sub(offset) as usize);
        for piece in pieces(self.segment_size, offset, end) {
            let filled = buffer.len() + piece.len as usize;
            if let Some(file) = self.segment(id, piece.segment)?
                && !fill_without_waiting(&file, &mut buffer, piece.start, piece.len as usize)?
            {
                return Ok(None);
            }
            buffer.resize(filled, 0);
        }
        Ok(Some(finished(buffer)))
    }

    pub(super) fn read_from_disk(&self, id: ContentId, offset: u64, len: usize) -> io::Result<Bytes> {
        let first = self.first(id)?;
        let end = offset.saturating_add(len as u64);
        if end <= self.segment_size {
            let mut buffer = Vec::with_capacity(len);
            // Less than a whole segment is less than the first only where that is the last (S1).
            fill(&first, &mut buffer, offset, len)?;
            return Ok(finished(buffer));
        }
        let end = end.min(self.size(id)?);
        // At most `len`.
        let mut buffer = Vec::with_capacity(end.saturating_sub(offset) as usize);
        for piece in pieces(self.segment_size, offset, end) {
            let filled = buffer.len() + piece.len as usize;
            if let Some(file) = self.segment(id, piece.segment)? {
                fill(&file, &mut buffer, piece.start, piece.len as usize)?;
            }
            buffer.resize(filled, 0);
        }
        Ok(finished(buffer))
    }

    pub(super) fn seek_from(&self, id: ContentId, offset: u64, what: SeekWhat) -> io::Result<Option<u64>> {
        let first = self.first(id)?;
        if offset < self.segment_size {
            let found = seek_in(&first, offset, what)?;
            if found.is_some_and(|found| found < self.segment_size) || !self.is_full(&first)? {
                return Ok(found);
            }
        }
        let size = self.size(id)?;
        if offset >= size {
            return Ok(None);
        }
        match what {
            SeekWhat::Data => self.seek_data(id, offset),
            SeekWhat::Hole => Ok(Some(self.seek_hole(id, offset, size)?)),
        }
    }

    fn seek_data(&self, id: ContentId, offset: u64) -> io::Result<Option<u64>> {
        let mut at = offset;
        loop {
            let next = at / self.segment_size;
            let present =
                if next == 0 { Some(0) } else { self.layout(id, |l| Ok(l.numbers().range(next..).next().copied()))? };
            let Some(number) = present else { return Ok(None) };
            let start = number * self.segment_size;
            if let Some(file) = self.segment(id, number)?
                && let Some(found) = seek_in(&file, at.saturating_sub(start), SeekWhat::Data)?
            {
                return Ok(Some(start + found));
            }
            // Cannot overflow: both are below 2^63.
            at = start + self.segment_size;
        }
    }

    /// For an offset before the end, which is a hole.
    fn seek_hole(&self, id: ContentId, offset: u64, size: u64) -> io::Result<u64> {
        let mut at = offset;
        while at < size {
            let start = at - at % self.segment_size;
            let Some(file) = self.segment(id, at / self.segment_size)? else { return Ok(at) };
            match seek_in(&file, at - start, SeekWhat::Hole)? {
                // The end of a full segment is none.
                Some(found) if found >= self.segment_size => at = start + self.segment_size,
                Some(found) => return Ok(start + found),
                // The segment is shorter.
                None => return Ok(at),
            }
        }
        Ok(size)
    }
}

/// The next data or hole in one segment; `None` past its end, or if no data follows.
pub(super) fn seek_in(file: &File, offset: u64, what: SeekWhat) -> io::Result<Option<u64>> {
    // The descriptor's position is nobody's: all else names its offsets.
    let to = match what {
        SeekWhat::Data => SeekFrom::Data(offset),
        SeekWhat::Hole => SeekFrom::Hole(offset),
    };
    match rustix::fs::seek(file, to) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Appends up to `len` bytes to `buffer`, less only at the file's end.
fn fill(file: &File, buffer: &mut Vec<u8>, offset: u64, len: usize) -> io::Result<()> {
    let (start, end) = (buffer.len(), buffer.len() + len);
    while buffer.len() < end {
        let before = buffer.len();
        let at = offset + (before - start) as u64;
        retry(|| rustix::io::pread(file, rustix::buffer::spare_capacity(buffer), at))?;
        if buffer.len() == before {
            break;
        }
        // The capacity may be more than was asked for.
        buffer.truncate(end);
    }
    Ok(())
}

/// As [`fill`], from the page cache; `false` if the disk would have to be waited for.
fn fill_without_waiting(file: &File, buffer: &mut Vec<u8>, offset: u64, len: usize) -> io::Result<bool> {
    let (start, end) = (buffer.len(), buffer.len() + len);
    if !read_without_waiting(file, buffer, offset)? {
        return Ok(false);
    }
    buffer.truncate(end);
    // Less may be the end of the file, or of what is in memory.
    Ok(buffer.len() == end || offset + (buffer.len() - start) as u64 >= file_len(file)?)
}

/// Gives back memory that a short read left unused.
fn finished(mut buffer: Vec<u8>) -> Bytes {
    if buffer.len() < buffer.capacity() / 2 {
        buffer.shrink_to_fit();
    }
    buffer.into()
}

/// Fills the spare capacity of `buffer` from the page cache; `false` if the disk would have to be waited for.
fn read_without_waiting(file: impl AsFd, buffer: &mut Vec<u8>, offset: u64) -> io::Result<bool> {
    use std::os::fd::AsRawFd;

    let fd = file.as_fd();
    let spare = buffer.spare_capacity_mut();
    let vector = libc::iovec { iov_base: spare.as_mut_ptr().cast(), iov_len: spare.len() };
    let Ok(offset) = i64::try_from(offset) else { return Ok(true) };
    loop {
        // SAFETY: `fd` is open for as long as it is borrowed; `vector` names exactly the spare capacity of `buffer`,
        // which is borrowed mutably until the last use of `spare`, and the call only writes to it.
        let count = unsafe { libc::preadv2(fd.as_raw_fd(), &raw const vector, 1, offset, libc::RWF_NOWAIT) };
        if let Ok(count) = usize::try_from(count) {
            let len = buffer.len() + count;
            // SAFETY: the kernel has written `count` bytes to the spare capacity, so these are initialised.
            unsafe { buffer.set_len(len) };
            return Ok(true);
        }
        let error = io::Error::last_os_error();
        match Errno::from_io_error(&error) {
            Some(Errno::INTR) => {}
            // Nothing of it is in memory, or the file system cannot tell.
            Some(Errno::AGAIN | Errno::OPNOTSUPP) => return Ok(false),
            _ => return Err(error),
        }
    }
}
