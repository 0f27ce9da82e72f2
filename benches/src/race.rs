//! Two threads that race.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Runs `a` and `b` on two threads for `rounds` rounds, so that in each round both begin at the same moment, and
/// hands their results to `judge` after each round; `prepare` runs before each.
///
/// The threads spin (and yield) up to the start of a round: a wake-up takes longer than the operations that race.
pub fn race<T: Send>(
    rounds: usize,
    mut prepare: impl FnMut(usize),
    a: impl Fn(usize) -> T + Sync,
    b: impl Fn(usize) -> T + Sync,
    mut judge: impl FnMut(usize, T, T),
) {
    let started = AtomicUsize::new(0);
    let side = |run: &(dyn Fn(usize) -> T + Sync), round: usize| {
        // Both sides count themselves in; the second one to come sets both off.
        started.fetch_add(1, Ordering::SeqCst);
        while started.load(Ordering::SeqCst) < 2 * (round + 1) {
            std::thread::yield_now();
        }
        run(round)
    };
    std::thread::scope(|scope| {
        let (orders, inbox) = std::sync::mpsc::channel::<usize>();
        let (outbox, results) = std::sync::mpsc::channel::<T>();
        let (side, b) = (&side, &b);
        scope.spawn(move || {
            for round in inbox {
                if outbox.send(side(b, round)).is_err() {
                    return;
                }
            }
        });
        for round in 0..rounds {
            prepare(round);
            if orders.send(round).is_err() {
                break;
            }
            let first = side(&a, round);
            match results.recv() {
                Ok(second) => judge(round, first, second),
                // The other thread panicked; the scope passes that on.
                Err(_) => break,
            }
        }
    });
}
