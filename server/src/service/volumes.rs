//! The volumes of a server: opened at their first use, closed when nobody uses them for a while.
//!
//! - **V1** A volume is served while its record in the cell's directory names this server and says that it is online (L1 of
//!   [`location`](crate::location)), as far as that is known here. Whoever changes the record so that it is not served has
//!   it learned first, and then waits until nobody is at it ([`Volumes::withdraw`]).
//! - **V2** A volume is closed only when no request is at it, and opened again only after that.
//! - **V3** No more than `MAX_OPEN` are open, but for those that requests are at: who is opened above that has those closed
//!   that nobody has used for longest.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
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
use crate::volume::arriving::Arriving;
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
    /// Volumes that have come from other servers since this one was started, in which order (M6 of [`moving`](crate::moving)).
    arrivals: RwLock<BTreeMap<VolumeId, Arrived>>,
    /// How many.
    arrived: AtomicU64,
    /// Volumes whose records may say that they are here before they are in their places.
    expected: RwLock<BTreeSet<VolumeId>>,
}

/// When a volume has come from another server.
#[derive(Clone, Copy)]
struct Arrived {
    /// In which order.
    number: u64,
    at: BootTime,
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
        Volumes::new(open, None, promises, runtime)
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
        Ok(Volumes::new(BTreeMap::new(), source, promises, runtime))
    }

    fn new(
        open: BTreeMap<VolumeId, Open>,
        source: Option<Source>,
        promises: Arc<PromiseKeeper>,
        runtime: SharedRuntime,
    ) -> Volumes {
        Volumes {
            open: RwLock::new(open),
            source,
            runtime,
            promises,
            keeper: OnceLock::new(),
            closed: Mutex::default(),
            arrivals: RwLock::default(),
            arrived: AtomicU64::new(0),
            expected: RwLock::default(),
        }
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
        let stored = self.find(id)?;
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
    pub fn directory(&self, id: VolumeId) -> Option<PathBuf> {
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
        let name = name.to_owned();
        self.in_store(move |source| {
            let stored = source.store.add_volume(id, &name, quota)?;
            source.stored.write().insert(id, stored);
            Ok(())
        })
        .await
    }

    /// Removes a volume that is not served, with all that it holds.
    ///
    /// # Errors
    /// The system's, as text.
    pub async fn remove(self: &Arc<Self>, id: VolumeId) -> Result<(), String> {
        self.withdraw(id).await.map_err(|code| code.to_string())?;
        self.in_store(move |source| {
            let Some(stored) = source.stored.read().get(&id).cloned() else { return Ok(()) };
            // Whatever becomes of the rest, it is no volume any more once it has another name.
            let gone = source.store.begin_removal(&stored)?;
            source.stored.write().remove(&id);
            if let Err(error) = store::remove_all(&gone) {
                warn!("{error:#}; that is tried again when the server starts the next time");
            }
            Ok(())
        })
        .await
    }

    /// Removes what is left here of a volume that has gone to another server, if its directory says so (M7 of
    /// [`moving`](crate::moving)). What was in it goes in the background.
    ///
    /// # Errors
    /// The system's, as text.
    pub async fn remove_departed(self: &Arc<Self>, id: VolumeId) -> Result<(), String> {
        if !self.is_departing(id).await {
            return Ok(());
        }
        self.withdraw(id).await.map_err(|code| code.to_string())?;
        let runtime = self.runtime.clone();
        self.in_store(move |source| {
            let mut stored = source.stored.write();
            // Looked at here: it may have come back meanwhile, into another directory.
            let Some(departed) = stored.get(&id).filter(|stored| Store::is_departing(stored)) else { return Ok(()) };
            let gone = source.store.begin_removal(departed)?;
            stored.remove(&id);
            runtime.spawn_blocking(Box::new(move || {
                if let Err(error) = store::remove_all(&gone) {
                    warn!("{error:#}; that is tried again when the server starts the next time");
                }
            }));
            Ok(())
        })
        .await
    }

    /// As [`withdraw`](Volumes::withdraw), if the requests that are at the volume end within a time; else it stays open.
    ///
    /// # Errors
    /// `Busy` if they do not; or it could not be closed cleanly.
    pub async fn withdraw_within(&self, id: VolumeId, time: Duration) -> Result<(), ErrorCode> {
        let _turn = self.source()?.turn(id).await;
        let Some(Open { volume, used }) = self.open.write().remove(&id) else { return Ok(()) };
        let until = self.runtime.boottime() + time;
        while Arc::strong_count(&volume) > 1 {
            if self.runtime.boottime() >= until {
                self.open.write().insert(id, Open { volume, used });
                return Err(ErrorCode::Busy);
            }
            self.runtime.sleep(LOOK_EVERY).await;
        }
        self.close_withdrawn(&volume).await
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
        self.close_withdrawn(&volume).await
    }

    async fn close_withdrawn(&self, volume: &Arc<Volume>) -> Result<(), ErrorCode> {
        let closed = volume.close().await;
        self.closed.lock().add(volume);
        info!(id = %volume.id(), name = volume.name(), "volume closed");
        closed
    }

    /// How many volumes have come from other servers.
    pub fn arrived(&self) -> u64 {
        self.arrived.load(Ordering::Acquire)
    }

    /// Whether a volume has come from another server after so many others (M6 of [`moving`](crate::moving)).
    pub fn has_arrived_since(&self, id: VolumeId, arrived: u64) -> bool {
        // Most servers have none.
        self.arrived() > arrived && self.arrivals.read().get(&id).is_some_and(|one| one.number > arrived)
    }

    /// Whether a volume has come from another server no longer ago than that: clients need not have been here since.
    pub fn has_arrived_within(&self, id: VolumeId, time: Duration) -> bool {
        let since = self.runtime.boottime().saturating_sub(time);
        self.arrivals.read().get(&id).is_some_and(|one| one.at >= since)
    }

    /// From now on the record of a volume may say that it is here: requests for it wait until it is
    /// [`install`](Volumes::install)ed.
    pub fn expect(&self, id: VolumeId) {
        self.expected.write().insert(id);
    }

    /// It does not come.
    pub fn unexpect(&self, id: VolumeId) {
        self.expected.write().remove(&id);
    }

    /// The directory that a volume is to be copied into.
    ///
    /// # Errors
    /// The system's, as text.
    pub async fn arriving(self: &Arc<Self>, id: VolumeId) -> Result<PathBuf, String> {
        self.in_store(move |source| source.store.arriving(id)).await
    }

    /// A volume is copied whole, and its record says that it is here: serves it.
    ///
    /// # Errors
    /// The system's, as text.
    pub async fn install(self: &Arc<Self>, id: VolumeId, name: &str) -> Result<(), String> {
        // A copy from an earlier time, which the volume has left, and which a crash has kept from being removed.
        self.remove_departed(id).await?;
        if let Some(dir) = self.directory(id) {
            return Err(format!("{} is in the place of volume {id}, which has come here; move it away", dir.display()));
        }
        let (this, name) = (self.clone(), name.to_owned());
        let installed = self.in_store(move |source| {
            let stored = source.store.arrived(id, &name)?;
            if let Err(error) = Arriving::settle(&stored.dir) {
                warn!("cannot remove what is left of copying {}: {error}", stored.dir.display());
            }
            let number = this.arrived.fetch_add(1, Ordering::AcqRel) + 1;
            this.arrivals.write().insert(id, Arrived { number, at: this.runtime.boottime() });
            source.stored.write().insert(id, stored);
            Ok(())
        });
        installed.await?;
        self.unexpect(id);
        Ok(())
    }

    /// What an earlier process has copied of volumes of other servers.
    ///
    /// # Errors
    /// The system's, as text.
    pub async fn arrivals(self: &Arc<Self>) -> Result<Vec<VolumeId>, String> {
        let ids = |source: &Source| Ok(source.store.arrivals()?.into_iter().map(|(id, _)| id).collect());
        self.in_store(ids).await
    }

    /// Removes what was copied of a volume.
    ///
    /// # Errors
    /// The system's, as text.
    pub async fn drop_arriving(self: &Arc<Self>, id: VolumeId) -> Result<(), String> {
        self.in_store(move |source| store::remove_all(&source.store.arriving(id)?)).await
    }

    /// Notes that a volume's directory may be removed once the volume is at another server.
    ///
    /// # Errors
    /// The system's, as text.
    pub async fn mark_departing(self: &Arc<Self>, id: VolumeId) -> Result<(), String> {
        self.set_departing(id, true).await
    }

    /// Notes that a volume stays.
    ///
    /// # Errors
    /// The system's, as text.
    pub async fn unmark_departing(self: &Arc<Self>, id: VolumeId) -> Result<(), String> {
        self.set_departing(id, false).await
    }

    async fn set_departing(self: &Arc<Self>, id: VolumeId, is_departing: bool) -> Result<(), String> {
        self.in_store(move |source| match source.stored.read().get(&id) {
            Some(stored) => Store::set_departing(stored, is_departing),
            None => Ok(()),
        })
        .await
    }

    /// Whether a volume's directory may be removed because the volume is at another server.
    pub async fn is_departing(self: &Arc<Self>, id: VolumeId) -> bool {
        let is_departing = |stored: &StoredVolume| Store::is_departing(stored);
        self.in_store(move |source| Ok(source.stored.read().get(&id).is_some_and(is_departing))).await == Ok(true)
    }

    async fn in_store<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Source) -> anyhow::Result<T> + Send + 'static,
    ) -> Result<T, String> {
        let this = self.clone();
        let done = self.runtime.blocking(move || {
            let source = this.source().map_err(|code| code.to_string())?;
            work(source).map_err(|error| format!("{error:#}"))
        });
        done.await.unwrap_or_else(|| Err("a thread panicked that was to do it".to_owned()))
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

    /// The volume's directory, if it is to be served (V1).
    fn find(&self, id: VolumeId) -> Result<StoredVolume, ErrorCode> {
        // Looked at first: what is expected is in its place before it is not expected any more.
        let is_expected = self.expected.read().contains(&id);
        match self.source()?.find(id) {
            Ok(_) | Err(ErrorCode::Io) if is_expected => Err(ErrorCode::Unavailable),
            found => found,
        }
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
        let StoredVolume { id, name, dir } = self.find(stored.id)?;
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
        if record.moving.is_some_and(|moving| moving.frozen) {
            // M3 of `core::moving`: until it is here again, or at another server.
            return Err(ErrorCode::Unavailable);
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

    use larder_protocol::cell::{ServerId, VolumeRecord};
    use larder_protocol::handshake::LeaseTerms;
    use larder_protocol::runtime::SystemRuntime;

    use super::*;
    use crate::location::embedded::EmbeddedRegistry;
    use crate::promises::holders::HolderMemory;

    /// A store, and the cell that it makes up by itself.
    fn cell_of(store: &Store) -> (Arc<Cell>, SharedRuntime) {
        let runtime: SharedRuntime = Arc::new(SystemRuntime::new(tokio::runtime::Handle::current()));
        let cell = Cell::new(EmbeddedRegistry::open(store.dir(), runtime.clone()).unwrap(), runtime.clone());
        (cell, runtime)
    }

    fn record(id: VolumeId, name: &str, server: ServerId) -> VolumeRecord {
        VolumeRecord { id, name: name.to_owned(), server, state: VolumeState::Online, mounted: None, moving: None }
    }

    fn volumes_of(store: Store, cell: Arc<Cell>, runtime: SharedRuntime) -> Arc<Volumes> {
        let (epoch, terms) = (Epoch(1), LeaseTerms::default());
        let promises = PromiseKeeper::new(epoch, terms, Arc::new(HolderMemory::default()), runtime.clone()).unwrap();
        Arc::new(Volumes::stored(store, cell, Durability::Power, epoch, promises, runtime).unwrap())
    }

    #[tokio::test]
    async fn a_volume_that_comes_is_waited_for_until_it_is_in_its_place() {
        let parent = tempfile::tempdir().unwrap();
        let store = Store::open(&parent.path().join("store")).unwrap();
        let (cell, runtime) = cell_of(&store);
        let id = VolumeId(7);
        cell.enter(record(id, "data", store.server())).await.unwrap();
        let whole = store.add_volume(id, "data", Quota::default()).unwrap();
        fs::rename(&whole.dir, store.arriving(id).unwrap()).unwrap();
        let volumes = volumes_of(store, cell, runtime);
        assert_eq!(volumes.get(id).await.err(), Some(ErrorCode::Io), "nobody knows of it");
        volumes.expect(id);
        assert_eq!(volumes.get(id).await.err(), Some(ErrorCode::Unavailable));
        let before = volumes.arrived();
        volumes.install(id, "data").await.unwrap();
        assert_eq!(volumes.get(id).await.unwrap().id(), id);
        // M6 of `moving`.
        assert!(volumes.has_arrived_since(id, before) && !volumes.has_arrived_since(id, volumes.arrived()));
        volumes.close().await.unwrap();
    }

    #[tokio::test]
    async fn only_what_was_frozen_to_be_sent_is_removed() {
        let parent = tempfile::tempdir().unwrap();
        let store = Store::open(&parent.path().join("store")).unwrap();
        let (cell, runtime) = cell_of(&store);
        let id = VolumeId(7);
        cell.enter(record(id, "data", ServerId(99))).await.unwrap();
        let dir = store.add_volume(id, "data", Quota::default()).unwrap().dir;
        let volumes = volumes_of(store, cell, runtime);
        assert_eq!(volumes.get(id).await.err(), Some(ErrorCode::Moved));
        volumes.remove_departed(id).await.unwrap();
        assert!(dir.exists(), "nobody has said that it may go (M7)");
        let in_the_way = volumes.install(id, "data").await.unwrap_err();
        assert!(in_the_way.contains(dir.to_str().unwrap()) && dir.join("meta.sqlite").exists(), "{in_the_way}");
        volumes.mark_departing(id).await.unwrap();
        volumes.unmark_departing(id).await.unwrap();
        volumes.remove_departed(id).await.unwrap();
        assert!(dir.exists());
        volumes.mark_departing(id).await.unwrap();
        volumes.remove_departed(id).await.unwrap();
        assert!(!dir.exists() && volumes.directory(id).is_none());
        volumes.close().await.unwrap();
    }

    #[tokio::test]
    async fn a_copy_of_a_volume_under_another_id_is_not_opened() {
        let parent = tempfile::tempdir().unwrap();
        let store = Store::open(&parent.path().join("store")).unwrap();
        let root = store.add_volume(VolumeId::ROOT, "root", Quota::default()).unwrap();
        let copy = root.dir.with_file_name("2-copy");
        fs::create_dir_all(copy.join("content")).unwrap();
        fs::copy(root.dir.join("meta.sqlite"), copy.join("meta.sqlite")).unwrap();
        let before = fs::read(copy.join("meta.sqlite")).unwrap();

        let (cell, runtime) = cell_of(&store);
        for (id, name) in [(VolumeId::ROOT, "root"), (VolumeId(2), "copy")] {
            cell.enter(record(id, name, store.server())).await.unwrap();
        }
        let volumes = volumes_of(store, cell, runtime);
        // Clients would take the two for one volume, and its handles for those of the other.
        assert_eq!(volumes.named("copy").await.err(), Some(ErrorCode::Io));
        assert_eq!(volumes.named("root").await.unwrap().id(), VolumeId::ROOT);
        volumes.close().await.unwrap();
        assert_eq!(fs::read(copy.join("meta.sqlite")).unwrap(), before);
    }
}
