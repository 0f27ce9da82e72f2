//! Running many worlds, each from a seed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};

use crate::digest::{Digest, Digested};
use crate::virtual_clock::Virtual;

/// Threads that run worlds.
const THREADS: usize = 2;
/// Virtual time after which a world is stuck.
const PATIENCE: Duration = Duration::from_secs(4 * 3600);

/// The worlds of one test.
#[derive(Clone, Copy, Debug)]
pub struct Worlds<'a> {
    /// The test target that it is in.
    pub target: &'a str,
    /// The test.
    pub test: &'a str,
    /// How many, unless `LARDER_SEEDS` says otherwise.
    pub count: u64,
    /// Seeds of worlds in which something went wrong once, run beside the others every time. What they came upon depends
    /// on the order of all steps, so they are worth most while the code is as it was then.
    pub once_failed: &'a [u64],
}

const NO_PANICS: &str = "nobody panics under it";

fn variable(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value}: not a number")))
}

/// Runs a world in virtual time, to its end.
///
/// # Panics
/// If it has no end.
pub fn in_virtual_time<T>(world: impl Future<Output = T>) -> T {
    let _time = Virtual::begin();
    let executor = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let executor = executor.expect("an executor needs no resources of its own");
    executor.block_on(async { tokio::time::timeout(PATIENCE, world).await.expect("the world is stuck") })
}

/// What worlds came to.
#[derive(Debug)]
pub struct Ran<T> {
    /// What each came to, in the order of their seeds.
    pub worlds: Vec<T>,
    /// The time of one processor that they took together.
    pub cpu: Duration,
}

/// Time that this thread has had of a processor.
fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn repeat(target: &str, test: &str, seed: u64) -> String {
    format!("LARDER_SEED={seed} LARDER_SEEDS=1 cargo test -p larder-benches --test {target} {test}")
}

/// Runs worlds with seeds from `LARDER_SEED` on (or from anywhere), and returns what they came to.
///
/// # Panics
/// If one failed, with the command that repeats it.
pub fn run<T: Send + Digested, F: Future<Output = T>>(worlds: Worlds<'_>, world: impl Fn(u64) -> F + Sync) -> Ran<T> {
    let Worlds { target, test, .. } = worlds;
    let seeds = seeds(worlds);
    let order: Vec<usize> = (0..seeds.len()).collect();
    let (results, failed) = run_in_order(&seeds, &order, &world);
    if let Some(seed) = failed {
        panic!("seed {seed} failed (above). Repeat it with\n  {}", repeat(target, test, seed));
    }
    let cpu = results.iter().map(|(_, _, cpu)| cpu).sum();
    let worlds: Vec<T> = results.into_iter().map(|(_, result, _)| result).collect();
    let mut digest = Digest::default();
    worlds.iter().for_each(|world| digest.note(&world.digest()));
    println!("{test}: digest {:016x}", digest.value());
    Ran { worlds, cpu }
}

/// Runs each world twice, and sees to it that the same comes of it: beside another world each time, and after others.
///
/// # Panics
/// If not, with the command that repeats it.
pub fn run_twice<T: Send + Digested, F: Future<Output = T>>(worlds: Worlds<'_>, world: impl Fn(u64) -> F + Sync) {
    let Worlds { target, test, .. } = worlds;
    let seeds = seeds(worlds);
    let forth: Vec<usize> = (0..seeds.len()).collect();
    let back: Vec<usize> = forth.iter().rev().copied().collect();
    let [first, second] = [forth, back].map(|order| {
        let (results, failed) = run_in_order(&seeds, &order, &world);
        if let Some(seed) = failed {
            panic!("seed {seed} failed (above). Repeat it with\n  {}", repeat(target, test, seed));
        }
        results.into_iter().map(|(_, result, _)| result.digest()).collect::<Vec<u64>>()
    });
    let differ: Vec<u64> = (0..seeds.len()).filter(|at| first[*at] != second[*at]).map(|at| seeds[at]).collect();
    if let Some(seed) = differ.first() {
        let repeat = repeat(target, test, *seed);
        panic!(
            "{} of {} seeds were not the same world twice: {differ:?}. Repeat one with\n  {repeat}",
            differ.len(),
            seeds.len()
        );
    }
}

/// A seed to begin at that was hardly begun at before.
fn fresh() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    // Leaves room for any number of seeds, and is short enough to be typed.
    now.as_millis() as u64 % 1_000_000_000
}

/// The seed to begin at: `LARDER_SEED`, or a fresh one.
///
/// # Panics
/// If the variable is not a number.
pub fn first() -> u64 {
    variable("LARDER_SEED").unwrap_or_else(fresh)
}

fn seeds(worlds: Worlds<'_>) -> Vec<u64> {
    let count = variable("LARDER_SEEDS").unwrap_or(worlds.count);
    let first = first();
    println!("{}: {count} seeds from {first} on (LARDER_SEED={first} LARDER_SEEDS={count})", worlds.test);
    // Alone, a seed that is given is to be repeated.
    let old = if count > 1 { worlds.once_failed } else { &[] };
    old.iter().copied().chain(first..first + count).collect()
}

/// Runs worlds in this order. What came of each with its place and the time that it took, by their places; and a seed
/// that failed.
fn run_in_order<T: Send, F: Future<Output = T>>(
    seeds: &[u64],
    order: &[usize],
    world: &(impl Fn(u64) -> F + Sync),
) -> (Vec<(usize, T, Duration)>, Option<u64>) {
    let (next, failed) = (AtomicU64::new(0), AtomicBool::new(false));
    let (results, failures) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let work = || {
        while !failed.load(Ordering::Relaxed) {
            let Some(place) = order.get(next.fetch_add(1, Ordering::Relaxed) as usize) else { return };
            let (seed, began) = (seeds[*place], cpu());
            match catch_unwind(AssertUnwindSafe(|| in_virtual_time(world(seed)))) {
                Ok(result) => results.lock().expect(NO_PANICS).push((*place, result, cpu().saturating_sub(began))),
                Err(_) => {
                    failed.store(true, Ordering::Relaxed);
                    failures.lock().expect(NO_PANICS).push(seed);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(work);
        }
    });
    let mut results = results.into_inner().expect(NO_PANICS);
    results.sort_by_key(|(place, _, _)| *place);
    (results, failures.into_inner().expect(NO_PANICS).first().copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Number(u64);

    impl Digested for Number {
        fn digest(&self) -> u64 {
            self.0
        }
    }

    fn worlds(test: &str) -> Worlds<'_> {
        Worlds { target: "none", test, count: 20, once_failed: &[] }
    }

    #[test]
    fn what_worlds_come_to_is_in_the_order_of_their_seeds() {
        let ran = run(worlds("in_order"), |seed| async move {
            tokio::time::sleep(Duration::from_secs(seed % 7)).await;
            Number(seed)
        });
        assert!(ran.worlds.len() == 20 && ran.worlds.windows(2).all(|pair| pair[0].0 + 1 == pair[1].0));
    }

    #[test]
    #[should_panic(expected = "20 of 20 seeds were not the same world twice")]
    fn worlds_that_depend_on_what_was_before_them_are_found() {
        let count = AtomicU64::new(0);
        run_twice(worlds("found"), |_| {
            let number = count.fetch_add(1, Ordering::Relaxed);
            async move { Number(number) }
        });
    }
}
