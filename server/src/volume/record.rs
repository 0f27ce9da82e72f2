//! The records of a volume's metadata.

use bytes::Bytes;
use larder_protocol::attr::{Attr, FileType, Timestamp};
use larder_protocol::ids::{Fid, OpId, VolumeId};
use larder_protocol::name::Name;
use serde::{Deserialize, Serialize};

/// Contents up to this many bytes live in the metadata; larger ones in a content file.
pub const INLINE_MAX: u64 = 16 << 10;

/// Bytes of a content file that one checksum covers; the last block counts as filled up with zeros.
pub const BLOCK: u64 = 64 << 10;

/// Blocks whose checksums share one row of `Checksums`.
pub const GROUP: u64 = 256;

/// The version of the store's format that this build writes and the only one that it reads.
pub const FORMAT: u32 = 1;

/// Identity and counters of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderRecord {
    /// [`FORMAT`].
    pub format: u32,
    /// The volume's id.
    pub id: VolumeId,
    /// The volume's name.
    pub name: String,
    /// Raised durably at each open; see [`next_incarnation`](super::context::next_incarnation).
    pub incarnation: u64,
    /// The next vnode number to give out.
    pub next_vnode: u64,
    /// Vnodes there are, with orphans.
    pub vnodes: u64,
    /// Units of 512 bytes that all vnodes occupy: the sum of their `blocks`.
    pub blocks: u64,
    /// Mutations committed so far.
    pub sequence: u64,
    /// When the volume was made.
    pub created: Timestamp,
}

/// One vnode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VnodeRecord {
    /// The volume's incarnation when it was made; the `generation` of its fid.
    pub generation: u64,
    /// Permission, setuid, setgid and sticky bits.
    pub mode: u32,
    /// Hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// Units of 512 bytes occupied.
    pub blocks: u64,
    /// Last read.
    pub atime: Timestamp,
    /// Last change of the data.
    pub mtime: Timestamp,
    /// Last change of data or attributes.
    pub ctime: Timestamp,
    /// Creation.
    pub btime: Timestamp,
    /// The change attribute.
    pub change: u64,
    /// The value of `change` when `size`, `blocks` or `mtime` were last set; see [`Unsettled`].
    pub data_change: u64,
    /// How many extended attributes there are.
    pub xattrs: u32,
    /// What it is.
    pub body: Body,
}

/// What a vnode is, and what belongs to that alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// A regular file with its contents in the metadata.
    Inline,
    /// A regular file with its contents in the content file of this version.
    Content {
        /// Names the content file together with the vnode.
        version: u64,
    },
    /// A directory.
    Directory {
        /// The directory above; the root's is itself.
        parent: u64,
        /// Names in it.
        entries: u64,
        /// The next cookie to give out, from 1.
        next_cookie: u64,
    },
    /// A symbolic link.
    Symlink {
        /// Where it points.
        target: Bytes,
    },
    /// A named pipe.
    Fifo,
    /// A Unix domain socket.
    Socket,
    /// A character device.
    CharDevice {
        /// Its number.
        rdev: u32,
    },
    /// A block device.
    BlockDevice {
        /// Its number.
        rdev: u32,
    },
    /// A mount point.
    MountPoint {
        /// The volume whose root directory appears there.
        volume: VolumeId,
    },
}

impl VnodeRecord {
    /// For tests, which say what of it matters to them.
    #[cfg(test)]
    pub(crate) fn empty(body: Body) -> VnodeRecord {
        let time = Timestamp::default();
        VnodeRecord {
            generation: 1,
            mode: 0,
            nlink: 1,
            uid: 0,
            gid: 0,
            size: 0,
            blocks: 0,
            atime: time,
            mtime: time,
            ctime: time,
            btime: time,
            change: 1,
            data_change: 1,
            xattrs: 0,
            body,
        }
    }

