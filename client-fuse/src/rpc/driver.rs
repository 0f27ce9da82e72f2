//! Driving a connection: by a task of its own, and by whoever has just given it a request.
//!
//! Handing a request to a sleeping task costs the wake-up of a thread, about as much as sending it. So the caller polls
//! the connection itself, unless someone else is at it, who then looks once more.
//!
//! - **V1** The connection is polled by one thread at a time: by that which set [`DRIVING`].
//! - **V2** A wake-up sets [`PENDING`]. Whoever drives clears it before a poll and lets go only if it is still clear; if
//!   nobody drives, it is passed on to the task. So none is lost.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures::task::AtomicWaker;
use larder_protocol::runtime::BoxFuture;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::task::coop::unconstrained;

use super::ration::Ration;

/// Someone polls the connection.
const DRIVING: u8 = 1;
/// There is something to do that the last poll has not seen.
const PENDING: u8 = 2;

/// Messages that a caller, who has something else to do, moves each way before the task goes on.
const CALLERS_SHARE: usize = 2;

enum Dispatch {
    Running(BoxFuture<String>),
    Ended(String),
    Closed,
}

/// A connection's dispatch: the future that sends its requests and takes their answers. It ends with the reason why
/// the connection is over.
pub(super) struct Driver {
    state: AtomicU8,
    stopped: AtomicBool,
    dispatch: Mutex<Dispatch>,
    task: AtomicWaker,
    ration: Arc<Ration>,
    /// Where the connection's deadlines are watched, whoever drives it.
    home: Option<Handle>,
}

impl Driver {
    /// Drives `dispatch`, whose transport keeps to the ration. Its timers are those of the calling thread's executor.
    pub(super) fn new(dispatch: BoxFuture<String>, ration: Arc<Ration>) -> Arc<Driver> {
        Arc::new(Driver {
            state: AtomicU8::new(0),
            stopped: AtomicBool::new(false),
            dispatch: Mutex::new(Dispatch::Running(dispatch)),
            task: AtomicWaker::new(),
            ration,
            home: Handle::try_current().ok(),
        })
    }

    /// The task that drives the connection when no caller does. Says why the connection is over; dropped, it closes it.
    pub(super) fn run(self: Arc<Driver>) -> impl Future<Output = String> {
        let closing = Closing(self);
        async move {
            poll_fn(|cx| {
                let driver = &closing.0;
                driver.task.register(cx.waker());
                if driver.take_turn() {
                    driver.drive(usize::MAX);
                }
                // If a caller is at it this is not worth waiting for: it wakes this task when the connection ends.
                match driver.dispatch.try_lock().as_deref_mut() {
                    Some(Dispatch::Ended(why)) => Poll::Ready(std::mem::take(why)),
                    _ => Poll::Pending,
                }
            })
            .await
        }
    }

    /// Does what gives the connection something to do, then drives it.
    pub(super) fn with<T>(self: &Arc<Driver>, hand_over: impl FnOnce() -> T) -> T {
        if !self.take_turn() {
            return hand_over();
        }
        let turn = Turn(self);
        let result = hand_over();
        turn.finish();
        result
    }

    /// Nothing more is sent or received, whoever drives.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
    }

    fn take_turn(&self) -> bool {
        self.state.fetch_or(DRIVING, Ordering::AcqRel) & DRIVING == 0
    }

    /// Polls until there is nothing to do, or `share` messages have been moved one way. Ends the turn.
    fn drive(self: &Arc<Driver>, share: usize) {
        let waker = Waker::from(Arc::clone(self));
        self.ration.set(share);
        loop {
            self.state.fetch_and(!PENDING, Ordering::AcqRel);
            self.poll(&mut Context::from_waker(&waker), share != usize::MAX);
            if self.state.compare_exchange(DRIVING, 0, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                return;
            }
            // The task comes back when its executor has looked after others; a caller that has had its share does not.
            if share == usize::MAX || self.ration.is_used_up() {
                return self.leave_to_task();
            }
        }
    }

    fn leave_to_task(&self) {
        self.state.fetch_and(!DRIVING, Ordering::AcqRel);
        self.task.wake();
    }

    /// A caller's task may have used up the time that its executor gives it, and whatever is polled in it then says that it
    /// is not ready and wakes at once, for ever. What a caller moves has a limit of its own, so that does not count.
    fn poll(&self, cx: &mut Context<'_>, is_caller: bool) {
        if self.stopped.load(Ordering::Acquire) {
            return;
        }
        let _inside = self.home.as_ref().map(Handle::enter);
        let mut dispatch = self.dispatch.lock();
        let Dispatch::Running(running) = &mut *dispatch else { return };
        let running = running.as_mut();
        let polled = catch_unwind(AssertUnwindSafe(|| {
            if is_caller { pin!(unconstrained(running)).poll(cx) } else { running.poll(cx) }
        }));
        let why = match polled {
            Ok(Poll::Pending) => return,
            Ok(Poll::Ready(why)) => why,
            Err(_) => "it met a defect, and the panic is reported above".to_owned(),
        };
        let over = std::mem::replace(&mut *dispatch, Dispatch::Ended(why));
        drop(dispatch);
        // What waits for answers learns of it now, outside of the lock.
        drop(over);
        self.task.wake();
    }
}

