//! Reading for a whole-file cache: every piece is of the version that was asked for, or there is none.

use std::sync::Arc;

use bytes::Bytes;
use larder_protocol::attr::Credential;
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::Fid;
use larder_protocol::limits::MAX_PAYLOAD;
use larder_protocol::payload::Payload;
use larder_protocol::runtime::RuntimeExt;
use larder_protocol::service::file::QueryReply;

use super::Data;
use super::kept::Kept;
use super::reclaim::By;
use crate::volume::access;
use crate::volume::content::ContentId;
use crate::volume::record::{Body, VnodeRecord};

/// One fetch request.
#[derive(Clone, Copy, Debug)]
pub(in crate::volume) struct Fetch {
    pub(in crate::volume) offset: u64,
    pub(in crate::volume) len: u32,
    /// The version that the bytes are to be of.
    pub(in crate::volume) version: Option<u64>,
    /// Whether a copy will do, and may be made.
    pub(in crate::volume) copy: bool,
}

/// Whoever may write a file stores it back whole, and so has to have it.
fn may_fetch(cred: &Credential, record: &VnodeRecord) -> bool {
    access::may_read_data(cred, record) || access::may_write_data(cred, record)
}

/// What a look at the file itself gives.
enum Found {
    /// Bytes, and the record they belong to.
    Bytes(Bytes, VnodeRecord),
    /// It would take several requests, between which it may change.
    TooLarge,
}

impl Data {
    /// Answers a fetch. Bytes and attributes are of one moment; fewer bytes than asked mean the end of the file, or,
    /// where the attributes show another version than that asked for, nothing.
    pub(in crate::volume) async fn fetch(
        self: &Arc<Self>,
        cred: &Credential,
        fid: Fid,
        what: Fetch,
    ) -> Result<QueryReply, ErrorCode> {
        let len = u64::from(what.len).min(MAX_PAYLOAD as u64);
        if what.copy
            && let Some(version) = what.version
            && let Some(kept) = self.kept.find(fid, version, self.runtime.boottime())
            && let Some(reply) = self.fetch_kept(cred, fid, &kept, what.offset, len).await?
        {
            return Ok(reply);
        }
        let keep = what.copy && what.version.is_none();
        match self.fetch_current(cred, fid, what, len, keep).await? {
            Found::Bytes(data, record) => return Ok(self.fetched(fid, data, &record)),
            Found::TooLarge => {}
        }
        let data = Arc::clone(self);
        // Whole, even if nobody waits for it any more.
        let bytes = self.load_file(fid)?.blocks.saturating_mul(512);
        let kept = async move { data.with_room(By::Request, bytes, || data.keep_copy(fid)).await };
        let kept = self.runtime.detached(self.tasks.track_future(kept)).await;
        if let Some(kept) = kept.ok_or(ErrorCode::Internal)??
            && let Some(reply) = self.fetch_kept(cred, fid, &kept, what.offset, len).await?
        {
            return Ok(reply);
        }
        // It became small, or others took the copy's place already.
        match self.fetch_current(cred, fid, what, len, false).await? {
            Found::Bytes(data, record) => Ok(self.fetched(fid, data, &record)),
            Found::TooLarge => Err(ErrorCode::Internal),
        }
    }

    /// Reads the file itself; with `keep`, only if one reply holds all of it.
    async fn fetch_current(
        self: &Arc<Self>,
        cred: &Credential,
        fid: Fid,
        what: Fetch,
        len: u64,
        keep: bool,
    ) -> Result<Found, ErrorCode> {
        let is_other = |record: &VnodeRecord| what.version.is_some_and(|version| version != record.data_change);
        if let Some((data, record)) = self.read_inline(cred, may_fetch, fid, what.offset, len)? {
            let data = if is_other(&record) { Bytes::new() } else { data };
            return Ok(Found::Bytes(data, record));
        }
        // A store puts other contents in their place under the gate alone, and old ones are removed under it too.
        let _pass = self.gates.shared(fid.vnode).await;
        if let Some((data, record)) = self.read_inline(cred, may_fetch, fid, what.offset, len)? {
            // It became inline while we waited.
            let data = if is_other(&record) { Bytes::new() } else { data };
            return Ok(Found::Bytes(data, record));
        }
        let record = self.load_file(fid)?;
        let Body::Content { version } = record.body else { return Err(ErrorCode::Internal) };
        if is_other(&record) {
            return Ok(Found::Bytes(Bytes::new(), record));
        }
        if keep && (what.offset > 0 || record.size > len) {
            return Ok(Found::TooLarge);
        }
        let id = ContentId { vnode: fid.vnode, version };
        let data = self.read_range(id, &record, what.offset, len).await?;
        Ok(Found::Bytes(data, record))
    }

    /// Answers from a copy, by the permissions that the file has now. `None` if the copy was dropped.
    async fn fetch_kept(
        &self,
        cred: &Credential,
        fid: Fid,
        kept: &Kept,
        offset: u64,
        len: u64,
    ) -> Result<Option<QueryReply>, ErrorCode> {
        if !may_fetch(cred, &self.load_file(fid)?) {
            return Err(ErrorCode::AccessDenied);
        }
        let data = self.read_kept(kept, offset, len).await?;
        Ok(data.map(|data| self.fetched(fid, data, &kept.record)))
    }

    fn fetched(&self, fid: Fid, data: Bytes, record: &VnodeRecord) -> QueryReply {
        QueryReply::Data { data: Payload(data), attr: self.attr(fid.vnode, record) }
    }
}
