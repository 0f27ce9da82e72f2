//! Virtual time.

use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::{BootTime, BoxFuture, Runtime};
use crate::attr::Timestamp;

/// What every calendar says at the start.
const WALL_AT_START: i64 = 1_700_000_000;
/// How far from the true time a calendar jumps at most.
const JUMP: i64 = 24 * 3600;
/// The longest time between two jumps.
const BETWEEN_JUMPS: Duration = Duration::from_secs(60);
/// Parts per million.
const MILLION: u128 = 1_000_000;

/// How a machine's clocks are wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clocks {
    /// By how many parts per million its time runs faster than true time, or slower. Its sleeps end by its own time.
    pub drift: i32,
    /// Whether its calendar jumps now and then, up to a day off the true one.
    pub jumps: bool,
}

/// A machine in virtual time: the clock is tokio's (paused, it leaps when all tasks wait), randomness comes from a
/// seed, and blocking work is done on the spot. Meant for a current-thread executor built with `start_paused`.
#[derive(Debug)]
pub struct SimRuntime {
    start: tokio::time::Instant,
    /// How much time passes here in a million parts of true time.
    rate: u128,
    calendar: Option<Mutex<Calendar>>,
    random: Mutex<SmallRng>,
}

/// A calendar that jumps.
#[derive(Debug)]
struct Calendar {
    random: SmallRng,
    /// Seconds that it is off the true one.
    off: i64,
    /// When it jumps next.
    jumps_at: Duration,
}

impl Calendar {
    fn new(seed: u64) -> Calendar {
        let mut calendar = Calendar { random: SmallRng::seed_from_u64(seed), off: 0, jumps_at: Duration::ZERO };
        calendar.plan();
        calendar
    }

    fn plan(&mut self) {
        self.jumps_at += BETWEEN_JUMPS.mul_f64(self.random.random());
    }

    /// Seconds that it is off after this time.
    fn off(&mut self, elapsed: Duration) -> i64 {
        while self.jumps_at <= elapsed {
            self.off = self.random.random_range(-JUMP..=JUMP);
            self.plan();
        }
        self.off
    }
}

impl SimRuntime {
    /// A machine with perfect clocks whose every random number follows from `seed`. Call it inside the executor.
    pub fn new(seed: u64) -> SimRuntime {
        SimRuntime::with_clocks(seed, Clocks::default())
    }

    /// A machine with such clocks.
    ///
    /// # Panics
    /// If time would stand still or go back.
    pub fn with_clocks(seed: u64, clocks: Clocks) -> SimRuntime {
        let rate = MILLION.checked_add_signed(clocks.drift.into()).filter(|rate| *rate > 0);
        SimRuntime {
            start: tokio::time::Instant::now(),
            rate: rate.expect("time goes on"),
            // Not from `random`: how often anybody asks for the date must not decide anything else.
            calendar: clocks.jumps.then(|| Mutex::new(Calendar::new(!seed))),
            random: Mutex::new(SmallRng::seed_from_u64(seed)),
        }
    }
}

fn duration(nanos: u128) -> Duration {
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

impl Runtime for SimRuntime {
    fn boottime(&self) -> BootTime {
        duration(self.start.elapsed().as_nanos() * self.rate / MILLION)
    }

    fn wall(&self) -> Timestamp {
        let elapsed = self.start.elapsed();
        let off = self.calendar.as_ref().map_or(0, |calendar| calendar.lock().off(elapsed));
        Timestamp { secs: WALL_AT_START + elapsed.as_secs() as i64 + off, nanos: elapsed.subsec_nanos() }
    }

    fn random(&self) -> u64 {
        self.random.lock().random()
    }

    fn sleep(&self, time: Duration) -> BoxFuture<()> {
        // Rounded so that never less than `time` has passed here when it ends, wherever within a nanosecond it began.
        let exact = self.rate == MILLION;
        let takes = if exact { time } else { duration((time.as_nanos() + 1) * MILLION / self.rate + 1) };
        Box::pin(tokio::time::sleep(takes))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn time_passes_at_each_machines_own_rate() {
        let true_time = SimRuntime::new(1);
        for (drift, seconds) in [(50_000, 105), (-50_000, 95), (0, 100)] {
            let machine = SimRuntime::with_clocks(1, Clocks { drift, jumps: false });
            let began = true_time.boottime();
            machine.sleep(Duration::from_secs(seconds)).await;
            let took = true_time.boottime() - began;
            assert!(took.abs_diff(Duration::from_secs(100)) <= Duration::from_millis(1), "{took:?} at {drift}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_sleep_is_too_short() {
        for drift in [-50_000, -49_999, -333, -1, 0, 1, 7, 48_611, 50_000] {
            let machine = SimRuntime::with_clocks(1, Clocks { drift, jumps: false });
            for nanos in [1, 999, 1_000_000, 1_000_001, 9_500_000_000, 10_500_000_000] {
                let (began, time) = (machine.boottime(), Duration::from_nanos(nanos));
                machine.sleep(time).await;
                assert!(machine.boottime() - began >= time, "{time:?} at {drift}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_calendar_jumps_by_a_day_at_most_and_a_clock_never() {
        let machine = SimRuntime::with_clocks(3, Clocks { drift: 0, jumps: true });
        let same = SimRuntime::with_clocks(3, Clocks { drift: 0, jumps: true });
        let (mut before, mut back) = (machine.wall(), 0);
        for second in 1..1000 {
            machine.sleep(Duration::from_secs(1)).await;
            assert_eq!(machine.boottime(), Duration::from_secs(second));
            let now = machine.wall();
            assert!((now.secs - WALL_AT_START - second as i64).abs() <= JUMP);
            back += u32::from(now.secs < before.secs);
            before = now;
        }
        assert!(back > 5, "it jumped back {back} times");
        assert_eq!(machine.wall(), same.wall(), "whoever asks more often sees the same");
    }
}
