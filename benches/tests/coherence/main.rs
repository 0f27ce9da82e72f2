//! Strict coherence, checked by history: three `afs` clients on the same few files and names, in virtual time, with a
//! network that loses, repeats, delays and reorders messages, clients that are cut off, stopped or killed, and a server
//! that is killed. What every operation showed is given to a linearizability checker (`wgl.rs`), which knows nothing of
//! callbacks and leases: there must be one order of all operations, in which each takes its place between its beginning
//! and its end, that explains every result.
//!
//! - A file is a register. To open and read it is one read, which takes its place during the *open*; what is read
//!   through the handle later must be the same contents, however late. To write and close is one write, which takes its
//!   place during the flush. A write that was under way when its client died may have happened or not, at any later
//!   time, with as much as was written. To ask for the size is a read too.
//! - Directories are maps from names to objects.
//! - With `prompt` coherence what shows the past may take its place earlier, by as long as a lease is kept.
//!
//! `LARDER_TEST_SIZE` says how many worlds there are (20, 500 or 1,000). A failure names its seed, which `LARDER_SEED`
//! repeats exactly; `LARDER_SEEDS` says how many worlds to run from that seed on.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed call fails the test")]

mod client;
#[path = "../replay/clock.rs"]
mod clock;
mod contents;
mod crossing;
mod drift;
mod fate;
mod gate;
mod history;
#[path = "../replay/machine.rs"]
#[allow(dead_code, reason = "the other test needs more of it")]
mod machine;
mod mounted;
mod moving;
mod names;
#[cfg(feature = "failpoints")]
mod planted;
mod spec;
mod squatter;
mod summary;
mod versions;
mod wgl;
mod wire;
mod worker;
#[path = "../replay/world.rs"]
#[allow(dead_code, reason = "the other test needs more of it")]
mod world;

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use larder_benches::digest::Digest;
use larder_benches::seeds::{self, Worlds};
use larder_benches::size::Size;
use larder_protocol::faults::Weather;
use larder_protocol::handshake::LeaseTerms;
use larder_protocol::service::file::Op;
use larder_server::volume::Durability;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;

use client::{Host, Plan, Setup, Totals};
use fate::Fate;
use history::History;
use machine::Disk;
use summary::{Summary, assert_eventful, report};
use world::World;

/// Clients of a world.
const CLIENTS: usize = 3;
/// Files that are registers.
const FILES: usize = 8;
/// Directories.
const DIRS: [&str; 3] = ["d0", "d1", "d2"];
/// The first is by itself; between the other two names are moved.
const GROUPS: [usize; 3] = [0, 1, 1];
/// What programs do in a short world, each thing a few client operations.
const SHORT: i64 = 100;
/// What they do in a long one.
const LONG: i64 = 1000;
/// How many worlds are long: enough for half of what is done.
const OFTEN: f64 = 0.1;
/// What the ticks of virtual time may add to a wait.
const SLACK: Duration = Duration::from_millis(20);

/// How a world is set up.
#[derive(Clone, Copy, Debug)]
struct Rules {
    /// Changes wait until others have given up what they cached.
    strict: bool,
    /// Messages are lost and connections cut, and what else can happen.
    faults: bool,
    /// Acknowledgements are forged, and breaks never reach a client.
    lies: bool,
    /// Many files are large.
    large: bool,
}

/// What strict clients have to cope with.
const STRICT: Rules = Rules { strict: true, faults: true, lies: false, large: false };

fn branch(random: &mut SmallRng) -> SmallRng {
    SmallRng::seed_from_u64(random.random())
}

fn weather(random: &mut SmallRng) -> Weather {
    if random.random_bool(0.2) {
        return Weather::default();
    }
    // Mostly short delays, now and then some that outlast the client's patience.
    let max_delay = Duration::from_millis(1 << random.random_range(0..12));
    Weather {
        lose: random.random_range(0..20),
        repeat: random.random_range(0..100),
        delay: random.random_range(0..400),
        cut: random.random_range(0..10),
        max_delay,
    }
}

