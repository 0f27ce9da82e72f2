//! The yardstick: a FUSE file system that hands everything on to a directory and does nothing else.
//!
//! Whatever a file system behind FUSE does, it cannot be faster than this where nothing is to be asked of anybody: requests
//! are answered by the thread that took them, and whatever the kernel can keep, it keeps. It is for measuring alone: the
//! directory must not be changed in another way meanwhile, and what the benchmark does not use is missing.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use fuser::{
    BackingId, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, Session, SessionACL, TimeOrNow, WriteFlags,
};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType as RawType, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT,
};

use crate::process::raise_open_files;

/// Threads that take requests from the kernel.
const THREADS: usize = 2;

/// Requests that the kernel may have outstanding in the background.
const MAX_BACKGROUND: u16 = 128;

/// Bytes from which on the kernel serves a file by itself, as for Larder's disk cache: opening such a file takes longer.
const SERVED_BY_KERNEL: u64 = 256 << 10;

/// Mounts `source` at `mountpoint` and serves it until it is unmounted. The kernel may keep names and attributes for this
/// long.
///
/// # Errors
/// If it cannot be mounted.
pub fn serve(source: &Path, mountpoint: &Path, validity: Duration) -> Result<()> {
    // One descriptor for each file that the kernel knows.
    raise_open_files(0)?;
    let root = rustix::fs::open(source, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .with_context(|| format!("opening {}", source.display()))?;
    let root = Object { at: Arc::new(root), references: 1, opens: 0, backing: None };
    let filesystem = PassThrough {
        objects: RwLock::new(HashMap::from([(INodeNo::ROOT.0, root)])),
        files: RwLock::default(),
        listings: RwLock::default(),
        opened: AtomicU64::new(0),
        validity,
    };
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(source.display().to_string()),
        MountOption::CUSTOM("subtype=passthrough".to_owned()),
        MountOption::DefaultPermissions,
    ];
    config.acl = SessionACL::All;
    config.n_threads = Some(THREADS);
    config.clone_fd = true;
    let shown = mountpoint.display();
    let session = Session::new(filesystem, mountpoint, &config).with_context(|| format!("mounting {shown}"))?;
    session.run().with_context(|| format!("serving {shown}"))
}

/// A file or directory that the kernel knows.
struct Object {
    at: Arc<OwnedFd>,
    references: u64,
    /// How often it is open.
    opens: u64,
    /// What the kernel serves it from by itself, if it does: decided when it is opened, and the same for all who have it
    /// open at a time.
    backing: Option<Arc<BackingId>>,
}

/// What a directory held when it was opened.
type Listing = Arc<Vec<(u64, FileType, OsString)>>;

struct PassThrough {
    objects: RwLock<HashMap<u64, Object>>,
    files: RwLock<HashMap<u64, Arc<File>>>,
    listings: RwLock<HashMap<u64, Listing>>,
    opened: AtomicU64,
    validity: Duration,
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// Replies with what `$result` has, or with its errno.
macro_rules! answer {
    ($reply:ident, $result:expr, $value:pat => $ok:expr) => {
        match $result {
            Ok($value) => $ok,
            Err(error) => $reply.error(Errno::from(io::Error::from(error))),
        }
    };
}

impl PassThrough {
    fn at(&self, node: INodeNo) -> io::Result<Arc<OwnedFd>> {
        let object = read(&self.objects).get(&node.0).map(|object| Arc::clone(&object.at));
        object.ok_or_else(|| io::Error::from_raw_os_error(libc::ESTALE))
    }

