//! Settling: bringing metadata and checksums up to a dirty file's contents.

use std::sync::Arc;

use futures::StreamExt;
use larder_protocol::error::ErrorCode;
use larder_protocol::runtime::BootTime;
use larder_protocol::service::file::SeekWhat;

use super::Data;
use super::checksums;
use super::dirty::{DirtyFile, Settlement};
use crate::failpoint::Failpoint;
use crate::volume::content::{Content, ContentId};
use crate::volume::context::Context;
use crate::volume::keys::{self, Table};
use crate::volume::record::{BLOCK, Body};
use crate::volume::view::{Records, Verified};

/// Blocks whose checksums are computed in one piece of blocking work.
const BLOCKS_AT_A_TIME: usize = 256;
/// Files settled beside each other, to share batches.
const FILES_AT_A_TIME: usize = 16;
/// Rounds of computing outside of the gate before the rest is done behind it.
const ROUNDS: usize = 8;

impl Data {
    /// Settles the files that nobody wrote since `moment`. Says how many are left that could not be.
    pub(in crate::volume) async fn settle_idle(self: &Arc<Self>, moment: BootTime) -> usize {
        let idle = self.dirty.idle_since(moment, usize::MAX);
        let settle = |vnode| {
            let data = Arc::clone(self);
            async move {
                let done = data.settle(vnode).await;
                if let Err(error) = &done {
                    tracing::warn!("volume {}, vnode {vnode}: cannot settle its contents yet: {error}", data.id);
                }
                usize::from(done.is_err())
            }
        };
        futures::stream::iter(idle)
            .map(settle)
            .buffer_unordered(FILES_AT_A_TIME)
            .fold(0, |sum, one| async move { sum + one })
            .await
    }

    /// Settles one file, doing as much as can be done without holding up its users before it takes the gate.
    async fn settle(self: &Arc<Self>, vnode: u64) -> Result<(), ErrorCode> {
        let Some(file) = self.dirty.get(vnode) else { return Ok(()) };
        if self.is_gone(&file)? {
            let _pass = self.gates.alone(vnode).await;
            // Nobody makes it dirty again: under the gate it is still gone, or has other contents.
            if self.is_gone(&file)? && self.dirty.get(vnode).is_some_and(|current| Arc::ptr_eq(&current, &file)) {
                self.forget(vnode);
            }
            return Ok(());
        }
        match self.settle_present(&file).await {
            // Removed, or replaced as a whole, while it was looked at; its content file went with that.
            Err(_) if self.is_gone(&file)? => Ok(()),
            done => done,
        }
    }

    async fn settle_present(self: &Arc<Self>, file: &Arc<DirtyFile>) -> Result<(), ErrorCode> {
        self.sync_now(file.id).await?;
        let rescanned = self.look_through(file, None).await?;
        for _ in 0..ROUNDS {
            if self.compute_unknown(file).await? < BLOCKS_AT_A_TIME {
                break;
            }
        }
        let _pass = self.gates.alone(file.id.vnode).await;
        match self.dirty.get(file.id.vnode) {
            Some(current) if Arc::ptr_eq(&current, file) => self.settle_behind_gate(file, rescanned).await,
            // Replaced, or settled by someone else, meanwhile.
            _ => Ok(()),
        }
    }

    /// Settles a file under its gate, held alone (D5).
    pub(super) async fn settle_behind_gate(
        self: &Arc<Self>,
        file: &Arc<DirtyFile>,
        rescanned: Option<u64>,
    ) -> Result<(), ErrorCode> {
        let id = file.id;
        let size = self.current(id.vnode)?.size;
        let longer = self.content.stat(id).is_ok_and(|stat| stat.size > size);
        if longer {
            if self.meta.is_in_doubt() {
                return Err(ErrorCode::Io);
            }
            // What a failed change left behind the end, and could not take back.
            self.cut_back(file, size).await;
        }
        let rescanned = self.look_through(file, rescanned).await?;
        while self.compute_unknown(file).await? > 0 {}
        self.sync_now(id).await?;
        Failpoint::Settling.pass();
        let settlement = file.settlement(size, rescanned).ok_or(ErrorCode::Internal)?;
        let stat = self.content.stat(id).map_err(|error| self.content_error(id, "look at", &error))?;
        self.writer
            .internal(move |cx| {
                let Some(mut record) = cx.vnode(id.vnode)? else { return Ok(()) };
                if record.body != (Body::Content { version: id.version }) {
                    return Ok(());
                }
                record.blocks = stat.blocks;
                store_settlement(cx, id.vnode, &settlement)?;
                cx.draft.delete(Table::Dirty, &keys::vnode(id.vnode));
                cx.drop_intents(id.vnode)?;
                Ok(cx.update(id.vnode, &record)?)
            })
            .await?;
        self.forget(id.vnode);
        Ok(())
    }

