//! The server: its volumes, its connections, and what it answers.

pub mod admin;
pub mod check;
pub mod credential;
pub mod handler;
pub mod method;
pub mod volumes;

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use futures::{Sink, Stream};
use larder_protocol::cell::{Quota, ServerId, ServerRecord, VolumeRecord, VolumeState};
use larder_protocol::error::ErrorCode;
use larder_protocol::handshake::LeaseTerms;
use larder_protocol::ids::{Epoch, VolumeId};
use larder_protocol::limits::{CLIENT_FORGOTTEN_AFTER, DELETED_KEPT, ORPHANS_YIELD_AFTER};
use larder_protocol::runtime::{BootTime, BoxFuture, SharedRuntime};
use larder_protocol::service::admin::AdminError;
use larder_protocol::service::{LarderRequest, LarderResponse};
use larder_protocol::stats::ServerStats;
use tarpc::{ClientMessage, Response};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use self::credential::Squash;
use self::volumes::{Done, Volumes};
use crate::location::embedded::EmbeddedRegistry;
use crate::location::etcd::EtcdRegistry;
use crate::location::registry::Registry;
use crate::location::remote::RemoteRegistry;
use crate::location::{Cell, Location, LocationError};
use crate::moving::incoming::Arrivals;
use crate::moving::outgoing::Departures;
use crate::net::connection::{self, Shared};
use crate::net::sessions::{Peer, Sessions};
use crate::promises::PromiseKeeper;
use crate::promises::holders::{HolderFile, Holders};
use crate::stats::Counters;
use crate::store::Store;
use crate::volume::{Durability, Volume};

/// Name and version of this software, as the other side logs it.
pub const SOFTWARE: &str = concat!("larderd ", env!("CARGO_PKG_VERSION"));

/// How often clients that have been silent for too long are looked for.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(3600);

/// How often it is looked whether room is scarce.
const SCARCITY_INTERVAL: Duration = Duration::from_secs(5);

/// How soon that is looked at again where something that was to go could not: the log must not fill the disk.
const FAILED_INTERVAL: Duration = Duration::from_secs(300);

/// How often volumes are looked for that nobody uses, or that were deleted long ago.
const IDLE_INTERVAL: Duration = Duration::from_secs(60);

/// How often callbacks of leases that have ended are swept up.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// How a server behaves.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// What becomes of the clients' superusers.
    pub root_squash: Squash,
    /// How long promises last.
    pub lease: LeaseTerms,
}

/// The name of the volume that every cell starts with.
const ROOT: &str = "root";

/// Where a server belongs.
struct Place {
    id: ServerId,
    lives: Option<BTreeSet<Epoch>>,
    cell: Option<Arc<Cell>>,
    store: Option<PathBuf>,
}

/// What a server serves, and how.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// The store's directory.
    pub store: PathBuf,
    /// What an acknowledgement promises.
    pub durability: Durability,
    /// Where clients and other servers reach it: `HOST:PORT`.
    pub address: String,
    /// Where the cell's directory is, if the store does not say so.
    pub location: Option<Location>,
    /// The rest.
    pub settings: Settings,
}

/// A server without its sockets.
pub struct Server {
    /// Itself, for what goes on when a request is over.
    this: Weak<Server>,
    id: ServerId,
    epoch: Epoch,
    /// The processes that have served the store since the machine was started; all there ever were if it is not known.
    lives: Option<BTreeSet<Epoch>>,
    /// The cell's directory; a server of given volumes belongs to no cell.
    cell: Option<Arc<Cell>>,
    store_dir: Option<PathBuf>,
    administering: tokio::sync::Mutex<()>,
    departures: Departures,
    arrivals: Arrivals,
    volumes: Arc<Volumes>,
    promises: Arc<PromiseKeeper>,
    settings: Settings,
    counters: Counters,
    shared: Shared,
    tasks: TaskTracker,
    started: BootTime,
}

