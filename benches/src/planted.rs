//! Planting a bug, to see that the worlds of a test would find it.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use larder_protocol::failpoint::Planted;

use crate::seeds::{self, in_virtual_time};

/// How soon a bug must be found.
const WITHIN: Duration = Duration::from_secs(300);
/// What panics say that are of no checker.
const NOT_CHECKED: [&str; 5] = ["the world is stuck", "overflow", "out of bounds", "on a `None` value", "defect"];

/// Runs worlds with the bug from a random seed on, `limit` at most, until one fails: until `wrong` says what is wrong with
/// its end, or something is found broken on the way. It must be a checker that notices, and not a world that only stops, or
/// code that does not cope with the bug. Without the bug that world is good.
///
/// Bugs are planted in the whole process: one at a time, and beside tests that expect none they do harm.
///
/// # Panics
/// If the bug is not found, or not within [`WITHIN`], or something else than the bug.
pub fn find<T, F: Future<Output = T>>(
    bug: Planted,
    limit: u64,
    world: impl Fn(u64) -> F,
    wrong: impl Fn(T) -> Option<String>,
) {
    let _alone = fail::FailScenario::setup();
    let fails = |seed| {
        // What a world says of its end is told below.
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let ended = catch_unwind(AssertUnwindSafe(|| in_virtual_time(world(seed))));
        std::panic::set_hook(hook);
        match ended {
            Ok(end) => wrong(end),
            Err(panic) => Some(text(&*panic)),
        }
    };
    let first = seeds::fresh();
    let began = Instant::now();
    for seed in first..first + limit {
        plant(bug, true);
        let found = fails(seed);
        plant(bug, false);
        if let Some(what) = found {
            let (took, line) = (began.elapsed(), what.lines().next().unwrap_or_default());
            println!("{}: found in world {} after {took:.1?}: {line}", bug.name(), seed - first + 1);
            assert!(
                !NOT_CHECKED.iter().any(|sign| what.contains(sign)),
                "{}: no checker says this: {what}",
                bug.name()
            );
            assert!(took < WITHIN, "{} was found after {took:.1?} only", bug.name());
            let otherwise = fails(seed);
            assert_eq!(otherwise, None, "world {seed} fails without {}, too", bug.name());
            return;
        }
    }
    panic!("{} was not found in {limit} worlds from seed {first} on", bug.name());
}

fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}

fn plant(bug: Planted, planted: bool) {
    let action = if planted { "return" } else { "off" };
    fail::cfg(bug.name(), action).unwrap_or_else(|error| panic!("{}: {error}", bug.name()));
}
