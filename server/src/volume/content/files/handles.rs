//! Open content files, and which names are not durable yet.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

use super::{levels, relative_path};
use crate::volume::content::ContentId;

/// Content files kept open. An error of writeback that comes after a file was closed is reported to whoever opens
/// and syncs it next (Linux, `errseq_t`), so closing one that is not synced loses none.
const OPEN_MAX: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");

/// Names made since their directories were last synced.
#[derive(Debug, Default)]
struct Unsynced {
    files: BTreeSet<ContentId>,
    /// Directories of the lower level.
    lower: BTreeSet<(u8, u8)>,
    /// Directories of the upper level.
    upper: BTreeSet<u8>,
}

#[derive(Debug)]
pub(super) struct Handles {
    directory: PathBuf,
    open: Mutex<LruCache<ContentId, Arc<File>>>,
    unsynced: Mutex<Unsynced>,
}

impl Handles {
    pub(super) fn new(directory: &Path) -> Handles {
        let open = Mutex::new(LruCache::new(OPEN_MAX));
        Handles { directory: directory.to_owned(), open, unsynced: Mutex::default() }
    }

    /// The content file, opened.
    pub(super) fn get(&self, id: ContentId) -> io::Result<Arc<File>> {
        if let Some(file) = self.open.lock().get(&id) {
            return Ok(file.clone());
        }
        let file = OpenOptions::new().read(true).write(true).open(self.directory.join(relative_path(id)))?;
        Ok(self.keep(id, file))
    }

    fn keep(&self, id: ContentId, file: File) -> Arc<File> {
        let file = Arc::new(file);
        let evicted = self.open.lock().push(id, file.clone());
        // Closed here, outside the lock.
        drop(evicted);
        file
    }

    /// Makes the content file and the directories above it, where they are not there yet.
    pub(super) fn create(&self, id: ContentId) -> io::Result<()> {
        let path = self.directory.join(relative_path(id));
        let make = || OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = match make() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.make_levels(id)?;
                make()?
            }
            result => result?,
        };
        // One that was there already may come from a process that ended before it synced the name.
        self.unsynced.lock().files.insert(id);
        self.keep(id, file);
        Ok(())
    }

    fn make_levels(&self, id: ContentId) -> io::Result<()> {
        let (upper, lower) = levels(id);
        let path = self.directory.join(format!("{upper:02x}"));
        make_directory(&path)?;
        make_directory(&path.join(format!("{lower:02x}")))?;
        let mut unsynced = self.unsynced.lock();
        unsynced.upper.insert(upper);
        unsynced.lower.insert((upper, lower));
        Ok(())
    }

    /// Makes a content file's name durable, if it is not known to be.
    pub(super) fn sync_name(&self, id: ContentId) -> io::Result<()> {
        let (upper, lower) = levels(id);
        let (file_is_new, lower_is_new, upper_is_new) = {
            let unsynced = self.unsynced.lock();
            let lower_is_new = unsynced.lower.contains(&(upper, lower));
            (unsynced.files.contains(&id), lower_is_new, unsynced.upper.contains(&upper))
        };
        if !file_is_new {
            return Ok(());
        }
        let upper_path = self.directory.join(format!("{upper:02x}"));
        sync_directory(&upper_path.join(format!("{lower:02x}")))?;
        if lower_is_new {
            sync_directory(&upper_path)?;
        }
        if upper_is_new {
            sync_directory(&self.directory)?;
        }
        let mut unsynced = self.unsynced.lock();
        unsynced.files.remove(&id);
        unsynced.lower.remove(&(upper, lower));
        unsynced.upper.remove(&upper);
        Ok(())
    }

    /// Closes the content file, once nobody uses it.
    pub(super) fn forget(&self, id: ContentId) {
        let closed = self.open.lock().pop(&id);
        drop(closed);
    }

    /// The name is no more.
    pub(super) fn forget_name(&self, id: ContentId) {
        self.unsynced.lock().files.remove(&id);
    }
}

fn make_directory(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
