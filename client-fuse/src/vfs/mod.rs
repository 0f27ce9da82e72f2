//! The file system that every mode shares: nodes, handles, credentials, and what each operation does.
//!
//! Works without a mount: the arguments and results are those of the FUSE protocol, not its types. What a mode decides
//! is in its [`CachePolicy`]; the rules cited in comments are those of `mode/nfs.rs`.
//!
//! Every wait ends when the mount is aborted. No lock of `parking_lot` is held across an await.

mod asking;
mod attrs;
mod background;
mod credentials;
mod dirs;
mod error;
mod file_state;
mod files;
mod grafts;
mod handle;
mod known;
mod local;
mod names;
mod node;
mod notifier;
mod opens;
mod promised;
mod reply_gate;
mod sending;
mod space;
mod stats;
mod types;
mod unsure;
mod xattrs;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use larder_protocol::attr::Credential;
use larder_protocol::error::ErrorCode;
use larder_protocol::limits::MAX_PAYLOAD;
use larder_protocol::runtime::SharedRuntime;
use larder_protocol::service::volume::VolumeReply;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

pub use error::{AttachError, Error};
pub use local::admin::CacheStats;
pub use local::copy::{Backing, LocalCopy};
pub use node::{Node, ROOT};
pub use reply_gate::{ReplyGate, ReplyPass};
pub use stats::ClientStats;
pub use types::{
    Attributes, CacheOptions, DirItem, DirName, Entry, Fsync, Kernel, LookupCache, LookupResult, Mode, MountOptions,
    Opened, WriteOrigin,
};

use crate::core::attr_cache::Stamp;
use crate::mode::CachePolicy;
use crate::mode::afs::Afs;
use crate::mode::afs::disk::{self, DiskCache};
use crate::rpc::channel::Shared;
use crate::rpc::{Client, ConnectError, Connector, Patience, Servers};
use credentials::Credentials;
use handle::HandleTable;
use node::NodeTable;
use notifier::Notifier;
use sending::Unsent;
use stats::Counters;

/// How long [`Vfs::shutdown`] waits for data to reach the server.
const SHUTDOWN_FLUSH: Duration = Duration::from_secs(30);

/// A mounted volume.
pub struct Vfs {
    weak: Weak<Vfs>,
    runtime: SharedRuntime,
    servers: Arc<Servers>,
    /// The end of the mount.
    aborted: CancellationToken,
    options: MountOptions,
    policy: Box<dyn CachePolicy>,
    /// With AFS mode alone.
    afs: Option<Arc<Afs>>,
    space: space::SpaceCache,
    max_read: u32,
    max_write: u32,
    ticks: AtomicU64,
    nodes: NodeTable,
    handles: HandleTable,
    credentials: Credentials,
    counters: Counters,
    unsent: Unsent,
    removals: names::Removals,
    unsure: unsure::UnsureDirs,
    notifier: Notifier,
    wake: Arc<Notify>,
}

impl Vfs {
    /// Connects to a server and attaches a volume. Tries once: a mount that cannot begin says why.
    ///
    /// # Errors
    /// What stands in the way, for the user to read.
    pub async fn attach(
        runtime: SharedRuntime,
        connector: Arc<dyn Connector>,
        volume: &str,
        options: MountOptions,
    ) -> Result<Arc<Vfs>, AttachError> {
        let server = connector.server();
        let patience = if options.soft {
            Patience::Soft(options.timeo.saturating_mul(options.retrans.saturating_add(1)))
        } else {
            Patience::Hard
        };
        let disk = match (options.mode, &options.cache) {
            (Mode::Afs, Some(cache)) => Some(open_cache(&runtime, cache, &format!("{server}/{volume}"))?),
            (Mode::Afs, None) => return Err(AttachError::NoCache),
            _ => None,
        };
        let shared = match &disk {
            Some(disk) => {
                let (id, incarnation) = disk.identity();
                Shared::known_as(id, incarnation, runtime.clone(), connector, options.timeo).prompt(!options.strict)
            }
            None => Shared::new(runtime.clone(), connector, options.timeo),
        };
        let client = Client::new(shared, patience);
        let attached = Vfs::attach_with(&runtime, &client, &server, volume, disk, options).await;
        if attached.is_err() {
            client.shared().aborted.cancel();
        }
        attached
    }

