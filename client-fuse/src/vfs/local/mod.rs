//! Files of AFS mode: opened, read, written and closed on this machine's disk.

pub(super) mod admin;
pub(super) mod copy;
mod fetch;
pub(super) mod open;
pub(super) mod pins;
mod recover;
mod store;

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::future::join;
use larder_protocol::attr::Credential;
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::Fid;
use larder_protocol::runtime::RuntimeExt;
use larder_protocol::service::file::SeekWhat;
use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;

use self::copy::{Change, LocalCopy};
use self::fetch::disk_error;
use super::file_state::FileState;
use super::handle::FileHandle;
use super::node::Node;
use super::{Error, Fsync, Vfs};
use crate::failpoint::Failpoint;
use crate::mode::afs::disk::DiskCache;

/// Reads and writes up to this size are done by the task itself: they seldom wait for the disk.
const QUICK: usize = 128 << 10;
/// Bytes of copies that are given up for a write that finds the disk full, if there are as many.
const WAY: u64 = 16 << 20;

/// Records that a copy may hold data that the server has not. If somebody has removed the file there is nothing to record;
/// those who have it open go on with it, and what they write is stored when they close it.
fn record_dirty(disk: &DiskCache, copy: &LocalCopy, writer: &Credential) -> io::Result<()> {
    match disk.mark_dirty(copy.file(), copy.base(), writer.uid, writer.gid) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            tracing::warn!(
                "{error}; until it is closed, what is written to it would not survive the end of this mount"
            );
            Ok(())
        }
        recorded => recorded,
    }
}

