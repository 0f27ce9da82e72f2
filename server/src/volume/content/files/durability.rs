//! Which names were made or removed since their directories were last synced.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use super::names::{levels, lower_directory};
use crate::volume::content::ContentId;

#[derive(Debug, Default)]
struct Unsynced {
    /// Content files of which a segment's name was made or removed, and when by `clock`: what changes while a
    /// directory is being synced stays.
    files: BTreeMap<ContentId, u64>,
    clock: u64,
    /// Directories of the lower level.
    lower: BTreeSet<(u8, u8)>,
    /// Directories of the upper level.
    upper: BTreeSet<u8>,
    /// Directories of the lower level in which content files were removed.
    removals: BTreeSet<(u8, u8)>,
}

#[derive(Debug)]
pub(super) struct Durability {
    directory: PathBuf,
    unsynced: Mutex<Unsynced>,
    /// Held while removals are synced: who finds none left knows that they are durable.
    syncing_removals: Mutex<()>,
}

impl Durability {
    pub(super) fn new(directory: &Path) -> Durability {
        Durability { directory: directory.to_owned(), unsynced: Mutex::default(), syncing_removals: Mutex::default() }
    }

    /// Makes the directories above a content file where they are not there yet.
    pub(super) fn make_levels(&self, id: ContentId) -> io::Result<()> {
        let (upper, lower) = levels(id);
        {
            // Before they are there: who finds them made by another must also find that they need a sync.
            let mut unsynced = self.unsynced.lock();
            unsynced.upper.insert(upper);
            unsynced.lower.insert((upper, lower));
        }
        make_directory(&self.directory.join(format!("{upper:02x}")))?;
        make_directory(&self.directory.join(lower_directory((upper, lower))))
    }

    /// A segment's name was made or removed.
    pub(super) fn name_changed(&self, id: ContentId) {
        let mut unsynced = self.unsynced.lock();
        unsynced.clock += 1;
        let now = unsynced.clock;
        unsynced.files.insert(id, now);
    }

    /// Makes the names of a content file's segments durable, if they are not known to be.
    pub(super) fn sync_names(&self, id: ContentId) -> io::Result<()> {
        let (upper, lower) = levels(id);
        let (changed, lower_is_new, upper_is_new) = {
            let unsynced = self.unsynced.lock();
            let lower_is_new = unsynced.lower.contains(&(upper, lower));
            (unsynced.files.get(&id).copied(), lower_is_new, unsynced.upper.contains(&upper))
        };
        if changed.is_none() {
            return Ok(());
        }
        sync_directory(&self.directory.join(lower_directory((upper, lower))))?;
        if lower_is_new {
            sync_directory(&self.directory.join(format!("{upper:02x}")))?;
        }
        if upper_is_new {
            sync_directory(&self.directory)?;
        }
        let mut unsynced = self.unsynced.lock();
        if unsynced.files.get(&id).copied() == changed {
            unsynced.files.remove(&id);
        }
        if lower_is_new {
            unsynced.lower.remove(&(upper, lower));
        }
        if upper_is_new {
            unsynced.upper.remove(&upper);
        }
        Ok(())
    }

    /// A content file is no more.
    pub(super) fn removed(&self, id: ContentId) {
        let mut unsynced = self.unsynced.lock();
        unsynced.files.remove(&id);
        unsynced.removals.insert(levels(id));
    }

    /// Makes all removals so far durable.
    pub(super) fn sync_removals(&self) -> io::Result<()> {
        let _alone = self.syncing_removals.lock();
        let mut left = std::mem::take(&mut self.unsynced.lock().removals);
        while let Some(levels) = left.first().copied() {
            match sync_directory(&self.directory.join(lower_directory(levels))) {
                // Without the directory there is no name in it that could come back.
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    self.unsynced.lock().removals.append(&mut left);
                    return Err(error);
                }
                _ => left.remove(&levels),
            };
        }
        Ok(())
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
