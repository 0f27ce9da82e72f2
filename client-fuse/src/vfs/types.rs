//! What the file system takes and gives.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use larder_protocol::attr::{Attr, FileType};
use larder_protocol::name::Name;

use super::local::copy::Backing;
use super::reply_gate::ReplyPass;

/// How a mount caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Attributes and blocks, with close-to-open consistency.
    Nfs,
    /// Whole files on the local disk, kept fresh by callbacks.
    Afs,
    /// Nothing.
    Direct,
}

/// What `fsync` does in AFS mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fsync {
    /// Stores the file at the server.
    Server,
    /// Makes it durable in the cache, from where it is stored should this machine fail.
    Local,
}

/// The disk cache of AFS mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheOptions {
    /// Where it is.
    pub dir: PathBuf,
    /// How large it may get, in bytes.
    pub size: u64,
    /// Files from this size on are read and written by the kernel itself, where it can; `None`: none are.
    pub passthrough: Option<u64>,
    /// How many copies stay open after their last close, so that the next open finds them sooner: as many file descriptors.
    pub keep_open: NonZeroUsize,
}

impl CacheOptions {
    /// What `keep_open` is if nobody says otherwise.
    pub const KEEP_OPEN: NonZeroUsize = NonZeroUsize::new(512).unwrap();
}

impl Mode {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Nfs => "nfs",
            Mode::Afs => "afs",
            Mode::Direct => "direct",
        }
    }
}

/// Which answers to lookups the kernel may keep (`lookupcache` of nfs(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LookupCache {
    /// Names that exist and names that do not.
    All,
    /// Names that exist.
    Positive,
    /// None.
    None,
}

/// How a volume is mounted; names and meanings as in nfs(5).
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// How to cache.
    pub mode: Mode,
    /// How long a file's attributes are used at least.
    pub acregmin: Duration,
    /// How long a file's attributes are used at most.
    pub acregmax: Duration,
    /// How long a directory's attributes are used at least.
    pub acdirmin: Duration,
    /// How long a directory's attributes are used at most.
    pub acdirmax: Duration,
    /// Whether `open` may go by cached attributes.
    pub nocto: bool,
    /// Whether requests fail when the server does not answer, instead of waiting for it.
    pub soft: bool,
    /// How long to wait for an answer before the connection counts as dead.
    pub timeo: Duration,
    /// How often a `soft` mount tries again before a request fails.
    pub retrans: u32,
    /// Whether nothing may be changed.
    pub ro: bool,
    /// Whether reading leaves access times alone.
    pub noatime: bool,
    /// The largest read, in bytes.
    pub rsize: u32,
    /// The largest write, in bytes.
    pub wsize: u32,
    /// Which names the kernel may keep.
    pub lookupcache: LookupCache,
    /// With AFS mode: the disk cache, which it must have.
    pub cache: Option<CacheOptions>,
    /// With AFS mode: whether changes wait until other clients have given up what they cached (strict coherence).
    pub strict: bool,
    /// With AFS mode: what `fsync` does.
    pub fsync: Fsync,
}

impl Default for MountOptions {
    fn default() -> MountOptions {
        MountOptions {
            mode: Mode::Nfs,
            acregmin: Duration::from_secs(3),
            acregmax: Duration::from_secs(60),
            acdirmin: Duration::from_secs(30),
            acdirmax: Duration::from_secs(60),
            nocto: false,
            soft: false,
            timeo: Duration::from_secs(60),
            retrans: 2,
            ro: false,
            noatime: false,
            rsize: 1 << 20,
            wsize: 1 << 20,
            lookupcache: LookupCache::Positive,
            cache: None,
            strict: true,
            fsync: Fsync::Server,
        }
    }
}

impl MountOptions {
    /// The options as nfs(5) would list them, for statistics. `nolock` is always there: locks do not reach other
    /// clients.
    pub fn list(&self) -> Vec<String> {
        let secs = |name: &str, value: Duration| format!("{name}={}", value.as_secs_f64());
        let mut list = vec![format!("mode={}", self.mode.name()), if self.ro { "ro" } else { "rw" }.to_owned()];
        if self.mode == Mode::Nfs {
            list.push(secs("acregmin", self.acregmin));
            list.push(secs("acregmax", self.acregmax));
            list.push(secs("acdirmin", self.acdirmin));
            list.push(secs("acdirmax", self.acdirmax));
            list.push(if self.nocto { "nocto" } else { "cto" }.to_owned());
            let names = match self.lookupcache {
                LookupCache::All => "all",
                LookupCache::Positive => "positive",
                LookupCache::None => "none",
            };
            list.push(format!("lookupcache={names}"));
        }
        if self.mode == Mode::Afs && self.lookupcache == LookupCache::None {
            list.push("lookupcache=none".to_owned());
        }
        if let (Mode::Afs, Some(cache)) = (self.mode, &self.cache) {
            list.push(format!("cache={}", cache.dir.display()));
            list.push(format!("cache-size={}", cache.size));
            list.push(format!("coherence={}", if self.strict { "strict" } else { "prompt" }));
            list.push(format!("fsync={}", if self.fsync == Fsync::Local { "local" } else { "server" }));
        }
        list.push(if self.soft { "soft" } else { "hard" }.to_owned());
        list.push(secs("timeo", self.timeo));
        list.push(format!("retrans={}", self.retrans));
        list.push(format!("rsize={}", self.rsize));
        list.push(format!("wsize={}", self.wsize));
        if self.noatime {
            list.push("noatime".to_owned());
        }
        list.push("nolock".to_owned());
        list
    }
}

