//! Writes in place, and commit.

use std::sync::Arc;

use larder_protocol::attr::{AttrChange, Credential};
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::Fid;
use larder_protocol::limits::MAX_FILE_SIZE;
use larder_protocol::service::file::{Committed, WritePart, WriteRequest, Written};

use super::dirty::DirtyFile;
use super::{Data, drop_privileges, inline_contents, put_inline, splice};
use crate::failpoint::Failpoint;
use crate::volume::access;
use crate::volume::content::ContentId;
use crate::volume::keys::{self, Table};
use crate::volume::quota::growth_of_write;
use crate::volume::record::{Body, DirtyRecord, INLINE_MAX, Unsettled, VnodeRecord};
use crate::volume::view::{Records, Verified, View};

/// A file that is written from one end to the other goes to the disk in steps of so many bytes while more comes in, so
/// that the commit at its end finds most of the work done.
const STEP: u64 = 8 << 20;

/// Writes up to this size go to the page cache from the task itself: that takes less than waking another thread.
const QUICK_WRITE: usize = 16 << 10;

/// The whole steps, offset and length, that a write of `offset..end` ends or lies across.
pub(super) fn complete_steps(offset: u64, end: u64) -> Option<(u64, u64)> {
    let (from, to) = (offset / STEP * STEP, end / STEP * STEP);
    (to > from).then(|| (from, to - from))
}

impl Data {
    /// Carries out a write.
    pub(in crate::volume) async fn write(
        self: &Arc<Self>,
        cred: &Credential,
        mut request: WriteRequest,
    ) -> Result<Written, ErrorCode> {
        let fid = request.fid;
        // Writing nothing makes no file longer.
        request.parts.retain(|part| !part.data.is_empty());
        let mut end = 0;
        for part in &request.parts {
            end = end.max(end_of(part.offset, part.data.len() as u64)?);
        }
        let _pass = self.gates.alone(fid.vnode).await;
        let mut record = self.load_file(fid)?;
        if !access::may_write_data(cred, &record) {
            return Err(ErrorCode::AccessDenied);
        }
        if record.body == Body::Inline && end <= INLINE_MAX {
            let attr = self.write_inline(cred, request).await?;
            return Ok(Written { stable: true, verifier: self.verifier(), attr });
        }
        if self.drop_privileges(cred, fid, &record).await? {
            record = self.load_file(fid)?;
        }
        let verifier = self.verifier();
        let (attr, file) = self.write_content(&request, end, &record).await?;
        if request.stable {
            self.make_durable(&file).await?;
        }
        Ok(Written { stable: request.stable, verifier, attr })
    }

    async fn write_inline(self: &Arc<Self>, cred: &Credential, request: WriteRequest) -> Result<AttrChange, ErrorCode> {
        let cred = cred.clone();
        self.writer
            .limited(move |cx| {
                cx.need_room()?;
                let vnode = request.fid.vnode;
                let (mut record, mut contents) = inline_contents(cx, request.fid)?;
                for part in &request.parts {
                    splice(&mut contents, part.offset, &part.data.0);
                }
                put_inline(cx, vnode, &mut record, contents);
                drop_privileges(cx, &cred, vnode, &mut record)?;
                Ok(cx.touch_data(vnode, &mut record)?)
            })
            .await
    }

    /// Takes setuid, setgid and file capabilities away before a write in place, if it must.
    pub(super) async fn drop_privileges(
        self: &Arc<Self>,
        cred: &Credential,
        fid: Fid,
        record: &VnodeRecord,
    ) -> Result<bool, ErrorCode> {
        if !access::drop_privileges(cred, &mut record.clone()) {
            let capability = keys::xattr(fid.vnode, b"security.capability");
            let snapshot = self.meta.snapshot()?;
            if record.xattrs == 0 || Verified(&*snapshot).get(Table::Xattrs, &capability)?.is_none() {
                return Ok(false);
            }
        }
        let cred = cred.clone();
        self.writer
            .internal(move |cx| {
                let mut record = cx.resolve(fid)?;
                let changed = drop_privileges(cx, &cred, fid.vnode, &mut record)?;
                if changed {
                    cx.touch(fid.vnode, &mut record)?;
                }
                Ok(changed)
            })
            .await
    }

