//! Which server has which volume: the cell's directory.
//!
//! Any server answers where a volume is; clients never ask the service itself. What it says is kept here and followed
//! ([`Cell::follow`]), so that it can be told while the service does not answer.
//!
//! - **L1** A volume's record names the one server that serves it. It changes by compare-and-swap alone.
//! - **L2** A volume's number is never given out again: the next one is raised before a volume is made.
//! - **L3** A name belongs to one volume that is not deleted, in the same transaction as the volume's record.
//! - **L4** What is kept may be old, and never goes back. Whoever acts on it must be told by the server that it names that it was (`Moved`), and
//!   is then answered from the service itself.

pub mod embedded;
pub mod etcd;
pub mod registry;
pub mod remote;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use larder_protocol::cell::{ServerId, ServerRecord, VolumeRecord, VolumeState};
use larder_protocol::ids::{MAX_VOLUME, VolumeId};
use larder_protocol::limits::MAX_VOLUME_NAME;
use larder_protocol::runtime::SharedRuntime;
use parking_lot::RwLock;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::registry::{Change, Entry, Expected, Registry, RegistryError, Transaction};
use crate::core::moving::NotNow;
use crate::failpoint::Failpoint;

/// How often a server says that it is there, of which it may miss two.
const ANNOUNCE: Duration = Duration::from_secs(5);
/// How long a server counts as there that has said so.
const PRESENT: Duration = Duration::from_secs(16);
/// The pause before the service is asked again that did not answer.
const RETRY: Duration = Duration::from_secs(1);
/// How long changes are waited for that come with one.
const TOGETHER: Duration = Duration::from_millis(100);
/// How often a transaction is tried that others come before.
const TRIES: usize = 64;

const SERVERS: &str = "servers/";
const VOLUMES: &str = "volumes/";
const NAMES: &str = "names/";
const NEXT_VOLUME: &str = "next-volume";

/// Why the directory does not say, or does not change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LocationError {
    /// The service.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// What it holds.
    #[error("the record {key} of the location service, {service}, is damaged: {cause}")]
    Damaged {
        /// Its key.
        key: String,
        /// Which service.
        service: String,
        /// Why it cannot be read.
        cause: String,
    },
    /// There is no such volume.
    #[error("there is no volume {0} in this cell")]
    NoSuchVolume(String),
    /// The name is taken.
    #[error("there is a volume {0} already")]
    Exists(String),
    /// No volume can be called that.
    #[error(
        "`{0}` is no name for a volume: it has 1 to {MAX_VOLUME_NAME} letters, digits, dots, hyphens and underscores, and not \
         digits alone"
    )]
    BadName(String),
    /// All numbers are used up.
    #[error("all {MAX_VOLUME} volume numbers of this cell are used up")]
    Exhausted,
    /// Others changed the same records again and again.
    #[error("others change the cell's directory at the same time; try again")]
    Contended,
    /// What was asked for does not go with what the volume is now.
    #[error("{0}")]
    NotNow(String),
    /// A step of a move does not go with what the volume is now.
    #[error("{0}")]
    Moving(NotNow),
}

/// Where a cell's directory is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// In the server's own store.
    Own,
    /// In that of the server at this `HOST:PORT`.
    Server(String),
    /// In etcd.
    Etcd {
        /// At these, each a `HOST:PORT`.
        endpoints: Vec<String>,
        /// What the cell's keys begin with.
        prefix: String,
    },
}

/// What the keys of a cell in etcd begin with, if nothing else is said.
const ETCD_PREFIX: &str = "larder";

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Location::Own => f.write_str("own"),
            Location::Server(address) => write!(f, "larder://{address}"),
            Location::Etcd { endpoints, prefix } if prefix == ETCD_PREFIX => {
                write!(f, "etcd://{}", endpoints.join(","))
            }
            Location::Etcd { endpoints, prefix } => write!(f, "etcd://{}/{prefix}", endpoints.join(",")),
        }
    }
}

impl FromStr for Location {
    type Err = String;

