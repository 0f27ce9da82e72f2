//! What a tree of files does, written down flat: the reference for operations in their order.

use std::collections::{BTreeMap, BTreeSet};

use larder_protocol::attr::{Attr, AttrChange, FileType};
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::Fid;
use larder_protocol::name::Name;
use larder_protocol::service::file::{CreateHow, Op, OpReply, RenameHow};

/// An object.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    pub(crate) kind: FileType,
    pub(crate) mode: u32,
    pub(crate) nlink: u32,
    /// A file's contents, a link's target.
    pub(crate) data: Vec<u8>,
    pub(crate) entries: BTreeMap<Name, Fid>,
    /// The directory above a directory.
    parent: Option<Fid>,
    /// A directory's change attribute.
    change: u64,
}

/// A tree. Every caller is the superuser, and nobody keeps orphans.
pub(crate) struct Model {
    pub(crate) root: Fid,
    pub(crate) objects: BTreeMap<Fid, Object>,
    /// All that ever were.
    ever: BTreeSet<Fid>,
}

type Entry = (Fid, FileType);

impl Model {
    pub(crate) fn new(root: &Attr) -> Model {
        let mut model = Model { root: root.fid, objects: BTreeMap::new(), ever: BTreeSet::new() };
        model.add(root, None, Vec::new());
        model
    }

    fn add(&mut self, attr: &Attr, parent: Option<Fid>, data: Vec<u8>) {
        assert!(self.ever.insert(attr.fid), "{} is given out twice", attr.fid);
        let object = Object {
            kind: attr.kind,
            mode: attr.mode,
            nlink: attr.nlink,
            data,
            entries: BTreeMap::new(),
            parent,
            change: attr.change,
        };
        self.objects.insert(attr.fid, object);
    }

    fn object(&self, fid: Fid) -> Result<&Object, ErrorCode> {
        self.objects.get(&fid).ok_or(ErrorCode::Stale)
    }

    fn at(&mut self, fid: Fid) -> &mut Object {
        self.objects.get_mut(&fid).unwrap_or_else(|| panic!("an operation succeeded on {fid}, which is gone"))
    }

    fn find(&self, dir: Fid, name: &Name) -> Result<Option<Entry>, ErrorCode> {
        let dir = self.object(dir)?;
        if dir.kind != FileType::Directory {
            return Err(ErrorCode::NotDirectory);
        }
        Ok(dir.entries.get(name).map(|fid| (*fid, self.objects[fid].kind)))
    }

    fn absent(&self, dir: Fid, name: &Name) -> Result<(), ErrorCode> {
        if self.find(dir, name)?.is_some() { Err(ErrorCode::Exists) } else { Ok(()) }
    }

    fn is_within(&self, dir: Fid, above: Fid) -> bool {
        let mut at = Some(dir);
        while let Some(fid) = at {
            if fid == above {
                return true;
            }
            at = self.objects[&fid].parent;
        }
        false
    }

    /// What an operation would come to now.
    pub(crate) fn would(&self, op: &Op) -> Result<(), ErrorCode> {
        match op {
            Op::Create { dir, name, how: CreateHow::Exclusive, .. }
            | Op::Mkdir { dir, name, .. }
            | Op::Symlink { dir, name, .. } => self.absent(*dir, name),
            Op::Create { dir, name, .. } => match self.find(*dir, name)? {
                None | Some((_, FileType::Regular)) => Ok(()),
                Some((_, FileType::Directory)) => Err(ErrorCode::IsDirectory),
                Some(_) => Err(ErrorCode::Exists),
            },
            Op::Link { fid, dir, name } => {
                let kind = self.object(*fid)?.kind;
                self.absent(*dir, name)?;
                if kind == FileType::Directory { Err(ErrorCode::NotPermitted) } else { Ok(()) }
            }
            Op::Remove { dir, name, .. } => match self.find(*dir, name)?.ok_or(ErrorCode::NotFound)? {
                (_, FileType::Directory) => Err(ErrorCode::IsDirectory),
                _ => Ok(()),
            },
            Op::Rmdir { dir, name } => match self.find(*dir, name)?.ok_or(ErrorCode::NotFound)? {
                (fid, FileType::Directory) => self.empty(fid),
                _ => Err(ErrorCode::NotDirectory),
            },
            Op::Rename { from_dir, from_name, to_dir, to_name, how, .. } => {
                self.would_rename(*from_dir, from_name, *to_dir, to_name, *how)
            }
            Op::Append { fid, .. } | Op::Setattr { fid, .. } => self.object(*fid).map(|_| ()),
            other => panic!("not in the model: {other:?}"),
        }
    }

