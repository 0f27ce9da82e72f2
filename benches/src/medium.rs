//! A disk whose power can be cut, and that can fail.
//!
//! What a disk holds after a power cut is what had reached it: not what the file system above still had in memory. An ext4
//! file system in a file has just that in its file, and on a file system that shares blocks between files the file can be
//! copied at one instant while all goes on. The copy is then mounted in place of the original.
//!
//! A write to a block that is shared needs a new one. So once all of the image is shared with a copy, and the file system
//! below has no room any more, writes to the image fail.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::disk::Disk;
use crate::process::run;

/// How much larger the file system is that holds the images: with room for an original and copies that share nothing any
/// more.
const HOST: u64 = 8;

/// MiB of the smallest XFS that mkfs.xfs makes with a journal of the usual size.
const MIN_HOST_MIB: u64 = 1024;

/// A disk on which a power cut can be had.
#[derive(Debug)]
pub struct Medium {
    /// Before the host, on which its image is. `None` once either could not be unmounted or mounted.
    disk: Option<Disk>,
    host: Option<Disk>,
    path: PathBuf,
    host_path: PathBuf,
    host_image: PathBuf,
    image: PathBuf,
    cuts: u32,
    failure: Option<Failure>,
}

/// What a disk held at one instant.
#[derive(Debug)]
#[must_use = "it is of use only when it takes the original's place"]
pub struct Instant {
    image: PathBuf,
}

/// How a disk fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Writes are refused with ENOSPC, as by thin provisioning without room; what was written can be read.
    NoWrites,
    /// Everything is refused with EIO.
    Gone,
}

