//! A volume, as who copies it to another server reads it: rows and pieces of files from its engines, and what has changed since.
//!
//! Each answer is read by itself. They fit together because of what is noted meanwhile ([`watch`](super::watch)): who has
//! read all rows and files, and then again whatever is noted until there is nothing more, has the volume as it is.

use std::io;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use larder_protocol::limits::MAX_PAYLOAD;
use larder_protocol::service::file::SeekWhat;
use parking_lot::Mutex;

use super::Volume;
use super::content::{Content, ContentId};
use super::error::StoreResult;
use super::keys::Table;
use super::meta::{Metadata, Row};
use super::watch::{Notes, PART, Touched, Watch};

/// Bytes of rows in an answer.
const ROW_BYTES: usize = 512 << 10;
/// Rows in an answer.
const ROWS: usize = 1024;
/// Of those that may be large.
const LARGE_ROWS: usize = 32;
/// Files with changes in an answer.
const FILES: usize = 1024;
/// Pieces in an answer.
const PIECES: usize = 128;

/// The engines of a volume that is being copied. The volume may be closed meanwhile: nothing changes it then.
pub struct Original {
    meta: Arc<dyn Metadata>,
    content: Arc<dyn Content>,
    watch: Arc<Watch>,
    number: u64,
    /// Notes that were taken and not told yet.
    left: Mutex<Notes>,
}

/// Some of what has changed.
#[derive(Debug, Default)]
pub struct Changes {
    /// Rows as they are now.
    pub rows: Vec<(Table, Vec<u8>, Option<Vec<u8>>)>,
    /// What has changed of content files; told behind all rows.
    pub contents: Vec<(ContentId, Touched)>,
    /// Whether that was all for now.
    pub end: bool,
}

/// A piece of a content file: what is not in `data` is a hole.
#[derive(Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Offsets, and the bytes there.
    pub data: Vec<(u64, Bytes)>,
    /// How far it goes.
    pub end: u64,
    /// The size of the whole file.
    pub size: u64,
    /// Whether the file has changed since the copying began.
    pub has_changed: bool,
}

impl Volume {
    /// Begins to note what changes; whoever copied before does not any more.
    pub fn original(&self) -> Original {
        let (meta, content) = (Arc::clone(&self.data.meta), Arc::clone(&self.data.content));
        let watch = Arc::clone(&self.watch);
        let number = watch.begin();
        Original { meta, content, watch, number, left: Mutex::default() }
    }
}

impl Original {
    /// Rows behind a key, in the order of their keys, and whether they are the last.
    ///
    /// # Errors
    /// The engine's.
    pub fn rows(&self, table: Table, after: Option<&[u8]>) -> StoreResult<(Vec<Row>, bool)> {
        let limit = if matches!(table, Table::Inline | Table::Xattrs | Table::Slots) { LARGE_ROWS } else { ROWS };
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut rows = self.meta.snapshot()?.range(table, from, Bound::Unbounded, limit)?;
        let mut end = rows.len() < limit;
        let mut bytes = 0;
        let fits = rows.iter().take_while(|(key, value)| {
            bytes += key.len() + value.len();
            bytes <= ROW_BYTES
        });
        // One at least, or there is no end.
        let fits = fits.count().max(1);
        if fits < rows.len() {
            rows.truncate(fits);
            end = false;
        }
        Ok((rows, end))
    }

    /// Some of what has changed since this was asked before; nothing once somebody else copies the volume.
    ///
    /// # Errors
    /// The engine's.
    pub fn changes(&self) -> StoreResult<Option<Changes>> {
        let mut left = self.left.lock();
        if left.is_empty() {
            match self.watch.take(self.number) {
                Some(notes) => *left = notes,
                None => return Ok(None),
            }
        }
        let mut changes = Changes::default();
        let mut bytes = 0;
        if !left.rows.is_empty() {
            let snapshot = self.meta.snapshot()?;
            while bytes < ROW_BYTES && changes.rows.len() < ROWS {
                let Some((table, key)) = left.rows.pop_first() else { break };
                let value = snapshot.get(table, &key)?;
                bytes += key.len() + value.as_ref().map_or(0, Vec::len);
                changes.rows.push((table, key, value));
            }
        }
        while left.rows.is_empty() && changes.contents.len() < FILES && bytes < ROW_BYTES {
            let Some(first) = left.contents.first_entry() else { break };
            // As two numbers each, of nine bytes at most.
            let takes = (1 + first.get().parts.len()) * 20;
            if !changes.contents.is_empty() && bytes + takes > ROW_BYTES {
                break;
            }
            bytes += takes;
            changes.contents.push(first.remove_entry());
        }
        changes.end = left.is_empty();
        Ok(Some(changes))
    }

    /// How much has changed and was not told: rows and parts of files.
    pub fn noted(&self) -> usize {
        let left = self.left.lock();
        left.rows.len() + left.contents.len() + self.watch.noted()
    }

    /// A piece of a content file between two offsets, from the first on; nothing if it is not there. `end` may lie behind the
    /// file's. May block.
    ///
    /// # Errors
    /// The operating system's.
    pub fn read(&self, id: ContentId, offset: u64, end: u64) -> io::Result<Option<Chunk>> {
        match self.read_there(id, offset, end) {
            Ok(chunk) => Ok(Some(chunk)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn read_there(&self, id: ContentId, offset: u64, end: u64) -> io::Result<Chunk> {
        let size = self.content.stat(id)?.size;
        let end = end.min(size);
        let (mut at, mut room, mut data) = (offset, MAX_PAYLOAD as u64, Vec::new());
        while at < end && room > 0 && data.len() < PIECES {
            let Some(start) = self.content.seek(id, at, SeekWhat::Data)?.filter(|start| *start < end) else {
                at = end;
                break;
            };
            let stop = self.content.seek(id, start, SeekWhat::Hole)?.unwrap_or(size);
            let len = stop.min(end).saturating_sub(start).min(room);
            let bytes = self.content.read(id, start, len as usize)?;
            if bytes.is_empty() {
                // It was cut meanwhile, and that is noted.
                at = end;
                break;
            }
            at = start + bytes.len() as u64;
            room -= bytes.len() as u64;
            data.push((start, bytes));
        }
        // After what was read: what changed in between is noted by then, or shows.
        let has_changed = self.watch.has_changed(id);
        Ok(Chunk { data, end: at.max(offset), size, has_changed })
    }
}

impl Drop for Original {
    fn drop(&mut self) {
        self.watch.end(self.number);
    }
}

/// Runs of parts that follow each other, as offsets: from, and up to. The last has no end if everything behind it has changed.
pub fn runs(touched: &Touched) -> Vec<(u64, Option<u64>)> {
    let mut runs: Vec<(u64, Option<u64>)> = Vec::new();
    for part in &touched.parts {
        let (start, end) = (part * PART, (part + 1) * PART);
        match runs.last_mut() {
            Some((_, Some(last))) if *last == start => *last = end,
            _ => runs.push((start, Some(end))),
        }
    }
    if let Some(from) = touched.from {
        runs.push((from * PART, None));
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_that_follow_each_other_are_one_run() {
        let touched = Touched { parts: [0, 1, 4].into(), from: Some(9) };
        assert_eq!(runs(&touched), [(0, Some(2 * PART)), (4 * PART, Some(5 * PART)), (9 * PART, None)]);
        assert!(runs(&Touched::default()).is_empty());
    }
}
