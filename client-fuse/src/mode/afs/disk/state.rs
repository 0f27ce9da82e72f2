//! What is in the cache: authoritative while the mount lives. The index on disk follows ([`Changes`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use larder_protocol::ids::Fid;
use lru::LruCache;

use super::file::CacheFile;
use super::index::{Batch, CleanRow, ConflictRow, Name};
use super::layout::{Layout, Origin, Place};

/// Files that grow without the cache being asked of which the sizes are looked at each time.
const FEW: usize = 16;
/// How long their sizes are good enough if there are more.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// A clean copy.
#[derive(Debug)]
pub(super) struct Clean {
    /// What is known of it.
    pub(super) row: CleanRow,
    /// The file if it is open.
    pub(super) live: Weak<CacheFile>,
    /// Whether this process has found its contents good, or wrote them.
    pub(super) verified: bool,
}

impl Clean {
    /// Whether somebody has it open.
    pub(super) fn is_open(&self) -> bool {
        self.live.strong_count() > 0
    }
}

/// A file that may hold data that the server has not.
#[derive(Debug)]
pub(super) struct Dirty {
    /// What it is to become a version of.
    pub(super) fid: Fid,
    /// What it came from.
    pub(super) origin: Origin,
    /// Its name.
    pub(super) name: Name,
    /// The file if it is open.
    pub(super) live: Weak<CacheFile>,
    /// Whether an earlier life left it.
    pub(super) left: bool,
}

/// Everything in the cache.
#[derive(Debug)]
pub(super) struct State {
    /// Clean copies, in the order of their use. Nothing else may depend on an order in here.
    pub(super) clean: LruCache<Fid, Clean>,
    clean_bytes: u64,
    /// Dirty files by their numbers.
    pub(super) dirty: BTreeMap<u64, Dirty>,
    /// Conflicts by their numbers.
    pub(super) conflicts: BTreeMap<u64, ConflictRow>,
    /// Files being fetched by their numbers.
    pub(super) fetching: BTreeMap<u64, Weak<CacheFile>>,
    /// Files that are not evicted, whether there is a copy or not.
    pub(super) pins: BTreeSet<Fid>,
    /// Copies evicted since the start.
    pub(super) evicted: u64,
    /// Copies dropped since the start because they were not as they should be.
    pub(super) damaged: u64,
    /// What the index does not know yet.
    pub(super) changes: Changes,
    last_id: u64,
    last_stamp: u64,
    /// When the sizes of files that grow were last looked at, and their sum.
    looked: Option<(Instant, u64)>,
}

/// What has changed since the index was last written.
#[derive(Debug, Default)]
pub(super) struct Changes {
    clean: BTreeSet<Fid>,
    used: BTreeSet<Fid>,
    conflicts: BTreeSet<u64>,
    pins: BTreeSet<Fid>,
    dirty_names: BTreeSet<u64>,
}

impl Changes {
    /// Takes back changes that could not be written.
    pub(super) fn merge(&mut self, other: Changes) {
        self.clean.extend(other.clean);
        self.used.extend(other.used);
        self.conflicts.extend(other.conflicts);
        self.pins.extend(other.pins);
        self.dirty_names.extend(other.dirty_names);
    }
}

impl State {
    /// An empty cache.
    pub(super) fn new() -> State {
        State {
            clean: LruCache::unbounded(),
            clean_bytes: 0,
            dirty: BTreeMap::new(),
            conflicts: BTreeMap::new(),
            fetching: BTreeMap::new(),
            pins: BTreeSet::new(),
            evicted: 0,
            damaged: 0,
            changes: Changes::default(),
            last_id: 0,
            last_stamp: 0,
            looked: None,
        }
    }

    /// A number for a new file. Higher than that of any file that was there at the start.
    pub(super) fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// Such a number is in use.
    pub(super) fn seen_id(&mut self, id: u64) {
        self.last_id = self.last_id.max(id);
    }

    /// The time, but never the same twice, whatever the clock says.
    pub(super) fn stamp(&mut self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        self.last_stamp = now.max(self.last_stamp.saturating_add(1));
        self.last_stamp
    }

