//! Between Larder's types and fuser's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{Errno, FileAttr, FopenFlags, INodeNo, OpenFlags, RenameFlags, TimeOrNow, WriteFlags};
use larder_protocol::attr::{Attr, FileType, SetTime, Timestamp};
use larder_protocol::service::file::{RenameHow, SeekWhat};

use crate::vfs::{Error, Opened, WriteOrigin};

/// The block size shown by stat(2) and statfs(2).
pub(super) const BLOCK_SIZE: u32 = 4096;

/// The errno for the kernel; the only place where errors leave.
pub(super) fn errno(error: Error) -> Errno {
    Errno::from_i32(error.errno())
}

/// As fuser encodes it for the kernel. Times that `SystemTime` cannot hold do not exist on Linux, where it is an `i64`
/// of seconds too.
pub(super) fn system_time(time: Timestamp) -> SystemTime {
    let seconds = Duration::from_secs(time.secs.unsigned_abs());
    let whole = if time.secs < 0 { UNIX_EPOCH.checked_sub(seconds) } else { UNIX_EPOCH.checked_add(seconds) };
    whole.and_then(|whole| whole.checked_add(Duration::from_nanos(time.nanos.into()))).unwrap_or(UNIX_EPOCH)
}

/// As the kernel sent it.
///
/// fuser turns the kernel's (seconds, nanoseconds) of a time before 1970 into `UNIX_EPOCH − (−seconds, nanoseconds)`,
/// which has the fraction on the wrong side. No information is lost, so it is undone here.
fn timestamp(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => {
            Timestamp { secs: i64::try_from(after.as_secs()).unwrap_or(i64::MAX), nanos: after.subsec_nanos() }
        }
        Err(before) => {
            let before = before.duration();
            // Seconds of 2^63 before wrap to `i64::MIN`, whose negation is itself.
            Timestamp { secs: (before.as_secs() as i64).wrapping_neg(), nanos: before.subsec_nanos() }
        }
    }
}

/// A time to set.
pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(timestamp(time)),
    }
}

/// The type of an object.
pub(super) fn kind(kind: FileType) -> fuser::FileType {
    match kind {
        FileType::Regular => fuser::FileType::RegularFile,
        FileType::Directory => fuser::FileType::Directory,
        FileType::Symlink => fuser::FileType::Symlink,
        FileType::Fifo => fuser::FileType::NamedPipe,
        FileType::Socket => fuser::FileType::Socket,
        FileType::CharDevice => fuser::FileType::CharDevice,
        FileType::BlockDevice => fuser::FileType::BlockDevice,
        // Shown where what is mounted there is not looked at.
        FileType::MountPoint => fuser::FileType::Directory,
    }
}

