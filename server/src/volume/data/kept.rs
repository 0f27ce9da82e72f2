//! Copies of versions that are kept for a while, for clients that fetch a file which changes faster than they can.
//!
//! A copy is a scratch content file (D9) and what is known of the checksums of what was copied, so that reading it is
//! no less safe than reading the file.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::Fid;
use larder_protocol::limits::{MAX_COPIES, MAX_COPIES_OF_FILE};
use larder_protocol::runtime::BootTime;
use larder_protocol::service::file::SeekWhat;
use parking_lot::Mutex;

use super::Data;
use super::checksums::Group;
use super::dirty::DirtyFile;
use super::read::first_bad;
use super::reclaim::Removals;
use super::scratch::{Leaving, Scratch};
use crate::volume::content::{Content, ContentId};
use crate::volume::keys::{self, Table};
use crate::volume::record::{Body, VnodeRecord};
use crate::volume::view::{Records, Verified};

/// Who fetches a file comes for the next part of it within this time, also over a link of 1 Mbit/s.
pub(super) const COPY_IN_USE: Duration = Duration::from_secs(10);

/// A copy of one version of a file.
#[derive(Debug)]
pub(super) struct Kept {
    fid: Fid,
    /// The file when it was copied.
    pub(super) record: VnodeRecord,
    id: ContentId,
    /// What was known then of blocks whose checksums were not stored.
    unstored: Option<DirtyFile>,
    /// The checksums that were stored then.
    stored: BTreeMap<u64, Group>,
    /// The content file, while it is there. Shared by those who read it.
    scratch: tokio::sync::RwLock<Option<Scratch>>,
    used: Mutex<BootTime>,
}

/// The copies of a volume, by vnode and data version.
#[derive(Debug, Default)]
pub(in crate::volume) struct KeptCopies(Mutex<BTreeMap<(u64, u64), Arc<Kept>>>);

impl KeptCopies {
    /// The copy of this version, which counts as used.
    pub(super) fn find(&self, fid: Fid, version: u64, now: BootTime) -> Option<Arc<Kept>> {
        let copies = self.0.lock();
        let kept = copies.get(&(fid.vnode, version)).filter(|kept| kept.fid == fid)?;
        // While nobody can take it out for being unused.
        *kept.used.lock() = now;
        Some(Arc::clone(kept))
    }

    /// Adds a copy; and says which has to go for it, or because there was one of that version.
    fn add(&self, kept: Arc<Kept>, removals: &Arc<Removals>) -> Option<Leaving<Kept>> {
        let key = (kept.fid.vnode, kept.record.data_change);
        let mut copies = self.0.lock();
        if let Some(same) = copies.remove(&key) {
            copies.insert(key, kept);
            return Some(Leaving::new(same, removals));
        }
        let of_file = (key.0, 0)..=(key.0, u64::MAX);
        let is_much = copies.range(of_file.clone()).count() >= MAX_COPIES_OF_FILE;
        let idle = kept.used.lock().checked_sub(COPY_IN_USE);
        // More of a file while all of them are in use: who loses one begins anew, and makes another.
        let of_file = if is_much { oldest(copies.range(of_file)) } else { None };
        let of_file = of_file.filter(|(_, used)| idle.is_some_and(|idle| *used <= idle));
        let of_all = || if copies.len() >= MAX_COPIES { oldest(copies.iter()) } else { None };
        let dropped = of_file.or_else(of_all).and_then(|(key, _)| copies.remove(&key));
        copies.insert(key, kept);
        dropped.map(|dropped| Leaving::new(dropped, removals))
    }

    fn take(&self, removals: &Arc<Removals>, which: impl Fn(&Kept) -> bool) -> Vec<Leaving<Kept>> {
        let mut copies = self.0.lock();
        copies.extract_if(.., |_, kept| which(kept)).map(|(_, kept)| Leaving::new(kept, removals)).collect()
    }

    /// Takes out what nobody uses, or used since `moment`.
    pub(super) fn take_unused(&self, moment: BootTime, removals: &Arc<Removals>) -> Vec<Leaving<Kept>> {
        self.take(removals, |kept| *kept.used.lock() <= moment && kept.scratch.try_write().is_ok())
    }

    /// Takes out the copies of a vnode.
    pub(super) fn take_of(&self, vnode: u64, removals: &Arc<Removals>) -> Vec<Leaving<Kept>> {
        self.take(removals, |kept| kept.fid.vnode == vnode)
    }

    /// Takes out everything.
    pub(super) fn take_all(&self, removals: &Arc<Removals>) -> Vec<Leaving<Kept>> {
        self.take(removals, |_| true)
    }
}

/// Which of these copies was used least lately, and when.
fn oldest<'a>(copies: impl Iterator<Item = (&'a (u64, u64), &'a Arc<Kept>)>) -> Option<((u64, u64), BootTime)> {
    copies.map(|(key, kept)| (*key, *kept.used.lock())).min_by_key(|(_, used)| *used)
}