impl Server {
    /// Opens a store, which is created if the directory is empty, and its volume `root`.
    ///
    /// # Errors
    /// The store is in use, is none, or cannot be read; or its volume `root` cannot be opened.
    pub async fn new(config: ServerConfig, runtime: SharedRuntime) -> anyhow::Result<Arc<Server>> {
        let epoch = Epoch(runtime.random());
        let store = Store::open(&config.store)?;
        let lives = store.begin_life(epoch).unwrap_or_else(|error| {
            warn!("cannot note that this process serves the store: {error:#}; the next one will not vouch for it");
            BTreeSet::from([epoch])
        });
        let id = store.server();
        let location = store.settle_location(config.location)?;
        let registry: Arc<dyn Registry> = match location {
            Location::Own => EmbeddedRegistry::open(store.dir(), runtime.clone())
                .with_context(|| format!("cannot open the directory of volumes in {}", store.dir().display()))?,
            Location::Server(address) => RemoteRegistry::new(address, runtime.clone()),
            Location::Etcd { endpoints, prefix } => EtcdRegistry::new(endpoints, &prefix, runtime.clone()),
        };
        let is_own = registry.is_own();
        let cell = Cell::new(registry, runtime.clone());
        let record = ServerRecord { id, address: config.address, software: SOFTWARE.to_owned(), epoch };
        cell.register(&record).await?;
        cell.refresh().await?;
        let holders = Arc::new(HolderFile::in_store(store.dir()));
        let promises = PromiseKeeper::new(epoch, config.settings.lease, holders, runtime.clone())
            .context("cannot learn which clients may hold leases")?;
        let volumes =
            Volumes::stored(store, cell.clone(), config.durability, epoch, promises.clone(), runtime.clone())?;
        let place = Place { id, lives: Some(lives), cell: Some(cell.clone()), store: Some(config.store.clone()) };
        let server = Server::build(epoch, place, volumes, promises, config.settings, runtime);
        if is_own {
            server.adopt(&cell).await?;
        } else {
            server.begin_cell(&cell).await?;
            server.tell_of_strays(&cell);
        }
        server.settle_arrivals().await.context("cannot put volumes in their places that have moved here")?;
        for task in [
            Box::pin(cell.clone().follow(server.shared.ending.clone())) as BoxFuture<()>,
            Box::pin(cell.clone().announce(record, server.shared.ending.clone())),
            Box::pin(server.clone().look_after_departures()),
        ] {
            server.shared.runtime.spawn(Box::pin(server.tasks.track_future(task)));
        }
        let is_served = |root: &VolumeRecord| root.server == id && root.moving.is_none_or(|moving| !moving.frozen);
        let has_root = cell.known(VolumeId::ROOT).as_ref().is_some_and(is_served);
        if has_root && let Err(code) = server.volumes.get(VolumeId::ROOT).await {
            bail!("the volume `root` of the store {} cannot be opened: {code}; see the log", config.store.display());
        }
        Ok(server)
    }

    /// Serves volumes that are open already. `epoch` is the one they were opened with; `holders` is the record of an
    /// earlier process, if there was one.
    ///
    /// # Errors
    /// The record cannot be read.
    pub fn with_volumes(
        epoch: Epoch,
        volumes: Vec<Arc<Volume>>,
        holders: Arc<dyn Holders>,
        settings: Settings,
        runtime: SharedRuntime,
    ) -> io::Result<Arc<Server>> {
        let promises = PromiseKeeper::new(epoch, settings.lease, holders, runtime.clone())?;
        let volumes = Volumes::given(volumes, promises.clone(), runtime.clone());
        let place = Place { id: ServerId(epoch.0), lives: None, cell: None, store: None };
        Ok(Server::build(epoch, place, volumes, promises, settings, runtime))
    }

    fn build(
        epoch: Epoch,
        place: Place,
        volumes: Volumes,
        promises: Arc<PromiseKeeper>,
        settings: Settings,
        runtime: SharedRuntime,
    ) -> Arc<Server> {
        let shared = Shared {
            sessions: Arc::new(Sessions::new(runtime.clone())),
            ending: CancellationToken::new(),
            runtime: runtime.clone(),
        };
        let server = Arc::new_cyclic(|this| Server {
            this: this.clone(),
            id: place.id,
            epoch,
            lives: place.lives,
            cell: place.cell,
            store_dir: place.store,
            administering: tokio::sync::Mutex::default(),
            departures: Departures::default(),
            arrivals: Arrivals::default(),
            volumes: Arc::new(volumes),
            promises,
            settings,
            counters: Counters::default(),
            shared,
            tasks: TaskTracker::new(),
            started: runtime.boottime(),
        });
        server.volumes.kept_by(Arc::downgrade(&server));
        let expiring = server.tasks.track_future(server.clone().expire_clients());
        runtime.spawn(Box::pin(expiring));
        let yielding = server.tasks.track_future(server.clone().orphans_yield());
        runtime.spawn(Box::pin(yielding));
        let closing = server.tasks.track_future(server.clone().close_idle());
        runtime.spawn(Box::pin(closing));
        let sweeping = server.tasks.track_future(server.clone().sweep_promises());
        runtime.spawn(Box::pin(sweeping));
        server
    }

