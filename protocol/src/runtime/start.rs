//! Tasks that begin where they are made and go on where they are woken.
//!
//! A task that belongs to an executor is queued there when it is woken, and if that executor's thread sleeps, another
//! thread must be woken to run it. The tasks here go on with the thread that woke them, which is awake: a request is
//! sent by the thread that brings it, and what follows is done by the one that takes the answer.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};

use async_task::Runnable;
use tokio::runtime::Handle;

/// Woken tasks that a serving thread goes on with before it looks for its next request.
const MAX_WOKEN: usize = 8;

thread_local! {
    /// Tasks that this thread has woken while it is in [`serving`], to be gone on with at the end of that.
    static WOKEN: RefCell<Option<VecDeque<Runnable>>> = const { RefCell::new(None) };

    /// Whether this thread runs an executor, or serves and has entered one.
    static HAS_PLACE: Cell<bool> = const { Cell::new(false) };
}

/// From now on this thread does nothing but run an executor.
pub(super) fn set_executor() {
    HAS_PLACE.set(true);
}

/// The executor that this thread runs or has entered to serve. None for threads that only happen to be in the context
/// of one, such as those for blocking work.
pub(super) fn place() -> Option<Handle> {
    if HAS_PLACE.get() { Handle::try_current().ok() } else { None }
}

/// Runs a task here as far as it gets without waiting, and then wherever it is woken; if that is no place to run
/// tasks, on the executor `home`. A panic ends the task alone.
pub(super) fn start(home: Handle, task: impl Future<Output = ()> + Send + 'static) {
    let (first, task) = async_task::spawn(task, move |woken| go_on(woken, &home));
    task.detach();
    run(first);
}

fn run(task: Runnable) {
    // Nothing that the task touched is looked at again after a panic: it is dropped whole.
    if catch_unwind(AssertUnwindSafe(|| task.run())).is_err() {
        tracing::error!("a task met a defect and was dropped; the panic is reported above");
    }
}

fn go_on(woken: Runnable, home: &Handle) {
    let elsewhere = WOKEN.with_borrow_mut(|queue| match queue {
        Some(queue) => {
            queue.push_back(woken);
            None
        }
        None => Some(woken),
    });
    let Some(woken) = elsewhere else { return };
    place().as_ref().unwrap_or(home).spawn(async move { run(woken) });
}

/// Runs a request of a thread that is no executor and waits for requests of its own: `task` as far as it gets without
/// waiting, and then what this wakes, if it is not too much. What is left goes on where it is woken, or on the executor
/// `home`.
pub fn serving(home: &Handle, task: impl Future<Output = ()> + Send + 'static) {
    let _inside = home.enter();
    HAS_PLACE.set(true);
    WOKEN.set(Some(VecDeque::new()));
    start(home.clone(), task);
    for _ in 0..MAX_WOKEN {
        match WOKEN.with_borrow_mut(|queue| queue.as_mut().and_then(VecDeque::pop_front)) {
            Some(woken) => run(woken),
            None => break,
        }
    }
    for woken in WOKEN.take().into_iter().flatten() {
        home.spawn(async move { run(woken) });
    }
    HAS_PLACE.set(false);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use tokio::sync::oneshot;

    use super::*;

    const LONG: Duration = Duration::from_secs(10);

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap()
    }

    struct SetWhenDropped(Arc<AtomicBool>);

    impl Drop for SetWhenDropped {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    #[test]
    fn what_need_not_wait_is_done_at_once_by_the_caller() {
        let runtime = runtime();
        let (sender, receiver) = mpsc::channel();
        serving(runtime.handle(), async move {
            sender.send(thread::current().id()).unwrap();
        });
        assert_eq!(receiver.try_recv().unwrap(), thread::current().id());
    }

    #[test]
    fn what_waits_goes_on_as_a_task() {
        let runtime = runtime();
        let (go, wait) = oneshot::channel::<u32>();
        let (done, result) = mpsc::channel();
        serving(runtime.handle(), async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            done.send(wait.await.unwrap()).unwrap();
        });
        assert!(result.try_recv().is_err());
        go.send(7).unwrap();
        assert_eq!(result.recv_timeout(LONG).unwrap(), 7);
    }

    #[test]
    fn what_a_request_wakes_is_gone_on_with_by_its_thread() {
        let runtime = runtime();
        let (go, wait) = oneshot::channel::<()>();
        let (done, result) = mpsc::channel();
        serving(runtime.handle(), async move {
            wait.await.unwrap();
            done.send(thread::current().id()).unwrap();
        });
        serving(runtime.handle(), async move { go.send(()).unwrap() });
        assert_eq!(result.try_recv().unwrap(), thread::current().id());
    }

    #[test]
    fn what_another_thread_wakes_goes_home() {
        let runtime = runtime();
        let (go, wait) = oneshot::channel::<()>();
        let (done, result) = mpsc::channel();
        start(runtime.handle().clone(), async move {
            wait.await.unwrap();
            done.send(Handle::try_current().unwrap().id()).unwrap();
        });
        thread::spawn(move || go.send(()).unwrap()).join().unwrap();
        assert_eq!(result.recv_timeout(LONG).unwrap(), runtime.handle().id());
    }

    #[test]
    fn what_an_executor_wakes_goes_on_there() {
        let (home, other) = (runtime(), runtime());
        let (go, wait) = oneshot::channel::<()>();
        let (done, result) = mpsc::channel();
        start(home.handle().clone(), async move {
            wait.await.unwrap();
            done.send(Handle::try_current().unwrap().id()).unwrap();
        });
        other.spawn(async move {
            HAS_PLACE.set(true);
            go.send(()).unwrap();
        });
        assert_eq!(result.recv_timeout(LONG).unwrap(), other.handle().id());
    }

    #[test]
    fn a_thread_that_serves_is_not_kept_from_its_next_request() {
        const TASKS: usize = 3 * MAX_WOKEN;
        let runtime = runtime();
        let (done, result) = mpsc::channel();
        let go = Arc::new(tokio::sync::Notify::new());
        for _ in 0..TASKS {
            let (go, done) = (Arc::clone(&go), done.clone());
            serving(runtime.handle(), async move {
                go.notified().await;
                done.send(thread::current().id()).unwrap();
            });
        }
        serving(runtime.handle(), async move { go.notify_waiters() });
        let threads: Vec<_> = (0..TASKS).map(|_| result.recv_timeout(LONG).unwrap()).collect();
        let here = threads.iter().filter(|thread| **thread == thread::current().id()).count();
        assert_eq!(here, MAX_WOKEN);
    }

    #[test]
    fn a_panic_drops_the_task_and_nothing_else() {
        let runtime = runtime();
        let dropped = Arc::new(AtomicBool::new(false));
        let held = SetWhenDropped(Arc::clone(&dropped));
        let (go, wait) = oneshot::channel::<()>();
        serving(runtime.handle(), async move {
            let _held = held;
            wait.await.unwrap();
            panic!("on purpose");
        });
        assert!(!dropped.load(Ordering::SeqCst));
        serving(runtime.handle(), async move {
            go.send(()).unwrap();
            panic!("on purpose, too");
        });
        assert!(dropped.load(Ordering::SeqCst));
    }
}
