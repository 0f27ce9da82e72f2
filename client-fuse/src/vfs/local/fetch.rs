//! Fetching a whole file at one version (rules 2 and 13 of AFS mode).

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::StreamExt;
use larder_protocol::attr::{Attr, Credential};
use larder_protocol::error::ErrorCode;
use larder_protocol::failpoint::Planted;
use larder_protocol::service::file::{Query, QueryReply};

use super::copy::LocalCopy;
use super::open::WHOLE_AT_OPEN;
use crate::failpoint::Failpoint;
use crate::mode::afs::Afs;
use crate::mode::afs::disk::{CHECK_BLOCK, checksum};
use crate::rpc::MUCH;
use crate::vfs::node::Node;
use crate::vfs::{Error, Vfs, unexpected};

/// Parts of one file on their way.
const WINDOW: usize = 8;
/// Times that a fetch begins anew because the file has changed, before a copy is asked for.
const AGAIN: u32 = 2;
/// Attempts in all.
const ATTEMPTS: u32 = 5;
/// Parts up to this size are written by the task itself.
const QUICK: usize = 64 << 10;

/// How an attempt ended.
enum Attempt {
    /// All of it is here: its attributes, and the checksums of its parts.
    Whole(Attr, Vec<u32>),
    /// The file has changed meanwhile.
    Changed,
    /// Nobody wants it any more.
    Unwanted,
}

/// The error of the cache's disk as programs see it.
pub(super) fn disk_error(error: &io::Error, what: &str) -> Error {
    if error.kind() == io::ErrorKind::FileTooLarge {
        return ErrorCode::FileTooLarge.into();
    }
    if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
        tracing::warn!("cannot {what} the cache: {error}");
        return ErrorCode::NoSpace.into();
    }
    tracing::error!("cannot {what} the cache: {error}");
    ErrorCode::Io.into()
}

impl Vfs {
    /// Begins to fetch a copy, if nobody has. It goes on whatever becomes of the caller.
    pub(super) fn fetch_in_background(&self, node: &Arc<Node>, copy: &Arc<LocalCopy>, cred: &Arc<Credential>) {
        let (Some(vfs), Some(fetch)) = (self.weak.upgrade(), copy.begin_fetch()) else { return };
        let (node, copy, cred) = (node.clone(), copy.clone(), cred.clone());
        self.runtime.start(Box::pin(async move {
            let result = vfs.fetch(&node, &copy, fetch, &cred).await;
            copy.fetch_ended(fetch, result);
        }));
    }

    async fn fetch(
        &self,
        node: &Arc<Node>,
        copy: &Arc<LocalCopy>,
        fetch: u64,
        cred: &Arc<Credential>,
    ) -> Result<(), Error> {
        let Some(afs) = &self.afs else { return Err(ErrorCode::Internal.into()) };
        afs.fetches.fetch_add(1, Ordering::Relaxed);
        for attempt in 0..ATTEMPTS {
            match self.fetch_once(afs, node, copy, fetch, cred, attempt > AGAIN).await? {
                Attempt::Whole(attr, checksums) => {
                    Failpoint::Fetched.pass();
                    let name = self.path_hint(node);
                    let _recording = copy.recording.lock();
                    // Truncated meanwhile, it is what a program here made of it.
                    if copy.is_from(fetch)
                        && !copy.is_dirty()
                        && let Err(error) = afs.disk.install(copy.file(), attr.data_version, checksums, name.as_deref())
                    {
                        // It serves those who have it open, and is fetched again next time.
                        tracing::debug!("a copy is not kept: {error}");
                    }
                    Failpoint::Installed.pass();
                    return Ok(());
                }
                Attempt::Unwanted => return Ok(()),
                Attempt::Changed if copy.begin_again(fetch) => {}
                Attempt::Changed => {
                    tracing::warn!(
                        "a file was changed while a program here read the part of it that had been fetched; the \
                         program gets an error rather than a mixture of two versions"
                    );
                    return Err(ErrorCode::Io.into());
                }
            }
        }
        tracing::warn!("a file changes faster than it can be fetched");
        Err(ErrorCode::Io.into())
    }