impl Wake for Driver {
    fn wake(self: Arc<Driver>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Driver>) {
        if self.state.fetch_or(PENDING, Ordering::AcqRel) & (DRIVING | PENDING) == 0 {
            self.task.wake();
        }
    }
}

/// A caller's turn. Should it be cut short by a panic, the task goes on.
struct Turn<'a>(&'a Arc<Driver>);

impl Turn<'_> {
    fn finish(self) {
        self.0.drive(CALLERS_SHARE);
        std::mem::forget(self);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.leave_to_task();
    }
}

struct Closing(Arc<Driver>);

impl Drop for Closing {
    fn drop(&mut self) {
        // What waits for answers learns of it when the dispatch is dropped, outside of the lock.
        let dispatch = std::mem::replace(&mut *self.0.dispatch.lock(), Dispatch::Closed);
        drop(dispatch);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    use super::*;

    /// A dispatch that counts what it was given, and ends at a number.
    #[derive(Default)]
    struct Inbox {
        items: Mutex<(VecDeque<u64>, Option<Waker>)>,
        seen: AtomicUsize,
        sum: AtomicUsize,
        polled_by: Mutex<Option<std::thread::ThreadId>>,
        busy: AtomicUsize,
    }

    impl Inbox {
        fn give(&self, item: u64) {
            let mut items = self.items.lock();
            items.0.push_back(item);
            if let Some(waker) = items.1.take() {
                drop(items);
                waker.wake();
            }
        }

        fn dispatch(self: &Arc<Inbox>, until: usize) -> BoxFuture<String> {
            let inbox = Arc::clone(self);
            Box::pin(poll_fn(move |cx| {
                assert_eq!(inbox.busy.fetch_add(1, Ordering::SeqCst), 0, "V1");
                *inbox.polled_by.lock() = Some(std::thread::current().id());
                let mut items = inbox.items.lock();
                while let Some(item) = items.0.pop_front() {
                    inbox.sum.fetch_add(item as usize, Ordering::SeqCst);
                    inbox.seen.fetch_add(1, Ordering::SeqCst);
                }
                items.1 = Some(cx.waker().clone());
                inbox.busy.fetch_sub(1, Ordering::SeqCst);
                if inbox.seen.load(Ordering::SeqCst) == until { Poll::Ready("done".to_owned()) } else { Poll::Pending }
            }))
        }
    }

    #[tokio::test]
    async fn a_caller_drives_what_it_hands_over() {
        let inbox = Arc::new(Inbox::default());
        let driver = Driver::new(inbox.dispatch(2), Arc::default());
        let task = tokio::spawn(Arc::clone(&driver).run());
        tokio::task::yield_now().await;
        let (caller, theirs) = (Arc::clone(&driver), Arc::clone(&inbox));
        std::thread::spawn(move || {
            caller.with(|| theirs.give(1));
            assert_eq!(theirs.seen.load(Ordering::SeqCst), 1, "before the caller goes on");
            assert_eq!(*theirs.polled_by.lock(), Some(std::thread::current().id()));
        })
        .join()
        .unwrap();
        // And what nobody drives, the task does.
        inbox.give(2);
        assert_eq!(task.await.unwrap(), "done");
    }

    #[test]
    fn no_wake_up_is_lost() {
        const THREADS: usize = 3;
        const EACH: usize = 20_000;
        let inbox = Arc::new(Inbox::default());
        let driver = Driver::new(inbox.dispatch(THREADS * EACH), Arc::default());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
        let task = runtime.spawn(Arc::clone(&driver).run());
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (driver, inbox) = (&driver, &inbox);
                scope.spawn(move || {
                    for i in 0..EACH {
                        if (i + thread) % 3 == 0 { inbox.give(1) } else { driver.with(|| inbox.give(1)) }
                    }
                });
            }
        });
        let ended = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), task).await });
        assert_eq!(ended.unwrap().unwrap(), "done");
        assert_eq!(inbox.sum.load(Ordering::SeqCst), THREADS * EACH);
    }

    #[tokio::test]
    async fn a_panic_of_a_caller_leaves_the_connection_to_the_task() {
        let inbox = Arc::new(Inbox::default());
        let driver = Driver::new(inbox.dispatch(1), Arc::default());
        let task = tokio::spawn(Arc::clone(&driver).run());
        tokio::task::yield_now().await;
        let caller = Arc::clone(&driver);
        std::thread::spawn(move || caller.with(|| panic!("on purpose"))).join().unwrap_err();
        inbox.give(1);
        assert_eq!(task.await.unwrap(), "done");
    }

    #[test]
    fn a_caller_whose_task_has_used_up_its_time_drives_all_the_same() {
        use tokio::task::coop::{consume_budget, has_budget_remaining};
        let (ended, has_ended) = std::sync::mpsc::channel();
        // A thread, because what fails here does not end.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let polled = Arc::new(AtomicUsize::new(0));
            let count = Arc::clone(&polled);
            // As sockets and channels do.
            let dispatch = async move {
                loop {
                    consume_budget().await;
                    count.fetch_add(1, Ordering::SeqCst);
                    tokio::task::yield_now().await;
                }
            };
            let _inside = runtime.enter();
            let driver = Driver::new(Box::pin(dispatch), Arc::default());
            runtime.block_on(async {
                while has_budget_remaining() {
                    consume_budget().await;
                }
                driver.with(|| ());
            });
            ended.send(polled.load(Ordering::SeqCst)).unwrap();
        });
        let polled = has_ended.recv_timeout(Duration::from_secs(20)).expect("the caller goes on for ever");
        assert!(polled > 0, "it has done nothing");
    }

    #[tokio::test]
    async fn dropping_the_task_closes_the_connection() {
        let inbox = Arc::new(Inbox::default());
        let driver = Driver::new(inbox.dispatch(1), Arc::default());
        let task = tokio::spawn(Arc::clone(&driver).run());
        tokio::task::yield_now().await;
        assert_eq!(Arc::strong_count(&inbox), 2);
        task.abort();
        assert!(task.await.is_err());
        assert_eq!(Arc::strong_count(&inbox), 1);
        driver.with(|| inbox.give(1));
        assert_eq!(inbox.seen.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn a_task_that_was_never_polled_closes_the_connection() {
        let inbox = Arc::new(Inbox::default());
        let driver = Driver::new(inbox.dispatch(9), Arc::default());
        // The dispatch now knows the driver as its waker, which holds the dispatch.
        driver.with(|| inbox.give(1));
        assert_eq!(Arc::strong_count(&inbox), 2);
        drop(Arc::clone(&driver).run());
        assert_eq!(Arc::strong_count(&inbox), 1);
    }

    #[tokio::test]
    async fn a_stopped_connection_moves_nothing() {
        let inbox = Arc::new(Inbox::default());
        let driver = Driver::new(inbox.dispatch(1), Arc::default());
        let task = tokio::spawn(Arc::clone(&driver).run());
        tokio::task::yield_now().await;
        driver.stop();
        driver.with(|| inbox.give(1));
        tokio::task::yield_now().await;
        assert_eq!(inbox.seen.load(Ordering::SeqCst), 0);
        task.abort();
    }

    #[tokio::test]
    async fn a_panic_of_the_dispatch_ends_the_connection() {
        let driver = Driver::new(Box::pin(async { panic!("on purpose") }), Arc::default());
        assert!(driver.run().await.contains("defect"));
    }

    #[tokio::test]
    async fn a_caller_moves_its_share_and_the_task_the_rest() {
        let ration = Arc::new(Ration::default());
        let moved = Arc::new(AtomicUsize::new(0));
        let dispatch = {
            let (ration, moved) = (Arc::clone(&ration), Arc::clone(&moved));
            poll_fn(move |cx| {
                while moved.load(Ordering::SeqCst) < 10 {
                    if !ration.take_received(cx) {
                        return Poll::Pending;
                    }
                    moved.fetch_add(1, Ordering::SeqCst);
                }
                Poll::Ready("done".to_owned())
            })
        };
        let driver = Driver::new(Box::pin(dispatch), ration);
        driver.with(|| ());
        assert_eq!(moved.load(Ordering::SeqCst), CALLERS_SHARE);
        assert_eq!(driver.run().await, "done");
    }
}
