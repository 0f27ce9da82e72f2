//! File systems of a test's own.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::process::run;

/// How long a file system may stay in use before unmounting it fails.
const BUSY_FOR: Duration = Duration::from_secs(30);

/// A file system mounted at a directory, until it is dropped.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
    is_mounted: bool,
}

impl Disk {
    /// An ext4 file system of this many MiB in a file, at `DIR/NAME`.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn ext4(dir: &Path, name: &str, mib: u64) -> Result<Disk> {
        let image = dir.join(format!("{name}.img"));
        Disk::format(&image, mib, Command::new("mkfs.ext4").args(["-q", "-m", "0"]))?;
        Disk::of_image(&image, &dir.join(name))
    }

    /// An XFS file system that can share blocks between files, at `DIR/NAME`. It cannot be smaller than 300 MiB.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn xfs(dir: &Path, name: &str, mib: u64) -> Result<Disk> {
        let image = dir.join(format!("{name}.img"));
        Disk::format(&image, mib, Command::new("mkfs.xfs").args(["-q", "-m", "reflink=1"]))?;
        Disk::of_image(&image, &dir.join(name))
    }

    /// Memory that serves as a disk of a few MiB, at `DIR/disk`.
    ///
    /// # Errors
    /// If it cannot be mounted.
    pub fn memory(dir: &Path, mib: u32) -> Result<Disk> {
        let path = dir.join("disk");
        fs::create_dir(&path)?;
        let size = format!("size={mib}m");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "larder-test"]).arg(&path))?;
        Ok(Disk { path, is_mounted: true })
    }

    /// Puts a file system into a file.
    pub(crate) fn format(image: &Path, mib: u64, mkfs: &mut Command) -> Result<()> {
        File::create(image)?.set_len(mib << 20).with_context(|| format!("making {}", image.display()))?;
        run(mkfs.arg(image))?;
        Ok(())
    }

    /// Mounts what is in a file. The kernel lets go of the loop device with the mount.
    pub(crate) fn of_image(image: &Path, path: &Path) -> Result<Disk> {
        fs::create_dir_all(path)?;
        run(Command::new("mount").args(["-o", "loop"]).arg(image).arg(path))?;
        Ok(Disk { path: path.to_owned(), is_mounted: true })
    }

    /// Mounts it again with other options, such as `ro`.
    ///
    /// # Errors
    /// If that is refused.
    pub fn remount(&self, how: &str) -> Result<()> {
        run(Command::new("mount").args(["-o", &format!("remount,{how}")]).arg(&self.path))?;
        Ok(())
    }

    /// Unmounts it, with what that says. Waits a while for whoever uses it: the kernel reads and writes a cached file in its
    /// place for a program that has it open, until that has ended, even when the client and its mount are gone.
    ///
    /// # Errors
    /// If it is in use still. It is then detached: nobody finds it any more, and whoever has it open keeps it.
    pub fn unmount(mut self) -> Result<()> {
        let began = Instant::now();
        loop {
            match unmount(&self.path, UnmountFlags::empty()) {
                Err(Errno::BUSY) if began.elapsed() < BUSY_FOR => thread::sleep(Duration::from_millis(20)),
                done => {
                    done.with_context(|| format!("unmounting {}", self.path.display()))?;
                    self.is_mounted = false;
                    return Ok(());
                }
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if !self.is_mounted {
            return;
        }
        if let Err(error) = unmount(&self.path, UnmountFlags::empty()) {
            eprintln!("unmounting {}: {error}", self.path.display());
            let _ = unmount(&self.path, UnmountFlags::DETACH);
        }
    }
}
