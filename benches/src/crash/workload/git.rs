//! A repository that grows commit by commit.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use rand::Rng;
use rand::rngs::SmallRng;

use super::{Broken, Workload, broken_unless_gone, none_if_missing, pattern, run};

/// Commits until the next repository is begun: fsck looks at all of them.
const COMMITS: u64 = 300;

/// Each commit that was made is there with all it is made of.
#[derive(Default)]
pub(super) struct Git {
    repository: u64,
    /// All before this one are removed.
    removed: u64,
    /// The last commit that git named. There may be one more that it said is made.
    head: Option<String>,
    commits: u64,
    total: u64,
}

impl Git {
    fn git(&self, dir: &Path, args: &[&str]) -> io::Result<String> {
        let mut command = Command::new("git");
        command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null");
        command.args(["-c", "user.name=Larder", "-c", "user.email=larder@localhost", "-c", "safe.directory=*"]);
        command.args(["-c", "core.fsync=all", "-c", "gc.auto=0", "-C"]);
        command.arg(dir.join(format!("repository-{}", self.repository))).args(args);
        run(dir, &mut command)
    }

    /// Begins with a new repository. A git that was killed leaves locks behind, and a user would remove them by hand.
    fn begin_anew(&mut self) {
        *self = Git { repository: self.repository + 1, removed: self.removed, total: self.total, ..Git::default() };
    }
}

impl Workload for Git {
    fn name(&self) -> &'static str {
        "git"
    }

    fn is_program(&self) -> bool {
        true
    }

    fn step(&mut self, dir: &Path, random: &mut SmallRng) -> io::Result<()> {
        if self.commits >= COMMITS {
            self.begin_anew();
        }
        while self.removed < self.repository {
            let old = dir.join(format!("repository-{}", self.removed));
            none_if_missing(fs::remove_dir_all(old))?;
            self.removed += 1;
        }
        let repository = dir.join(format!("repository-{}", self.repository));
        if self.head.is_none() {
            fs::create_dir(&repository)?;
            self.git(dir, &["-c", "init.defaultBranch=main", "init", "-q"])?;
        }
        for _ in 0..random.random_range(1..4) {
            let name = format!("file-{}", random.random_range(0..20));
            crate::process::store(repository.join(name), &pattern(random.random(), random.random_range(8..5000)))?;
        }
        self.git(dir, &["add", "-A"])?;
        self.git(dir, &["commit", "-q", "--allow-empty", "-m", "more"])?;
        self.commits += 1;
        self.total += 1;
        self.head = Some(self.git(dir, &["rev-parse", "HEAD"])?.trim().to_owned());
        Ok(())
    }

    fn settle(&mut self, dir: &Path) -> io::Result<Result<(), Broken>> {
        let checked = self.check(dir)?;
        if checked.is_ok() {
            self.begin_anew();
        }
        Ok(checked)
    }

    fn check(&mut self, dir: &Path) -> io::Result<Result<(), Broken>> {
        if self.commits == 0 {
            return Ok(Ok(()));
        }
        // One more commit may have been under way.
        let count = match self.git(dir, &["rev-list", "--count", "HEAD"]) {
            Ok(count) => count.trim().parse::<u64>().unwrap_or(0),
            Err(error) => return broken_unless_gone(dir, &error),
        };
        if !(self.commits..=self.commits + 1).contains(&count) {
            return Ok(Err(format!("{count} commits where {} were made", self.commits)));
        }
        let head = self.head.as_deref().unwrap_or("HEAD");
        for args in [&["merge-base", "--is-ancestor", head, "HEAD"][..], &["fsck", "--full", "--strict"]] {
            if let Err(error) = self.git(dir, args) {
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
    fn a_commit_that_is_lost_is_noticed() {
        let (dir, mut random) = (scratch().unwrap(), SmallRng::seed_from_u64(1));
        let mut git = Git::default();
        (0..3).for_each(|_| git.step(dir.path(), &mut random).unwrap());
        assert_eq!(git.check(dir.path()).unwrap(), Ok(()));
        let head = git.head.clone().unwrap();
        let object = dir.path().join(format!("repository-0/.git/objects/{}/{}", &head[..2], &head[2..]));
        fs::rename(&object, dir.path().join("away")).unwrap();
        assert!(git.check(dir.path()).unwrap().is_err());
        fs::rename(dir.path().join("away"), &object).unwrap();
        git.git(dir.path(), &["reset", "-q", "--hard", "HEAD~1"]).unwrap();
        assert!(git.check(dir.path()).unwrap().is_err());
    }
}