    /// Such a stamp was given out by an earlier life.
    pub(super) fn seen_stamp(&mut self, stamp: u64) {
        // One from the far future would make all that follow as odd, and there are no more after the last.
        let hour = 3_600_000_000_000;
        if stamp < self.stamp().saturating_add(hour) {
            self.last_stamp = self.last_stamp.max(stamp);
        }
    }

    /// Enters a clean copy as the one used last; returns the one that it replaces.
    pub(super) fn insert_clean(&mut self, fid: Fid, clean: Clean) -> Option<Clean> {
        self.clean_bytes += clean.row.size;
        // It was among those until now.
        if let Some((_, growing)) = &mut self.looked {
            *growing = growing.saturating_sub(clean.row.size);
        }
        self.changes.clean.insert(fid);
        let old = self.clean.put(fid, clean);
        self.clean_bytes -= old.as_ref().map_or(0, |old| old.row.size);
        old
    }

    /// Removes a clean copy.
    pub(super) fn remove_clean(&mut self, fid: Fid) -> Option<Clean> {
        let old = self.clean.pop(&fid)?;
        self.clean_bytes -= old.row.size;
        self.changes.clean.insert(fid);
        Some(old)
    }

    /// The row of a clean copy is not as the index has it.
    pub(super) fn clean_changed(&mut self, fid: Fid) {
        self.changes.clean.insert(fid);
    }

    /// A clean copy is used.
    pub(super) fn touch(&mut self, fid: Fid) {
        let stamp = self.stamp();
        if let Some(clean) = self.clean.get_mut(&fid) {
            clean.row.used = stamp;
            self.changes.used.insert(fid);
        }
    }

    /// Enters a dirty file.
    pub(super) fn insert_dirty(&mut self, id: u64, dirty: Dirty) {
        if dirty.name.is_some() {
            self.changes.dirty_names.insert(id);
        }
        self.dirty.insert(id, dirty);
    }

    /// The name of a dirty file is not as the index has it.
    pub(super) fn dirty_name_changed(&mut self, id: u64) {
        self.changes.dirty_names.insert(id);
    }

    /// Enters a conflict.
    pub(super) fn insert_conflict(&mut self, id: u64, row: ConflictRow) {
        self.conflicts.insert(id, row);
        self.changes.conflicts.insert(id);
    }

    /// Removes a conflict.
    pub(super) fn remove_conflict(&mut self, id: u64) -> Option<ConflictRow> {
        self.changes.conflicts.insert(id);
        self.conflicts.remove(&id)
    }

    /// Sets whether a file is pinned; whether that is new.
    pub(super) fn pin(&mut self, fid: Fid, pinned: bool) -> bool {
        let new = if pinned { self.pins.insert(fid) } else { self.pins.remove(&fid) };
        if new {
            self.changes.pins.insert(fid);
        }
        new
    }

    /// Removes a file from what is known of `place`, which it leaves; returns its name.
    pub(super) fn leave(&mut self, file: &CacheFile, place: Place) -> Name {
        match place {
            Place::New => {
                self.fetching.remove(&file.id());
                None
            }
            Place::Clean => self.remove_clean(file.fid())?.row.name,
            Place::Dirty(_) => {
                let dirty = self.dirty.remove(&file.id())?;
                if dirty.name.is_some() {
                    self.changes.dirty_names.insert(file.id());
                }
                dirty.name
            }
            Place::Conflict { .. } => self.remove_conflict(file.id())?.name,
            Place::Replaced | Place::Gone => None,
        }
    }

    /// Sets the name of an open file, where there is room for one.
    pub(super) fn set_name(&mut self, file: &CacheFile, place: Place, name: Name) {
        match place {
            Place::Clean => {
                if let Some(clean) = self.clean.peek_mut(&file.fid())
                    && clean.row.name != name
                {
                    clean.row.name = name;
                    self.changes.clean.insert(file.fid());
                }
            }
            Place::Dirty(_) => {
                if let Some(dirty) = self.dirty.get_mut(&file.id())
                    && dirty.name != name
                {
                    dirty.name = name;
                    self.changes.dirty_names.insert(file.id());
                }
            }
            _ => {}
        }
    }

