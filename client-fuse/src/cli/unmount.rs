//! Taking a mount off the tree, as root or through fusermount3.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::mounts::Mount;

/// Where the kernel lists FUSE connections.
const CONNECTIONS: &str = "/sys/fs/fuse/connections";

/// Unmounts. May wait for the server, if mapped pages are still to be written.
///
/// # Errors
/// `ResourceBusy` if it is in use; what umount2(2) or fusermount3 says.
pub(super) fn plain(mountpoint: &Path) -> io::Result<()> {
    match rustix::mount::unmount(mountpoint, UnmountFlags::NOFOLLOW) {
        Err(Errno::PERM) => fusermount(mountpoint, &["-u"]),
        result => Ok(result?),
    }
}

/// Takes the mount off the tree at once; it ends when nobody uses it any more.
///
/// # Errors
/// What umount2(2) or fusermount3 says.
pub(super) fn lazily(mountpoint: &Path) -> io::Result<()> {
    match rustix::mount::unmount(mountpoint, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH) {
        Err(Errno::PERM) => fusermount(mountpoint, &["-u", "-z"]),
        result => Ok(result?),
    }
}

/// Takes the mount off the tree at once; every request that waits fails, and so does every later one.
///
/// # Errors
/// What umount2(2) or fusermount3 says.
pub(super) fn forcibly(mountpoint: &Path) -> io::Result<()> {
    let flags = UnmountFlags::NOFOLLOW | UnmountFlags::DETACH | UnmountFlags::FORCE;
    match rustix::mount::unmount(mountpoint, flags) {
        Err(Errno::PERM) => fusermount(mountpoint, &["-u", "-z"]),
        result => Ok(result?),
    }
}

fn fusermount(mountpoint: &Path, flags: &[&str]) -> io::Result<()> {
    let output = Command::new("fusermount3").args(flags).arg("--").arg(mountpoint).stdin(Stdio::null()).output();
    let output = output.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => io::Error::new(
            io::ErrorKind::NotFound,
            "users other than root unmount through fusermount3, which is not installed; install the package fuse3",
        ),
        _ => error,
    })?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    // It has one exit status for everything.
    let kind = if text.contains("busy") { io::ErrorKind::ResourceBusy } else { io::ErrorKind::Other };
    Err(io::Error::new(kind, text))
}

/// Ends the kernel's connection to the process behind a mount: every request that waits fails. Touches no path inside
/// the mount. What users other than root need for it may be missing; the other ways still work then.
///
/// # Errors
/// What writing to the connection's `abort` file says.
pub(super) fn abort_connection(mount: &Mount) -> io::Result<()> {
    let abort = Path::new(CONNECTIONS).join(mount.minor.to_string()).join("abort");
    match std::fs::write(&abort, "1") {
        Err(error) if error.kind() == io::ErrorKind::NotFound && rustix::process::geteuid().is_root() => {
            // The control file system is not mounted everywhere. It stays mounted, as systemd leaves it.
            rustix::mount::mount(
                "fusectl",
                CONNECTIONS,
                "fusectl",
                rustix::mount::MountFlags::NOSUID
                    | rustix::mount::MountFlags::NODEV
                    | rustix::mount::MountFlags::NOEXEC,
                None,
            )?;
            std::fs::write(&abort, "1")
        }
        result => result,
    }
}