/// The attributes of the node with this number.
pub(super) fn file_attr(node: u64, attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(node),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: system_time(attr.btime),
        kind: kind(attr.kind),
        // Permission, setuid, setgid and sticky bits fit into 12.
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

/// Of a number that no node has (see [`MAX_VOLUME`](larder_protocol::ids::MAX_VOLUME)).
const UNUSED: u64 = 1 << 63;

/// What stands in for attributes where the kernel looks at the number and the type alone: for names that do not exist
/// (number 0), and for `.` and `..` in listings.
pub(super) fn placeholder(node: u64, of: FileType) -> FileAttr {
    FileAttr {
        ino: INodeNo(node),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: kind(of),
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

/// What stands in for attributes where a listing shows a name alone.
///
/// Number 0 would say so, but readdir(3) passes over it. So it is a number that no node has, with a size that no file can
/// have: the kernel shows the name, does not take the attributes, and forgets the node (`fuse_invalid_attr` in
/// `fs/fuse/dir.c`, `parse_dirplusfile` in `fs/fuse/readdir.c`).
pub(super) fn name_alone(node: u64, of: FileType) -> FileAttr {
    FileAttr { size: u64::MAX, ..placeholder(UNUSED | node, of) }
}

/// What renameat2(2) asked for.
pub(super) fn rename_how(flags: RenameFlags) -> Result<RenameHow, Errno> {
    if flags.is_empty() {
        Ok(RenameHow::Replace)
    } else if flags == RenameFlags::RENAME_NOREPLACE {
        Ok(RenameHow::NoReplace)
    } else if flags == RenameFlags::RENAME_EXCHANGE {
        Ok(RenameHow::Exchange)
    } else {
        Err(Errno::EINVAL)
    }
}

/// What lseek(2) looks for; the kernel does the other kinds itself.
pub(super) fn seek_what(whence: i32) -> Result<SeekWhat, Errno> {
    match whence {
        libc::SEEK_DATA => Ok(SeekWhat::Data),
        libc::SEEK_HOLE => Ok(SeekWhat::Hole),
        _ => Err(Errno::EINVAL),
    }
}

/// Where a write comes from; `flags` are those that the descriptor has now.
pub(super) fn write_origin(write: WriteFlags, flags: OpenFlags) -> WriteOrigin {
    if write.contains(WriteFlags::FUSE_WRITE_CACHE) {
        WriteOrigin::Page
    } else if flags.0 & libc::O_APPEND == 0 {
        WriteOrigin::Positioned
    } else {
        WriteOrigin::Opened
    }
}

/// How the kernel is to treat an open file.
///
/// `FOPEN_PARALLEL_DIRECT_WRITES` is left out on purpose: without it the kernel keeps the writes of one file apart, as
/// the protocol's rule against overlapping writes in flight needs.
pub(super) fn fopen_flags(opened: &Opened) -> FopenFlags {
    let mut flags = FopenFlags::empty();
    flags.set(FopenFlags::FOPEN_KEEP_CACHE, opened.keep_cache);
    flags.set(FopenFlags::FOPEN_DIRECT_IO, opened.direct_io);
    flags.set(FopenFlags::FOPEN_NOFLUSH, opened.noflush);
    flags
}

#[cfg(test)]
mod tests {
    use larder_protocol::error::ErrorCode;
    use larder_protocol::ids::{Fid, VolumeId};

    use super::*;

    /// What fuser makes of the kernel's words.
    fn decoded_by_fuser(secs: i64, nanos: u32) -> SystemTime {
        if secs >= 0 {
            UNIX_EPOCH + Duration::new(secs as u64, nanos)
        } else {
            UNIX_EPOCH - Duration::new(secs.unsigned_abs(), nanos)
        }
    }

    #[test]
    fn times_arrive_as_the_kernel_sent_them() {
        for (secs, nanos) in [(0, 0), (0, 1), (5, 999_999_999), (-1, 0), (-1, 1), (-2, 800_000_000), (i64::MAX, 0)] {
            assert_eq!(timestamp(decoded_by_fuser(secs, nanos)), Timestamp { secs, nanos });
        }
        assert_eq!(timestamp(decoded_by_fuser(i64::MIN, 0)), Timestamp { secs: i64::MIN, nanos: 0 });
    }

    #[test]
    fn only_writes_of_a_descriptor_that_appends_may_be_appended() {
        let (none, page) = (WriteFlags::empty(), WriteFlags::FUSE_WRITE_CACHE);
        let (appends, plain) = (OpenFlags(libc::O_WRONLY | libc::O_APPEND), OpenFlags(libc::O_WRONLY));
        assert_eq!(write_origin(none, appends), WriteOrigin::Opened);
        assert_eq!(write_origin(none, plain), WriteOrigin::Positioned);
        assert_eq!(write_origin(page, appends), WriteOrigin::Page);
    }

    #[test]
    fn times_leave_as_they_are() {
        assert_eq!(system_time(Timestamp { secs: 3, nanos: 7 }), UNIX_EPOCH + Duration::new(3, 7));
        // 1.2 seconds before 1970 is second −2 and 0.8 after it.
        let before = system_time(Timestamp { secs: -2, nanos: 800_000_000 });
        assert_eq!(before, UNIX_EPOCH - Duration::new(1, 200_000_000));
        system_time(Timestamp { secs: i64::MIN, nanos: 0 });
        system_time(Timestamp { secs: i64::MAX, nanos: 999_999_999 });
    }

    #[test]
    fn rename_flags_exclude_each_other() {
        assert_eq!(rename_how(RenameFlags::empty()), Ok(RenameHow::Replace));
        assert_eq!(rename_how(RenameFlags::RENAME_NOREPLACE), Ok(RenameHow::NoReplace));
        assert_eq!(rename_how(RenameFlags::RENAME_EXCHANGE), Ok(RenameHow::Exchange));
        let both = RenameFlags::RENAME_NOREPLACE | RenameFlags::RENAME_EXCHANGE;
        for bad in [both, RenameFlags::RENAME_WHITEOUT, RenameFlags::from_bits_retain(1 << 20)] {
            assert_eq!(rename_how(bad), Err(Errno::EINVAL), "{bad:?}");
        }
    }

    #[test]
    fn attributes_keep_every_field() {
        let time = |secs| Timestamp { secs, nanos: 5 };
        let attr = Attr {
            fid: Fid { volume: VolumeId(1), vnode: 4, generation: 2 },
            kind: FileType::CharDevice,
            mode: 0o4755,
            nlink: 3,
            uid: 10,
            gid: 20,
            size: 1 << 40,
            blocks: 9,
            rdev: 0x103,
            atime: time(1),
            mtime: time(-2),
            ctime: time(3),
            btime: time(4),
            change: 1,
            data_version: 1,
            has_xattr: false,
        };
        let shown = file_attr(77, &attr);
        assert_eq!((shown.ino, shown.kind, shown.perm), (INodeNo(77), fuser::FileType::CharDevice, 0o4755));
        assert_eq!((shown.nlink, shown.uid, shown.gid, shown.rdev), (3, 10, 20, 0x103));
        assert_eq!((shown.size, shown.blocks), (1 << 40, 9));
        assert_eq!(shown.atime, system_time(time(1)));
        assert_eq!(shown.mtime, system_time(time(-2)));
        assert_eq!(shown.ctime, system_time(time(3)));
        assert_eq!(shown.crtime, system_time(time(4)));
    }

    #[test]
    fn errors_have_the_errno_of_the_table() {
        assert_eq!(errno(Error::Refused(ErrorCode::Stale)).code(), libc::ESTALE);
        assert_eq!(errno(Error::Refused(ErrorCode::NoXattr)).code(), libc::ENODATA);
        assert_eq!(errno(Error::BadHandle).code(), libc::EBADF);
        assert_eq!(errno(Error::TimedOut { executed: true }).code(), libc::ETIMEDOUT);
    }

    #[test]
    fn opened_says_how_the_kernel_caches() {
        let opened = Opened { handle: 1, keep_cache: true, direct_io: false, noflush: true, backing: None };
        assert_eq!(fopen_flags(&opened), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH);
        let direct = Opened { handle: 1, keep_cache: false, direct_io: true, noflush: false, backing: None };
        assert_eq!(fopen_flags(&direct), FopenFlags::FOPEN_DIRECT_IO);
        assert!(seek_what(libc::SEEK_SET).is_err());
    }
}
