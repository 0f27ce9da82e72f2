//! Mutations that remove a name.

use larder_protocol::attr::{Attr, Credential};
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::{ClientId, Fid};
use larder_protocol::name::Name;
use larder_protocol::service::file::OpReply;

use super::directory::{Child, Dir};
use super::orphans;
use crate::volume::access;
use crate::volume::context::Context;
use crate::volume::error::StoreResult;

pub(super) fn remove(
    cx: &mut Context<'_, '_>,
    cred: &Credential,
    client: ClientId,
    dir: Fid,
    name: &Name,
    keep: bool,
) -> Result<OpReply, ErrorCode> {
    let mut dir = Dir::open(cx, cred, dir)?;
    let child = dir.find(cx, name)?.ok_or(ErrorCode::NotFound)?;
    access::may_delete(cred, &dir.record, &child.record)?;
    if child.is_dir() || child.is_mount_point() {
        return Err(ErrorCode::IsDirectory);
    }
    dir.take(cx, name, &child)?;
    let dir = dir.store(cx)?;
    Ok(OpReply::Removed { dir, object: drop_link(cx, client, child, keep)? })
}

pub(super) fn rmdir(cx: &mut Context<'_, '_>, cred: &Credential, dir: Fid, name: &Name) -> Result<OpReply, ErrorCode> {
    let mut dir = Dir::open(cx, cred, dir)?;
    let child = dir.find(cx, name)?.ok_or(ErrorCode::NotFound)?;
    access::may_delete(cred, &dir.record, &child.record)?;
    if child.is_mount_point() {
        return Err(ErrorCode::Busy);
    }
    if !child.is_dir() {
        return Err(ErrorCode::NotDirectory);
    }
    if child.has_entries() {
        return Err(ErrorCode::NotEmpty);
    }
    dir.take(cx, name, &child)?;
    dir.lose_subdirectory();
    let dir = dir.store(cx)?;
    Ok(OpReply::Removed { dir, object: drop_dir(cx, child)? })
}

/// Counts one link less of what is no directory. With the last link it goes, unless it is kept for the client.
pub(super) fn drop_link(cx: &mut Context<'_, '_>, client: ClientId, mut child: Child, keep: bool) -> StoreResult<Attr> {
    child.record.nlink = child.record.nlink.saturating_sub(1);
    if child.record.nlink == 0 && !keep {
        return free(cx, child);
    }
    if child.record.nlink == 0 {
        orphans::keep(cx, child.vnode, client)?;
    }
    Ok(cx.touch(child.vnode, &mut child.record)?.attr)
}

/// Frees an empty directory. Nobody keeps one: a directory without a name has nothing to show or to take.
pub(super) fn drop_dir(cx: &mut Context<'_, '_>, mut child: Child) -> StoreResult<Attr> {
    child.record.nlink = 0;
    free(cx, child)
}

/// Frees the object, and says what its attributes were at the very end.
pub(super) fn free(cx: &mut Context<'_, '_>, mut child: Child) -> StoreResult<Attr> {
    cx.free(child.vnode)?;
    child.record.change = cx.next_change();
    child.record.ctime = cx.now;
    Ok(cx.attr(child.vnode, &child.record))
}
