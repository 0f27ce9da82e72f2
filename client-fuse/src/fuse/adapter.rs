//! The kernel's requests, one by one: convert, one call into [`Vfs`], reply.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, INodeNo, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use larder_protocol::attr::{Credential, SetAttr};
use larder_protocol::runtime::serving;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::convert::{self, errno};
use super::{init, reply};
use crate::vfs::{DirItem, Mode, Vfs};

/// Serves one mount.
pub(super) struct Adapter {
    vfs: Arc<Vfs>,
    tokio: Handle,
    ended: watch::Sender<bool>,
}

/// Replies with what `$call` returns: `$ok` is run with the value, an error goes out as its errno.
macro_rules! answer {
    ($self:ident, $reply:ident, $vfs:ident => $call:expr, $ok:expr) => {{
        let $vfs = Arc::clone(&$self.vfs);
        serving(&$self.tokio, async move {
            match $call.await {
                Ok(value) => $ok($reply, value),
                Err(error) => $reply.error(errno(error)),
            }
        });
    }};
}

impl Adapter {
    /// Serves this volume; `ended` becomes true with the end of the session.
    pub(super) fn new(vfs: Arc<Vfs>, tokio: Handle, ended: watch::Sender<bool>) -> Adapter {
        Adapter { vfs, tokio, ended }
    }

    fn caller(&self, request: &Request) -> Credential {
        self.vfs.credential(request.uid(), request.gid(), request.pid())
    }
}

