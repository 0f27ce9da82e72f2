//! Reserving space and giving it back.

use std::fs::File;
use std::io;

use larder_protocol::limits::MAX_FILE_SIZE;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::segments::{end_of, pieces};
use super::{FileContent, retry};
use crate::volume::content::ContentId;

fn allocate(file: &File, flags: FallocateFlags, offset: u64, len: u64) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    retry(|| rustix::fs::fallocate(file, flags, offset, len))
}

impl FileContent {
    pub(super) fn punch_hole(&self, id: ContentId, offset: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let first = self.first(id)?;
        // A hole may reach past every end.
        let end = offset.saturating_add(len).min(MAX_FILE_SIZE);
        if offset < self.segment_size {
            allocate(&first, flags, offset, end.min(self.segment_size) - offset)?;
        }
        if end <= self.segment_size || offset >= end || !self.is_full(&first)? {
            return Ok(());
        }
        let touched = offset / self.segment_size..end.div_ceil(self.segment_size);
        let present: Vec<u64> =
            self.layout(id, |layout| Ok(layout.numbers().range(touched.start.max(1)..touched.end).copied().collect()))?;
        for number in present {
            let Some(file) = self.segment(id, number)? else { continue };
            let from = offset.saturating_sub(number * self.segment_size);
            let to = (end - number * self.segment_size).min(self.segment_size);
            allocate(&file, flags, from, to - from)?;
            self.touch(id, number)?;
        }
        Ok(())
    }

    /// With `keep_size`, space cannot be reserved past the last segment: another one would change the size (S3).
    pub(super) fn reserve_space(&self, id: ContentId, offset: u64, len: u64, keep_size: bool) -> io::Result<()> {
        let flags = if keep_size { FallocateFlags::KEEP_SIZE } else { FallocateFlags::empty() };
        let end = end_of(offset, len)?;
        if end < self.segment_size || len == 0 {
            return allocate(&*self.first(id)?, flags, offset, len);
        }
        let before = self.size(id)?;
        if keep_size && end > before.max(1).next_multiple_of(self.segment_size) {
            return Err(Errno::OPNOTSUPP.into());
        }
        for piece in pieces(self.segment_size, offset, end) {
            let done = self.reach(id, piece.segment, piece.end()).and_then(|file| {
                let done = allocate(&file, flags, piece.start, piece.len);
                self.touch(id, piece.segment)?;
                done
            });
            if let Err(error) = done {
                // All or nothing, as far as the size goes.
                if self.size(id)? > before {
                    self.set_size(id, before)?;
                }
                return Err(error);
            }
        }
        Ok(())
    }
}
