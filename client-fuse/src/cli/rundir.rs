//! The directory where the processes behind mounts keep their control sockets and logs.
//!
//! `/run/larder` for root; `$XDG_RUNTIME_DIR/larder` or `/tmp/larder-UID` for others. Sockets are named by the mount's
//! device number (`MAJOR:MINOR.sock`), which can be had without touching the mount. A log is named by its mount point
//! and locked (flock(2)) by the process that writes it, so that those left behind by dead ones can be told.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FlockOperation;

use super::mounts::{Mount, escape};

/// A log that nobody writes any more is removed once it is this old.
const LOG_KEPT: Duration = Duration::from_secs(24 * 3600);

/// Makes sure that this user's runtime directory is there and nobody else can write to it.
///
/// # Errors
/// What making it says; `PermissionDenied` if it is not the user's own or open to others.
pub(super) fn prepare() -> io::Result<PathBuf> {
    let path = own();
    match DirBuilder::new().mode(0o700).create(&path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    check(&path, rustix::process::geteuid().as_raw())?;
    Ok(path)
}

fn own() -> PathBuf {
    let uid = rustix::process::geteuid().as_raw();
    match std::env::var_os("XDG_RUNTIME_DIR") {
        _ if uid == 0 => PathBuf::from("/run/larder"),
        Some(base) if Path::new(&base).is_absolute() => Path::new(&base).join("larder"),
        _ => temporary(uid),
    }
}

fn temporary(uid: u32) -> PathBuf {
    PathBuf::from(format!("/tmp/larder-{uid}"))
}

fn check(path: &Path, uid: u32) -> io::Result<()> {
    let found = path.symlink_metadata()?;
    if !found.is_dir() || found.uid() != uid || found.mode() & 0o077 != 0 {
        let text =
            format!("{} must be a directory of user {uid} with mode 0700; remove it or set it right", path.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    Ok(())
}

/// The control socket of a mount that this user has just made.
pub(super) fn socket_in(dir: &Path, mount: &Mount) -> PathBuf {
    dir.join(format!("{}.sock", mount.device()))
}

/// The control socket of any mount, wherever the user who made it keeps it; `None` if there is none.
pub(super) fn socket_of(mount: &Mount) -> Option<PathBuf> {
    let uid = mount.user_id.unwrap_or(0);
    let mut dirs = Vec::new();
    if uid == rustix::process::geteuid().as_raw() {
        dirs.push(own());
    }
    dirs.extend(match uid {
        0 => vec![PathBuf::from("/run/larder")],
        _ => vec![PathBuf::from(format!("/run/user/{uid}/larder")), temporary(uid)],
    });
    dirs.into_iter()
        // Anyone can make a directory in /tmp: one that is not that user's has nothing to say about the mount.
        .filter(|dir| check(dir, uid).is_ok())
        .map(|dir| socket_in(&dir, mount))
        // A directory that may not be searched hides whether the socket is there: connecting will tell.
        .find(|socket| !matches!(socket.symlink_metadata(), Err(error) if error.kind() == io::ErrorKind::NotFound))
}

/// Where the process behind the mount at `mountpoint` logs to.
pub(super) fn log_path(dir: &Path, mountpoint: &Path) -> PathBuf {
    dir.join(format!("{}.log", escape(mountpoint)))
}

/// Opens the log for a new mount, empty unless another process is still writing it.
///
/// The lock belongs to the open file: it lasts as long as any process has it open.
///
/// # Errors
/// What opening it says.
pub(super) fn open_log(path: &Path) -> io::Result<File> {
    let log = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    // Without the lock, a process that is about to end still writes here: append to what it says.
    if rustix::fs::flock(&log, FlockOperation::NonBlockingLockExclusive).is_ok() {
        log.set_len(0)?;
    }
    Ok(log)
}

/// Removes sockets that nobody listens on, and old logs that nobody writes. What cannot be removed is left.
pub(super) fn sweep(dir: &Path) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let dead = match path.extension().and_then(|extension| extension.to_str()) {
            Some("sock") => {
                matches!(UnixStream::connect(&path), Err(error) if error.kind() == io::ErrorKind::ConnectionRefused)
            }
            Some("log") => is_abandoned(&path),
            _ => false,
        };
        if dead && let Err(error) = std::fs::remove_file(&path) {
            tracing::debug!("{} is left over and cannot be removed: {error}", path.display());
        }
    }
}

fn is_abandoned(log: &Path) -> bool {
    let Ok(file) = File::open(log) else { return false };
    let old = file
        .metadata()
        .and_then(|found| found.modified())
        .is_ok_and(|written| written.elapsed().is_ok_and(|age| age > LOG_KEPT));
    old && rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn a_directory_open_to_others_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let uid = rustix::process::geteuid().as_raw();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        check(dir.path(), uid).unwrap();
        assert!(check(dir.path(), uid + 1).is_err());
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o770)).unwrap();
        assert!(check(dir.path(), uid).is_err());
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/", &link).unwrap();
        assert!(check(&link, uid).is_err());
    }

    #[test]
    fn only_what_the_dead_left_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let _alive = UnixListener::bind(path("0:1.sock")).unwrap();
        drop(UnixListener::bind(path("0:2.sock")).unwrap());
        let writing = open_log(&path("writing.log")).unwrap();
        let left = open_log(&path("left.log")).unwrap();
        let ago = SystemTime::now() - LOG_KEPT * 2;
        writing.set_modified(ago).unwrap();
        left.set_modified(ago).unwrap();
        drop(left);
        drop(open_log(&path("young.log")).unwrap());
        sweep(dir.path());
        let mut names: Vec<_> =
            std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["0:1.sock", "writing.log", "young.log"]);
    }
}