impl Medium {
    /// A disk of this many MiB, at `DIR/NAME`.
    ///
    /// # Errors
    /// If it cannot be made: this needs root, loop devices, and ext4 and XFS in the kernel.
    pub fn new(dir: &Path, name: &str, mib: u64) -> Result<Medium> {
        let (host_name, path) = (format!("{name}.host"), dir.join(name));
        let host = Disk::xfs(dir, &host_name, (mib * HOST).max(MIN_HOST_MIB))?;
        let image = host.path().join("0.img");
        Disk::format(&image, mib, Command::new("mkfs.ext4").args(["-q", "-m", "0"]))?;
        let disk = Disk::of_image(&image, &path)?;
        let (host_path, host_image) = (host.path().to_owned(), dir.join(format!("{host_name}.img")));
        Ok(Medium { disk: Some(disk), host: Some(host), path, host_path, host_image, image, cuts: 0, failure: None })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it holds now, if its power were cut. What goes on meanwhile may be in it or not.
    ///
    /// # Errors
    /// If it cannot be copied.
    pub fn instant(&mut self) -> Result<Instant> {
        self.cuts += 1;
        let image = self.host_path.join(format!("{}.img", self.cuts));
        run(Command::new("cp").arg("--reflink=always").arg(&self.image).arg(&image))?;
        Ok(Instant { image })
    }

    /// Goes back to an instant, as a machine does that comes up after a power cut. Nobody may use the disk.
    ///
    /// # Errors
    /// If what there was is in use, or what there is cannot be mounted.
    pub fn go_back(&mut self, to: Instant) -> Result<()> {
        self.unmount()?;
        fs::remove_file(&self.image)?;
        self.image = to.image;
        self.disk = Some(Disk::of_image(&self.image, &self.path)?);
        Ok(())
    }

    /// Fails, until it is [mended](Medium::mend).
    ///
    /// # Errors
    /// If it cannot be made to fail.
    pub fn fail(&mut self, how: Failure) -> Result<()> {
        match how {
            Failure::NoWrites => {
                // Frozen meanwhile: the loop device takes a write for whole of which only the first blocks found room, and
                // such as lie are not the disks that are meant here.
                run(Command::new("fsfreeze").arg("-f").arg(&self.path))?;
                let ready = self.take_room();
                run(Command::new("fsfreeze").arg("-u").arg(&self.path))?;
                ready?;
            }
            // What the image's file system had not synced below is lost with it.
            Failure::Gone => {
                run(Command::new("xfs_io").args(["-x", "-c", "shutdown -f"]).arg(&self.host_path))?;
            }
        }
        self.failure = Some(how);
        Ok(())
    }

    /// Is replaced by one that works and holds what had reached the failed one, and its file system is repaired. Nobody
    /// may use the disk.
    ///
    /// # Errors
    /// If it is in use, or its file system cannot be repaired or mounted.
    pub fn mend(&mut self) -> Result<()> {
        // Still broken: what is only in memory must not arrive now.
        self.unmount()?;
        match self.failure.take() {
            Some(Failure::NoWrites) => {
                fs::remove_file(self.spare())?;
                fs::remove_file(self.hog())?;
            }
            Some(Failure::Gone) => {
                self.host.take().context("the disk below is not mounted")?.unmount()?;
                self.host = Some(Disk::of_image(&self.host_image, &self.host_path)?);
            }
            None => bail!("{} has not failed", self.path.display()),
        }
        let mut fsck = Command::new("e2fsck");
        let output = fsck.args(["-f", "-y"]).arg(&self.image).output().context("starting e2fsck")?;
        // e2fsck(8): 1 says that errors were corrected.
        if !matches!(output.status.code(), Some(0 | 1)) {
            bail!("{fsck:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stdout));
        }
        self.disk = Some(Disk::of_image(&self.image, &self.path)?);
        Ok(())
    }

    /// From now on there is no block to be had for a write.
    fn take_room(&self) -> Result<()> {
        // Blocks that are held ready for writes would let some of them succeed.
        run(Command::new("xfs_spaceman").args(["-c", "prealloc -s"]).arg(&self.host_path))?;
        run(Command::new("cp").arg("--reflink=always").arg(&self.image).arg(self.spare()))?;
        fill(&self.hog())
    }

    fn unmount(&mut self) -> Result<()> {
        self.disk.take().with_context(|| format!("{} is not mounted", self.path.display()))?.unmount()
    }

    fn spare(&self) -> PathBuf {
        self.host_path.join("spare.img")
    }

    fn hog(&self) -> PathBuf {
        self.host_path.join("hog")
    }
}

/// Makes a file of all the room that its file system has.
///
/// # Errors
/// If that fails for another reason than that there is no more.
pub fn fill(hog: &Path) -> Result<()> {
    let file = File::create(hog)?;
    let (mut at, mut piece) = (0, 1 << 30);
    while piece >= 4096 {
        match rustix::fs::fallocate(&file, FallocateFlags::empty(), at, piece) {
            Ok(()) => at += piece,
            Err(Errno::NOSPC) => piece /= 2,
            Err(error) => return Err(error).with_context(|| format!("filling {}", hog.display())),
        }
    }
    Ok(())
}

/// Removes such a file for good: also a power cut that comes next does not bring it back.
///
/// # Errors
/// If it cannot be removed, or its file system does not sync that.
pub fn release(hog: &Path) -> Result<()> {
    let dir = hog.parent().with_context(|| format!("{} is in no directory", hog.display()))?;
    fs::remove_file(hog).with_context(|| format!("removing {}", hog.display()))?;
    // No more than that: what the store has not synced is the power cut's.
    File::open(dir)?.sync_all().with_context(|| format!("syncing {}", dir.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

    use std::io::{self, Write};

    use super::*;
    use crate::process::scratch;

    fn store(path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    }

    #[test]
    fn what_was_synced_survives_and_what_was_not_does_not() {
        let dir = scratch().unwrap();
        let mut medium = Medium::new(dir.path(), "disk", 64).unwrap();
        store(&medium.path().join("synced"), b"on the disk").unwrap();
        File::open(medium.path()).unwrap().sync_all().unwrap();
        fs::write(medium.path().join("written"), "in memory").unwrap();
        let instant = medium.instant().unwrap();
        fs::write(medium.path().join("synced"), "later").unwrap();
        medium.go_back(instant).unwrap();
        assert_eq!(fs::read(medium.path().join("synced")).unwrap(), b"on the disk");
        assert!(!medium.path().join("written").exists());
    }

    #[test]
    fn a_disk_that_was_full_is_not_full_again_after_a_power_cut() {
        let dir = scratch().unwrap();
        let mut medium = Medium::new(dir.path(), "disk", 64).unwrap();
        let hog = medium.path().join("hog");
        fill(&hog).unwrap();
        File::open(medium.path()).unwrap().sync_all().unwrap();
        release(&hog).unwrap();
        let instant = medium.instant().unwrap();
        medium.go_back(instant).unwrap();
        assert!(!hog.exists());
        store(&medium.path().join("file"), &[7; 1 << 20]).unwrap();
    }

    #[test]
    fn what_fails_to_be_written_is_not_there_once_the_disk_is_mended() {
        let dir = scratch().unwrap();
        let mut medium = Medium::new(dir.path(), "disk", 64).unwrap();
        for (number, how) in [Failure::NoWrites, Failure::Gone, Failure::NoWrites].into_iter().enumerate() {
            let path = medium.path().join(format!("failed-{number}"));
            store(&medium.path().join("synced"), b"on the disk").unwrap();
            medium.fail(how).unwrap();
            assert!(store(&path, &[7; 100_000]).is_err(), "{how:?}");
            medium.mend().unwrap();
            assert_eq!(fs::read(medium.path().join("synced")).unwrap(), b"on the disk");
            let failed = fs::read(&path).unwrap_or_default();
            assert!(failed.iter().all(|byte| *byte == 0), "{how:?}: it was not written");
            store(&path, b"written now").unwrap();
        }
    }
}
