//! Planting a bug, to see that the worlds of a test would find it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Instant, SystemTime};

use larder_protocol::failpoint::Planted;

use crate::seeds::in_virtual_time;

/// Runs worlds with the bug from a random seed on, `limit` at most, until one fails: until `is_good` says no, or a
/// promise is found broken on the way. Then that world must be good without the bug.
///
/// Bugs are planted in the whole process: one at a time, and beside tests that expect none they do harm.
///
/// # Panics
/// If the bug is not found, or what was found was another one.
pub fn find<T, F: Future<Output = T>>(bug: Planted, limit: u64, world: impl Fn(u64) -> F, is_good: impl Fn(T) -> bool) {
    let _alone = fail::FailScenario::setup();
    let works = |seed| {
        // What a world says of its end is of no interest here.
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let ended = catch_unwind(AssertUnwindSafe(|| in_virtual_time(world(seed))));
        std::panic::set_hook(hook);
        ended.is_ok_and(&is_good)
    };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let first = now.as_millis() as u64 % 1_000_000_000;
    let began = Instant::now();
    for seed in first..first + limit {
        plant(bug, true);
        let found = !works(seed);
        plant(bug, false);
        if found {
            println!("{}: found in world {} after {:.1?}", bug.name(), seed - first + 1, began.elapsed());
            assert!(works(seed), "world {seed} fails without {}, too", bug.name());
            return;
        }
    }
    panic!("{} was not found in {limit} worlds from seed {first} on", bug.name());
}

fn plant(bug: Planted, planted: bool) {
    let action = if planted { "return" } else { "off" };
    fail::cfg(bug.name(), action).unwrap_or_else(|error| panic!("{}: {error}", bug.name()));
}
