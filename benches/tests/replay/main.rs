//! Exactly once, in any weather: real clients and a real server in virtual time, with a network that loses, repeats,
//! delays and reorders messages and cuts connections, and a server that is killed at random moments.
//!
//! `LARDER_SEEDS` says how many worlds to run and `LARDER_SEED` which one is the first; a failure names its seed.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed call fails the test")]

mod clock;
mod fencing;
mod handles;
mod history;
mod machine;
mod model;
mod mounts;
mod orphans;
#[cfg(feature = "failpoints")]
mod planted;
mod races;
mod raw;
mod reading;
mod refusals;
mod registers;
mod retries;
mod tree;
mod unsure;
mod worker;
mod world;

use larder_benches::digest::{Digest, Digested};
use larder_benches::seeds::{self, Worlds};
use larder_benches::size::Size;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use larder_client::rpc::Patience;
use larder_client::vfs::Mode;
use larder_protocol::faults::Weather;
use larder_server::volume::Durability;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;

use history::History;
use machine::Disk;
use model::Model;
use registers::Fate;
use worker::Worker;
use world::World;

/// What befell a world, so that a run in which nothing happened does not pass for a test.
#[derive(Debug, Default)]
struct Summary {
    /// Of all that happened.
    digest: u64,
    crashes: u64,
    replayed: u64,
    retries: u64,
    reconnects: u64,
    successes: usize,
    failures: usize,
    races: usize,
    unknown: usize,
}

fn weather(random: &mut SmallRng, repeat: bool) -> Weather {
    if random.random_bool(0.1) {
        return Weather::default();
    }
    // Mostly short delays, now and then some that outlast the client's patience.
    let max_delay = Duration::from_millis(1 << random.random_range(0..12));
    Weather {
        lose: random.random_range(0..30),
        repeat: if repeat { random.random_range(0..150) } else { 0 },
        delay: random.random_range(0..400),
        cut: random.random_range(0..20),
        max_delay,
    }
}

fn timeo(random: &mut SmallRng) -> Duration {
    Duration::from_millis([200, 1000, 5000][random.random_range(0..3)])
}

fn branch(random: &mut SmallRng) -> SmallRng {
    SmallRng::seed_from_u64(random.random())
}

/// Waits for all tasks; a panic of one is the test's.
async fn all<T: 'static>(mut tasks: JoinSet<T>) -> Vec<T> {
    let mut results = Vec::new();
    while let Some(result) = tasks.join_next().await {
        results.push(result.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())));
    }
    results
}

#[test]
fn each_operation_happens_exactly_once_in_any_weather() {
    let test = "each_operation_happens_exactly_once_in_any_weather";
    let count = Size::get().pick(50, 500, 10_000) as u64;
    let ran = seeds::run(Worlds { target: "replay", test, count, once_failed: &[] }, world_of);
    let worlds = ran.worlds;
    let total = |of: fn(&Summary) -> u64| worlds.iter().map(of).sum::<u64>();
    println!(
        "{} worlds in {:.1} s of one processor: {} crashes, {} reconnects, {} requests repeated, {} mutations answered from slots, \
         {} shared operations went well and {} did not, {} races, {} appends of unknown fate",
        worlds.len(),
        ran.cpu.as_secs_f64(),
        total(|world| world.crashes),
        total(|world| world.reconnects),
        total(|world| world.retries),
        total(|world| world.replayed),
        total(|world| world.successes as u64),
        total(|world| world.failures as u64),
        total(|world| world.races as u64),
        total(|world| world.unknown as u64),
    );
    if worlds.len() >= 50 {
        assert!(total(|world| world.crashes) > 0 && total(|world| world.replayed) > 0);
        assert!(total(|world| world.retries) > 0 && total(|world| world.unknown as u64) > 0);
    }
}

#[test]
fn one_seed_gives_one_world() {
    let count = Size::get().pick(10, 50, 500) as u64;
    seeds::run_twice(Worlds { target: "replay", test: "one_seed_gives_one_world", count, once_failed: &[] }, world_of);
}

impl Digested for Summary {
    fn digest(&self) -> u64 {
        self.digest
    }
}

/// Kills the server now and then.
async fn fate(world: Arc<World>, mut random: SmallRng) {
    for _ in 0..random.random_range(0..4) {
        tokio::time::sleep(Duration::from_micros(random.random_range(0..3_000_000))).await;
        world.crash();
        tokio::time::sleep(Duration::from_micros(random.random_range(0..1_000_000))).await;
        world.start();
    }
}

