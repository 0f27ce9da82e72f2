//! File contents: reading, writing, and keeping contents and metadata in step.
//!
//! Small contents live in the metadata and change with it, in one batch. Larger ones live in a content file, which is
//! written in place and gets ahead of the metadata; until it is *settled* the file is *dirty*:
//!
//! **D1**, **D2**: the gates; see `gates`.
//! **D3.** Before a content file is written, its vnode is entered durably in `Dirty`. Recovery takes the size from the
//! content file, and a new change attribute, for exactly those.
//! **D4.** What is done to a content file beside writing (making it, cutting it, holes) is first entered in `Intents`
//! by the batch that says it was done. Recovery does it again.
//! **D5.** `Dirty` rows go only after the content file was synced, in the batch that stores its size and checksums.
//! `Intents` rows go with them, or, where carrying one out again could undo a later write, before such a write is
//! acknowledged as durable.
//! **D6.** The attributes of a dirty file are its record with [`unsettled`] laid over it. What is unsettled is asked
//! for before the snapshot is taken.
//! **D7.** A file that was only appended to is dirty as `Appending`: its record's size counts, and is committed with
//! the slot row after the data is durable. So an append happens once, whole, or not at all.
//! **D8.** The write verifier changes when a sync failed, and what memory holds of that file is dropped.
//! **D9**: content files that are no file's contents; see `scratch`.

pub(super) mod allocate;
mod append;
pub mod checksums;
pub(super) mod copy;
#[cfg(test)]
mod crash_tests;
pub(crate) mod dirty;
pub(super) mod fetch;
#[cfg(test)]
mod fetch_tests;
pub(crate) mod gates;
pub(super) mod kept;
mod prepare;
#[cfg(test)]
mod race_tests;
mod read;
pub(super) mod reclaim;
#[cfg(test)]
mod reclaim_tests;
pub(crate) mod room;
mod scratch;
pub(crate) mod settle;
pub(super) mod stage;
mod store;
#[cfg(test)]
mod store_tests;
#[cfg(test)]
mod tests;
mod truncate;
pub mod unsettled;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use larder_protocol::attr::{Attr, Credential, FileType, Timestamp};
use larder_protocol::error::ErrorCode;
use larder_protocol::failpoint::Planted;
use larder_protocol::ids::{Epoch, Fid, Verifier, VolumeId};
use larder_protocol::runtime::{RuntimeExt, SharedRuntime};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::content::{Content, ContentId};
use super::context::{ChangeCounter, Context};
use super::error::{StoreError, io_code};
use super::meta::Metadata;
use super::record::{Body, VnodeRecord};
use super::view::{Records, Verified};
use super::writer::Writer;
use crate::failpoint::Failpoint;
use dirty::{DirtyFile, DirtyFiles};
use gates::Gates;
use kept::KeptCopies;
use reclaim::{Removals, Removing, Waiting};
use room::RoomGauge;
use scratch::Scratch;
use stage::Stages;
use unsettled::UnsettledMap;

/// Files that can be synced beside each other.
pub(super) const SYNC_LOCKS: usize = 64;

/// Contents of a volume's files.
pub(super) struct Data {
    pub(super) id: VolumeId,
    pub(super) epoch: Epoch,
    pub(super) incarnation: u64,
    /// Whether what is acknowledged must survive a power cut.
    pub(super) durable: bool,
    pub(super) meta: Arc<dyn Metadata>,
    pub(super) content: Arc<dyn Content>,
    pub(super) runtime: SharedRuntime,
    pub(super) writer: Arc<Writer>,
    pub(super) changes: Arc<ChangeCounter>,
    pub(super) unsettled: Arc<UnsettledMap>,
    pub(super) room: Arc<RoomGauge>,
    pub(super) gates: Gates,
    pub(super) dirty: DirtyFiles,
    /// Contents that clients stage.
    pub(super) stages: Stages,
    /// Copies kept for fetches.
    pub(super) kept: KeptCopies,
    /// How often trust in the page cache ended (D8).
    pub(super) distrusted: AtomicU64,
    /// Under `process`: content files with acknowledged changes that are to be synced with the next beat.
    pub(super) unsynced: Mutex<BTreeSet<ContentId>>,
    /// Content files to be removed once the batch that says so is durable, with their intents (`process` durability).
    pub(super) to_remove: Mutex<Vec<Removal>>,
    /// What is being removed, for who needs the room.
    pub(super) removals: Arc<Removals>,
    /// Scratch content files that were to go while a batch was in doubt (D9).
    pub(super) undecided: Mutex<Vec<Scratch>>,
    /// Removed content files whose intents are still there: vnode and number.
    pub(super) removed: Mutex<Vec<(u64, u64)>>,
    /// Files whose access time is to be renewed, with their generations.
    pub(super) touched: Mutex<BTreeMap<u64, (u64, Timestamp)>>,
    /// Held by vnode while a file is synced: the kernel reports a failure once, and whoever else asks must find it
    /// counted.
    pub(super) syncing: [Mutex<()>; SYNC_LOCKS],
    /// What goes on beside requests: it ends before the volume is closed.
    pub(super) tasks: TaskTracker,
    /// Set when the volume is closed: what it does by itself ends.
    pub(super) ending: CancellationToken,
    /// Set when the server is to end: nobody waits for room any more.
    pub(super) hurry: CancellationToken,
    /// For who waits for room.
    pub(super) waiting: Waiting,
}