/// An object found under a name. Counts as one lookup, which [`forget`](super::Vfs::forget) takes back.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its number, also the `st_ino` to show; the mount's root is 1.
    pub node: u64,
    /// Tells apart objects that had the same number at different times.
    pub generation: u64,
    /// Its attributes.
    pub attr: Attr,
    /// How long the attributes may be used.
    pub attr_ttl: Duration,
    /// How long the name may be used.
    pub entry_ttl: Duration,
    /// To be kept until the reply is written.
    pub pass: Option<Arc<ReplyPass>>,
}

/// The answer to a lookup.
#[derive(Clone, Debug)]
pub enum LookupResult {
    /// The name exists.
    Found(Entry),
    /// It does not.
    Missing {
        /// How long that may be used.
        ttl: Duration,
        /// To be kept until the reply is written.
        pass: Option<Arc<ReplyPass>>,
    },
}

/// An object's attributes.
#[derive(Clone, Debug)]
pub struct Attributes {
    /// The object's number, also the `st_ino` to show.
    pub node: u64,
    /// The attributes.
    pub attr: Attr,
    /// How long they may be used.
    pub ttl: Duration,
    /// To be kept until the reply is written.
    pub pass: Option<Arc<ReplyPass>>,
}

/// An open file.
#[derive(Clone, Debug)]
pub struct Opened {
    /// Names the handle in later calls.
    pub handle: u64,
    /// Whether pages that the kernel has of this file are still good.
    pub keep_cache: bool,
    /// Whether reads and writes must come here instead of going through the kernel's pages.
    pub direct_io: bool,
    /// Whether closing needs no `flush`.
    pub noflush: bool,
    /// The file on this machine's disk that the kernel may read and write itself, if it can.
    pub backing: Option<Backing>,
}

/// An entry of a directory listing.
#[derive(Clone, Debug)]
pub struct DirItem {
    /// The object's number.
    pub node: u64,
    /// The position behind this entry.
    pub offset: u64,
    /// What it is.
    pub kind: FileType,
    /// Its name; `.` and `..` come first.
    pub name: DirName,
    /// With `plus`: the object as a lookup would return it. It counts as a lookup if the receiver took the item, but
    /// not for `.` and `..`.
    pub entry: Option<Entry>,
}

/// A name in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DirName {
    /// `.`
    Current,
    /// `..`
    Parent,
    /// Any other.
    Entry(Name),
}

impl DirName {
    /// The bytes to show.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            DirName::Current => b".",
            DirName::Parent => b"..",
            DirName::Entry(name) => name.as_bytes(),
        }
    }
}

/// Where a write comes from, which decides where in the file it goes if the file was opened to append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteOrigin {
    /// A program, through a descriptor with the flags of the open.
    Opened,
    /// A program, through a descriptor that does not append any more (`F_SETFL` of fcntl(2)).
    Positioned,
    /// A page that some program has mapped; the handle is any that may be written.
    Page,
}

/// What the file system tells the kernel on its own.
pub trait Kernel: Send + Sync + 'static {
    /// Drops the kernel's pages of a file. Called from a thread that serves no requests, so it may block.
    fn inval_data(&self, node: u64);

    /// A name of a directory is to be looked up again before it is used. Called as [`inval_data`](Kernel::inval_data) is.
    fn inval_name(&self, dir: u64, name: &Name);

    /// The attributes that the kernel has of a file are to be asked for again before they are used; its pages stay.
    /// Called while a request for the file is being served, so it must wait for no other. False if the kernel does not
    /// know the file: it may be about to learn of it, from a reply that it has and has not used yet.
    fn expire_attrs(&self, node: u64) -> bool;

    /// Every name is to be looked up again before it is used. Waits for nothing. False if the kernel cannot do that;
    /// then names are never to be given to it for any time.
    fn expire_names(&self) -> bool;
}
