//! Mount points: names under which another volume's root directory appears.
//!
//! Of the other volume nothing is known here, nor whether it is there. To all else a mount point is what it is to bind
//! mounts: it cannot be removed, renamed or linked as what it hides, and is busy.

use larder_protocol::attr::Credential;
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::{Fid, MAX_VOLUME, VolumeId};
use larder_protocol::name::Name;
use larder_protocol::service::file::OpReply;

use super::create::{make, open_for_new};
use super::directory::Dir;
use super::remove::free;
use crate::volume::access;
use crate::volume::context::Context;
use crate::volume::record::Body;

/// Permission bits that it has by itself; programs see those of the other volume's root directory.
const MODE: u32 = 0o755;

pub(super) fn graft(
    cx: &mut Context<'_, '_>,
    cred: &Credential,
    dir: Fid,
    name: &Name,
    volume: VolumeId,
) -> Result<OpReply, ErrorCode> {
    if !access::is_root(cred) {
        return Err(ErrorCode::NotPermitted);
    }
    if !(1..=MAX_VOLUME).contains(&volume.0) {
        return Err(ErrorCode::Invalid);
    }
    let dir = open_for_new(cx, cred, dir, name)?;
    make(cx, cred, dir, name, Body::MountPoint { volume }, MODE)
}

pub(super) fn ungraft(
    cx: &mut Context<'_, '_>,
    cred: &Credential,
    dir: Fid,
    name: &Name,
) -> Result<OpReply, ErrorCode> {
    if !access::is_root(cred) {
        return Err(ErrorCode::NotPermitted);
    }
    let mut dir = Dir::open(cx, cred, dir)?;
    let mut child = dir.find(cx, name)?.ok_or(ErrorCode::NotFound)?;
    if !child.is_mount_point() {
        return Err(ErrorCode::Invalid);
    }
    dir.take(cx, name, &child)?;
    let dir = dir.store(cx)?;
    child.record.nlink = 0;
    Ok(OpReply::Removed { dir, object: free(cx, child)? })
}
