//! Running many worlds, each from a seed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// Threads that run worlds.
const THREADS: usize = 2;
/// Worlds unless `LARDER_SEEDS` says otherwise.
const SEEDS: u64 = 300;
/// Worlds in which something went wrong once, run every time. What they came upon depends on the order of all steps, so
/// they are worth most while the code is as it was then.
const ONCE_FAILED: [u64; 1] = [262_114_806];
/// Virtual time after which a world is stuck.
const PATIENCE: Duration = Duration::from_secs(4 * 3600);

fn variable(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value}: not a number")))
}

/// Runs a world in virtual time, to its end.
pub(crate) fn in_virtual_time<T>(world: impl Future<Output = T>) -> T {
    let executor = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    executor.block_on(async { tokio::time::timeout(PATIENCE, world).await.expect("the world is stuck") })
}

/// Runs as many worlds as `LARDER_SEEDS` says, with seeds from `LARDER_SEED` on (or from anywhere), and returns what
/// they came to.
///
/// # Panics
/// If one failed, with the command that repeats it.
pub(crate) fn run<T: Send, F: Future<Output = T>>(test: &str, world: impl Fn(u64) -> F + Sync) -> Vec<T> {
    let count = variable("LARDER_SEEDS").unwrap_or(SEEDS);
    let first = variable("LARDER_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        // Leaves room for any number of seeds, and is short enough to be typed.
        now.as_millis() as u64 % 1_000_000_000
    });
    println!("{test}: {count} seeds from {first} on (LARDER_SEED={first} LARDER_SEEDS={count})");
    // Alone, a seed that is given is to be repeated.
    let old = if count > 1 { &ONCE_FAILED[..] } else { &[] };
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
                Ok(result) => results.lock().unwrap().push(result),
                Err(_) => {
                    failed.store(true, Ordering::Relaxed);
                    failures.lock().unwrap().push(seed);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(work);
        }
    });
    let failures = failures.into_inner().unwrap();
    if let Some(seed) = failures.first() {
        panic!(
            "seed {seed} failed (above). Repeat it with\n  \
             LARDER_SEED={seed} LARDER_SEEDS=1 cargo test -p larder-benches --test replay {test}"
        );
    }
    results.into_inner().unwrap()
}
