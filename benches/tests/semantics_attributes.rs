//! What programs may rely on about permissions, times, extended attributes and locks, in each mode.
#![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use larder_benches::mount::Mount;
use larder_benches::on_a_mount_of_each_mode;
use larder_benches::process::run;
use rustix::fs::{
    AtFlags, CWD, FlockOperation, Timespec, Timestamps, XattrFlags, fcntl_lock, flock, getxattr, listxattr,
    removexattr, setxattr, statvfs, utimensat,
};
use rustix::io::Errno;

on_a_mount_of_each_mode![
    times_are_kept_to_the_nanosecond,
    times_before_1970_are_kept,
    writing_moves_mtime_and_ctime,
    modes_and_owners_are_kept,
    other_users_are_bound_by_the_mode,
    supplementary_groups_count,
    in_a_sticky_directory_only_owners_remove,
    writing_by_another_user_drops_setuid_and_setgid,
    a_setgid_directory_passes_its_group_on,
    extended_attributes_are_kept,
    acl_attributes_are_refused,
    fcntl_locks_hold_among_programs,
    flock_locks_hold_among_programs,
    statfs_tells_of_space_and_names,
];

/// A user and group that own nothing here.
const NOBODY: u32 = 65534;

/// Whether a shell command of user and group `id` succeeds in `dir`.
fn may(id: u32, dir: &Path, script: &str) -> bool {
    let mut command = Command::new("sh");
    command.args(["-c", script]).current_dir("/").env("D", dir).uid(id).gid(id);
    command.output().unwrap().status.success()
}

/// Lets every user pass the directories above the mount, which the test made for itself alone.
fn open_the_way(mount: &Mount) {
    fs::set_permissions(mount.path().parent().unwrap(), Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(mount.path(), Permissions::from_mode(0o755)).unwrap();
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

fn set_times(path: &Path, atime: (i64, i64), mtime: (i64, i64)) {
    let time = |(tv_sec, tv_nsec)| Timespec { tv_sec, tv_nsec };
    let times = Timestamps { last_access: time(atime), last_modification: time(mtime) };
    utimensat(CWD, path, &times, AtFlags::empty()).unwrap();
}

fn times_are_kept_to_the_nanosecond(mount: &Mount) {
    let path = mount.at("file");
    fs::write(&path, "").unwrap();
    set_times(&path, (1_234_567_890, 987_654_321), (4_102_444_800, 1));
    let info = fs::metadata(&path).unwrap();
    assert_eq!((info.atime(), info.atime_nsec()), (1_234_567_890, 987_654_321));
    assert_eq!((info.mtime(), info.mtime_nsec()), (4_102_444_800, 1));
}

fn times_before_1970_are_kept(mount: &Mount) {
    let path = mount.at("file");
    fs::write(&path, "").unwrap();
    // Whole seconds: the FUSE library does not carry fractions before 1970.
    set_times(&path, (-1, 0), (-86_400 * 365, 0));
    let info = fs::metadata(&path).unwrap();
    assert_eq!((info.atime(), info.mtime()), (-1, -86_400 * 365));
}

fn writing_moves_mtime_and_ctime(mount: &Mount) {
    let path = mount.at("file");
    fs::write(&path, "1").unwrap();
    set_times(&path, (1, 0), (1, 0));
    let before = fs::metadata(&path).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    fs::write(&path, "2").unwrap();
    let after = fs::metadata(&path).unwrap();
    assert!(after.mtime() > before.mtime());
    assert!((after.ctime(), after.ctime_nsec()) > (before.ctime(), before.ctime_nsec()));
}

fn modes_and_owners_are_kept(mount: &Mount) {
    let path = mount.at("file");
    fs::write(&path, "").unwrap();
    chown(&path, Some(12_345), Some(4_000_000_000)).unwrap();
    for bits in [0, 0o400, 0o7777, 0o4755, 0o2711, 0o1644] {
        set_mode(&path, bits);
        assert_eq!(mode(&path), bits);
    }
    let info = fs::metadata(&path).unwrap();
    assert_eq!((info.uid(), info.gid()), (12_345, 4_000_000_000));
}

fn other_users_are_bound_by_the_mode(mount: &Mount) {
    open_the_way(mount);
    let dir = mount.at("private");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("file"), "secret").unwrap();
    set_mode(&dir.join("file"), 0o644);
    set_mode(&dir, 0o700);
    assert!(!may(NOBODY, &dir, "cat $D/file"), "no search permission, no reading");
    set_mode(&dir, 0o711);
    assert!(may(NOBODY, &dir, "cat $D/file"));
    assert!(!may(NOBODY, &dir, "ls $D"), "search permission does not list");
    set_mode(&dir, 0o755);
    assert!(may(NOBODY, &dir, "ls $D"));
    assert!(!may(NOBODY, &dir, "echo x >> $D/file"));
    assert!(!may(NOBODY, &dir, "touch $D/new"));
    assert!(!may(NOBODY, &dir, "chmod 777 $D/file"));
    set_mode(&dir.join("file"), 0o600);
    assert!(!may(NOBODY, &dir, "cat $D/file"));
}

fn supplementary_groups_count(mount: &Mount) {
    open_the_way(mount);
    let path = mount.at("shared");
    fs::write(&path, "for the group").unwrap();
    chown(&path, Some(0), Some(4242)).unwrap();
    set_mode(&path, 0o640);
    let read = |groups: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", groups, "cat"]).arg(&path);
        run(&mut command).is_ok()
    };
    assert!(!read("--clear-groups"));
    assert!(read("--groups=1,4242,7"));
}

