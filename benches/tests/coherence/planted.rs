//! Bugs that are planted are found: the history has no explanation, or a world comes upon what cannot be.

use larder_benches::planted::find;
use larder_protocol::failpoint::Planted;

use crate::{Rules, world_of};

/// Worlds in which a bug may hide before it is found.
const WORLDS: u64 = 5_000;

fn is_found(bug: Planted) {
    is_found_with_clocks(bug, None);
}

fn is_found_with_clocks(bug: Planted, apart: Option<i32>) {
    let rules = Rules { strict: true, faults: true, lies: false, apart };
    find(bug, WORLDS, |seed| world_of(seed, rules), |summary| summary.unexplained.is_none());
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
    is_found(Planted::MixVersions);
}

#[test]
fn planted_trusting_a_cache_after_a_restart_is_found() {
    is_found(Planted::TrustCache);
}

#[test]
fn planted_a_lease_that_is_off_by_one_is_found() {
    // Only where the clocks have used up the margins, which is at 5 % each.
    is_found_with_clocks(Planted::LeaseOffByOne, Some(50_000));
}
