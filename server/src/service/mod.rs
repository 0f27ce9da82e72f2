//! The server: its volumes, its connections, and what it answers.

pub mod check;
pub mod credential;
pub mod handler;
pub mod method;
pub mod volumes;

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures::{Sink, Stream};
use larder_protocol::error::ErrorCode;
use larder_protocol::handshake::LeaseTerms;
use larder_protocol::ids::{Epoch, VolumeId};
use larder_protocol::limits::ORPHANS_YIELD_AFTER;
use larder_protocol::runtime::{BootTime, SharedRuntime};
use larder_protocol::service::{LarderRequest, LarderResponse};
use larder_protocol::stats::ServerStats;
use tarpc::{ClientMessage, Response};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use self::credential::RootSquash;
use self::volumes::Volumes;
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

/// How often callbacks of leases that have ended are swept up.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// How a server behaves.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settings {
    /// What becomes of the clients' superusers.
    pub root_squash: RootSquash,
    /// How long promises last.
    pub lease: LeaseTerms,
}

/// What a server serves, and how.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// The store's directory.
    pub store: PathBuf,
    /// What an acknowledgement promises.
    pub durability: Durability,
    /// The rest.
    pub settings: Settings,
}

/// A server without its sockets.
pub struct Server {
    epoch: Epoch,
    /// The processes that have served the store since the machine was started; all there ever were if it is not known.
    lives: Option<BTreeSet<Epoch>>,
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
        let holders = Arc::new(HolderFile::in_store(store.dir()));
        let promises = PromiseKeeper::new(epoch, config.settings.lease, holders, runtime.clone())
            .context("cannot learn which clients may hold leases")?;
        let volumes = Volumes::stored(store, config.durability, epoch, promises.clone(), runtime.clone())?;
        let server = Server::build(epoch, Some(lives), volumes, promises, config.settings, runtime);
        if let Err(code) = server.volumes.get(VolumeId::ROOT).await {
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
        Ok(Server::build(epoch, None, volumes, promises, settings, runtime))
    }

    fn build(
        epoch: Epoch,
        lives: Option<BTreeSet<Epoch>>,
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
        let server = Arc::new(Server {
            epoch,
            lives,
            volumes: Arc::new(volumes),
            promises,
            settings,
            counters: Counters::default(),
            shared,
            tasks: TaskTracker::new(),
            started: runtime.boottime(),
        });
        let expiring = server.tasks.track_future(server.clone().expire_clients());
        runtime.spawn(Box::pin(expiring));
        let yielding = server.tasks.track_future(server.clone().orphans_yield());
        runtime.spawn(Box::pin(yielding));
        let sweeping = server.tasks.track_future(server.clone().sweep_promises());
        runtime.spawn(Box::pin(sweeping));
        server
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
        let mut stats = ServerStats {
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
        for volume in self.volumes.opened() {
            stats.replayed += volume.replayed();
            stats.batches += volume.batches();
            stats.mutations += volume.mutations();
        }
        stats
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
            let (heard_of, connected) = (self.shared.sessions.heard_of(), self.shared.sessions.connected());
            for volume in self.volumes.opened() {
                if let Err(code) = volume.expire_clients(&connected, &heard_of).await {
                    warn!(
                        volume = volume.name(),
                        "cannot forget clients that are long gone: {code}; trying in an hour"
                    );
                }
            }
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