    async fn attach_with(
        runtime: &SharedRuntime,
        client: &Arc<Client>,
        server: &str,
        volume: &str,
        disk: Option<DiskCache>,
        options: MountOptions,
    ) -> Result<Arc<Vfs>, AttachError> {
        let welcome = client.connect().await.map_err(|error| match error {
            ConnectError::Network(cause) => AttachError::Unreachable { server: server.to_owned(), cause },
            ConnectError::Refused(refusal) => {
                AttachError::Refused { server: server.to_owned(), cause: refusal.to_string() }
            }
        })?;
        let sent = Stamp { at: runtime.boottime(), tick: 1 };
        let servers = Servers::new(client.clone());
        let failed =
            |cause: String| AttachError::Failed { server: server.to_owned(), volume: volume.to_owned(), cause };
        let root_cred = Credential::root();
        // The mount's own patience may be endless, but whoever types `mount` is waiting.
        let attached = tokio::select! {
            biased;
            reply = servers.attach(&root_cred, volume) => reply.map_err(|failure| match Error::from(failure) {
                Error::Refused(ErrorCode::NoSuchVolume | ErrorCode::NotFound) => {
                    AttachError::NoSuchVolume { server: server.to_owned(), volume: volume.to_owned() }
                }
                error => failed(error.to_string()),
            })?,
            () = runtime.sleep(options.timeo) => return Err(failed("no answer in time".to_owned())),
        };
        let (VolumeReply::Attached { root, .. }, server_of_root) = attached else {
            return Err(failed(unexpected().to_string()));
        };
        let now = Stamp { at: runtime.boottime(), tick: 2 };
        let policy = crate::mode::policy(&options);
        let limits = policy.attr_limits(root.kind);
        let keep_open = options.cache.as_ref().map_or(CacheOptions::KEEP_OPEN, |cache| cache.keep_open);
        let afs = disk.map(|disk| Arc::new(Afs::new(disk, keep_open, runtime.random())));
        let vfs = Arc::new_cyclic(|weak| Vfs {
            weak: weak.clone(),
            runtime: runtime.clone(),
            aborted: servers.aborted(),
            servers,
            max_read: options.rsize.min(welcome.max_read).clamp(1, MAX_PAYLOAD as u32),
            max_write: options.wsize.min(welcome.max_write).clamp(1, MAX_PAYLOAD as u32),
            options,
            policy,
            afs: afs.clone(),
            space: space::SpaceCache::default(),
            ticks: AtomicU64::new(2),
            nodes: NodeTable::new(root, sent, now, limits),
            handles: HandleTable::default(),
            credentials: Credentials::default(),
            counters: Counters::default(),
            unsent: Unsent::default(),
            removals: names::Removals::default(),
            unsure: unsure::UnsureDirs::default(),
            notifier: Notifier::default(),
            wake: Arc::new(Notify::new()),
        });
        background::start(&vfs);
        if let Some(afs) = &afs {
            // Whoever mounts is waiting; without a lease everything works, and nothing is cached.
            vfs.lease_within(afs, &server_of_root, vfs.options.timeo).await;
            promised::start(&vfs, afs);
            vfs.begin_recovery(afs).await;
        }
        Ok(vfs)
    }

    /// How the volume is mounted.
    pub fn options(&self) -> &MountOptions {
        &self.options
    }

    /// Bytes of the largest write request.
    pub fn max_write(&self) -> u32 {
        self.max_write
    }

    /// Bytes of the largest read request.
    pub fn max_read(&self) -> u32 {
        self.max_read
    }

    /// Whose request it is that the kernel brings from this thread, with its supplementary groups.
    pub fn credential(&self, uid: u32, gid: u32, pid: u32) -> Credential {
        self.credentials.of(uid, gid, pid, self.runtime.boottime())
    }