    /// Enters the volumes of its store in a cell's directory that is new: those that were there before there was one, or else
    /// the root volume, which is made here. The root volume comes last: while it is missing, this is not done.
    async fn adopt(&self, cell: &Cell) -> anyhow::Result<()> {
        if cell.known(VolumeId::ROOT).is_some() {
            self.tell_of_strays(cell);
            return Ok(());
        }
        if self.volumes.count() == 0 {
            let made = self.volumes.add(VolumeId::ROOT, ROOT, Quota::default()).await;
            made.map_err(|cause| anyhow!("cannot make the volume {ROOT}: {cause}"))?;
        }
        for (id, name) in self.volumes.directories().into_iter().rev() {
            if cell.known(id).is_some() {
                continue;
            }
            cell.reserve(id).await?;
            let record = |name: String| VolumeRecord {
                id,
                name,
                server: self.id,
                state: VolumeState::Online,
                mounted: None,
                moving: None,
            };
            let entered = match cell.enter(record(name.clone())).await {
                // Another has that name, or none may have it: names change, and directories keep those that they got.
                Err(LocationError::Exists(_) | LocationError::BadName(_)) => {
                    cell.enter(record(format!("volume-{id}"))).await
                }
                entered => entered,
            };
            entered.with_context(|| format!("cannot enter volume {id} of this store in the cell's directory"))?;
            info!("volume {id} ({name}) is entered in the cell's directory");
        }
        Ok(())
    }