    fn file(&self, handle: FileHandle) -> io::Result<Arc<File>> {
        let file = read(&self.files).get(&handle.0).cloned();
        file.ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))
    }

    fn keep(&self, file: File) -> FileHandle {
        let handle = self.opened.fetch_add(1, Ordering::Relaxed);
        write(&self.files).insert(handle, Arc::new(file));
        FileHandle(handle)
    }

    /// Looks a name up, for the kernel to know from now on.
    fn look_up(&self, parent: &OwnedFd, name: &OsStr) -> io::Result<FileAttr> {
        let at = rustix::fs::openat(parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        let stat = rustix::fs::fstat(&at)?;
        match write(&self.objects).entry(stat.st_ino) {
            Entry::Occupied(mut known) => known.get_mut().references += 1,
            Entry::Vacant(new) => {
                new.insert(Object { at: Arc::new(at), references: 1, opens: 0, backing: None });
            }
        }
        Ok(attributes(stat.st_ino, &stat))
    }

    /// Does something in a directory that makes `name`, and looks that up.
    fn make(
        &self,
        parent: INodeNo,
        name: &OsStr,
        make: impl FnOnce(&OwnedFd) -> rustix::io::Result<()>,
    ) -> io::Result<FileAttr> {
        let parent = self.at(parent)?;
        make(&parent)?;
        self.look_up(&parent, name)
    }

    fn open_file(&self, at: &OwnedFd, flags: i32) -> io::Result<FileHandle> {
        // The kernel knows where an append goes, and pages of this process are nowhere in particular.
        let dropped = OFlags::APPEND | OFlags::DIRECT | OFlags::NOFOLLOW | OFlags::CREATE | OFlags::EXCL;
        let flags = OFlags::from_bits_retain(flags as u32).difference(dropped) | OFlags::CLOEXEC;
        Ok(self.keep(rustix::fs::open(path_of(at), flags, Mode::empty())?.into()))
    }

    /// A file is opened: from what the kernel is to serve it by itself.
    fn backing(
        &self,
        node: INodeNo,
        handle: FileHandle,
        open: impl FnOnce(&File) -> io::Result<BackingId>,
    ) -> Option<Arc<BackingId>> {
        let file = self.file(handle).ok()?;
        let mut objects = write(&self.objects);
        let object = objects.get_mut(&node.0)?;
        let is_first = object.opens == 0;
        object.opens += 1;
        if is_first && file.metadata().is_ok_and(|metadata| metadata.len() >= SERVED_BY_KERNEL) {
            // One that refuses takes the other way for all.
            object.backing = open(&file).ok().map(Arc::new);
        }
        object.backing.clone()
    }

    fn closed(&self, node: INodeNo) {
        if let Some(object) = write(&self.objects).get_mut(&node.0) {
            object.opens = object.opens.saturating_sub(1);
            if object.opens == 0 {
                object.backing = None;
            }
        }
    }

    fn list(&self, node: INodeNo) -> io::Result<FileHandle> {
        let at = self.at(node)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut listing = Vec::new();
        for entry in Dir::new(rustix::fs::open(path_of(&at), flags, Mode::empty())?)? {
            let entry = entry?;
            let name = OsString::from_vec(entry.file_name().to_bytes().to_vec());
            listing.push((entry.ino(), kind(entry.file_type()), name));
        }
        let handle = self.opened.fetch_add(1, Ordering::Relaxed);
        write(&self.listings).insert(handle, Arc::new(listing));
        Ok(FileHandle(handle))
    }

    fn change(&self, node: INodeNo, change: &Change) -> io::Result<FileAttr> {
        let at = self.at(node)?;
        if let Some(mode) = change.mode {
            rustix::fs::chmod(path_of(&at), Mode::from_raw_mode(mode))?;
        }
        if change.uid.is_some() || change.gid.is_some() {
            let (uid, gid) = (change.uid.map(rustix::fs::Uid::from_raw), change.gid.map(rustix::fs::Gid::from_raw));
            rustix::fs::chownat(&at, "", uid, gid, AtFlags::EMPTY_PATH)?;
        }
        if let Some(size) = change.size {
            File::options().write(true).open(path_of(&at))?.set_len(size)?;
        }
        if change.atime.is_some() || change.mtime.is_some() {
            let times = Timestamps { last_access: time(change.atime), last_modification: time(change.mtime) };
            rustix::fs::utimensat(CWD, path_of(&at), &times, AtFlags::empty())?;
        }
        Ok(attributes(node.0, &rustix::fs::fstat(&at)?))
    }

    fn forget(&self, node: INodeNo, references: u64) {
        if let Entry::Occupied(mut known) = write(&self.objects).entry(node.0) {
            let left = known.get().references.saturating_sub(references);
            known.get_mut().references = left;
            if left == 0 && node != INodeNo::ROOT {
                known.remove();
            }
        }
    }
}

/// What setattr(2)'s family sets.
struct Change {
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
    size: Option<u64>,
    atime: Option<TimeOrNow>,
    mtime: Option<TimeOrNow>,
}

/// By which path the object that a descriptor with O_PATH stands for can be opened: proc_pid_fd(5).
fn path_of(at: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", at.as_raw_fd())
}