fn disk(random: &mut SmallRng) -> Disk {
    if random.random_bool(0.5) {
        return Disk::Instant;
    }
    let max = Duration::from_micros(1 << random.random_range(4..16));
    Disk::Random { slow: random.random_range(0..1000), max }
}

/// Runs a world to its end, and checks its history.
async fn world_of(seed: u64, rules: Rules) -> Summary {
    let mut random = SmallRng::seed_from_u64(seed);
    let random = &mut random;
    let durability = if random.random() { Durability::Power } else { Durability::Process };
    let world = World::with_clocks(random.random(), durability, disk(random), world::clocks(random));
    let root = world.volume().root();
    let mut objects = vec![root];
    for file in 0..FILES {
        objects.push(world.file(root, &worker::file_name(file)).await);
    }
    for dir in DIRS {
        objects.push(world.make(Op::Mkdir { dir: root, name: world::name(dir), mode: 0o777, umask: 0 }).await);
    }
    let plan = Arc::new(Plan {
        world: world.clone(),
        history: History::new(FILES, &GROUPS),
        left: AtomicI64::new(if random.random_bool(OFTEN) { LONG } else { SHORT }),
        requests: AtomicU64::new(0),
        large: random.random_bool(0.05) || rules.large,
        errors: Mutex::default(),
        stale: AtomicU64::new(0),
    });
    let began = tokio::time::Instant::now();
    let fate = Arc::new(Fate::default());
    let (mut hosts, mut lives, mut strikes) = (Vec::new(), JoinSet::new(), JoinSet::new());
    for number in 0..CLIENTS {
        let setup = Setup {
            weather: if rules.faults { weather(random) } else { Weather::default() },
            timeo: Duration::from_millis([200, 1000, 3000][random.random_range(0..3)]),
            disk: disk(random),
            clocks: world::clocks(random),
            strict: rules.strict,
            lies: rules.lies,
        };
        let (host, killed) = Host::new(number, &plan, &setup, branch(random));
        let life = host.clone().live(killed);
        lives.spawn(async move { (number, life.await) });
        if rules.faults {
            strikes.spawn(fate.clone().strike_client(host.clone(), branch(random)));
        }
        hosts.push(host);
    }
    let squatter = rules.faults && random.random_bool(0.3);
    if squatter {
        strikes.spawn(squatter::squat(world.clone(), objects, branch(random)));
    }
    if rules.faults {
        strikes.spawn(fate.clone().strike_server(world.clone(), branch(random)));
    }
    let lives = tokio::select! {
        lives = client::all(lives) => lives,
        Some(Err(error)) = strikes.join_next() => std::panic::resume_unwind(error.into_panic()),
    };
    strikes.shutdown().await;
    fate.mend(&world, &hosts);
    // What is still in the network arrives, or does not; leases end.
    tokio::time::sleep(Duration::from_secs(60)).await;
    let mut lives = lives;
    lives.sort_by_key(|(number, _)| *number);
    for (number, vfs) in lives {
        hosts[number].finish(vfs).await;
    }
    fate.note(&world);

    let mut totals = Totals::default();
    for host in &hosts {
        let more = host.totals();
        totals.hits += more.hits;
        totals.fetches += more.fetches;
        totals.stores += more.stores;
        totals.breaks += more.breaks;
        totals.voids += more.voids;
        totals.restarts += more.restarts;
        totals.conflicts += more.conflicts;
        totals.crashes += more.crashes;
    }
    let waits = fate.waits();
    let kept = LeaseTerms::default().kept();
    assert!(waits.longest <= kept + SLACK, "a change waited for {:?}, longer than a lease is kept", waits.longest);
    let strictly = plan.history.check(Duration::ZERO);
    let late = strictly.is_err();
    let verdict = if rules.strict { strictly } else { plan.history.check(kept + SLACK) };
    let mut summary = Summary {
        seed,
        digest: 0,
        requests: plan.requests.load(Ordering::Relaxed),
        seconds: began.elapsed().as_secs_f64(),
        server_crashes: world.crashes(),
        partitions: fate.partitions.load(Ordering::Relaxed),
        stops: fate.stops.load(Ordering::Relaxed),
        squatters: u64::from(squatter),
        forged: hosts.iter().map(|host| host.line.forged()).sum(),
        stale: plan.stale.load(Ordering::Relaxed),
        errors: std::mem::take(&mut plan.errors.lock().unwrap()),
        totals,
        waits,
        counts: plan.history.counts(),
        unexplained: verdict.err(),
        late,
    };
    let mut digest = Digest::default();
    digest.note(&summary);
    plan.history.note(&mut digest);
    digest.note(&world.trace());
    hosts.iter().for_each(|host| digest.note(&host.trace()));
    summary.digest = digest.value();
    summary
}

