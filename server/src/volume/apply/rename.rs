//! Moving names: rename(2) and renameat2(2).

use larder_protocol::attr::{AttrChange, Credential, MAY_WRITE};
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::{ClientId, Fid};
use larder_protocol::name::Name;
use larder_protocol::service::file::{OpReply, RenameHow};

use super::directory::{Child, Dir};
use super::{remove, unchanged};
use crate::volume::access;
use crate::volume::context::Context;
use crate::volume::error::StoreResult;

/// A name in a directory, whether it is there or not.
pub(super) struct Place<'r> {
    pub(super) dir: Fid,
    pub(super) name: &'r Name,
}

/// The one or two directories of a rename. One directory has one record, or the second store would undo the first.
struct Dirs {
    from: Dir,
    /// `None` if it is the same.
    to: Option<Dir>,
}

impl Dirs {
    fn to(&self) -> &Dir {
        self.to.as_ref().unwrap_or(&self.from)
    }

    fn to_mut(&mut self) -> &mut Dir {
        self.to.as_mut().unwrap_or(&mut self.from)
    }

    fn differ(&self) -> bool {
        self.to.is_some()
    }

    /// Counts and points as a directory's move from the first to the second demands.
    fn carry_over(&mut self, child: &mut Child) -> Result<(), ErrorCode> {
        if let Some(to) = &mut self.to
            && child.is_dir()
        {
            self.from.lose_subdirectory();
            to.gain_subdirectory()?;
            child.set_parent(to.vnode);
        }
        Ok(())
    }

    /// As [`Dirs::carry_over`], from the second to the first.
    fn carry_back(&mut self, child: &mut Child) -> Result<(), ErrorCode> {
        if let Some(to) = &mut self.to
            && child.is_dir()
        {
            to.lose_subdirectory();
            self.from.gain_subdirectory()?;
            child.set_parent(self.from.vnode);
        }
        Ok(())
    }

    fn store(&mut self, cx: &mut Context<'_, '_>) -> StoreResult<(AttrChange, AttrChange)> {
        let from = self.from.store(cx)?;
        let to = match &mut self.to {
            Some(to) => to.store(cx)?,
            None => from.clone(),
        };
        Ok((from, to))
    }
}

pub(super) fn rename(
    cx: &mut Context<'_, '_>,
    cred: &Credential,
    client: ClientId,
    from: &Place<'_>,
    to: &Place<'_>,
    how: RenameHow,
    keep: bool,
) -> Result<OpReply, ErrorCode> {
    if from.dir.volume != to.dir.volume {
        return Err(ErrorCode::CrossVolume);
    }
    let mut dirs = Dirs {
        from: Dir::open(cx, cred, from.dir)?,
        to: if from.dir == to.dir { None } else { Some(Dir::open(cx, cred, to.dir)?) },
    };
    let mut child = dirs.from.find(cx, from.name)?.ok_or(ErrorCode::NotFound)?;
    let target = dirs.to().find(cx, to.name)?;
    match (how, &target) {
        (RenameHow::NoReplace, Some(_)) => return Err(ErrorCode::Exists),
        (RenameHow::Exchange, None) => return Err(ErrorCode::NotFound),
        _ => {}
    }
    if child.is_mount_point() || target.as_ref().is_some_and(Child::is_mount_point) {
        return Err(ErrorCode::Busy);
    }
    keep_a_tree(cx, &dirs, &child, target.as_ref(), how)?;
    if target.as_ref().is_some_and(|target| target.vnode == child.vnode) {
        // Two names of one object: rename(2) does nothing then.
        return Ok(OpReply::Renamed {
            from_dir: unchanged(cx, dirs.from.vnode, &dirs.from.record),
            to_dir: unchanged(cx, dirs.to().vnode, &dirs.to().record),
            object: cx.attr(child.vnode, &child.record),
            other: None,
        });
    }
    check_permission(cred, &dirs, &child, target.as_ref(), how)?;

    let Some(mut target) = target else {
        cx.need_room()?;
        dirs.from.take(cx, from.name, &child)?;
        dirs.to_mut().add(cx, to.name, child.vnode, &child.record)?;
        dirs.carry_over(&mut child)?;
        let (from_dir, to_dir) = dirs.store(cx)?;
        let object = cx.touch(child.vnode, &mut child.record)?.attr;
        return Ok(OpReply::Renamed { from_dir, to_dir, object, other: None });
    };
    if how == RenameHow::Exchange {
        dirs.from.point(cx, from.name, child.cookie, target.vnode, &target.record)?;
        dirs.to().point(cx, to.name, target.cookie, child.vnode, &child.record)?;
        dirs.carry_over(&mut child)?;
        dirs.carry_back(&mut target)?;
        let (from_dir, to_dir) = dirs.store(cx)?;
        let object = cx.touch(child.vnode, &mut child.record)?.attr;
        let other = Some(cx.touch(target.vnode, &mut target.record)?.attr);
        return Ok(OpReply::Renamed { from_dir, to_dir, object, other });
    }
    if target.has_entries() {
        return Err(ErrorCode::NotEmpty);
    }
    dirs.from.take(cx, from.name, &child)?;
    // The name was there all along, so it keeps its place in the listing.
    dirs.to().point(cx, to.name, target.cookie, child.vnode, &child.record)?;
    dirs.carry_over(&mut child)?;
    if target.is_dir() {
        dirs.to_mut().lose_subdirectory();
    }
    let (from_dir, to_dir) = dirs.store(cx)?;
    let object = cx.touch(child.vnode, &mut child.record)?.attr;
    let other =
        if target.is_dir() { remove::drop_dir(cx, target)? } else { remove::drop_link(cx, client, target, keep)? };
    Ok(OpReply::Renamed { from_dir, to_dir, object, other: Some(other) })
}

/// Refuses what would put a directory into itself, or replace one by what is in it.
fn keep_a_tree(
    cx: &Context<'_, '_>,
    dirs: &Dirs,
    child: &Child,
    target: Option<&Child>,
    how: RenameHow,
) -> Result<(), ErrorCode> {
    if !dirs.differ() {
        return Ok(());
    }
    if child.is_dir() && dirs.to().is_within(cx, child.vnode)? {
        return Err(ErrorCode::Invalid);
    }
    if let Some(target) = target
        && target.is_dir()
        && dirs.from.is_within(cx, target.vnode)?
    {
        return Err(if how == RenameHow::Exchange { ErrorCode::Invalid } else { ErrorCode::NotEmpty });
    }
    Ok(())
}

fn check_permission(
    cred: &Credential,
    dirs: &Dirs,
    child: &Child,
    target: Option<&Child>,
    how: RenameHow,
) -> Result<(), ErrorCode> {
    access::may_delete(cred, &dirs.from.record, &child.record)?;
    match target {
        None => dirs.to().may_add(cred)?,
        Some(target) => {
            access::may_delete(cred, &dirs.to().record, &target.record)?;
            match (child.is_dir(), target.is_dir()) {
                (true, false) if how != RenameHow::Exchange => return Err(ErrorCode::NotDirectory),
                (false, true) if how != RenameHow::Exchange => return Err(ErrorCode::IsDirectory),
                _ => {}
            }
        }
    }
    if dirs.differ() {
        // A directory that gets another parent has its `..` changed.
        let swapped = target.filter(|_| how == RenameHow::Exchange);
        for moved in std::iter::once(child).chain(swapped) {
            if moved.is_dir() {
                access::need(cred, &moved.record, MAY_WRITE)?;
            }
        }
    }
    Ok(())
}
