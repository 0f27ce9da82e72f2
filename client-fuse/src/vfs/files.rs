//! The data of open files.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::stream::{FuturesOrdered, StreamExt};
use larder_protocol::attr::{SETGID, SETUID};
use larder_protocol::error::ErrorCode;
use larder_protocol::failpoint::Planted;
use larder_protocol::handshake::Welcome;
use larder_protocol::ids::VolumeId;
use larder_protocol::payload::Payload;
use larder_protocol::runtime::RuntimeExt;
use larder_protocol::service::file::{Op, OpReply, Query, QueryReply};

use super::asking::Asked;
use super::handle::FileHandle;
use super::node::Node;
use super::sending::Failing;
use super::{Error, Fsync, Vfs, WriteOrigin, unexpected};
use crate::core::attr_cache::Miss;
use crate::core::write_behind::Cover;
use crate::mode::Writes;

/// Read requests in flight for one read.
const READ_WINDOW: usize = 8;

impl Vfs {
    /// Reads. Less than asked means the end of the file.
    ///
    /// # Errors
    /// The server's, or that there is no answer.
    pub async fn read(&self, handle: u64, offset: u64, size: u32) -> Result<Bytes, Error> {
        let handle = self.handles.file(handle)?;
        if !handle.readable {
            return Err(Error::BadHandle);
        }
        self.in_use(&handle);
        if let Some(copy) = &handle.copy {
            return self.read_local(&handle, copy, offset, size).await;
        }
        let Ok(end) = Vfs::end_of(offset, size.into()) else { return Ok(Bytes::new()) };
        loop {
            let (cover, part, local_end, setbacks) = {
                let known = self.view(&handle.node).attr.size;
                let flow = handle.file.flow.lock();
                let local_end = flow.data.end().unwrap_or(0);
                let end = end.min(known.max(local_end));
                (
                    if offset < end { flow.data.read(offset, end) } else { Cover::None },
                    end,
                    end.min(local_end),
                    flow.data.setbacks(),
                )
            };
            let data = match cover {
                Cover::Full(data) => {
                    self.counters.hit();
                    return Ok(data);
                }
                Cover::Partial(pieces) => self.read_around(&handle, offset..part, end, &pieces).await?,
                Cover::None => self.read_from_server(&handle, offset, size).await?,
            };
            let mut flow = handle.file.flow.lock();
            self.follow_server(handle.node.fid.volume, &mut flow);
            // Otherwise a new server process has answered, before it was sent again what the old one lost.
            if flow.data.setbacks() == setbacks {
                return Ok(pad_hole(data, local_end.saturating_sub(offset)));
            }
        }
    }

    /// Where the file ends at the server, if what is known of that may be used.
    fn known_end(&self, node: &Node) -> Option<u64> {
        let state = node.state.lock();
        self.usable(node, &state).ok().map(|_| state.attrs.attr().size)
    }

    /// A range of which some pieces are here: what is between them is the server's, and nothing behind its end. The pieces are
    /// as they were before it is asked, so that nothing is missed that arrives there meanwhile; and where its file ends is
    /// looked up after that, for what has arrived has moved it first. The range ends with what is known of the file, and the
    /// server is asked up to `wanted`.
    async fn read_around(
        &self,
        handle: &FileHandle,
        range: Range<u64>,
        wanted: u64,
        pieces: &[(u64, Bytes)],
    ) -> Result<Bytes, Error> {
        let mut out = BytesMut::zeroed((range.end - range.start) as usize);
        let place = |at: u64| (at - range.start) as usize;
        let missing = missing(&range, pieces);
        let mut end = pieces.last().map_or(range.start, |(at, piece)| at + piece.len() as u64);
        let server_end = self.known_end(&handle.node);
        if missing.start < missing.end && server_end.is_none_or(|end| missing.start < end) {
            self.counters.miss(Miss::Dirty);
            let to = if missing.end == range.end { wanted } else { missing.end };
            let data = self.read_from_server(handle, missing.start, (to - missing.start) as u32).await?;
            let reached = missing.start + data.len() as u64;
            if reached > range.end {
                out.resize(place(reached), 0);
            }
            out[place(missing.start)..place(reached)].copy_from_slice(&data);
            end = end.max(reached);
        } else {
            self.counters.hit();
        }
        for (at, piece) in pieces {
            out[place(*at)..][..piece.len()].copy_from_slice(piece);
        }
        out.truncate(place(end));
        Ok(out.freeze())
    }

    async fn read_from_server(&self, handle: &FileHandle, offset: u64, size: u32) -> Result<Bytes, Error> {
        let pieces = size.div_ceil(self.max_read);
        let piece = |n: u32| {
            let start = n * self.max_read;
            self.read_piece(handle, offset + u64::from(start), self.max_read.min(size - start))
        };
        if pieces <= 1 {
            return piece(0).await;
        }
        let mut under_way = FuturesOrdered::new();
        let mut next = 0;
        let mut out = BytesMut::with_capacity(size as usize);
        loop {
            while next < pieces && under_way.len() < READ_WINDOW {
                under_way.push_back(piece(next));
                next += 1;
            }
            let Some(data) = under_way.next().await else { break };
            let data = data?;
            out.extend_from_slice(&data);
            // What lies behind a short piece lies behind the end of the file.
            if !out.len().is_multiple_of(self.max_read as usize) || data.is_empty() {
                break;
            }
        }
        Ok(out.freeze())
    }

