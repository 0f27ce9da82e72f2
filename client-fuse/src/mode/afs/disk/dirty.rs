//! Files that may hold data that the server has not: dirty ones, and those that it did not take.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use larder_protocol::ids::Fid;

use super::index::ConflictRow;
use super::layout::{Origin, Place, make_dir, sync_dir};
use super::state::{Dirty, State, keep_name};
use super::{CHECK_BLOCK, CacheFile, DiskCache};

/// A dirty file of an earlier life.
#[derive(Clone, Debug)]
pub struct LeftDirty {
    /// The file.
    pub file: Arc<CacheFile>,
    /// What it is to become a version of.
    pub fid: Fid,
    /// The data version that it is based on.
    pub base: u64,
    /// The user who stores it.
    pub uid: u32,
    /// That user's group.
    pub gid: u32,
    /// Its size.
    pub size: u64,
    /// When it was last written.
    pub modified: SystemTime,
    /// The name that a program used for it, if that is known.
    pub name: Option<Vec<u8>>,
    /// Whether it is what was written: a file that was not synced before the machine was started anew may lack anything.
    pub is_certain: bool,
}

impl DiskCache {
    /// The file may hold data that the server has not, from now on. When this returns, a process that is killed leaves it
    /// as such (rule 1). Of a file that is dirty already, another base or user replaces the former.
    ///
    /// # Errors
    /// What the system says; `NotFound` if somebody removed the file.
    pub fn mark_dirty(&self, file: &Arc<CacheFile>, base: u64, uid: u32, gid: u32) -> io::Result<()> {
        let mut origin = Origin { base, uid, gid, boot: Some(self.boot) };
        let mut state = self.state.lock();
        let place = *file.place.lock();
        if let Place::Dirty(old) = place
            && old.base == base
        {
            // What was synced stays so, whoever writes now.
            origin.boot = old.boot;
            if old == origin {
                return Ok(());
            }
        }
        self.move_to_dirty(&mut state, file, origin)
    }

    fn move_to_dirty(&self, state: &mut State, file: &Arc<CacheFile>, origin: Origin) -> io::Result<()> {
        let left = state.dirty.get(&file.id()).is_some_and(|dirty| dirty.left);
        let Some(name) = self.relocate(state, file, Place::Dirty(origin))? else {
            let text = format!("the copy of {} in the cache was removed", file.fid());
            return Err(io::Error::new(io::ErrorKind::NotFound, text));
        };
        let dirty = Dirty { fid: file.fid(), origin, name, live: Arc::downgrade(file), left };
        state.insert_dirty(file.id(), dirty);
        Ok(())
    }

    /// Makes a dirty file and that it is dirty durable against a power cut too.
    ///
    /// # Errors
    /// What the system says; `NotFound` if somebody removed the file.
    pub fn sync_dirty(&self, file: &Arc<CacheFile>) -> io::Result<()> {
        loop {
            let before = *file.place.lock();
            file.file().sync_all()?;
            let mut state = self.state.lock();
            let place = *file.place.lock();
            match place {
                Place::Dirty(origin) if place == before => {
                    // What an earlier boot left does not get better by it.
                    if origin.boot == Some(self.boot) {
                        self.move_to_dirty(&mut state, file, Origin { boot: None, ..origin })?;
                    }
                    break;
                }
                // What it is based on now may have come after the sync.
                Place::Dirty(_) => {}
                Place::Gone => return Err(io::ErrorKind::NotFound.into()),
                _ => return Ok(()),
            }
        }
        sync_dir(&self.layout.dirty())?;
        // The name may have gone to another file's directory, or nowhere.
        file.path().metadata()?;
        Ok(())
    }

    /// As [`sync_dirty`](DiskCache::sync_dirty), of all dirty files of this boot: at the end of a mount, that they be
    /// stored by the next one whatever happens to the machine in between.
    ///
    /// # Errors
    /// The first that there was, once all was tried.
    pub fn sync_all_dirty(&self) -> io::Result<()> {
        let files: Vec<io::Result<LeftDirty>> = {
            let mut state = self.state.lock();
            let unsynced = state.dirty.iter_mut().filter(|(_, dirty)| dirty.origin.boot == Some(self.boot));
            // What an earlier life left may not have been opened by this one.
            unsynced.map(|(id, dirty)| self.open_left(*id, dirty)).collect()
        };
        let synced: Vec<io::Result<()>> =
            files.into_iter().map(|file| file.and_then(|dirty| self.sync_dirty(&dirty.file))).collect();
        synced.into_iter().collect()
    }

