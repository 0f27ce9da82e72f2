//! Reading contents, with their checksums verified.

use std::sync::Arc;

use bytes::Bytes;
use larder_protocol::attr::{Credential, Timestamp};
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::Fid;
use larder_protocol::limits::MAX_PAYLOAD;
use larder_protocol::payload::Payload;
use larder_protocol::service::file::{QueryReply, SeekWhat};

use super::checksums::{self, Group};
use super::dirty::{DirtyFile, Expect, blocks_of};
use super::{Data, need_file, slice};
use crate::volume::access;
use crate::volume::content::ContentId;
use crate::volume::error::StoreResult;
use crate::volume::record::{BLOCK, Body, VnodeRecord};
use crate::volume::view::{Records, Verified};

/// Files whose access times wait to be renewed; of more than that, some are not.
const MAX_TOUCHED: usize = 4096;

/// An access time is renewed when it is older than this many seconds, or than the last change (`relatime`, mount(8)).
const RELATIME_SECS: i64 = 24 * 3600;

/// A part of a content file.
pub(super) struct Piece {
    /// Where the first of its blocks begins.
    pub(super) start: u64,
    /// The blocks that it lies in, whole but for the file's last.
    pub(super) whole: Bytes,
    /// The part itself.
    pub(super) asked: Bytes,
}

impl Data {
    /// Answers a read. Fewer bytes than asked mean the end of the file.
    pub(in crate::volume) async fn read(
        self: &Arc<Self>,
        cred: &Credential,
        fid: Fid,
        offset: u64,
        len: u32,
        touch: bool,
    ) -> Result<QueryReply, ErrorCode> {
        let len = u64::from(len).min(MAX_PAYLOAD as u64);
        let (data, record) = match self.read_inline(cred, access::may_read_data, fid, offset, len)? {
            Some(done) => done,
            None => {
                let _pass = self.gates.shared(fid.vnode).await;
                match self.read_inline(cred, access::may_read_data, fid, offset, len)? {
                    // It became inline while we waited.
                    Some(done) => done,
                    None => self.read_content(fid, offset, len).await?,
                }
            }
        };
        if touch {
            self.touch_atime(fid, &record);
        }
        Ok(QueryReply::Data { data: Payload(data), attr: self.attr(fid.vnode, &record) })
    }

    /// Reads a file whose contents are in the metadata: one snapshot has both, so no gate is needed. `None` if they
    /// are in a content file. Only who `may` read them.
    pub(super) fn read_inline(
        &self,
        cred: &Credential,
        may: fn(&Credential, &VnodeRecord) -> bool,
        fid: Fid,
        offset: u64,
        len: u64,
    ) -> Result<Option<(Bytes, VnodeRecord)>, ErrorCode> {
        let snapshot = self.meta.snapshot()?;
        let view = Verified(&*snapshot);
        let record = view.vnode(fid.vnode)?.ok_or(ErrorCode::Stale)?;
        if record.generation != fid.generation || fid.volume != self.id {
            return Err(ErrorCode::Stale);
        }
        need_file(&record)?;
        if !may(cred, &record) {
            return Err(ErrorCode::AccessDenied);
        }
        if record.body != Body::Inline {
            return Ok(None);
        }
        let contents = if offset < record.size { view.inline(fid.vnode, &record)? } else { Bytes::new() };
        Ok(Some((slice(&contents, offset, len), record)))
    }

    async fn read_content(&self, fid: Fid, offset: u64, len: u64) -> Result<(Bytes, VnodeRecord), ErrorCode> {
        let record = self.load_file(fid)?;
        let Body::Content { version } = record.body else { return Err(ErrorCode::Internal) };
        let id = ContentId { vnode: fid.vnode, version };
        let data = self.read_range(id, &record, offset, len).await?;
        Ok((data, record))
    }

    /// Reads a part of a content file and verifies it. Under the gate.
    pub(super) async fn read_range(
        &self,
        id: ContentId,
        record: &VnodeRecord,
        offset: u64,
        len: u64,
    ) -> Result<Bytes, ErrorCode> {
        let Some(piece) = self.read_blocks(id, record, offset, len).await? else { return Ok(Bytes::new()) };
        self.verify(id, piece.start, &piece.whole)?;
        Ok(piece.asked)
    }

    /// Reads a part of a content file and what else is in its blocks. `None` behind the end.
    pub(super) async fn read_blocks(
        &self,
        id: ContentId,
        record: &VnodeRecord,
        offset: u64,
        len: u64,
    ) -> Result<Option<Piece>, ErrorCode> {
        let end = offset.saturating_add(len).min(record.size);
        if offset >= end {
            return Ok(None);
        }
        // Whole blocks, because a checksum can only be verified over one.
        let start = offset / BLOCK * BLOCK;
        let whole = (end.div_ceil(BLOCK) * BLOCK).min(record.size);
        let want = (whole - start) as usize;
        let cached = self.content.read_cached(id, start, want);
        let read = match cached {
            Ok(Some(bytes)) => Ok(bytes),
            Ok(None) => self.blocking(move |content| content.read(id, start, want)).await,
            Err(error) => Err(error),
        };
        let bytes = read.map_err(|error| self.content_error(id, "read", &error))?;
        if bytes.len() != want {
            let (has, vnode) = (start + bytes.len() as u64, id.vnode);
            tracing::error!("vnode {vnode}: its content file ends at {has}, before byte {whole}");
            return Err(ErrorCode::Io);
        }
        let asked = bytes.slice((offset - start) as usize..(end - start) as usize);
        Ok(Some(Piece { start, whole: bytes, asked }))
    }