    /// Makes the root volume of a cell that has none, unless another server comes first.
    async fn begin_cell(&self, cell: &Cell) -> anyhow::Result<()> {
        if cell.known(VolumeId::ROOT).is_some() {
            return Ok(());
        }
        let (id, name) = (VolumeId::ROOT, ROOT.to_owned());
        if self.volumes.directory(id).is_none() {
            let made = self.volumes.add(id, ROOT, Quota::default()).await;
            made.map_err(|cause| anyhow!("cannot make the volume {ROOT}: {cause}"))?;
        }
        match cell
            .enter(VolumeRecord { id, name, server: self.id, state: VolumeState::Online, mounted: None, moving: None })
            .await
        {
            Ok(()) => info!("the cell has its root volume at this server"),
            Err(LocationError::Exists(_)) => {
                cell.refresh().await?;
                if cell.known(id).is_some_and(|root| root.server != self.id) {
                    let removed = self.volumes.remove(id).await;
                    removed.map_err(|cause| anyhow!("cannot remove what was to be the root volume: {cause}"))?;
                }
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Names directories of volumes that the cell does not have.
    fn tell_of_strays(&self, cell: &Cell) {
        for (id, _) in self.volumes.directories() {
            if cell.known(id).is_none() {
                let dir = self.volumes.directory(id).unwrap_or_default();
                warn!(
                    "{} is of no volume of the cell: its making was cut short, or the cell's directory is an older copy; \
                     it is left alone, and can be moved away",
                    dir.display()
                );
            }
        }
    }

    /// A volume was opened, and is not used yet: clients may have begun new lives while it was closed.
    pub(super) async fn after_opening(&self, volume: &Arc<Volume>) {
        for (client, incarnation) in self.shared.sessions.incarnations() {
            if let Err(code) = volume.client_gone(client, Some(incarnation)).await {
                warn!(volume = volume.name(), "cannot free what an earlier life of client {client} has left: {code}");
            }
        }
    }

    /// A volume is about to be closed: it may not be open when clients that are long gone are looked for.
    pub(super) async fn before_closing(&self, volume: &Arc<Volume>) {
        let up = self.shared.runtime.boottime().saturating_sub(self.started);
        if up >= EXPIRY_INTERVAL {
            self.expire_clients_of(volume).await;
        }
    }

    /// Who it is.
    pub(crate) fn id(&self) -> ServerId {
        self.id
    }

    /// The cell's directory.
    pub(crate) fn cell(&self) -> Result<&Cell, AdminError> {
        self.cell.as_deref().ok_or_else(|| AdminError {
            code: ErrorCode::NotSupported,
            text: "this server belongs to no cell".to_owned(),
        })
    }

    /// Held by whoever changes which volumes there are, and which of them are served.
    pub(crate) fn administering(&self) -> &tokio::sync::Mutex<()> {
        &self.administering
    }

    /// Its volumes.
    pub(crate) fn volumes(&self) -> &Arc<Volumes> {
        &self.volumes
    }

    /// What it has promised.
    pub(crate) fn promises(&self) -> &Arc<PromiseKeeper> {
        &self.promises
    }

    /// Volumes that other servers fetch.
    pub(crate) fn departures(&self) -> &Departures {
        &self.departures
    }

    /// Volumes that it fetches.
    pub(crate) fn arrivals(&self) -> &Arrivals {
        &self.arrivals
    }

    /// The processes that have served the store since the machine was started.
    pub(crate) fn lives(&self) -> Vec<Epoch> {
        self.lives.iter().flatten().copied().collect()
    }

    /// This process's life.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The machine it runs on.
    pub fn runtime(&self) -> &SharedRuntime {
        &self.shared.runtime
    }

    /// Number of open connections.
    pub fn connections(&self) -> usize {
        self.shared.sessions.connections()
    }

    /// Ends when the server begins to end.
    pub async fn ending(&self) {
        self.shared.ending.cancelled().await;
    }

    /// Serves one connection in a task of its own.
    pub fn serve_in_background<T>(self: Arc<Self>, transport: T, peer: Peer)
    where
        T: Stream<Item = io::Result<ClientMessage<LarderRequest>>>
            + Sink<Response<LarderResponse>, Error = io::Error>
            + Send
            + 'static,
    {
        let serving = self.tracked(serve_connection(self.clone(), transport, peer));
        self.shared.runtime.spawn(Box::pin(serving));
    }

    /// The same task, one of those that the server's end waits for.
    pub(crate) fn tracked<F: Future>(&self, task: F) -> impl Future<Output = F::Output> + use<F> {
        self.tasks.track_future(task)
    }

    /// Counters since the start.
    pub fn stats(&self) -> ServerStats {
        let (bytes_read, bytes_written, refused) = self.counters.totals();
        let stats = ServerStats {
            version: SOFTWARE.to_owned(),
            epoch: format!("{:016x}", self.epoch.0),
            uptime_secs: self.shared.runtime.boottime().saturating_sub(self.started).as_secs(),
            requests: self.counters.by_kind(),
            bytes_read,
            bytes_written,
            refused,
            connections: self.shared.sessions.connections() as u64,
            clients: self.shared.sessions.clients() as u64,
            promises: self.promises.stats(),
            ..ServerStats::default()
        };
        let Done { replayed, batches, mutations } = self.volumes.done();
        ServerStats { replayed, batches, mutations, ..stats }
    }

    /// Ends: nothing more is read, what was read is answered, the volumes are settled and closed. Connections that
    /// are not done within `patience` are cut.
    ///
    /// # Errors
    /// A volume could not be closed cleanly; the log has the reason.
    pub async fn shut_down(&self, patience: Duration) -> Result<(), ErrorCode> {
        self.shared.ending.cancel();
        self.tasks.close();
        self.volumes.opened().iter().for_each(|volume| volume.hurry());
        tokio::select! {
            biased;
            () = self.tasks.wait() => {}
            () = self.shared.runtime.sleep(patience) => {
                warn!("{} connections are not done after {patience:?}; cutting them", self.connections());
                self.shared.sessions.stop_all();
            }
        }
        self.volumes.close().await
    }

    async fn close_idle(self: Arc<Self>) {
        loop {
            tokio::select! {
                biased;
                () = self.shared.ending.cancelled() => return,
                () = self.shared.runtime.sleep(IDLE_INTERVAL) => {}
            }
            self.volumes.close_idle().await;
            self.purge().await;
        }
    }

    /// Removes volumes of this server for good that were deleted long enough ago.
    async fn purge(&self) {
        let Some(cell) = &self.cell else { return };
        let now = self.shared.runtime.wall();
        let is_due = |record: &VolumeRecord| match record.state {
            VolumeState::Deleted { since } => {
                record.server == self.id && now.secs.saturating_sub(since.secs) >= DELETED_KEPT.as_secs() as i64
            }
            _ => false,
        };
        for VolumeRecord { id, name, .. } in cell.all_known().into_iter().filter(is_due) {
            // Nobody restores it in between; and what is known may be old (L4).
            let _turn = self.administering.lock().await;
            match cell.volume(id).await {
                Ok(record) if is_due(&record) => {}
                _ => continue,
            }
            // The directory first: a record without one says what is missing.
            let removed = match self.volumes.remove(id).await {
                Ok(()) => cell.forget(id).await.map_err(|error| error.to_string()),
                Err(cause) => Err(cause),
            };
            match removed {
                Ok(()) => info!("volume {id} ({name}), deleted a week ago, is removed"),
                Err(cause) => warn!("cannot remove volume {id} ({name}), deleted a week ago: {cause}"),
            }
        }
    }

    async fn sweep_promises(self: Arc<Self>) {
        loop {
            tokio::select! {
                biased;
                () = self.shared.ending.cancelled() => return,
                () = self.shared.runtime.sleep(SWEEP_INTERVAL) => {}
            }
            self.promises.sweep().await;
        }
    }

    async fn orphans_yield(self: Arc<Self>) {
        // Every client that lives has had as long to come back to this process as it may be silent: neither the calendar
        // nor how long there was no server counts.
        let mut pause = ORPHANS_YIELD_AFTER;
        loop {
            tokio::select! {
                biased;
                () = self.shared.ending.cancelled() => return,
                () = self.shared.runtime.sleep(pause) => {}
            }
            pause = SCARCITY_INTERVAL;
            let shared = self.shared.clone();
            let is_heard = move |client| shared.sessions.is_heard_within(client, ORPHANS_YIELD_AFTER);
            for volume in self.volumes.opened() {
                // Clients that were not here since it came have had no reason to.
                if self.volumes.has_arrived_within(volume.id(), ORPHANS_YIELD_AFTER) {
                    continue;
                }
                if !volume.orphans_yield(is_heard.clone()).await {
                    pause = FAILED_INTERVAL;
                }
            }
        }
    }

    async fn expire_clients(self: Arc<Self>) {
        loop {
            tokio::select! {
                biased;
                () = self.shared.ending.cancelled() => return,
                () = self.shared.runtime.sleep(EXPIRY_INTERVAL) => {}
            }
            for volume in self.volumes.opened() {
                self.expire_clients_of(&volume).await;
            }
        }
    }

    async fn expire_clients_of(&self, volume: &Arc<Volume>) {
        if self.volumes.has_arrived_within(volume.id(), CLIENT_FORGOTTEN_AFTER) {
            return;
        }
        let (heard_of, connected) = (self.shared.sessions.heard_of(), self.shared.sessions.connected());
        if let Err(code) = volume.expire_clients(&connected, &heard_of).await {
            warn!(volume = volume.name(), "cannot forget clients that are long gone: {code}; trying again later");
        }
    }
}

/// Serves one connection until its end. `transport` is a
/// [`ServerTransport`](larder_protocol::transport::ServerTransport) over any byte stream, or one wrapped for a test.
pub async fn serve_connection<T>(server: Arc<Server>, transport: T, peer: Peer)
where
    T: Stream<Item = io::Result<ClientMessage<LarderRequest>>> + Sink<Response<LarderResponse>, Error = io::Error>,
{
    let shared = server.shared.clone();
    connection::run(server, shared, transport, peer).await;
}

#[cfg(test)]
mod promise_tests;
#[cfg(test)]
mod scarcity_tests;
#[cfg(test)]
mod tests;