    /// Whether the vnode is no more, or has other contents than these.
    fn is_gone(&self, file: &DirtyFile) -> Result<bool, ErrorCode> {
        let snapshot = self.meta.snapshot()?;
        let record = Verified(&*snapshot).vnode(file.id.vnode)?;
        Ok(record.is_none_or(|record| record.body != Body::Content { version: file.id.version }))
    }

    /// Looks through a file of which a crash left nothing known, unless that was `done` and still counts. The token
    /// is for [`DirtyFile::settlement`].
    async fn look_through(&self, file: &Arc<DirtyFile>, done: Option<u64>) -> Result<Option<u64>, ErrorCode> {
        let Some(token) = file.begin_rescan() else { return Ok(None) };
        if done == Some(token) {
            return Ok(done);
        }
        let mut at = 0;
        loop {
            let scanned = Arc::clone(file);
            let next = self.blocking(move |content| scan(content, &scanned, token, at)).await;
            match next.map_err(|error| self.settling_error(file, "look through", &error))? {
                Some(next) => at = next,
                None => return Ok(Some(token)),
            }
        }
    }

    /// Computes checksums that are not known, and says how many there were, [`BLOCKS_AT_A_TIME`] at most.
    pub(super) async fn compute_unknown(&self, file: &Arc<DirtyFile>) -> Result<usize, ErrorCode> {
        let unknown = file.unknown(BLOCKS_AT_A_TIME);
        if unknown.is_empty() {
            return Ok(0);
        }
        let count = unknown.len();
        let (id, read) = (file.id, Arc::clone(file));
        self.blocking(move |content| {
            for (block, stamp) in unknown {
                let data = content.read(id, block * BLOCK, BLOCK as usize)?;
                read.supply(block, stamp, checksums::of_block(&data));
            }
            Ok(())
        })
        .await
        .map_err(|error| self.settling_error(file, "read", &error))?;
        Ok(count)
    }

    /// As [`content_error`](Data::content_error), where the content file may have gone in the ordinary way.
    fn settling_error(&self, file: &DirtyFile, what: &str, error: &std::io::Error) -> ErrorCode {
        if error.kind() == std::io::ErrorKind::NotFound && self.is_gone(file).unwrap_or(false) {
            return ErrorCode::Stale;
        }
        self.content_error(file.id, what, error)
    }
}

/// Computes the checksums of up to [`BLOCKS_AT_A_TIME`] blocks with data from `at` on, and says where to go on.
fn scan(content: &dyn Content, file: &DirtyFile, token: u64, at: u64) -> std::io::Result<Option<u64>> {
    let id: ContentId = file.id;
    let mut at = at;
    for _ in 0..BLOCKS_AT_A_TIME {
        let Some(data) = content.seek(id, at, SeekWhat::Data)? else { return Ok(None) };
        let block = data / BLOCK;
        let bytes = content.read(id, block * BLOCK, BLOCK as usize)?;
        if bytes.is_empty() {
            return Ok(None);
        }
        file.found(token, block, checksums::of_block(&bytes));
        at = (block + 1) * BLOCK;
    }
    Ok(Some(at))
}

/// Brings the stored checksums up to date.
pub(super) fn store_settlement(cx: &mut Context<'_, '_>, vnode: u64, settlement: &Settlement) -> Result<(), ErrorCode> {
    if settlement.replace_all {
        cx.draft.delete_prefix(Table::Checksums, &keys::vnode(vnode))?;
    }
    for range in &settlement.void {
        checksums::clear(cx.draft, vnode, range.start, range.end)?;
    }
    let mut group = None;
    for (block, checksum) in &settlement.checksums {
        let (number, index) = checksums::place(*block);
        if group.as_ref().is_none_or(|(loaded, _)| *loaded != number) {
            if let Some((loaded, done)) = group.take() {
                checksums::store(cx.draft, vnode, loaded, done);
            }
            group = Some((number, checksums::load(&*cx.draft, vnode, number)?));
        }
        if let Some((_, group)) = &mut group {
            group.set(index, Some(*checksum));
        }
    }
    if let Some((loaded, done)) = group {
        checksums::store(cx.draft, vnode, loaded, done);
    }
    Ok(())
}
