//! A directory while a mutation works in it.

use larder_protocol::attr::{AttrChange, Credential, FileType, MAY_EXEC, MAY_WRITE};
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::{Fid, ROOT_VNODE};
use larder_protocol::name::Name;

use crate::volume::access;
use crate::volume::context::Context;
use crate::volume::error::{StoreError, StoreResult};
use crate::volume::keys::{self, Table};
use crate::volume::record::{Body, CookieRecord, EntryRecord, VnodeRecord};
use crate::volume::view::Records;

/// A directory's record, changed here and stored by [`Dir::store`].
pub(super) struct Dir {
    pub(super) vnode: u64,
    pub(super) record: VnodeRecord,
}

/// An object found under a name.
pub(super) struct Child {
    pub(super) vnode: u64,
    /// The name's place in the listing.
    pub(super) cookie: u64,
    pub(super) record: VnodeRecord,
}

impl Child {
    pub(super) fn is_dir(&self) -> bool {
        self.record.kind() == FileType::Directory
    }

    /// Whether another volume appears in its place.
    pub(super) fn is_mount_point(&self) -> bool {
        self.record.kind() == FileType::MountPoint
    }

    /// Whether it is a directory with names in it.
    pub(super) fn has_entries(&self) -> bool {
        matches!(self.record.body, Body::Directory { entries, .. } if entries > 0)
    }

    /// Sets the directory above; only directories know theirs.
    pub(super) fn set_parent(&mut self, vnode: u64) {
        if let Body::Directory { parent, .. } = &mut self.record.body {
            *parent = vnode;
        }
    }
}

impl Dir {
    /// The directory of a handle, if the caller may look up names in it.
    pub(super) fn open(cx: &Context<'_, '_>, cred: &Credential, fid: Fid) -> Result<Dir, ErrorCode> {
        let record = cx.resolve(fid)?;
        if record.kind() != FileType::Directory {
            return Err(ErrorCode::NotDirectory);
        }
        access::need(cred, &record, MAY_EXEC)?;
        Ok(Dir { vnode: fid.vnode, record })
    }

    /// The object under a name.
    pub(super) fn find(&self, cx: &Context<'_, '_>, name: &Name) -> Result<Option<Child>, ErrorCode> {
        let Some(entry) = cx.draft.entry(self.vnode, name)? else { return Ok(None) };
        match cx.vnode(entry.vnode)? {
            Some(record) if record.generation == entry.generation => {
                Ok(Some(Child { vnode: entry.vnode, cookie: entry.cookie, record }))
            }
            _ => {
                let (dir, vnode) = (self.vnode, entry.vnode);
                Err(StoreError::Corrupt(format!("{name:?} in directory {dir} names vnode {vnode}, which is not there"))
                    .into())
            }
        }
    }

    /// Checks that the caller may add a name.
    pub(super) fn may_add(&self, cred: &Credential) -> Result<(), ErrorCode> {
        if self.record.nlink == 0 {
            return Err(ErrorCode::NotFound);
        }
        access::need(cred, &self.record, MAY_WRITE | MAY_EXEC)
    }

    /// Adds a name that is not there yet, at the end of the listing.
    pub(super) fn add(
        &mut self,
        cx: &mut Context<'_, '_>,
        name: &Name,
        vnode: u64,
        record: &VnodeRecord,
    ) -> Result<(), ErrorCode> {
        let Body::Directory { entries, next_cookie, .. } = &mut self.record.body else {
            return Err(ErrorCode::NotDirectory);
        };
        let cookie = *next_cookie;
        *next_cookie = cookie.checked_add(1).ok_or(ErrorCode::NoSpace)?;
        *entries += 1;
        Ok(self.point(cx, name, cookie, vnode, record)?)
    }

    /// Makes the name at this place of the listing point at an object.
    pub(super) fn point(
        &self,
        cx: &mut Context<'_, '_>,
        name: &Name,
        cookie: u64,
        vnode: u64,
        record: &VnodeRecord,
    ) -> StoreResult<()> {
        let (generation, kind) = (record.generation, record.kind());
        let entry = EntryRecord { vnode, generation, kind, cookie };
        cx.draft.put(Table::Entries, &keys::entry(self.vnode, name), &entry)?;
        let place = CookieRecord { name: name.clone(), vnode, generation, kind };
        cx.draft.put(Table::Cookies, &keys::cookie(self.vnode, cookie), &place)
    }

    /// Takes a name out.
    pub(super) fn take(&mut self, cx: &mut Context<'_, '_>, name: &Name, child: &Child) -> Result<(), ErrorCode> {
        let Body::Directory { entries, .. } = &mut self.record.body else { return Err(ErrorCode::NotDirectory) };
        *entries = entries.saturating_sub(1);
        cx.draft.delete(Table::Entries, &keys::entry(self.vnode, name));
        cx.draft.delete(Table::Cookies, &keys::cookie(self.vnode, child.cookie));
        Ok(())
    }

    /// Counts a subdirectory that came.
    pub(super) fn gain_subdirectory(&mut self) -> Result<(), ErrorCode> {
        self.record.nlink = self.record.nlink.checked_add(1).ok_or(ErrorCode::TooManyLinks)?;
        Ok(())
    }

    /// Counts a subdirectory that went.
    pub(super) fn lose_subdirectory(&mut self) {
        self.record.nlink = self.record.nlink.saturating_sub(1);
    }

    /// Stores the record after a change of entries.
    pub(super) fn store(&mut self, cx: &mut Context<'_, '_>) -> StoreResult<AttrChange> {
        cx.touch_data(self.vnode, &mut self.record)
    }

    /// Whether this is the directory `above`, or somewhere below it.
    pub(super) fn is_within(&self, cx: &Context<'_, '_>, above: u64) -> Result<bool, ErrorCode> {
        let (mut vnode, mut record) = (self.vnode, self.record.clone());
        // No way up is longer than there are vnodes, unless the parents form a ring.
        for _ in 0..=cx.header.vnodes {
            if vnode == above {
                return Ok(true);
            }
            if vnode == ROOT_VNODE {
                return Ok(false);
            }
            let Body::Directory { parent, .. } = record.body else { break };
            let Some(next) = cx.vnode(parent)? else { break };
            (vnode, record) = (parent, next);
        }
        Err(StoreError::Corrupt(format!("the parents of directory {} do not lead to the root", self.vnode)).into())
    }
}
