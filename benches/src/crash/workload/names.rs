//! Names: each operation fails when it is done twice, or when one before it was lost.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use rand::Rng;
use rand::rngs::SmallRng;

use super::{Broken, Workload};

/// Names until they are removed again.
const MANY: usize = 40;

/// The names are those that the operations which returned have left, with or without the one that was under way.
#[derive(Default)]
pub(super) struct Names {
    /// Files and directories; directories end with a slash.
    there: BTreeSet<String>,
    /// What there is once the operation under way is done.
    next: Option<BTreeSet<String>>,
    last: u64,
    done: u64,
}

impl Names {
    fn found(dir: &Path) -> io::Result<BTreeSet<String>> {
        let mut found = BTreeSet::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let slash = if entry.file_type()?.is_dir() { "/" } else { "" };
            found.insert(format!("{}{slash}", entry.file_name().to_string_lossy()));
        }
        Ok(found)
    }

    /// Does something that takes names away and puts others in their place.
    fn change(&mut self, gone: &[&str], new: &[&str], what: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut next = self.there.clone();
        for name in gone {
            assert!(next.remove(*name), "{name} should be there");
        }
        next.extend(new.iter().map(|name| (*name).to_owned()));
        self.next = Some(next.clone());
        what()?;
        self.there = next;
        self.next = None;
        self.done += 1;
        Ok(())
    }
}

impl Workload for Names {
    fn name(&self) -> &'static str {
        "names"
    }

    fn step(&mut self, dir: &Path, random: &mut SmallRng) -> io::Result<()> {
        self.last += 1;
        let fresh = format!("n{}", self.last);
        let old = self.there.iter().nth(random.random_range(0..self.there.len().max(1))).cloned();
        let old = old.filter(|_| random.random_bool(if self.there.len() > MANY { 1.0 } else { 0.6 }));
        let at = |name: &str| dir.join(name.trim_end_matches('/'));
        match old {
            None if random.random_bool(0.5) => {
                let name = format!("{fresh}/");
                self.change(&[], &[&name], || fs::create_dir(at(&fresh)))
            }
            None => self.change(&[], &[&fresh], || crate::process::close(File::create_new(at(&fresh))?)),
            Some(old) if self.there.len() <= MANY && random.random_bool(0.6) => {
                let name = format!("{fresh}{}", if old.ends_with('/') { "/" } else { "" });
                if old.ends_with('/') || random.random_bool(0.5) {
                    self.change(&[&old], &[&name], || fs::rename(at(&old), at(&name)))
                } else {
                    self.change(&[], &[&name], || fs::hard_link(at(&old), at(&name)))
                }
            }
            Some(old) if old.ends_with('/') => self.change(&[&old], &[], || fs::remove_dir(at(&old))),
            Some(old) => self.change(&[&old], &[], || fs::remove_file(at(&old))),
        }
    }

    fn settle(&mut self, dir: &Path) -> io::Result<Result<(), Broken>> {
        let found = Names::found(dir)?;
        let checked = self.verdict(&found);
        if checked.is_ok() {
            self.there = found;
            self.next = None;
        }
        Ok(checked)
    }

    fn check(&mut self, dir: &Path) -> io::Result<Result<(), Broken>> {
        Ok(self.verdict(&Names::found(dir)?))
    }

    fn acknowledged(&self) -> u64 {
        self.done
    }
}

impl Names {
    fn verdict(&self, found: &BTreeSet<String>) -> Result<(), Broken> {
        if *found == self.there || self.next.as_ref() == Some(found) {
            return Ok(());
        }
        let expected = &self.there;
        let missing: Vec<_> = expected.difference(found).collect();
        let strange: Vec<_> = found.difference(expected).collect();
        Err(format!("missing {missing:?}, not expected {strange:?}, under way {:?}", self.next))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

    use rand::SeedableRng;

    use super::*;
    use crate::process::scratch;

    #[test]
    fn a_name_too_many_or_too_few_is_noticed() {
        let (dir, mut random) = (scratch().unwrap(), SmallRng::seed_from_u64(1));
        let mut names = Names::default();
        for _ in 0..300 {
            names.step(dir.path(), &mut random).unwrap();
            assert_eq!(names.check(dir.path()).unwrap(), Ok(()));
        }
        File::create(dir.path().join("strange")).unwrap();
        assert!(names.check(dir.path()).unwrap().is_err());
        names.next = Some(names.there.iter().cloned().chain(["strange".to_owned()]).collect());
        assert_eq!(names.settle(dir.path()).unwrap(), Ok(()), "it was under way");
        fs::remove_file(dir.path().join("strange")).unwrap();
        assert!(names.check(dir.path()).unwrap().is_err(), "it was seen");
        // An operation that is done twice, or after one that was lost, fails by itself.
        for number in 1..=100 {
            File::create(dir.path().join(format!("n{}", names.last + number))).unwrap();
        }
        let failed = (0..100).filter(|_| names.step(dir.path(), &mut random).is_err()).count();
        assert!(failed > 0);
    }
}
