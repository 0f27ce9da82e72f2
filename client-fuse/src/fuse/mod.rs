//! The FUSE layer: a volume as a mount of the kernel. The only part of Larder that names fuser's types.
//!
//! Requests are converted, given to [`Vfs`] in one call, and answered from the task that got the result.

mod adapter;
mod convert;
mod init;
mod notify;
mod reply;

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use fuser::{Config, MountOption, Session, SessionACL};
use tokio::runtime::Handle;
use tokio::sync::watch;

use self::adapter::Adapter;
use self::notify::KernelNotifier;
use crate::vfs::Vfs;

/// The device through which FUSE file systems are served.
pub const DEVICE: &str = "/dev/fuse";

/// Threads that take requests from the kernel. Most requests are answered elsewhere, so a few suffice.
const THREADS: usize = 4;

/// What the kernel is told about a mount; the words are those of mount(8).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelOptions {
    /// Nothing may be changed.
    pub ro: bool,
    /// Reading leaves access times alone.
    pub noatime: bool,
    /// setuid and setgid bits have no effect.
    pub nosuid: bool,
    /// Device files have no effect.
    pub nodev: bool,
    /// Programs cannot be run.
    pub noexec: bool,
    /// Every write is synchronous.
    pub sync: bool,
    /// Every change of a directory is synchronous.
    pub dirsync: bool,
}

/// A mounted volume. It stays mounted when this is dropped, for as long as the process lives.
pub struct Mounted {
    ended: watch::Receiver<bool>,
}

impl Mounted {
    /// Waits until the session is over: the kernel has taken the mount down, or the connection was aborted or failed,
    /// in which cases the mount is still on the tree.
    pub async fn ended(&self) {
        let mut ended = self.ended.clone();
        // An error says that the adapter is gone, which is the end too.
        let _ = ended.wait_for(|ended| *ended).await;
    }
}

/// Mounts a volume at a directory. `source` is what `/proc/mounts` will show; `has_mounts_inside` says whether anything
/// is mounted below it by now. Unmounting is the caller's affair.
///
/// # Errors
/// What the kernel says; for users other than root, what fusermount3 says.
pub fn mount(
    vfs: &Arc<Vfs>,
    tokio: &Handle,
    source: &str,
    mountpoint: &Path,
    options: &KernelOptions,
    has_mounts_inside: impl Fn() -> bool + Send + Sync + 'static,
) -> io::Result<Mounted> {
    let (sender, ended) = watch::channel(false);
    let adapter = Adapter::new(Arc::clone(vfs), tokio.clone(), sender);
    let session = Session::new(adapter, mountpoint, &config(source, options, vfs.max_read()))?;
    let device = session.as_fd().try_clone_to_owned()?;
    vfs.set_kernel(Arc::new(KernelNotifier::new(session.notifier(), device, Box::new(has_mounts_inside))))?;
    // Never dropped: fuser 0.18 unmounts the path once more when its handle of the mount goes, even if the mount is
    // gone already (its test of the device takes an error for "mounted"), and would hit what is mounted there by then.
    std::mem::forget(session.spawn()?);
    Ok(Mounted { ended })
}

fn config(source: &str, options: &KernelOptions, max_read: u32) -> Config {
    let root = rustix::process::geteuid().is_root();
    let mut list = vec![
        MountOption::FSName(source.to_owned()),
        // As a kernel option: mounting directly, fuser drops its own `Subtype`. fusermount3 knows the word as well.
        MountOption::CUSTOM("subtype=larder".to_owned()),
        MountOption::CUSTOM(format!("max_read={max_read}")),
        MountOption::DefaultPermissions,
    ];
    let mut choose = |set: bool, on: MountOption, off: Option<MountOption>| {
        list.extend(if set { Some(on) } else { off });
    };
    choose(options.ro, MountOption::RO, None);
    choose(options.noatime, MountOption::NoAtime, None);
    // fuser leaves devices and setuid bits without effect unless told otherwise; others than root have no choice.
    choose(options.nosuid, MountOption::NoSuid, root.then_some(MountOption::Suid));
    choose(options.nodev, MountOption::NoDev, root.then_some(MountOption::Dev));
    choose(options.noexec, MountOption::NoExec, None);
    choose(options.sync, MountOption::Sync, None);
    choose(options.dirsync, MountOption::DirSync, None);
    let mut config = Config::default();
    config.mount_options = list;
    config.acl = SessionACL::All;
    config.n_threads = Some(THREADS);
    // A descriptor for each thread needs the device itself, which a user may only have through fusermount3.
    config.clone_fd = std::fs::OpenOptions::new().read(true).write(true).open(DEVICE).is_ok();
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_reach_the_kernel() {
        let options = KernelOptions { ro: true, nosuid: true, nodev: true, noexec: true, ..KernelOptions::default() };
        let config = config("h:1/root", &options, 65536);
        for option in [
            MountOption::RO,
            MountOption::NoSuid,
            MountOption::NoDev,
            MountOption::NoExec,
            MountOption::DefaultPermissions,
            MountOption::FSName("h:1/root".to_owned()),
            MountOption::CUSTOM("max_read=65536".to_owned()),
        ] {
            assert!(config.mount_options.contains(&option), "{option:?}");
        }
        for option in [MountOption::Suid, MountOption::Dev, MountOption::Sync, MountOption::NoAtime] {
            assert!(!config.mount_options.contains(&option), "{option:?}");
        }
        assert_eq!(config.acl, SessionACL::All);
    }
}
