//! Trees that are unpacked and compared.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use rand::rngs::SmallRng;

use super::{Broken, Workload, broken_unless_gone, none_if_missing, run};
use crate::source::Source;

/// Trees that are kept.
const KEPT: u64 = 3;

/// Each tree that was unpacked, and then synced, is as it was packed.
pub(super) struct Untar {
    source: Arc<Source>,
    /// The next one's number; numbers are not used again.
    next: u64,
    /// All before this one are removed.
    removed: u64,
    /// Those that are to be there.
    whole: Vec<u64>,
    total: u64,
}

impl Untar {
    pub(super) fn new(source: Arc<Source>) -> Untar {
        Untar { source, next: 1, removed: 1, whole: Vec::new(), total: 0 }
    }
}

impl Workload for Untar {
    fn name(&self) -> &'static str {
        "untar"
    }

    fn is_program(&self) -> bool {
        true
    }

    fn step(&mut self, dir: &Path, _: &mut SmallRng) -> io::Result<()> {
        if self.whole.len() as u64 > KEPT {
            let oldest = self.whole.remove(0);
            fs::remove_dir_all(dir.join(format!("tree-{oldest}")))?;
        }
        for number in self.removed..self.next {
            if !self.whole.contains(&number) {
                // One that was not unpacked, or removed, to its end.
                none_if_missing(fs::remove_dir_all(dir.join(format!("tree-{number}"))))?;
            }
        }
        self.removed = self.whole.first().copied().unwrap_or(self.next);
        let number = self.next;
        self.next += 1;
        let at = dir.join(format!("tree-{number}"));
        fs::create_dir(&at)?;
        run(dir, Command::new("tar").arg("-xf").arg(&self.source.archive).arg("-C").arg(&at))?;
        // In direct mode nothing else makes what was written durable.
        run(dir, Command::new("find").arg(&at).args(["-type", "f", "-exec", "sync", "{}", "+"]))?;
        self.total += 1;
        self.whole.push(number);
        Ok(())
    }

    fn check(&mut self, dir: &Path) -> io::Result<Result<(), Broken>> {
        for number in &self.whole {
            let at = dir.join(format!("tree-{number}"));
            if none_if_missing(fs::metadata(&at))?.is_none() {
                return Ok(Err(format!("tree-{number} is gone")));
            }
            if let Err(error) = run(dir, Command::new("diff").arg("-r").arg(&self.source.tree).arg(at.join("tree"))) {
                return broken_unless_gone(dir, &error);
            }
        }
        Ok(Ok(()))
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
    fn a_file_that_differs_is_noticed() {
        let (dir, mut random) = (scratch().unwrap(), SmallRng::seed_from_u64(1));
        let source = Arc::new(Source::new(dir.path(), 30).unwrap());
        let mut untar = Untar::new(source);
        (0..KEPT + 2).for_each(|_| untar.step(dir.path(), &mut random).unwrap());
        assert_eq!(untar.check(dir.path()).unwrap(), Ok(()));
        assert!(!dir.path().join("tree-1").exists());
        let victim = dir.path().join("tree-3/tree/dir-1/file-1");
        let good = fs::read(&victim).unwrap();
        fs::write(&victim, &good[1..]).unwrap();
        assert!(untar.check(dir.path()).unwrap().is_err());
        fs::write(&victim, good).unwrap();
        assert_eq!(untar.check(dir.path()).unwrap(), Ok(()));
        fs::remove_dir_all(dir.path().join("tree-3")).unwrap();
        assert!(untar.check(dir.path()).unwrap().is_err());
    }
}
