//! Requests on files and directories, and their answers.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::callback::ObjectId;
use crate::attr::{Attr, AttrChange, FileType, SetAttr, VolumeSpace};
use crate::ids::{Fid, Verifier, VolumeId};
use crate::name::Name;
use crate::payload::Payload;
use crate::service::callback::Grants;

/// A request that changes nothing and can be repeated at will.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Query {
    /// The object that a directory has under a name. Needs search permission.
    Lookup {
        /// The directory.
        dir: Fid,
        /// The name.
        name: Name,
    },
    /// The directory above a directory; the root's is itself.
    Parent {
        /// The directory.
        dir: Fid,
    },
    /// An object's attributes.
    Getattr {
        /// The object.
        fid: Fid,
    },
    /// Which of the permissions in `mask` (`MAY_READ`, `MAY_WRITE`, `MAY_EXEC`) the caller has.
    Access {
        /// The object.
        fid: Fid,
        /// The permissions asked for.
        mask: u32,
    },
    /// A symbolic link's target.
    Readlink {
        /// The link.
        fid: Fid,
    },
    /// Bytes of a file. A reply shorter than asked means the end of the file, nothing else.
    Read {
        /// The file.
        fid: Fid,
        /// Where to begin.
        offset: u64,
        /// How many bytes, at most [`MAX_PAYLOAD`](crate::limits::MAX_PAYLOAD).
        len: u32,
        /// Whether the file's access time may follow (`relatime`); a `noatime` mount says no.
        touch: bool,
    },
    /// Bytes of a file for a whole-file cache. Whoever may write the file may fetch it too: its contents are stored
    /// back whole.
    Fetch {
        /// The file.
        fid: Fid,
        /// Where to begin.
        offset: u64,
        /// How many bytes, at most [`MAX_PAYLOAD`](crate::limits::MAX_PAYLOAD).
        len: u32,
        /// The data version that the bytes are to be of; at any other none are returned.
        version: Option<u64>,
        /// Whether the server may answer from a copy of that version, which it makes if it must and keeps for a while.
        /// Costs a copy of the file, and is for files that change faster than they can be fetched.
        copy: bool,
    },
    /// Whether objects are still as the client knows them.
    Recheck {
        /// Objects of one volume with the `change` they are known at, 1 to
        /// [`MAX_RECHECK`](crate::limits::MAX_RECHECK).
        items: Vec<(Fid, u64)>,
    },
    /// Entries of a directory behind a cookie.
    Readdir {
        /// The directory.
        dir: Fid,
        /// The cookie of the last entry already known, 0 to begin. Cookies stay valid while entries come and go:
        /// an entry that is there throughout is listed once.
        cookie: u64,
        /// About how many bytes of reply to fill, at most [`MAX_READDIR`](crate::limits::MAX_READDIR).
        max_bytes: u32,
        /// Whether to add each entry's attributes.
        plus: bool,
    },
    /// How full the volume is.
    Statfs {
        /// Any object in it.
        fid: Fid,
    },
    /// The value of an extended attribute.
    Getxattr {
        /// The object.
        fid: Fid,
        /// The attribute's full name, with its namespace.
        name: Bytes,
    },
    /// The names of all extended attributes.
    Listxattr {
        /// The object.
        fid: Fid,
    },
    /// The next data or hole at or after an offset (lseek(2), `SEEK_DATA` and `SEEK_HOLE`).
    Seek {
        /// The file.
        fid: Fid,
        /// Where to begin.
        offset: u64,
        /// What to find.
        what: SeekWhat,
    },
}

/// What [`Query::Seek`] looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SeekWhat {
    /// Data.
    Data,
    /// A hole, such as the one that follows every file's end.
    Hole,
}