/// A content file that is to be removed.
#[derive(Debug)]
pub(super) struct Removal {
    pub(super) id: ContentId,
    /// The number of the intent that says so, which a committed batch holds.
    pub(super) intent: u64,
    pub(super) removing: Removing,
}

impl Data {
    /// The write verifier.
    pub(super) fn verifier(&self) -> Verifier {
        // Incarnations are far apart, and a disk does not fail that often.
        let volume = self.incarnation.wrapping_add(self.distrusted.load(Ordering::Acquire));
        Verifier { epoch: self.epoch, volume }
    }

    /// Does something that nobody waits for but the end of the volume.
    pub(super) fn later(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(Box::pin(self.tasks.track_future(work)));
    }

    /// The record that a file handle names, as it is now (D6).
    pub(super) fn load(&self, fid: Fid) -> Result<VnodeRecord, ErrorCode> {
        let record = self.current(fid.vnode)?;
        if record.generation != fid.generation || fid.volume != self.id {
            return Err(ErrorCode::Stale);
        }
        Ok(record)
    }

    /// A vnode's record, as it is now (D6).
    fn current(&self, vnode: u64) -> Result<VnodeRecord, ErrorCode> {
        let unsettled = self.unsettled.get(vnode);
        let snapshot = self.meta.glance()?;
        let mut record = Verified(&*snapshot).vnode(vnode)?.ok_or(ErrorCode::Stale)?;
        if let Some(unsettled) = unsettled {
            unsettled.lay_over(&mut record);
        }
        Ok(record)
    }

    /// As [`load`](Data::load), for a regular file.
    fn load_file(&self, fid: Fid) -> Result<VnodeRecord, ErrorCode> {
        let record = self.load(fid)?;
        need_file(&record)?;
        Ok(record)
    }

    fn attr(&self, vnode: u64, record: &VnodeRecord) -> Attr {
        record.attr(self.id, vnode)
    }

    /// Runs work on content files where it may block.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Content) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let content = Arc::clone(&self.content);
        let done = self.runtime.blocking(move || work(&*content)).await;
        done.unwrap_or_else(|| Err(io::Error::other("work on a content file panicked")))
    }

    /// The wire error for a failure of a content file, after logging it.
    fn content_error(&self, id: ContentId, what: &str, error: &io::Error) -> ErrorCode {
        let code = io_code(error);
        if code == ErrorCode::Io {
            let (volume, vnode) = (self.id, id.vnode);
            tracing::error!("volume {volume}, vnode {vnode}: cannot {what} its content file: {error}");
        }
        code
    }

    /// Makes a content file durable (under `power`). A failure ends trust in the page cache (D8).
    async fn sync(self: &Arc<Self>, id: ContentId) -> Result<(), ErrorCode> {
        if !self.durable {
            self.unsynced.lock().insert(id);
            return Ok(());
        }
        self.sync_now(id).await
    }

    /// Makes everything written to a dirty file so far durable (D5).
    async fn make_durable(self: &Arc<Self>, file: &Arc<DirtyFile>) -> Result<(), ErrorCode> {
        // Listed first: an intent that comes later may not have been carried out when the sync begins.
        let intents = file.intents_to_clear();
        self.sync(file.id).await?;
        if intents.is_empty() {
            return Ok(());
        }
        let vnode = file.id.vnode;
        let numbers = intents.clone();
        self.writer
            .internal(move |cx| {
                for number in numbers {
                    cx.draft.delete(super::keys::Table::Intents, &super::keys::intent(vnode, number));
                }
                Ok(())
            })
            .await?;
        file.cleared(&intents);
        Ok(())
    }

    /// As [`sync`](Data::sync), under any durability.
    async fn sync_now(self: &Arc<Self>, id: ContentId) -> Result<(), ErrorCode> {
        if Planted::AcknowledgeEarly.is_on() {
            return Ok(());
        }
        let data = Arc::clone(self);
        let synced = self
            .blocking(move |content| {
                let _one_at_a_time = data.syncing[id.vnode as usize % SYNC_LOCKS].lock();
                let synced = content.sync(id);
                if let Err(error) = &synced
                    && error.kind() != io::ErrorKind::NotFound
                {
                    data.distrusted.fetch_add(1, Ordering::AcqRel);
                    if let Err(error) = content.distrust(id) {
                        tracing::error!("vnode {}: cannot drop its cached pages: {error}", id.vnode);
                    }
                }
                synced
            })
            .await;
        match synced {
            Ok(()) => Ok(()),
            // Content files go with their vnodes, or when others take their place.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(ErrorCode::Stale),
            Err(error) => Err(self.content_error(id, "sync", &error)),
        }
    }

    /// Under `process`: makes what was acknowledged since the last beat durable. Says whether all of it is; what is not is
    /// tried again with the next.
    #[must_use]
    pub(super) async fn sync_acknowledged(self: &Arc<Self>) -> bool {
        let ids = std::mem::take(&mut *self.unsynced.lock());
        let mut is_well = true;
        for id in ids {
            match self.sync_now(id).await {
                Ok(()) | Err(ErrorCode::Stale) => {}
                Err(_) => {
                    self.unsynced.lock().insert(id);
                    is_well = false;
                }
            }
        }
        is_well
    }

    /// After a mutation that replaced a file's contents as a whole, or freed the file: nothing is dirty there any
    /// more. Called under the gate, or when the vnode is gone.
    pub(super) fn forget(&self, vnode: u64) {
        self.dirty.remove(vnode);
        self.unsettled.remove(vnode);
    }

    /// Makes removals durable, then lets go of their intents.
    pub(super) async fn finish_removals(&self) {
        let removed = std::mem::take(&mut *self.removed.lock());
        if removed.is_empty() {
            return;
        }
        if let Err(error) = self.blocking(|content| content.sync_removals()).await {
            tracing::warn!("volume {}: cannot sync the removal of old contents: {error}", self.id);
            self.removed.lock().extend(removed);
            return;
        }
        self.writer.lazily(move |cx| {
            for (vnode, intent) in removed {
                cx.draft.delete(super::keys::Table::Intents, &super::keys::intent(vnode, intent));
            }
            Ok(())
        });
    }

    /// Removes a content file; the intent goes once that is durable. Waits for the gate, so that an operation that is
    /// making the file ends first.
    pub(super) async fn remove_content(&self, removal: Removal) {
        let Removal { id, intent, removing } = removal;
        let _pass = self.gates.alone(id.vnode).await;
        Failpoint::Removing.pass();
        let removed = self.blocking(move |content| content.remove(id)).await;
        drop(removing);
        match removed {
            Ok(()) => self.removed.lock().push((id.vnode, intent)),
            // The intent stays, so the next start tries again.
            Err(error) => tracing::warn!("vnode {}: cannot remove its old contents: {error}", id.vnode),
        }
    }
}