fn time(set: Option<TimeOrNow>) -> Timespec {
    match set {
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        Some(TimeOrNow::Now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        Some(TimeOrNow::SpecificTime(time)) => {
            let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            Timespec { tv_sec: since.as_secs() as i64, tv_nsec: since.subsec_nanos().into() }
        }
    }
}

fn kind(kind: RawType) -> FileType {
    match kind {
        RawType::Directory => FileType::Directory,
        RawType::Symlink => FileType::Symlink,
        RawType::Fifo => FileType::NamedPipe,
        RawType::Socket => FileType::Socket,
        RawType::CharacterDevice => FileType::CharDevice,
        RawType::BlockDevice => FileType::BlockDevice,
        RawType::RegularFile | RawType::Unknown => FileType::RegularFile,
    }
}

fn attributes(node: u64, stat: &Stat) -> FileAttr {
    let at = |seconds: i64, nanoseconds: i64| {
        SystemTime::UNIX_EPOCH + Duration::new(seconds.max(0) as u64, nanoseconds.clamp(0, 999_999_999) as u32)
    };
    let modified = at(stat.st_mtime, stat.st_mtime_nsec as i64);
    FileAttr {
        ino: INodeNo(node),
        size: stat.st_size as u64,
        blocks: stat.st_blocks as u64,
        atime: at(stat.st_atime, stat.st_atime_nsec as i64),
        mtime: modified,
        ctime: at(stat.st_ctime, stat.st_ctime_nsec as i64),
        crtime: modified,
        kind: kind(RawType::from_raw_mode(stat.st_mode)),
        perm: (stat.st_mode & 0o7777) as u16,
        nlink: stat.st_nlink as u32,
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: stat.st_rdev as u32,
        blksize: stat.st_blksize as u32,
        flags: 0,
    }
}

fn created_mode(mode: u32, umask: u32) -> Mode {
    Mode::from_raw_mode(mode & !umask & 0o7777)
}

impl Filesystem for PassThrough {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for wanted in [
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_DONT_MASK,
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
            InitFlags::FUSE_PASSTHROUGH,
        ] {
            // A kernel without it is one whose limit is another.
            let _ = config.add_capabilities(wanted);
        }
        let _ = config.set_max_stack_depth(2);
        let _ = config.set_max_background(MAX_BACKGROUND);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.at(parent).and_then(|parent| self.look_up(&parent, name)) {
            Ok(found) => reply.entry(&self.validity, &found, Generation(0)),
            // Number 0 with a validity is a name known not to exist.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.validity.is_zero() => {
                reply.entry(&self.validity, &nothing(), Generation(0));
            }
            Err(error) => reply.error(error.into()),
        }
    }

    fn forget(&self, _: &Request, node: INodeNo, references: u64) {
        PassThrough::forget(self, node, references);
    }

    fn getattr(&self, _: &Request, node: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        let found = self.at(node).and_then(|at| Ok(attributes(node.0, &rustix::fs::fstat(&at)?)));
        answer!(reply, found, found => reply.attr(&self.validity, &found));
    }

    fn setattr(
        &self,
        _: &Request,
        node: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change = Change { mode: mode.map(|mode| mode & 0o7777), uid, gid, size, atime, mtime };
        answer!(reply, self.change(node, &change), changed => reply.attr(&self.validity, &changed));
    }

    fn readlink(&self, _: &Request, node: INodeNo, reply: ReplyData) {
        let target = self.at(node).and_then(|at| Ok(rustix::fs::readlinkat(&at, "", Vec::new())?));
        answer!(reply, target, target => reply.data(target.as_bytes()));
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let made = self.make(parent, name, |parent| rustix::fs::mkdirat(parent, name, created_mode(mode, umask)));
        answer!(reply, made, made => reply.entry(&self.validity, &made, Generation(0)));
    }

    fn symlink(&self, _: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let made = self.make(parent, name, |parent| rustix::fs::symlinkat(target, parent, name));
        answer!(reply, made, made => reply.entry(&self.validity, &made, Generation(0)));
    }

    fn link(&self, _: &Request, node: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let made = self.at(node).and_then(|at| {
            self.make(parent, name, |parent| {
                rustix::fs::linkat(CWD, path_of(&at), parent, name, AtFlags::SYMLINK_FOLLOW)
            })
        });
        answer!(reply, made, made => reply.entry(&self.validity, &made, Generation(0)));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let done = self.at(parent).and_then(|at| Ok(rustix::fs::unlinkat(&at, name, AtFlags::empty())?));
        answer!(reply, done, () => reply.ok());
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let done = self.at(parent).and_then(|at| Ok(rustix::fs::unlinkat(&at, name, AtFlags::REMOVEDIR)?));
        answer!(reply, done, () => reply.ok());
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let flags = rustix::fs::RenameFlags::from_bits_retain(flags.bits());
        let done = self
            .at(parent)
            .and_then(|from| Ok(rustix::fs::renameat_with(&from, name, &self.at(new_parent)?, new_name, flags)?));
        answer!(reply, done, () => reply.ok());
    }

    fn open(&self, _: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let opened = self.at(node).and_then(|at| self.open_file(&at, flags.0));
        let handle = match opened {
            Ok(handle) => handle,
            Err(error) => return reply.error(error.into()),
        };
        match self.backing(node, handle, |file| reply.open_backing(file)) {
            Some(backing) => reply.opened_passthrough(handle, FopenFlags::FOPEN_NOFLUSH, &backing),
            None => reply.opened(handle, FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH),
        }
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let created = self.at(parent).and_then(|parent| {
            let flags = OFlags::from_bits_retain(flags as u32).difference(OFlags::APPEND | OFlags::DIRECT);
            let flags = flags | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = rustix::fs::openat(&parent, name, flags, created_mode(mode, umask))?;
            let made = self.look_up(&parent, name)?;
            if let Some(object) = write(&self.objects).get_mut(&made.ino.0) {
                object.opens += 1;
            }
            Ok((made, self.keep(file.into())))
        });
        let how = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH;
        answer!(reply, created, (made, handle) => reply.created(&self.validity, &made, Generation(0), handle, how));
    }

    fn read(
        &self,
        _: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let data = self.file(handle).and_then(|file| {
            let mut data = vec![0; size as usize];
            let mut filled = 0;
            while filled < data.len() {
                match file.read_at(&mut data[filled..], offset + filled as u64)? {
                    0 => break,
                    read => filled += read,
                }
            }
            data.truncate(filled);
            Ok(data)
        });
        answer!(reply, data, data => reply.data(&data));
    }

    fn write(
        &self,
        _: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = self.file(handle).and_then(|file| file.write_all_at(data, offset));
        answer!(reply, written, () => reply.written(data.len() as u32));
    }

    fn release(
        &self,
        _: &Request,
        node: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        write(&self.files).remove(&handle.0);
        self.closed(node);
        reply.ok();
    }

    fn fsync(&self, _: &Request, _node: INodeNo, handle: FileHandle, datasync: bool, reply: ReplyEmpty) {
        let sync = |file: Arc<File>| if datasync { file.sync_data() } else { file.sync_all() };
        answer!(reply, self.file(handle).and_then(sync), () => reply.ok());
    }

    fn opendir(&self, _: &Request, node: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let how = FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE;
        answer!(reply, self.list(node), handle => reply.opened(handle, how));
    }

    fn readdir(&self, _: &Request, _node: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let Some(listing) = read(&self.listings).get(&handle.0).cloned() else { return reply.error(Errno::EBADF) };
        for (place, (node, kind, name)) in listing.iter().enumerate().skip(offset as usize) {
            if reply.add(INodeNo(*node), place as u64 + 1, *kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _: &Request, _node: INodeNo, handle: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        write(&self.listings).remove(&handle.0);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, node: INodeNo, _handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let done = self.at(node).and_then(|at| fs::File::open(path_of(&at))?.sync_all());
        answer!(reply, done, () => reply.ok());
    }

    fn statfs(&self, _: &Request, _node: INodeNo, reply: ReplyStatfs) {
        let space = self.at(INodeNo::ROOT).and_then(|root| Ok(rustix::fs::fstatvfs(&root)?));
        answer!(reply, space, space => reply.statfs(
            space.f_blocks,
            space.f_bfree,
            space.f_bavail,
            space.f_files,
            space.f_ffree,
            space.f_bsize as u32,
            space.f_namemax as u32,
            space.f_frsize as u32,
        ));
    }
}

/// Attributes of nothing.
fn nothing() -> FileAttr {
    let never = SystemTime::UNIX_EPOCH;
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: never,
        mtime: never,
        ctime: never,
        crtime: never,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}