fn in_a_sticky_directory_only_owners_remove(mount: &Mount) {
    open_the_way(mount);
    let dir = mount.at("tmp");
    fs::create_dir(&dir).unwrap();
    set_mode(&dir, 0o1777);
    assert!(may(1, &dir, "touch $D/one"));
    assert!(!may(NOBODY, &dir, "rm -f $D/one"));
    assert!(!may(NOBODY, &dir, "touch $D/mine && mv -f $D/mine $D/one"), "nor replace");
    assert!(may(1, &dir, "rm $D/one"));
}

fn writing_by_another_user_drops_setuid_and_setgid(mount: &Mount) {
    open_the_way(mount);
    let path = mount.at("tool");
    fs::write(&path, "#!/bin/sh\n").unwrap();
    set_mode(&path, 0o6777);
    assert!(may(NOBODY, mount.path(), "echo >> $D/tool"));
    assert_eq!(mode(&path), 0o777, "after a write");
    set_mode(&path, 0o6777);
    assert!(may(NOBODY, mount.path(), ": > $D/tool"));
    assert_eq!(mode(&path), 0o777, "after a truncation");
    set_mode(&path, 0o6777);
    chown(&path, Some(1), None).unwrap();
    assert_eq!(mode(&path), 0o777, "after a change of owner");
}

fn a_setgid_directory_passes_its_group_on(mount: &Mount) {
    let dir = mount.at("project");
    fs::create_dir(&dir).unwrap();
    chown(&dir, None, Some(4242)).unwrap();
    set_mode(&dir, 0o2775);
    fs::write(dir.join("file"), "").unwrap();
    fs::create_dir(dir.join("sub")).unwrap();
    assert_eq!(fs::metadata(dir.join("file")).unwrap().gid(), 4242);
    let sub = fs::metadata(dir.join("sub")).unwrap();
    assert_eq!((sub.gid(), sub.mode() & 0o2000), (4242, 0o2000));
}

fn extended_attributes_are_kept(mount: &Mount) {
    let path = mount.at("file");
    fs::write(&path, "").unwrap();
    let mut buffer = vec![0; 70_000];
    let large = vec![0xa5; 60_000];
    for (name, value) in [("user.a", &b""[..]), ("user.b", b"\0\xff"), ("trusted.c", b"t"), ("user.large", &large)] {
        setxattr(&path, name, value, XattrFlags::empty()).unwrap();
        let len = getxattr(&path, name, &mut buffer[..]).unwrap();
        assert!(&buffer[..len] == value, "{name}");
    }
    assert_eq!(setxattr(&path, "user.a", b"x", XattrFlags::CREATE), Err(Errno::EXIST));
    assert_eq!(setxattr(&path, "user.none", b"x", XattrFlags::REPLACE), Err(Errno::NODATA));
    assert_eq!(getxattr(&path, "user.none", &mut buffer[..]), Err(Errno::NODATA));
    assert_eq!(getxattr(&path, "user.large", &mut buffer[..10]), Err(Errno::RANGE));
    removexattr(&path, "user.a").unwrap();
    let len = listxattr(&path, &mut buffer[..]).unwrap();
    let mut names: Vec<_> = buffer[..len].split(|b| *b == 0).filter(|name| !name.is_empty()).collect();
    names.sort_unstable();
    assert_eq!(names, [&b"trusted.c"[..], b"user.b", b"user.large"]);
}

fn acl_attributes_are_refused(mount: &Mount) {
    let path = mount.at("file");
    fs::write(&path, "").unwrap();
    // A valid ACL (version 2; user, group and others rwx), so that nothing but the rule refuses it.
    let acl: Vec<u8> = [2, 0, 0, 0]
        .into_iter()
        .chain([0x01, 0x04, 0x20].into_iter().flat_map(|tag| [tag, 0, 7, 0, 0xff, 0xff, 0xff, 0xff]))
        .collect();
    // Only directories have default ACLs; of a file's the kernel itself says EACCES.
    for (path, name) in [(path.as_path(), "system.posix_acl_access"), (mount.path(), "system.posix_acl_default")] {
        assert_eq!(setxattr(path, name, &acl, XattrFlags::empty()), Err(Errno::OPNOTSUPP), "{name}");
    }
}

/// The exit code of the program that tries a lock on `path`: 0 if it was free, 1 if it was taken.
fn probe(kind: &str, path: &Path) -> Option<i32> {
    Command::new(env!("CARGO_BIN_EXE_lock_probe")).arg(kind).arg(path).status().unwrap().code()
}

fn fcntl_locks_hold_among_programs(mount: &Mount) {
    let path = mount.at("file");
    let file = File::create_new(&path).unwrap();
    assert_eq!(probe("fcntl", &path), Some(0));
    fcntl_lock(&file, FlockOperation::LockExclusive).unwrap();
    assert_eq!(probe("fcntl", &path), Some(1));
    fcntl_lock(&file, FlockOperation::Unlock).unwrap();
    assert_eq!(probe("fcntl", &path), Some(0));
    // Closing any descriptor of the file lets go of the locks.
    fcntl_lock(&file, FlockOperation::LockExclusive).unwrap();
    drop(File::open(&path).unwrap());
    assert_eq!(probe("fcntl", &path), Some(0));
}

fn flock_locks_hold_among_programs(mount: &Mount) {
    let path = mount.at("file");
    let file = File::create_new(&path).unwrap();
    flock(&file, FlockOperation::LockShared).unwrap();
    assert_eq!(probe("flock", &path), Some(1));
    drop(file);
    assert_eq!(probe("flock", &path), Some(0));
}

fn statfs_tells_of_space_and_names(mount: &Mount) {
    let info = statvfs(mount.path()).unwrap();
    assert_eq!(info.f_namemax, 255);
    assert!(info.f_blocks > 0 && info.f_bavail <= info.f_bfree && info.f_bfree <= info.f_blocks);
    assert!(info.f_ffree > 0);
}
