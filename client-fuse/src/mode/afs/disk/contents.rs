//! Copies of files: found, fetched, installed, given another version.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use larder_protocol::failpoint::Planted;
use larder_protocol::ids::Fid;

use super::file::{Spare, blocks_in, has_checksums, mtime, open};
use super::index::{CleanRow, Name};
use super::layout::{Origin, Place, remove, rename};
use super::state::{Clean, State, keep_name};
use super::{CacheFile, DiskCache, VERIFY_MAX};

/// Why a clean copy cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// Somebody removed its file.
    #[error("its file was removed")]
    Vanished,
    /// It is not what was installed.
    #[error("{0}")]
    Damaged(String),
    /// It may well be good, but cannot be read at the moment.
    #[error("it cannot be read: {0}")]
    Unreadable(io::Error),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Fault {
        match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
            Some(rustix::io::Errno::NOENT) => Fault::Vanished,
            // The disk's fault, and it will not get better; a link or directory in its place.
            Some(rustix::io::Errno::IO | rustix::io::Errno::LOOP | rustix::io::Errno::ISDIR) => {
                Fault::Damaged(error.to_string())
            }
            _ => Fault::Unreadable(error),
        }
    }
}

impl DiskCache {
    /// The complete copy of exactly this version, checked (rule 2). `None` if there is none; one that is not as it was
    /// installed is dropped.
    ///
    /// Everybody who has a copy open has the same [`CacheFile`].
    pub fn find(&self, fid: Fid, version: u64) -> Option<Arc<CacheFile>> {
        loop {
            let (row, live, verified) = {
                let state = self.state.lock();
                let trusted = |clean: &Clean| Planted::TrustCache.is_on() && !clean.verified;
                let clean = state.clean.peek(&fid).filter(|clean| clean.row.version == version || trusted(clean))?;
                (clean.row.clone(), clean.live.upgrade(), clean.verified)
            };
            let whole = live.is_none() && !verified && (row.size <= VERIFY_MAX || row.boot != self.boot.get());
            let checked = match live {
                Some(file) => check_open(&row, &self.layout.clean(row.id)).map(|()| file),
                None => self
                    .check(&row, whole)
                    .map(|file| CacheFile::new(Arc::clone(&self.layout), fid, row.id, Place::Clean, file)),
            };
            let mut state = self.state.lock();
            let Some(clean) = state.clean.peek_mut(&fid).filter(|clean| is_same(&clean.row, &row)) else {
                // Meanwhile it was evicted, replaced or made dirty: what was found out does not count.
                continue;
            };
            match checked {
                Ok(file) => {
                    let file = clean.live.upgrade().unwrap_or(file);
                    clean.live = Arc::downgrade(&file);
                    clean.verified |= whole;
                    if whole && clean.row.boot != self.boot.get() {
                        clean.row.boot = self.boot.get();
                        state.clean_changed(fid);
                    }
                    state.touch(fid);
                    return Some(file);
                }
                Err(fault) => {
                    self.report(state, fid, &fault);
                    return None;
                }
            }
        }
    }

    /// Whether there is a clean copy of any version.
    pub fn has_any(&self, fid: Fid) -> bool {
        self.state.lock().clean.peek(&fid).is_some()
    }

    /// Whether there is a clean copy of this version, as far as is known without looking at its file.
    pub fn has(&self, fid: Fid, version: u64) -> bool {
        self.state.lock().clean.peek(&fid).is_some_and(|clean| clean.row.version == version)
    }

    /// A new empty file to fetch into, or to write a file anew. It is removed when it is dropped, unless it has been
    /// installed or made dirty.
    ///
    /// # Errors
    /// What the system says.
    pub fn create(&self, fid: Fid) -> io::Result<Arc<CacheFile>> {
        let spare = self.spare.lock().take();
        let file = match spare.and_then(|spare| spare.take(&self.layout, fid)) {
            Some(file) => file,
            None => self.make_file()?.take(&self.layout, fid).ok_or(io::ErrorKind::NotFound)?,
        };
        self.state.lock().fetching.insert(file.id(), Arc::downgrade(&file));
        Ok(file)
    }