    fn from_str(text: &str) -> Result<Location, String> {
        if text == "own" {
            return Ok(Location::Own);
        }
        let wrong = || {
            format!(
                "`{text}` is no place of a directory; write larder://HOST:PORT, etcd://HOST:PORT[,HOST:PORT...][/CELL], or own"
            )
        };
        let address = |text: &str| match text.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(text.to_owned()),
            _ => Err(wrong()),
        };
        if let Some(server) = text.strip_prefix("larder://") {
            return Ok(Location::Server(address(server)?));
        }
        let etcd = text.strip_prefix("etcd://").ok_or_else(wrong)?;
        let (endpoints, prefix) = etcd.split_once('/').unwrap_or((etcd, ETCD_PREFIX));
        let is_plain = prefix.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        if prefix.is_empty() || !is_plain {
            return Err(wrong());
        }
        let endpoints = endpoints.split(',').map(address).collect::<Result<Vec<_>, _>>()?;
        Ok(Location::Etcd { endpoints, prefix: prefix.to_owned() })
    }
}

/// The cell's directory.
pub struct Cell {
    registry: Arc<dyn Registry>,
    runtime: SharedRuntime,
    known: RwLock<Known>,
    /// Told when the service answers again, which may have forgotten who is there.
    back: Notify,
}

/// What was known last. Of each volume what is newest, in whichever order answers come.
#[derive(Default)]
struct Known {
    servers: BTreeMap<ServerId, ServerRecord>,
    volumes: BTreeMap<VolumeId, Versioned<VolumeRecord>>,
    names: BTreeMap<String, VolumeId>,
    /// Volumes whose records are gone, and the revision at which they went: an answer that comes late must not bring them back.
    gone: BTreeMap<VolumeId, u64>,
}

/// A record with the version that a change of it expects.
struct Versioned<T> {
    record: T,
    version: u64,
}

impl Known {
    fn learn(&mut self, volume: Versioned<VolumeRecord>) {
        let id = volume.record.id;
        let last = self.volumes.get(&id).map(|known| known.version).max(self.gone.get(&id).copied());
        if last.is_some_and(|last| last >= volume.version) {
            return;
        }
        self.drop_name(id);
        if !matches!(volume.record.state, VolumeState::Deleted { .. }) {
            self.names.insert(volume.record.name.clone(), id);
        }
        self.volumes.insert(id, volume);
    }

    fn forget(&mut self, id: VolumeId, revision: u64) {
        if self.volumes.get(&id).is_none_or(|known| known.version < revision) {
            self.drop_name(id);
            self.volumes.remove(&id);
            self.gone.insert(id, revision);
        }
    }

    fn drop_name(&mut self, id: VolumeId) {
        if let Some(Versioned { record, .. }) = self.volumes.get(&id)
            && self.names.get(&record.name) == Some(&id)
        {
            self.names.remove(&record.name);
        }
    }

    /// These were all volumes at a revision.
    fn learn_all(&mut self, volumes: Vec<Versioned<VolumeRecord>>, revision: u64) {
        let there: BTreeSet<VolumeId> = volumes.iter().map(|volume| volume.record.id).collect();
        let missing: Vec<VolumeId> = self.volumes.keys().filter(|id| !there.contains(id)).copied().collect();
        for id in missing {
            self.forget(id, revision);
        }
        for volume in volumes {
            self.learn(volume);
        }
    }
}

fn server_key(id: ServerId) -> String {
    format!("{SERVERS}{id}")
}

fn volume_key(id: VolumeId) -> String {
    // So that keys are in the order of numbers.
    format!("{VOLUMES}{:08}", id.0)
}

fn name_key(name: &str) -> String {
    format!("{NAMES}{name}")
}

fn text<T: Serialize>(record: &T) -> String {
    // Records have no maps with keys that are no strings, which is all that JSON cannot say.
    serde_json::to_string(record).unwrap_or_default()
}

