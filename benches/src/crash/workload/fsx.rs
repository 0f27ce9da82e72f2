//! `fsx`: random reads, writes, mappings, truncations and holes of one file, each compared with what it should give.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

use rand::Rng;
use rand::rngs::SmallRng;

use super::{Broken, Workload, none_if_missing, output};

/// Operations on a file.
const OPERATIONS: u32 = 200;
/// Files that are kept.
const KEPT: usize = 4;
/// What is done to a file: each as often as any other.
const KINDS: [&str; 14] = [
    "close_open",
    "invalidate",
    "mapread",
    "mapwrite",
    "read",
    "write",
    "truncate",
    "fsync",
    "fdatasync",
    "posix_fallocate",
    "punch_hole",
    "sendfile",
    "posix_fadvise",
    "copy_file_range",
];

/// What `fsx` read while it ran was right, and what it left stays as it was.
pub(super) struct Fsx {
    /// Outside the mount: what it is told, and what it leaves when it fails.
    config: PathBuf,
    artifacts: PathBuf,
    last: u64,
    /// Names and contents, once synced.
    kept: Vec<(String, Vec<u8>)>,
    /// Names of what did not come to its end.
    cut: Vec<String>,
    total: u64,
}

/// fsx 0.3 asks for an allocation of no bytes at times, and takes the EINVAL that posix_fallocate(3) has for it for the
/// end.
fn asked_for_nothing(said: &str) -> bool {
    let last = said.lines().rfind(|line| line.contains("POSIX_FALLOCATE"));
    let bytes = last.and_then(|line| line.split_once('(')).map(|(_, bytes)| bytes.trim_start());
    said.contains("does not support posix_fallocate") && bytes.is_some_and(|bytes| bytes.starts_with("0x0 bytes"))
}

/// Whether it has read something else than it wrote.
fn is_mismatch(said: &str) -> bool {
    said.contains("miscompare: ")
}

impl Fsx {
    /// With a place for its own files in `dir`, outside the mount.
    pub(super) fn new(dir: &Path) -> Fsx {
        Fsx {
            config: dir.join("fsx.toml"),
            artifacts: dir.join("artifacts"),
            last: 0,
            kept: Vec::new(),
            cut: Vec::new(),
            total: 0,
        }
    }

    fn prepare(&self) -> io::Result<()> {
        fs::create_dir_all(&self.artifacts)?;
        let weights: String = KINDS.iter().map(|kind| format!("{kind} = 1.0\n")).collect();
        fs::write(&self.config, format!("[weights]\n{weights}"))
    }

    /// Runs it on a file that is not there yet.
    fn exercise(&self, dir: &Path, path: &Path, random: &mut SmallRng) -> io::Result<()> {
        loop {
            let seed = random.random_range(0..u32::MAX);
            let mut command = Command::new("fsx");
            command.arg("-f").arg(&self.config).args(["-S", &seed.to_string(), "-N", &OPERATIONS.to_string()]);
            command.arg("-P").arg(&self.artifacts).arg(path);
            let output = output(dir, &mut command)?;
            if output.status.success() {
                return Ok(());
            }
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said);
            if !asked_for_nothing(&said) {
                let lines: Vec<&str> = said.lines().collect();
                let end = lines[lines.len().saturating_sub(6)..].join(" | ");
                let cause = lines.iter().find(|line| is_mismatch(line)).unwrap_or(&"");
                let what = format!("{command:?}: {}: {cause} {end}", output.status);
                // What it read is not what it wrote.
                return Err(if is_mismatch(&said) {
                    io::Error::new(io::ErrorKind::InvalidData, what)
                } else {
                    io::Error::other(what)
                });
            }
            fs::remove_file(path)?;
        }
    }
}