    fn empty(&self, fid: Fid) -> Result<(), ErrorCode> {
        if self.objects[&fid].entries.is_empty() { Ok(()) } else { Err(ErrorCode::NotEmpty) }
    }

    fn would_rename(&self, from: Fid, name: &Name, to: Fid, to_name: &Name, how: RenameHow) -> Result<(), ErrorCode> {
        self.object(from)?;
        self.find(to, to_name)?;
        let (child, kind) = self.find(from, name)?.ok_or(ErrorCode::NotFound)?;
        let target = self.find(to, to_name)?;
        match (how, target) {
            (RenameHow::NoReplace, Some(_)) => return Err(ErrorCode::Exists),
            (RenameHow::Exchange, None) => return Err(ErrorCode::NotFound),
            _ => {}
        }
        if from != to && kind == FileType::Directory && self.is_within(to, child) {
            return Err(ErrorCode::Invalid);
        }
        let Some((target, target_kind)) = target else { return Ok(()) };
        if from != to && target_kind == FileType::Directory && self.is_within(from, target) {
            return Err(if how == RenameHow::Exchange { ErrorCode::Invalid } else { ErrorCode::NotEmpty });
        }
        if target == child || how == RenameHow::Exchange {
            return Ok(());
        }
        match (kind == FileType::Directory, target_kind == FileType::Directory) {
            (true, false) => Err(ErrorCode::NotDirectory),
            (false, true) => Err(ErrorCode::IsDirectory),
            (true, true) => self.empty(target),
            (false, false) => Ok(()),
        }
    }

    /// Follows an operation that succeeded, and checks what the server said of it.
    ///
    /// # Panics
    /// If it could not have succeeded now, or not with this reply.
    pub(crate) fn follow(&mut self, op: &Op, reply: &OpReply) {
        assert_eq!(self.would(op), Ok(()), "it succeeded");
        match (op, reply) {
            (
                Op::Create { dir, name, .. } | Op::Mkdir { dir, name, .. } | Op::Symlink { dir, name, .. },
                OpReply::Entry { attr, dir: change, created },
            ) => self.made(op, *dir, name, attr, change, *created),
            (Op::Link { fid, dir, name }, OpReply::Entry { attr, dir: change, .. }) => {
                let object = self.at(*fid);
                object.nlink += 1;
                assert_eq!((attr.fid, attr.nlink), (*fid, object.nlink));
                self.at(*dir).entries.insert(name.clone(), *fid);
                self.changed(*dir, change);
            }
            (Op::Remove { dir, name, .. } | Op::Rmdir { dir, name }, OpReply::Removed { dir: change, object }) => {
                let fid = self.at(*dir).entries.remove(name).expect("checked before");
                assert_eq!(object.fid, fid);
                self.unlinked(fid, object);
                if object.kind == FileType::Directory {
                    self.at(*dir).nlink -= 1;
                }
                self.changed(*dir, change);
            }
            (
                Op::Rename { from_dir, from_name, to_dir, to_name, how, .. },
                OpReply::Renamed { from_dir: from_change, to_dir: to_change, object, other },
            ) => {
                let child = self.at(*from_dir).entries[from_name];
                let target = self.at(*to_dir).entries.get(to_name).copied();
                assert_eq!(object.fid, child);
                self.renamed((*from_dir, from_name), (*to_dir, to_name), *how, other.as_ref());
                self.changed(*from_dir, from_change);
                if from_dir != to_dir {
                    self.changed(*to_dir, to_change);
                }
                if target != Some(child) {
                    self.at(child).change = object.change;
                    if let (Some(other), RenameHow::Exchange) = (other, how) {
                        self.at(other.fid).change = other.change;
                    }
                }
                assert_eq!(object.nlink, self.at(child).nlink);
            }
            (Op::Append { fid, data }, OpReply::Appended { offset, attr }) => {
                let object = self.at(*fid);
                assert_eq!(*offset, object.data.len() as u64, "appended at the end");
                object.data.extend_from_slice(&data.0);
                assert_eq!(attr.attr.size, object.data.len() as u64);
            }
            (Op::Setattr { fid, set, .. }, OpReply::Attr(change)) => {
                let object = self.at(*fid);
                object.mode = set.mode.unwrap_or(object.mode);
                if let Some(size) = set.size {
                    object.data.resize(size as usize, 0);
                    assert_eq!(change.attr.size, size);
                }
                assert_eq!(change.attr.mode, object.mode);
                if object.kind == FileType::Directory {
                    self.changed(*fid, change);
                }
            }
            _ => panic!("the reply is of another kind"),
        }
    }

