//! Opening a volume: what a crash left half done is finished or taken back.
//!
//! Only files in `Dirty` and rows in `Intents` are looked at, so this takes no longer for a volume of a million files.
//! The incarnation is raised durably before anything else can be given out.

use std::sync::Arc;

use larder_protocol::failpoint::Planted;
use larder_protocol::runtime::SharedRuntime;

use super::codec;
use super::content::{Content, ContentId};
use super::context::{ChangeCounter, next_incarnation};
use super::data::dirty::DirtyFile;
use super::error::{StoreError, StoreResult};
use super::keys::{self, Table};
use super::meta::Metadata;
use super::record::{Body, DirtyRecord, FORMAT, HeaderRecord, Intent, VnodeRecord};
use super::view::{Draft, Records, Verified};
use crate::failpoint::Failpoint;

/// A volume ready to be served.
pub(super) struct Recovered {
    pub(super) header: HeaderRecord,
    pub(super) changes: ChangeCounter,
    /// Files to be settled.
    pub(super) dirty: Vec<DirtyFile>,
}

/// Recovers a volume.
pub(super) fn recover(
    meta: &dyn Metadata,
    content: &Arc<dyn Content>,
    runtime: &SharedRuntime,
) -> StoreResult<Recovered> {
    let snapshot = meta.snapshot()?;
    let view = Verified(&*snapshot);
    let mut header = view.header()?;
    if header.format != FORMAT {
        let format = header.format;
        return Err(StoreError::Corrupt(format!("the volume has format {format}, and this build knows {FORMAT} only")));
    }
    if !Planted::ReuseGeneration.is_on() {
        header.incarnation = next_incarnation(header.incarnation, runtime.wall(), runtime.random());
    }
    header.sequence += 1;
    let changes = ChangeCounter::new(header.incarnation);
    let mut draft = Draft::new(&view);
    carry_out_intents(&mut draft, content)?;
    let mut dirty = Vec::new();
    for (key, value) in view.with_prefix(Table::Dirty, &[], usize::MAX)? {
        let vnode =
            keys::number(&key).ok_or_else(|| StoreError::Corrupt("a key in `dirty` is malformed".to_owned()))?;
        let mode: DirtyRecord = codec::decode(&value)?;
        match draft.vnode(vnode)? {
            Some(record) => {
                if let Some(id) =
                    recover_file(&mut draft, content, runtime, &mut header, &changes, vnode, record, mode)?
                {
                    let file = DirtyFile::recovered(id, mode, runtime.boottime());
                    for (number, cuts) in intents_left(&draft, vnode)? {
                        file.note_intent(number, cuts);
                    }
                    file.carried_out();
                    dirty.push(file);
                }
            }
            None => draft.delete(Table::Dirty, &key),
        }
    }
    if !dirty.is_empty() {
        tracing::info!("volume {}: {} files were being written when it was last closed", header.name, dirty.len());
    }
    draft.put(Table::Header, keys::HEADER, &header)?;
    // Before the intents that say so are gone: a power cut can bring a removed file back.
    content.sync_removals()?;
    let batch = draft.into_batch();
    drop(snapshot);
    Failpoint::Recovering.pass();
    match meta.commit(header.sequence, &batch, true) {
        Err(StoreError::Full) => {
            meta.tidy()?;
            meta.commit(header.sequence, &batch, true)?;
        }
        done => done?,
    }
    Failpoint::Recovered.pass();
    Ok(Recovered { header, changes, dirty })
}

