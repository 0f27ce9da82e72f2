//! Replacing a file's contents as a whole.
//!
//! The new contents are complete, durable and have their checksums before the gate is asked for; then one batch puts
//! them in the place of the old ones. Readers and a crash see the one or the other. The file is settled afterwards: what
//! was written to the old contents in place, durable or not, is superseded.

use std::sync::Arc;

use bytes::Bytes;
use larder_protocol::attr::Credential;
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::Fid;
use larder_protocol::limits::MAX_FILE_SIZE;
use larder_protocol::payload::Payload;
use larder_protocol::service::file::{Mutated, NewContents, OpReply};
use larder_protocol::sparse::data_ranges;

use super::dirty::{DirtyFile, Settlement};
use super::scratch::{Leaving, Scratch};
use super::settle::store_settlement;
use super::stage::{StageKey, Staged, State};
use super::{Data, drop_privileges, need_file, put_inline};
use crate::failpoint::Failpoint;
use crate::volume::access;
use crate::volume::content::{Content, ContentId};
use crate::volume::context::Context;
use crate::volume::keys::{self, Table};
use crate::volume::record::{Body, DirtyRecord, INLINE_MAX, VnodeRecord};
use crate::volume::writer::Operation;

/// Contents that are ready to take the place of others.
enum Next {
    Inline(Bytes),
    Content(Ready),
}

/// A scratch content file that is durable and has all its checksums.
struct Ready {
    id: ContentId,
    /// The number of the intent to remove it.
    intent: u64,
    size: u64,
    blocks: u64,
    checksums: Settlement,
}

impl Data {
    /// Carries out a store.
    pub(in crate::volume) async fn store(
        self: &Arc<Self>,
        cred: &Credential,
        operation: &Operation,
        fid: Fid,
        contents: NewContents,
        base: Option<u64>,
    ) -> Result<Mutated, ErrorCode> {
        if let NewContents::Whole(Payload(data)) = &contents
            && data.len() as u64 <= INLINE_MAX
        {
            return self.install(cred, operation, fid, base, Next::Inline(data.clone())).await;
        }
        // Decided in the writer; what is refused already now costs nothing.
        check(cred, &self.load_file(fid)?, base)?;
        match contents {
            NewContents::Whole(data) => self.store_whole(cred, operation, fid, base, data.0).await,
            NewContents::Staged { stage, size } => {
                let key = StageKey { client: operation.id.client, fid, number: stage };
                self.store_staged(cred, operation, key, size, base).await
            }
        }
    }

    async fn store_whole(
        self: &Arc<Self>,
        cred: &Credential,
        operation: &Operation,
        fid: Fid,
        base: Option<u64>,
        data: Bytes,
    ) -> Result<Mutated, ErrorCode> {
        let size = data.len() as u64;
        if !self.room.has_room_for(size) {
            return Err(ErrorCode::NoSpace);
        }
        let scratch = self.begin_scratch(fid.vnode).await?;
        let file = Arc::new(DirtyFile::new(scratch.id, DirtyRecord::InPlace, self.runtime.boottime()));
        let stored = match self.write_whole(&file, data).await {
            Ok(()) => match self.make_ready(&scratch, &file, size).await {
                Ok(ready) => self.install(cred, operation, fid, base, Next::Content(ready)).await,
                Err(code) => Err(code),
            },
            Err(code) => Err(code),
        };
        if stored.is_err() {
            self.discard(scratch).await;
        }
        stored
    }

    async fn write_whole(&self, file: &Arc<DirtyFile>, data: Bytes) -> Result<(), ErrorCode> {
        let (id, bytes) = (file.id, data.clone());
        let write = move |content: &dyn Content| {
            data_ranges(&bytes).try_for_each(|range| content.write(id, range.start as u64, &bytes[range]))
        };
        let written = self.blocking(write).await;
        written.map_err(|error| self.content_error(id, "write", &error))?;
        file.note_write(0, &data, self.runtime.boottime());
        Ok(())
    }

    async fn store_staged(
        self: &Arc<Self>,
        cred: &Credential,
        operation: &Operation,
        key: StageKey,
        size: u64,
        base: Option<u64>,
    ) -> Result<Mutated, ErrorCode> {
        if size > MAX_FILE_SIZE {
            return Err(ErrorCode::FileTooLarge);
        }
        let stage = self.stages.find(key, self.runtime.boottime()).ok_or(ErrorCode::NotStaged)?;
        let mut state = stage.state.lock().await;
        let State::Open(staged) = &*state else { return Err(ErrorCode::NotStaged) };
        let next = match self.next_of(staged, size).await {
            Ok(next) => next,
            Err(code) => {
                // After a failed sync nobody knows what is there (D8): it must be staged again.
                let leaving = Leaving::new(Arc::clone(&stage), &self.removals);
                self.stages.remove(key, &stage);
                drop(state);
                self.drop_stage(leaving).await;
                return Err(code);
            }
        };
        let is_consumed = matches!(next, Next::Content(_));
        let stored = self.install(cred, operation, key.fid, base, next).await;
        // Refused, the contents stay staged: the client may ask again with another base.
        stage.use_at(self.runtime.boottime());
        let stored = stored?;
        let leaving = Leaving::new(Arc::clone(&stage), &self.removals);
        self.stages.remove(key, &stage);
        if is_consumed {
            *state = State::Gone;
        }
        drop(state);
        self.drop_stage(leaving).await;
        Ok(stored)
    }