    /// Makes the file that the next [`create`](DiskCache::create) is going to give out, unless there is one. For those
    /// who wait for the server anyway. What goes wrong shows when the file is needed.
    pub fn prepare(&self) {
        if self.spare.lock().is_some() {
            return;
        }
        // Without the lock, which those wait for who need a file now.
        if let Ok(made) = self.make_file() {
            self.spare.lock().get_or_insert(made);
        }
    }

    fn make_file(&self) -> io::Result<Spare> {
        let id = self.state.lock().next_id();
        match Spare::make(&self.layout, id) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.layout.make_dirs()?;
                self.restore_home()?;
                Spare::make(&self.layout, id)
            }
            result => result,
        }
    }

    /// The file is complete at this version: from now on it is the copy that is found, and an older one is removed as
    /// soon as nobody has it open.
    ///
    /// The time of the file's last change is set: from then on it tells any further change (rule 2).
    ///
    /// # Errors
    /// `StorageFull` if the file alone exceeds the limit; `InvalidInput` if there are not as many checksums as blocks;
    /// what the system says. The file is then as before. That somebody removed it is no error: what is open is good, and
    /// will not be found again.
    pub fn install(
        &self,
        file: &Arc<CacheFile>,
        version: u64,
        checksums: Vec<u32>,
        name: Option<&[u8]>,
    ) -> io::Result<()> {
        if file.file().metadata()?.len() > self.limit {
            let text = format!("{} is larger than the cache may be ({} bytes)", file.fid(), self.limit);
            return Err(io::Error::new(io::ErrorKind::StorageFull, text));
        }
        self.make_clean(file, version, checksums, keep_name(name))
    }

    /// The contents of version `from` are those of version `to` too, as after a change of attributes that this client
    /// made. Holds for the clean copy, and for dirty files that are based on `from`.
    pub fn rename_version(&self, fid: Fid, from: u64, to: u64) {
        let mut state = self.state.lock();
        if let Some(clean) = state.clean.peek_mut(&fid).filter(|clean| clean.row.version == from) {
            clean.row.version = to;
            state.clean_changed(fid);
        }
        for (id, dirty) in state.dirty.iter_mut().filter(|(_, dirty)| dirty.fid == fid && dirty.origin.base == from) {
            let old = Place::Dirty(dirty.origin);
            let origin = Origin { base: to, ..dirty.origin };
            let new = Place::Dirty(origin);
            // Where it cannot be renamed it stays based on `from`: after a crash it becomes a conflict, and is not lost.
            if let Err(error) = rename(&self.layout.path(fid, *id, old), &self.layout.path(fid, *id, new)) {
                tracing::warn!("{} cannot be renamed: {error}", self.layout.path(fid, *id, old).display());
                continue;
            }
            dirty.origin = origin;
            if let Some(file) = dirty.live.upgrade() {
                *file.place.lock() = new;
            }
        }
    }

    /// Remembers the name that a program used for a file, for people to recognise it. A file that is still being fetched
    /// gets its name when it is installed.
    pub fn set_name(&self, file: &Arc<CacheFile>, name: &[u8]) {
        let mut state = self.state.lock();
        let place = *file.place.lock();
        state.set_name(file, place, keep_name(Some(name)));
    }

    /// The contents are of no use any more: removes the file wherever it is. What is open stays readable.
    pub fn discard(&self, file: &Arc<CacheFile>) {
        let path = {
            let mut state = self.state.lock();
            let mut place = file.place.lock();
            let old = std::mem::replace(&mut *place, Place::Gone);
            state.leave(file, old);
            file.at(old)
        };
        remove(&path);
    }

    /// Makes `file` the clean copy of its fid. One that alone exceeds the limit is not kept after it is closed, and needs
    /// no checksums.
    pub(super) fn make_clean(
        &self,
        file: &Arc<CacheFile>,
        version: u64,
        checksums: Vec<u32>,
        name: Name,
    ) -> io::Result<()> {
        let size = file.file().metadata()?.len();
        if size <= self.limit && blocks_in(size) != checksums.len() as u64 {
            let text = format!("{} checksums do not cover the {size} bytes of {}", checksums.len(), file.fid());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        // The file system's clock ticks too slowly: two versions could have the same time by it.
        let stamp = self.state.lock().stamp();
        file.file().set_modified(UNIX_EPOCH + Duration::from_nanos(stamp))?;
        let found = file.file().metadata()?;
        let doomed = {
            let mut state = self.state.lock();
            let Some(old_name) = self.relocate(&mut state, file, Place::Clean)? else { return Ok(()) };
            if found.len() > self.limit {
                *file.place.lock() = Place::Replaced;
                return Ok(());
            }
            let row = CleanRow {
                id: file.id(),
                version,
                size: found.len(),
                mtime: mtime(&found),
                inode: found.ino(),
                boot: self.boot.get(),
                checksums: checksums.into(),
                name: name.or(old_name).or_else(|| state.clean.peek(&file.fid())?.row.name.clone()),
                used: stamp,
            };
            let clean = Clean { row, live: Arc::downgrade(file), verified: true };
            let replaced = state.insert_clean(file.fid(), clean).and_then(|old| self.retire(&old));
            let over = state.bytes(&self.layout).saturating_sub(self.limit);
            let (victims, _) = state.victims(over, Some(file.fid()));
            let mut doomed = self.take_victims(&mut state, victims);
            doomed.extend(replaced);
            doomed
        };
        doomed.iter().for_each(|path| remove(path));
        Ok(())
    }

    /// Moves a file to another place and out of what is known of the old one; its name, or `None` if it is not there
    /// any more.
    pub(super) fn relocate(&self, state: &mut State, file: &Arc<CacheFile>, to: Place) -> io::Result<Option<Name>> {
        let mut place = file.place.lock();
        if *place == Place::Gone {
            return Ok(None);
        }
        let (from, target) = (file.at(*place), file.at(to));
        if from != target {
            match rename(&from, &target) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    tracing::warn!("{}, a copy of {}, was removed", from.display(), file.fid());
                    state.leave(file, *place);
                    *place = Place::Gone;
                    return Ok(None);
                }
                result => result?,
            }
        }
        let name = state.leave(file, *place);
        *place = to;
        Ok(Some(name))
    }

    /// A clean copy is not the one to find any more. Its file is to be removed: at once, if this says where it is, or
    /// when the last one who has it open closes it.
    pub(super) fn retire(&self, old: &Clean) -> Option<PathBuf> {
        match old.live.upgrade() {
            Some(file) => {
                *file.place.lock() = Place::Replaced;
                None
            }
            None => Some(self.layout.clean(old.row.id)),
        }
    }

    /// Drops a clean copy that cannot be used, unless it may be good after all.
    pub(super) fn report(&self, mut state: parking_lot::MutexGuard<'_, State>, fid: Fid, fault: &Fault) {
        tracing::warn!("the copy of {fid} in the cache cannot be used: {fault}");
        match fault {
            Fault::Unreadable(_) => return,
            Fault::Damaged(_) => state.damaged += 1,
            Fault::Vanished => {}
        }
        let path = state.remove_clean(fid).and_then(|old| self.retire(&old));
        drop(state);
        if let Some(path) = path {
            remove(&path);
        }
    }

    /// Opens a clean copy and checks it: its contents too if it is to be checked `whole`.
    pub(super) fn check(&self, row: &CleanRow, whole: bool) -> Result<std::fs::File, Fault> {
        let file = open(&self.layout.clean(row.id))?;
        compare(row, &file.metadata()?)?;
        if whole && !has_checksums(&file, &row.checksums)? {
            return Err(Fault::Damaged("its contents do not match their checksums".to_owned()));
        }
        Ok(file)
    }
}

/// Whether what was found out about a copy as it was is still true of it.
pub(super) fn is_same(now: &CleanRow, then: &CleanRow) -> bool {
    // Each installation sets another time.
    (now.id, now.version, now.mtime) == (then.id, then.version, then.mtime)
}

/// Checks a copy that is open: whether its file is still there as it was.
fn check_open(row: &CleanRow, path: &Path) -> Result<(), Fault> {
    compare(row, &path.symlink_metadata()?)
}

fn compare(row: &CleanRow, found: &std::fs::Metadata) -> Result<(), Fault> {
    let damaged = |what: &str| Err(Fault::Damaged(format!("its file {what} since it was installed")));
    if found.ino() != row.inode {
        return damaged("was replaced");
    }
    if found.len() != row.size {
        return damaged("has changed its size");
    }
    if mtime(found) != row.mtime {
        return damaged("was written to");
    }
    Ok(())
}
