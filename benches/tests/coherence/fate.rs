//! What befalls a world: clients are cut off, stopped and killed, and the server is killed.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use larder_protocol::handshake::LeaseTerms;
use rand::Rng;
use rand::rngs::SmallRng;
use tokio::time::sleep;

use crate::client::{Host, Kill};
use crate::wire::Cut;
use crate::world::World;

/// How long the server made changes wait.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Waits {
    pub(crate) longest: Duration,
    pub(crate) waited: u64,
    pub(crate) broken: u64,
    pub(crate) lapsed: u64,
}

/// What befell a world.
#[derive(Default)]
pub(crate) struct Fate {
    pub(crate) partitions: AtomicU64,
    pub(crate) stops: AtomicU64,
    down: AtomicBool,
    waits: Mutex<Waits>,
}

/// Mostly short, now and then up to three terms of a lease.
fn a_while(random: &mut SmallRng) -> Duration {
    let long = LeaseTerms::default().kept() * 3;
    let most = [Duration::from_secs(1), Duration::from_secs(5), long][random.random_range(0..3)];
    most.mul_f64(random.random())
}

impl Fate {
    /// The server's own count of this, which ends with its process.
    pub(crate) fn note(&self, world: &World) {
        let stats = world.server().stats().promises;
        let mut waits = self.waits.lock().unwrap();
        waits.longest = waits.longest.max(Duration::from_micros(stats.longest_wait_us));
        waits.waited += stats.waited;
        waits.broken += stats.broken;
        waits.lapsed += stats.lapsed;
    }

    pub(crate) fn waits(&self) -> Waits {
        *self.waits.lock().unwrap()
    }

    /// Kills the server now and then.
    pub(crate) async fn strike_server(self: Arc<Fate>, world: Arc<World>, mut random: SmallRng) {
        loop {
            sleep(Duration::from_secs(40).mul_f64(random.random())).await;
            self.note(&world);
            self.down.store(true, Ordering::Relaxed);
            world.crash();
            let down = if random.random_bool(0.2) { 20_000 } else { 1000 };
            sleep(Duration::from_millis(random.random_range(0..down))).await;
            world.start();
            self.down.store(false, Ordering::Relaxed);
        }
    }

    /// Does things to a client.
    pub(crate) async fn strike_client(self: Arc<Fate>, host: Arc<Host>, mut random: SmallRng) {
        loop {
            sleep(Duration::from_secs(30).mul_f64(random.random())).await;
            match random.random_range(0..3) {
                0 => {
                    let cut = [Cut::Both, Cut::Both, Cut::ToServer, Cut::FromServer][random.random_range(0..4)];
                    self.partitions.fetch_add(1, Ordering::Relaxed);
                    host.line.cut(cut);
                    sleep(a_while(&mut random)).await;
                    host.line.mend(random.random());
                }
                1 => {
                    self.stops.fetch_add(1, Ordering::Relaxed);
                    host.gate.stop();
                    sleep(a_while(&mut random)).await;
                    host.gate.go_on();
                }
                _ => {
                    let down = a_while(&mut random);
                    host.kill(Kill { down, machine: random.random() });
                    sleep(down).await;
                }
            }
        }
    }

    /// Everything works again, after all of this was ended at any moment.
    pub(crate) fn mend(&self, world: &World, hosts: &[Arc<Host>]) {
        if self.down.swap(false, Ordering::Relaxed) {
            world.start();
        }
        for host in hosts {
            host.line.mend(false);
            host.gate.go_on();
        }
    }
}
