//! Mutations: each checks permission and rules, and drafts its changes; nothing is visible before the writer commits.
//!
//! The rules and the order in which they are checked are those of the Linux VFS over a local file system. On an error
//! the writer takes back whatever a mutation had drafted until then, so nothing here cleans up behind itself.

mod create;
mod directory;
mod graft;
pub mod orphans;
mod remove;
mod rename;
pub mod setattr;
mod xattr;

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(super) mod world;

use larder_protocol::attr::{AttrChange, Credential};
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::ClientId;
use larder_protocol::service::file::{Op, OpReply};

use super::context::Context;
use super::record::VnodeRecord;

/// Carries out a mutation that touches no file's data.
///
/// Not for this function: `Append`, `Allocate`, `CopyRange`, `Store`, and a `Setattr` that sets the size. A `Create` that
/// finds a file to open checks the caller's permissions, also that to truncate, but leaves the data alone.
///
/// # Errors
/// What a local file system would answer; `Stale` for handles whose object is gone; `NoSpace`; the store's. `Internal`
/// for the operations named above.
pub fn apply(cx: &mut Context<'_, '_>, cred: &Credential, client: ClientId, op: &Op) -> Result<OpReply, ErrorCode> {
    match op {
        Op::Create { dir, name, mode, umask, how } => create::create(cx, cred, *dir, name, mode & !umask, *how),
        Op::Mkdir { dir, name, mode, umask } => create::mkdir(cx, cred, *dir, name, mode & !umask),
        Op::Mknod { dir, name, kind, mode, umask, rdev } => {
            create::mknod(cx, cred, *dir, name, *kind, mode & !umask, *rdev)
        }
        Op::Symlink { dir, name, target } => create::symlink(cx, cred, *dir, name, target),
        Op::Graft { dir, name, volume } => graft::graft(cx, cred, *dir, name, *volume),
        Op::Ungraft { dir, name } => graft::ungraft(cx, cred, *dir, name),
        Op::Link { fid, dir, name } => create::link(cx, cred, *fid, *dir, name),
        Op::Remove { dir, name, keep } => remove::remove(cx, cred, client, *dir, name, *keep),
        Op::Rmdir { dir, name } => remove::rmdir(cx, cred, *dir, name),
        Op::Rename { from_dir, from_name, to_dir, to_name, how, keep } => {
            let from = rename::Place { dir: *from_dir, name: from_name };
            let to = rename::Place { dir: *to_dir, name: to_name };
            rename::rename(cx, cred, client, &from, &to, *how, *keep)
        }
        Op::Setattr { fid, set, open } if set.size.is_none() => setattr::setattr(cx, cred, *fid, set, *open),
        Op::Setxattr { fid, name, value, how } => xattr::set(cx, cred, *fid, name, value, *how),
        Op::Removexattr { fid, name } => xattr::remove(cx, cred, *fid, name),
        Op::Forget { fids } => orphans::forget(cx, client, fids),
        Op::Setattr { .. } | Op::Append { .. } | Op::Allocate { .. } | Op::CopyRange { .. } | Op::Store { .. } => {
            debug_assert!(false, "a mutation of data does not come here");
            Err(ErrorCode::Internal)
        }
    }
}

/// What is answered for an object that a mutation left as it was.
fn unchanged(cx: &Context<'_, '_>, vnode: u64, record: &VnodeRecord) -> AttrChange {
    AttrChange { before: record.change, attr: cx.attr(vnode, record) }
}