    /// Whom to tell that cached pages or attributes are no longer good. Starts a thread for it.
    ///
    /// # Errors
    /// That of the system, if there is no thread to be had.
    pub fn set_kernel(&self, kernel: Arc<dyn Kernel>) -> std::io::Result<()> {
        self.notifier.start(kernel)?;
        if let Some(afs) = &self.afs {
            let expire = self.notifier.expire_names();
            afs.names_expire.store(expire, Ordering::Relaxed);
            if !expire {
                tracing::info!("this kernel cannot expire all names at once; it asks for each name each time instead");
            }
        }
        Ok(())
    }

    /// Sends and commits all data that programs have written. Errors are reported where they belong: at the next
    /// flush or fsync of each file.
    pub async fn sync_all(&self) {
        self.store_all().await;
        for (node, file) in self.unsent.all() {
            // Only the end of the mount ends the wait early, and then nobody is left to be told.
            let _ = self.flush_data(&node, &file, true).await;
        }
    }

    /// Ends the mount: sends what is unsent, for a bounded time, says goodbye, and ends every wait.
    pub async fn shutdown(&self) {
        tokio::select! {
            biased;
            () = self.sync_all() => {}
            () = self.runtime.sleep(SHUTDOWN_FLUSH) => {}
        }
        let left = self.unsent.bytes();
        if left > 0 {
            tracing::error!("the mount ends with {left} bytes that did not reach the server");
        }
        self.servers.goodbye().await;
        self.abort();
        let Some(afs) = &self.afs else { return };
        if let Err(error) = afs.disk.sync_all_dirty() {
            tracing::warn!("the cache cannot be synced: {error}; a power cut may take what is not stored yet");
        }
        if let Err(error) = afs.disk.flush() {
            tracing::warn!("the index of the cache cannot be written: {error}; some of it will be fetched again");
        }
    }

    /// The disk cache, in AFS mode.
    pub fn disk_cache(&self) -> Option<&Arc<DiskCache>> {
        self.afs.as_ref().map(|afs| &afs.disk)
    }

    /// Ends every wait at once, with [`Error::Aborted`]. What is unsent is lost.
    pub fn abort(&self) {
        self.aborted.cancel();
        self.notifier.stop();
    }

    /// Now, as the next event.
    fn stamp(&self) -> Stamp {
        Stamp { at: self.runtime.boottime(), tick: self.ticks.fetch_add(1, Ordering::Relaxed) + 1 }
    }

    /// Waits, but not past the end of the mount.
    async fn until_abort<T>(&self, what: impl Future<Output = T>) -> Result<T, Error> {
        tokio::select! {
            biased;
            result = what => Ok(result),
            () = self.aborted.cancelled() => Err(Error::Aborted),
        }
    }

    /// # Errors
    /// `ReadOnly` on a mount with `ro`.
    fn may_change(&self) -> Result<(), Error> {
        if self.options.ro { Err(ErrorCode::ReadOnly.into()) } else { Ok(()) }
    }

    fn node(&self, number: u64) -> Result<Arc<node::Node>, Error> {
        self.nodes.get(number).ok_or(Error::Refused(ErrorCode::Stale))
    }
}

impl Drop for Vfs {
    fn drop(&mut self) {
        self.abort();
        // The background task sleeps on it.
        self.wake.notify_one();
    }
}

fn open_cache(runtime: &SharedRuntime, cache: &CacheOptions, volume: &str) -> Result<DiskCache, AttachError> {
    let now = runtime.wall();
    let nanos = now.secs.saturating_mul(1_000_000_000).saturating_add(i64::from(now.nanos));
    let options = disk::Options {
        dir: cache.dir.clone(),
        limit: cache.size,
        volume: volume.to_owned(),
        new_client: (u128::from(runtime.random()) << 64) | u128::from(runtime.random()),
        wall_nanos: u64::try_from(nanos).unwrap_or(0),
    };
    DiskCache::open(options).map_err(|error| AttachError::Cache(error.to_string()))
}

/// The answer to a request was not of the kind that belongs to it.
fn unexpected() -> Error {
    tracing::error!("the server answered something else than was asked; it may be of another version");
    Error::Refused(ErrorCode::Io)
}
