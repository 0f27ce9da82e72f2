//! Opening a cache: what an earlier life left is compared with what the index says of it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Weak};

use larder_protocol::ids::Fid;
use parking_lot::Mutex;

use super::file::{blocks_in, mtime};
use super::home::{self, Identity, Lock};
use super::index::{self, CleanRow, ConflictRow, Index, Loaded};
use super::layout::{Layout, Place, remove};
use super::state::{Changes, Clean, Dirty, State};
use super::{CacheError, DiskCache, Options};

impl DiskCache {
    /// Opens the cache in a directory, which it makes if need be.
    ///
    /// If the directory belongs to another volume, its clean copies and pins are dropped.
    ///
    /// # Errors
    /// `InUse` if another mount has it, `NotWritable` if it cannot be made or written to, `OtherVolume` if it belongs to
    /// another volume and holds data that is not stored there, `Io` if something in it fails.
    pub fn open(options: Options) -> Result<DiskCache, CacheError> {
        let boot = home::boot().unwrap_or_else(|| {
            tracing::warn!(
                "this machine does not say in /proc/sys/kernel/random/boot_id when it was started: what is not stored \
                 when this mount dies is kept as a conflict by the next one"
            );
            NonZeroU64::new(options.new_client as u64).unwrap_or(NonZeroU64::MAX)
        });
        DiskCache::open_in_boot(options, boot)
    }

    /// Opens a cache in a certain boot of the machine.
    pub(super) fn open_in_boot(options: Options, boot: NonZeroU64) -> Result<DiskCache, CacheError> {
        let Options { dir, limit, volume, new_client, wall_nanos } = options;
        // The process may change its directory.
        let dir = std::path::absolute(&dir).unwrap_or(dir);
        let layout = Arc::new(Layout::new(dir));
        let dir = layout.dir();
        let not_writable = |cause| CacheError::NotWritable { dir: dir.to_owned(), cause };
        if layout.is_of_others().map_err(CacheError::io("read", dir))? {
            return Err(CacheError::NotACache { dir: dir.to_owned() });
        }
        layout.make_dirs().map_err(not_writable)?;
        let lock = Lock::take(&layout.lock()).map_err(not_writable)?;
        let lock = lock.ok_or_else(|| CacheError::InUse { dir: dir.to_owned() })?;

        let dirty = layout.list_dirty().map_err(CacheError::io("read", &layout.dirty()))?;
        let conflicts = layout.list_conflicts().map_err(CacheError::io("read", &layout.conflicts()))?;
        belong_to(&layout, &volume, dirty.len() + conflicts.len())?;
        let identity =
            Identity::raise(&layout, new_client, wall_nanos).map_err(CacheError::io("write", &layout.identity()))?;
        let (index, loaded) = Index::open(layout.index()).map_err(CacheError::io("open", &layout.index()))?;

        let mut state = State::new();
        let Loaded { clean: rows, conflicts: conflict_rows, pins, dirty_names } = loaded;
        take_clean(&layout, &mut state, rows).map_err(CacheError::io("read", dir))?;
        take_new(&layout, &mut state).map_err(CacheError::io("read", dir))?;
        let mut names: BTreeMap<u64, _> = dirty_names.into_iter().collect();
        for (id, fid, origin) in dirty {
            state.seen_id(id);
            let name = names.remove(&id).flatten();
            state.insert_dirty(id, Dirty { fid, origin, name, live: Weak::new(), left: true });
        }
        for id in names.into_keys() {
            state.dirty_name_changed(id);
        }
        take_conflicts(&layout, &mut state, conflicts, conflict_rows);
        state.pins.extend(pins);

        let (state, index, home) = (Mutex::new(state), Mutex::new(index), Mutex::new(lock));
        let spare = Mutex::default();
        let cache = DiskCache { layout, limit, volume, identity, boot, state, index, home, spare };
        // The limit may be lower than it was.
        cache.shrink();
        Ok(cache)
    }
}

/// Makes sure that the directory belongs to `volume`, of which `unsaved` files in it may lack something.
fn belong_to(layout: &Layout, volume: &str, unsaved: usize) -> Result<(), CacheError> {
    let found = home::read_volume(layout).map_err(CacheError::io("read", &layout.volume()))?;
    if found.as_deref() == Some(volume) {
        return Ok(());
    }
    if unsaved > 0 {
        let found = found.unwrap_or_else(|| "the volume that its missing file `volume` named".to_owned());
        return Err(CacheError::OtherVolume { dir: layout.dir().to_owned(), found, dirty: unsaved });
    }
    if let Some(found) = found {
        tracing::info!("the cache directory {} was of {found} and is emptied", layout.dir().display());
    }
    // Before the name: it must never say of another volume's files that they are this one's. The sync of the directory
    // after the new name covers the removal too.
    index::remove(&layout.index()).map_err(CacheError::io("remove", &layout.index()))?;
    home::write_volume(layout, volume).map_err(CacheError::io("write", &layout.volume()))
}

/// Clean copies are taken over if the index knows them as they are (rule 4).
fn take_clean(layout: &Layout, state: &mut State, rows: Vec<(Fid, CleanRow)>) -> io::Result<()> {
    let mut files: BTreeSet<u64> = layout.list_clean()?.into_iter().collect();
    for id in &files {
        state.seen_id(*id);
    }
    let mut wrong = Vec::new();
    for (fid, row) in rows {
        state.seen_id(row.id);
        state.seen_stamp(row.used);
        if files.contains(&row.id) && is_as_known(layout, &row) {
            files.remove(&row.id);
            state.insert_clean(fid, Clean { row, live: Weak::new(), verified: false });
        } else {
            wrong.push(fid);
        }
    }
    // The index knows all of that.
    state.changes = Changes::default();
    for fid in wrong {
        state.clean_changed(fid);
    }
    for id in files {
        remove(&layout.clean(id));
    }
    Ok(())
}

fn is_as_known(layout: &Layout, row: &CleanRow) -> bool {
    layout.clean(row.id).symlink_metadata().is_ok_and(|found| {
        (found.len(), mtime(&found), found.ino()) == (row.size, row.mtime, row.inode)
            && found.is_file()
            && row.checksums.len() as u64 == blocks_in(row.size)
    })
}

/// A file that was being fetched is not complete.
fn take_new(layout: &Layout, state: &mut State) -> io::Result<()> {
    for id in layout.list_new()? {
        state.seen_id(id);
        remove(&layout.new_file(id));
    }
    Ok(())
}

/// A conflict's file counts, its row only adds to it.
fn take_conflicts(layout: &Layout, state: &mut State, files: Vec<(u64, Fid, u64)>, rows: Vec<(u64, ConflictRow)>) {
    let mut rows: BTreeMap<u64, ConflictRow> = rows.into_iter().collect();
    for (id, fid, base) in files {
        state.seen_id(id);
        match rows.remove(&id) {
            Some(row) if (row.fid, row.base) == (fid, base) => {
                state.conflicts.insert(id, row);
            }
            _ => {
                let path = layout.path(fid, id, Place::Conflict { base });
                let since = path.metadata().map_or(0, |found| u64::try_from(mtime(&found)).unwrap_or(0));
                let why = "the reason is not known any more".into();
                state.insert_conflict(id, ConflictRow { fid, base, name: None, since, why });
            }
        }
    }
    for id in rows.into_keys() {
        state.remove_conflict(id);
    }
}
