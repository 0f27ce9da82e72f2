//! A thread that works, and knows what it was told.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use rand::rngs::SmallRng;

use super::outcome::{Span, Work};
use super::round::Round;
use super::workload::Workload;
use crate::lock;

/// A step that took longer is a pause.
const PAUSE: Duration = Duration::from_millis(100);

pub(super) struct Worker {
    /// Which one of the round's.
    pub(super) number: usize,
    pub(super) who: String,
    pub(super) seat: usize,
    pub(super) dir: String,
    pub(super) workload: Box<dyn Workload>,
    pub(super) random: SmallRng,
}

/// Whether a promise was broken, rather than a mount.
fn is_broken(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidData && error.raw_os_error().is_none()
}

impl Worker {
    fn noted<T>(&self, round: &Round, note: impl FnOnce(&mut Work) -> T) -> T {
        note(&mut lock(&round.work[self.number]))
    }

    /// Works until the round is over, or something is wrong.
    pub(super) fn run(&mut self, round: &Round) {
        while !round.is_over.load(Ordering::SeqCst) {
            let seat = &round.world.seats[self.seat];
            let Some((life, mount)) = seat.wait_mounted() else { return };
            let disorder = round.world.disorder();
            let from = round.begin.elapsed();
            let done = self.workload.step(&mount.join(&self.dir), &mut self.random);
            let to = round.begin.elapsed();
            let acknowledged = self.workload.acknowledged();
            self.noted(round, |work| {
                work.steps += 1;
                work.acknowledged = acknowledged;
                work.failed += u64::from(done.is_err());
                if to - from > PAUSE {
                    let what = if done.is_ok() { "waited" } else { "failed" };
                    work.pauses.push(Span { from, to, what: what.to_owned() });
                }
            });
            round.credit(from, to);
            let Err(error) = done else { continue };
            let is_excused = seat.is_over(life) || disorder % 2 == 1 || round.world.disorder() != disorder;
            if is_broken(&error) || !is_excused {
                // What is there tells whether an operation was lost, done twice, or refused for nothing.
                let there = self.workload.check(&mount.join(&self.dir));
                round.found(&self.who, format!("{error}; then: {there:?}; {}", last_lines(&seat.log())));
                return;
            }
            if !self.settle(round) {
                return;
            }
        }
    }

    /// Finds out what became of what was under way. `false` if something is wrong.
    fn settle(&mut self, round: &Round) -> bool {
        let seat = &round.world.seats[self.seat];
        loop {
            let Some((life, mount)) = seat.wait_mounted() else { return false };
            let disorder = round.world.disorder();
            if disorder % 2 == 1 {
                thread::sleep(Duration::from_millis(10));
                continue;
            }
            self.noted(round, |work| work.checks += 1);
            match self.workload.settle(&mount.join(&self.dir)) {
                Ok(Ok(())) => return true,
                // A program that meets the end of its mount says what it likes: it is looked at once more.
                _ if seat.is_over(life) || round.world.disorder() != disorder => continue,
                Ok(Err(broken)) => round.found(&self.who, broken),
                Err(error) => round.found(&self.who, format!("after its mount came back: {error}")),
            }
            return false;
        }
    }

    /// Holds what there is against what was acknowledged.
    pub(super) fn check(&mut self, round: &Round, mount: PathBuf, whose: &str) {
        self.noted(round, |work| work.checks += 1);
        let broken = match self.workload.check(&mount.join(&self.dir)) {
            Ok(Ok(())) => return,
            Ok(Err(broken)) => broken,
            Err(error) => error.to_string(),
        };
        round.found(&self.who, format!("at the end, by {whose} mount: {broken}"));
    }
}

/// The end of a log.
pub(super) fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.lines().rev().take(3).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
}
