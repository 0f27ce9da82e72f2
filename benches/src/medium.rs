//! A disk whose power can be cut.
//!
//! What a disk holds after a power cut is what had reached it: not what the file system above still had in memory. An ext4
//! file system in a file has just that in its file, and on a file system that shares blocks between files the file can be
//! copied at one instant while all goes on. The copy is then mounted in place of the original.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use rustix::mount::{UnmountFlags, unmount};

use crate::disk::Disk;
use crate::process::run;

/// MiB of the file system that holds the images: room for an original and a copy that share nothing any more.
const HOST_MIB: u64 = 4096;

/// A disk on which a power cut can be had.
#[derive(Debug)]
pub struct Medium {
    /// Before the host, on which its image is.
    disk: Option<Disk>,
    host: Disk,
    path: PathBuf,
    image: PathBuf,
    cuts: u32,
}

/// What a disk held at one instant.
#[derive(Debug)]
#[must_use = "it is of use only when it takes the original's place"]
pub struct Instant {
    image: PathBuf,
}

impl Medium {
    /// A disk of this many MiB, at `DIR/NAME`.
    ///
    /// # Errors
    /// If it cannot be made: this needs root, loop devices, and ext4 and XFS in the kernel.
    pub fn new(dir: &Path, name: &str, mib: u64) -> Result<Medium> {
        let host = Disk::xfs(dir, &format!("{name}.host"), HOST_MIB)?;
        let (image, path) = (host.path().join("0.img"), dir.join(name));
        Disk::format(&image, mib, Command::new("mkfs.ext4").args(["-q", "-m", "0"]))?;
        let disk = Disk::of_image(&image, &path)?;
        Ok(Medium { disk: Some(disk), host, path, image, cuts: 0 })
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
        let image = self.host.path().join(format!("{}.img", self.cuts));
        run(Command::new("cp").arg("--reflink=always").arg(&self.image).arg(&image))?;
        Ok(Instant { image })
    }

    /// Goes back to an instant, as a machine does that comes up after a power cut. Nobody may use the disk.
    ///
    /// # Errors
    /// If what there was is in use, or what there is cannot be mounted.
    pub fn go_back(&mut self, to: Instant) -> Result<()> {
        unmount(&self.path, UnmountFlags::empty())
            .with_context(|| format!("{} is still in use", self.path.display()))?;
        // Already unmounted: only the record of it goes.
        std::mem::forget(self.disk.take());
        fs::remove_file(&self.image)?;
        self.image = to.image;
        self.disk = Some(Disk::of_image(&self.image, &self.path)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

    use std::fs::File;
    use std::io::Write;

    use super::*;
    use crate::process::scratch;

    #[test]
    fn what_was_synced_survives_and_what_was_not_does_not() {
        let dir = scratch().unwrap();
        let mut medium = Medium::new(dir.path(), "disk", 64).unwrap();
        let mut synced = File::create(medium.path().join("synced")).unwrap();
        synced.write_all(b"on the disk").unwrap();
        synced.sync_all().unwrap();
        File::open(medium.path()).unwrap().sync_all().unwrap();
        fs::write(medium.path().join("written"), "in memory").unwrap();
        let instant = medium.instant().unwrap();
        fs::write(medium.path().join("synced"), "later").unwrap();
        drop(synced);
        medium.go_back(instant).unwrap();
        assert_eq!(fs::read(medium.path().join("synced")).unwrap(), b"on the disk");
        assert!(!medium.path().join("written").exists());
    }
}
