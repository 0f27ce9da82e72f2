//! Attributes, their changes, credentials.

use serde::{Deserialize, Serialize};

use crate::ids::Fid;

/// A point in time: seconds since 1970 (negative before it) and nanoseconds after that second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Timestamp {
    /// Whole seconds, rounded towards the past.
    pub secs: i64,
    /// 0 to 999,999,999.
    pub nanos: u32,
}

/// What a vnode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum FileType {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A Unix domain socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A mount point: the root directory of another volume appears in its place. [`Attr::rdev`] has that volume's number.
    MountPoint,
}

impl FileType {
    /// The file type bits of `st_mode`, as in inode(7).
    pub fn mode_bits(self) -> u32 {
        match self {
            FileType::Regular => 0o100000,
            FileType::Directory => 0o040000,
            FileType::Symlink => 0o120000,
            FileType::Fifo => 0o010000,
            FileType::Socket => 0o140000,
            FileType::CharDevice => 0o020000,
            FileType::BlockDevice => 0o060000,
            // What programs see in its place.
            FileType::MountPoint => FileType::Directory.mode_bits(),
        }
    }

    /// The type that the upper bits of `mode` name, if they name one.
    pub fn from_mode(mode: u32) -> Option<FileType> {
        Some(match mode & 0o170000 {
            0o100000 => FileType::Regular,
            0o040000 => FileType::Directory,
            0o120000 => FileType::Symlink,
            0o010000 => FileType::Fifo,
            0o140000 => FileType::Socket,
            0o020000 => FileType::CharDevice,
            0o060000 => FileType::BlockDevice,
            _ => return None,
        })
    }
}

/// Bits of a mode that `chmod` may set: permissions, setuid, setgid, sticky.
pub const MODE_MASK: u32 = 0o7777;
/// The setuid bit.
pub const SETUID: u32 = 0o4000;
/// The setgid bit.
pub const SETGID: u32 = 0o2000;
/// The sticky bit.
pub const STICKY: u32 = 0o1000;

/// An object's attributes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attr {
    /// The object.
    pub fid: Fid,
    /// What it is.
    pub kind: FileType,
    /// Permission, setuid, setgid and sticky bits; no file type bits.
    pub mode: u32,
    /// Hard links; for a directory 2 and one more for each subdirectory.
    pub nlink: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// Units of 512 bytes that the object occupies.
    pub blocks: u64,
    /// Device number, in the encoding of FUSE and of `mknod` (`new_encode_dev`, 32 bits); 0 but for devices and mount points.
    pub rdev: u32,
    /// Last read, as `relatime` keeps it.
    pub atime: Timestamp,
    /// Last change of the data.
    pub mtime: Timestamp,
    /// Last change of the data or the attributes.
    pub ctime: Timestamp,
    /// Creation.
    pub btime: Timestamp,
    /// The change attribute (RFC 7530 section 5.8.1.4): another value after each change of data or attributes, also
    /// across a crash and a move. Compared for equality only. A change of `atime` alone does not count.
    pub change: u64,
    /// The data version of AFS: the value of `change` when contents, size or `mtime` were last set. Two replies that
    /// show the same one are of the same contents.
    pub data_version: u64,
    /// Whether there are extended attributes at all, so that asking for an absent one costs no request.
    pub has_xattr: bool,
}

/// Attributes after a change, with the change attribute from just before it (RFC 1813 section 2.6, weak cache
/// consistency): a client whose cache stood at `before` knows that nobody else came between.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttrChange {
    /// The change attribute before.
    pub before: u64,
    /// The attributes after.
    pub attr: Attr,
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SetTime {
    /// The server's time.
    Now,
    /// This time.
    At(Timestamp),
}

/// Attributes to set; `None` leaves one as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAttr {
    /// Permission, setuid, setgid and sticky bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Truncate or extend to this many bytes.
    pub size: Option<u64>,
    /// Last read.
    pub atime: Option<SetTime>,
    /// Last change of the data.
    pub mtime: Option<SetTime>,
}

/// On whose behalf a request is made.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Credential {
    /// The user (the file system uid of the calling thread).
    pub uid: u32,
    /// The group (the file system gid of the calling thread).
    pub gid: u32,
    /// Supplementary groups, at most [`MAX_GROUPS`](crate::limits::MAX_GROUPS).
    pub groups: Vec<u32>,
}

impl Credential {
    /// The superuser.
    pub fn root() -> Credential {
        Credential { uid: 0, gid: 0, groups: Vec::new() }
    }

    /// Whether the caller is in this group.
    pub fn in_group(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }
}

/// Permission to read, as in access(2) and the lower bits of a mode.
pub const MAY_READ: u32 = 4;
/// Permission to write.
pub const MAY_WRITE: u32 = 2;
/// Permission to execute, or to search a directory.
pub const MAY_EXEC: u32 = 1;

/// How full a volume is; the figures of statfs(2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSpace {
    /// Bytes in all.
    pub total: u64,
    /// Bytes free.
    pub free: u64,
    /// Bytes free to programs that are not root.
    pub available: u64,
    /// Vnodes that there are or can be.
    pub files: u64,
    /// Vnodes that can still be created.
    pub files_free: u64,
}