/// The answer to a [`Query`], of the variant that belongs to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum QueryReply {
    /// To [`Query::Lookup`] and [`Query::Parent`].
    Entry {
        /// The object found; `None` when the directory has no such name.
        attr: Option<Attr>,
        /// The directory asked.
        dir: Attr,
    },
    /// To [`Query::Getattr`].
    Attr(Attr),
    /// To [`Query::Access`]: the permissions granted, and the attributes they were decided by.
    Access {
        /// The part of the mask that is granted.
        granted: u32,
        /// The object.
        attr: Attr,
    },
    /// To [`Query::Readlink`].
    Target(Bytes),
    /// To [`Query::Read`] and [`Query::Fetch`].
    Data {
        /// The bytes.
        data: Payload,
        /// The file, as it was when they were read.
        attr: Attr,
    },
    /// To [`Query::Recheck`]: one for each item, in their order.
    Rechecked(Vec<Checked>),
    /// To [`Query::Readdir`].
    Listing {
        /// Entries in the order of their cookies, without `.` and `..`.
        entries: Vec<DirEntry>,
        /// Whether these are the last.
        end: bool,
        /// The directory.
        dir: Attr,
    },
    /// To [`Query::Statfs`].
    Space(VolumeSpace),
    /// To [`Query::Getxattr`].
    Xattr(Payload),
    /// To [`Query::Listxattr`].
    XattrNames(Vec<Bytes>),
    /// To [`Query::Seek`].
    Offset(u64),
}

/// What became of an object that a client knew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Checked {
    /// It is as it was.
    Same,
    /// It has changed.
    Changed(Attr),
    /// It is gone.
    Gone,
}

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirEntry {
    /// Its place in the directory; higher than that of every entry before it.
    pub cookie: u64,
    /// The name.
    pub name: Name,
    /// The object.
    pub fid: Fid,
    /// What it is.
    pub kind: FileType,
    /// Its attributes, if they were asked for.
    pub attr: Option<Attr>,
}

