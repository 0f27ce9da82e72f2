//! Copying at the server (copy_file_range(2)).

use std::sync::Arc;

use bytes::Bytes;
use larder_protocol::attr::Credential;
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::Fid;
use larder_protocol::limits::MAX_COPY;
use larder_protocol::service::file::{Mutated, OpReply};

use super::dirty::DirtyFile;
use super::write::end_of;
use super::{Data, drop_privileges, inline_contents, put_inline, slice, splice};
use crate::volume::access;
use crate::volume::content::ContentId;
use crate::volume::error::io_code;
use crate::volume::quota::growth_of_write;
use crate::volume::record::{Body, DirtyRecord, INLINE_MAX, VnodeRecord};
use crate::volume::view::{Records, Verified};
use crate::volume::writer::Operation;

/// One copy request.
#[derive(Clone, Copy, Debug)]
pub(in crate::volume) struct Copy {
    pub(in crate::volume) from: Fid,
    pub(in crate::volume) from_offset: u64,
    pub(in crate::volume) to: Fid,
    pub(in crate::volume) to_offset: u64,
    pub(in crate::volume) len: u64,
}

/// What is copied: bytes at hand, or a part of a content file.
enum Source {
    Bytes(Bytes),
    Content(ContentId),
}

impl Data {
    /// Carries out a copy. Durable when answered: the client has no copy of the bytes to send again.
    pub(in crate::volume) async fn copy(
        self: &Arc<Self>,
        cred: &Credential,
        operation: &Operation,
        what: Copy,
    ) -> Result<Mutated, ErrorCode> {
        let Copy { from, from_offset, to, to_offset, .. } = what;
        let _passes = self.gates.shared_and_alone(from.vnode, to.vnode).await;
        let source = self.load_file(from)?;
        let target = self.load_file(to)?;
        if !access::may_read_data(cred, &source) || !access::may_write_data(cred, &target) {
            return Err(ErrorCode::AccessDenied);
        }
        let len = what.len.min(MAX_COPY).min(source.size.saturating_sub(from_offset));
        let end = end_of(to_offset, len)?;
        if from.vnode == to.vnode && from_offset < to_offset + len && to_offset < from_offset + len {
            return Err(ErrorCode::Invalid);
        }
        if len == 0 {
            return self
                .writer
                .operation(operation, move |cx| {
                    let record = cx.resolve(to)?;
                    let attr = cx.attr(to.vnode, &record);
                    let attr = larder_protocol::attr::AttrChange { before: attr.change, attr };
                    Ok(OpReply::Copied { len: 0, attr })
                })
                .await;
        }
        let inline_target = target.body == Body::Inline && end <= INLINE_MAX;
        let from_part = self.source(from, &source, from_offset, len, inline_target).await?;
        let cred = cred.clone();
        match from_part {
            Source::Bytes(bytes) if inline_target => {
                self.writer
                    .operation(operation, move |cx| {
                        cx.need_room()?;
                        let (mut record, mut contents) = inline_contents(cx, to)?;
                        splice(&mut contents, to_offset, &bytes);
                        put_inline(cx, to.vnode, &mut record, contents);
                        drop_privileges(cx, &cred, to.vnode, &mut record)?;
                        let attr = cx.touch_data(to.vnode, &mut record)?;
                        Ok(OpReply::Copied { len, attr })
                    })
                    .await
            }
            part => self.copy_to_content(cred, operation, what, len, &target, part).await,
        }
    }

    async fn source(
        &self,
        from: Fid,
        record: &VnodeRecord,
        offset: u64,
        len: u64,
        as_bytes: bool,
    ) -> Result<Source, ErrorCode> {
        match record.body {
            Body::Content { version } => {
                let id = ContentId { vnode: from.vnode, version };
                if as_bytes {
                    // Small, because it fits an inline target.
                    return Ok(Source::Bytes(self.read_range(id, record, offset, len).await?));
                }
                Ok(Source::Content(id))
            }
            _ => {
                let snapshot = self.meta.snapshot()?;
                let contents = Verified(&*snapshot).inline(from.vnode, record)?;
                Ok(Source::Bytes(slice(&contents, offset, len)))
            }
        }
    }

    async fn copy_to_content(
        self: &Arc<Self>,
        cred: Credential,
        operation: &Operation,
        what: Copy,
        len: u64,
        target: &VnodeRecord,
        source: Source,
    ) -> Result<Mutated, ErrorCode> {
        let Copy { from_offset, to, to_offset, .. } = what;
        let _growth = self.writer.let_grow(growth_of_write(target, [(to_offset, len)]))?;
        if !self.room.has_room_for(len) {
            return Err(ErrorCode::NoSpace);
        }
        if let Source::Content(from) = &source {
            self.verify_source(*from, from_offset, len).await?;
        }
        let file = self.prepare(to, target, DirtyRecord::InPlace).await?;
        let copied = self.fill(cred, operation, what, len, target, source, &file).await;
        if copied.is_err() {
            self.cut_back(&file, target.size).await;
        }
        copied
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one request")]
    async fn fill(
        self: &Arc<Self>,
        cred: Credential,
        operation: &Operation,
        what: Copy,
        len: u64,
        target: &VnodeRecord,
        source: Source,
        file: &Arc<DirtyFile>,
    ) -> Result<Mutated, ErrorCode> {
        let Copy { from_offset, to, to_offset, .. } = what;
        let content = file.id;
        let copied = self
            .blocking(move |files| match source {
                Source::Bytes(bytes) => files.write(content, to_offset, &bytes).map(|()| bytes.len() as u64),
                Source::Content(from) => {
                    let mut done = 0;
                    while done < len {
                        match files.copy(from, from_offset + done, content, to_offset + done, len - done) {
                            Ok(0) => break,
                            Ok(more) => done += more,
                            // What was copied counts; who asks for the rest is told.
                            Err(error) if done > 0 && io_code(&error) == ErrorCode::NoSpace => break,
                            Err(error) => return Err(error),
                        }
                    }
                    Ok(done)
                }
            })
            .await;
        file.note_change(to_offset, len, self.runtime.boottime());
        let done = copied.map_err(|error| self.content_error(content, "copy to", &error))?;
        self.make_durable(file).await?;
        let stat = self.content.stat(content).map_err(|error| self.content_error(content, "look at", &error))?;
        let size = target.size.max(to_offset + done);
        self.writer
            .operation(operation, move |cx| {
                let mut record = cx.resolve(to)?;
                record.size = size;
                record.blocks = stat.blocks;
                drop_privileges(cx, &cred, to.vnode, &mut record)?;
                let attr = cx.touch_data(to.vnode, &mut record)?;
                Ok(OpReply::Copied { len: done, attr })
            })
            .await
    }

    /// Bad bytes must not be copied under a new checksum: what is copied is verified first.
    async fn verify_source(&self, id: ContentId, offset: u64, len: u64) -> Result<(), ErrorCode> {
        const PIECE: u64 = 1 << 20;
        let record = self.current(id.vnode)?;
        let mut at = offset;
        while at < offset + len {
            let piece = PIECE.min(offset + len - at);
            self.read_range(id, &record, at, piece).await?;
            at += piece;
        }
        Ok(())
    }
}
