//! Making and opening volumes.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};

use larder_protocol::attr::Timestamp;
use larder_protocol::cell::Quota;
use larder_protocol::ids::{Epoch, Fid, ROOT_VNODE, VolumeId};
use larder_protocol::runtime::SharedRuntime;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::content::Content;
use super::content::files::FileContent;
use super::data::Data;
use super::data::dirty::DirtyFiles;
use super::data::gates::Gates;
use super::data::kept::KeptCopies;
use super::data::reclaim::Waiting;
use super::data::room::RoomGauge;
use super::data::stage::Stages;
use super::data::unsettled::UnsettledMap;
use super::error::{StoreError, StoreResult};
use super::keys::{self, Table};
use super::meta::Metadata;
use super::meta::sqlite::SqliteMetadata;
use super::record::{Body, FORMAT, HeaderRecord, VnodeRecord};
use super::recovery;
use super::syncing::Beats;
use super::view::{Draft, Records, Verified};
use super::watch::{Watch, WatchedContent, WatchedMetadata};
use super::writer::{Recorded, Writer};
use super::{Slots, Volume, clients, quota, upkeep};

/// What an acknowledged change survives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// A power cut.
    #[default]
    Power,
    /// The end of the process (`kill -9`), not a power cut: what is acknowledged is synced every 50 ms, and when a client asks
    /// for it ([`Volume::sync`]).
    Process,
}

/// How to open a volume.
#[derive(Clone)]
pub struct VolumeConfig {
    /// The id that the volume is known by, which must be the one that it has itself.
    pub id: VolumeId,
    /// The volume's directory.
    pub dir: PathBuf,
    /// What an acknowledged change survives.
    pub durability: Durability,
    /// The server process's life.
    pub epoch: Epoch,
    /// The machine.
    pub runtime: SharedRuntime,
}

/// Why a volume cannot be opened or made.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file or directory of it.
    #[error("{path}: {error}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Its contents.
    #[error("{path}: {error}")]
    Store {
        /// The volume's directory.
        path: PathBuf,
        /// Why.
        error: StoreError,
    },
    /// It is another volume, or a copy of one.
    #[error("{path}: the directory is named for volume {named}, and what is in it is volume {id}; was it copied?")]
    Id {
        /// The volume's directory.
        path: PathBuf,
        /// The id in the directory's name.
        named: VolumeId,
        /// The volume's own.
        id: VolumeId,
    },
}

pub(super) const META: &str = "meta.sqlite";
pub(super) const CONTENT: &str = "content";

fn store_error(path: &Path) -> impl FnOnce(StoreError) -> OpenError {
    let path = path.to_owned();
    move |error| OpenError::Store { path, error }
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |error| OpenError::Io { path, error }
}

/// Makes an empty volume in `dir`, which must exist and be empty. Durable when it returns, but for `dir`'s own entry.
///
/// # Errors
/// The operating system's or the metadata engine's, with the path.
pub fn create(dir: &Path, id: VolumeId, name: &str, quota: Quota) -> Result<(), OpenError> {
    let content = dir.join(CONTENT);
    std::fs::create_dir(&content).map_err(io_error(&content))?;
    let meta = SqliteMetadata::create(&dir.join(META), Durability::Power).map_err(store_error(dir))?;
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let now = Timestamp { secs: now.tv_sec, nanos: now.tv_nsec as u32 };
    // What a server that is not root's makes must be of use to whoever runs it.
    let owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    prepare_for(owner, &meta, id, name, now, quota).map_err(store_error(dir))?;
    meta.sync().map_err(store_error(dir))?;
    drop(meta);
    let handle = std::fs::File::open(dir).map_err(io_error(dir))?;
    handle.sync_all().map_err(io_error(dir))
}

/// Writes the first rows of a volume: its header and its root directory, which is root's.
///
/// # Errors
/// The metadata engine's.
pub fn prepare(meta: &dyn Metadata, id: VolumeId, name: &str, now: Timestamp) -> StoreResult<()> {
    prepare_for((0, 0), meta, id, name, now, Quota::default())
}

fn prepare_for(
    (uid, gid): (u32, u32),
    meta: &dyn Metadata,
    id: VolumeId,
    name: &str,
    now: Timestamp,
    quota: Quota,
) -> StoreResult<()> {
    let snapshot = meta.snapshot()?;
    let view = Verified(&*snapshot);
    let mut draft = Draft::new(&view);
    let root = VnodeRecord {
        generation: 0,
        mode: 0o755,
        nlink: 2,
        uid,
        gid,
        size: 4096,
        blocks: 8,
        atime: now,
        mtime: now,
        ctime: now,
        btime: now,
        change: 1,
        data_change: 1,
        xattrs: 0,
        body: Body::Directory { parent: ROOT_VNODE, entries: 0, next_cookie: 1 },
    };
    let header = HeaderRecord {
        format: FORMAT,
        id,
        name: name.to_owned(),
        incarnation: 0,
        next_vnode: ROOT_VNODE + 1,
        vnodes: 1,
        blocks: root.blocks,
        sequence: 1,
        created: now,
    };
    draft.put_vnode(ROOT_VNODE, &root)?;
    draft.put(Table::Header, keys::HEADER, &header)?;
    draft.put(Table::Header, keys::QUOTA, &quota)?;
    let batch = draft.into_batch();
    drop(snapshot);
    meta.commit(header.sequence, &batch, true)
}

