//! Clocks that are too far apart for leases, and clocks that are not.

use std::sync::Arc;
use std::time::Duration;

use larder_benches::seeds::in_virtual_time;
use larder_protocol::faults::Weather;
use larder_protocol::handshake::LeaseTerms;
use larder_protocol::runtime::{Clocks, SimRuntime};
use tokio::time::{sleep, timeout};

use crate::client::cache_dir;
use crate::contents::Value;
use crate::mounted::{Client, FILE, world_with};
use crate::wire::{Cut, Dialer, Line};
use crate::world::Road;

/// The lease was renewed any time before: so many times are tried, with this between them.
pub(crate) const AGES: u64 = 25;
pub(crate) const AGE_STEP: Duration = Duration::from_millis(400);

/// By how many parts in a million each clock may be wrong.
pub(crate) fn most() -> i32 {
    let LeaseTerms { term, margin } = LeaseTerms::default();
    (margin.as_micros() * 1_000_000 / term.as_micros()) as i32
}

/// A client whose clock is slow is cut off from a server whose clock is fast, each by so many parts in a million. As soon
/// as a write by another has waited for its lease and returned: whether what is read here is what was there before.
/// `age` is how long the lease is then held.
pub(crate) async fn is_old_after_a_write(drift: i32, age: Duration) -> bool {
    let clocks = |drift| Clocks { drift, jumps: false };
    let world = world_with(clocks(drift)).await;
    let line = Line::new(false);
    let dialer = Dialer { road: Road::new(&world, Weather::default(), 2), line: line.clone() };
    let slow = SimRuntime::with_clocks(2, clocks(-drift));
    let a = Client::mount_over(cache_dir().unwrap(), Arc::new(dialer), slow).await;
    let b = Client::mount(&world, Weather::default(), 3).await;
    let (before, after) = (Value::new(1, 100), Value::new(2, 200));
    b.write(before).await;
    sleep(age).await;
    assert_eq!(a.read(FILE).await, before);
    line.cut(Cut::Both);
    b.write(after).await;
    // Who has no lease asks the server, and gets no answer.
    match timeout(Duration::from_secs(1), a.read(FILE)).await {
        Ok(seen) => {
            assert_eq!(seen, before);
            true
        }
        Err(_) => false,
    }
}

#[test]
fn clocks_may_be_as_far_apart_as_leases_allow_and_no_further() {
    let ages = || (0..AGES as u32).map(|step| AGE_STEP * step);
    let old = |drift| ages().filter(|age| in_virtual_time(is_old_after_a_write(drift, *age))).count();
    assert_eq!(old(most()), 0, "an old version was shown after a change had returned");
    assert!(old(2 * most()) > 0, "leases that end too late go unnoticed");
}
