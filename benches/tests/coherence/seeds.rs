//! Running many worlds, each from a seed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// Threads that run worlds.
const THREADS: usize = 2;
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

/// Runs so many worlds, or as many as `LARDER_SEEDS` says, with seeds from `LARDER_SEED` on (or from anywhere), and
/// returns what they came to.
///
/// # Panics
/// If one failed, with the command that repeats it.
pub(crate) fn run<T: Send, F: Future<Output = T>>(test: &str, worlds: u64, world: impl Fn(u64) -> F + Sync) -> Vec<T> {
    let count = variable("LARDER_SEEDS").unwrap_or(worlds);
    let first = variable("LARDER_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        // Leaves room for any number of seeds, and is short enough to be typed.
        now.as_millis() as u64 % 1_000_000_000
    });
    println!("{test}: {count} seeds from {first} on (LARDER_SEED={first} LARDER_SEEDS={count})");
    let (next, failed) = (AtomicU64::new(0), AtomicBool::new(false));
    let (results, failures) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let work = || {
        while !failed.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return;
            }
            let seed = first + number;
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
    if let Some(seed) = failures.into_inner().unwrap().first() {
        panic!(
            "seed {seed} failed (above). Repeat it with\n  \
             LARDER_SEED={seed} LARDER_SEEDS=1 cargo test -p larder-benches --test coherence {test}"
        );
    }
    results.into_inner().unwrap()
}
