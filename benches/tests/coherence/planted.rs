//! Bugs that are planted are found: the history has no explanation, or a world comes upon what cannot be.

use std::sync::Arc;
use std::time::Duration;

use larder_benches::planted::find;
use larder_protocol::failpoint::Planted;
use larder_protocol::faults::Weather;
use rustix::fs::OFlags;
use tokio::time::sleep;

use crate::contents::Value;
use crate::drift::{AGE_STEP, AGES, is_old_after_a_write, most};
use crate::mounted::{Client, LARGE, slow, world};
use crate::{STRICT, world_of};

/// Worlds in which a bug may hide before it is found.
const WORLDS: u64 = 5_000;

fn is_found(bug: Planted) {
    find(bug, WORLDS, |seed| world_of(seed, STRICT), |summary| summary.unexplained);
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
    find(Planted::MixVersions, 200, a_fetch_that_meets_a_store, |()| None);
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

/// A file that is fetched in parts is stored anew meanwhile.
async fn a_fetch_that_meets_a_store(seed: u64) {
    let world = world().await;
    // Answers to the reader take long.
    let weather = slow();
    let a = Arc::new(Client::mount(&world, weather, seed).await);
    let b = Client::mount(&world, Weather::default(), seed.wrapping_add(1)).await;
    let [old, new] = [1, 2].map(|id| Value::new(id, LARGE));
    b.write(old).await;
    let node = a.look().await;
    let opening = a.opening(node, OFlags::RDONLY);
    sleep(Duration::from_millis(seed % 40 * 20)).await;
    b.write(new).await;
    let handle = opening.await.unwrap();
    let found = a.contents(handle).await;
    assert!(found == old || found == new, "{found:?}");
    a.close(handle).await;
}
