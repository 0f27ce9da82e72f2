//! A process that is stopped: it is there, and does nothing, while time goes on.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use larder_protocol::attr::Timestamp;
use larder_protocol::runtime::{BootTime, BoxFuture, Runtime};
use std::time::Duration;

use crate::machine::Machine;

/// Whether a process runs.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    stopped: AtomicBool,
    waiting: Mutex<Vec<Waker>>,
    /// Tasks that met a defect.
    panics: AtomicU64,
}

impl Gate {
    /// As `SIGSTOP` does.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// As `SIGCONT` does.
    pub(crate) fn go_on(&self) {
        self.stopped.store(false, Ordering::Relaxed);
        self.waiting.lock().unwrap().drain(..).for_each(Waker::wake);
    }

    /// Tasks that met a defect, which an executor would not tell.
    pub(crate) fn panics(&self) -> u64 {
        self.panics.load(Ordering::Relaxed)
    }

    /// A task of the process.
    pub(crate) fn task<T>(self: &Arc<Gate>, inner: impl Future<Output = T> + Send + 'static) -> Task<T> {
        Task { gate: self.clone(), inner: Box::pin(inner) }
    }
}

/// A task that goes no further while its process is stopped.
pub(crate) struct Task<T> {
    gate: Arc<Gate>,
    inner: BoxFuture<T>,
}

impl<T> Future for Task<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        /// Counts, unless it is forgotten.
        struct Defect<'a>(&'a Gate);
        impl Drop for Defect<'_> {
            fn drop(&mut self) {
                self.0.panics.fetch_add(1, Ordering::Relaxed);
            }
        }
        let this = &mut *self;
        if this.gate.stopped.load(Ordering::Relaxed) {
            this.gate.waiting.lock().unwrap().push(cx.waker().clone());
            return Poll::Pending;
        }
        let defect = Defect(&this.gate);
        let result = this.inner.as_mut().poll(cx);
        std::mem::forget(defect);
        result
    }
}

/// A machine whose process can be stopped.
pub(crate) struct Stoppable {
    pub(crate) machine: Arc<Machine>,
    pub(crate) gate: Arc<Gate>,
}

impl Runtime for Stoppable {
    fn boottime(&self) -> BootTime {
        self.machine.boottime()
    }

    fn wall(&self) -> Timestamp {
        self.machine.wall()
    }

    fn random(&self) -> u64 {
        self.machine.random()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<()> {
        self.machine.sleep(duration)
    }

    fn spawn(&self, task: BoxFuture<()>) {
        self.machine.spawn(Box::pin(self.gate.task(task)));
    }

    fn start(&self, task: BoxFuture<()>) {
        self.machine.start(Box::pin(self.gate.task(task)));
    }

    fn spawn_at(&self, place: usize, task: BoxFuture<()>) {
        self.machine.spawn_at(place, Box::pin(self.gate.task(task)));
    }

    fn spawn_blocking(&self, work: Box<dyn FnOnce() + Send>) {
        self.machine.spawn_blocking(work);
    }
}
