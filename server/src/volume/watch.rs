//! Noting what changes in a volume while it is being copied to another server.
//!
//! Everything that changes a volume goes through its two engines. Each is wrapped here: while somebody watches, the rows and
//! the parts of content files that change are noted.
//!
//! - **N1** A change is noted *after* it was made, whether it failed or not. Who takes the notes and then reads sees the change,
//!   or finds it among the next notes.
//! - **N2** Notes may say more than has changed, never less. Where they would be too many, a whole file counts as changed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use larder_protocol::service::file::SeekWhat;
use parking_lot::Mutex;

use super::content::{Content, ContentId, ContentStat, Space};
use super::error::StoreResult;
use super::keys::Table;
use super::meta::{Batch, Metadata, Snapshot};

/// Bytes that are noted as one.
pub const PART: u64 = 64 << 10;

/// Parts of one file that are noted one by one: as many as go into one answer to who copies it.
const MAX_PARTS: usize = 1 << 16;

/// What has changed of a content file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Parts, by their numbers.
    pub parts: BTreeSet<u64>,
    /// From this part on everything, the size included.
    pub from: Option<u64>,
}

impl Touched {
    fn range(&mut self, offset: u64, len: u64) {
        let parts = offset / PART..offset.saturating_add(len).div_ceil(PART);
        if self.from.is_some_and(|from| from <= parts.start) {
            return;
        }
        let room = MAX_PARTS.saturating_sub(self.parts.len()) as u64;
        if parts.end.saturating_sub(parts.start) > room {
            return self.rest(0);
        }
        self.parts.extend(parts);
    }

    fn rest(&mut self, offset: u64) {
        let first = offset / PART;
        let from = self.from.map_or(first, |from| from.min(first));
        self.from = Some(from);
        self.parts.split_off(&from);
    }
}

/// What has changed.
#[derive(Debug, Default)]
pub struct Notes {
    /// Rows that were put or deleted.
    pub rows: BTreeSet<(Table, Vec<u8>)>,
    /// Content files.
    pub contents: BTreeMap<ContentId, Touched>,
}

impl Notes {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.contents.is_empty()
    }
}

#[derive(Debug, Default)]
struct Watched {
    /// Who watches.
    number: u64,
    notes: Notes,
    /// All content files that have changed since that one watches.
    ever: BTreeSet<ContentId>,
}

/// Whether somebody watches, and what was noted.
#[derive(Debug, Default)]
pub struct Watch {
    is_on: AtomicBool,
    watched: Mutex<Watched>,
}

impl Watch {
    /// Somebody watches from now on, and whoever did before does not any more. Returns the number that names this one.
    pub fn begin(&self) -> u64 {
        let mut watched = self.watched.lock();
        *watched = Watched { number: watched.number + 1, ..Watched::default() };
        self.is_on.store(true, Ordering::SeqCst);
        watched.number
    }

    /// That one does not watch any more.
    pub fn end(&self, number: u64) {
        let mut watched = self.watched.lock();
        if watched.number == number {
            self.is_on.store(false, Ordering::SeqCst);
            *watched = Watched { number, ..Watched::default() };
        }
    }

    /// Takes the notes; nothing if somebody else watches by now.
    pub fn take(&self, number: u64) -> Option<Notes> {
        let mut watched = self.watched.lock();
        (watched.number == number).then(|| std::mem::take(&mut watched.notes))
    }

    /// How much is noted: rows and parts of files.
    pub fn noted(&self) -> usize {
        let watched = self.watched.lock();
        watched.notes.rows.len() + watched.notes.contents.values().map(|touched| 1 + touched.parts.len()).sum::<usize>()
    }

    /// Whether a content file has changed since that one began to watch.
    pub fn has_changed(&self, id: ContentId) -> bool {
        self.watched.lock().ever.contains(&id)
    }

    fn note(&self, note: impl FnOnce(&mut Notes)) {
        // Whoever begins to watch reads afterwards, and so sees what was made before this was asked.
        if self.is_on.load(Ordering::SeqCst) {
            note(&mut self.watched.lock().notes);
        }
    }

    fn content(&self, id: ContentId, touch: impl FnOnce(&mut Touched)) {
        if self.is_on.load(Ordering::SeqCst) {
            let mut watched = self.watched.lock();
            watched.ever.insert(id);
            touch(watched.notes.contents.entry(id).or_default());
        }
    }
}

