//! Bugs that are planted are found: the history has no explanation, or a world comes upon what cannot be.

use larder_benches::planted::find;
use larder_protocol::failpoint::Planted;

use crate::drift::{AGE_STEP, AGES, is_old_after_a_write, most};
use crate::{Rules, STRICT, world_of};

/// Worlds in which a bug may hide before it is found.
const WORLDS: u64 = 5_000;

fn is_found(bug: Planted) {
    is_found_by(bug, STRICT);
}

fn is_found_by(bug: Planted, rules: Rules) {
    find(bug, WORLDS, |seed| world_of(seed, rules), |summary| summary.unexplained);
}

#[test]
fn planted_acknowledging_before_a_sync_is_found() {
    is_found(Planted::AcknowledgeEarly);
}

#[test]
fn planted_skipping_a_break_is_found() {
    is_found(Planted::SkipBreak);
}

#[test]
fn planted_ignoring_the_grace_period_is_found() {
    is_found(Planted::IgnoreGrace);
}

#[test]
fn planted_mixing_two_versions_is_found() {
    // It takes files that are fetched in parts.
    is_found_by(Planted::MixVersions, Rules { large: true, ..STRICT });
}

#[test]
fn planted_trusting_a_cache_after_a_restart_is_found() {
    is_found(Planted::TrustCache);
}

#[test]
fn planted_a_lease_that_is_off_by_one_is_found() {
    // The margins hide it, but for clocks that use them up.
    let age = |seed: u64| AGE_STEP * (seed % AGES) as u32;
    let world = |seed| is_old_after_a_write(most(), age(seed));
    find(Planted::LeaseOffByOne, AGES, world, |is_old| is_old.then(|| "what was read is old".to_owned()));
}
