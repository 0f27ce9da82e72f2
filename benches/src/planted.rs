//! Planting a bug, to see that the worlds of a test would find it.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use larder_protocol::failpoint::Planted;

use crate::seeds::{self, in_virtual_time};

/// How soon a bug must be found.
const WITHIN: Duration = Duration::from_secs(300);
/// Where checkers are, and what in there is none: a world that only stops.
const CHECKERS: &str = "benches/";
const NO_CHECKER: &str = "benches/src/seeds.rs";

thread_local! {
    /// The file with the first panic of the world that runs on this thread.
    static PANICKED: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// What a world came to that is not good.
#[derive(Debug, PartialEq, Eq)]
struct Failure {
    what: String,
    /// The file with the first panic, if there was one. Code may survive its own, and be found wanting later for it.
    file: Option<String>,
}

impl Failure {
    /// Whether a checker noticed, and not code that does not cope with the bug.
    fn is_of_checker(&self) -> bool {
        self.file.as_deref().is_none_or(|file| file.starts_with(CHECKERS) && file != NO_CHECKER)
    }
}

/// Runs a world to its end, silently, and notes where it first panicked.
fn fails<T>(world: impl Future<Output = T>, wrong: impl Fn(T) -> Option<String>) -> Option<Failure> {
    PANICKED.take();
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|panic| {
        let file = panic.location().map(|location| location.file().to_owned());
        PANICKED.with_borrow_mut(|first| *first = first.take().or(file));
    }));
    let ended = catch_unwind(AssertUnwindSafe(|| in_virtual_time(world)));
    std::panic::set_hook(hook);
    let what = match ended {
        Ok(end) => wrong(end)?,
        Err(panic) => text(&*panic),
    };
    Some(Failure { what, file: PANICKED.take() })
}

/// Runs worlds with the bug from a random seed on, `limit` at most, until a checker finds it: until `wrong` says what is
/// wrong with a world's end, or something is found broken on the way. A world that only stops, or code that does not cope
/// with the bug, is passed over. Without the bug the world in which it was found is good.
///
/// Bugs are planted in the whole process: one at a time, and beside tests that expect none they do harm.
///
/// # Panics
/// If no checker finds the bug, or not within [`WITHIN`], or it finds something else than the bug.
pub fn find<T, F: Future<Output = T>>(
    bug: Planted,
    limit: u64,
    world: impl Fn(u64) -> F,
    wrong: impl Fn(T) -> Option<String>,
) {
    let _alone = fail::FailScenario::setup();
    let first = seeds::first();
    let began = Instant::now();
    for seed in first..first + limit {
        plant(bug, true);
        let found = fails(world(seed), &wrong);
        plant(bug, false);
        if let Some(failure) = found {
            let (took, line) = (began.elapsed(), failure.what.lines().next().unwrap_or_default());
            let (number, name) = (seed - first + 1, bug.name());
            if !failure.is_of_checker() {
                println!("{name}: in world {number}, and no checker says it: {line}");
                continue;
            }
            println!("{name}: found in world {number} after {took:.1?}: {line}");
            assert!(took < WITHIN, "{} was found after {took:.1?} only", bug.name());
            let otherwise = fails(world(seed), &wrong);
            assert_eq!(otherwise, None, "world {seed} fails without {}, too", bug.name());
            return;
        }
    }
    panic!("no checker found {} in {limit} worlds from seed {first} on", bug.name());
}

fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}

fn plant(bug: Planted, planted: bool) {
    let action = if planted { "return" } else { "off" };
    fail::cfg(bug.name(), action).unwrap_or_else(|error| panic!("{}: {error}", bug.name()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_checker_says_counts() {
        let _alone = fail::FailScenario::setup();
        let good = fails(async {}, |()| None);
        assert_eq!(good, None);
        let told = fails(async {}, |()| Some("a lost write".to_owned())).expect("it is wrong");
        assert!(told.is_of_checker() && told.file.is_none(), "{told:?}");
        let found = fails(async { assert_eq!(1, 2) }, |()| None).expect("it panics");
        assert!(found.is_of_checker() && found.file.is_some(), "{found:?}");
        let stuck = fails(std::future::pending(), |()| None).expect("it is stuck");
        assert!(!stuck.is_of_checker(), "{stuck:?}");
        // Of a crate, and survived: what is found afterwards may be of it.
        let elsewhere = async { drop(catch_unwind(|| Duration::ZERO - Duration::MAX)) };
        let survived = fails(elsewhere, |()| Some("a lost write".to_owned())).expect("it is wrong");
        assert!(!survived.is_of_checker(), "{survived:?}");
    }
}