/// A metadata engine that is watched.
pub(super) struct WatchedMetadata {
    pub(super) engine: Arc<dyn Metadata>,
    pub(super) watch: Arc<Watch>,
}

impl Metadata for WatchedMetadata {
    fn snapshot(&self) -> StoreResult<Box<dyn Snapshot + '_>> {
        self.engine.snapshot()
    }

    fn glance(&self) -> StoreResult<Box<dyn Snapshot + '_>> {
        self.engine.glance()
    }

    fn commit(&self, sequence: u64, batch: &Batch, durable: bool) -> StoreResult<()> {
        let committed = self.engine.commit(sequence, batch, durable);
        let keys = || batch.changes.iter().map(|(table, key, _)| (*table, key.clone()));
        self.watch.note(|notes| notes.rows.extend(keys()));
        committed
    }

    fn is_in_doubt(&self) -> bool {
        self.engine.is_in_doubt()
    }

    fn durable_up_to(&self) -> u64 {
        self.engine.durable_up_to()
    }

    fn sync(&self) -> StoreResult<()> {
        self.engine.sync()
    }

    fn tidy(&self) -> StoreResult<()> {
        self.engine.tidy()
    }
}

/// A content engine that is watched.
pub(super) struct WatchedContent {
    pub(super) engine: Arc<dyn Content>,
    pub(super) watch: Arc<Watch>,
}

impl Content for WatchedContent {
    fn create(&self, id: ContentId) -> io::Result<()> {
        let done = self.engine.create(id);
        self.watch.content(id, |touched| touched.rest(0));
        done
    }

    fn read_cached(&self, id: ContentId, offset: u64, len: usize) -> io::Result<Option<Bytes>> {
        self.engine.read_cached(id, offset, len)
    }

    fn read(&self, id: ContentId, offset: u64, len: usize) -> io::Result<Bytes> {
        self.engine.read(id, offset, len)
    }

    fn write(&self, id: ContentId, offset: u64, data: &[u8]) -> io::Result<()> {
        let done = self.engine.write(id, offset, data);
        self.watch.content(id, |touched| touched.range(offset, data.len() as u64));
        done
    }

    fn begin_sync(&self, id: ContentId, offset: u64, len: u64) -> io::Result<()> {
        self.engine.begin_sync(id, offset, len)
    }

    fn stat(&self, id: ContentId) -> io::Result<ContentStat> {
        self.engine.stat(id)
    }

    fn truncate(&self, id: ContentId, size: u64) -> io::Result<()> {
        let before = self.engine.stat(id).map_or(0, |stat| stat.size);
        let done = self.engine.truncate(id, size);
        self.watch.content(id, |touched| touched.rest(size.min(before)));
        done
    }

    fn punch(&self, id: ContentId, offset: u64, len: u64) -> io::Result<()> {
        let done = self.engine.punch(id, offset, len);
        self.watch.content(id, |touched| touched.range(offset, len));
        done
    }

    fn reserve(&self, id: ContentId, offset: u64, len: u64, keep_size: bool) -> io::Result<()> {
        let before = self.engine.stat(id).map_or(0, |stat| stat.size);
        let done = self.engine.reserve(id, offset, len, keep_size);
        // What is reserved reads as zeros, as before; but the file may have become longer.
        self.watch.content(id, |touched| touched.rest(before.min(offset)));
        done
    }

    fn seek(&self, id: ContentId, offset: u64, what: SeekWhat) -> io::Result<Option<u64>> {
        self.engine.seek(id, offset, what)
    }

    fn copy(&self, from: ContentId, from_offset: u64, to: ContentId, to_offset: u64, len: u64) -> io::Result<u64> {
        let done = self.engine.copy(from, from_offset, to, to_offset, len);
        self.watch.content(to, |touched| touched.range(to_offset, len));
        done
    }

    fn sync(&self, id: ContentId) -> io::Result<()> {
        self.engine.sync(id)
    }

    fn distrust(&self, id: ContentId) -> io::Result<()> {
        let done = self.engine.distrust(id);
        // What was copied may be what memory had and the disk has not.
        self.watch.content(id, |touched| touched.rest(0));
        done
    }

    fn remove(&self, id: ContentId) -> io::Result<()> {
        // Who copies it learns of that from the rows.
        self.engine.remove(id)
    }

    fn sync_all(&self) -> io::Result<()> {
        self.engine.sync_all()
    }

    fn sync_removals(&self) -> io::Result<()> {
        self.engine.sync_removals()
    }

