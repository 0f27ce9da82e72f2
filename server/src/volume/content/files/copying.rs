//! Copying.

use std::fs::File;
use std::io;

use larder_protocol::service::file::SeekWhat;
use rustix::io::Errno;

use super::FileContent;
use super::reading::seek_in;
use super::segments::{end_of, pieces};
use crate::volume::content::{Content, ContentId};

/// Bytes moved at once where the kernel cannot copy by itself.
const COPY_PIECE: usize = 256 << 10;

/// Copies up to `len` bytes within the kernel, less only at the source's end. Says how many, and `false` if the kernel
/// cannot do the rest.
fn copy_in_kernel(from: (&File, u64), to: (&File, u64), len: u64) -> io::Result<(u64, bool)> {
    let mut copied = 0;
    while copied < len {
        let (mut at, mut put) = (from.1 + copied, to.1 + copied);
        let piece = usize::try_from(len - copied).unwrap_or(usize::MAX).min(1 << 30);
        match rustix::fs::copy_file_range(from.0, Some(&mut at), to.0, Some(&mut put), piece) {
            Ok(0) => break,
            Ok(count) => copied += count as u64,
            Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP) => return Ok((copied, false)),
            Err(error) => return Err(error.into()),
        }
    }
    Ok((copied, true))
}

impl FileContent {
    pub(super) fn copy_range(&self, from: (ContentId, u64), to: (ContentId, u64), len: u64) -> io::Result<u64> {
        let (source, target) = (self.first(from.0)?, self.first(to.0)?);
        let inside = |offset: u64| offset.checked_add(len).is_some_and(|end| end < self.segment_size);
        if inside(from.1) && inside(to.1) {
            let (copied, is_able) = copy_in_kernel((&source, from.1), (&target, to.1), len)?;
            return if is_able { Ok(copied) } else { self.copy_by_hand(from, to, copied, len) };
        }
        let len = self.size(from.0)?.saturating_sub(from.1).min(len);
        end_of(to.1, len)?;
        let mut copied = 0;
        while copied < len {
            copied += self.copy_some((from.0, from.1 + copied), (to.0, to.1 + copied), len - copied)?;
        }
        // Holes make nothing longer.
        let end = to.1 + len;
        if len > 0 && self.size(to.0)? < end {
            self.set_size(to.0, end)?;
        }
        Ok(copied)
    }

    /// Copies some of `len` bytes, which the source has: data up to the next hole or border of a segment, or a hole,
    /// which is punched but does not extend the target.
    fn copy_some(&self, from: (ContentId, u64), to: (ContentId, u64), len: u64) -> io::Result<u64> {
        let left = |offset: u64| self.segment_size - offset % self.segment_size;
        let (number, start) = (from.1 / self.segment_size, from.1 % self.segment_size);
        let Some(source) = self.segment(from.0, number)? else {
            let next = self.layout(from.0, |layout| Ok(layout.numbers().range(number..).next().copied()))?;
            let hole = next.map_or(len, |next| (next * self.segment_size).saturating_sub(from.1).max(1).min(len));
            self.punch_hole(to.0, to.1, hole)?;
            return Ok(hole);
        };
        let in_source = len.min(left(from.1));
        // The kernel would write out the zeros of a hole, which here can be larger than any disk.
        let hole = seek_in(&source, start, SeekWhat::Data)?.map_or(in_source, |data| (data - start).min(in_source));
        if hole > 0 {
            self.punch_hole(to.0, to.1, hole)?;
            return Ok(hole);
        }
        let data = seek_in(&source, start, SeekWhat::Hole)?.map_or(in_source, |end| (end - start).min(in_source));
        let len = data.min(left(to.1));
        // One piece, since it crosses no border.
        for piece in pieces(self.segment_size, to.1, to.1 + len) {
            let target = self.reach(to.0, piece.segment, piece.end())?;
            let result = copy_in_kernel((&source, start), (&target, piece.start), len);
            self.touch(to.0, piece.segment)?;
            let (copied, is_able) = result?;
            if !is_able {
                self.copy_by_hand(from, to, copied, len)?;
            } else if copied < len {
                // The segment is shorter: the rest is a hole.
                self.punch_hole(to.0, to.1 + copied, len - copied)?;
            }
        }
        Ok(len)
    }

    fn copy_by_hand(&self, from: (ContentId, u64), to: (ContentId, u64), mut copied: u64, len: u64) -> io::Result<u64> {
        while copied < len {
            let piece = usize::try_from(len - copied).unwrap_or(usize::MAX).min(COPY_PIECE);
            let data = self.read(from.0, from.1 + copied, piece)?;
            if data.is_empty() {
                break;
            }
            self.write(to.0, to.1 + copied, &data)?;
            copied += data.len() as u64;
        }
        Ok(copied)
    }
}
