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
const SLOW: u32 = 2;
/// How many windows after the one before a request is still quick: answering takes its time too, and a disk may be
/// waited for in between.
const QUICK: u32 = 4;

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
    window: Duration,
    worth: Worth,
    last: Cell<Option<Instant>>,
    is_looking: Cell<bool>,
    wanted: Arc<Notify>,
}

/// Whether requests follow one another quickly enough.
#[derive(Default)]
struct Worth(Cell<u32>);

impl Worth {
    /// A request has come so long after the one before it. Whether the next one is worth looking out for.
    fn came_after(&self, gap: Duration, window: Duration) -> bool {
        let is_quick = gap <= window * QUICK;
        self.0.set(if is_quick { (self.0.get() + 1).min(SURE) } else { self.0.get().saturating_sub(SLOW) });
        self.0.get() >= ENOUGH
    }
}

thread_local! {
    /// That of the executor which this thread runs.
    static LOOKOUT: RefCell<Option<Lookout>> = const { RefCell::new(None) };
}

/// A request has come to the executor that this thread runs. Does nothing on other threads.
pub fn request_came() {
    LOOKOUT.with_borrow(|lookout| {
        if let Some(lookout) = lookout {
            lookout.request_came(Instant::now());
        }
    });
}

impl Lookout {
    fn request_came(&self, now: Instant) {
        let gap = self.last.replace(Some(now)).map_or(Duration::MAX, |last| now.saturating_duration_since(last));
        if self.worth.came_after(gap, self.window) && !self.is_looking.get() {
            self.wanted.notify_one();
        }
    }

    fn is_due(&self) -> bool {
        self.last.get().is_some_and(|last| last.elapsed() < self.window)
    }
}

/// Looks out for requests whenever that is worth it, for as long as it is polled. To be run as a task of the executor of
/// this thread: it has its turn after what has just arrived.
pub(super) fn on_this_thread(poll: BusyPoll) -> impl Future<Output = ()> + Send {
    let wanted = Arc::new(Notify::new());
    LOOKOUT.set((!poll.window.is_zero()).then(|| Lookout {
        window: poll.window,
        worth: Worth::default(),
        last: Cell::new(None),
        is_looking: Cell::new(false),
        wanted: wanted.clone(),
    }));
    async move {
        loop {
            wanted.notified().await;
            look(&poll).await;
        }
    }
}

async fn look(poll: &BusyPoll) {
    let Some(_turn) = Turn::take(&poll.is_taken) else { return };
    while LOOKOUT.with_borrow(|lookout| lookout.as_ref().is_some_and(Lookout::is_due)) {
        thread::yield_now();
        // The executor now asks for what has arrived, without waiting for it, and looks after that first.
        tokio::task::yield_now().await;
    }
}

/// An executor's turn at looking out (B1).
struct Turn<'a>(&'a AtomicBool);

impl Turn<'_> {
    fn take(is_taken: &AtomicBool) -> Option<Turn<'_>> {
        if is_taken.swap(true, Ordering::Relaxed) {
            return None;
        }
        Turn::set_looking(true);
        Some(Turn(is_taken))
    }

    fn set_looking(looking: bool) {
        LOOKOUT.with_borrow(|lookout| lookout.iter().for_each(|lookout| lookout.is_looking.set(looking)));
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        Turn::set_looking(false);
        self.0.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_micros(200);
    const SOON: Duration = Duration::from_micros(700);
    const LATE: Duration = Duration::from_micros(900);

    #[test]
    fn only_requests_in_quick_succession_are_looked_out_for() {
        let worth = Worth::default();
        let after = |gap| worth.came_after(gap, WINDOW);
        assert!(!after(Duration::MAX));
        assert!((1..ENOUGH).all(|_| !after(SOON)));
        assert!(after(SOON));
        (0..SURE).for_each(|_| assert!(after(SOON)));
        // One that is late changes nothing, many do.
        assert_eq!((0..6).map(|_| after(LATE)).collect::<Vec<_>>(), [true, true, true, true, false, false]);
        assert!(!after(SOON));
        // Every other one is late: that is too many.
        let seen: Vec<_> = (0..300).map(|i| after(if i % 2 == 0 { LATE } else { SOON })).collect();
        assert!(!seen.contains(&true));
        // One in four is: that is worth it.
        let seen: Vec<_> = (0..300).map(|i| after(if i % 4 == 0 { LATE } else { SOON })).collect();
        assert!(!seen[100..].contains(&false));
    }

    #[test]
    fn an_executor_looks_out_and_then_sleeps() {
        let poll = BusyPoll { window: Duration::from_millis(200), is_taken: Arc::default() };
        let taken = poll.is_taken.clone();
        let executor = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        executor.block_on(async {
            tokio::spawn(on_this_thread(poll));
            let asked = Instant::now();
            for _ in 0..=ENOUGH {
                request_came();
            }
            tokio::task::yield_now().await;
            assert!(taken.load(Ordering::Relaxed), "it looks out");
            while taken.load(Ordering::Relaxed) {
                tokio::task::yield_now().await;
                assert!(asked.elapsed() < Duration::from_secs(10), "B2");
            }
            assert!(asked.elapsed() >= Duration::from_millis(200));
            // Another executor's turn.
            taken.store(true, Ordering::Relaxed);
            request_came();
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            LOOKOUT.with_borrow(|lookout| assert!(!lookout.as_ref().unwrap().is_looking.get(), "B1"));
        });
    }

    #[test]
    fn without_a_window_nothing_is_looked_out_for() {
        let executor = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        executor.block_on(async {
            let looking = tokio::spawn(on_this_thread(BusyPoll::none()));
            for _ in 0..=ENOUGH {
                request_came();
                tokio::task::yield_now().await;
            }
            assert!(LOOKOUT.with_borrow(Option::is_none));
            looking.abort();
        });
    }
}
