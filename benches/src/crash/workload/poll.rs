//! A file that one worker makes longer, and whose length all others ask for without ever opening it: what they are told is
//! not older than their mode allows.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rand::Rng;
use rand::rngs::SmallRng;

use super::{Broken, Workload, kept, none_if_missing, open_shared};
use crate::lock;

/// The file's name, in the volume's root.
const NAME: &str = "polled";
/// Lengths that are remembered.
const REMEMBERED: usize = 10_000;
/// Between two uses, at most.
const REST: Duration = Duration::from_millis(40);

/// What the writer was told, and when.
#[derive(Default)]
pub(super) struct Polled {
    tried: AtomicU64,
    acked: Mutex<VecDeque<(Instant, u64)>>,
}

impl Polled {
    /// The length that was acknowledged by then.
    fn at(&self, then: Option<Instant>) -> u64 {
        let acked = lock(&self.acked);
        let known = acked.iter().rev().find(|(at, _)| then.is_some_and(|then| *at <= then));
        known.map_or(0, |(_, length)| *length)
    }

    fn acknowledge(&self, length: u64) {
        let mut acked = lock(&self.acked);
        acked.push_back((Instant::now(), length));
        if acked.len() > REMEMBERED {
            acked.pop_front();
        }
    }
}

/// A worker's use of it.
pub(super) struct Poll {
    polled: Arc<Polled>,
    /// How old it may be what this worker is told. `None` for the writer.
    bound: Option<Duration>,
    done: u64,
}

impl Poll {
    pub(super) fn writer(polled: Arc<Polled>) -> Poll {
        Poll { polled, bound: None, done: 0 }
    }

    pub(super) fn reader(polled: Arc<Polled>, bound: Duration) -> Poll {
        Poll { polled, bound: Some(bound), done: 0 }
    }

    fn write(&self, dir: &Path, length: u64) -> io::Result<()> {
        let file = open_shared(dir, NAME)?;
        file.set_len(length)?;
        file.sync_all()?;
        crate::process::close(file)
    }

    fn poll(&self, dir: &Path) -> io::Result<Result<(), Broken>> {
        let bound = self.bound.unwrap_or_default();
        let due = self.polled.at(Instant::now().checked_sub(bound));
        let found = none_if_missing(fs::metadata(dir.join("..").join(NAME)))?.map_or(0, |found| found.len());
        let tried = self.polled.tried.load(Ordering::SeqCst);
        if found < due {
            return Ok(Err(format!("length {found} where {due} was acknowledged {bound:?} before")));
        }
        Ok(if found > tried { Err(format!("length {found} before it was set")) } else { Ok(()) })
    }
}

impl Workload for Poll {
    fn name(&self) -> &'static str {
        if self.bound.is_none() { "polled writer" } else { "poller" }
    }

    fn step(&mut self, dir: &Path, random: &mut SmallRng) -> io::Result<()> {
        if self.bound.is_none() {
            let next = self.polled.tried.fetch_add(1, Ordering::SeqCst) + 1;
            self.write(dir, next)?;
            self.polled.acknowledge(next);
        } else {
            kept(self.poll(dir)?)?;
        }
        self.done += 1;
        std::thread::sleep(random.random_range(Duration::ZERO..REST));
        Ok(())
    }

    fn check(&mut self, dir: &Path) -> io::Result<Result<(), Broken>> {
        self.poll(dir)
    }

    fn acknowledged(&self) -> u64 {
        self.done
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

    use rand::SeedableRng;

    use super::*;
    use crate::process::scratch;

    #[test]
    fn a_length_that_is_older_than_it_may_be_is_noticed() {
        let (root, mut random) = (scratch().unwrap(), SmallRng::seed_from_u64(1));
        let dir = root.path().join("own");
        fs::create_dir(&dir).unwrap();
        let polled = Arc::new(Polled::default());
        let [mut prompt, mut late] =
            [Duration::ZERO, Duration::from_secs(1000)].map(|bound| Poll::reader(polled.clone(), bound));
        let mut writer = Poll::writer(polled.clone());
        prompt.step(&dir, &mut random).unwrap();
        for _ in 0..5 {
            writer.step(&dir, &mut random).unwrap();
            prompt.step(&dir, &mut random).unwrap();
        }
        let file = fs::File::options().write(true).open(root.path().join(NAME)).unwrap();
        file.set_len(4).unwrap();
        assert!(prompt.step(&dir, &mut random).is_err() && prompt.check(&dir).unwrap().is_err());
        late.step(&dir, &mut random).unwrap();
        file.set_len(6).unwrap();
        assert!(prompt.check(&dir).unwrap().is_err() && late.check(&dir).unwrap().is_err());
        // What was acknowledged long ago is due for both.
        let mut acked = lock(&polled.acked);
        acked.iter_mut().for_each(|(at, _)| *at = at.checked_sub(Duration::from_secs(2000)).unwrap());
        drop(acked);
        file.set_len(4).unwrap();
        assert!(late.check(&dir).unwrap().is_err());
        fs::remove_file(root.path().join(NAME)).unwrap();
        assert!(late.check(&dir).unwrap().is_err());
    }
}