/// Does again, in order, what intents say (D4). Their rows stay until the file is settled; those of contents that are
/// to be removed go at once.
fn carry_out_intents(draft: &mut Draft<'_>, content: &Arc<dyn Content>) -> StoreResult<()> {
    for (key, value) in draft.with_prefix(Table::Intents, &[], usize::MAX)? {
        let vnode = key.get(..8).and_then(keys::number);
        let vnode = vnode.ok_or_else(|| StoreError::Corrupt("a key in `intents` is malformed".to_owned()))?;
        let intent: Intent = codec::decode(&value)?;
        let record = draft.vnode(vnode)?;
        let current = record.as_ref().and_then(|record| match record.body {
            Body::Content { version } => Some(version),
            _ => None,
        });
        let id = |version| ContentId { vnode, version };
        match intent {
            Intent::Remove { version } => {
                if tolerable(vnode, content.remove(id(version)))? {
                    draft.delete(Table::Intents, &key);
                }
            }
            Intent::Begin { version } if current == Some(version) => {
                tolerable(vnode, content.create(id(version)))?;
            }
            Intent::Truncate { version, size } if current == Some(version) => {
                tolerable(vnode, content.truncate(id(version), size))?;
            }
            Intent::Punch { version, offset, len } if current == Some(version) => {
                tolerable(vnode, content.punch(id(version), offset, len))?;
            }
            Intent::Reserve { version, offset, len, keep_size } if current == Some(version) => {
                if let Err(error) = content.reserve(id(version), offset, len, keep_size) {
                    // It is a promise of space, not of data.
                    tracing::warn!("vnode {vnode}: cannot reserve {len} bytes at {offset} again: {error}");
                }
            }
            // The file has other contents by now.
            _ => draft.delete(Table::Intents, &key),
        }
    }
    Ok(())
}

/// One file whose contents are missing, or a full disk, must not keep a volume closed. Says whether it was done.
fn tolerable(vnode: u64, done: std::io::Result<()>) -> StoreResult<bool> {
    match done {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::StorageFull) => {
            tracing::error!("vnode {vnode}: cannot finish what a crash left half done: {error}");
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

/// The intents that a file still has, with whether doing one again could undo a later write.
fn intents_left(draft: &Draft<'_>, vnode: u64) -> StoreResult<Vec<(u64, bool)>> {
    let row = |(key, value): (Vec<u8>, Vec<u8>)| {
        let number = key.get(8..).and_then(keys::number);
        let number = number.ok_or_else(|| StoreError::Corrupt("a key in `intents` is malformed".to_owned()))?;
        let intent: Intent = codec::decode(&value)?;
        Ok((number, !matches!(intent, Intent::Begin { .. })))
    };
    draft.with_prefix(Table::Intents, &keys::vnode(vnode), usize::MAX)?.into_iter().map(row).collect()
}

/// Brings the record of a file that was dirty in line with its content file (D3, D7).
#[expect(clippy::too_many_arguments, reason = "one step of `recover`, with its parts")]
fn recover_file(
    draft: &mut Draft<'_>,
    content: &Arc<dyn Content>,
    runtime: &SharedRuntime,
    header: &mut HeaderRecord,
    changes: &ChangeCounter,
    vnode: u64,
    mut record: VnodeRecord,
    mode: DirtyRecord,
) -> StoreResult<Option<ContentId>> {
    let Body::Content { version } = record.body else {
        draft.delete(Table::Dirty, &keys::vnode(vnode));
        return Ok(None);
    };
    let id = ContentId { vnode, version };
    let mut stat = match content.stat(id) {
        Ok(stat) => stat,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            tracing::error!("vnode {vnode}: its content file is missing; larderd check will say more");
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    if mode == DirtyRecord::Appending && stat.size > record.size {
        content.truncate(id, record.size)?;
        stat = content.stat(id)?;
    }
    header.blocks = (header.blocks + stat.blocks).saturating_sub(record.blocks);
    if mode == DirtyRecord::InPlace && stat.modified > record.ctime {
        // Written after the record was: times that were set later than the last write stay.
        record.mtime = stat.modified;
    } else if record.size != stat.size {
        record.mtime = runtime.wall();
    }
    record.size = stat.size;
    record.blocks = stat.blocks;
    record.change = changes.next();
    record.data_change = record.change;
    record.ctime = runtime.wall();
    draft.put_vnode(vnode, &record)?;
    Ok(Some(id))
}
