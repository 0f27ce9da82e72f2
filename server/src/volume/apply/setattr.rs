//! Setting attributes: the rules of chmod(2), chown(2), truncate(2) and utimensat(2).

use larder_protocol::attr::{
    AttrChange, Credential, FileType, MAY_WRITE, MODE_MASK, SETGID, SetAttr, SetTime, Timestamp,
};
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::Fid;
use larder_protocol::limits::MAX_FILE_SIZE;
use larder_protocol::service::file::OpReply;

use super::unchanged;
use crate::volume::access;
use crate::volume::context::Context;
use crate::volume::record::VnodeRecord;

/// The id that chown(2) takes for "leave it", which no user or group has.
const NO_ID: u32 = u32::MAX;

pub(super) fn setattr(
    cx: &mut Context<'_, '_>,
    cred: &Credential,
    fid: Fid,
    set: &SetAttr,
    open: bool,
) -> Result<OpReply, ErrorCode> {
    let mut record = cx.resolve(fid)?;
    check(cred, &record, set, open)?;
    if *set == SetAttr::default() {
        return Ok(OpReply::Attr(unchanged(cx, fid.vnode, &record)));
    }
    change(cx, cred, &mut record, set);
    if set.mtime.is_none() || record.kind() != FileType::Regular {
        return Ok(OpReply::Attr(cx.touch(fid.vnode, &mut record)?));
    }
    let before = record.change;
    record.change = cx.next_change();
    // What unstable writes left over the record must not cover the new time.
    record.data_change = record.change;
    record.ctime = cx.now;
    cx.update(fid.vnode, &record)?;
    Ok(OpReply::Attr(AttrChange { before, attr: cx.attr(fid.vnode, &record) }))
}

/// Checks that the caller may set all of `set`, the size too. With `open`, a change of size comes through an open file.
///
/// # Errors
/// `NotPermitted` for what only the owner or root may do; `AccessDenied` without write permission where that is
/// asked for; `IsDirectory`, `Invalid` for a size of what has none; `FileTooLarge`; `NotSupported` for a symbolic
/// link's mode; `Invalid` for a time or an id that is none.
pub fn check(cred: &Credential, record: &VnodeRecord, set: &SetAttr, open: bool) -> Result<(), ErrorCode> {
    if let Some(size) = set.size {
        check_size(cred, record, size, open)?;
    }
    if set.uid == Some(NO_ID) || set.gid == Some(NO_ID) {
        return Err(ErrorCode::Invalid);
    }
    let (root, owner) = (access::is_root(cred), access::is_owner(cred, record));
    if let Some(uid) = set.uid
        && !root
        && !(owner && uid == record.uid)
    {
        return Err(ErrorCode::NotPermitted);
    }
    if let Some(gid) = set.gid
        && !root
        && !(owner && (gid == record.gid || cred.in_group(gid)))
    {
        return Err(ErrorCode::NotPermitted);
    }
    if let Some(mode) = set.mode {
        if record.kind() == FileType::Symlink {
            return Err(ErrorCode::NotSupported);
        }
        if !owner && !is_drop_of_privileges(cred, record, mode) {
            return Err(ErrorCode::NotPermitted);
        }
    }
    check_times(cred, record, set)
}

fn check_size(cred: &Credential, record: &VnodeRecord, size: u64, open: bool) -> Result<(), ErrorCode> {
    match record.kind() {
        FileType::Regular => {}
        FileType::Directory => return Err(ErrorCode::IsDirectory),
        _ => return Err(ErrorCode::Invalid),
    }
    let allowed = if open { access::may_write_data(cred, record) } else { access::may(cred, record, MAY_WRITE) };
    if !allowed {
        return Err(ErrorCode::AccessDenied);
    }
    if size > MAX_FILE_SIZE { Err(ErrorCode::FileTooLarge) } else { Ok(()) }
}

/// Whether the new mode is what a write by the caller would leave. Before a write some kernels clear setuid and setgid
/// by a change of mode in the name of the writer, who need not be the owner.
fn is_drop_of_privileges(cred: &Credential, record: &VnodeRecord, mode: u32) -> bool {
    access::may(cred, record, MAY_WRITE)
        && record.kind() == FileType::Regular
        && mode & MODE_MASK == access::mode_after_write(cred, record)
}

fn check_times(cred: &Credential, record: &VnodeRecord, set: &SetAttr) -> Result<(), ErrorCode> {
    for time in [set.atime, set.mtime].into_iter().flatten() {
        if matches!(time, SetTime::At(at) if at.nanos >= 1_000_000_000) {
            return Err(ErrorCode::Invalid);
        }
    }
    match (set.atime, set.mtime) {
        (None, None) => Ok(()),
        // A truncation by the kernel comes with this, and was checked as such.
        (None, Some(SetTime::Now)) if set.size.is_some() => Ok(()),
        _ if access::is_owner(cred, record) => Ok(()),
        // Both times now is what any write may do; all else is the owner's (utimensat(2), "Permissions requirements").
        (Some(SetTime::Now), Some(SetTime::Now)) => access::need(cred, record, MAY_WRITE),
        _ => Err(ErrorCode::NotPermitted),
    }
}

/// Changes mode, owner, group and times in the record, with the bits that fall by the way, and stores nothing. The size
/// is left alone, but its change clears setuid and setgid here. `ctime` and `change` are the caller's, and
/// `data_change` where the mtime of a regular file is set.
pub fn change(cx: &Context<'_, '_>, cred: &Credential, record: &mut VnodeRecord, set: &SetAttr) {
    if let Some(mode) = set.mode {
        record.mode = mode & MODE_MASK;
        if !access::may_set_setgid(cred, set.gid.unwrap_or(record.gid)) {
            record.mode &= !SETGID;
        }
    }
    if set.uid.is_some() || set.gid.is_some() {
        record.mode = access::mode_after_chown(cred, record);
        record.uid = set.uid.unwrap_or(record.uid);
        record.gid = set.gid.unwrap_or(record.gid);
    }
    if set.size.is_some() {
        access::drop_privileges(cred, record);
    }
    let time = |set: SetTime| -> Timestamp {
        match set {
            SetTime::Now => cx.now,
            SetTime::At(at) => at,
        }
    };
    if let Some(atime) = set.atime {
        record.atime = time(atime);
    }
    if let Some(mtime) = set.mtime {
        record.mtime = time(mtime);
    }
}
