//! Reserving space, making holes, zeroing (fallocate(2)).

use std::sync::Arc;

use larder_protocol::attr::Credential;
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::Fid;
use larder_protocol::service::file::{AllocateHow, Mutated, OpReply};

use super::dirty::DirtyFile;
use super::write::end_of;
use super::{Data, drop_privileges, inline_contents, put_inline};
use crate::volume::access;
use crate::volume::quota::growth_of_write;
use crate::volume::record::{Body, DirtyRecord, INLINE_MAX, Intent};
use crate::volume::writer::Operation;

/// One allocate request.
#[derive(Clone, Copy, Debug)]
pub(in crate::volume) struct Allocation {
    pub(in crate::volume) offset: u64,
    pub(in crate::volume) len: u64,
    pub(in crate::volume) how: AllocateHow,
}

impl Allocation {
    pub(in crate::volume) fn reserves(self) -> bool {
        matches!(self.how, AllocateHow::Reserve | AllocateHow::ReserveKeepSize)
    }

    /// Whether the file grows to the end of the range, if it is shorter.
    fn extends(self) -> bool {
        matches!(self.how, AllocateHow::Reserve | AllocateHow::Zero)
    }
}

/// A failure after the operation was committed: it has happened, and recovery will carry out what is left of it. So it is
/// not to be tried again, whatever was in the way.
pub(super) fn after_commit(code: ErrorCode) -> ErrorCode {
    if code == ErrorCode::NoSpace {
        tracing::error!("there is no room to carry out what is committed; it will be tried again with the next start");
        ErrorCode::Io
    } else {
        code
    }
}

impl Data {
    /// Carries out an allocate.
    pub(in crate::volume) async fn allocate(
        self: &Arc<Self>,
        cred: &Credential,
        operation: &Operation,
        fid: Fid,
        what: Allocation,
    ) -> Result<Mutated, ErrorCode> {
        if what.len == 0 {
            return Err(ErrorCode::Invalid);
        }
        let end = end_of(what.offset, what.len)?;
        let _pass = self.gates.alone(fid.vnode).await;
        let record = self.load_file(fid)?;
        if !access::may_write_data(cred, &record) {
            return Err(ErrorCode::AccessDenied);
        }
        let size = if what.extends() { record.size.max(end) } else { record.size };
        let cred = cred.clone();
        if record.body == Body::Inline && size <= INLINE_MAX {
            return self
                .writer
                .operation(operation, move |cx| {
                    if size > record.size {
                        cx.need_room()?;
                    }
                    let (mut record, mut contents) = inline_contents(cx, fid)?;
                    if !what.reserves() {
                        let from = what.offset.min(contents.len() as u64) as usize;
                        let to = end.min(contents.len() as u64) as usize;
                        contents[from..to].fill(0);
                    }
                    contents.resize(size as usize, 0);
                    put_inline(cx, fid.vnode, &mut record, contents);
                    drop_privileges(cx, &cred, fid.vnode, &mut record)?;
                    Ok(OpReply::Attr(cx.touch_data(fid.vnode, &mut record)?))
                })
                .await;
        }
        if what.reserves() && !self.room.has_room_for(what.len) {
            return Err(ErrorCode::NoSpace);
        }
        let growth = if what.reserves() { growth_of_write(&record, [(what.offset, what.len)]) } else { 0 };
        let _growth = self.writer.let_grow(growth)?;
        let file = self.prepare(fid, &record, DirtyRecord::InPlace).await?;
        if what.reserves() {
            // First: only this can tell that there is no room. Reserving twice does no harm.
            if let Err(code) = self.carry_out(&file, what, size).await {
                self.cut_back(&file, record.size).await;
                return Err(code);
            }
        }
        let version = file.id.version;
        let dirty = Arc::clone(&file);
        let done = self
            .writer
            .operation(operation, move |cx| {
                let mut record = cx.resolve(fid)?;
                record.size = size;
                let Allocation { offset, len, .. } = what;
                let intent = if what.reserves() {
                    Intent::Reserve { version, offset, len, keep_size: !what.extends() }
                } else {
                    Intent::Punch { version, offset, len }
                };
                dirty.note_intent(cx.add_intent(fid.vnode, &intent)?, true);
                if what.extends() {
                    dirty.note_intent(cx.add_intent(fid.vnode, &Intent::Truncate { version, size })?, true);
                }
                drop_privileges(cx, &cred, fid.vnode, &mut record)?;
                Ok(OpReply::Attr(cx.touch_data(fid.vnode, &mut record)?))
            })
            .await;
        let mut done = match done {
            Ok(done) => done,
            Err(code) => {
                self.cut_back(&file, record.size).await;
                return Err(code);
            }
        };
        let carried_out = if what.reserves() { Ok(()) } else { self.carry_out(&file, what, size).await };
        if carried_out.is_ok() {
            file.carried_out();
        }
        if let OpReply::Attr(change) = &mut done.reply {
            self.follow_blocks(file.id, &mut change.attr);
        }
        carried_out.map(|()| done).map_err(after_commit)
    }

    async fn carry_out(&self, file: &Arc<DirtyFile>, what: Allocation, size: u64) -> Result<(), ErrorCode> {
        let id = file.id;
        let Allocation { offset, len, .. } = what;
        let carried_out = self
            .blocking(move |content| {
                if what.reserves() {
                    return content.reserve(id, offset, len, !what.extends());
                }
                content.punch(id, offset, len)?;
                if what.extends() && content.stat(id)?.size < size { content.truncate(id, size) } else { Ok(()) }
            })
            .await;
        if !what.reserves() {
            // After it: a checksum computed in between would be that of what is gone.
            file.note_hole(offset, offset + len, self.runtime.boottime());
        }
        carried_out.map_err(|error| self.content_error(id, "allocate in", &error))
    }

    /// After a change that failed half-way: gives the content file the size again that the record says. Under the
    /// gate. What cannot be cut now is cut when the file is settled.
    pub(super) async fn cut_back(&self, file: &Arc<DirtyFile>, size: u64) {
        let id = file.id;
        let cut = self.blocking(move |content| content.truncate(id, size)).await;
        file.note_hole(size, u64::MAX, self.runtime.boottime());
        match cut {
            Ok(()) => file.tail_is_cut(),
            Err(error) => tracing::error!("vnode {}: cannot cut off what a failed change left: {error}", id.vnode),
        }
    }
}
