//! Mutations that add a name.

use bytes::Bytes;
use larder_protocol::attr::{Credential, FileType, MAY_WRITE, MODE_MASK, STICKY};
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::Fid;
use larder_protocol::limits::{MAX_LINKS, MAX_SYMLINK};
use larder_protocol::name::Name;
use larder_protocol::service::file::{CreateHow, OpReply};

use super::directory::{Child, Dir};
use super::unchanged;
use crate::volume::access;
use crate::volume::context::Context;
use crate::volume::record::{Body, VnodeRecord};

/// The size that directories show, whatever is in them.
const DIRECTORY_SIZE: u64 = 4096;

pub(super) fn create(
    cx: &mut Context<'_, '_>,
    cred: &Credential,
    dir: Fid,
    name: &Name,
    mode: u32,
    how: CreateHow,
) -> Result<OpReply, ErrorCode> {
    let dir = Dir::open(cx, cred, dir)?;
    let Some(found) = dir.find(cx, name)? else {
        dir.may_add(cred)?;
        return make(cx, cred, dir, name, Body::Inline, mode & MODE_MASK);
    };
    let CreateHow::Open { access, truncate } = how else { return Err(ErrorCode::Exists) };
    open(cx, cred, &dir, &found, if truncate { access | MAY_WRITE } else { access })
}

fn open(cx: &Context<'_, '_>, cred: &Credential, dir: &Dir, found: &Child, access: u32) -> Result<OpReply, ErrorCode> {
    match found.record.kind() {
        FileType::Regular => {}
        FileType::Directory | FileType::MountPoint => return Err(ErrorCode::IsDirectory),
        // The client looked before it asked and saw no such name: it lost a race, and must not get what cannot be
        // opened as a file of the volume.
        _ => return Err(ErrorCode::Exists),
    }
    access::need(cred, &found.record, access)?;
    Ok(OpReply::Entry {
        attr: cx.attr(found.vnode, &found.record),
        dir: unchanged(cx, dir.vnode, &dir.record),
        created: false,
    })
}

pub(super) fn mkdir(
    cx: &mut Context<'_, '_>,
    cred: &Credential,
    dir: Fid,
    name: &Name,
    mode: u32,
) -> Result<OpReply, ErrorCode> {
    let dir = open_for_new(cx, cred, dir, name)?;
    let body = Body::Directory { parent: dir.vnode, entries: 0, next_cookie: 1 };
    // mkdir(2) has no setuid and setgid bits to give; setgid comes from the directory above.
    make(cx, cred, dir, name, body, mode & (0o777 | STICKY))
}

pub(super) fn mknod(
    cx: &mut Context<'_, '_>,
    cred: &Credential,
    dir: Fid,
    name: &Name,
    kind: FileType,
    mode: u32,
    rdev: u32,
) -> Result<OpReply, ErrorCode> {
    let body = match kind {
        FileType::Regular => Body::Inline,
        FileType::Fifo => Body::Fifo,
        FileType::Socket => Body::Socket,
        FileType::CharDevice => Body::CharDevice { rdev },
        FileType::BlockDevice => Body::BlockDevice { rdev },
        FileType::Directory | FileType::Symlink | FileType::MountPoint => return Err(ErrorCode::Invalid),
    };
    let dir = open_for_new(cx, cred, dir, name)?;
    if matches!(kind, FileType::CharDevice | FileType::BlockDevice) && !access::is_root(cred) {
        return Err(ErrorCode::NotPermitted);
    }
    make(cx, cred, dir, name, body, mode & MODE_MASK)
}

pub(super) fn symlink(
    cx: &mut Context<'_, '_>,
    cred: &Credential,
    dir: Fid,
    name: &Name,
    target: &Bytes,
) -> Result<OpReply, ErrorCode> {
    if target.is_empty() {
        return Err(ErrorCode::NotFound);
    }
    if target.len() > MAX_SYMLINK {
        return Err(ErrorCode::NameTooLong);
    }
    if target.contains(&0) {
        return Err(ErrorCode::Invalid);
    }
    let dir = open_for_new(cx, cred, dir, name)?;
    // A slice of the request's buffer would keep all of it.
    let body = Body::Symlink { target: Bytes::copy_from_slice(target) };
    make(cx, cred, dir, name, body, 0o777)
}

pub(super) fn link(
    cx: &mut Context<'_, '_>,
    cred: &Credential,
    fid: Fid,
    dir: Fid,
    name: &Name,
) -> Result<OpReply, ErrorCode> {
    if fid.volume != dir.volume {
        return Err(ErrorCode::CrossVolume);
    }
    let mut record = cx.resolve(fid)?;
    let mut dir = open_for_new(cx, cred, dir, name)?;
    if matches!(record.kind(), FileType::Directory | FileType::MountPoint) {
        return Err(ErrorCode::NotPermitted);
    }
    if record.nlink == 0 {
        // A name for it would let one client's orphan outlive that client.
        return Err(ErrorCode::NotFound);
    }
    if record.nlink >= MAX_LINKS {
        return Err(ErrorCode::TooManyLinks);
    }
    cx.need_room()?;
    record.nlink += 1;
    let attr = cx.touch(fid.vnode, &mut record)?.attr;
    dir.add(cx, name, fid.vnode, &record)?;
    Ok(OpReply::Entry { attr, dir: dir.store(cx)?, created: false })
}

/// The directory for a name that must not be there.
pub(super) fn open_for_new(cx: &Context<'_, '_>, cred: &Credential, dir: Fid, name: &Name) -> Result<Dir, ErrorCode> {
    let dir = Dir::open(cx, cred, dir)?;
    // Before the permission to write: `mkdir -p` in a read-only tree relies on it.
    if dir.find(cx, name)?.is_some() {
        return Err(ErrorCode::Exists);
    }
    dir.may_add(cred)?;
    Ok(dir)
}

/// Makes an object and its name; all checks are done.
pub(super) fn make(
    cx: &mut Context<'_, '_>,
    cred: &Credential,
    mut dir: Dir,
    name: &Name,
    body: Body,
    mode: u32,
) -> Result<OpReply, ErrorCode> {
    cx.need_room()?;
    let (nlink, size) = match &body {
        Body::Directory { .. } => {
            dir.gain_subdirectory()?;
            (2, DIRECTORY_SIZE)
        }
        Body::Symlink { target } => (1, target.len() as u64),
        _ => (1, 0),
    };
    let change = cx.next_change();
    let mut record = VnodeRecord {
        generation: cx.header.incarnation,
        mode,
        nlink,
        uid: cred.uid,
        gid: cred.gid,
        size,
        blocks: if matches!(body, Body::Directory { .. }) { DIRECTORY_SIZE / 512 } else { 0 },
        atime: cx.now,
        mtime: cx.now,
        ctime: cx.now,
        btime: cx.now,
        change,
        data_change: change,
        xattrs: 0,
        body,
    };
    (record.mode, record.gid) = access::mode_and_group(cred, &dir.record, record.kind(), mode);
    let vnode = cx.new_vnode()?;
    cx.insert(vnode, &record)?;
    dir.add(cx, name, vnode, &record)?;
    Ok(OpReply::Entry { attr: cx.attr(vnode, &record), dir: dir.store(cx)?, created: true })
}
