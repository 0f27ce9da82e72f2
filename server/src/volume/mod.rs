//! A volume: a tree of files with its metadata, contents, and one writer.
//!
//! A request comes in through [`Volume::query`], [`Volume::mutate`], [`Volume::write`] or [`Volume::commit`]. Changes
//! of metadata are decided and applied by one `writer`; contents are the business of [`data`]; what the disk holds is
//! behind two traits, [`meta`] and [`content`].

pub mod access;
pub mod apply;
pub mod arriving;
pub mod check;
mod clients;
pub mod codec;
pub mod content;
pub mod context;
pub mod data;
pub mod error;
pub mod keys;
mod lifecycle;
pub mod meta;
pub mod original;
mod query;
mod quota;
pub mod record;
mod recovery;
mod syncing;
mod upkeep;
pub mod view;
pub mod watch;
mod writer;

pub use lifecycle::{Durability, OpenError, VolumeConfig, create, open, open_on, prepare};
pub use quota::Usage;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use larder_protocol::attr::{Attr, Credential, FileType, VolumeSpace};
use larder_protocol::cell::Quota;
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::{Epoch, Fid, MAX_VNODE, OpId, VolumeId};
use larder_protocol::limits::MAX_COPY;
use larder_protocol::name::Name;
use larder_protocol::runtime::SharedRuntime;
use larder_protocol::service::callback::{Grants, ObjectId};
use larder_protocol::service::file::{
    Committed, CreateHow, Mutated, NewContents, Op, OpReply, Query, QueryReply, WriteRequest, Written,
};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::core::replay::{Admission, Replay};
use crate::promises::PromiseKeeper;
use data::Data;
use data::allocate::Allocation;
use data::copy::Copy;
use data::fetch::Fetch;
use data::reclaim::By;
use syncing::Beats;
use view::{Records, Verified};
use watch::Watch;
use writer::{Operation, Scope};

/// A volume that is open.
pub struct Volume {
    name: String,
    root: Fid,
    data: Arc<Data>,
    runtime: SharedRuntime,
    slots: Mutex<Slots>,
    replayed: AtomicU64,
    promises: OnceLock<Arc<PromiseKeeper>>,
    beats: Beats,
    /// Tells who copies it what changes.
    watch: Arc<Watch>,
    /// Lives of other servers whose acknowledged changes are durable here: it has come from them.
    vouched: Vec<Epoch>,
}

/// Lives of other servers that a volume vouches for.
const MAX_VOUCHED: usize = 1000;

/// The objects whose attributes a reply shows.
fn shown(reply: &OpReply) -> Vec<ObjectId> {
    let attrs: [Option<&Attr>; 4] = match reply {
        OpReply::Entry { attr, dir, .. } => [Some(attr), Some(&dir.attr), None, None],
        OpReply::Removed { dir, object } => {
            [Some(&dir.attr), Some(object).filter(|object| object.nlink > 0), None, None]
        }
        OpReply::Renamed { from_dir, to_dir, object, other } => {
            let other = other.as_ref().filter(|other| other.nlink > 0);
            [Some(&from_dir.attr), Some(&to_dir.attr), Some(object), other]
        }
        OpReply::Attr(change) | OpReply::Appended { attr: change, .. } | OpReply::Copied { attr: change, .. } => {
            [Some(&change.attr), None, None, None]
        }
        OpReply::Forgotten => [None; 4],
    };
    attrs.into_iter().flatten().map(|attr| attr.fid.into()).collect()
}

/// Replay slots, and who waits for an operation that is running in one.
#[derive(Default)]
struct Slots {
    replay: Replay<Mutated>,
    joined: HashMap<OpId, Vec<oneshot::Sender<Result<Mutated, ErrorCode>>>>,
}

impl Volume {
    /// The volume's id.
    pub fn id(&self) -> VolumeId {
        self.root.volume
    }

    /// The volume's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The root directory.
    pub fn root(&self) -> Fid {
        self.root
    }