/// Opens the volume in `config.dir`, after finishing or taking back what a crash left half done.
///
/// # Errors
/// The operating system's or the metadata engine's, with the path.
pub fn open(config: VolumeConfig) -> Result<Arc<Volume>, OpenError> {
    let dir = &config.dir;
    let path = dir.join(META);
    if !path.exists() {
        return Err(OpenError::Io { error: io::ErrorKind::NotFound.into(), path });
    }
    let meta = SqliteMetadata::open(&path, config.durability).map_err(store_error(dir))?;
    // Before recovery changes anything.
    let snapshot = meta.snapshot().map_err(store_error(dir))?;
    let id = Verified(&*snapshot).header().map_err(store_error(dir))?.id;
    drop(snapshot);
    if id != config.id {
        return Err(OpenError::Id { path: dir.clone(), named: config.id, id });
    }
    let content = FileContent::open(&dir.join(CONTENT)).map_err(io_error(&dir.join(CONTENT)))?;
    open_on(Arc::new(meta), Arc::new(content), config.durability, config.epoch, config.runtime)
        .map_err(store_error(dir))
}

/// Opens a volume that these engines hold; see [`open`].
///
/// # Errors
/// The engines'.
pub fn open_on(
    meta: Arc<dyn Metadata>,
    content: Arc<dyn Content>,
    durability: Durability,
    epoch: Epoch,
    runtime: SharedRuntime,
) -> StoreResult<Arc<Volume>> {
    let recovered = recovery::recover(&*meta, &content, &runtime)?;
    let header = recovered.header;
    let (root, quota, vouched) = {
        let snapshot = meta.snapshot()?;
        let view = Verified(&*snapshot);
        let root = view.vnode(ROOT_VNODE)?;
        let root = root.ok_or_else(|| StoreError::Corrupt("the volume has no root directory".to_owned()))?;
        let vouched: Option<Vec<Epoch>> = view.record(Table::Header, keys::VOUCHED)?;
        (root, quota::load(&view)?, vouched.unwrap_or_default())
    };
    // From here on: nobody copies a volume that is not open yet.
    let watch = Arc::new(Watch::default());
    let meta: Arc<dyn Metadata> = Arc::new(WatchedMetadata { engine: meta, watch: Arc::clone(&watch) });
    let content: Arc<dyn Content> = Arc::new(WatchedContent { engine: content, watch: Arc::clone(&watch) });
    let mut slots = Slots::default();
    clients::load(&*meta, &mut slots.replay)?;
    let durable = durability == Durability::Power;
    let changes = Arc::new(recovered.changes);
    let unsettled = Arc::new(UnsettledMap::default());
    let room = Arc::new(RoomGauge::new(Arc::clone(&content), Arc::clone(&runtime)));
    let writer = Arc::new(Writer::new(
        Arc::clone(&meta),
        Arc::clone(&runtime),
        durable,
        Arc::clone(&changes),
        Arc::clone(&unsettled),
        Arc::clone(&room),
        Recorded { header: header.clone(), quota },
    ));
    let dirty = DirtyFiles::default();
    for file in recovered.dirty {
        dirty.insert(file);
    }
    let data = Arc::new(Data {
        id: header.id,
        epoch,
        incarnation: header.incarnation,
        durable,
        meta,
        content,
        runtime: Arc::clone(&runtime),
        writer,
        changes,
        unsettled,
        room,
        gates: Gates::default(),
        dirty,
        stages: Stages::default(),
        kept: KeptCopies::default(),
        distrusted: AtomicU64::new(0),
        unsynced: Mutex::default(),
        to_remove: Mutex::default(),
        removals: Arc::default(),
        undecided: Mutex::default(),
        removed: Mutex::default(),
        touched: Mutex::default(),
        syncing: std::array::from_fn(|_| Mutex::new(())),
        tasks: TaskTracker::new(),
        ending: CancellationToken::new(),
        hurry: CancellationToken::new(),
        waiting: Waiting::default(),
    });
    let volume = Arc::new(Volume {
        name: header.name,
        root: Fid { volume: header.id, vnode: ROOT_VNODE, generation: root.generation },
        data,
        runtime,
        slots: Mutex::new(slots),
        replayed: AtomicU64::new(0),
        promises: OnceLock::new(),
        beats: Beats::default(),
        watch,
        vouched,
    });
    upkeep::start(&volume);
    Ok(volume)
}

#[cfg(test)]
mod tests {
    use super::super::meta::memory::MemoryMetadata;
    use super::*;

    #[test]
    fn the_root_directory_is_of_who_makes_the_volume() {
        let meta = MemoryMetadata::new();
        prepare_for((1000, 100), &meta, VolumeId::ROOT, "root", Timestamp::default(), Quota::default()).unwrap();
        let snapshot = meta.snapshot().unwrap();
        let root = Verified(&*snapshot).vnode(ROOT_VNODE).unwrap().unwrap();
        assert_eq!((root.uid, root.gid), (1000, 100));
    }
}
