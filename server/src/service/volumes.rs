//! The volumes of a server: opened at their first use, closed when nobody uses them for a while.
//!
//! - **V1** A volume is served while its record in the cell's directory names this server and says that it is online (L1 of
//!   [`location`](crate::location)), as far as that is known here. Whoever changes the record so that it is not served has
//!   it learned first, and then waits until nobody is at it ([`Volumes::withdraw`]).
//! - **V2** A volume is closed only when no request is at it, and opened again only after that.
//! - **V3** No more than `MAX_OPEN` are open, but for those that requests are at: who is opened above that has those closed
//!   that nobody has used for longest.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use larder_protocol::cell::{Quota, VolumeState};
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::{ClientId, Epoch, VolumeId};
use larder_protocol::runtime::{BootTime, RuntimeExt, SharedRuntime};
use parking_lot::{Mutex, RwLock};
use tracing::{debug, error, info, warn};

use super::Server;
use crate::location::Cell;
use crate::promises::PromiseKeeper;
use crate::store::{self, Store, StoredVolume};
use crate::volume::{self, Durability, Volume, VolumeConfig};

/// How long a volume stays open that nobody uses.
const IDLE: Duration = Duration::from_secs(300);
/// How many may be open: each takes a few open files, and memory for what it has cached.
const MAX_OPEN: usize = 256;
/// How many are closed at a time to make room, so that not each opening has to wait for a closing.
const CLOSED_AT_ONCE: usize = 32;
/// How often it is looked whether requests that are at a volume have ended.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Volumes by id.
pub struct Volumes {
    open: RwLock<BTreeMap<VolumeId, Open>>,
    source: Option<Source>,
    runtime: SharedRuntime,
    promises: Arc<PromiseKeeper>,
    /// Who looks after volumes that are opened and closed.
    keeper: OnceLock<Weak<Server>>,
    /// What volumes had done that are closed now.
    closed: Mutex<Done>,
}

/// What volumes have done since the server was started.
#[derive(Clone, Copy, Debug, Default)]
pub struct Done {
    /// Operations that were answered as they had been before.
    pub replayed: u64,
    /// Batches that were committed.
    pub batches: u64,
    /// Operations.
    pub mutations: u64,
}

impl Done {
    fn add(&mut self, volume: &Volume) {
        self.replayed += volume.replayed();
        self.batches += volume.batches();
        self.mutations += volume.mutations();
    }
}

/// A volume that is open.
struct Open {
    volume: Arc<Volume>,
    /// When it was last asked for, in milliseconds.
    used: AtomicU64,
}

/// Where volumes that are not open yet come from.
struct Source {
    store: Store,
    cell: Arc<Cell>,
    stored: RwLock<BTreeMap<VolumeId, StoredVolume>>,
    durability: Durability,
    epoch: Epoch,
    /// Of each volume the turn to open or close it, so that none is open twice (V2). None is removed: they are small.
    turns: Mutex<BTreeMap<VolumeId, Arc<tokio::sync::Mutex<()>>>>,
    /// Whether the server ends: held shared by whoever opens a volume.
    ended: tokio::sync::RwLock<bool>,
}

fn millis(now: BootTime) -> u64 {
    now.as_millis() as u64
}

impl Volumes {
    /// Exactly these.
    pub fn given(volumes: Vec<Arc<Volume>>, promises: Arc<PromiseKeeper>, runtime: SharedRuntime) -> Volumes {
        volumes.iter().for_each(|volume| volume.promise_by(promises.clone()));
        let open = volumes.into_iter().map(|volume| (volume.id(), Open { volume, used: AtomicU64::new(0) })).collect();
        Volumes {
            open: RwLock::new(open),
            source: None,
            runtime,
            promises,
            keeper: OnceLock::new(),
            closed: Mutex::default(),
        }
    }

    /// Those of a store.
    ///
    /// # Errors
    /// The store's directory cannot be read.
    pub fn stored(
        store: Store,
        cell: Arc<Cell>,
        durability: Durability,
        epoch: Epoch,
        promises: Arc<PromiseKeeper>,
        runtime: SharedRuntime,
    ) -> anyhow::Result<Volumes> {
        let left = store.left_over()?;
        if !left.is_empty() {
            runtime.spawn_blocking(Box::new(move || {
                for path in left {
                    if let Err(error) = store::remove_all(&path) {
                        warn!("{error:#}; that is tried again when the server starts the next time");
                    }
                }
            }));
        }
        let stored = store.volumes()?.into_iter().map(|stored| (stored.id, stored)).collect();
        let (stored, turns, ended) = (RwLock::new(stored), Mutex::default(), tokio::sync::RwLock::new(false));
        let source = Some(Source { store, cell, stored, durability, epoch, turns, ended });
        Ok(Volumes {
            open: RwLock::default(),
            source,
            runtime,
            promises,
            keeper: OnceLock::new(),
            closed: Mutex::default(),
        })
    }

