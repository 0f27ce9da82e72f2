//! Looking out for the next request instead of sleeping.
//!
//! A thread that sleeps when a request arrives must be woken on some processor, and for small requests that takes longer
//! than to answer them; it also moves the threads of both ends about. Where requests come in quick succession, the
//! executor that takes them looks for the next one for a short while before it sleeps, and lets any other thread have
//! the processor meanwhile. As halt polling in KVM (`virt/kvm/kvm_main.c`, `kvm_vcpu_halt`), this grows and shrinks
//! with what it brings: what comes seldom costs nothing.
//!
//! - **B1** At most one executor of those that share a [`BusyPoll`] looks out at a time: it takes up one processor at most.
//! - **B2** It looks out for no longer than [`BusyPoll::window`] after the last request.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// How often quick requests must outnumber others before it is worth it.
const ENOUGH: u32 = 8;
/// As sure as it gets.
const SURE: u32 = 2 * ENOUGH;
/// What a request that was long in coming counts against quick ones.
const SLOW: u32 = 4;

/// What the executors of a runtime share.
#[derive(Clone, Debug)]
pub struct BusyPoll {
    /// How long to look out. Zero: not at all.
    pub window: Duration,
    is_taken: Arc<AtomicBool>,
}

impl BusyPoll {
    /// Looks out for so long. Where there is one processor it is never worth it.
    pub fn new(window: Duration) -> BusyPoll {
        let alone = thread::available_parallelism().is_ok_and(|processors| processors.get() == 1);
        BusyPoll { window: if alone { Duration::ZERO } else { window }, is_taken: Arc::default() }
    }

    /// Sleeps whenever there is nothing to do.
    pub fn none() -> BusyPoll {
        BusyPoll::new(Duration::ZERO)
    }
}

/// What an executor knows of the requests that came to it.
struct Lookout {
    poll: BusyPoll,
    worth: Worth,
    last: Cell<Option<Instant>>,
    is_looking: Cell<bool>,
    wanted: Notify,
}

/// Whether requests follow one another quickly enough.
#[derive(Default)]
struct Worth(Cell<u32>);

impl Worth {
    /// A request has come so long after the one before it. Whether the next one is worth looking out for.
    fn came_after(&self, gap: Duration, window: Duration) -> bool {
        // Answering takes its time too.
        let is_quick = gap <= window * 2;
        self.0.set(if is_quick { (self.0.get() + 1).min(SURE) } else { self.0.get().saturating_sub(SLOW) });
        self.0.get() >= ENOUGH
    }
}

thread_local! {
    static LOOKOUT: RefCell<Option<Rc<Lookout>>> = const { RefCell::new(None) };
}

/// A request has come to the executor that this thread runs.
pub(super) fn request_came() {
    LOOKOUT.with_borrow(|lookout| {
        if let Some(lookout) = lookout {
            lookout.request_came(Instant::now());
        }
    });
}

impl Lookout {
    fn request_came(&self, now: Instant) {
        let gap = self.last.replace(Some(now)).map_or(Duration::MAX, |last| now.saturating_duration_since(last));
        if self.worth.came_after(gap, self.poll.window) && !self.is_looking.get() {
            self.wanted.notify_one();
        }
    }

    fn is_due(&self) -> bool {
        self.last.get().is_some_and(|last| last.elapsed() < self.poll.window)
    }

    async fn look(&self) {
        if self.poll.is_taken.swap(true, Ordering::Relaxed) {
            return;
        }
        let _turn = Turn(self);
        self.is_looking.set(true);
        while self.is_due() {
            thread::yield_now();
            // The executor now asks for what has arrived, without waiting for it.
            tokio::task::yield_now().await;
        }
    }
}

/// An executor's turn at looking out (B1).
struct Turn<'a>(&'a Lookout);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.is_looking.set(false);
        self.0.poll.is_taken.store(false, Ordering::Relaxed);
    }
}

/// Looks out for requests whenever that is worth it, for as long as it is polled. To be run by an executor's thread
/// itself: what it looks for is what that waits for.
pub(super) async fn run(poll: BusyPoll) {
    if poll.window.is_zero() {
        return std::future::pending().await;
    }
    let lookout = Rc::new(Lookout {
        poll,
        worth: Worth::default(),
        last: Cell::new(None),
        is_looking: Cell::new(false),
        wanted: Notify::new(),
    });
    LOOKOUT.set(Some(lookout.clone()));
    loop {
        lookout.wanted.notified().await;
        lookout.look().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_micros(200);
    const SOON: Duration = Duration::from_micros(300);
    const LATE: Duration = Duration::from_micros(500);

    #[test]
    fn only_requests_in_quick_succession_are_looked_out_for() {
        let worth = Worth::default();
        let after = |gap| worth.came_after(gap, WINDOW);
        assert!(!after(Duration::MAX));
        assert!((1..ENOUGH).all(|_| !after(SOON)));
        assert!(after(SOON));
        (0..SURE).for_each(|_| assert!(after(SOON)));
        // One that is late changes nothing, a few do.
        assert!(after(LATE));
        assert!(after(LATE));
        assert!(!after(LATE));
        assert!(!after(SOON));
        // One in three is late: that is too many.
        let seen: Vec<_> = (0..300).map(|i| after(if i % 3 == 0 { LATE } else { SOON })).collect();
        assert!(!seen[100..].contains(&true));
    }

    #[test]
    fn an_executor_looks_out_and_then_sleeps() {
        let poll = BusyPoll { window: Duration::from_millis(20), is_taken: Arc::default() };
        let taken = poll.is_taken.clone();
        let executor = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let requests = async {
            for _ in 0..=ENOUGH {
                request_came();
                tokio::task::yield_now().await;
            }
            let looked = Instant::now();
            assert!(taken.load(Ordering::Relaxed), "it looks out");
            while taken.load(Ordering::Relaxed) {
                tokio::task::yield_now().await;
                assert!(looked.elapsed() < Duration::from_secs(10), "B2");
            }
            assert!(looked.elapsed() >= Duration::from_millis(10));
            // Another executor's turn.
            taken.store(true, Ordering::Relaxed);
            request_came();
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            assert!(!LOOKOUT.with_borrow(|lookout| lookout.as_ref().unwrap().is_looking.get()), "B1");
        };
        executor.block_on(async {
            tokio::select! {
                biased;
                () = run(poll) => unreachable!("it never ends"),
                () = requests => {}
            }
        });
    }

    #[test]
    fn without_a_window_nothing_is_looked_out_for() {
        let executor = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        executor.block_on(async {
            tokio::select! {
                biased;
                () = run(BusyPoll::none()) => unreachable!("it never ends"),
                () = std::future::ready(()) => {}
            }
        });
        assert!(LOOKOUT.with_borrow(Option::is_none));
    }
}