    async fn read_piece(&self, handle: &FileHandle, offset: u64, len: u32) -> Result<Bytes, Error> {
        let asked = Asked::plain(self.stamp());
        let query = Query::Read { fid: handle.node.fid, offset, len, touch: !self.options.noatime && !self.options.ro };
        match self.servers.query(&handle.cred, query).await? {
            QueryReply::Data { data, attr } => {
                self.learn(&handle.node, attr, &asked);
                // More than was asked for would be of another place.
                Ok(data.0.slice(..data.0.len().min(len as usize)))
            }
            _ => Err(unexpected()),
        }
    }

    /// Writes as the file was opened, and returns how many bytes.
    ///
    /// # Errors
    /// Those of [`Vfs::write_from`].
    pub async fn write(&self, handle: u64, offset: u64, data: Bytes) -> Result<u32, Error> {
        self.write_from(WriteOrigin::Opened, handle, offset, data).await
    }

    /// Writes, and returns how many bytes.
    ///
    /// # Errors
    /// The server's, or that there is no answer. Failures of writes that were buffered are reported by
    /// [`Vfs::flush`] and [`Vfs::fsync`].
    pub async fn write_from(&self, origin: WriteOrigin, handle: u64, offset: u64, data: Bytes) -> Result<u32, Error> {
        let handle = self.handles.file(handle)?;
        if !handle.writable {
            return Err(Error::BadHandle);
        }
        let len = u32::try_from(data.len()).map_err(|_| Error::Refused(ErrorCode::Invalid))?;
        if len == 0 {
            return Ok(0);
        }
        if origin != WriteOrigin::Page {
            // A page is written through any handle, perhaps one whose open is not complete.
            self.in_use(&handle);
        }
        if let Some(copy) = &handle.copy {
            return self.write_local(&handle, copy, offset, data).await;
        }
        let mode = handle.node.state.lock().attrs.attr().mode;
        let loses_privilege = mode & (SETUID | SETGID) != 0 && handle.cred.uid != 0;
        let writes = match handle.plan.writes {
            Writes::Appended if origin != WriteOrigin::Opened => Writes::Through,
            // The server takes the bits away, and the program that has written is to see it.
            Writes::Buffered if loses_privilege => Writes::Through,
            writes => writes,
        };
        let written = self.write_as(writes, &handle, offset, data, len).await;
        if loses_privilege {
            self.notifier.expire_attrs(handle.node.number);
        }
        written
    }

    async fn write_as(
        &self,
        writes: Writes,
        handle: &FileHandle,
        offset: u64,
        data: Bytes,
        len: u32,
    ) -> Result<u32, Error> {
        match writes {
            Writes::Buffered => {
                Vfs::end_of(offset, len.into())?;
                self.write_buffered(handle, offset, data).await?;
            }
            Writes::Through => {
                Vfs::end_of(offset, len.into())?;
                return self.in_pieces(data, |at, piece| self.write_through(handle, offset + at, piece)).await;
            }
            Writes::Appended => {
                let _exclusive = self.exclusive(&handle.node, &handle.file).await?;
                return self.in_pieces(data, |_, piece| self.append(handle, piece)).await;
            }
        }
        Ok(len)
    }

    /// Rule 4.
    async fn write_buffered(&self, handle: &FileHandle, offset: u64, data: Bytes) -> Result<(), Error> {
        let (node, file) = (&handle.node, &handle.file);
        loop {
            {
                let mut flow = file.flow.lock();
                if flow.cred == handle.cred || flow.data.is_idle() {
                    flow.cred = handle.cred.clone();
                    flow.touched = Some(self.runtime.wall());
                    flow.data.write(offset, data, self.runtime.boottime());
                    break;
                }
            }
            // Each write goes out under the credential it came with.
            self.flush_data(node, file, true).await?;
        }
        self.settle(node, file);
        self.kick(node, file);
        self.wait_for_room().await
    }