    fn list(&self, each: &mut dyn FnMut(ContentId), strange: &mut dyn FnMut(String)) -> io::Result<()> {
        self.engine.list(each, strange)
    }

    fn space(&self) -> io::Result<Space> {
        self.engine.space()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::content::memory::MemoryContent;
    use crate::volume::meta::memory::MemoryMetadata;

    fn touched(parts: &[u64], from: Option<u64>) -> Touched {
        Touched { parts: parts.iter().copied().collect(), from }
    }

    #[test]
    fn what_changes_while_somebody_watches_is_noted() {
        let watch = Arc::new(Watch::default());
        let content = WatchedContent { engine: Arc::new(MemoryContent::new()), watch: watch.clone() };
        let id = |vnode| ContentId { vnode, version: 1 };
        content.create(id(1)).unwrap();
        content.write(id(1), 0, &[1; 10 * PART as usize]).unwrap();
        let number = watch.begin();
        assert!(watch.take(number).unwrap().is_empty(), "nobody was watching");
        content.write(id(1), PART - 1, &[1, 2]).unwrap();
        content.punch(id(1), 4 * PART, PART).unwrap();
        content.create(id(2)).unwrap();
        content.write(id(2), 0, &[1]).unwrap();
        let notes = watch.take(number).unwrap();
        assert_eq!(notes.contents[&id(1)], touched(&[0, 1, 4], None));
        assert_eq!(notes.contents[&id(2)], touched(&[], Some(0)));
        content.write(id(1), 9 * PART, &[1]).unwrap();
        content.truncate(id(1), 3 * PART + 1).unwrap();
        content.write(id(1), 2 * PART, &[1]).unwrap();
        assert_eq!(watch.take(number).unwrap().contents[&id(1)], touched(&[2], Some(3)));
        assert!(watch.has_changed(id(1)) && !watch.has_changed(id(3)));
    }

    #[test]
    fn a_file_that_grows_by_truncation_or_reservation_is_noted_from_its_end() {
        let watch = Arc::new(Watch::default());
        let content = WatchedContent { engine: Arc::new(MemoryContent::new()), watch: watch.clone() };
        let id = ContentId { vnode: 1, version: 1 };
        content.create(id).unwrap();
        content.write(id, 0, &[1; 2 * PART as usize]).unwrap();
        let number = watch.begin();
        content.truncate(id, 100 * PART).unwrap();
        assert_eq!(watch.take(number).unwrap().contents[&id], touched(&[], Some(2)));
        content.reserve(id, 200 * PART, PART, false).unwrap();
        assert_eq!(watch.take(number).unwrap().contents[&id], touched(&[], Some(100)));
    }

    #[test]
    fn rows_are_noted_even_if_their_commit_failed() {
        let watch = Arc::new(Watch::default());
        let engine = Arc::new(MemoryMetadata::new());
        let meta = WatchedMetadata { engine: engine.clone(), watch: watch.clone() };
        let number = watch.begin();
        let batch = |key: &[u8]| Batch { changes: vec![(Table::Vnodes, key.to_vec(), Some(vec![1]))] };
        meta.commit(1, &batch(&[0; 8]), false).unwrap();
        engine.fail_next_commit(super::super::error::StoreError::Full);
        assert!(meta.commit(2, &batch(&[1; 8]), false).is_err());
        let rows: Vec<_> = watch.take(number).unwrap().rows.into_iter().collect();
        assert_eq!(rows, [(Table::Vnodes, vec![0; 8]), (Table::Vnodes, vec![1; 8])]);
    }

    #[test]
    fn the_last_who_watches_has_the_notes() {
        let watch = Watch::default();
        let first = watch.begin();
        let second = watch.begin();
        let note = || watch.note(|notes| notes.rows.extend([(Table::Header, vec![1])]));
        note();
        watch.end(first);
        assert!(watch.take(first).is_none());
        assert_eq!(watch.take(second).unwrap().rows.len(), 1);
        watch.end(second);
        note();
        assert!(watch.take(second).unwrap().is_empty());
    }

    #[test]
    fn too_many_parts_are_the_whole_file() {
        let mut touched = Touched::default();
        touched.range(0, MAX_PARTS as u64 * PART);
        assert_eq!(touched.from, None);
        touched.range(MAX_PARTS as u64 * PART, 1);
        assert_eq!(touched, Touched { parts: BTreeSet::new(), from: Some(0) });
    }
}
