//! The seam between Larder's code and the machine: clocks, randomness, tasks, blocking work.
//!
//! Server and client take a [`Runtime`] instead of calling the operating system for these, so that the same code runs
//! in production and in a simulation where one seed decides everything.

mod busy_poll;
mod sim;
mod start;
mod system;

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::oneshot;

pub use self::busy_poll::{BusyPoll, request_came};
pub use self::sim::{Clocks, SimRuntime};
pub use self::start::serving;
pub use self::system::{Executors, SystemRuntime};
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
    /// Runs a task on its own, beside the one that calls where it can be.
    fn spawn(&self, task: BoxFuture<()>);
    /// As [`spawn`](Runtime::spawn), with other tasks of the same place: what is spawned there wakes no other thread.
    fn spawn_at(&self, place: usize, task: BoxFuture<()>);
    /// Runs a task here and now as far as it gets without waiting, and from there on its own. What need not wait is so
    /// done without another thread having to wake up. A panic ends the task alone.
    fn start(&self, mut task: BoxFuture<()>) {
        // The first poll as a task registers that task's waker in place of the one that does nothing.
        let first = AssertUnwindSafe(|| task.as_mut().poll(&mut Context::from_waker(Waker::noop())));
        match catch_unwind(first) {
            Ok(Poll::Ready(())) => {}
            Ok(Poll::Pending) => self.spawn(task),
            Err(_) => tracing::error!("a task met a defect and was dropped; the panic is reported above"),
        }
    }
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

    /// Runs a task that goes on even if nobody waits for its result any more; `None` if the task panicked. It begins
    /// as with [`start`](Runtime::start).
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
        self.start(Box::pin(async move {
            // What the task touched is dropped with it. `done` is dropped too then, which the waiter sees.
            if let Ok(value) = AssertUnwindSafe(task).catch_unwind().await {
                let _ = done.send(value);
            }
        }));
        result.await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime() -> SharedRuntime {
        Arc::new(SystemRuntime::new(tokio::runtime::Handle::current()))
    }

    #[tokio::test]
    async fn what_need_not_wait_is_done_by_the_caller() {
        let caller = std::thread::current().id();
        let task = async move { std::thread::current().id() };
        // On this executor nothing else runs before the first await that waits.
        let done = runtime().detached(task).now_or_never();
        assert_eq!(done, Some(Some(caller)));
    }

    #[tokio::test]
    async fn what_waits_goes_on_though_nobody_waits_for_it() {
        let (go, wait) = oneshot::channel::<u32>();
        let (done, result) = oneshot::channel();
        let task = async move { done.send(wait.await.unwrap()).unwrap() };
        assert_eq!(runtime().detached(task).now_or_never(), None);
        go.send(7).unwrap();
        assert_eq!(result.await, Ok(7));
    }

    #[tokio::test]
    async fn a_panic_ends_the_task_alone() {
        async fn fails(wait: bool) {
            if wait {
                tokio::task::yield_now().await;
            }
            panic!("on purpose");
        }
        for wait in [false, true] {
            assert_eq!(runtime().detached(fails(wait)).await, None);
        }
    }
}