    async fn write_through(&self, handle: &FileHandle, offset: u64, data: Bytes) -> Result<(), Error> {
        let (node, file) = (&handle.node, &handle.file);
        let next = loop {
            let changed = file.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let other = {
                let mut flow = file.flow.lock();
                let other = flow.cred != handle.cred && !flow.data.is_idle();
                if !other {
                    if let Some(action) = flow.data.write_through(offset, &data, self.runtime.boottime()) {
                        flow.cred = handle.cred.clone();
                        break (action, handle.cred.clone());
                    }
                    // What is in the way may be waiting to be coalesced.
                    flow.data.flush(false);
                }
                other
            };
            if other {
                // Each write goes out under the credential it came with.
                self.flush_data(node, file, true).await?;
                continue;
            }
            self.kick(node, file);
            self.until_abort(changed).await?;
        };
        self.settle(node, file);
        let (vfs, node, file) = (self.weak.upgrade().ok_or(Error::Aborted)?, node.clone(), file.clone());
        // Once it is in flight it must be taken to its end, even if the caller gives up.
        let task = {
            let (vfs, node, file) = (vfs, node.clone(), file.clone());
            async move { vfs.carry_out(&node, &file, next, Failing::Returns).await }
        };
        self.runtime.detached(task).await.unwrap_or(Err(Error::Aborted))?;
        self.kick(&node, &file);
        self.wait_for_room().await
    }

    /// Rule 5.
    async fn append(&self, handle: &FileHandle, data: Bytes) -> Result<(), Error> {
        let op = Op::Append { fid: handle.node.fid, data: Payload(data) };
        let (reply, asked) = self.change(&handle.cred, op).await?;
        match reply {
            OpReply::Appended { attr, .. } => {
                self.learn_own(&handle.node, &attr, &asked);
                Ok(())
            }
            _ => Err(unexpected()),
        }
    }

    /// Does something for each piece of `data` that fits into a request, in order. If a later one fails, the result is
    /// how many bytes went well before.
    async fn in_pieces<F: Future<Output = Result<(), Error>>>(
        &self,
        mut data: Bytes,
        each: impl Fn(u64, Bytes) -> F,
    ) -> Result<u32, Error> {
        let mut done = 0;
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(self.max_write as usize));
            let len = piece.len() as u32;
            match each(done.into(), piece).await {
                Ok(()) => done += len,
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// A program closes one of its descriptors.
    ///
    /// # Errors
    /// What went wrong with earlier writes, until an fsync has said so.
    pub async fn flush(&self, handle: u64) -> Result<(), Error> {
        let handle = self.handles.file(handle)?;
        self.in_use(&handle);
        let flushed = match &handle.copy {
            Some(copy) => self.flush_local(&handle, copy).await,
            None if handle.writable && handle.plan.flush_on_close => {
                self.flush_data(&handle.node, &handle.file, true).await
            }
            None => Ok(()),
        };
        if Planted::DropFlushError.is_on() {
            return Ok(());
        }
        flushed?;
        handle.tell()
    }

    /// Makes durable what has been written. The server keeps data and size together, so `datasync` changes nothing.
    ///
    /// # Errors
    /// What went wrong with earlier writes, once for each handle.
    pub async fn fsync(&self, handle: u64, _datasync: bool) -> Result<(), Error> {
        let handle = self.handles.file(handle)?;
        // Before anything is sent: what this says of the server is true of all that is acknowledged from here on.
        let since = self.servers.welcome_of(handle.node.fid.volume);
        let synced = match &handle.copy {
            Some(copy) => self.fsync_local(&handle, copy).await,
            None => self.flush_data(&handle.node, &handle.file, true).await,
        };
        if Planted::DropFlushError.is_on() {
            return Ok(());
        }
        synced?;
        handle.report()?;
        if handle.copy.is_some() && self.options.fsync == Fsync::Local {
            return Ok(());
        }
        self.sync_since(handle.node.fid.volume, since).await
    }

    /// Has the server make durable what it has acknowledged in a volume, by the process whose welcome this is or a later one.
    pub(super) async fn sync_since(&self, volume: VolumeId, since: Option<Welcome>) -> Result<(), Error> {
        match since {
            Some(since) => Ok(self.servers.sync(volume, &since).await?),
            // No server has answered yet, so none has acknowledged anything.
            None => Ok(()),
        }
    }

    /// The open file of a handle that may be written.
    pub(super) fn writable(&self, handle: u64) -> Result<Arc<FileHandle>, Error> {
        let handle = self.handles.file(handle)?;
        if handle.writable { Ok(handle) } else { Err(Error::BadHandle) }
    }
}

/// From the first to the last byte of a range that is in none of these pieces, which are in order.
fn missing(range: &Range<u64>, pieces: &[(u64, Bytes)]) -> Range<u64> {
    let (mut start, mut end) = (range.start, range.end);
    for (at, piece) in pieces {
        if *at == start {
            start += piece.len() as u64;
        }
    }
    for (at, piece) in pieces.iter().rev() {
        if at + piece.len() as u64 == end {
            end = *at;
        }
    }
    start..end.max(start)
}

/// The server's file ends where data that is still here begins further on: what lies between is a hole.
fn pad_hole(data: Bytes, up_to: u64) -> Bytes {
    if data.len() as u64 >= up_to {
        return data;
    }
    let mut padded = BytesMut::with_capacity(up_to as usize);
    padded.extend_from_slice(&data);
    padded.resize(up_to as usize, 0);
    padded.freeze()
}
