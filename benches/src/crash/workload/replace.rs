//! A file that is replaced by renaming the next one over it.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use rand::Rng;
use rand::rngs::SmallRng;

use super::{Broken, Workload, none_if_missing, pattern};

/// Bytes of a file at most: some live in the metadata, others in files of their own.
const MAX: usize = 200_000;

/// The file is that of the last rename that returned, or of one that was under way; and it is whole.
#[derive(Default)]
pub(super) struct Replace {
    acked: u64,
    tried: u64,
}

/// The size is made of the number, so that it need not be remembered.
fn contents(number: u64) -> Vec<u8> {
    pattern(number, 8 + (number.wrapping_mul(2_654_435_761) % MAX as u64) as usize)
}

impl Workload for Replace {
    fn name(&self) -> &'static str {
        "replace"
    }

    fn step(&mut self, dir: &Path, random: &mut SmallRng) -> io::Result<()> {
        self.tried += 1;
        let (next, state) = (dir.join("state.new"), dir.join("state"));
        let mut file = File::create(&next)?;
        let bytes = contents(self.tried);
        let middle = random.random_range(0..bytes.len());
        file.write_all(&bytes[..middle])?;
        file.write_all(&bytes[middle..])?;
        file.sync_all()?;
        crate::process::close(file)?;
        std::fs::rename(next, state)?;
        self.acked = self.tried;
        Ok(())
    }

    fn settle(&mut self, dir: &Path) -> io::Result<Result<(), Broken>> {
        let checked = self.check(dir)?;
        if checked.is_ok() {
            // Seen here, it is there for all.
            let found = none_if_missing(std::fs::read(dir.join("state")))?.and_then(|bytes| number_of(&bytes));
            self.acked = found.unwrap_or(0).max(self.acked);
        }
        Ok(checked)
    }

    fn check(&mut self, dir: &Path) -> io::Result<Result<(), Broken>> {
        let Some(bytes) = none_if_missing(std::fs::read(dir.join("state")))? else {
            return Ok(if self.acked == 0 { Ok(()) } else { Err(format!("version {} is gone", self.acked)) });
        };
        let Some(number) = number_of(&bytes) else {
            return Ok(Err(format!("{} bytes are of no version", bytes.len())));
        };
        if number < self.acked || number > self.tried {
            return Ok(Err(format!("version {number} where {} to {} may be", self.acked, self.tried)));
        }
        Ok(if bytes == contents(number) { Ok(()) } else { Err(format!("version {number} is not whole")) })
    }

    fn acknowledged(&self) -> u64 {
        self.acked
    }
}

fn number_of(bytes: &[u8]) -> Option<u64> {
    bytes.first_chunk().map(|number| u64::from_le_bytes(*number))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

    use rand::SeedableRng;

    use super::*;
    use crate::process::scratch;

    #[test]
    fn an_older_or_mixed_version_is_noticed() {
        let (dir, mut random) = (scratch().unwrap(), SmallRng::seed_from_u64(1));
        let mut replace = Replace::default();
        (0..5).for_each(|_| replace.step(dir.path(), &mut random).unwrap());
        assert_eq!(replace.check(dir.path()).unwrap(), Ok(()));
        let state = dir.path().join("state");
        let mut mixed = contents(5);
        *mixed.last_mut().unwrap() ^= 1;
        for bytes in [contents(4), contents(6), mixed, vec![], contents(5)[..contents(5).len() - 1].to_vec()] {
            std::fs::write(&state, bytes).unwrap();
            assert!(replace.check(dir.path()).unwrap().is_err());
        }
        std::fs::remove_file(&state).unwrap();
        assert!(replace.check(dir.path()).unwrap().is_err());
        // What was under way may be there.
        replace.tried += 1;
        std::fs::write(&state, contents(6)).unwrap();
        assert_eq!(replace.settle(dir.path()).unwrap(), Ok(()));
        std::fs::write(&state, contents(5)).unwrap();
        assert!(replace.check(dir.path()).unwrap().is_err(), "it was seen");
    }
}
