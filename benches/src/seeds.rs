//! Running many worlds, each from a seed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

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
    let executor = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let executor = executor.expect("an executor needs no resources of its own");
    executor.block_on(async { tokio::time::timeout(PATIENCE, world).await.expect("the world is stuck") })
}

/// Runs worlds with seeds from `LARDER_SEED` on (or from anywhere), and returns what they came to.
///
/// # Panics
/// If one failed, with the command that repeats it.
pub fn run<T: Send, F: Future<Output = T>>(worlds: Worlds<'_>, world: impl Fn(u64) -> F + Sync) -> Vec<T> {
    let Worlds { target, test, .. } = worlds;
    let count = variable("LARDER_SEEDS").unwrap_or(worlds.count);
    let first = variable("LARDER_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        // Leaves room for any number of seeds, and is short enough to be typed.
        now.as_millis() as u64 % 1_000_000_000
    });
    println!("{test}: {count} seeds from {first} on (LARDER_SEED={first} LARDER_SEEDS={count})");
    // Alone, a seed that is given is to be repeated.
    let old = if count > 1 { worlds.once_failed } else { &[] };
    let seeds = |number: u64| match old.get(number as usize) {
        Some(seed) => *seed,
        None => first + number - old.len() as u64,
    };
    let count = count + old.len() as u64;
    let (next, failed) = (AtomicU64::new(0), AtomicBool::new(false));
    let (results, failures) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let work = || {
        while !failed.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return;
            }
            let seed = seeds(number);
            match catch_unwind(AssertUnwindSafe(|| in_virtual_time(world(seed)))) {
                Ok(result) => results.lock().expect(NO_PANICS).push(result),
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
    let failures = failures.into_inner().expect(NO_PANICS);
    if let Some(seed) = failures.first() {
        panic!(
            "seed {seed} failed (above). Repeat it with\n  \
             LARDER_SEED={seed} LARDER_SEEDS=1 cargo test -p larder-benches --test {target} {test}"
        );
    }
    results.into_inner().expect(NO_PANICS)
}
