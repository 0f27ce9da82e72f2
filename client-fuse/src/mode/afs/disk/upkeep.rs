//! The cache as a whole: room, pins, and what its owner wants to know of it.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use larder_protocol::ids::Fid;

use super::DiskCache;
use super::contents::{Fault, is_same};
use super::layout::{Place, remove};
use super::state::State;

/// What became of a request to evict a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evicted {
    /// There is no copy any more.
    Done,
    /// There was none.
    Absent,
    /// It may hold data that the server has not.
    Dirty,
    /// Somebody has it open.
    Open,
    /// It is pinned.
    Pinned,
}

/// What a check of a clean copy found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// What it is a copy of.
    pub fid: Fid,
    /// The name that a program used for it, if that is known.
    pub name: Option<Vec<u8>>,
    /// What is wrong with it. A copy that could be read and is wrong has been dropped.
    pub ok: Result<(), String>,
}

/// A file of the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its number, by which a conflict is forgotten.
    pub id: u64,
    /// What it is a copy of.
    pub fid: Fid,
    /// The name that a program used for it, if that is known.
    pub name: Option<Vec<u8>>,
    /// Its size.
    pub size: u64,
    /// What it is.
    pub state: ListedState,
    /// The version: of a clean copy its own, else the one that it is based on.
    pub version: u64,
    /// Whether it is pinned.
    pub pinned: bool,
    /// Whether somebody has it open. Not known of conflicts, which count as closed.
    pub open: bool,
    /// When it was last used: opened, if it is clean; written, if it is dirty; put aside, if it is a conflict.
    pub last_used: SystemTime,
}

/// What a file of the cache is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListedState {
    /// A copy of what the server has.
    Clean,
    /// May hold data that the server has not.
    Dirty,
    /// Holds data that the server did not take.
    Conflict {
        /// Where it is.
        path: PathBuf,
        /// Why the server did not take it.
        why: String,
    },
}

/// What is in the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Clean copies.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Dirty files.
    pub dirty_files: u64,
    /// Their bytes.
    pub dirty_bytes: u64,
    /// Conflicts.
    pub conflicts: u64,
    /// Their bytes.
    pub conflict_bytes: u64,
    /// Pinned files, with or without a copy.
    pub pinned: u64,
    /// Bytes that all may have together.
    pub limit: u64,
    /// Copies evicted since the start.
    pub evicted: u64,
    /// Copies dropped since the start because they were not as they had been installed.
    pub damaged: u64,
}

impl DiskCache {
    /// Evicts until `bytes` more fit under the limit (rule 5). `false`, and nothing is evicted, if that cannot be.
    pub fn make_room(&self, bytes: u64) -> bool {
        let over = |state: &mut State| {
            let over = state.bytes(&self.layout).saturating_add(bytes).saturating_sub(self.limit);
            (over, over)
        };
        self.evict_least_used(over).is_some()
    }

    /// Evicts copies of `want` bytes together, whatever the limit, because the disk is full. `false`, and nothing is
    /// evicted, if there are not even `need` bytes of them.
    pub fn give_way(&self, need: u64, want: u64) -> bool {
        self.evict_least_used(|_| (need, want)).is_some_and(|evicted| evicted > 0)
    }

    /// Evicts the copies used longest ago, of as many bytes together as `amount` says: at least the first, and if there
    /// are as many the second. How many copies that were; `None`, and nothing is evicted, if there are too few bytes.
    fn evict_least_used(&self, amount: impl FnOnce(&mut State) -> (u64, u64)) -> Option<usize> {
        let doomed = {
            let mut state = self.state.lock();
            let (need, want) = amount(&mut state);
            let (victims, freed) = state.victims(want, None);
            if freed < need {
                return None;
            }
            self.take_victims(&mut state, victims)
        };
        doomed.iter().for_each(|path| remove(path));
        Some(doomed.len())
    }

    /// Bytes that the disk has left for the cache.
    ///
    /// # Errors
    /// What the system says.
    pub fn disk_left(&self) -> io::Result<u64> {
        let found = rustix::fs::statvfs(self.layout.dir())?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }

    /// Evicts what it can until the limit is kept.
    pub(super) fn shrink(&self) {
        self.evict_least_used(|state| (0, state.bytes(&self.layout).saturating_sub(self.limit)));
    }

    /// Forgets victims; where their files are, which are to be removed without the lock: that can take a while.
    pub(super) fn take_victims(&self, state: &mut State, victims: Vec<Fid>) -> Vec<PathBuf> {
        state.evicted += victims.len() as u64;
        victims.into_iter().filter_map(|fid| state.remove_clean(fid).and_then(|old| self.retire(&old))).collect()
    }

    /// Sets whether a file is never evicted. That is remembered without a copy, too, and when it comes. Returns whether
    /// this changed anything.
    pub fn pin(&self, fid: Fid, pinned: bool) -> bool {
        self.state.lock().pin(fid, pinned)
    }

