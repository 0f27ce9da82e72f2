//! Which segments content files have after the first. Only content files whose first segment is full come here.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use lru::LruCache;
use parking_lot::Mutex;

use super::durability::Durability;
use super::names::further_segments;
use crate::volume::content::ContentId;

/// Content files of which the layout is kept.
const KNOWN_MAX: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");

/// The segments of one content file after the first.
#[derive(Debug, Default)]
pub(super) struct Layout {
    numbers: BTreeSet<u64>,
    /// Those that may have changed since they were last synced, and when by `clock`: what is changed while it is being
    /// synced stays.
    touched: BTreeMap<u64, u64>,
    clock: u64,
}

impl Layout {
    pub(super) fn numbers(&self) -> &BTreeSet<u64> {
        &self.numbers
    }

    pub(super) fn last(&self) -> Option<u64> {
        self.numbers.last().copied()
    }

    pub(super) fn insert(&mut self, number: u64) {
        self.numbers.insert(number);
        self.touch(number);
    }

    pub(super) fn remove(&mut self, number: u64) {
        self.numbers.remove(&number);
        self.touched.remove(&number);
    }

    /// The segment was changed: to be said after the change, so that a sync in between does not count for it.
    pub(super) fn touch(&mut self, number: u64) {
        self.clock += 1;
        self.touched.insert(number, self.clock);
    }

    /// What a sync has to cover; for [`synced`](Layout::synced).
    pub(super) fn touched(&self) -> BTreeMap<u64, u64> {
        self.touched.clone()
    }

    pub(super) fn synced(&mut self, covered: &BTreeMap<u64, u64>) {
        self.touched.retain(|number, when| covered.get(number) != Some(when));
    }
}

#[derive(Debug)]
pub(super) struct Layouts {
    directory: PathBuf,
    /// Segments are looked for, made and removed under this lock, so that what is known is also true.
    known: Mutex<LruCache<ContentId, Layout>>,
}

impl Layouts {
    pub(super) fn new(directory: &Path) -> Layouts {
        Layouts { directory: directory.to_owned(), known: Mutex::new(LruCache::new(KNOWN_MAX)) }
    }

    /// Whether [`with`](Layouts::with) need not read the directory.
    pub(super) fn knows(&self, id: ContentId) -> bool {
        self.known.lock().contains(&id)
    }

    /// Runs `run` with the layout; no other thread makes or removes segments meanwhile.
    pub(super) fn with<T>(
        &self,
        id: ContentId,
        durability: &Durability,
        run: impl FnOnce(&mut Layout) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut known = self.known.lock();
        if let Some(layout) = known.get_mut(&id) {
            return run(layout);
        }
        let mut layout = Layout::default();
        for number in further_segments(&self.directory, id)? {
            // Who made and wrote it may have ended before a sync.
            layout.insert(number);
            durability.name_changed(id);
        }
        run(known.get_or_insert_mut(id, || layout))
    }

    /// The next [`with`](Layouts::with) reads the directory.
    pub(super) fn forget(&self, id: ContentId) {
        self.known.lock().pop(&id);
    }
}