fn bytes(name: &OsStr) -> Bytes {
    Bytes::copy_from_slice(name.as_bytes())
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        init::negotiate(config, self.vfs.max_write(), self.vfs.options().mode == Mode::Afs);
        Ok(())
    }

    fn destroy(&mut self) {
        self.ended.send_replace(true);
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (caller, name) = (self.caller(request), bytes(name));
        answer!(self, reply, vfs => vfs.lookup(&caller, parent.0, &name), reply::lookup);
    }

    fn forget(&self, _: &Request, node: INodeNo, nlookup: u64) {
        let _inside = self.tokio.enter();
        self.vfs.forget(node.0, nlookup);
    }

    fn getattr(&self, request: &Request, node: INodeNo, handle: Option<FileHandle>, reply: ReplyAttr) {
        let caller = self.caller(request);
        answer!(self, reply, vfs => vfs.getattr(&caller, node.0, handle.map(|handle| handle.0)), reply::attr);
    }

    fn setattr(
        &self,
        request: &Request,
        node: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let caller = self.caller(request);
        let set = SetAttr {
            // The kernel adds the type to the mode.
            mode: mode.map(|mode| mode & larder_protocol::attr::MODE_MASK),
            uid,
            gid,
            size,
            atime: atime.map(convert::set_time),
            mtime: mtime.map(convert::set_time),
        };
        answer!(self, reply, vfs => vfs.setattr(&caller, node.0, handle.map(|handle| handle.0), set), reply::attr);
    }

    fn readlink(&self, request: &Request, node: INodeNo, reply: ReplyData) {
        let caller = self.caller(request);
        answer!(self, reply, vfs => vfs.readlink(&caller, node.0), reply::data);
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let (caller, name) = (self.caller(request), bytes(name));
        answer!(self, reply, vfs => vfs.mknod(&caller, parent.0, &name, mode, umask, rdev), reply::entry);
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let (caller, name) = (self.caller(request), bytes(name));
        answer!(self, reply, vfs => vfs.mkdir(&caller, parent.0, &name, mode, umask), reply::entry);
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (caller, name) = (self.caller(request), bytes(name));
        answer!(self, reply, vfs => vfs.unlink(&caller, parent.0, &name), reply::done);
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (caller, name) = (self.caller(request), bytes(name));
        answer!(self, reply, vfs => vfs.rmdir(&caller, parent.0, &name), reply::done);
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let (caller, name, target) = (self.caller(request), bytes(name), bytes(target.as_os_str()));
        answer!(self, reply, vfs => vfs.symlink(&caller, parent.0, &name, &target), reply::entry);
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let how = match convert::rename_how(flags) {
            Ok(how) => how,
            Err(error) => return reply.error(error),
        };
        let (caller, name, new_name) = (self.caller(request), bytes(name), bytes(new_name));
        answer!(self, reply, vfs => vfs.rename(&caller, parent.0, &name, new_parent.0, &new_name, how), reply::done);
    }

    fn link(&self, request: &Request, node: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (caller, name) = (self.caller(request), bytes(name));
        answer!(self, reply, vfs => vfs.link(&caller, node.0, parent.0, &name), reply::entry);
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (caller, name) = (self.caller(request), bytes(name));
        answer!(
            self, reply, vfs => vfs.create(&caller, parent.0, &name, mode, umask, flags),
            reply::created
        );
    }

    fn open(&self, request: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let caller = self.caller(request);
        let vfs = Arc::clone(&self.vfs);
        serving(&self.tokio, async move {
            match vfs.open(&caller, node.0, flags.0).await {
                Ok(opened) => reply::opened(reply, opened, |took| vfs.passed_through(took)),
                Err(error) => reply.error(errno(error)),
            }
        });
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
        answer!(self, reply, vfs => vfs.read(handle.0, offset, size), reply::data);
    }

    fn write(
        &self,
        _: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // The slice is the buffer that the thread reads its next request into.
        let data = Bytes::copy_from_slice(data);
        let origin = convert::write_origin(write_flags, flags);
        answer!(
            self, reply, vfs => vfs.write_from(origin, handle.0, offset, data),
            |reply: ReplyWrite, size| reply.written(size)
        );
    }

    fn flush(&self, _: &Request, _node: INodeNo, handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        answer!(self, reply, vfs => vfs.flush(handle.0), reply::done);
    }

    fn release(
        &self,
        _: &Request,
        _node: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let vfs = Arc::clone(&self.vfs);
        serving(&self.tokio, async move {
            vfs.release(handle.0).await;
            reply.ok();
        });
    }

    fn fsync(&self, _: &Request, _node: INodeNo, handle: FileHandle, datasync: bool, reply: ReplyEmpty) {
        answer!(self, reply, vfs => vfs.fsync(handle.0, datasync), reply::done);
    }

    fn fallocate(
        &self,
        _: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        answer!(self, reply, vfs => vfs.fallocate(handle.0, offset, length, mode), reply::done);
    }

    fn lseek(&self, _: &Request, _node: INodeNo, handle: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let what = match convert::seek_what(whence) {
            Ok(what) => what,
            Err(error) => return reply.error(error),
        };
        // lseek(2): an offset before the file's beginning is ENXIO for these two.
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        answer!(self, reply, vfs => vfs.lseek(handle.0, offset, what), |reply: ReplyLseek, found: u64| {
            match i64::try_from(found) {
                Ok(found) => reply.offset(found),
                Err(_) => reply.error(Errno::EOVERFLOW),
            }
        });
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _node_in: INodeNo,
        handle_in: FileHandle,
        offset_in: u64,
        _node_out: INodeNo,
        handle_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // The reply's count has 32 bits; a shorter copy is a valid answer, and the caller goes on from there.
        let len = len.min(1 << 30);
        answer!(
            self, reply, vfs => vfs.copy_file_range(handle_in.0, offset_in, handle_out.0, offset_out, len),
            |reply: ReplyWrite, copied: u64| match u32::try_from(copied) {
                Ok(copied) => reply.written(copied),
                Err(_) => reply.error(Errno::EOVERFLOW),
            }
        );
    }

    fn opendir(&self, request: &Request, node: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let caller = self.caller(request);
        answer!(self, reply, vfs => vfs.opendir(&caller, node.0), |reply: ReplyOpen, handle| {
            reply.opened(FileHandle(handle), FopenFlags::empty());
        });
    }

    fn readdir(&self, _: &Request, _node: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let vfs = Arc::clone(&self.vfs);
        serving(&self.tokio, async move {
            match vfs.readdir(handle.0, offset, false, &mut |item| reply::add_name(&mut reply, &item)).await {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn readdirplus(&self, _: &Request, _node: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let vfs = Arc::clone(&self.vfs);
        serving(&self.tokio, async move {
            let mut passes = Vec::new();
            let mut add = |item: DirItem| {
                let added = reply::add_entry(&mut reply, &item);
                passes.extend(item.entry.and_then(|entry| entry.pass));
                added
            };
            match vfs.readdir(handle.0, offset, true, &mut add).await {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(errno(error)),
            }
            drop(passes);
        });
    }

    fn releasedir(&self, _: &Request, _node: INodeNo, handle: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        let _inside = self.tokio.enter();
        self.vfs.releasedir(handle.0);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _node: INodeNo, handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        answer!(self, reply, vfs => vfs.fsyncdir(handle.0), reply::done);
    }

    fn statfs(&self, request: &Request, node: INodeNo, reply: ReplyStatfs) {
        let caller = self.caller(request);
        answer!(self, reply, vfs => vfs.statfs(&caller, node.0), reply::space);
    }

    fn access(&self, request: &Request, node: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        let caller = self.caller(request);
        // R_OK, W_OK and X_OK have the values of MAY_READ, MAY_WRITE and MAY_EXEC.
        let mask = (mask.bits() & 7) as u32;
        answer!(self, reply, vfs => vfs.access(&caller, node.0, mask), reply::done);
    }

    fn setxattr(
        &self,
        request: &Request,
        node: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let (caller, name, value) = (self.caller(request), bytes(name), Bytes::copy_from_slice(value));
        answer!(self, reply, vfs => vfs.setxattr(&caller, node.0, &name, value, flags), reply::done);
    }

    fn getxattr(&self, request: &Request, node: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let (caller, name) = (self.caller(request), bytes(name));
        answer!(self, reply, vfs => vfs.getxattr(&caller, node.0, &name), |reply, value: Bytes| {
            reply::sized(reply, size, &value);
        });
    }

    fn listxattr(&self, request: &Request, node: INodeNo, size: u32, reply: ReplyXattr) {
        let caller = self.caller(request);
        answer!(self, reply, vfs => vfs.listxattr(&caller, node.0), |reply, names: Vec<Bytes>| {
            reply::sized(reply, size, &reply::join(&names));
        });
    }

    fn removexattr(&self, request: &Request, node: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (caller, name) = (self.caller(request), bytes(name));
        answer!(self, reply, vfs => vfs.removexattr(&caller, node.0, &name), reply::done);
    }

    // Answered here, because fuser logs a warning for each request that it answers itself.

    fn ioctl(
        &self,
        _: &Request,
        _node: INodeNo,
        _handle: FileHandle,
        _flags: IoctlFlags,
        _command: u32,
        _data: &[u8],
        _room: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn poll(
        &self,
        _: &Request,
        _node: INodeNo,
        _handle: FileHandle,
        _notifier: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        // The kernel takes this as "always ready" and does not ask again.
        reply.error(Errno::ENOSYS);
    }
}