/// A request that changes something, and runs once under its [`OpId`](crate::ids::OpId).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Makes a regular file, or opens the one that is there.
    Create {
        /// The directory.
        dir: Fid,
        /// The name.
        name: Name,
        /// Permission bits, before the umask.
        mode: u32,
        /// The caller's umask.
        umask: u32,
        /// What to do when the name is taken.
        how: CreateHow,
    },
    /// Makes a directory.
    Mkdir {
        /// The directory above.
        dir: Fid,
        /// The name.
        name: Name,
        /// Permission bits, before the umask.
        mode: u32,
        /// The caller's umask.
        umask: u32,
    },
    /// Makes a fifo, socket, device or empty regular file.
    Mknod {
        /// The directory.
        dir: Fid,
        /// The name.
        name: Name,
        /// What to make; not a directory or symbolic link.
        kind: FileType,
        /// Permission bits, before the umask.
        mode: u32,
        /// The caller's umask.
        umask: u32,
        /// Device number for devices, 0 for others.
        rdev: u32,
    },
    /// Makes a symbolic link.
    Symlink {
        /// The directory.
        dir: Fid,
        /// The name.
        name: Name,
        /// Where it points: 1 to [`MAX_SYMLINK`](crate::limits::MAX_SYMLINK) bytes without NUL.
        target: Bytes,
    },
    /// Makes a mount point. Only the superuser may.
    Graft {
        /// The directory.
        dir: Fid,
        /// The name.
        name: Name,
        /// The volume whose root directory is to appear there.
        volume: VolumeId,
    },
    /// Removes a mount point, whatever becomes of the volume. Only the superuser may.
    Ungraft {
        /// The directory.
        dir: Fid,
        /// The name.
        name: Name,
    },
    /// Gives an object another name.
    Link {
        /// The object; not a directory.
        fid: Fid,
        /// The directory of the new name.
        dir: Fid,
        /// The new name.
        name: Name,
    },
    /// Removes a name that is not a directory's.
    Remove {
        /// The directory.
        dir: Fid,
        /// The name.
        name: Name,
        /// Whether the object, if this was its last name, stays for this client until it says [`Op::Forget`].
        keep: bool,
    },
    /// Removes an empty directory.
    Rmdir {
        /// The directory above.
        dir: Fid,
        /// The name.
        name: Name,
    },
    /// Moves a name (rename(2), renameat2(2)).
    Rename {
        /// The directory it is in.
        from_dir: Fid,
        /// The name it has.
        from_name: Name,
        /// The directory it goes to.
        to_dir: Fid,
        /// The name it gets.
        to_name: Name,
        /// What to do when that name is taken.
        how: RenameHow,
        /// Whether an object replaced stays for this client until it says [`Op::Forget`].
        keep: bool,
    },
    /// Sets attributes.
    Setattr {
        /// The object.
        fid: Fid,
        /// What to set.
        set: SetAttr,
        /// Whether a change of size comes through an open file (ftruncate(2)), for which the owner needs no write
        /// permission.
        open: bool,
    },
    /// Sets an extended attribute.
    Setxattr {
        /// The object.
        fid: Fid,
        /// Its full name, with its namespace.
        name: Bytes,
        /// Its value.
        value: Payload,
        /// What to do when it is there or not.
        how: XattrHow,
    },
    /// Removes an extended attribute.
    Removexattr {
        /// The object.
        fid: Fid,
        /// Its full name.
        name: Bytes,
    },
    /// Writes at the end, wherever that is when the server gets to it; durable when answered.
    Append {
        /// The file.
        fid: Fid,
        /// What to write.
        data: Payload,
    },
    /// Reserves, frees or zeroes a part of a file (fallocate(2)).
    Allocate {
        /// The file.
        fid: Fid,
        /// Where it begins.
        offset: u64,
        /// How long it is, not 0.
        len: u64,
        /// What to do.
        how: AllocateHow,
    },
    /// Copies between files of one volume, or within one file without overlap, at the server
    /// (copy_file_range(2)).
    CopyRange {
        /// The source.
        from: Fid,
        /// Where to begin in it.
        from_offset: u64,
        /// The target.
        to: Fid,
        /// Where to begin in it.
        to_offset: u64,
        /// How many bytes; at most [`MAX_COPY`](crate::limits::MAX_COPY) are copied.
        len: u64,
    },
    /// Replaces a file's contents as a whole: any reader, and a crash, see the old ones or the new ones. Durable when
    /// answered.
    Store {
        /// The file.
        fid: Fid,
        /// The new contents.
        contents: NewContents,
        /// Fail with `Conflict` unless the file's data version is this.
        base: Option<u64>,
    },
    /// Lets go of objects that earlier operations kept for this client.
    Forget {
        /// The objects, all in one volume, at most [`MAX_FORGET`](crate::limits::MAX_FORGET).
        fids: Vec<Fid>,
    },
}

impl Op {
    /// The objects that the operation may change, beside what it makes: those it names, and those under the names it
    /// takes away or writes over, as `named` (directory, name) knows them.
    ///
    /// # Errors
    /// Those of `named`.
    pub fn may_change<E>(
        &self,
        named: impl Fn(&Fid, &Name) -> Result<Option<ObjectId>, E>,
    ) -> Result<Vec<ObjectId>, E> {
        let mut objects: Vec<ObjectId> = Vec::new();
        match self {
            Op::Mkdir { dir, .. } | Op::Mknod { dir, .. } | Op::Symlink { dir, .. } | Op::Graft { dir, .. } => {
                objects.push((*dir).into());
            }
            Op::Link { fid, dir, .. } => objects.extend([ObjectId::from(*fid), (*dir).into()]),
            Op::Create { dir, name, .. }
            | Op::Remove { dir, name, .. }
            | Op::Rmdir { dir, name }
            | Op::Ungraft { dir, name } => {
                objects.push((*dir).into());
                objects.extend(named(dir, name)?);
            }
            Op::Rename { from_dir, from_name, to_dir, to_name, .. } => {
                objects.extend([ObjectId::from(*from_dir), (*to_dir).into()]);
                objects.extend(named(from_dir, from_name)?);
                objects.extend(named(to_dir, to_name)?);
            }
            Op::Setattr { fid, .. }
            | Op::Setxattr { fid, .. }
            | Op::Removexattr { fid, .. }
            | Op::Append { fid, .. }
            | Op::Allocate { fid, .. }
            | Op::Store { fid, .. } => objects.push((*fid).into()),
            Op::CopyRange { to, .. } => objects.push((*to).into()),
            Op::Forget { fids } => objects.extend(fids.iter().map(|fid| ObjectId::from(*fid))),
        }
        Ok(objects)
    }
}