async fn world_of(seed: u64) -> Summary {
    let mut random = SmallRng::seed_from_u64(seed);
    let random = &mut random;
    let durability = if random.random() { Durability::Power } else { Durability::Process };
    let disk = match random.random_range(0..3) {
        0 => Disk::Instant,
        _ => Disk::Random {
            slow: random.random_range(0..1000),
            max: Duration::from_micros(1 << random.random_range(4..16)),
        },
    };
    let world = World::with_clocks(random.random(), durability, disk, world::clocks(random));
    let root = world.volume().root();
    let shared = world.mkdir(root, "shared").await;
    let log = world.file(root, "log").await;
    let register = world.file(root, "register").await;
    world.mkdir(root, "races").await;
    const OWN: [&str; 2] = ["own-0", "own-1"];
    let mut own = Vec::new();
    for dir in OWN {
        own.push(world.mkdir(root, dir).await);
    }
    let mut model = Model::new(&tree::getattr(&world.volume(), shared).await);

    // Operations on shared names, two at a time from each client.
    let history = History::new(shared);
    let mut clients = Vec::new();
    let mut actors = JoinSet::new();
    actors.spawn(fate(world.clone(), branch(random)));
    for _ in 0..2 {
        let client = world::connect(&world, weather(random, true), timeo(random), Patience::Hard, random).await;
        for _ in 0..2 {
            actors.spawn(history::act(client.clone(), history.clone(), branch(random), 12));
        }
        clients.push(client);
    }
    // A client that counts up, and one that appends and gives up. A write in place that comes twice on one connection
    // may undo a later one; no transport may do that, so nothing is repeated here.
    let counter = world::connect(&world, weather(random, false), timeo(random), Patience::Hard, random).await;
    let mut counting = JoinSet::new();
    counting.spawn(registers::count_up(counter.clone(), register, branch(random), 10));
    let patience = Patience::Soft(Duration::from_millis(1 << random.random_range(4..11)));
    let impatient = world::connect(&world, weather(random, true), timeo(random), patience, random).await;
    clients.extend([counter, impatient.clone()]);
    let mut appending = JoinSet::new();
    let impatience = registers::append_impatiently(impatient, log, 9, branch(random), 8);
    appending.spawn(async move { (9, impatience.await) });

    // Mounts, each in a directory of its own, then together.
    let mut mounts = Vec::new();
    let mut workers = JoinSet::new();
    for (number, dir) in OWN.into_iter().enumerate() {
        let mode = if random.random() { Mode::Nfs } else { Mode::Direct };
        let vfs = mounts::mount(&world, weather(random, false), mode, timeo(random), random).await;
        let (append, work) = (branch(random), branch(random));
        appending.spawn({
            let vfs = vfs.clone();
            async move { (number as u8, mounts::append(vfs, "log", number as u8, append, 8).await) }
        });
        workers.spawn({
            let vfs = vfs.clone();
            async move { (number, Worker::new(vfs, work, dir).await.work(20).await) }
        });
        mounts.push(vfs);
    }
    let races = races::run(mounts.clone(), "races", branch(random), 4).await;
    let workers = all(workers).await;
    let fates: BTreeMap<u8, Vec<Fate>> = all(appending).await.into_iter().collect();
    let last = all(counting).await[0];
    all(actors).await;

    // Close-to-open: what one mount closed, the others see.
    for (number, worker) in &workers {
        worker.check_from(&mounts[1 - number], OWN[*number]).await;
    }
    let mut summary = Summary {
        races,
        unknown: fates.values().flatten().filter(|fate| **fate == Fate::Unknown).count(),
        ..Summary::default()
    };
    join_all(mounts.iter().map(|vfs| vfs.shutdown())).await;
    for client in &clients {
        summary.retries += client.retries();
        summary.reconnects += client.shared().reconnects.load(std::sync::atomic::Ordering::Relaxed);
        client.shared().aborted.cancel();
    }
    // What is still in the network arrives, or does not.
    tokio::time::sleep(Duration::from_secs(60)).await;

    let volume = world.volume();
    {
        let history = history.lock().unwrap();
        history.check(&mut model);
        (summary.successes, summary.failures) = history.counts();
    }
    tree::assert_same(&tree::of_model(&model), &tree::read(&volume, shared).await, "the shared directory");
    for (number, worker) in &workers {
        worker.check(&tree::read(&volume, own[*number]).await);
    }
    registers::check_log(&registers::contents(&volume, log).await, &fates);
    let register = registers::contents(&volume, register).await;
    assert_eq!(register[..8], last.to_le_bytes());

    // All of that was acknowledged, so it outlives the server, and a clean end changes nothing.
    let before = tree::read(&volume, root).await;
    drop(volume);
    world.crash();
    world.start();
    tree::assert_same(&before, &tree::read(&world.volume(), root).await, "after a crash");
    world.shut_down().await;
    world.start();
    tree::assert_same(&before, &tree::read(&world.volume(), root).await, "after a clean end");
    summary.crashes = world.crashes() - 1;
    summary.replayed = world.replayed();
    let mut digest = Digest::default();
    digest.note(&summary);
    digest.note(&fates);
    digest.note(&before);
    digest.note(&*history.lock().unwrap());
    digest.note(&world.trace());
    summary.digest = digest.value();
    summary
}
