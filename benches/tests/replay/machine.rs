//! The server's machine: it can be slow, and it can die with everything that runs on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;

use larder_protocol::attr::Timestamp;
use larder_protocol::runtime::{BootTime, BoxFuture, Runtime, SimRuntime};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::sync::Mutex;
use tokio::task::AbortHandle;

/// How long disk accesses take.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Disk {
    /// No time.
    Instant,
    /// Of 1,000 accesses so many take up to that long, and may overtake each other.
    Random { slow: u32, max: Duration },
    /// Always this long.
    Slow(Duration),
}

/// A machine that runs one server process.
pub(crate) struct Machine {
    /// The clock and the randomness, which outlive the process.
    sim: Arc<SimRuntime>,
    disk: Disk,
    random: Mutex<SmallRng>,
    tasks: Mutex<Vec<AbortHandle>>,
    dead: AtomicBool,
}

impl Machine {
    pub(crate) fn new(sim: Arc<SimRuntime>, disk: Disk) -> Arc<Machine> {
        let random = SmallRng::seed_from_u64(sim.random());
        Arc::new(Machine {
            sim,
            disk,
            random: Mutex::new(random),
            tasks: Mutex::default(),
            dead: AtomicBool::new(false),
        })
    }

    /// Ends all that runs here, as kill -9 does: nothing is polled any more, and no disk access begins.
    pub(crate) fn kill(&self) {
        self.dead.store(true, Ordering::Relaxed);
        self.tasks.lock().unwrap().drain(..).for_each(|task| task.abort());
    }

    fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }
}

impl Runtime for Machine {
    fn boottime(&self) -> BootTime {
        self.sim.boottime()
    }

    fn wall(&self) -> Timestamp {
        self.sim.wall()
    }

    fn random(&self) -> u64 {
        self.sim.random()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<()> {
        self.sim.sleep(duration)
    }

    fn spawn(&self, task: BoxFuture<()>) {
        if self.is_dead() {
            return;
        }
        let handle = tokio::spawn(task).abort_handle();
        let mut tasks = self.tasks.lock().unwrap();
        if tasks.len() == tasks.capacity() {
            tasks.retain(|task| !task.is_finished());
        }
        tasks.push(handle);
    }

    fn start(&self, mut task: BoxFuture<()>) {
        if !self.is_dead() && task.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            self.spawn(task);
        }
    }

    fn spawn_at(&self, _place: usize, task: BoxFuture<()>) {
        self.spawn(task);
    }

    fn spawn_blocking(&self, work: Box<dyn FnOnce() + Send>) {
        if self.is_dead() {
            return;
        }
        let takes = match self.disk {
            Disk::Instant => None,
            Disk::Random { slow, max } => {
                let mut random = self.random.lock().unwrap();
                let slow = random.random_range(0..1000) < slow;
                slow.then(|| Duration::from_micros(random.random_range(0..=max.as_micros() as u64)))
            }
            Disk::Slow(takes) => Some(takes),
        };
        match takes {
            None => work(),
            Some(takes) => self.spawn(Box::pin(async move {
                tokio::time::sleep(takes).await;
                work();
            })),
        }
    }
}