/// The contents that an [`Op::Store`] installs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NewContents {
    /// These bytes, at most [`MAX_PAYLOAD`](crate::limits::MAX_PAYLOAD).
    Whole(Payload),
    /// What was staged under this number, cut or extended with a hole to `size`. `NotStaged` if the server has lost it.
    Staged {
        /// The number.
        stage: u64,
        /// Bytes.
        size: u64,
    },
}

/// A piece of a file's next contents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageRequest {
    /// The file.
    pub fid: Fid,
    /// Names the contents among those that the client stages; the client counts them up.
    pub stage: u64,
    /// Whether this is the first piece; any other fails with `NotStaged` if the server knows nothing of the stage.
    pub first: bool,
    /// Where in the contents the piece lies. What no piece covers is a hole.
    pub offset: u64,
    /// The piece, at most [`MAX_PAYLOAD`](crate::limits::MAX_PAYLOAD) bytes.
    pub data: Payload,
}

/// What [`Op::Create`] does when the name is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CreateHow {
    /// Fail with `Exists` (`O_EXCL`).
    Exclusive,
    /// Take the file that is there, if the caller has the permissions in `access`.
    Open {
        /// `MAY_READ` and `MAY_WRITE` as the open needs them.
        access: u32,
        /// Whether to truncate it.
        truncate: bool,
    },
}

/// What [`Op::Rename`] does when the target's name is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RenameHow {
    /// Replace it.
    Replace,
    /// Fail with `Exists` (`RENAME_NOREPLACE`).
    NoReplace,
    /// Swap the two; fail with `NotFound` if it is not taken (`RENAME_EXCHANGE`).
    Exchange,
}

/// What [`Op::Setxattr`] expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum XattrHow {
    /// Set it either way.
    Set,
    /// It must not be there (`XATTR_CREATE`).
    Create,
    /// It must be there (`XATTR_REPLACE`).
    Replace,
}

/// What [`Op::Allocate`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AllocateHow {
    /// Reserve space, extending the file.
    Reserve,
    /// Reserve space without changing the size.
    ReserveKeepSize,
    /// Make a hole.
    Punch,
    /// Zero, extending the file.
    Zero,
    /// Zero without changing the size.
    ZeroKeepSize,
}

/// The result of a mutation, with its place in the volume's history.
///
/// `sequence` counts the volume's mutations; all up to `durable` survive a power cut. Under `--durability power` a
/// mutation is answered once it is durable itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mutated {
    /// This mutation's place.
    pub sequence: u64,
    /// The last durable one's.
    pub durable: u64,
    /// What it did.
    pub reply: OpReply,
    /// Callbacks of the client on the objects that the reply shows. The mutation itself broke none of them.
    pub grants: Grants,
}

/// What an [`Op`] did, of the variant that belongs to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "made once for each mutation, and moved a few times")]
pub enum OpReply {
    /// To [`Op::Create`], [`Op::Mkdir`], [`Op::Mknod`], [`Op::Symlink`], [`Op::Graft`], [`Op::Link`].
    Entry {
        /// The object under the name.
        attr: Attr,
        /// The directory.
        dir: AttrChange,
        /// Whether this operation made the object (always, but for an unexclusive create and a link).
        created: bool,
    },
    /// To [`Op::Remove`], [`Op::Rmdir`] and [`Op::Ungraft`].
    Removed {
        /// The directory.
        dir: AttrChange,
        /// The object whose name went, after that; its `nlink` is 0 if the name was its last.
        object: Attr,
    },
    /// To [`Op::Rename`].
    Renamed {
        /// The directory that lost the name.
        from_dir: AttrChange,
        /// The directory that got it (the same change again, if it is the same directory).
        to_dir: AttrChange,
        /// The object moved.
        object: Attr,
        /// The object replaced, or exchanged with, after that.
        other: Option<Attr>,
    },
    /// To [`Op::Setattr`], [`Op::Setxattr`], [`Op::Removexattr`], [`Op::Allocate`], [`Op::Store`].
    Attr(AttrChange),
    /// To [`Op::Append`].
    Appended {
        /// Where the data went.
        offset: u64,
        /// The file.
        attr: AttrChange,
    },
    /// To [`Op::CopyRange`].
    Copied {
        /// How many bytes; 0 at the source's end.
        len: u64,
        /// The target.
        attr: AttrChange,
    },
    /// To [`Op::Forget`].
    Forgotten,
}