    /// Whether what is acknowledged is durable.
    pub fn is_durable(&self) -> bool {
        self.data.durable
    }

    /// Lives of other servers from which it has come. All that they have acknowledged of it is durable.
    pub fn vouched(&self) -> &[Epoch] {
        &self.vouched
    }

    /// Mutations answered from a slot instead of being run again.
    pub fn replayed(&self) -> u64 {
        self.replayed.load(Ordering::Relaxed)
    }

    /// Batches committed since the volume was opened.
    pub fn batches(&self) -> u64 {
        self.data.writer.batches()
    }

    /// Mutations in these batches.
    pub fn mutations(&self) -> u64 {
        self.data.writer.mutations()
    }

    /// Answers a query.
    ///
    /// # Errors
    /// The operation's, `Stale` for a handle whose object is gone, `Io` if the store fails.
    pub async fn query(&self, cred: &Credential, query: Query) -> Result<QueryReply, ErrorCode> {
        match query {
            Query::Read { fid, offset, len, touch } => self.data.read(cred, fid, offset, len, touch).await,
            Query::Fetch { fid, offset, len, version, copy } => {
                self.data.fetch(cred, fid, Fetch { offset, len, version, copy }).await
            }
            Query::Seek { fid, offset, what } => self.data.seek(cred, fid, offset, what).await,
            Query::Statfs { fid } => {
                self.data.load(fid)?;
                self.space().map(QueryReply::Space)
            }
            other => {
                let data = &self.data;
                let reader =
                    query::Reader { snapshot: &|| data.meta.snapshot(), volume: data.id, unsettled: &data.unsettled };
                reader.query(cred, &other)
            }
        }
    }

    fn space(&self) -> Result<VolumeSpace, ErrorCode> {
        let space = self.data.content.space().map_err(|error| error::io_code(&error))?;
        let header = self.data.writer.header();
        let reserve = data::room::reserve(space.total);
        let available = space.available.saturating_sub(reserve);
        // Small files take up rows, not inodes of the disk; half a KiB is about the least that one costs.
        let files_free = (MAX_VNODE - header.next_vnode.min(MAX_VNODE)).min(available / 512);
        let whole = VolumeSpace {
            total: space.total,
            free: space.free.saturating_sub(reserve),
            available,
            files: header.vnodes + files_free,
            files_free,
        };
        Ok(quota::space(whole, self.data.writer.quota().get(), &self.usage()?))
    }

    /// What the volume holds.
    ///
    /// # Errors
    /// As the store fails.
    pub fn usage(&self) -> Result<Usage, ErrorCode> {
        // Before the records: see `QuotaGauge::let_grow`.
        let ahead = self.data.unsettled.all();
        let snapshot = self.data.meta.glance()?;
        let view = Verified(&*snapshot);
        let (header, growth) = (view.header()?, quota::growth(&view, ahead)?);
        Ok(Usage { bytes: (header.blocks + growth) * 512, files: header.vnodes, created: header.created })
    }

    /// Whether an object is a mount point of a volume.
    ///
    /// # Errors
    /// As the store fails.
    pub fn has_graft(&self, vnode: u64, of: VolumeId) -> Result<bool, ErrorCode> {
        let snapshot = self.data.meta.glance()?;
        let record = Verified(&*snapshot).vnode(vnode)?;
        Ok(record.is_some_and(|record| record.body == record::Body::MountPoint { volume: of }))
    }

    /// What the volume may hold.
    pub fn quota(&self) -> Quota {
        self.data.writer.quota().get()
    }

    /// Sets what the volume may hold. It may hold more already: then it only shrinks.
    ///
    /// # Errors
    /// As the store fails.
    pub async fn set_quota(&self, quota: Quota) -> Result<(), ErrorCode> {
        self.data.writer.set_quota(quota).await
    }