impl Data {
    /// A copy of the file's current version: the one that is kept, or a new one. `None` if the file is so small that
    /// its contents are in the metadata.
    ///
    /// To be run whole: what is cut in two leaves a content file behind until the volume is opened again.
    pub(super) async fn keep_copy(self: &Arc<Self>, fid: Fid) -> Result<Option<Arc<Kept>>, ErrorCode> {
        let record = self.load_file(fid)?;
        if record.body == Body::Inline {
            return Ok(None);
        }
        if let Some(kept) = self.kept.find(fid, record.data_change, self.runtime.boottime()) {
            return Ok(Some(kept));
        }
        if !self.room.has_room_for(record.blocks.saturating_mul(512)) {
            return Err(ErrorCode::NoSpace);
        }
        let scratch = self.begin_scratch(fid.vnode).await?;
        match self.copy_into(fid, &scratch).await {
            Ok(Some(mut kept)) => {
                kept.scratch = tokio::sync::RwLock::new(Some(scratch));
                let kept = Arc::new(kept);
                if let Some(dropped) = self.kept.add(Arc::clone(&kept), &self.removals) {
                    self.drop_kept_later(dropped);
                }
                // Whoever removes the file drops the copies that it finds, which may be just before.
                if let Err(ErrorCode::Stale) = self.load_file(fid) {
                    self.drop_scratch_of(fid.vnode);
                    return Err(ErrorCode::Stale);
                }
                Ok(Some(kept))
            }
            other => {
                self.discard(scratch).await;
                other.map(|_| None)
            }
        }
    }

    /// Copies a file, under its gate. Shared suffices: whoever changes contents has it alone (D1).
    async fn copy_into(&self, fid: Fid, scratch: &Scratch) -> Result<Option<Kept>, ErrorCode> {
        let _pass = self.gates.shared(fid.vnode).await;
        let record = self.load_file(fid)?;
        let Body::Content { version } = record.body else { return Ok(None) };
        let (from, to, size) = (ContentId { vnode: fid.vnode, version }, scratch.id, record.size);
        let copied = self.blocking(move |content| copy_data(content, from, to, size)).await;
        copied.map_err(|error| self.content_error(from, "copy", &error))?;
        let unstored = self.dirty.get(fid.vnode).map(|file| file.frozen());
        let snapshot = self.meta.snapshot()?;
        let mut stored = BTreeMap::new();
        for (key, row) in Verified(&*snapshot).with_prefix(Table::Checksums, &keys::vnode(fid.vnode), usize::MAX)? {
            if let Some(number) = key.get(8..).and_then(keys::number) {
                stored.insert(number, Group::from_row(row)?);
            }
        }
        // Removal is the one thing that takes the checksums away without the gate.
        self.load_file(fid)?;
        let used = Mutex::new(self.runtime.boottime());
        let scratch = tokio::sync::RwLock::new(None);
        Ok(Some(Kept { fid, record, id: to, unstored, stored, scratch, used }))
    }

    /// Reads a part of a copy and verifies it. `None` if it was dropped.
    pub(super) async fn read_kept(&self, kept: &Kept, offset: u64, len: u64) -> Result<Option<Bytes>, ErrorCode> {
        let scratch = kept.scratch.read().await;
        if scratch.is_none() {
            return Ok(None);
        }
        let Some(piece) = self.read_blocks(kept.id, &kept.record, offset, len).await? else {
            return Ok(Some(Bytes::new()));
        };
        let stored = |group| Ok(kept.stored.get(&group).cloned().unwrap_or_default());
        if let Some(block) = first_bad(piece.start, &piece.whole, kept.unstored.as_ref(), stored)? {
            let vnode = kept.fid.vnode;
            tracing::error!("volume {}, vnode {vnode}: block {block} of a copy is damaged", self.id);
            return Err(ErrorCode::Io);
        }
        Ok(Some(piece.asked))
    }

    /// Removes a copy that was taken out, once nobody reads it.
    pub(super) async fn drop_kept(&self, kept: Leaving<Kept>) {
        let scratch = kept.what.scratch.write().await.take();
        if let Some(scratch) = scratch {
            self.discard(scratch).await;
        }
    }

    /// As [`drop_kept`](Data::drop_kept), with nobody waiting for it.
    pub(super) fn drop_kept_later(self: &Arc<Self>, kept: Leaving<Kept>) {
        let data = Arc::clone(self);
        self.later(async move { data.drop_kept(kept).await });
    }
}

/// Copies the data of the first `size` bytes, and no holes: the kernel would write these out as zeros.
fn copy_data(content: &dyn Content, from: ContentId, to: ContentId, size: u64) -> std::io::Result<()> {
    let mut at = 0;
    while at < size {
        let Some(data) = content.seek(from, at, SeekWhat::Data)?.filter(|data| *data < size) else { break };
        let end = content.seek(from, data, SeekWhat::Hole)?.unwrap_or(size).min(size);
        let mut done = data;
        while done < end {
            match content.copy(from, done, to, done, end - done)? {
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                more => done += more,
            }
        }
        at = end;
    }
    if content.stat(to)?.size < size { content.truncate(to, size) } else { Ok(()) }
}