    fn made(&mut self, op: &Op, dir: Fid, name: &Name, attr: &Attr, change: &AttrChange, created: bool) {
        let there = self.at(dir).entries.get(name).copied();
        assert_eq!(created, there.is_none());
        match there {
            Some(there) => assert_eq!(attr.fid, there, "it opened what is there"),
            None => {
                let (data, parent) = match op {
                    Op::Symlink { target, .. } => (target.to_vec(), None),
                    Op::Mkdir { .. } => (Vec::new(), Some(dir)),
                    _ => (Vec::new(), None),
                };
                assert_eq!(attr.nlink, if parent.is_some() { 2 } else { 1 });
                self.add(attr, parent, data);
                self.at(dir).entries.insert(name.clone(), attr.fid);
                self.at(dir).nlink += u32::from(parent.is_some());
            }
        }
        self.changed(dir, change);
    }

    fn renamed(&mut self, from: (Fid, &Name), to: (Fid, &Name), how: RenameHow, other: Option<&Attr>) {
        let child = self.at(from.0).entries[from.1];
        let target = self.at(to.0).entries.get(to.1).copied();
        if target == Some(child) {
            assert_eq!(other, None);
            return;
        }
        assert_eq!(other.map(|other| other.fid), target);
        self.at(from.0).entries.remove(from.1);
        self.at(to.0).entries.insert(to.1.clone(), child);
        self.moved(child, from.0, to.0);
        match (target, how) {
            (Some(target), RenameHow::Exchange) => {
                self.at(from.0).entries.insert(from.1.clone(), target);
                self.moved(target, to.0, from.0);
            }
            (Some(target), _) => {
                let attr = other.expect("compared above");
                if attr.kind == FileType::Directory {
                    self.at(to.0).nlink -= 1;
                }
                self.unlinked(target, attr);
            }
            (None, _) => {}
        }
    }

    fn moved(&mut self, child: Fid, from: Fid, to: Fid) {
        if self.at(child).kind == FileType::Directory {
            self.at(child).parent = Some(to);
            self.at(from).nlink -= 1;
            self.at(to).nlink += 1;
        }
    }

    fn unlinked(&mut self, fid: Fid, attr: &Attr) {
        let object = self.at(fid);
        object.nlink = if object.kind == FileType::Directory { 0 } else { object.nlink - 1 };
        assert_eq!(attr.nlink, object.nlink);
        if object.nlink == 0 {
            self.objects.remove(&fid);
        }
    }

    /// The directory stood at `before`: nothing came in between that is not known.
    fn changed(&mut self, dir: Fid, change: &AttrChange) {
        let object = self.at(dir);
        assert_eq!(change.attr.fid, dir);
        assert_eq!(change.before, object.change, "the directory's change attribute has no gap");
        assert_eq!(change.attr.nlink, object.nlink);
        object.change = change.attr.change;
    }
}