    /// Bytes of clean copies.
    pub(super) fn clean_bytes(&self) -> u64 {
        self.clean_bytes
    }

    /// Bytes of dirty files. They grow without the cache being asked, so the disk is.
    pub(super) fn dirty_bytes(&self, layout: &Layout) -> u64 {
        self.dirty.iter().map(|(id, dirty)| size(layout, dirty.fid, *id, Place::Dirty(dirty.origin))).sum()
    }

    /// Bytes of conflicts.
    pub(super) fn conflict_bytes(&self, layout: &Layout) -> u64 {
        self.conflicts.iter().map(|(id, row)| size(layout, row.fid, *id, Place::Conflict { base: row.base })).sum()
    }

    /// Bytes of all that counts towards the limit. Of many files that grow without the cache being asked this may say
    /// what they had a moment ago: it is asked for with every copy that comes.
    pub(super) fn bytes(&mut self, layout: &Layout) -> u64 {
        self.fetching.retain(|_, live| live.strong_count() > 0);
        let few = self.fetching.len() + self.dirty.len() + self.conflicts.len() <= FEW;
        let growing = match self.looked {
            Some((then, bytes)) if !few && then.elapsed() < LOOK_AGAIN => bytes,
            _ => {
                let bytes = self.growing_bytes(layout);
                self.looked = Some((Instant::now(), bytes));
                bytes
            }
        };
        self.clean_bytes + growing
    }

    /// Bytes of all files that are not clean copies.
    fn growing_bytes(&self, layout: &Layout) -> u64 {
        // Not through the open files: the last one to let go of a file may remove it, and not here.
        let fetching: u64 =
            self.fetching.keys().map(|id| layout.new_file(*id).metadata().map_or(0, |found| found.len())).sum();
        fetching + self.dirty_bytes(layout) + self.conflict_bytes(layout)
    }

    /// The least recently used clean copies that together have at least `bytes` and can be evicted; how many bytes
    /// they have, which is less if there are not enough.
    pub(super) fn victims(&self, bytes: u64, keep: Option<Fid>) -> (Vec<Fid>, u64) {
        let mut found = (Vec::new(), 0);
        for (fid, clean) in self.clean.iter().rev() {
            if found.1 >= bytes {
                break;
            }
            if !clean.is_open() && !self.pins.contains(fid) && Some(*fid) != keep {
                found.0.push(*fid);
                found.1 += clean.row.size;
            }
        }
        found
    }

    /// Takes what the index does not know yet.
    pub(super) fn take_changes(&mut self) -> (Changes, Batch) {
        let changes = std::mem::take(&mut self.changes);
        let row = |fid: &Fid| self.clean.peek(fid).map(|clean| clean.row.clone());
        let batch = Batch {
            clean: changes.clean.iter().map(|fid| (*fid, row(fid))).collect(),
            used: changes
                .used
                .difference(&changes.clean)
                .filter_map(|fid| Some((*fid, self.clean.peek(fid)?.row.used)))
                .collect(),
            conflicts: changes.conflicts.iter().map(|id| (*id, self.conflicts.get(id).cloned())).collect(),
            pins: changes.pins.iter().map(|fid| (*fid, self.pins.contains(fid))).collect(),
            dirty_names: changes
                .dirty_names
                .iter()
                .map(|id| (*id, self.dirty.get(id).and_then(|dirty| dirty.name.clone())))
                .collect(),
        };
        (changes, batch)
    }

    /// The index has no rows any more.
    pub(super) fn all_changed(&mut self) {
        self.changes.clean.extend(self.clean.iter().map(|(fid, _)| *fid));
        self.changes.conflicts.extend(self.conflicts.keys());
        self.changes.pins.extend(&self.pins);
        self.changes.dirty_names.extend(self.dirty.keys());
    }
}

fn size(layout: &Layout, fid: Fid, id: u64, place: Place) -> u64 {
    layout.path(fid, id, place).metadata().map_or(0, |found| found.len())
}

/// A name as it is kept.
pub(super) fn keep_name(name: Option<&[u8]>) -> Name {
    name.map(Arc::from)
}
