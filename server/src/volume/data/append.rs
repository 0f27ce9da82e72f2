//! Writing at the end (D7).

use std::sync::Arc;

use larder_protocol::attr::Credential;
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::Fid;
use larder_protocol::payload::Payload;
use larder_protocol::service::file::{Mutated, OpReply};

use super::write::end_of;
use super::{Data, drop_privileges, inline_contents, put_inline};
use crate::volume::access;
use crate::volume::record::{Body, DirtyRecord, INLINE_MAX};
use crate::volume::writer::Operation;

impl Data {
    /// Appends, exactly once.
    pub(in crate::volume) async fn append(
        self: &Arc<Self>,
        cred: &Credential,
        operation: &Operation,
        fid: Fid,
        data: Payload,
    ) -> Result<Mutated, ErrorCode> {
        let _pass = self.gates.alone(fid.vnode).await;
        let record = self.load_file(fid)?;
        if !access::may_write_data(cred, &record) {
            return Err(ErrorCode::AccessDenied);
        }
        let offset = record.size;
        let end = end_of(offset, data.len() as u64)?;
        let cred = cred.clone();
        if record.body == Body::Inline && end <= INLINE_MAX {
            return self
                .writer
                .operation(operation, move |cx| {
                    cx.need_room()?;
                    let (mut record, mut contents) = inline_contents(cx, fid)?;
                    contents.extend_from_slice(&data.0);
                    put_inline(cx, fid.vnode, &mut record, contents);
                    drop_privileges(cx, &cred, fid.vnode, &mut record)?;
                    let attr = cx.touch_data(fid.vnode, &mut record)?;
                    Ok(OpReply::Appended { offset, attr })
                })
                .await;
        }
        if !self.room.has_room() {
            return Err(ErrorCode::NoSpace);
        }
        let _growth = self.writer.let_grow(data.len() as u64)?;
        let file = self.prepare(fid, &record, DirtyRecord::Appending).await?;
        let content = file.id;
        let bytes = data.0.clone();
        let written = self.blocking(move |files| files.write(content, offset, &bytes)).await;
        let now = self.runtime.boottime();
        let recorded = match written {
            Ok(()) => {
                file.note_write(offset, &data.0, now);
                match self.sync(content).await {
                    Ok(()) => self.record_append(cred, operation, fid, file.id, offset, end).await,
                    Err(code) => Err(code),
                }
            }
            Err(error) => Err(self.content_error(content, "append to", &error)),
        };
        if recorded.is_err() {
            if self.meta.is_in_doubt() {
                // After the next start the append may have happened, and a retry be told so.
                file.note_change(offset, end - offset, now);
                file.note_tail();
            } else {
                // Nothing was acknowledged: the record's size counts, and what lies behind it goes.
                self.cut_back(&file, offset).await;
            }
        }
        recorded
    }

    async fn record_append(
        self: &Arc<Self>,
        cred: Credential,
        operation: &Operation,
        fid: Fid,
        content: crate::volume::content::ContentId,
        offset: u64,
        end: u64,
    ) -> Result<Mutated, ErrorCode> {
        let blocks = self.content.stat(content).map_err(|error| self.content_error(content, "look at", &error))?.blocks;
        self.writer
            .operation(operation, move |cx| {
                let mut record = cx.resolve(fid)?;
                record.size = end;
                record.blocks = blocks;
                drop_privileges(cx, &cred, fid.vnode, &mut record)?;
                let attr = cx.touch_data(fid.vnode, &mut record)?;
                Ok(OpReply::Appended { offset, attr })
            })
            .await
    }
}