    /// Who looks after volumes that are opened and closed.
    pub fn kept_by(&self, keeper: Weak<Server>) {
        self.keeper.get_or_init(|| keeper);
    }

    /// A volume, opened if it is not.
    ///
    /// # Errors
    /// `NoSuchVolume`, `Moved` and `Offline` (V1); `Unavailable` while the server ends; `Io` if it cannot be opened, for a
    /// reason that is logged.
    pub async fn get(self: &Arc<Self>, id: VolumeId) -> Result<Arc<Volume>, ErrorCode> {
        if let Some(open) = self.open.read().get(&id) {
            open.used.store(millis(self.runtime.boottime()), Ordering::Relaxed);
            return Ok(open.volume.clone());
        }
        let stored = self.source()?.find(id)?;
        // Not cut when its request is: a volume that was opened must not be lost before it is entered.
        let this = self.clone();
        let opened = self.runtime.detached(async move { this.open(stored).await }).await;
        opened.unwrap_or(Err(ErrorCode::Internal))
    }

    /// A volume by its name.
    ///
    /// # Errors
    /// As [`get`](Volumes::get).
    pub async fn named(self: &Arc<Self>, name: &str) -> Result<Arc<Volume>, ErrorCode> {
        let Some(source) = &self.source else {
            let open =
                self.open.read().values().find(|open| open.volume.name() == name).map(|open| open.volume.clone());
            return open.ok_or(ErrorCode::NoSuchVolume);
        };
        let id = source.cell.known_as(name).ok_or(ErrorCode::NoSuchVolume)?.id;
        self.get(id).await
    }

    /// Whether what is acknowledged is durable.
    pub fn is_durable(&self) -> bool {
        match &self.source {
            Some(source) => source.durability == Durability::Power,
            None => self.open.read().values().all(|open| open.volume.is_durable()),
        }
    }

    /// Those that are open, in the order of their ids.
    pub fn opened(&self) -> Vec<Arc<Volume>> {
        self.open.read().values().map(|open| open.volume.clone()).collect()
    }

    /// What all have done.
    pub fn done(&self) -> Done {
        let open = self.open.read();
        let mut done = *self.closed.lock();
        open.values().for_each(|open| done.add(&open.volume));
        done
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.source.as_ref().map_or_else(|| self.open.read().len(), |source| source.stored.read().len())
    }

    /// Where a volume of this server is on its disk.
    pub fn directory(&self, id: VolumeId) -> Option<std::path::PathBuf> {
        Some(self.source.as_ref()?.stored.read().get(&id)?.dir.clone())
    }

    /// Which volumes have directories here, with the names that they were made with.
    pub fn directories(&self) -> Vec<(VolumeId, String)> {
        let Some(source) = &self.source else { return Vec::new() };
        source.stored.read().values().map(|stored| (stored.id, stored.name.clone())).collect()
    }

    /// Makes an empty volume. It is not served before its record is entered.
    ///
    /// # Errors
    /// The system's, as text.
    pub async fn add(self: &Arc<Self>, id: VolumeId, name: &str, quota: Quota) -> Result<(), String> {
        let (this, name) = (self.clone(), name.to_owned());
        let made = self.runtime.blocking(move || {
            let source = this.source().map_err(|code| code.to_string())?;
            let stored = source.store.add_volume(id, &name, quota).map_err(|error| format!("{error:#}"))?;
            source.stored.write().insert(id, stored);
            Ok(())
        });
        made.await.unwrap_or_else(|| Err("a thread panicked that was to do it".to_owned()))
    }

    /// Removes a volume that is not served, with all that it holds.
    ///
    /// # Errors
    /// The system's, as text.
    pub async fn remove(self: &Arc<Self>, id: VolumeId) -> Result<(), String> {
        self.withdraw(id).await.map_err(|code| code.to_string())?;
        let this = self.clone();
        let removed = self.runtime.blocking(move || {
            let source = this.source().map_err(|code| code.to_string())?;
            let Some(stored) = source.stored.read().get(&id).cloned() else { return Ok(()) };
            // Whatever becomes of the rest, it is no volume any more once it has another name.
            let gone = source.store.begin_removal(&stored).map_err(|error| format!("{error:#}"))?;
            source.stored.write().remove(&id);
            if let Err(error) = store::remove_all(&gone) {
                warn!("{error:#}; that is tried again when the server starts the next time");
            }
            Ok(())
        });
        removed.await.unwrap_or_else(|| Err("a thread panicked that was to do it".to_owned()))
    }