    /// Runs an operation exactly once under its id; a retry gets the first run's result.
    ///
    /// # Errors
    /// The operation's; `BadSequence`, `UnknownClient` or `Fenced` for an id that has no place in its slot.
    pub async fn mutate(self: &Arc<Self>, cred: &Credential, id: OpId, op: Op) -> Result<Mutated, ErrorCode> {
        let joined = {
            let mut slots = self.slots.lock();
            match slots.replay.admit(id) {
                Admission::Run => None,
                Admission::Join => {
                    let (done, result) = oneshot::channel();
                    slots.joined.entry(id).or_default().push(done);
                    Some(result)
                }
                Admission::Replay(result) => {
                    self.replayed.fetch_add(1, Ordering::Relaxed);
                    let durable = self.data.meta.durable_up_to();
                    // What was granted then may have been broken since.
                    return result.map(|mutated| Mutated { durable, grants: Grants::default(), ..mutated });
                }
                Admission::BadSequence => return Err(ErrorCode::BadSequence),
                Admission::UnknownClient => return Err(ErrorCode::UnknownClient),
                Admission::Fenced => return Err(ErrorCode::Fenced),
            }
        };
        if let Some(result) = joined {
            self.replayed.fetch_add(1, Ordering::Relaxed);
            return result.await.map_err(|_| ErrorCode::Internal)?;
        }
        let mut running = Running { volume: self, id, result: Err(ErrorCode::Internal) };
        running.result = self.keeping_promises(cred, id, op).await;
        if running.result.is_err() {
            // From its first answer on a client counts as known, whatever the answer was.
            self.data.writer.meet(id).await?;
        }
        running.result.clone()
    }

    /// Breaks the callbacks on what the operation changes, then runs it (P2 of [`core::promises`](crate::core::promises)).
    async fn keeping_promises(self: &Arc<Self>, cred: &Credential, id: OpId, op: Op) -> Result<Mutated, ErrorCode> {
        let Some(promises) = self.promises.get() else { return self.run(cred, &id.into(), &op).await };
        let mut held = promises.begin_break(self.changed_by(&op)?, Some(id.client));
        loop {
            held.settled().await;
            let scope = Arc::new(Scope::new(held.objects().iter().map(|object| object & MAX_VNODE).collect()));
            let operation = Operation { id, scope: Some(scope.clone()) };
            let result = self.run(cred, &operation, &op).await;
            let missed = scope.missed();
            if result.is_err() && !missed.is_empty() {
                held.extend(missed.into_iter().map(|vnode| self.object(vnode)));
                continue;
            }
            let mut mutated = result?;
            mutated.grants = held.applied(shown(&mutated.reply));
            return Ok(mutated);
        }
    }

    fn object(&self, vnode: u64) -> ObjectId {
        Fid { volume: self.root.volume, vnode, generation: 0 }.into()
    }

    /// What an operation will change, as far as can be told before it is decided.
    fn changed_by(&self, op: &Op) -> Result<Vec<ObjectId>, ErrorCode> {
        let named = |dir: &Fid, name: &Name| -> Result<Option<ObjectId>, ErrorCode> {
            let snapshot = self.data.meta.glance()?;
            let entry = Verified(&*snapshot).entry(dir.vnode, name)?;
            Ok(entry.map(|entry| self.object(entry.vnode)))
        };
        match op {
            Op::Create { dir, name, how, .. } => Ok(match named(dir, name)? {
                // There is nothing to change, or to break.
                Some(_) if !matches!(how, CreateHow::Open { truncate: true, .. }) => Vec::new(),
                Some(object) => vec![object],
                None => vec![(*dir).into()],
            }),
            op => op.may_change(named),
        }
    }