    /// What the vnode is.
    pub fn kind(&self) -> FileType {
        match self.body {
            Body::Inline | Body::Content { .. } => FileType::Regular,
            Body::Directory { .. } => FileType::Directory,
            Body::Symlink { .. } => FileType::Symlink,
            Body::Fifo => FileType::Fifo,
            Body::Socket => FileType::Socket,
            Body::CharDevice { .. } => FileType::CharDevice,
            Body::BlockDevice { .. } => FileType::BlockDevice,
            Body::MountPoint { .. } => FileType::MountPoint,
        }
    }

    /// The attributes as clients see them.
    pub fn attr(&self, volume: VolumeId, vnode: u64) -> Attr {
        let rdev = match self.body {
            Body::CharDevice { rdev } | Body::BlockDevice { rdev } => rdev,
            Body::MountPoint { volume } => volume.0,
            _ => 0,
        };
        Attr {
            fid: Fid { volume, vnode, generation: self.generation },
            kind: self.kind(),
            mode: self.mode,
            nlink: self.nlink,
            uid: self.uid,
            gid: self.gid,
            size: self.size,
            blocks: self.blocks,
            rdev,
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
            btime: self.btime,
            change: self.change,
            data_version: self.data_change,
            has_xattr: self.xattrs > 0,
        }
    }
}

/// What unstable writes have made of a file, ahead of its record.
///
/// Each half is laid over the record only if it is newer than it, judged by the change attribute it was set at. So it
/// does not matter in which order a reader gets hold of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsettled {
    /// Bytes.
    pub size: u64,
    /// Units of 512 bytes occupied.
    pub blocks: u64,
    /// Last change of the data.
    pub mtime: Timestamp,
    /// The change attribute when these were set.
    pub data_change: u64,
    /// Last change of data or attributes.
    pub ctime: Timestamp,
    /// The change attribute.
    pub change: u64,
}

impl Unsettled {
    /// Brings a record up to date.
    pub fn lay_over(&self, record: &mut VnodeRecord) {
        if self.data_change > record.data_change {
            record.size = self.size;
            record.blocks = self.blocks;
            record.mtime = self.mtime;
            record.data_change = self.data_change;
        }
        if self.change > record.change {
            record.ctime = self.ctime;
            record.change = self.change;
        }
    }
}

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryRecord {
    /// The object.
    pub vnode: u64,
    /// Its generation.
    pub generation: u64,
    /// What it is.
    pub kind: FileType,
    /// The name's place in the listing.
    pub cookie: u64,
}

/// A place in a directory's listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CookieRecord {
    /// The name.
    pub name: Name,
    /// The object.
    pub vnode: u64,
    /// Its generation.
    pub generation: u64,
    /// What it is.
    pub kind: FileType,
}

/// A client keeps a vnode that has no name any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrphanRecord {
    /// Since when.
    pub since: Timestamp,
}

/// How to read a dirty vnode's content file after a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DirtyRecord {
    /// It was written in place: the file's size counts.
    InPlace,
    /// It was only appended to: the record's size counts, what lies behind it was never acknowledged.
    Appending,
}

/// Work on a content file that belongs to a batch already committed. Done again at recovery, in the order of the
/// numbers; kept until the file is settled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Intent {
    /// Make the content file, empty.
    Begin {
        /// Its version.
        version: u64,
    },
    /// Cut or extend it.
    Truncate {
        /// Its version.
        version: u64,
        /// To this size.
        size: u64,
    },
    /// Make a hole.
    Punch {
        /// Its version.
        version: u64,
        /// Where.
        offset: u64,
        /// How long.
        len: u64,
    },
    /// Reserve space.
    Reserve {
        /// Its version.
        version: u64,
        /// Where.
        offset: u64,
        /// How long.
        len: u64,
        /// Whether the size stays.
        keep_size: bool,
    },
    /// Remove the content file: its vnode is gone, or has other contents.
    Remove {
        /// Its version.
        version: u64,
    },
}

/// The last operation that ran in a replay slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotRecord {
    /// Its id.
    pub id: OpId,
    /// Its result, encoded.
    pub result: Bytes,
}

/// A client that has changed something in this volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientRecord {
    /// Its latest life.
    pub incarnation: u64,
    /// When it was last heard of, to the hour.
    pub last_seen: Timestamp,
}
