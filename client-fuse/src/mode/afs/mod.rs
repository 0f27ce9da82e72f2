//! `afs` mode: whole files are cached on the local disk and kept fresh by callbacks under leases, as AFS does.
//!
//! Promises:
//! - Once a change has returned to whoever made it, no new lookup, stat or open anywhere shows what was before
//!   (strict coherence); with `--coherence prompt`, none does once a lease's term is over.
//! - A file keeps the version that it had at open until it is closed; versions are never mixed.
//! - `close` after writing returns when the whole file is stored, or with the error. The last to close wins.
//! - What is cached and has not changed costs the server nothing but the renewal of the lease.
//! - What was written survives the end of this process: it is stored, or kept as a conflict.
//!
//! State: with each server the lease and which replies were overtaken ([`crate::core::promises`]); for each object its attributes and
//! whether there is a callback on it; for directories their names ([`crate::core::dir_cache`]); for open files the copy
//! that they stand for; the disk cache ([`disk`]).
//!
//! Rules (those of the server are P1 to P7 in `server/src/core/promises.rs`):
//! 1. A cached object is used without asking only while its callback is unbroken and the lease counts: the term less
//!    the margin, from before the request that granted it, on `CLOCK_BOOTTIME`. Validity given to the kernel never
//!    exceeds what remains.
//! 2. `open` of a file without a valid copy fetches the whole file at one version; reads and writes are local. Of a file
//!    of more than 8 MiB it waits only for the beginning: as long as nothing of it was read, a newer version that
//!    another client stores meanwhile may take its place.
//! 3. A node stands for one version while it is open. A newer version that is opened meanwhile gets a node, and so an
//!    inode number, of its own until the older one is closed.
//! 4. `close` after writing stores the whole file. A file is recorded as dirty before the first write to it returns.
//!    A flush stores, or joins a store that is running; the last close of those who write stores what came later, and
//!    who opens the file for writing waits for that. `fsync` stores too, or with `fsync=local` makes the copy durable
//!    here. Truncating to nothing fetches nothing.
//! 5. Changes break the callbacks of others before they are applied: that is the server's part.
//! 6. A reply promises nothing about an object of which a break came in since the request was sent. A reply to the
//!    kernel that is on its way when a break comes in is written before the kernel is told of the break.
//! 7. A lapsed lease revives nothing: all promises under it are void, and what is known is rechecked in bulk.
//! 8. A server process with another epoch is told so only when everything promised by the one before is void here, in
//!    the kernel too.
//! 9. A disk cache is used again after a restart: its copies by their `change`. What was left dirty is stored if the
//!    server's version is the one that it was based on, else kept as a conflict; as is what was never synced here if the
//!    machine was started anew since, for then the copy may lack anything, also of what it was based on.
//! 10. A callback that is broken to make room voids nothing but the promise: what is known is asked about again.
//! 11. The disk cache has a size, evicts by least recent use, and never what is dirty, open or pinned.
//! 12. For its own changes a client keeps its callbacks: if a reply's *before* is what it has, it patches its copy.
//!     While a change is on its way the objects concerned are not used.
//! 13. A fetch that meets another version starts again twice, then reads a copy that the server makes.
//!
//! **Telling the kernel.** Breaks are applied in this order: note them (6); void the promises; wait for replies on
//! their way; expire the attributes of the objects, and all names if a directory or an open file is among them; then
//! acknowledge. None of these waits for a lock that a program may hold while it waits for the server. Names are
//! expired all at once (`FUSE_NOTIFY_INC_EPOCH`, Linux 6.16); with an older kernel names are never given for any time.

pub mod disk;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use larder_protocol::attr::{Attr, FileType};
use larder_protocol::handshake::LeaseTerms;
use larder_protocol::ids::Fid;
use larder_protocol::runtime::BootTime;
use larder_protocol::service::callback::ObjectId;
use lru::LruCache;
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use super::{CachePolicy, OpenPlan, Writes};
use crate::core::attr_cache::{AttrCache, Limits, Miss};
use crate::core::dir_cache::DirCache;
use crate::core::promises::{Promise, Promises};
use crate::rpc::Client;
use crate::vfs::{LocalCopy, Node, ReplyGate};
use disk::DiskCache;

/// Objects whose state is remembered though the kernel does not know them.
const MAX_STATUSES: NonZeroUsize = NonZeroUsize::new(200_000).unwrap();
/// Age alone makes nothing invalid.
const NEVER: Duration = Duration::from_secs(40 * 24 * 3600);

/// What is known of an object that the kernel does not know.
pub struct Status {
    /// Its attributes.
    pub attr: Attr,
    /// The callback on it.
    pub promise: Promise,
    /// Its names.
    pub dir: Option<Box<DirCache>>,
    /// A symbolic link's target.
    pub target: Option<Bytes>,
}

/// A copy with changes that are not stored, and the node that it is of.
pub type Unstored = (Arc<Node>, Arc<LocalCopy>);

/// What there is between this client and one server.
pub struct Lease {
    /// The server.
    pub server: Arc<Client>,
    /// The lease, and what counts under it.
    pub promises: Mutex<Promises>,
    /// Told when it is to be renewed at once.
    pub lost: Notify,
    /// Told when there is one.
    pub granted: Notify,
}