/// What only regular files have.
fn need_file(record: &VnodeRecord) -> Result<(), ErrorCode> {
    match record.kind() {
        FileType::Regular => Ok(()),
        FileType::Directory => Err(ErrorCode::IsDirectory),
        _ => Err(ErrorCode::Invalid),
    }
}

/// Units of 512 bytes that inline contents count as.
pub(super) fn inline_blocks(size: u64) -> u64 {
    size.div_ceil(512)
}

/// The contents of an inline file, to be changed. Fails with `Stale` if the file is gone.
fn inline_contents(cx: &Context<'_, '_>, fid: Fid) -> Result<(VnodeRecord, Vec<u8>), ErrorCode> {
    let record = cx.resolve(fid)?;
    if record.body != Body::Inline {
        // Only under the gate does a body change (D1), and the caller has it.
        return Err(StoreError::Corrupt(format!("vnode {} changed under its gate", fid.vnode)).into());
    }
    let contents = cx.draft.inline(fid.vnode, &record)?;
    Ok((record, contents.into()))
}

/// Stores inline contents and the size that follows from them; the caller stores the record.
fn put_inline(cx: &mut Context<'_, '_>, vnode: u64, record: &mut VnodeRecord, contents: Vec<u8>) {
    let key = super::keys::vnode(vnode);
    record.size = contents.len() as u64;
    record.blocks = inline_blocks(record.size);
    if contents.is_empty() {
        cx.draft.delete(super::keys::Table::Inline, &key);
    } else {
        cx.draft.put_bytes(super::keys::Table::Inline, &key, contents);
    }
}

/// Puts `data` at `offset` of inline contents, with zeros before it where they end earlier.
fn splice(contents: &mut Vec<u8>, offset: u64, data: &[u8]) {
    // Callers checked that the end is within INLINE_MAX.
    let (start, end) = (offset as usize, offset as usize + data.len());
    if contents.len() < end {
        contents.resize(end, 0);
    }
    contents[start..end].copy_from_slice(data);
}

/// Clears what a write by this caller takes away (setuid, setgid, file capabilities), if anything.
fn drop_privileges(
    cx: &mut Context<'_, '_>,
    cred: &Credential,
    vnode: u64,
    record: &mut VnodeRecord,
) -> Result<bool, ErrorCode> {
    let mut changed = super::access::drop_privileges(cred, record);
    if record.xattrs > 0 {
        let key = super::keys::xattr(vnode, b"security.capability");
        if cx.get(super::keys::Table::Xattrs, &key)?.is_some() {
            cx.draft.delete(super::keys::Table::Xattrs, &key);
            record.xattrs -= 1;
            changed = true;
        }
    }
    Ok(changed)
}

/// A part of contents in memory.
fn slice(contents: &Bytes, offset: u64, len: u64) -> Bytes {
    let start = offset.min(contents.len() as u64) as usize;
    let end = offset.saturating_add(len).min(contents.len() as u64) as usize;
    contents.slice(start..end)
}