/// A write in place, of one range or of several: what a program has scattered over a file goes in one request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteRequest {
    /// The file.
    pub fid: Fid,
    /// What goes where, in this order: at least one, at most [`MAX_WRITE_PARTS`](crate::limits::MAX_WRITE_PARTS), and not
    /// more than [`MAX_PAYLOAD`](crate::limits::MAX_PAYLOAD) bytes in all. Nobody reads some of them and not the others;
    /// a crash may leave some, as with any write.
    pub parts: Vec<WritePart>,
    /// Whether it must be durable before it is answered (`FILE_SYNC` of RFC 1813 section 3.3.7).
    pub stable: bool,
}

/// One range of a write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WritePart {
    /// Where to write.
    pub offset: u64,
    /// What.
    pub data: Payload,
}

impl WriteRequest {
    /// A write of one range.
    pub fn one(fid: Fid, offset: u64, data: impl Into<Payload>, stable: bool) -> WriteRequest {
        WriteRequest { fid, parts: vec![WritePart { offset, data: data.into() }], stable }
    }

    /// Bytes in all.
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.data.len()).sum()
    }
}

/// The answer to a write. All of it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// Whether it is durable already; a server may do more than it was asked.
    pub stable: bool,
    /// To compare with that of the `commit`.
    pub verifier: Verifier,
    /// The file.
    pub attr: AttrChange,
}

/// The answer to a commit: every write of the file that was answered with this verifier is durable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Committed {
    /// To compare with those of the writes.
    pub verifier: Verifier,
    /// The file.
    pub attr: Attr,
}

impl Query {
    /// The object whose volume the request goes to; `None` for a `recheck` of nothing.
    pub fn fid(&self) -> Option<Fid> {
        Some(match self {
            Query::Lookup { dir, .. } | Query::Parent { dir } | Query::Readdir { dir, .. } => *dir,
            Query::Getattr { fid }
            | Query::Access { fid, .. }
            | Query::Readlink { fid }
            | Query::Read { fid, .. }
            | Query::Fetch { fid, .. }
            | Query::Statfs { fid }
            | Query::Getxattr { fid, .. }
            | Query::Listxattr { fid }
            | Query::Seek { fid, .. } => *fid,
            Query::Recheck { items } => items.first()?.0,
        })
    }
}

impl Op {
    /// The object whose volume the operation goes to; `None` for a `forget` of nothing.
    pub fn fid(&self) -> Option<Fid> {
        Some(match self {
            Op::Create { dir, .. }
            | Op::Mkdir { dir, .. }
            | Op::Mknod { dir, .. }
            | Op::Symlink { dir, .. }
            | Op::Graft { dir, .. }
            | Op::Ungraft { dir, .. }
            | Op::Link { dir, .. }
            | Op::Remove { dir, .. }
            | Op::Rmdir { dir, .. }
            | Op::Rename { from_dir: dir, .. } => *dir,
            Op::Setattr { fid, .. }
            | Op::Setxattr { fid, .. }
            | Op::Removexattr { fid, .. }
            | Op::Append { fid, .. }
            | Op::Allocate { fid, .. }
            | Op::Store { fid, .. }
            | Op::CopyRange { to: fid, .. } => *fid,
            Op::Forget { fids } => *fids.first()?,
        })
    }
}
