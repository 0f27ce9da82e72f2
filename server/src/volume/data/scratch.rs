//! Scratch: content files that are no vnode's contents, and may become that.
//!
//! **D9.** A scratch content file has its vnode's number and a version of its own. Before it is made, an
//! `Intent::Remove` of it is committed; that goes with the batch that makes it the vnode's contents, or once the file's
//! removal is durable. So a crash leaves nothing of it behind. Such an intent needs no gate: nothing reads it but
//! recovery. While a failed batch is in doubt ([`Metadata::is_in_doubt`](crate::volume::meta::Metadata::is_in_doubt)) none
//! is removed: it may be the vnode's contents after the next start.

use std::sync::Arc;

use larder_protocol::error::ErrorCode;
use larder_protocol::limits::{COPY_KEPT, STAGE_KEPT};

use super::Data;
use super::kept::Kept;
use super::reclaim::{Removals, Removing};
use super::stage::Stage;
use crate::volume::content::ContentId;
use crate::volume::record::{Body, Intent};
use crate::volume::view::{Records, Verified};

/// Staged contents, or a copy, that were taken out and are to be removed once nobody works with them any more.
#[derive(Debug)]
pub(super) struct Leaving<T> {
    pub(super) what: Arc<T>,
    _removing: Removing,
}

impl<T> Leaving<T> {
    /// To be called before others can see that it was taken out.
    pub(super) fn new(what: Arc<T>, removals: &Arc<Removals>) -> Leaving<T> {
        Leaving { what, _removing: removals.begin() }
    }
}

/// A scratch content file. Whoever has this one value decides what becomes of it.
#[derive(Debug)]
pub(in crate::volume) struct Scratch {
    pub(super) id: ContentId,
    /// The number of the intent to remove it.
    pub(super) intent: u64,
}

impl Data {
    /// Makes an empty scratch content file (D9).
    pub(super) async fn begin_scratch(self: &Arc<Self>, vnode: u64) -> Result<Scratch, ErrorCode> {
        let id = ContentId { vnode, version: self.changes.next() };
        let version = id.version;
        let intent = self
            .writer
            .internal(move |cx| {
                cx.need_room()?;
                // Whoever removes the vnode drops what there is by then.
                cx.draft.vnode(vnode)?.ok_or(ErrorCode::Stale)?;
                Ok(cx.add_intent(vnode, &Intent::Remove { version })?)
            })
            .await?;
        let scratch = Scratch { id, intent };
        match self.blocking(move |content| content.create(id)).await {
            Ok(()) => Ok(scratch),
            Err(error) => {
                let code = self.content_error(id, "make", &error);
                self.discard(scratch).await;
                Err(code)
            }
        }
    }

    /// Removes a scratch content file; its intent goes once that is durable.
    pub(super) async fn discard(&self, scratch: Scratch) {
        let Scratch { id, intent } = scratch;
        // Asked once: a doubt that ends meanwhile would leave the file to nobody.
        if self.meta.is_in_doubt() {
            return self.undecided.lock().push(scratch);
        }
        match self.is_installed(id) {
            Ok(false) => {}
            // An operation that was answered with a failure of the store may have been committed all the same.
            Ok(true) => return tracing::error!("vnode {}: what was to be removed has become its contents", id.vnode),
            // It is logged. With the next start: the intent stays.
            Err(_) => return,
        }
        match self.blocking(move |content| content.remove(id)).await {
            Ok(()) => self.removed.lock().push((id.vnode, intent)),
            Err(error) => tracing::warn!("vnode {}: cannot remove a scratch file: {error}", id.vnode),
        }
    }

    fn is_installed(&self, id: ContentId) -> Result<bool, ErrorCode> {
        let snapshot = self.meta.snapshot()?;
        let record = Verified(&*snapshot).vnode(id.vnode)?;
        Ok(record.is_some_and(|record| record.body == Body::Content { version: id.version }))
    }

    /// What could not be removed for doubt, if that has ended. To be [discarded](Data::discard_all) once the batch that
    /// ended it is durable.
    pub(in crate::volume) fn take_undecided(&self) -> Vec<Scratch> {
        if self.meta.is_in_doubt() { Vec::new() } else { std::mem::take(&mut *self.undecided.lock()) }
    }

    /// As [`discard`](Data::discard), one after the other.
    pub(in crate::volume) async fn discard_all(&self, scratch: Vec<Scratch>) {
        for scratch in scratch {
            self.discard(scratch).await;
        }
    }

    /// Lets go of staged contents and kept copies that nobody used for a while.
    pub(in crate::volume) fn drop_unused(self: &Arc<Self>) {
        let now = self.runtime.boottime();
        if let Some(moment) = now.checked_sub(STAGE_KEPT) {
            self.drop_later(self.stages.take_unused(moment, &self.removals), Vec::new());
        }
        if let Some(moment) = now.checked_sub(COPY_KEPT) {
            self.drop_later(Vec::new(), self.kept.take_unused(moment, &self.removals));
        }
    }

    /// Lets go of what was staged for a vnode that is gone, and of its copies.
    pub(in crate::volume) fn drop_scratch_of(self: &Arc<Self>, vnode: u64) {
        self.drop_later(self.stages.take_of(vnode, &self.removals), self.kept.take_of(vnode, &self.removals));
    }

    pub(super) fn drop_later(self: &Arc<Self>, stages: Vec<Leaving<Stage>>, copies: Vec<Leaving<Kept>>) {
        for stage in stages {
            self.drop_stage_later(stage);
        }
        for kept in copies {
            self.drop_kept_later(kept);
        }
    }

    /// Removes all scratch content files, for a clean end.
    pub(in crate::volume) async fn drop_scratch(&self) {
        for stage in self.stages.take_all(&self.removals) {
            self.drop_stage(stage).await;
        }
        for kept in self.kept.take_all(&self.removals) {
            self.drop_kept(kept).await;
        }
    }
}