    /// What was staged, cut or extended to `size`. Contents that fit into the metadata go there.
    async fn next_of(self: &Arc<Self>, staged: &Staged, size: u64) -> Result<Next, ErrorCode> {
        if size > INLINE_MAX {
            return Ok(Next::Content(self.make_ready(&staged.scratch, &staged.file, size).await?));
        }
        let id = staged.scratch.id;
        let read = self.blocking(move |content| content.read(id, 0, size as usize)).await;
        let mut bytes: Vec<u8> = read.map_err(|error| self.content_error(id, "read", &error))?.into();
        bytes.resize(size as usize, 0);
        Ok(Next::Inline(bytes.into()))
    }

    /// Gives a scratch content file its size, makes it durable and completes its checksums.
    async fn make_ready(
        self: &Arc<Self>,
        scratch: &Scratch,
        file: &Arc<DirtyFile>,
        size: u64,
    ) -> Result<Ready, ErrorCode> {
        let id = scratch.id;
        let cut = self
            .blocking(move |content| {
                let before = content.stat(id)?.size;
                if before != size {
                    content.truncate(id, size)?;
                }
                Ok(before > size)
            })
            .await;
        if cut.map_err(|error| self.content_error(id, "cut", &error))? {
            file.note_hole(size, u64::MAX, self.runtime.boottime());
        }
        // If it is missing, that says nothing of the vnode.
        let no_stale = |code| if code == ErrorCode::Stale { ErrorCode::Io } else { code };
        while self.compute_unknown(file).await.map_err(no_stale)? > 0 {}
        // Under `process` too: the record may become durable before the next time that contents are synced.
        self.sync_now(id).await.map_err(no_stale)?;
        let checksums = file.settlement(size, None).ok_or(ErrorCode::Internal)?;
        let stat = self.content.stat(id).map_err(|error| self.content_error(id, "look at", &error))?;
        Ok(Ready { id, intent: scratch.intent, size, blocks: stat.blocks, checksums })
    }

    /// Puts new contents in the place of the old ones (D1, D5).
    async fn install(
        self: &Arc<Self>,
        cred: &Credential,
        operation: &Operation,
        fid: Fid,
        base: Option<u64>,
        next: Next,
    ) -> Result<Mutated, ErrorCode> {
        let _pass = self.gates.alone(fid.vnode).await;
        Failpoint::Installing.pass();
        let cred = cred.clone();
        let done = self
            .writer
            .operation(operation, move |cx| {
                let mut record = cx.resolve(fid)?;
                check(&cred, &record, base)?;
                replace(cx, fid.vnode, &mut record, next)?;
                drop_privileges(cx, &cred, fid.vnode, &mut record)?;
                Ok(OpReply::Attr(cx.touch_data(fid.vnode, &mut record)?))
            })
            .await?;
        self.forget(fid.vnode);
        Ok(done)
    }
}

/// Whether a store may go on.
fn check(cred: &Credential, record: &VnodeRecord, base: Option<u64>) -> Result<(), ErrorCode> {
    need_file(record)?;
    if !access::may_write_data(cred, record) {
        return Err(ErrorCode::AccessDenied);
    }
    match base {
        Some(base) if base != record.data_change => Err(ErrorCode::Conflict),
        _ => Ok(()),
    }
}

/// Replaces contents; the caller stores the record.
fn replace(cx: &mut Context<'_, '_>, vnode: u64, record: &mut VnodeRecord, next: Next) -> Result<(), ErrorCode> {
    cx.drop_contents(vnode, record)?;
    match next {
        Next::Inline(bytes) => {
            // Emptying a file must be possible on a full store.
            if !bytes.is_empty() {
                cx.need_room()?;
            }
            record.body = Body::Inline;
            put_inline(cx, vnode, record, bytes.into());
        }
        // What it takes up it takes up already, and the old contents go.
        Next::Content(ready) => {
            record.body = Body::Content { version: ready.id.version };
            record.size = ready.size;
            record.blocks = ready.blocks;
            store_settlement(cx, vnode, &ready.checksums)?;
            cx.draft.delete(Table::Intents, &keys::intent(vnode, ready.intent));
        }
    }
    Ok(())
}
