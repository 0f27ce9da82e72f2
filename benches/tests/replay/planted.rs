//! Bugs that are planted are found by the worlds of this test.

use larder_benches::planted::find;
use larder_protocol::failpoint::Planted;

use crate::{handles, refusals, world_of};

/// Worlds in which a bug may hide before it is found.
const WORLDS: u64 = 5_000;

#[test]
fn planted_forgetting_a_slot_is_found() {
    find(Planted::ForgetSlot, WORLDS, world_of, |_| None);
}

#[test]
fn planted_serving_a_fenced_connection_is_found() {
    find(Planted::ServeFenced, WORLDS, world_of, |_| None);
}

#[test]
fn planted_acknowledging_before_a_sync_is_found() {
    find(Planted::AcknowledgeEarly, WORLDS, world_of, |_| None);
}

#[test]
fn planted_reusing_a_generation_is_found() {
    find(Planted::ReuseGeneration, WORLDS, handles::world_of, |_| None);
}

#[test]
fn planted_dropping_the_error_of_a_flush_is_found() {
    find(Planted::DropFlushError, WORLDS, refusals::world_of, |_| None);
}
