//! When the server's disk is out of order, and what programs may be told for it.

use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;

/// How a disk is out of order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It is full.
    Full,
    /// It refuses writes, or everything.
    Failing,
}

/// How often the disk was put out of order, and in order again.
#[derive(Debug, Default)]
pub(super) struct Disorders([AtomicU64; 2]);

/// What there was of it at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disorder([u64; 2]);

impl Disorders {
    /// It is put out of order.
    pub(super) fn begin(&self, kind: Kind) {
        self.turn(kind, 0);
    }

    /// It is in order again.
    pub(super) fn end(&self, kind: Kind) {
        self.turn(kind, 1);
    }

    fn turn(&self, kind: Kind, from: u64) {
        let before = self.0[kind as usize].fetch_add(1, Ordering::SeqCst);
        debug_assert_eq!(before % 2, from, "{kind:?} begins and ends in turns");
    }

    /// What there is now.
    pub(super) fn now(&self) -> Disorder {
        Disorder([0, 1].map(|kind: usize| self.0[kind].load(Ordering::SeqCst)))
    }
}

impl Disorder {
    /// Whether the disk is in order.
    pub fn is_none(self) -> bool {
        self.0.iter().all(|turns| turns % 2 == 0)
    }

    /// What calls may come to for a disk that was out of order at any time from this one until `later`. Nothing if it was
    /// not.
    pub fn causes_until(self, later: Disorder) -> &'static [Errno] {
        let was = |kind: Kind| self.0[kind as usize] % 2 == 1 || self.0[kind as usize] != later.0[kind as usize];
        match (was(Kind::Full), was(Kind::Failing)) {
            // Where writes are refused there may be no room either.
            (_, true) => &[Errno::IO, Errno::NOSPC],
            (true, false) => &[Errno::NOSPC],
            (false, false) => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_excuses_no_error_of_a_failing_one() {
        let disorders = Disorders::default();
        let before = disorders.now();
        assert!(before.is_none() && before.causes_until(before).is_empty());
        disorders.begin(Kind::Full);
        let full = disorders.now();
        assert!(!full.is_none());
        assert_eq!(before.causes_until(full), [Errno::NOSPC]);
        assert_eq!(full.causes_until(full), [Errno::NOSPC], "it still is");
        disorders.end(Kind::Full);
        let after = disorders.now();
        assert_eq!(full.causes_until(after), [Errno::NOSPC]);
        assert_eq!(before.causes_until(after), [Errno::NOSPC], "it was meanwhile");
        assert!(after.is_none() && after.causes_until(after).is_empty());
        disorders.begin(Kind::Failing);
        disorders.end(Kind::Failing);
        assert_eq!(full.causes_until(disorders.now()), [Errno::IO, Errno::NOSPC], "both");
    }
}
