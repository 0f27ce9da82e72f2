//! Open segments.

use std::fs::{File, OpenOptions};
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

use super::names::SegmentId;

/// Segments kept open. An error of writeback that comes after a file was closed is reported to whoever opens and syncs
/// it next (Linux, `errseq_t`), so closing one that is not synced loses none.
const OPEN_MAX: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");

#[derive(Debug)]
pub(super) struct Handles {
    directory: PathBuf,
    open: Mutex<LruCache<SegmentId, Arc<File>>>,
}

impl Handles {
    pub(super) fn new(directory: &Path) -> Handles {
        Handles { directory: directory.to_owned(), open: Mutex::new(LruCache::new(OPEN_MAX)) }
    }

    /// The segment, opened.
    pub(super) fn get(&self, segment: SegmentId) -> io::Result<Arc<File>> {
        if let Some(file) = self.open.lock().get(&segment) {
            return Ok(file.clone());
        }
        self.open(segment, OpenOptions::new().read(true).write(true))
    }

    /// Makes the segment, if it is not there.
    pub(super) fn create(&self, segment: SegmentId) -> io::Result<Arc<File>> {
        self.open(segment, OpenOptions::new().read(true).write(true).create(true).truncate(false))
    }

    fn open(&self, segment: SegmentId, how: &OpenOptions) -> io::Result<Arc<File>> {
        let file = Arc::new(how.open(self.directory.join(segment.relative_path()))?);
        let evicted = self.open.lock().push(segment, file.clone());
        // Closed here, outside the lock.
        drop(evicted);
        Ok(file)
    }

    /// Closes the segment, once nobody uses it.
    pub(super) fn forget(&self, segment: SegmentId) {
        let closed = self.open.lock().pop(&segment);
        drop(closed);
    }
}