impl Workload for Fsx {
    fn name(&self) -> &'static str {
        "fsx"
    }

    fn is_program(&self) -> bool {
        true
    }

    fn step(&mut self, dir: &Path, random: &mut SmallRng) -> io::Result<()> {
        self.prepare()?;
        while let Some(name) = self.cut.last() {
            none_if_missing(fs::remove_file(dir.join(name)))?;
            self.cut.pop();
        }
        if self.kept.len() >= KEPT {
            let (oldest, _) = self.kept.remove(0);
            self.cut.push(oldest.clone());
            fs::remove_file(dir.join(oldest))?;
            self.cut.pop();
        }
        self.last += 1;
        let name = format!("fsx-{}", self.last);
        let path = dir.join(&name);
        self.cut.push(name.clone());
        self.exercise(dir, &path, random)?;
        let mut file = File::options().read(true).write(true).open(&path)?;
        file.sync_all()?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        crate::process::close(file)?;
        self.cut.pop();
        self.kept.push((name, bytes));
        self.total += u64::from(OPERATIONS);
        Ok(())
    }

    fn check(&mut self, dir: &Path) -> io::Result<Result<(), Broken>> {
        for (name, expected) in &self.kept {
            let Some(found) = none_if_missing(fs::read(dir.join(name)))? else {
                return Ok(Err(format!("{name} is gone")));
            };
            if found != *expected {
                let at = found.iter().zip(expected).position(|(a, b)| a != b);
                return Ok(Err(format!(
                    "{name} has {} bytes where {} were synced, and differs at {at:?}",
                    found.len(),
                    expected.len()
                )));
            }
        }
        Ok(Ok(()))
    }

    fn heeds_close(&self) -> bool {
        // It closes and opens the file again, and takes what was in it for written.
        false
    }

    fn acknowledged(&self) -> u64 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

    use rand::SeedableRng;

    use super::*;
    use crate::process::scratch;

    #[test]
    fn a_byte_that_changes_is_noticed() {
        let (dir, own, mut random) = (scratch().unwrap(), scratch().unwrap(), SmallRng::seed_from_u64(1));
        let mut fsx = Fsx::new(own.path());
        (0..=KEPT).for_each(|_| fsx.step(dir.path(), &mut random).unwrap());
        assert_eq!(fsx.check(dir.path()).unwrap(), Ok(()));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), KEPT, "older ones are removed");
        let (name, good) = fsx.kept.iter().find(|(_, bytes)| !bytes.is_empty()).unwrap().clone();
        let mut flipped = good.clone();
        flipped[good.len() / 2] ^= 1;
        for bad in [flipped, good[1..].to_vec(), [&good[..], &[0]].concat()] {
            fs::write(dir.path().join(&name), bad).unwrap();
            assert!(fsx.check(dir.path()).unwrap().is_err());
        }
        fs::remove_file(dir.path().join(&name)).unwrap();
        assert!(fsx.check(dir.path()).unwrap().is_err());
    }

    #[test]
    fn a_run_that_fails_is_an_error_and_what_it_left_is_removed() {
        let (dir, own, mut random) = (scratch().unwrap(), scratch().unwrap(), SmallRng::seed_from_u64(1));
        let mut fsx = Fsx::new(own.path());
        // Where a directory is, no file can be made.
        fs::create_dir(dir.path().join("fsx-1")).unwrap();
        assert!(fsx.step(dir.path(), &mut random).is_err());
        fs::remove_dir(dir.path().join("fsx-1")).unwrap();
        fs::write(dir.path().join("fsx-1"), "cut").unwrap();
        assert_eq!(fsx.settle(dir.path()).unwrap(), Ok(()));
        fsx.step(dir.path(), &mut random).unwrap();
        assert!(!dir.path().join("fsx-1").exists() && dir.path().join("fsx-2").exists());
    }

    #[test]
    fn only_an_allocation_of_nothing_is_no_failure() {
        let said = |bytes| {
            format!(
                "[ERROR fsx] Test file system does not support posix_fallocate.\n1 POSIX_FALLOCATE 0x1 .. 0x0 ({bytes})"
            )
        };
        assert!(asked_for_nothing(&said("    0x0 bytes")));
        assert!(!asked_for_nothing(&said("  0x1f0 bytes")));
        assert!(!asked_for_nothing("1 POSIX_FALLOCATE 0x1 .. 0x0 (0x0 bytes)"));
    }
}