/// Whether a volume can be called that. Numbers alone are how volumes are named by their number.
pub fn is_volume_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let is_number = name.bytes().all(|byte| byte.is_ascii_digit());
    (1..=MAX_VOLUME_NAME).contains(&name.len()) && name.bytes().all(fits) && !is_number && !name.starts_with(['.', '-'])
}

impl Cell {
    /// A directory that is kept there.
    pub fn new(registry: Arc<dyn Registry>, runtime: SharedRuntime) -> Arc<Cell> {
        Arc::new(Cell { registry, runtime, known: RwLock::default(), back: Notify::new() })
    }

    /// What it is kept in.
    pub fn registry(&self) -> &Arc<dyn Registry> {
        &self.registry
    }

    fn parse<T: DeserializeOwned>(&self, entry: &Entry) -> Result<Versioned<T>, LocationError> {
        let damaged = |error: serde_json::Error| LocationError::Damaged {
            key: entry.key.clone(),
            service: self.registry.name(),
            cause: error.to_string(),
        };
        Ok(Versioned { record: serde_json::from_str(&entry.value).map_err(damaged)?, version: entry.version })
    }

    async fn get<T: DeserializeOwned>(&self, key: String) -> Result<Option<Versioned<T>>, LocationError> {
        let entry = self.registry.clone().get(key).await?;
        entry.map(|entry| self.parse(&entry)).transpose()
    }

    async fn transact(&self, expected: Vec<(String, u64)>, changes: Vec<Change>) -> Result<Option<u64>, LocationError> {
        let expected = expected.into_iter().map(|(key, version)| Expected { key, version }).collect();
        Ok(self.registry.clone().transact(Transaction { expected, changes }).await?)
    }

    /// Learns all that the service holds now.
    ///
    /// # Errors
    /// It does not answer, or a record cannot be read.
    pub async fn refresh(&self) -> Result<u64, LocationError> {
        let listing = self.registry.clone().list(String::new()).await?;
        let (mut servers, mut volumes) = (BTreeMap::new(), Vec::new());
        for entry in &listing.entries {
            if entry.key.starts_with(SERVERS) {
                let server = self.parse::<ServerRecord>(entry)?.record;
                servers.insert(server.id, server);
            } else if entry.key.starts_with(VOLUMES) {
                volumes.push(self.parse::<VolumeRecord>(entry)?);
            }
        }
        let mut known = self.known.write();
        known.servers = servers;
        known.learn_all(volumes, listing.revision);
        Ok(listing.revision)
    }

    /// Keeps what is known up to date, until `ending`. What was known stays while the service does not answer.
    pub async fn follow(self: Arc<Self>, ending: CancellationToken) {
        let mut is_lost = false;
        loop {
            let next = async {
                let revision = self.refresh().await?;
                if std::mem::take(&mut is_lost) {
                    info!("the location service, {}, answers again", self.registry.name());
                    self.back.notify_one();
                }
                self.registry.clone().changed(String::new(), revision).await?;
                // Changes come in numbers, and all records are asked for.
                self.runtime.sleep(TOGETHER).await;
                Ok::<_, LocationError>(())
            };
            let next = tokio::select! {
                biased;
                () = ending.cancelled() => return,
                next = next => next,
            };
            let Err(error) = next else { continue };
            if !std::mem::replace(&mut is_lost, true) {
                warn!("{error}; going on with what is known of servers and volumes");
            }
            tokio::select! {
                biased;
                () = ending.cancelled() => return,
                () = self.runtime.sleep(RETRY) => {}
            }
        }
    }

    /// Says that a server is there, again and again until `ending`.
    pub async fn announce(self: Arc<Self>, server: ServerRecord, ending: CancellationToken) {
        loop {
            // Whether the service answers is logged by who follows it.
            if let Err(reason @ LocationError::NotNow(_)) = self.register(&server).await {
                error!("{reason}; stop one of the two at once");
            }
            tokio::select! {
                biased;
                () = ending.cancelled() => break,
                () = self.back.notified() => {}
                () = self.runtime.sleep(ANNOUNCE) => {}
            }
        }
        let _ = self.transact(Vec::new(), vec![Change::remove(server_key(server.id))]).await;
    }

