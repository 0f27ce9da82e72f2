//! Setting and removing extended attributes.

use larder_protocol::attr::Credential;
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::Fid;
use larder_protocol::limits::{MAX_XATTR_LIST, MAX_XATTR_NAME, MAX_XATTR_VALUE};
use larder_protocol::payload::Payload;
use larder_protocol::service::file::{OpReply, XattrHow};

use crate::volume::access::{self, XattrUse};
use crate::volume::context::Context;
use crate::volume::keys::{self, Table};

/// Extended attributes of one object: so many that a list of their names never gets too long to be read.
const MAX_XATTRS: u32 = (MAX_XATTR_LIST / (MAX_XATTR_NAME + 1)) as u32;

pub(super) fn set(
    cx: &mut Context<'_, '_>,
    cred: &Credential,
    fid: Fid,
    name: &[u8],
    value: &Payload,
    how: XattrHow,
) -> Result<OpReply, ErrorCode> {
    let mut record = cx.resolve(fid)?;
    access::may_use_xattr(cred, &record, name, XattrUse::Set)?;
    if value.len() > MAX_XATTR_VALUE {
        return Err(ErrorCode::TooBig);
    }
    let key = keys::xattr(fid.vnode, name);
    let exists = cx.get(Table::Xattrs, &key)?.is_some();
    match how {
        XattrHow::Create if exists => return Err(ErrorCode::Exists),
        XattrHow::Replace if !exists => return Err(ErrorCode::NoXattr),
        _ => {}
    }
    cx.need_room()?;
    if !exists {
        if record.xattrs >= MAX_XATTRS {
            return Err(ErrorCode::NoSpace);
        }
        record.xattrs += 1;
    }
    cx.draft.put_bytes(Table::Xattrs, &key, value.0.to_vec());
    Ok(OpReply::Attr(cx.touch(fid.vnode, &mut record)?))
}

pub(super) fn remove(cx: &mut Context<'_, '_>, cred: &Credential, fid: Fid, name: &[u8]) -> Result<OpReply, ErrorCode> {
    let mut record = cx.resolve(fid)?;
    access::may_use_xattr(cred, &record, name, XattrUse::Remove)?;
    let key = keys::xattr(fid.vnode, name);
    if cx.get(Table::Xattrs, &key)?.is_none() {
        return Err(ErrorCode::NoXattr);
    }
    cx.draft.delete(Table::Xattrs, &key);
    record.xattrs = record.xattrs.saturating_sub(1);
    Ok(OpReply::Attr(cx.touch(fid.vnode, &mut record)?))
}