impl Vfs {
    /// Works on the disk of the cache, where it may block.
    async fn on_disk<T: Send + 'static>(&self, work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
        let done = self.runtime.blocking(work).await;
        done.unwrap_or_else(|| Err(io::Error::other("a thread panicked that worked on the cache")))
    }

    /// Makes a file for the next copy while a request is on its way.
    pub(super) async fn preparing<T>(&self, asking: impl Future<Output = T>) -> T {
        let Some(afs) = &self.afs else { return asking.await };
        // In this order: it is sent first.
        join(asking, async { afs.disk.prepare() }).await.0
    }

    /// Reads from a copy, waiting for the part if it is on its way.
    pub(super) async fn read_local(
        &self,
        handle: &FileHandle,
        copy: &Arc<LocalCopy>,
        offset: u64,
        size: u32,
    ) -> Result<Bytes, Error> {
        let Ok(end) = Vfs::end_of(offset, size.into()) else { return Ok(Bytes::new()) };
        self.fetch_in_background(&handle.node, copy, &handle.cred);
        self.until_abort(copy.wait_for(offset, end)).await??;
        self.counters.hit();
        let size = size as usize;
        let read = if size <= QUICK {
            copy.read(offset, size)
        } else {
            let copy = copy.clone();
            self.on_disk(move || copy.read(offset, size)).await
        };
        read.map_err(|error| disk_error(&error, "read"))
    }

    /// Writes to a copy.
    pub(super) async fn write_local(
        &self,
        handle: &FileHandle,
        copy: &Arc<LocalCopy>,
        offset: u64,
        data: Bytes,
    ) -> Result<u32, Error> {
        Vfs::end_of(offset, data.len() as u64)?;
        let written = self.write_to_copy(handle, copy, offset, data.clone()).await;
        let need = data.len() as u64;
        match &self.afs {
            Some(afs) if written == Err(ErrorCode::NoSpace.into()) && self.give_way(afs, need, need.max(WAY)) => {
                self.write_to_copy(handle, copy, offset, data).await
            }
            _ => written,
        }
    }

    async fn write_to_copy(
        &self,
        handle: &FileHandle,
        copy: &Arc<LocalCopy>,
        offset: u64,
        data: Bytes,
    ) -> Result<u32, Error> {
        let len = data.len();
        let change = self.begin_change(&handle.node, copy, &handle.cred).await?;
        let write = {
            let (copy, data) = (copy.clone(), data);
            move || {
                // It ends when it is made, whatever becomes of this request.
                let _change = change;
                let written = copy.file().file().write_all_at(&data, offset);
                Failpoint::Written.pass();
                written
            }
        };
        let written = if len <= QUICK { write() } else { self.on_disk(write).await };
        written.map_err(|error| disk_error(&error, "write to"))?;
        Ok(len as u32)
    }

    /// A copy is going to be changed: all of it is here then, and it is recorded as dirty (rule 4).
    async fn begin_change(
        &self,
        node: &Arc<Node>,
        copy: &Arc<LocalCopy>,
        writer: &Arc<Credential>,
    ) -> Result<Change, Error> {
        self.fetch_in_background(node, copy, writer);
        self.until_abort(copy.wait_whole()).await??;
        self.record_change(node, copy, writer)
    }

    fn record_change(
        &self,
        node: &Arc<Node>,
        copy: &Arc<LocalCopy>,
        writer: &Arc<Credential>,
    ) -> Result<Change, Error> {
        let Some(afs) = &self.afs else { return Err(ErrorCode::Internal.into()) };
        let _recording = copy.recording.lock();
        if copy.needs_record() {
            record_dirty(&afs.disk, copy, writer).map_err(|error| disk_error(&error, "record a change in"))?;
            if let Some(name) = self.path_hint(node) {
                afs.disk.set_name(copy.file(), &name);
            }
            afs.unstored.lock().insert(copy.file().id(), (node.clone(), copy.clone()));
        }
        let change = copy.change_begins(writer);
        Failpoint::Recorded.pass();
        Ok(change)
    }

    /// A program closes one of its descriptors.
    pub(super) async fn flush_local(&self, handle: &FileHandle, copy: &Arc<LocalCopy>) -> Result<(), Error> {
        if handle.writable {
            self.store(&handle.node, copy, &handle.cred).await?;
        }
        Ok(())
    }

    /// Makes a copy's changes durable, at the server or here.
    pub(super) async fn fsync_local(&self, handle: &FileHandle, copy: &Arc<LocalCopy>) -> Result<(), Error> {
        if self.options.fsync == Fsync::Server {
            return self.store(&handle.node, copy, &handle.cred).await;
        }
        let Some(afs) = &self.afs else { return Ok(()) };
        if !copy.is_dirty() {
            return Ok(());
        }
        let (disk, file) = (afs.disk.clone(), copy.file().clone());
        let synced = self.runtime.blocking(move || disk.sync_dirty(&file)).await;
        match synced {
            Some(Ok(())) => Ok(()),
            // Somebody has removed the file: here nothing can be durable, so it must be there.
            Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => {
                self.store(&handle.node, copy, &handle.cred).await
            }
            Some(Err(error)) => Err(disk_error(&error, "sync")),
            None => Err(ErrorCode::Internal.into()),
        }
    }

    /// Cuts or extends a copy. What is to be empty need not be fetched.
    pub(in crate::vfs) async fn truncate_local(
        &self,
        node: &Arc<Node>,
        copy: &Arc<LocalCopy>,
        writer: &Arc<Credential>,
        size: u64,
    ) -> Result<(), Error> {
        Vfs::end_of(0, size)?;
        if size == 0 {
            let _change = self.record_change(node, copy, writer)?;
            return copy.cut_to_nothing().map_err(|error| disk_error(&error, "write to"));
        }
        let _change = self.begin_change(node, copy, writer).await?;
        copy.file().file().set_len(size).map_err(|error| disk_error(&error, "write to"))
    }

    /// fallocate(2) on a copy.
    pub(super) async fn fallocate_local(
        &self,
        handle: &FileHandle,
        copy: &Arc<LocalCopy>,
        offset: u64,
        len: u64,
        mode: i32,
    ) -> Result<(), Error> {
        let change = self.begin_change(&handle.node, copy, &handle.cred).await?;
        let flags = FallocateFlags::from_bits_retain(mode as u32);
        let file = copy.file().clone();
        let allocate = move || {
            let _change = change;
            rustix::fs::fallocate(file.file(), flags, offset, len)
        };
        let done = self.runtime.blocking(allocate).await;
        match done {
            Some(Ok(())) => Ok(()),
            Some(Err(Errno::OPNOTSUPP)) => Err(ErrorCode::NotSupported.into()),
            Some(Err(Errno::FBIG)) => Err(ErrorCode::FileTooLarge.into()),
            Some(Err(error)) => Err(disk_error(&error.into(), "reserve space in")),
            None => Err(ErrorCode::Internal.into()),
        }
    }

    /// lseek(2) on a copy.
    pub(super) async fn lseek_local(
        &self,
        handle: &FileHandle,
        copy: &Arc<LocalCopy>,
        offset: u64,
        what: SeekWhat,
    ) -> Result<u64, Error> {
        self.fetch_in_background(&handle.node, copy, &handle.cred);
        self.until_abort(copy.wait_whole()).await??;
        let from = match what {
            SeekWhat::Data => SeekFrom::Data(offset),
            SeekWhat::Hole => SeekFrom::Hole(offset),
        };
        // The position of the descriptor means nothing to anybody.
        match rustix::fs::seek(copy.file().file(), from) {
            Ok(found) => Ok(found),
            Err(Errno::NXIO) => Err(ErrorCode::NoSuchRange.into()),
            Err(error) => Err(disk_error(&error.into(), "seek in")),
        }
    }

    /// copy_file_range(2) between two copies.
    pub(super) async fn copy_local(
        &self,
        from: (&FileHandle, &Arc<LocalCopy>, u64),
        to: (&FileHandle, &Arc<LocalCopy>, u64),
        len: u64,
    ) -> Result<u64, Error> {
        let (from_handle, from_copy, from_offset) = from;
        let (to_handle, to_copy, to_offset) = to;
        self.fetch_in_background(&from_handle.node, from_copy, &from_handle.cred);
        self.until_abort(from_copy.wait_whole()).await??;
        let change = self.begin_change(&to_handle.node, to_copy, &to_handle.cred).await?;
        let (source, target) = (from_copy.file().clone(), to_copy.file().clone());
        let copied = self.runtime.blocking(move || {
            let _change = change;
            let (mut from, mut to, mut done) = (from_offset, to_offset, 0);
            while done < len {
                let left = usize::try_from(len - done).unwrap_or(usize::MAX);
                let copied =
                    rustix::fs::copy_file_range(source.file(), Some(&mut from), target.file(), Some(&mut to), left)?;
                if copied == 0 {
                    break;
                }
                done += copied as u64;
            }
            Ok::<u64, Errno>(done)
        });
        match copied.await {
            Some(Ok(done)) => Ok(done),
            Some(Err(Errno::INVAL)) => Err(ErrorCode::Invalid.into()),
            Some(Err(error)) => Err(disk_error(&error.into(), "copy in")),
            None => Err(ErrorCode::Internal.into()),
        }
    }

    /// A handle is closed for good. While others write the file nothing is stored (rule 4): what they have written so far
    /// is of nobody, and they store all of it when they close it.
    pub(super) async fn release_local(
        &self,
        node: &Arc<Node>,
        file: &FileState,
        copy: &Arc<LocalCopy>,
        cred: &Arc<Credential>,
        writable: bool,
    ) {
        if self.nodes.is_orphan(node) || file.is_being_written() {
            return;
        }
        if copy.expects_unseen() && (writable || self.nodes.is_last(node)) {
            self.find_unseen_writes(copy).await;
        }
        if copy.is_dirty() {
            self.store_at_last(node, file, copy, cred).await;
        }
    }

    /// Nobody has the file open any more.
    pub(super) fn put_away(&self, node: &Node, copy: &Arc<LocalCopy>, orphan: bool) {
        let Some(afs) = &self.afs else { return };
        if orphan || (copy.expects_unseen() && copy.is_reusable()) {
            // Whoever still has it mapped may write it, and nobody would be told: it is not to serve as a copy again.
            afs.unstored.lock().remove(&copy.file().id());
            afs.disk.discard(copy.file());
        } else if copy.is_reusable() && copy.file().is_kept() {
            afs.recent.lock().put(node.fid, copy.renewed());
            self.make_room(afs, 0);
        }
    }

    /// A file has no name any more: its copy would only take room, and a descriptor. One that is open here goes when it is
    /// closed.
    pub(super) fn drop_copy(&self, fid: Fid) {
        let Some(afs) = &self.afs else { return };
        let (recent, disk) = (afs.recent.lock().pop(&fid), afs.disk.clone());
        if recent.is_none() && !disk.has_any(fid) {
            return;
        }
        self.runtime.spawn_blocking(Box::new(move || {
            drop(recent);
            disk.evict(fid);
        }));
    }

    /// Compares a copy that the kernel may have written with what is stored.
    async fn find_unseen_writes(&self, copy: &Arc<LocalCopy>) {
        let looked = copy.clone();
        match self.on_disk(move || looked.differs_unseen()).await {
            Ok(false) => {}
            Ok(true) => copy.found_changed(),
            Err(error) => {
                tracing::error!("cannot see whether a file was written by way of the kernel: {error}; storing it");
                copy.found_changed();
            }
        }
    }

    /// Whether the kernel may read and write a copy by its own way.
    fn may_pass_through(&self, copy: &LocalCopy) -> bool {
        let Some(afs) = &self.afs else { return false };
        let threshold = self.options.cache.as_ref().and_then(|cache| cache.passthrough);
        threshold.is_some_and(|threshold| copy.size() >= threshold)
            && !afs.no_passthrough.load(Ordering::Relaxed)
            && copy.is_reusable()
    }
}