    /// Closes a volume that is not to be served any more, once all requests that are at it have ended (V1).
    ///
    /// # Errors
    /// It could not be closed cleanly.
    pub async fn withdraw(&self, id: VolumeId) -> Result<(), ErrorCode> {
        let _turn = self.source()?.turn(id).await;
        let Some(Open { volume, .. }) = self.open.write().remove(&id) else { return Ok(()) };
        volume.hurry();
        // Each has its end: requests wait for leases, for the disk, for room, and for nothing else.
        while Arc::strong_count(&volume) > 1 {
            self.runtime.sleep(LOOK_EVERY).await;
        }
        let closed = volume.close().await;
        self.closed.lock().add(&volume);
        info!(%id, name = volume.name(), "volume closed");
        closed
    }

    /// Closes what nobody has used for a while (V2).
    pub async fn close_idle(&self) {
        let before = millis(self.runtime.boottime().saturating_sub(IDLE));
        self.close_unused(before, usize::MAX).await;
    }

    /// Closes up to `most` volumes that nobody is at or has used since `before`, the longest unused first.
    async fn close_unused(&self, before: u64, most: usize) {
        let Some(source) = &self.source else { return };
        let mut unused: Vec<(u64, VolumeId)> = {
            let open = self.open.read();
            let unused = open.iter().filter(|(_, open)| Arc::strong_count(&open.volume) == 1);
            unused
                .map(|(id, open)| (open.used.load(Ordering::Relaxed), *id))
                .filter(|(used, _)| *used < before)
                .collect()
        };
        unused.sort_unstable();
        unused.truncate(most);
        let closing = unused.into_iter().map(|(_, id)| async move {
            // Somebody is opening or closing it.
            let Ok(_turn) = source.lock_of(id).try_lock_owned() else { return };
            if let (Some(keeper), Some(volume)) = (self.keeper(), self.opened_as(id)) {
                keeper.before_closing(&volume).await;
            }
            let volume = {
                let mut open = self.open.write();
                // Whoever is at it has it beside this table, and nobody gets it while the table is locked.
                let is_unused =
                    |open: &Open| open.used.load(Ordering::Relaxed) < before && Arc::strong_count(&open.volume) == 1;
                if open.get(&id).is_some_and(is_unused) { open.remove(&id) } else { None }
            };
            let Some(Open { volume, .. }) = volume else { return };
            debug!(id = %volume.id(), name = volume.name(), "closing a volume that nobody uses");
            if let Err(code) = volume.close().await {
                error!(volume = volume.name(), "cannot close the volume cleanly: {code}; the next use recovers it");
            }
            self.closed.lock().add(&volume);
        });
        futures::future::join_all(closing).await;
    }

    fn opened_as(&self, id: VolumeId) -> Option<Arc<Volume>> {
        self.open.read().get(&id).map(|open| open.volume.clone())
    }

    fn keeper(&self) -> Option<Arc<Server>> {
        self.keeper.get()?.upgrade()
    }

    /// A client is gone, or its lives before one are: frees what it left in the volumes that are open.
    ///
    /// # Errors
    /// The first that a volume met.
    pub async fn client_gone(&self, client: ClientId, before: Option<u64>) -> Result<(), ErrorCode> {
        for volume in self.opened() {
            volume.client_gone(client, before).await?;
        }
        Ok(())
    }

    /// Closes all; none is opened any more.
    ///
    /// # Errors
    /// The first that a volume met; the others are closed all the same.
    pub async fn close(&self) -> Result<(), ErrorCode> {
        if let Some(source) = &self.source {
            *source.ended.write().await = true;
        }
        let mut result = Ok(());
        for volume in self.opened() {
            if let Err(code) = volume.close().await {
                error!(volume = volume.name(), "cannot close the volume cleanly: {code}");
                result = result.and(Err(code));
            }
        }
        result
    }

    fn source(&self) -> Result<&Source, ErrorCode> {
        self.source.as_ref().ok_or(ErrorCode::NoSuchVolume)
    }