    /// Says once that a server is there.
    ///
    /// # Errors
    /// The service does not answer; another process is the same server.
    pub async fn register(&self, server: &ServerRecord) -> Result<(), LocationError> {
        let key = server_key(server.id);
        let known = self.get::<ServerRecord>(key.clone()).await?;
        if let Some(Versioned { record, .. }) = &known
            && record.epoch != server.epoch
            && record.address != server.address
        {
            return Err(LocationError::NotNow(format!(
                "a server with this one's identity ({}) is at {}; a store can be served by one server only",
                server.id, record.address
            )));
        }
        let change = Change { ttl: Some(PRESENT), ..Change::put(key.clone(), text(server)) };
        let version = known.map_or(0, |known| known.version);
        match self.transact(vec![(key, version)], vec![change]).await? {
            Some(_) => Ok(()),
            None => Err(LocationError::Contended),
        }
    }

    /// A server, as it announced itself last.
    pub fn server(&self, id: ServerId) -> Option<ServerRecord> {
        self.known.read().servers.get(&id).cloned()
    }

    /// All servers that are there.
    pub fn servers(&self) -> Vec<ServerRecord> {
        self.known.read().servers.values().cloned().collect()
    }

    /// A volume, as it is known (L4).
    pub fn known(&self, id: VolumeId) -> Option<VolumeRecord> {
        self.known.read().volumes.get(&id).map(|volume| volume.record.clone())
    }

    /// All volumes, as they are known (L4).
    pub fn all_known(&self) -> Vec<VolumeRecord> {
        self.known.read().volumes.values().map(|volume| volume.record.clone()).collect()
    }

    /// The volume of this name, as it is known (L4).
    pub fn known_as(&self, name: &str) -> Option<VolumeRecord> {
        let known = self.known.read();
        known.volumes.get(known.names.get(name)?).map(|volume| volume.record.clone())
    }

    /// A volume, as the service has it now.
    ///
    /// # Errors
    /// There is none, or the service does not answer.
    pub async fn volume(&self, id: VolumeId) -> Result<VolumeRecord, LocationError> {
        match self.get::<VolumeRecord>(volume_key(id)).await? {
            Some(found) => {
                let record = found.record.clone();
                self.known.write().learn(found);
                Ok(record)
            }
            None => Err(LocationError::NoSuchVolume(id.to_string())),
        }
    }

    /// The volume of this name, as the service has it now.
    ///
    /// # Errors
    /// There is none, or the service does not answer.
    pub async fn volume_named(&self, name: &str) -> Result<VolumeRecord, LocationError> {
        match self.get::<VolumeId>(name_key(name)).await? {
            Some(id) => self.volume(id.record).await,
            None => Err(LocationError::NoSuchVolume(name.to_owned())),
        }
    }