    /// The pinned files, in order.
    pub fn pinned(&self) -> Vec<Fid> {
        self.state.lock().pins.iter().copied().collect()
    }

    /// Whether a file is pinned.
    pub fn is_pinned(&self, fid: Fid) -> bool {
        self.state.lock().pins.contains(&fid)
    }

    /// Evicts the clean copy of one file.
    pub fn evict(&self, fid: Fid) -> Evicted {
        let doomed = {
            let mut state = self.state.lock();
            if state.dirty.values().any(|dirty| dirty.fid == fid) {
                return Evicted::Dirty;
            }
            match state.clean.peek(&fid) {
                None => return Evicted::Absent,
                Some(clean) if clean.is_open() => return Evicted::Open,
                Some(_) if state.pins.contains(&fid) => return Evicted::Pinned,
                Some(_) => self.take_victims(&mut state, vec![fid]),
            }
        };
        doomed.iter().for_each(|path| remove(path));
        Evicted::Done
    }

    /// Compares the contents of one clean copy, or of all, with their checksums, in the order of fids. Damaged copies are
    /// dropped. What changes meanwhile is left out.
    pub fn verify(&self, fid: Option<Fid>) -> Vec<Verified> {
        let rows = {
            let state = self.state.lock();
            let wanted = |found: &Fid| fid.is_none_or(|fid| fid == *found);
            let mut rows: Vec<_> = state
                .clean
                .iter()
                .filter(|(found, _)| wanted(found))
                .map(|(found, clean)| (*found, clean.row.clone()))
                .collect();
            rows.sort_unstable_by_key(|(found, _)| *found);
            rows
        };
        let mut report = Vec::new();
        for (fid, row) in rows {
            let checked = self.check(&row, true);
            let mut state = self.state.lock();
            let Some(clean) = state.clean.peek_mut(&fid).filter(|clean| is_same(&clean.row, &row)) else { continue };
            let name = clean.row.name.as_deref().map(<[u8]>::to_vec);
            let ok = checked.as_ref().map(|_| ()).map_err(Fault::to_string);
            match checked {
                Ok(_) => {
                    clean.verified = true;
                    if clean.row.boot != self.boot.get() {
                        clean.row.boot = self.boot.get();
                        state.clean_changed(fid);
                    }
                }
                Err(fault) => self.report(state, fid, &fault),
            }
            report.push(Verified { fid, name, ok });
        }
        report
    }

    /// Everything in the cache, in the order of fids; of one fid first the clean copy, then dirty files, then conflicts.
    pub fn list(&self) -> Vec<Listed> {
        let state = self.state.lock();
        let clean = state.clean.iter().map(|(fid, clean)| Listed {
            id: clean.row.id,
            fid: *fid,
            name: clean.row.name.as_deref().map(<[u8]>::to_vec),
            size: clean.row.size,
            state: ListedState::Clean,
            version: clean.row.version,
            pinned: state.pins.contains(fid),
            open: clean.is_open(),
            last_used: time(clean.row.used),
        });
        let dirty = state.dirty.iter().map(|(id, dirty)| {
            let found = self.layout.path(dirty.fid, *id, Place::Dirty(dirty.origin)).metadata();
            Listed {
                id: *id,
                fid: dirty.fid,
                name: dirty.name.as_deref().map(<[u8]>::to_vec),
                size: found.as_ref().map_or(0, std::fs::Metadata::len),
                state: ListedState::Dirty,
                version: dirty.origin.base,
                pinned: state.pins.contains(&dirty.fid),
                open: dirty.live.strong_count() > 0,
                last_used: found.and_then(|found| found.modified()).unwrap_or(UNIX_EPOCH),
            }
        });
        let conflicts = state.conflicts.iter().map(|(id, row)| {
            let path = self.layout.path(row.fid, *id, Place::Conflict { base: row.base });
            Listed {
                id: *id,
                fid: row.fid,
                name: row.name.as_deref().map(<[u8]>::to_vec),
                size: path.metadata().map_or(0, |found| found.len()),
                state: ListedState::Conflict { path, why: row.why.to_string() },
                version: row.base,
                pinned: state.pins.contains(&row.fid),
                open: false,
                last_used: time(row.since),
            }
        });
        let mut all: Vec<Listed> = clean.chain(dirty).chain(conflicts).collect();
        // Stable: within a fid the order above stays.
        all.sort_by_key(|listed| listed.fid);
        all
    }

    /// How much there is of everything.
    pub fn usage(&self) -> Usage {
        let state = self.state.lock();
        Usage {
            files: state.clean.len() as u64,
            bytes: state.clean_bytes(),
            dirty_files: state.dirty.len() as u64,
            dirty_bytes: state.dirty_bytes(&self.layout),
            conflicts: state.conflicts.len() as u64,
            conflict_bytes: state.conflict_bytes(&self.layout),
            pinned: state.pins.len() as u64,
            limit: self.limit,
            evicted: state.evicted,
            damaged: state.damaged,
        }
    }
}

fn time(nanos: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(nanos)
}
