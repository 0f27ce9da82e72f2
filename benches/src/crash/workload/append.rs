//! A log: records appended and synced one by one.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;

use rand::Rng;
use rand::rngs::SmallRng;

use super::{Broken, Workload, none_if_missing, pattern};

/// Bytes of a record: not a divisor of a page.
const RECORD: usize = 200;
/// Records until the log begins anew.
const MAX: u64 = 3000;

/// All records that were synced are there, once and in order; behind them may be those that were being written.
#[derive(Default)]
pub(super) struct Append {
    log: u64,
    /// Synced.
    synced: u64,
    /// Handed to write(2), whether that returned or not.
    tried: u64,
    /// In the file as this worker sees it.
    there: u64,
    /// Its removal is under way.
    is_ending: bool,
    total: u64,
}

impl Append {
    fn name(&self) -> String {
        format!("log-{}", self.log)
    }

    fn look(&mut self, dir: &Path) -> io::Result<Result<u64, Broken>> {
        let bytes = none_if_missing(std::fs::read(dir.join(self.name())))?.unwrap_or_default();
        let whole = bytes.len() / RECORD;
        for (number, record) in bytes.chunks_exact(RECORD).enumerate() {
            if record != pattern(number as u64, RECORD) {
                return Ok(Err(format!("{}: record {number} of {whole} is not what was appended", self.name())));
            }
        }
        let whole = whole as u64;
        if whole < self.synced {
            return Ok(Err(format!("{}: {} records were synced, and {whole} are there", self.name(), self.synced)));
        }
        if whole > self.tried || (bytes.len() % RECORD != 0 && whole == self.tried) {
            return Ok(Err(format!("{}: {} bytes for {} records", self.name(), bytes.len(), self.tried)));
        }
        let rest = &bytes[whole as usize * RECORD..];
        if pattern(whole, RECORD)[..rest.len()] != *rest {
            return Ok(Err(format!("{}: the last {} bytes are of no record", self.name(), rest.len())));
        }
        Ok(Ok(whole))
    }
}

impl Workload for Append {
    fn name(&self) -> &'static str {
        "append log"
    }

    fn step(&mut self, dir: &Path, random: &mut SmallRng) -> io::Result<()> {
        if self.there >= MAX {
            self.is_ending = true;
            std::fs::remove_file(dir.join(self.name()))?;
            *self = Append { log: self.log + 1, total: self.total, ..Append::default() };
        }
        let mut file = OpenOptions::new().append(true).create(true).open(dir.join(self.name()))?;
        for _ in 0..random.random_range(1..5) {
            let record = pattern(self.there, RECORD);
            self.tried = self.tried.max(self.there + 1);
            file.write_all(&record)?;
            self.there += 1;
            if random.random_bool(0.7) {
                file.sync_data()?;
                self.total += self.there - self.synced;
                self.synced = self.there;
            }
        }
        file.sync_all()?;
        self.total += self.there - self.synced;
        self.synced = self.there;
        crate::process::close(file)
    }

    fn settle(&mut self, dir: &Path) -> io::Result<Result<(), Broken>> {
        if self.is_ending && !dir.join(self.name()).try_exists()? {
            // Then the next log is to begin.
            *self = Append { log: self.log + 1, total: self.total, ..Append::default() };
        }
        let whole = match self.look(dir)? {
            Ok(whole) => whole,
            Err(broken) => return Ok(Err(broken)),
        };
        if let Some(file) = none_if_missing(OpenOptions::new().write(true).open(dir.join(self.name())))? {
            // A record that was cut off.
            file.set_len(whole * RECORD as u64)?;
            file.sync_all()?;
            crate::process::close(file)?;
        }
        (self.there, self.synced, self.tried) = (whole, whole, whole);
        Ok(Ok(()))
    }

    fn check(&mut self, dir: &Path) -> io::Result<Result<(), Broken>> {
        Ok(self.look(dir)?.map(|_| ()))
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
    fn a_record_that_is_lost_or_doubled_is_noticed() {
        let (dir, mut random) = (scratch().unwrap(), SmallRng::seed_from_u64(1));
        let mut log = Append::default();
        (0..20).for_each(|_| log.step(dir.path(), &mut random).unwrap());
        assert_eq!(log.check(dir.path()).unwrap(), Ok(()));
        let (path, good) = (dir.path().join("log-0"), std::fs::read(dir.path().join("log-0")).unwrap());
        let mut bad = vec![good[..good.len() - RECORD].to_vec(), good[..good.len() - 1].to_vec()];
        bad.push([&good[..RECORD], &good[..]].concat());
        bad.push([&good[..], &pattern(log.there, RECORD)[..]].concat());
        bad.push([&good[..], &[0]].concat());
        for bytes in bad {
            std::fs::write(&path, bytes).unwrap();
            assert!(log.check(dir.path()).unwrap().is_err());
        }
        // What was being written may be there, or a part of it.
        log.tried += 1;
        for part in [0, 1, RECORD - 1, RECORD] {
            std::fs::write(&path, [&good[..], &pattern(log.there, RECORD)[..part]].concat()).unwrap();
            assert_eq!(log.check(dir.path()).unwrap(), Ok(()));
        }
        assert_eq!(log.settle(dir.path()).unwrap(), Ok(()));
        log.step(dir.path(), &mut random).unwrap();
        assert_eq!(log.check(dir.path()).unwrap(), Ok(()));
    }
}
