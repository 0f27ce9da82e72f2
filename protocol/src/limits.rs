//! Every bound of the protocol in one place. Both sides check them; a frame that breaks one is malformed.

use std::time::Duration;

/// Bytes of a name (`NAME_MAX`).
pub const MAX_NAME: usize = 255;
/// Bytes of a symbolic link's target, without a terminator (`PATH_MAX` − 1).
pub const MAX_SYMLINK: usize = 4095;
/// Bytes of the payload of one read, write or append.
pub const MAX_PAYLOAD: usize = 1 << 20;
/// Ranges of one write.
pub const MAX_WRITE_PARTS: usize = 128;
/// Bytes of a frame's header part: the encoded message without its payload.
pub const MAX_HEADER: usize = 2 << 20;
/// Bytes that a directory listing may ask for in one reply.
pub const MAX_READDIR: u32 = 1 << 20;
/// Bytes of an extended attribute's name (`XATTR_NAME_MAX`).
pub const MAX_XATTR_NAME: usize = 255;
/// Bytes of an extended attribute's value (`XATTR_SIZE_MAX`).
pub const MAX_XATTR_VALUE: usize = 65536;
/// Bytes of all names of one object's extended attributes with a terminator each (`XATTR_LIST_MAX`).
pub const MAX_XATTR_LIST: usize = 65536;
/// Supplementary groups in a credential (`NGROUPS_MAX` is 65,536; more than this many are cut, as in NFS they are
/// past 16).
pub const MAX_GROUPS: usize = 1024;
/// The largest file: offsets are `i64` in the kernel.
pub const MAX_FILE_SIZE: u64 = i64::MAX as u64;
/// Hard links of one file (as ext4's 65,000 for directories, more for files).
pub const MAX_LINKS: u32 = 1 << 20;
/// Replay slots for one client in one volume.
pub const MAX_SLOTS: u32 = 64;
/// Requests in flight that a server takes from one connection before it stops reading.
pub const MAX_IN_FLIGHT: usize = 256;
/// Channels (connections) of one client.
pub const MAX_CHANNELS: u32 = 16;
/// Fids in one `forget`.
pub const MAX_FORGET: usize = 1024;
/// Objects in one `recheck`.
pub const MAX_RECHECK: usize = 1024;
/// Breaks in one message.
pub const MAX_BREAKS: usize = 4096;
/// Callbacks that a server keeps in all; the oldest are broken to make room.
pub const MAX_CALLBACKS: usize = 4_000_000;
/// Breaks that may wait for one client's acknowledgement. A client with more of them has its lease ended.
pub const MAX_OUTSTANDING: usize = 262_144;
/// Contents that one client may have staged in one volume.
pub const MAX_STAGES: usize = 64;
/// How long staged contents are kept after they were last used. On a full disk it is less.
pub const STAGE_KEPT: Duration = Duration::from_secs(300);
/// Copies made for fetches that a volume keeps in all.
pub const MAX_COPIES: usize = 64;
/// Copies of one file among them, unless all of these are in use.
pub const MAX_COPIES_OF_FILE: usize = 8;
/// How long copies made for fetches are kept after they were last used. On a full disk it is less.
pub const COPY_KEPT: Duration = Duration::from_secs(60);
/// How long a `breaks` request waits when nothing is broken. Below [`MAX_DEADLINE`].
pub const BREAKS_WAIT: Duration = Duration::from_secs(540);
/// Bytes that one server-side copy moves at most; the reply says how many it did.
pub const MAX_COPY: u64 = 64 << 20;
/// The longest deadline that a request can carry. A longer one is cut, so that a forged one can do no harm.
pub const MAX_DEADLINE: Duration = Duration::from_secs(600);
/// How long a client may be silent before the server forgets its slots and orphans (which may go sooner where room is
/// scarce: [`ORPHANS_YIELD_AFTER`]).
pub const CLIENT_FORGOTTEN_AFTER: Duration = Duration::from_secs(24 * 3600);
/// How long a server process must not have heard of a client before that client's orphans make room for others on a disk
/// that is nearly full: as with NFS servers that are courteous (RFC 7530, section 9.6.3) somebody has to want it. The time
/// without a server does not count.
pub const ORPHANS_YIELD_AFTER: Duration = Duration::from_secs(15 * 60);
/// Longest name of a volume, in bytes.
pub const MAX_VOLUME_NAME: usize = 64;
/// How long a connection may take from its opening to its `hello`.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Volumes in one answer to who lists them.
pub const MAX_LISTED: usize = 4096;
/// How long a deleted volume can be brought back.
pub const DELETED_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