    fn verify(&self, id: ContentId, start: u64, bytes: &Bytes) -> Result<(), ErrorCode> {
        let dirty = self.dirty.get(id.vnode);
        let snapshot = self.meta.snapshot()?;
        let view = Verified(&*snapshot);
        let bad = first_bad(start, bytes, dirty.as_deref(), |group| checksums::load(&view, id.vnode, group))?;
        let Some(block) = bad else { return Ok(()) };
        let version = view.vnode(id.vnode)?.map(|record| record.body);
        if version != Some(Body::Content { version: id.version }) {
            // Removed, or emptied, while it was read: its checksums went with it.
            return Err(ErrorCode::Stale);
        }
        tracing::error!("volume {}, vnode {}: block {block} does not match its checksum", self.id, id.vnode);
        Err(ErrorCode::Io)
    }

    /// Renews the access time with some later batch, if `relatime` asks for it.
    pub(super) fn touch_atime(&self, fid: Fid, record: &VnodeRecord) {
        let now = self.runtime.wall();
        if !wants_touch(record, now) {
            return;
        }
        let mut touched = self.touched.lock();
        if touched.len() < MAX_TOUCHED {
            touched.insert(fid.vnode, (fid.generation, now));
        }
    }

    /// Hands the access times that were renewed to the next batch.
    pub(in crate::volume) fn store_touched(&self) {
        let touched = std::mem::take(&mut *self.touched.lock());
        if touched.is_empty() {
            return;
        }
        self.writer.lazily(move |cx| {
            for (vnode, (generation, now)) in touched {
                // Against the stored record: what lies over it belongs to the file's own writes.
                let Some(mut stored) = cx.draft.vnode(vnode)? else { continue };
                if stored.generation == generation && wants_touch(&stored, now) {
                    stored.atime = now;
                    cx.draft.put_vnode(vnode, &stored)?;
                }
            }
            Ok(())
        });
    }

    /// Answers lseek's questions.
    pub(in crate::volume) async fn seek(
        &self,
        cred: &Credential,
        fid: Fid,
        offset: u64,
        what: SeekWhat,
    ) -> Result<QueryReply, ErrorCode> {
        let _pass = self.gates.shared(fid.vnode).await;
        let record = self.load_file(fid)?;
        if !access::may_read_data(cred, &record) {
            return Err(ErrorCode::AccessDenied);
        }
        if offset >= record.size {
            return Err(ErrorCode::NoSuchRange);
        }
        let found = match (record.body, what) {
            (Body::Content { version }, what) => {
                let id = ContentId { vnode: fid.vnode, version };
                let found = self.blocking(move |content| content.seek(id, offset, what)).await;
                found.map_err(|error| self.content_error(id, "seek in", &error))?
            }
            (_, SeekWhat::Data) => Some(offset),
            (_, SeekWhat::Hole) => Some(record.size),
        };
        match (found, what) {
            (Some(at), SeekWhat::Data) if at >= record.size => Err(ErrorCode::NoSuchRange),
            (Some(at), _) => Ok(QueryReply::Offset(at.min(record.size))),
            (None, SeekWhat::Hole) => Ok(QueryReply::Offset(record.size)),
            (None, SeekWhat::Data) => Err(ErrorCode::NoSuchRange),
        }
    }
}

/// The first of the blocks from `start` on that is not what it must be by what is known of a dirty file, or else by the
/// `stored` checksums.
pub(super) fn first_bad(
    start: u64,
    bytes: &Bytes,
    dirty: Option<&DirtyFile>,
    stored: impl Fn(u64) -> StoreResult<Group>,
) -> StoreResult<Option<u64>> {
    let mut group: Option<(u64, Group)> = None;
    for block in blocks_of(start, bytes.len() as u64) {
        let from = (block * BLOCK - start) as usize;
        let data = &bytes[from..bytes.len().min(from + BLOCK as usize)];
        let expected = match dirty.map_or(Expect::Stored, |file| file.expect(block)) {
            Expect::Unknown => continue,
            Expect::Zero => None,
            Expect::Checksum(checksum) => Some(checksum),
            Expect::Stored => {
                let (number, index) = checksums::place(block);
                if group.as_ref().is_none_or(|(loaded, _)| *loaded != number) {
                    group = Some((number, stored(number)?));
                }
                group.as_ref().and_then(|(_, group)| group.get(index))
            }
        };
        let good = match expected {
            Some(checksum) => checksums::of_block(data) == checksum,
            None => checksums::is_zero(data),
        };
        if !good {
            return Ok(Some(block));
        }
    }
    Ok(None)
}

fn wants_touch(record: &VnodeRecord, now: Timestamp) -> bool {
    record.atime <= record.mtime
        || record.atime <= record.ctime
        || now.secs.saturating_sub(record.atime.secs) >= RELATIME_SECS
}
