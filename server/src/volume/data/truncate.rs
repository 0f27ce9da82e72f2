//! Setting attributes of regular files: everything that may change the size goes through here.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use larder_protocol::attr::{Attr, Credential, SetAttr};
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::Fid;
use larder_protocol::limits::MAX_FILE_SIZE;
use larder_protocol::service::file::{CreateHow, Mutated, Op, OpReply};

use super::allocate::after_commit;
use super::{Data, drop_privileges, inline_contents, put_inline};
use crate::failpoint::Failpoint;
use crate::volume::apply;
use crate::volume::context::Context;
use crate::volume::record::{Body, DirtyRecord, INLINE_MAX, Intent, VnodeRecord};
use crate::volume::view::{Records, Verified};
use crate::volume::writer::Operation;

impl Data {
    /// Sets attributes of a regular file.
    pub(in crate::volume) async fn setattr(
        self: &Arc<Self>,
        cred: &Credential,
        operation: &Operation,
        fid: Fid,
        set: SetAttr,
        open: bool,
    ) -> Result<Mutated, ErrorCode> {
        let _pass = self.gates.alone(fid.vnode).await;
        let record = self.load_file(fid)?;
        apply::setattr::check(cred, &record, &set, open)?;
        let Some(size) = set.size else {
            let (cred, client) = (cred.clone(), operation.id.client);
            let op = Op::Setattr { fid, set, open };
            return self.writer.operation(operation, move |cx| apply::apply(cx, &cred, client, &op)).await;
        };
        if size > MAX_FILE_SIZE {
            return Err(ErrorCode::FileTooLarge);
        }
        match record.body {
            _ if size == 0 => {
                let step = set_size(cred, fid, set, open, empty);
                let done = self.writer.operation(operation, step).await?;
                self.forget(fid.vnode);
                Ok(done)
            }
            Body::Inline if size <= INLINE_MAX => {
                let step = set_size(cred, fid, set, open, move |cx, fid, record| {
                    let (_, mut contents) = inline_contents(cx, fid)?;
                    contents.resize(size as usize, 0);
                    put_inline(cx, fid.vnode, record, contents);
                    Ok(())
                });
                self.writer.operation(operation, step).await
            }
            _ => self.truncate_content(cred, operation, fid, set, open, size, &record).await,
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one request")]
    async fn truncate_content(
        self: &Arc<Self>,
        cred: &Credential,
        operation: &Operation,
        fid: Fid,
        set: SetAttr,
        open: bool,
        size: u64,
        record: &VnodeRecord,
    ) -> Result<Mutated, ErrorCode> {
        let file = self.prepare(fid, record, DirtyRecord::InPlace).await?;
        let content = file.id;
        let version = content.version;
        if size > record.size {
            // First: the disk may refuse a file of that size. A file that is longer than its record, should the batch
            // not follow, is what recovery makes of it anyway.
            let grown = self.blocking(move |files| files.truncate(content, size)).await;
            grown.map_err(|error| self.content_error(content, "extend", &error))?;
        }
        let dirty = Arc::clone(&file);
        let step = set_size(cred, fid, set, open, move |cx, fid, record| {
            record.size = size;
            dirty.note_intent(cx.add_intent(fid.vnode, &Intent::Truncate { version, size })?, true);
            Ok(())
        });
        let mut done = match self.writer.operation(operation, step).await {
            Ok(done) => done,
            Err(code) => {
                let before = record.size;
                if size > before
                    && let Err(error) = self.blocking(move |files| files.truncate(content, before)).await
                {
                    tracing::error!("vnode {}: cannot take back an extension: {error}", content.vnode);
                }
                return Err(code);
            }
        };
        Failpoint::Cutting.pass();
        let cut = self.blocking(move |files| files.truncate(content, size)).await;
        // After it: a checksum computed in between would be that of what is cut.
        file.note_hole(size, u64::MAX, self.runtime.boottime());
        if cut.is_ok() {
            file.carried_out();
        }
        if let OpReply::Attr(change) = &mut done.reply {
            self.follow_blocks(content, &mut change.attr);
        }
        // Committed: a failure now is a failing disk. The intent stays and recovery will try again.
        cut.map_err(|error| after_commit(self.content_error(content, "truncate", &error)))?;
        Ok(done)
    }

    /// Lays the number of blocks that a content file has now over the record that a batch just stored.
    pub(super) fn follow_blocks(&self, id: crate::volume::content::ContentId, attr: &mut Attr) {
        if let Ok(stat) = self.content.stat(id) {
            attr.blocks = stat.blocks;
        }
        attr.data_version = self.changes.next();
        self.unsettled.set(
            id.vnode,
            crate::volume::record::Unsettled {
                size: attr.size,
                blocks: attr.blocks,
                mtime: attr.mtime,
                data_change: attr.data_version,
                ctime: attr.ctime,
                change: attr.change,
            },
        );
    }

    /// An unexclusive create that truncates: makes the file, or empties the one that is there, under its gate.
    pub(in crate::volume) async fn create_or_empty(
        self: &Arc<Self>,
        cred: &Credential,
        operation: &Operation,
        op: Op,
    ) -> Result<Mutated, ErrorCode> {
        let Op::Create { dir, name, how: CreateHow::Open { truncate: true, .. }, .. } = &op else {
            return Err(ErrorCode::Internal);
        };
        loop {
            let found = {
                let snapshot = self.meta.glance()?;
                Verified(&*snapshot).entry(dir.vnode, name)?.map(|entry| entry.vnode)
            };
            let _pass = match found {
                Some(vnode) => Some(self.gates.alone(vnode).await),
                None => None,
            };
            let (cred, op, client) = (cred.clone(), op.clone(), operation.id.client);
            let elsewhere = Arc::new(AtomicBool::new(false));
            let moved = Arc::clone(&elsewhere);
            let done = self
                .writer
                .operation(operation, move |cx| {
                    let mut reply = apply::apply(cx, &cred, client, &op)?;
                    if let OpReply::Entry { attr, created: false, .. } = &mut reply {
                        if Some(attr.fid.vnode) != found {
                            moved.store(true, Ordering::Relaxed);
                            return Err(ErrorCode::Busy);
                        }
                        let mut record = cx.resolve(attr.fid)?;
                        empty(cx, attr.fid, &mut record)?;
                        drop_privileges(cx, &cred, attr.fid.vnode, &mut record)?;
                        *attr = cx.touch_data(attr.fid.vnode, &mut record)?.attr;
                    }
                    Ok(reply)
                })
                .await;
            // The name went to another file while we waited for the gate of the first: that one's gate then.
            if done.is_err() && elsewhere.load(Ordering::Relaxed) {
                continue;
            }
            // The name may have been free by then: the file that had it lives on elsewhere.
            if let Ok(Mutated { reply: OpReply::Entry { attr, created: false, .. }, .. }) = &done {
                self.forget(attr.fid.vnode);
            }
            return done;
        }
    }
}

/// Makes a file's contents empty, and inline whatever they were: its content file is replaced as a whole.
fn empty(cx: &mut Context<'_, '_>, fid: Fid, record: &mut VnodeRecord) -> Result<(), ErrorCode> {
    cx.drop_contents(fid.vnode, record)?;
    record.body = Body::Inline;
    record.size = 0;
    record.blocks = 0;
    Ok(())
}

/// The mutation that sets attributes, the size among them. `resize` changes size and contents.
fn set_size(
    cred: &Credential,
    fid: Fid,
    set: SetAttr,
    open: bool,
    resize: impl FnOnce(&mut Context<'_, '_>, Fid, &mut VnodeRecord) -> Result<(), ErrorCode> + Send + 'static,
) -> impl FnOnce(&mut Context<'_, '_>) -> Result<OpReply, ErrorCode> + Send + 'static {
    let cred = cred.clone();
    move |cx| {
        let mut record = cx.resolve(fid)?;
        apply::setattr::check(&cred, &record, &set, open)?;
        if set.size.is_some_and(|size| size > record.size) {
            cx.need_room()?;
        }
        resize(cx, fid, &mut record)?;
        drop_privileges(cx, &cred, fid.vnode, &mut record)?;
        let mut change = cx.touch_data(fid.vnode, &mut record)?;
        // After the times that the new size brings, so that times asked for win.
        apply::setattr::change(cx, &cred, &mut record, &set);
        cx.update(fid.vnode, &record)?;
        change.attr = cx.attr(fid.vnode, &record);
        Ok(OpReply::Attr(change))
    }
}
