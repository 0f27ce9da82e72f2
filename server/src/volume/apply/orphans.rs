//! Objects without a name that stay because a client still has them open.

use std::collections::BTreeSet;
use std::ops::Bound;

use larder_protocol::error::ErrorCode;
use larder_protocol::ids::{ClientId, Fid};
use larder_protocol::limits::MAX_FORGET;
use larder_protocol::service::file::OpReply;

use crate::volume::context::Context;
use crate::volume::error::{StoreError, StoreResult};
use crate::volume::keys::{self, Table};
use crate::volume::record::OrphanRecord;
use crate::volume::view::{Records, View};

/// Orphans that one [`release_client`] lets go of at most, so that it does not hold up other mutations.
const RELEASE: usize = 256;

/// Rows read at a time in search of a client's.
const PIECE: usize = 1024;

/// Keeps an object that lost its last name.
pub(super) fn keep(cx: &mut Context<'_, '_>, vnode: u64, client: ClientId) -> StoreResult<()> {
    cx.draft.put(Table::Orphans, &keys::orphan(vnode, client), &OrphanRecord { since: cx.now })
}

/// Lets go of what was kept for the client. It may name objects that are gone or were never kept: a client that is not
/// sure says it again.
pub(super) fn forget(cx: &mut Context<'_, '_>, client: ClientId, fids: &[Fid]) -> Result<OpReply, ErrorCode> {
    if fids.len() > MAX_FORGET {
        return Err(ErrorCode::Invalid);
    }
    for &fid in fids {
        match cx.resolve(fid) {
            Ok(_) => release(cx, fid.vnode, client)?,
            Err(ErrorCode::Stale) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(OpReply::Forgotten)
}

/// Lets go of what was kept for a client that is gone for good, some at a time. Says whether there is more to do.
///
/// # Errors
/// As the store fails.
pub fn release_client(cx: &mut Context<'_, '_>, client: ClientId) -> StoreResult<bool> {
    let mut released = 0;
    let mut last: Option<Vec<u8>> = None;
    loop {
        let from = last.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let rows = cx.draft.range(Table::Orphans, from, Bound::Unbounded, PIECE)?;
        for (key, _) in &rows {
            let (vnode, of) = split(key)?;
            if of != client {
                continue;
            }
            if released == RELEASE {
                return Ok(true);
            }
            release(cx, vnode, client)?;
            released += 1;
        }
        if rows.len() < PIECE {
            return Ok(false);
        }
        last = rows.into_iter().next_back().map(|(key, _)| key);
    }
}

/// The clients for which anything is kept.
pub fn keepers(view: &impl Records) -> StoreResult<BTreeSet<ClientId>> {
    let rows = view.with_prefix(Table::Orphans, &[], usize::MAX)?;
    rows.iter().map(|(key, _)| Ok(split(key)?.1)).collect()
}

/// The vnode and client of an orphan's key.
fn split(key: &[u8]) -> StoreResult<(u64, ClientId)> {
    let parts = key.split_first_chunk::<8>().and_then(|(vnode, client)| {
        Some((u64::from_be_bytes(*vnode), ClientId(u128::from_be_bytes(client.try_into().ok()?))))
    });
    parts.ok_or_else(|| StoreError::Corrupt("an orphan's key is malformed".to_owned()))
}

/// Deletes the client's claim to an object, and with the last claim to an object without a name the object.
fn release(cx: &mut Context<'_, '_>, vnode: u64, client: ClientId) -> StoreResult<()> {
    let key = keys::orphan(vnode, client);
    if cx.get(Table::Orphans, &key)?.is_none() {
        return Ok(());
    }
    cx.draft.delete(Table::Orphans, &key);
    let nameless = cx.vnode(vnode)?.is_some_and(|record| record.nlink == 0);
    if nameless && cx.draft.with_prefix(Table::Orphans, &keys::vnode(vnode), 1)?.is_empty() {
        cx.free(vnode)?;
    }
    Ok(())
}