/// Runs a world whose history must have an explanation, and in which no program gets an error: it waits.
async fn good_world_of(seed: u64, rules: Rules) -> Summary {
    let summary = world_of(seed, rules).await;
    if let Some(unexplained) = &summary.unexplained {
        panic!("no order of the operations explains what was seen of\n{unexplained}");
    }
    assert!(summary.errors.is_empty(), "programs got errors: {:?}", summary.errors);
    summary
}

/// How many worlds. The full figure comes to 100,000 things done, and twice as many.
fn worlds() -> u64 {
    Size::get().pick(20, 300, 1000) as u64
}

/// Worlds of a test of this target.
fn in_all(test: &str, count: u64) -> Worlds<'_> {
    Worlds { target: "coherence", test, count, once_failed: &[] }
}

#[test]
fn strict_clients_see_one_order_of_everything() {
    let rules = STRICT;
    let test = "strict_clients_see_one_order_of_everything";
    // A program saw the end of its own process.
    let worlds = Worlds { once_failed: &[377_204_318], ..in_all(test, worlds()) };
    let ran = seeds::run(worlds, |seed| good_world_of(seed, rules));
    report(&ran);
    let worlds = ran.worlds;
    if worlds.len() >= 20 {
        assert_eventful(&worlds);
        assert!(worlds.iter().any(|world| world.squatters > 0));
        let longest = worlds.iter().map(|world| world.waits.longest).max().unwrap_or_default();
        assert!(longest > LeaseTerms::default().counted(), "no change had to wait for a lease to end");
    }
}

#[test]
fn one_seed_gives_one_world() {
    let rules = STRICT;
    let worlds = in_all("one_seed_gives_one_world", Size::get().pick(10, 50, 500) as u64);
    seeds::run_twice(worlds, |seed| good_world_of(seed, rules));
}

#[test]
fn prompt_clients_see_nothing_older_than_a_lease() {
    let rules = Rules { strict: false, ..STRICT };
    let test = "prompt_clients_see_nothing_older_than_a_lease";
    let worlds = seeds::run(in_all(test, worlds() / 10), |seed| good_world_of(seed, rules));
    report(&worlds);
    let worlds = worlds.worlds;
    let late = worlds.iter().filter(|world| world.late).count();
    println!("in {late} of these worlds something was seen that strict clients may not see");
    if worlds.len() >= 5 {
        assert!(late > 0, "nothing was ever late");
        assert!(worlds.iter().all(|world| world.waits.waited == 0), "a prompt client waited");
    }
}

#[test]
fn without_faults_all_is_in_order() {
    let rules = Rules { faults: false, ..STRICT };
    let worlds = seeds::run(in_all("without_faults_all_is_in_order", 10), |seed| good_world_of(seed, rules));
    report(&worlds);
    let worlds = worlds.worlds;
    let longest = worlds.iter().map(|world| world.waits.longest).max().unwrap_or_default();
    assert!(longest < Duration::from_secs(1), "a change waited for {longest:?}, and nobody was away");
}

#[test]
fn a_break_that_is_skipped_is_found() {
    let rules = Rules { faults: false, lies: true, ..STRICT };
    let worlds = seeds::run(in_all("a_break_that_is_skipped_is_found", 20), |seed| world_of(seed, rules));
    report(&worlds);
    let worlds = worlds.worlds;
    let forged = worlds.iter().map(|world| world.forged).sum::<u64>();
    let found = worlds.iter().filter(|world| world.unexplained.is_some()).count();
    println!("{forged} acknowledgements forged, found in {found} of {} worlds", worlds.len());
    assert!(forged > 0 && found > 0, "breaks that are skipped go unnoticed");
}