    async fn write_content(
        self: &Arc<Self>,
        request: &WriteRequest,
        end: u64,
        record: &VnodeRecord,
    ) -> Result<(AttrChange, Arc<DirtyFile>), ErrorCode> {
        if !self.room.has_room() {
            return Err(ErrorCode::NoSpace);
        }
        let ranges = request.parts.iter().map(|part| (part.offset, part.data.len() as u64));
        let _growth = self.writer.let_grow(growth_of_write(record, ranges))?;
        let file = self.prepare(request.fid, record, DirtyRecord::InPlace).await?;
        let id = file.id;
        let steps_of = |part: &WritePart| complete_steps(part.offset, part.offset + part.data.len() as u64);
        let is_quick = request.bytes() <= QUICK_WRITE && !request.parts.iter().any(|part| steps_of(part).is_some());
        let written = if is_quick {
            request.parts.iter().try_for_each(|part| self.content.write(id, part.offset, &part.data.0))
        } else {
            let parts = request.parts.clone();
            self.blocking(move |content| {
                for part in &parts {
                    content.write(id, part.offset, &part.data.0)?;
                    if let Some((offset, len)) = steps_of(part) {
                        // What this cannot begin, the commit does and reports.
                        let _ = content.begin_sync(id, offset, len);
                    }
                }
                Ok(())
            })
            .await
        };
        Failpoint::Written.pass();
        let now = self.runtime.boottime();
        let size = match &written {
            Ok(()) => {
                request.parts.iter().for_each(|part| file.note_write(part.offset, &part.data.0, now));
                record.size.max(end)
            }
            Err(_) => {
                // Some of it may be there.
                request.parts.iter().for_each(|part| file.note_change(part.offset, part.data.len() as u64, now));
                self.content.stat(id).map_or(record.size, |stat| stat.size.max(record.size))
            }
        };
        let attr = self.note_unsettled(request.fid, id, record, size)?;
        match written {
            Ok(()) => Ok((attr, file)),
            // The content file is gone because the vnode is.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(ErrorCode::Stale),
            Err(error) => Err(self.content_error(id, "write", &error)),
        }
    }

    /// Lays the new size and times over the record, and says how the attributes changed.
    pub(super) fn note_unsettled(
        &self,
        fid: Fid,
        id: ContentId,
        record: &VnodeRecord,
        size: u64,
    ) -> Result<AttrChange, ErrorCode> {
        let change = self.changes.next();
        let now = self.runtime.wall();
        let blocks = self.content.stat(id).map_or(record.blocks, |stat| stat.blocks);
        self.unsettled.set(fid.vnode, Unsettled { size, blocks, mtime: now, data_change: change, ctime: now, change });
        // Names and extended attributes change without the gate: what came before this change is whatever is stored
        // by now.
        let snapshot = self.meta.glance()?;
        let mut stored = Verified(&*snapshot).vnode(fid.vnode)?.ok_or(ErrorCode::Stale)?;
        let between = Some(stored.change).filter(|stored| (record.change..change).contains(stored));
        let before = between.unwrap_or(record.change);
        if let Some(unsettled) = self.unsettled.get(fid.vnode) {
            unsettled.lay_over(&mut stored);
        }
        Ok(AttrChange { before, attr: self.attr(fid.vnode, &stored) })
    }

    /// Makes a file's unstable writes durable. Its checksums follow when it has been left alone for a moment.
    pub(in crate::volume) async fn commit(
        self: &Arc<Self>,
        cred: &Credential,
        fid: Fid,
    ) -> Result<Committed, ErrorCode> {
        let record = self.load_file(fid)?;
        if !access::may_write_data(cred, &record) && !access::may_read_data(cred, &record) {
            return Err(ErrorCode::AccessDenied);
        }
        if let Some(file) = self.dirty.get(fid.vnode) {
            match self.make_durable(&file).await {
                Ok(()) => Failpoint::Synced.pass(),
                // If the file was removed or replaced meanwhile there is nothing left to be durable.
                Err(_) if self.dirty.get(fid.vnode).is_none_or(|current| !Arc::ptr_eq(&current, &file)) => {}
                Err(error) => return Err(error),
            }
        }
        // Taken after the sync: if another one failed in between, the client sends its writes again.
        let verifier = self.verifier();
        let record = self.load_file(fid)?;
        Ok(Committed { verifier, attr: self.attr(fid.vnode, &record) })
    }
}

/// Where a change of `len` bytes ends.
pub(super) fn end_of(offset: u64, len: u64) -> Result<u64, ErrorCode> {
    offset.checked_add(len).filter(|end| *end <= MAX_FILE_SIZE).ok_or(ErrorCode::FileTooLarge)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_goes_to_the_disk_with_the_write_that_ends_it() {
        assert_eq!(complete_steps(0, STEP - 1), None);
        assert_eq!(complete_steps(STEP - 10, STEP), Some((0, STEP)));
        assert_eq!(complete_steps(STEP - 10, STEP + 10), Some((0, STEP)));
        assert_eq!(complete_steps(STEP, STEP + 10), None);
        assert_eq!(complete_steps(5, 2 * STEP + 5), Some((0, 2 * STEP)));
    }
}
