//! Where the bytes of a content file are, and making and removing segments so that the invariants hold throughout.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::sync::Arc;

use larder_protocol::limits::MAX_FILE_SIZE;
use rustix::io::Errno;

use super::layout::Layout;
use super::names::SegmentId;
use super::{FileContent, retry};
use crate::volume::content::ContentId;

/// A part of a range that lies in one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) segment: u64,
    /// Where it starts in the segment.
    pub(super) start: u64,
    pub(super) len: u64,
}

impl Piece {
    /// Where it ends in the segment.
    pub(super) fn end(self) -> u64 {
        self.start + self.len
    }
}

/// The parts of a range, in order.
pub(super) fn pieces(segment_size: u64, offset: u64, end: u64) -> impl Iterator<Item = Piece> {
    let mut at = offset;
    std::iter::from_fn(move || {
        let (segment, start) = (at / segment_size, at % segment_size);
        let len = end.checked_sub(at).filter(|left| *left > 0)?.min(segment_size - start);
        at += len;
        Some(Piece { segment, start, len })
    })
}

/// Where a range ends, if a file can reach that far.
pub(super) fn end_of(offset: u64, len: u64) -> io::Result<u64> {
    offset.checked_add(len).filter(|end| *end <= MAX_FILE_SIZE).ok_or_else(|| Errno::FBIG.into())
}

pub(super) fn len(file: &File) -> io::Result<u64> {
    Ok(rustix::fs::fstat(file)?.st_size.cast_unsigned())
}

fn set_len(file: &File, len: u64) -> io::Result<()> {
    retry(|| rustix::fs::ftruncate(file, len))
}

impl FileContent {
    pub(super) fn first(&self, id: ContentId) -> io::Result<Arc<File>> {
        self.handles.get(SegmentId::first(id))
    }

    /// Whether the first segment's length allows for further ones (S1).
    pub(super) fn is_full(&self, first: &File) -> io::Result<bool> {
        Ok(len(first)? >= self.segment_size)
    }

    pub(super) fn layout<T>(&self, id: ContentId, run: impl FnOnce(&mut Layout) -> io::Result<T>) -> io::Result<T> {
        self.layouts.with(id, &self.durability, run)
    }

    /// A segment of a content file whose first one is full; `None` if it is missing.
    pub(super) fn segment(&self, id: ContentId, number: u64) -> io::Result<Option<Arc<File>>> {
        if number == 0 {
            return self.first(id).map(Some);
        }
        self.layout(id, |layout| {
            layout.numbers().contains(&number).then(|| self.handles.get(SegmentId { id, number })).transpose()
        })
    }

    /// The last segment.
    fn last(&self, id: ContentId) -> io::Result<(u64, Arc<File>)> {
        let first = self.first(id)?;
        if !self.is_full(&first)? {
            return Ok((0, first));
        }
        self.layout(id, |layout| match layout.last() {
            Some(number) => Ok((number, self.handles.get(SegmentId { id, number })?)),
            None => Ok((0, first)),
        })
    }

    /// The size of the content file (S3).
    pub(super) fn size(&self, id: ContentId) -> io::Result<u64> {
        let (number, file) = self.last(id)?;
        Ok(number * self.segment_size + len(&file)?)
    }

    /// Makes a segment ready to be written up to `end` in it.
    pub(super) fn reach(&self, id: ContentId, number: u64, end: u64) -> io::Result<Arc<File>> {
        let first = self.first(id)?;
        if number == 0 && end < self.segment_size {
            return Ok(first);
        }
        if !self.is_full(&first)? {
            // By S1 there are none. Should a power cut on a file system that reorders have left some, their contents
            // must not appear when the first segment becomes full.
            self.remove_further(id, 0)?;
            if number > 0 {
                set_len(&first, self.segment_size)?;
            }
        }
        if number == 0 {
            return Ok(first);
        }
        self.layout(id, |layout| {
            let segment = SegmentId { id, number };
            if layout.numbers().contains(&number) {
                return self.handles.get(segment);
            }
            let last = layout.last().unwrap_or(0);
            if (1..number).contains(&last) {
                set_len(&*self.handles.get(SegmentId { id, number: last })?, self.segment_size)?;
                layout.touch(last);
            }
            let file = self.handles.create(segment)?;
            self.durability.name_changed(id);
            layout.insert(number);
            if number < last {
                set_len(&file, self.segment_size)?;
                layout.touch(number);
            }
            Ok(file)
        })
    }

    /// A segment was changed.
    pub(super) fn touch(&self, id: ContentId, number: u64) -> io::Result<()> {
        if number == 0 {
            // The first one is synced always.
            return Ok(());
        }
        self.layout(id, |layout| {
            layout.touch(number);
            Ok(())
        })
    }

    /// Removes the segments after `number`, the last one first: at any moment the size is one between that before and
    /// that after.
    fn remove_further(&self, id: ContentId, number: u64) -> io::Result<()> {
        self.layout(id, |layout| {
            while let Some(last) = layout.last().filter(|last| *last > number) {
                let segment = SegmentId { id, number: last };
                self.handles.forget(segment);
                match fs::remove_file(self.directory.join(segment.relative_path())) {
                    Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                    _ => layout.remove(last),
                }
                self.durability.name_changed(id);
            }
            Ok(())
        })
    }

    pub(super) fn set_size(&self, id: ContentId, size: u64) -> io::Result<()> {
        end_of(size, 0)?;
        let first = self.first(id)?;
        // The end of a full segment is no place in the next one.
        let number = size.saturating_sub(1) / self.segment_size;
        let end = size - number * self.segment_size;
        if end < self.segment_size && number == 0 && !self.is_full(&first)? {
            return set_len(&first, end);
        }
        let shorter = number < self.last(id)?.0;
        let file = self.reach(id, number, if shorter { self.segment_size } else { end })?;
        if shorter {
            // Full until it is the last, lest the size falls below both that before and that after.
            set_len(&file, self.segment_size)?;
            self.remove_further(id, number)?;
        }
        set_len(&file, end)?;
        self.touch(id, number)
    }

    pub(super) fn remove_all(&self, id: ContentId) -> io::Result<()> {
        let first = SegmentId::first(id);
        let path = self.path(id);
        let removed = match fs::metadata(&path) {
            Ok(found) if found.len() >= self.segment_size => self.remove_further(id, 0),
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        removed?;
        self.layouts.forget(id);
        self.handles.forget(first);
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            // One that is not there may have been removed by a process that ended before it synced that.
            _ => self.durability.removed(id),
        }
        Ok(())
    }
}