    async fn fetch_once(
        &self,
        afs: &Afs,
        node: &Arc<Node>,
        copy: &Arc<LocalCopy>,
        fetch: u64,
        cred: &Arc<Credential>,
        use_copy: bool,
    ) -> Result<Attempt, Error> {
        let part = CHECK_BLOCK as u32;
        // What is known to be small asks for no more, and is then carried like other small requests.
        let mut len = if copy.size() <= MUCH as u64 { MUCH as u32 } else { part };
        let (first, attr, asked) = loop {
            let query = Query::Fetch { fid: node.fid, offset: 0, len, version: None, copy: use_copy };
            let (reply, asked) = self.preparing(self.ask(cred, query)).await?;
            let QueryReply::Data { data, attr } = reply else { return Err(unexpected()) };
            if len == part || attr.size <= u64::from(len) {
                break (data.0, attr, asked);
            }
            // It has grown.
            len = part;
        };
        if !use_copy {
            self.learn(node, attr.clone(), &asked);
        }
        drop(asked);
        if attr.size > afs.disk.limit() {
            return Err(ErrorCode::FileTooLarge.into());
        }
        self.make_room(afs, attr.size);
        if attr.size > WHOLE_AT_OPEN {
            self.find_disk_space(afs, attr.size.min(attr.blocks.saturating_mul(512)))?;
        }
        let wanted = copy.fetch_is(fetch, &attr).map_err(|error| disk_error(&error, "write to"))?;
        if !wanted {
            return Ok(Attempt::Unwanted);
        }
        let parts = attr.size.div_ceil(u64::from(part)) as usize;
        let mut checksums = vec![0; parts];
        if parts > 0 {
            checksums[0] = checksum(&first);
            if !self.put_part(copy, fetch, 0, first).await? {
                return Ok(Attempt::Unwanted);
            }
        }
        let version = attr.data_version;
        let wanted = (!Planted::MixVersions.is_on()).then_some(version);
        let fetch_part = |number: usize| async move {
            let offset = number as u64 * u64::from(part);
            let query = Query::Fetch { fid: node.fid, offset, len: part, version: wanted, copy: use_copy };
            let reply = self.servers.query(cred, query).await?;
            let QueryReply::Data { data, attr } = reply else { return Err(unexpected()) };
            Ok((number, wanted.is_none_or(|wanted| attr.data_version == wanted).then_some(data.0)))
        };
        let mut coming = futures::stream::iter((1..parts).map(fetch_part)).buffer_unordered(WINDOW);
        while let Some(next) = coming.next().await {
            let (number, data): (usize, Option<Bytes>) = next?;
            let Some(data) = data else { return Ok(Attempt::Changed) };
            Failpoint::Fetching.pass();
            checksums[number] = checksum(&data);
            if !self.put_part(copy, fetch, number, data).await? {
                return Ok(Attempt::Unwanted);
            }
        }
        Ok(Attempt::Whole(attr, checksums))
    }

    async fn put_part(&self, copy: &Arc<LocalCopy>, fetch: u64, number: usize, data: Bytes) -> Result<bool, Error> {
        let put = if data.len() <= QUICK {
            copy.fetched(fetch, number, &data)
        } else {
            let copy = copy.clone();
            self.on_disk(move || copy.fetched(fetch, number, &data)).await
        };
        put.map_err(|error| disk_error(&error, "write to"))
    }

    /// Makes room in the cache, at the expense of copies that are not in use.
    pub(super) fn make_room(&self, afs: &Afs, bytes: u64) -> bool {
        if afs.disk.make_room(bytes) {
            return true;
        }
        afs.close_recent();
        afs.disk.make_room(bytes)
    }

    /// A file whose open does not wait for all of it is begun only if the disk has room for it: once a program reads what
    /// is here, it is too late to do without a copy.
    fn find_disk_space(&self, afs: &Afs, bytes: u64) -> Result<(), Error> {
        // What the system does not tell will show.
        let left = || afs.disk.disk_left().unwrap_or(u64::MAX);
        let lacking = bytes.saturating_sub(left());
        if lacking > 0 && !(self.give_way(afs, lacking, lacking) && left() >= bytes) {
            return Err(ErrorCode::NoSpace.into());
        }
        Ok(())
    }

    /// The disk is full: gives up copies that are not in use, as [`DiskCache::give_way`](crate::mode::afs::disk) does.
    pub(super) fn give_way(&self, afs: &Afs, need: u64, want: u64) -> bool {
        afs.close_recent();
        afs.disk.give_way(need, want)
    }

    /// Where the object was seen last, for people who look into the cache.
    pub(super) fn path_hint(&self, node: &Node) -> Option<Vec<u8>> {
        let mut names: Vec<Vec<u8>> = Vec::new();
        let mut fid = node.fid;
        let mut parent = node.parent.load(Ordering::Relaxed);
        for _ in 0..64 {
            if parent == 0 {
                return None;
            }
            let dir = self.nodes.get(parent)?;
            let name = dir.state.lock().dir.as_ref()?.name_of(fid).map(|name| name.as_bytes().to_vec())?;
            names.push(name);
            if parent == super::super::ROOT {
                names.reverse();
                return Some(names.join(&b'/'));
            }
            fid = dir.fid;
            parent = dir.parent.load(Ordering::Relaxed);
        }
        None
    }
}