    /// The file is stored: it is the clean copy of this version from now on, unless it alone exceeds the limit.
    ///
    /// # Errors
    /// `InvalidInput` if there are not as many checksums as blocks, unless it alone exceeds the limit; what the system
    /// says. The file is then as before. That somebody removed it is no error: it is stored, and will not be found again.
    pub fn mark_clean(&self, file: &Arc<CacheFile>, version: u64, checksums: Vec<u32>) -> io::Result<()> {
        self.make_clean(file, version, checksums, None)
    }

    /// What an earlier life left dirty and has not become clean since, in the order of fids. What cannot be opened is
    /// left where it is.
    pub fn left_dirty(&self) -> Vec<LeftDirty> {
        let mut state = self.state.lock();
        let mut found: Vec<LeftDirty> = Vec::new();
        for (id, dirty) in state.dirty.iter_mut().filter(|(_, dirty)| dirty.left) {
            match self.open_left(*id, dirty) {
                Ok(left) => found.push(left),
                Err(error) => {
                    let path = self.layout.path(dirty.fid, *id, Place::Dirty(dirty.origin));
                    tracing::warn!("{} is not stored yet and cannot be opened: {error}", path.display());
                }
            }
        }
        found.sort_by_key(|left| (left.fid, left.file.id()));
        found
    }

    fn open_left(&self, id: u64, dirty: &mut Dirty) -> io::Result<LeftDirty> {
        let file = match dirty.live.upgrade() {
            Some(file) => file,
            None => {
                let place = Place::Dirty(dirty.origin);
                let file = super::file::open(&self.layout.path(dirty.fid, id, place))?;
                let file = CacheFile::new(Arc::clone(&self.layout), dirty.fid, id, place, file);
                dirty.live = Arc::downgrade(&file);
                file
            }
        };
        let found = file.file().metadata()?;
        let Origin { base, uid, gid, boot } = dirty.origin;
        let name = dirty.name.as_deref().map(<[u8]>::to_vec);
        let is_certain = boot.is_none_or(|boot| boot == self.boot);
        let (size, modified) = (found.len(), found.modified()?);
        Ok(LeftDirty { fid: dirty.fid, base, uid, gid, size, modified, name, file, is_certain })
    }

    /// The server does not take the file: puts it aside, durably, for its user to decide. Returns where it is.
    ///
    /// # Errors
    /// What the system says. To call it again is fine.
    pub fn keep_as_conflict(
        &self,
        file: &Arc<CacheFile>,
        base: u64,
        name: Option<&[u8]>,
        why: &str,
    ) -> io::Result<PathBuf> {
        let place = Place::Conflict { base };
        let path = file.at(place);
        let mut row = ConflictRow { fid: file.fid(), base, name: keep_name(name), since: 0, why: why.into() };
        let mut state = self.state.lock();
        row.since = state.stamp();
        match self.relocate(&mut state, file, place)? {
            Some(old_name) => {
                row.name = row.name.or(old_name);
                state.insert_conflict(file.id(), row);
                drop(state);
                file.file().sync_all()?;
            }
            None => {
                // The file was removed, but what is open still has the data.
                drop(state);
                copy_out(file.file(), &path)?;
                *file.place.lock() = place;
                self.state.lock().insert_conflict(file.id(), row);
            }
        }
        sync_dir(&self.layout.conflicts())?;
        // The file's name says what is needed; the index adds the reason.
        if let Err(error) = self.flush() {
            tracing::warn!("the index of the cache cannot be written: {error}");
        }
        Ok(path)
    }

    /// Removes a conflict, which its user has dealt with.
    ///
    /// # Errors
    /// `NotFound` if there is no such conflict; what removing its file says.
    pub fn forget_conflict(&self, id: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        let Some(row) = state.conflicts.get(&id) else {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("there is no conflict {id}")));
        };
        match std::fs::remove_file(self.layout.path(row.fid, id, Place::Conflict { base: row.base })) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        state.remove_conflict(id);
        Ok(())
    }
}

/// Copies the contents of an open file to `path`, durably but for the name.
fn copy_out(file: &File, path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        make_dir(parent)?;
    }
    let mut copy = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    let mut buffer = vec![0; CHECK_BLOCK];
    let mut offset = 0;
    loop {
        match file.read_at(&mut buffer, offset) {
            Ok(0) => return copy.sync_all(),
            Ok(read) => {
                copy.write_all(&buffer[..read])?;
                offset += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