    async fn open(&self, stored: StoredVolume) -> Result<Arc<Volume>, ErrorCode> {
        let source = self.source()?;
        let _turn = source.turn(stored.id).await;
        let ended = source.ended.read().await;
        if let Some(open) = self.opened_as(stored.id) {
            return Ok(open);
        }
        if *ended {
            return Err(ErrorCode::Unavailable);
        }
        if self.open.read().len() >= MAX_OPEN {
            self.close_unused(u64::MAX, CLOSED_AT_ONCE).await;
        }
        // Its record may have changed while somebody else was closing it.
        let StoredVolume { id, name, dir } = source.find(stored.id)?;
        let (durability, epoch, runtime) = (source.durability, source.epoch, self.runtime.clone());
        let config = VolumeConfig { id, dir, durability, epoch, runtime };
        let opened = self.runtime.blocking(move || volume::open(config)).await;
        match opened {
            Some(Ok(volume)) => {
                volume.promise_by(self.promises.clone());
                debug!(%id, name, "volume opened");
                if let Some(keeper) = self.keeper() {
                    keeper.after_opening(&volume).await;
                }
                let used = AtomicU64::new(millis(self.runtime.boottime()));
                self.open.write().insert(id, Open { volume: volume.clone(), used });
                Ok(volume)
            }
            Some(Err(error)) => {
                let store = source.store.dir().display();
                error!(
                    %id, name,
                    "cannot open the volume: {error}. Stop the server and run `larderd check --store {store}`"
                );
                Err(ErrorCode::Io)
            }
            None => {
                error!(%id, name, "defect: opening the volume panicked");
                Err(ErrorCode::Internal)
            }
        }
    }
}

impl Source {
    fn lock_of(&self, id: VolumeId) -> Arc<tokio::sync::Mutex<()>> {
        self.turns.lock().entry(id).or_default().clone()
    }

    /// Waits for the turn to open or close a volume (V2).
    async fn turn(&self, id: VolumeId) -> tokio::sync::OwnedMutexGuard<()> {
        self.lock_of(id).lock_owned().await
    }

    /// The volume's directory, if it is to be served (V1).
    fn find(&self, id: VolumeId) -> Result<StoredVolume, ErrorCode> {
        let record = self.cell.known(id).ok_or(ErrorCode::NoSuchVolume)?;
        if record.server != self.store.server() {
            return Err(ErrorCode::Moved);
        }
        match record.state {
            VolumeState::Online => {}
            VolumeState::Offline => return Err(ErrorCode::Offline),
            VolumeState::Deleted { .. } => return Err(ErrorCode::NoSuchVolume),
        }
        self.stored.read().get(&id).cloned().ok_or_else(|| {
            let store = self.store.dir().display();
            error!(%id, name = record.name, "the volume's directory is missing in {store}/volumes");
            ErrorCode::Io
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use larder_protocol::cell::VolumeRecord;
    use larder_protocol::handshake::LeaseTerms;
    use larder_protocol::runtime::SystemRuntime;

    use super::*;
    use crate::location::embedded::EmbeddedRegistry;
    use crate::promises::holders::HolderMemory;

    #[tokio::test]
    async fn a_copy_of_a_volume_under_another_id_is_not_opened() {
        let parent = tempfile::tempdir().unwrap();
        let store = Store::open(&parent.path().join("store")).unwrap();
        let root = store.add_volume(VolumeId::ROOT, "root", Quota::default()).unwrap();
        let copy = root.dir.with_file_name("2-copy");
        fs::create_dir_all(copy.join("content")).unwrap();
        fs::copy(root.dir.join("meta.sqlite"), copy.join("meta.sqlite")).unwrap();
        let before = fs::read(copy.join("meta.sqlite")).unwrap();

        let runtime: SharedRuntime = Arc::new(SystemRuntime::new(tokio::runtime::Handle::current()));
        let cell = Cell::new(EmbeddedRegistry::open(store.dir(), runtime.clone()).unwrap(), runtime.clone());
        for (id, name) in [(VolumeId::ROOT, "root"), (VolumeId(2), "copy")] {
            let (server, state) = (store.server(), VolumeState::Online);
            let record = VolumeRecord { id, name: name.to_owned(), server, state, mounted: None };
            cell.enter(record).await.unwrap();
        }
        let (epoch, terms) = (Epoch(1), LeaseTerms::default());
        let promises = PromiseKeeper::new(epoch, terms, Arc::new(HolderMemory::default()), runtime.clone()).unwrap();
        let volumes = Arc::new(Volumes::stored(store, cell, Durability::Power, epoch, promises, runtime).unwrap());
        // Clients would take the two for one volume, and its handles for those of the other.
        assert_eq!(volumes.named("copy").await.err(), Some(ErrorCode::Io));
        assert_eq!(volumes.named("root").await.unwrap().id(), VolumeId::ROOT);
        volumes.close().await.unwrap();
        assert_eq!(fs::read(copy.join("meta.sqlite")).unwrap(), before);
    }
}
