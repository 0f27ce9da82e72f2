//! Virtual time.

use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::{BootTime, BoxFuture, Runtime};
use crate::attr::Timestamp;

/// A machine in virtual time: the clock is tokio's (paused, it leaps when all tasks wait), randomness comes from a
/// seed, and blocking work is done on the spot. Meant for a current-thread executor built with `start_paused`.
#[derive(Debug)]
pub struct SimRuntime {
    start: tokio::time::Instant,
    wall_at_start: i64,
    random: Mutex<SmallRng>,
}

impl SimRuntime {
    /// A machine whose every random number follows from `seed`. Call it inside the executor.
    pub fn new(seed: u64) -> SimRuntime {
        SimRuntime {
            start: tokio::time::Instant::now(),
            wall_at_start: 1_700_000_000,
            random: Mutex::new(SmallRng::seed_from_u64(seed)),
        }
    }
}

impl Runtime for SimRuntime {
    fn boottime(&self) -> BootTime {
        self.start.elapsed()
    }

    fn wall(&self) -> Timestamp {
        let elapsed = self.start.elapsed();
        Timestamp { secs: self.wall_at_start + elapsed.as_secs() as i64, nanos: elapsed.subsec_nanos() }
    }

    fn random(&self) -> u64 {
        self.random.lock().random()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<()> {
        Box::pin(tokio::time::sleep(duration))
    }

    fn spawn(&self, task: BoxFuture<()>) {
        tokio::spawn(task);
    }

    fn spawn_at(&self, _place: usize, task: BoxFuture<()>) {
        self.spawn(task);
    }

    fn spawn_blocking(&self, work: Box<dyn FnOnce() + Send>) {
        work();
    }
}