/// The state of an `afs` mount beside its nodes.
pub struct Afs {
    /// What there is with each server, by its number.
    leases: RwLock<BTreeMap<u32, Arc<Lease>>>,
    /// Objects that the kernel does not know, by number.
    ///
    /// Held while what is known of an object moves between here and a node, and while it is given up in both: so a break
    /// finds it in one place or the other, and never on the way. Locked before nodes and promises.
    pub statuses: Mutex<LruCache<u64, Status>>,
    /// The disk cache.
    pub disk: Arc<DiskCache>,
    /// Replies to the kernel.
    pub replies: Arc<ReplyGate>,
    /// Whether the kernel can expire names; if not, it gets none for any time.
    pub names_expire: AtomicBool,
    /// When the last name expires by itself that the kernel was given for some time.
    pub names_until: Mutex<BootTime>,
    /// Told when pinned files may have changed.
    pub pins_touched: Notify,
    /// Held while breaks are applied, and by whoever else tells the kernel to forget: one at a time may wait for the
    /// replies on their way.
    pub applying: tokio::sync::Mutex<()>,
    /// Complete copies that were open a short while ago.
    pub recent: Mutex<LruCache<Fid, Arc<LocalCopy>>>,
    /// Copies that were changed here and are not stored, by their numbers in the cache. What the kernel writes by its own
    /// way is found when it is closed.
    pub unstored: Mutex<BTreeMap<u64, Unstored>>,
    /// Counts what is staged.
    pub last_stage: AtomicU64,
    /// Whole files fetched.
    pub fetches: AtomicU64,
    /// Whole files stored.
    pub stores: AtomicU64,
    /// Opens that the kernel serves itself.
    pub passthrough_opens: AtomicU64,
    /// Opens of files larger than the cache, and of those for which it had no room.
    pub uncached_opens: AtomicU64,
    /// Whether it was said that files are too large for the cache.
    pub said_too_large: AtomicBool,
    /// Whether the kernel refuses to serve files itself.
    pub no_passthrough: AtomicBool,
}

impl Afs {
    /// Without leases.
    ///
    /// `keep_open` copies stay open after their last close. Stages are counted from `first_stage` on, which no earlier life
    /// may have used.
    pub fn new(disk: DiskCache, keep_open: NonZeroUsize, first_stage: u64) -> Afs {
        Afs {
            leases: RwLock::default(),
            statuses: Mutex::new(LruCache::new(MAX_STATUSES)),
            disk: Arc::new(disk),
            replies: Arc::default(),
            names_expire: AtomicBool::new(true),
            names_until: Mutex::default(),
            pins_touched: Notify::new(),
            applying: tokio::sync::Mutex::new(()),
            recent: Mutex::new(LruCache::new(keep_open)),
            unstored: Mutex::default(),
            last_stage: AtomicU64::new(first_stage),
            fetches: AtomicU64::new(0),
            stores: AtomicU64::new(0),
            passthrough_opens: AtomicU64::new(0),
            uncached_opens: AtomicU64::new(0),
            said_too_large: AtomicBool::new(false),
            no_passthrough: AtomicBool::new(false),
        }
    }

    /// What there is with the server of this number.
    pub fn lease(&self, server: u32) -> Option<Arc<Lease>> {
        self.leases.read().get(&server).cloned()
    }

    /// What there is with all servers that were asked for anything.
    pub fn leases(&self) -> Vec<Arc<Lease>> {
        self.leases.read().values().cloned().collect()
    }

    /// What there is with a server, and whether there was nothing before.
    pub fn lease_with(&self, server: &Arc<Client>, terms: LeaseTerms) -> (Arc<Lease>, bool) {
        let mut leases = self.leases.write();
        let mut is_new = false;
        let lease = leases.entry(server.number()).or_insert_with(|| {
            is_new = true;
            let promises = Mutex::new(Promises::new(server.number(), terms));
            Arc::new(Lease { server: server.clone(), promises, lost: Notify::new(), granted: Notify::new() })
        });
        (lease.clone(), is_new)
    }

    /// For how long an object may be used without asking, by the lease of who has promised it.
    ///
    /// # Errors
    /// The rule that says no.
    pub fn usable(&self, promise: Option<Promise>, object: ObjectId, now: BootTime) -> Result<Duration, Miss> {
        let promise = promise.ok_or(Miss::NoCallback)?;
        let leases = self.leases.read();
        let lease = leases.get(&promise.server()).ok_or(Miss::NoCallback)?;
        lease.promises.lock().usable(Some(promise), object, now)
    }

    /// Copies that were open a short while ago are in nobody's way, nor in use.
    pub fn close_recent(&self) {
        // What nobody has open any more may be removed by this, and not under the lock.
        let closed = {
            let mut recent = self.recent.lock();
            let cap = recent.cap();
            std::mem::replace(&mut *recent, LruCache::new(cap))
        };
        drop(closed);
    }

    /// A number for contents to be staged.
    pub fn next_stage(&self) -> u64 {
        self.last_stage.fetch_add(1, Ordering::Relaxed).wrapping_add(1)
    }
}

/// The policy of `afs` mounts, as far as it does not depend on the lease.
#[derive(Debug)]
pub struct AfsPolicy;

impl CachePolicy for AfsPolicy {
    fn attr_limits(&self, _kind: FileType) -> Limits {
        Limits { min: NEVER, max: NEVER }
    }

    /// Rule 1 has the rest.
    fn usable(&self, attrs: &AttrCache, now: BootTime) -> Result<Duration, Miss> {
        attrs.remaining(now)
    }

    /// A name changes only with its directory.
    fn entry_ttl(&self, dir: Duration) -> Duration {
        dir
    }

    fn negative_ttl(&self, dir: Duration) -> Duration {
        dir
    }

    /// Rule 2.
    fn open(&self, _flags: i32) -> OpenPlan {
        OpenPlan { revalidate: false, direct_io: false, writes: Writes::Buffered, flush_on_close: true }
    }
}