    async fn run(self: &Arc<Self>, cred: &Credential, id: &Operation, op: &Op) -> Result<Mutated, ErrorCode> {
        let bytes = match op {
            Op::Allocate { offset, len, how, .. }
                if (Allocation { offset: *offset, len: *len, how: *how }).reserves() =>
            {
                *len
            }
            Op::CopyRange { from, from_offset, len, .. } => {
                let size = self.data.load(*from)?.size;
                (*len).min(MAX_COPY).min(size.saturating_sub(*from_offset))
            }
            Op::Store { contents: NewContents::Whole(data), .. } => data.len() as u64,
            _ => 0,
        };
        self.data.with_room(By::Mutation, bytes, || self.run_once(cred, id, op.clone())).await
    }

    async fn run_once(self: &Arc<Self>, cred: &Credential, id: &Operation, op: Op) -> Result<Mutated, ErrorCode> {
        let data = &self.data;
        match op {
            Op::Append { fid, data: bytes } => data.append(cred, id, fid, bytes).await,
            Op::Allocate { fid, offset, len, how } => {
                data.allocate(cred, id, fid, Allocation { offset, len, how }).await
            }
            Op::CopyRange { from, from_offset, to, to_offset, len } => {
                data.copy(cred, id, Copy { from, from_offset, to, to_offset, len }).await
            }
            Op::Store { fid, contents, base } => data.store(cred, id, fid, contents, base).await,
            Op::Create { how: CreateHow::Open { truncate: true, .. }, .. } => data.create_or_empty(cred, id, op).await,
            Op::Setattr { fid, set, open } => match data.load(fid)?.kind() {
                FileType::Regular => data.setattr(cred, id, fid, set, open).await,
                FileType::Directory if set.size.is_some() => Err(ErrorCode::IsDirectory),
                _ if set.size.is_some() => Err(ErrorCode::Invalid),
                _ => self.apply(cred, id, Op::Setattr { fid, set, open }).await,
            },
            other => self.apply(cred, id, other).await,
        }
    }

    async fn apply(self: &Arc<Self>, cred: &Credential, operation: &Operation, op: Op) -> Result<Mutated, ErrorCode> {
        let (cred, client) = (cred.clone(), operation.id.client);
        self.data.writer.operation(operation, move |cx| apply::apply(cx, &cred, client, &op)).await
    }

    /// Writes contents in place.
    ///
    /// # Errors
    /// `AccessDenied`, `Stale`, `NoSpace`, `FileTooLarge`, `IsDirectory` or `Invalid` for what is no file, `Io`.
    pub async fn write(self: &Arc<Self>, cred: &Credential, request: WriteRequest) -> Result<Written, ErrorCode> {
        // A client's own callbacks are broken too: whoever writes in place does not rely on any.
        let mut held = self.promises.get().map(|promises| promises.begin_break([request.fid.into()], None));
        if let Some(held) = &mut held {
            held.settled().await;
        }
        self.data.with_room(By::Request, 0, || self.data.write(cred, request.clone())).await
    }

    /// Has callbacks broken before anything changes. Called once, before the volume is used.
    pub fn promise_by(&self, promises: Arc<PromiseKeeper>) {
        let first = self.promises.set(promises).is_ok();
        debug_assert!(first, "one keeper has all promises of a server");
    }

    /// Makes a file's unstable writes durable.
    ///
    /// # Errors
    /// `Io` if the disk failed: the writes must be sent again. `Stale`, `AccessDenied`.
    pub async fn commit(self: &Arc<Self>, cred: &Credential, fid: Fid) -> Result<Committed, ErrorCode> {
        self.data.with_room(By::Request, 0, || self.data.commit(cred, fid)).await
    }
}

/// An operation that was admitted. However it ends, its slot learns of it, and so do those who joined.
struct Running<'a> {
    volume: &'a Volume,
    id: OpId,
    result: Result<Mutated, ErrorCode>,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let waiting = {
            let mut slots = self.volume.slots.lock();
            slots.replay.finish(self.id, self.result.clone());
            slots.joined.remove(&self.id).unwrap_or_default()
        };
        for done in waiting {
            // A retry that is gone again asks once more if it wants to know.
            let _ = done.send(self.result.clone());
        }
    }
}
