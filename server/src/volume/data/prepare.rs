//! Making a file ready for changes in place: contents in a content file, the vnode in `Dirty`.

use std::sync::Arc;

use bytes::Bytes;
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::Fid;

use super::dirty::DirtyFile;
use super::scratch::Scratch;
use super::{Data, inline_contents};
use crate::failpoint::Failpoint;
use crate::volume::content::ContentId;
use crate::volume::keys::{self, Table};
use crate::volume::record::{Body, DirtyRecord, INLINE_MAX, Intent, VnodeRecord};
use crate::volume::view::Records;

impl Data {
    /// Sees to it that the file has a content file and is entered as dirty in this way (D3). Under its gate, alone.
    ///
    /// `record` is what [`Data::load`] gave under the same gate.
    pub(super) async fn prepare(
        self: &Arc<Self>,
        fid: Fid,
        record: &VnodeRecord,
        mode: DirtyRecord,
    ) -> Result<Arc<DirtyFile>, ErrorCode> {
        let Body::Content { version } = record.body else {
            return self.materialize(fid, mode).await;
        };
        if let Some(file) = self.dirty.get(fid.vnode) {
            if file.has_tail() {
                // A batch that is committed ends the doubt.
                self.enter(fid, version, file.mode()).await?;
                self.cut_back(&file, record.size).await;
            }
            match (file.mode(), mode) {
                (DirtyRecord::InPlace, DirtyRecord::InPlace) | (DirtyRecord::Appending, DirtyRecord::Appending) => {
                    return Ok(file);
                }
                (DirtyRecord::Appending, DirtyRecord::InPlace) => {
                    self.enter(fid, version, mode).await?;
                    file.set_mode(mode);
                    return Ok(file);
                }
                // The record's size must count from now on, so it has to be right first.
                (DirtyRecord::InPlace, DirtyRecord::Appending) => self.settle_behind_gate(&file, None).await?,
            }
        }
        self.enter(fid, version, mode).await?;
        Failpoint::Entered.pass();
        let id = ContentId { vnode: fid.vnode, version };
        Ok(self.dirty.insert(DirtyFile::new(id, mode, self.runtime.boottime())))
    }

    async fn enter(self: &Arc<Self>, fid: Fid, version: u64, mode: DirtyRecord) -> Result<(), ErrorCode> {
        self.writer
            .internal(move |cx| {
                let record = cx.resolve(fid)?;
                debug_assert_eq!(record.body, Body::Content { version }, "D1");
                cx.draft.put(Table::Dirty, &keys::vnode(fid.vnode), &mode)?;
                Ok(())
            })
            .await
    }

    /// Moves inline contents to a content file.
    async fn materialize(self: &Arc<Self>, fid: Fid, mode: DirtyRecord) -> Result<Arc<DirtyFile>, ErrorCode> {
        let id = ContentId { vnode: fid.vnode, version: self.changes.next() };
        let contents = self
            .writer
            .internal(move |cx| {
                cx.need_room()?;
                Ok(inline_contents(cx, fid)?.1)
            })
            .await?;
        let intent = if contents.is_empty() {
            self.begin_empty(fid, id, mode).await?
        } else {
            self.move_out(fid, id, mode, contents.into()).await?;
            None
        };
        let now = self.runtime.boottime();
        let file = self.dirty.insert(DirtyFile::new(id, mode, now));
        if let Some(intent) = intent {
            // Making an empty file that is there does nothing to it.
            file.note_intent(intent, false);
            file.carried_out();
        }
        file.note_change(0, INLINE_MAX, now);
        Ok(file)
    }

    /// The content file of an empty file is made after the batch that names it (D4): one batch in all, for the most
    /// common case of a new file.
    async fn begin_empty(
        self: &Arc<Self>,
        fid: Fid,
        id: ContentId,
        mode: DirtyRecord,
    ) -> Result<Option<u64>, ErrorCode> {
        let (vnode, version) = (id.vnode, id.version);
        let intent = self
            .writer
            .internal(move |cx| {
                let (mut record, _) = inline_contents(cx, fid)?;
                record.body = Body::Content { version };
                cx.update(vnode, &record)?;
                cx.draft.put(Table::Dirty, &keys::vnode(vnode), &mode)?;
                Ok(cx.add_intent(vnode, &Intent::Begin { version })?)
            })
            .await?;
        let Err(error) = self.blocking(move |content| content.create(id)).await else { return Ok(Some(intent)) };
        // Back to inline, as if nothing had been.
        self.writer
            .internal(move |cx| {
                let Some(mut record) = cx.draft.vnode(vnode)? else { return Ok(()) };
                record.body = Body::Inline;
                cx.draft.delete(Table::Dirty, &keys::vnode(vnode));
                cx.draft.delete(Table::Intents, &keys::intent(vnode, intent));
                Ok(cx.update(vnode, &record)?)
            })
            .await?;
        Err(self.content_error(id, "make", &error))
    }

    /// Contents that were acknowledged are durable in the content file before the batch that takes them out of the
    /// metadata. Until then an intent says that the content file is to be removed.
    async fn move_out(
        self: &Arc<Self>,
        fid: Fid,
        id: ContentId,
        mode: DirtyRecord,
        contents: Bytes,
    ) -> Result<(), ErrorCode> {
        let (vnode, version) = (id.vnode, id.version);
        let intent = self.writer.internal(move |cx| Ok(cx.add_intent(vnode, &Intent::Remove { version })?)).await?;
        let made = self
            .blocking(move |content| {
                content.create(id)?;
                content.write(id, 0, &contents)
            })
            .await;
        let made = match made {
            // Under `process` too: what leaves the metadata was durable there.
            Ok(()) => self.sync_now(id).await.inspect(|()| Failpoint::Moving.pass()),
            Err(error) => Err(self.content_error(id, "make", &error)),
        };
        let moved = match made {
            Ok(()) => {
                self.writer
                    .internal(move |cx| {
                        let (mut record, _) = inline_contents(cx, fid)?;
                        record.body = Body::Content { version };
                        cx.update(vnode, &record)?;
                        cx.draft.delete(Table::Inline, &keys::vnode(vnode));
                        cx.draft.delete(Table::Intents, &keys::intent(vnode, intent));
                        Ok(cx.draft.put(Table::Dirty, &keys::vnode(vnode), &mode)?)
                    })
                    .await
            }
            Err(code) => Err(code),
        };
        if moved.is_err() {
            let (data, removing) = (Arc::clone(self), self.removals.begin());
            self.later(async move {
                data.discard(Scratch { id, intent }).await;
                drop(removing);
            });
        }
        moved
    }
}
