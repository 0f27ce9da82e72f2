//! The real machine.
//!
//! Tasks run on a few threads, each with an executor of its own. What is spawned stays where it was; what is started
//! goes on where it is woken. So what a connection brings in is carried out on the connection's thread. Executors that
//! share their tasks wake each other to look for work with every request that arrives, and where a request is quick that
//! is most of its time.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rand::Rng;
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::{Builder, Handle};
use tokio::sync::watch;

use super::busy_poll::{self, BusyPoll};
use super::{BootTime, BoxFuture, Runtime, start};
use crate::attr::Timestamp;
use crate::failpoint;

/// How often an executor looks at the clock at least. A thread that sets a timer on it wakes it only if it would sleep
/// longer; every request sets one, for its deadline.
const TICK: Duration = Duration::from_secs(1);

/// Tasks that an executor runs before it looks for what sockets have brought: so many readings of a mebibyte may a
/// lookup have to wait for.
const POLLS: u32 = 4;

/// The real machine: its clocks, its randomness, and tokio's executors.
#[derive(Debug)]
pub struct SystemRuntime {
    executors: Vec<Handle>,
    next: AtomicUsize,
}

/// Threads that run tasks, until this is dropped.
#[derive(Debug)]
pub struct Executors {
    stop: watch::Sender<()>,
    /// Closed once all threads are done.
    done: mpsc::Receiver<()>,
}

impl SystemRuntime {
    /// Uses this executor for all.
    pub fn new(handle: Handle) -> SystemRuntime {
        SystemRuntime { executors: vec![handle], next: AtomicUsize::new(0) }
    }

    /// Starts `count` threads (one at least) called `name`, which look out for requests as `poll` says.
    ///
    /// # Errors
    /// The operating system's.
    pub fn start(name: &str, count: usize, poll: BusyPoll) -> io::Result<(SystemRuntime, Executors)> {
        let (stop, stopped) = watch::channel(());
        let (running, done) = mpsc::channel();
        let mut executors = Vec::new();
        for number in 0..count.max(1) {
            let executor = Builder::new_current_thread()
                .thread_name(format!("{name}-io"))
                .event_interval(POLLS)
                .enable_all()
                .build()?;
            executors.push(executor.handle().clone());
            let (mut stopped, running, poll) = (stopped.clone(), running.clone(), poll.clone());
            thread::Builder::new().name(format!("{name}-{number}")).spawn(move || {
                start::set_executor();
                executor.block_on(async {
                    drop(tokio::spawn(busy_poll::on_this_thread(poll)));
                    // Changed, or closed: the end either way.
                    while tokio::time::timeout(TICK, stopped.changed()).await.is_err() {}
                });
                // Whatever still runs was given its time by then.
                executor.shutdown_background();
                drop(running);
            })?;
        }
        Ok((SystemRuntime { executors, next: AtomicUsize::new(0) }, Executors { stop, done }))
    }

    /// The executor of a place.
    pub fn executor(&self, place: usize) -> &Handle {
        &self.executors[place % self.executors.len()]
    }

    /// The executor of the calling thread, or any.
    fn here(&self) -> Handle {
        start::place().unwrap_or_else(|| self.executor(self.next.fetch_add(1, Ordering::Relaxed)).clone())
    }
}

impl Executors {
    /// Ends the threads. What was spawned is dropped at its next wait, what was started when it is woken. Threads whose
    /// task does not come to a wait within `patience` are left behind, and so is blocking work.
    pub fn stop(self, patience: Duration) {
        drop(self.stop);
        let until = Instant::now() + patience;
        // Nothing is ever sent: this ends when the last thread does, or with the time.
        while let Ok(()) = self.done.recv_timeout(until.saturating_duration_since(Instant::now())) {}
    }
}

impl Runtime for SystemRuntime {
    fn boottime(&self) -> BootTime {
        let now = clock_gettime(ClockId::Boottime);
        Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
    }

    fn wall(&self) -> Timestamp {
        let now = clock_gettime(ClockId::Realtime);
        Timestamp { secs: now.tv_sec + failpoint::wall_clock_is_off_by(), nanos: now.tv_nsec as u32 }
    }

    fn random(&self) -> u64 {
        rand::rng().random()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<()> {
        Box::pin(tokio::time::sleep(duration))
    }

    fn spawn(&self, task: BoxFuture<()>) {
        drop(self.here().spawn(task));
    }

    fn spawn_at(&self, place: usize, task: BoxFuture<()>) {
        drop(self.executor(place).spawn(task));
    }

    fn start(&self, task: BoxFuture<()>) {
        start::start(self.here(), task);
    }

    fn spawn_blocking(&self, work: Box<dyn FnOnce() + Send>) {
        // All on one executor, whose threads for such work they share.
        drop(self.executors[0].spawn_blocking(work));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::oneshot;

    use super::*;
    use crate::runtime::SharedRuntime;

    async fn thread_of(spawn: impl FnOnce(BoxFuture<()>)) -> thread::ThreadId {
        let (tell, told) = oneshot::channel();
        spawn(Box::pin(async move { tell.send(thread::current().id()).unwrap() }));
        told.await.unwrap()
    }

    #[test]
    fn a_place_is_a_thread_and_its_tasks_stay_there() {
        let (runtime, executors) = SystemRuntime::start("test", 2, BusyPoll::none()).unwrap();
        let runtime: SharedRuntime = Arc::new(runtime);
        let (tell, told) = mpsc::channel();
        for place in [0, 1, 2] {
            let (here, tell) = (runtime.clone(), tell.clone());
            runtime.spawn_at(
                place,
                Box::pin(async move {
                    let child = thread_of(|task| here.spawn(task)).await;
                    assert_eq!(child, thread::current().id());
                    tell.send((place, child)).unwrap();
                }),
            );
        }
        let mut threads: Vec<_> = (0..3).map(|_| told.recv_timeout(Duration::from_secs(10)).unwrap()).collect();
        threads.sort_by_key(|(place, _)| *place);
        assert_ne!(threads[0].1, threads[1].1);
        assert_eq!(threads[0].1, threads[2].1);
        executors.stop(Duration::from_secs(10));
    }

    #[test]
    fn stopping_drops_what_waits() {
        let (runtime, executors) = SystemRuntime::start("test", 2, BusyPoll::none()).unwrap();
        let (held, holds) = mpsc::channel::<()>();
        let (begun, begins) = mpsc::channel();
        runtime.spawn_at(
            1,
            Box::pin(async move {
                begun.send(()).unwrap();
                std::future::pending::<()>().await;
                drop(held);
            }),
        );
        begins.recv_timeout(Duration::from_secs(10)).unwrap();
        executors.stop(Duration::from_secs(10));
        assert_eq!(holds.try_recv(), Err(mpsc::TryRecvError::Disconnected));
    }
}