    /// All volumes, as the service has them now, in the order of their numbers.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn volumes(&self) -> Result<Vec<VolumeRecord>, LocationError> {
        self.refresh().await?;
        Ok(self.known.read().volumes.values().map(|volume| volume.record.clone()).collect())
    }

    fn learn(&self, record: &VolumeRecord, version: u64) {
        self.known.write().learn(Versioned { record: record.clone(), version });
    }

    /// Takes the next number for a volume (L2).
    ///
    /// # Errors
    /// There is none left, or the service does not answer.
    pub async fn next_id(&self) -> Result<VolumeId, LocationError> {
        self.raise_next(|next| if next > MAX_VOLUME { Err(LocationError::Exhausted) } else { Ok(next + 1) })
            .await
            .map(VolumeId)
    }

    /// Sees to it that this number is not given out any more.
    ///
    /// # Errors
    /// The service does not answer.
    pub async fn reserve(&self, id: VolumeId) -> Result<(), LocationError> {
        self.raise_next(|next| Ok(next.max(id.0 + 1))).await.map(drop)
    }

    /// Raises the number that a volume would get next (L2), and returns the one from before.
    async fn raise_next(&self, raised: impl Fn(u32) -> Result<u32, LocationError>) -> Result<u32, LocationError> {
        for _ in 0..TRIES {
            let next = self.get::<u32>(NEXT_VOLUME.to_owned()).await?;
            let (before, version) = next.map_or((VolumeId::ROOT.0 + 1, 0), |next| (next.record, next.version));
            let after = raised(before)?;
            if after == before {
                return Ok(before);
            }
            let change = Change::put(NEXT_VOLUME, text(&after));
            if self.transact(vec![(NEXT_VOLUME.to_owned(), version)], vec![change]).await?.is_some() {
                return Ok(before);
            }
        }
        Err(LocationError::Contended)
    }

    /// Enters a volume.
    ///
    /// # Errors
    /// Its number or its name is taken, or it cannot be called that; the service does not answer.
    pub async fn enter(&self, record: VolumeRecord) -> Result<(), LocationError> {
        if !is_volume_name(&record.name) {
            return Err(LocationError::BadName(record.name));
        }
        let (key, name) = (volume_key(record.id), name_key(&record.name));
        let changes = vec![Change::put(key.clone(), text(&record)), Change::put(name.clone(), text(&record.id))];
        let Some(version) = self.transact(vec![(key, 0), (name, 0)], changes).await? else {
            return Err(LocationError::Exists(record.name));
        };
        Failpoint::RecordChanged.pass();
        self.learn(&record, version);
        Ok(())
    }

    /// Changes a volume's record (L1), its name with it (L3).
    ///
    /// # Errors
    /// There is none; what `change` says; its new name is taken, or no name; the service does not answer.
    pub async fn update(
        &self,
        id: VolumeId,
        change: impl Fn(&mut VolumeRecord) -> Result<(), LocationError>,
    ) -> Result<VolumeRecord, LocationError> {
        let key = volume_key(id);
        for _ in 0..TRIES {
            let found = self.get::<VolumeRecord>(key.clone()).await?;
            let Some(Versioned { record: before, version }) = found else {
                return Err(LocationError::NoSuchVolume(id.to_string()));
            };
            let mut after = before.clone();
            change(&mut after)?;
            if after == before {
                return Ok(after);
            }
            let mut expected = vec![(key.clone(), version)];
            let mut changes = vec![Change::put(key.clone(), text(&after))];
            let named = |record: &VolumeRecord| {
                (!matches!(record.state, VolumeState::Deleted { .. })).then(|| record.name.clone())
            };
            let (old, new) = (named(&before), named(&after));
            if old != new {
                if let Some(old) = old {
                    changes.push(Change::remove(name_key(&old)));
                }
                if let Some(new) = new {
                    if !is_volume_name(&new) {
                        return Err(LocationError::BadName(new));
                    }
                    if self.get::<VolumeId>(name_key(&new)).await?.is_some() {
                        return Err(LocationError::Exists(new));
                    }
                    expected.push((name_key(&new), 0));
                    changes.push(Change::put(name_key(&new), text(&id)));
                }
            }
            if let Some(version) = self.transact(expected, changes).await? {
                Failpoint::RecordChanged.pass();
                self.learn(&after, version);
                return Ok(after);
            }
        }
        Err(LocationError::Contended)
    }

    /// Forgets a volume that was deleted.
    ///
    /// # Errors
    /// It is not deleted; the service does not answer.
    pub async fn forget(&self, id: VolumeId) -> Result<(), LocationError> {
        let key = volume_key(id);
        let Some(Versioned { record, version }) = self.get::<VolumeRecord>(key.clone()).await? else { return Ok(()) };
        if !matches!(record.state, VolumeState::Deleted { .. }) {
            return Err(LocationError::NotNow(format!("the volume {} is not deleted", record.name)));
        }
        let removed = self.transact(vec![(key.clone(), version)], vec![Change::remove(key)]).await?;
        self.known.write().forget(id, removed.ok_or(LocationError::Contended)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
