//! The seam between Larder's code and the machine: clocks, randomness, tasks, blocking work.
//!
//! Server and client take a [`Runtime`] instead of calling the operating system for these, so that the same code runs
//! in production and in a simulation where one seed decides everything.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::oneshot;

use crate::attr::Timestamp;

/// A boxed future that owns what it needs.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send + 'static>>;

/// A moment on the clock that leases and caches are measured by: time since an arbitrary start, going on while the
/// machine sleeps (`CLOCK_BOOTTIME`).
pub type BootTime = Duration;

/// What Larder asks of the machine besides files and sockets.
pub trait Runtime: Send + Sync + 'static {
    /// Now, for measuring; never goes back.
    fn boottime(&self) -> BootTime;
    /// Now, by the calendar; may jump.
    fn wall(&self) -> Timestamp;
    /// A random number.
    fn random(&self) -> u64;
    /// Ends after `duration`.
    fn sleep(&self, duration: Duration) -> BoxFuture<()>;
    /// Runs a task on its own.
    fn spawn(&self, task: BoxFuture<()>);
    /// Runs work that may block for long (disk I/O) where it holds up no other task.
    fn spawn_blocking(&self, work: Box<dyn FnOnce() + Send>);
}

/// A runtime that is shared by all parts of a process.
pub type SharedRuntime = Arc<dyn Runtime>;

/// Conveniences over [`Runtime`] that need generics.
pub trait RuntimeExt {
    /// Runs blocking work and waits for its result; `None` if the work panicked.
    fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = Option<T>> + Send;

    /// Runs a task that goes on even if nobody waits for its result any more; `None` if the task panicked.
    ///
    /// tarpc drops a handler when its deadline passes or its client is lost. What must not be cut in two runs here.
    fn detached<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> impl Future<Output = Option<T>> + Send;
}

impl RuntimeExt for dyn Runtime {
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (done, result) = oneshot::channel();
        self.spawn_blocking(Box::new(move || {
            // The waiter may be gone; the work was done all the same.
            let _ = done.send(work());
        }));
        result.await.ok()
    }

    async fn detached<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> Option<T> {
        let (done, result) = oneshot::channel();
        self.spawn(Box::pin(async move {
            let _ = done.send(task.await);
        }));
        result.await.ok()
    }
}

/// The real machine, with tokio's executor.
#[derive(Clone, Debug)]
pub struct SystemRuntime {
    handle: tokio::runtime::Handle,
}

impl SystemRuntime {
    /// Uses this executor.
    pub fn new(handle: tokio::runtime::Handle) -> SystemRuntime {
        SystemRuntime { handle }
    }
}

impl Runtime for SystemRuntime {
    fn boottime(&self) -> BootTime {
        let now = clock_gettime(ClockId::Boottime);
        Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
    }

    fn wall(&self) -> Timestamp {
        let now = clock_gettime(ClockId::Realtime);
        Timestamp { secs: now.tv_sec, nanos: now.tv_nsec as u32 }
    }

    fn random(&self) -> u64 {
        rand::rng().random()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<()> {
        Box::pin(tokio::time::sleep(duration))
    }

    fn spawn(&self, task: BoxFuture<()>) {
        self.handle.spawn(task);
    }

    fn spawn_blocking(&self, work: Box<dyn FnOnce() + Send>) {
        self.handle.spawn_blocking(work);
    }
}

/// A machine in virtual time: the clock is tokio's (paused, it leaps when all tasks wait), randomness comes from a
/// seed, and blocking work is done on the spot. Meant for a current-thread executor built with `start_paused`.
#[derive(Debug)]
pub struct SimRuntime {
    start: tokio::time::Instant,
    wall_at_start: i64,
    random: Mutex<SmallRng>,
}

impl SimRuntime {
    /// A machine whose every random number follows from `seed`. Call it inside the executor.
    pub fn new(seed: u64) -> SimRuntime {
        SimRuntime {
            start: tokio::time::Instant::now(),
            wall_at_start: 1_700_000_000,
            random: Mutex::new(SmallRng::seed_from_u64(seed)),
        }
    }
}

impl Runtime for SimRuntime {
    fn boottime(&self) -> BootTime {
        self.start.elapsed()
    }

    fn wall(&self) -> Timestamp {
        let elapsed = self.start.elapsed();
        Timestamp { secs: self.wall_at_start + elapsed.as_secs() as i64, nanos: elapsed.subsec_nanos() }
    }

    fn random(&self) -> u64 {
        self.random.lock().random()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<()> {
        Box::pin(tokio::time::sleep(duration))
    }

    fn spawn(&self, task: BoxFuture<()>) {
        tokio::spawn(task);
    }

    fn spawn_blocking(&self, work: Box<dyn FnOnce() + Send>) {
        work();
    }
}
