//! A thread that works, and knows what it was told.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use rand::rngs::SmallRng;
use rustix::io::Errno;

use super::outcome::{Span, Work};
use super::round::Round;
use super::workload::{Broken, Workload};
use crate::lock;
use crate::mount::Mode;

/// A step that took longer is a pause.
const PAUSE: Duration = Duration::from_millis(100);

/// No step takes so long, but one that waits for what never comes. A step of a program has hundreds of operations.
pub(super) const STUCK: Duration = Duration::from_secs(120);
/// When it is looked again at what is wrong.
const LATER: Duration = Duration::from_secs(1);
/// What calls on a mount come to whose client is gone; the last one where it is not mounted any more, or not yet.
const OF_A_DEAD_MOUNT: [Errno; 4] = [Errno::NOTCONN, Errno::CONNABORTED, Errno::IO, Errno::NOENT];

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

/// Whether the error can be one of these. Of what programs say the cause cannot be told.
fn may_be(error: &io::Error, causes: &[Errno]) -> bool {
    error.raw_os_error().is_none_or(|code| causes.contains(&Errno::from_raw_os_error(code)))
}

impl Worker {
    fn noted<T>(&self, round: &Round, note: impl FnOnce(&mut Work) -> T) -> T {
        note(&mut lock(&round.work[self.number]))
    }

    /// A step, or a look, took from then until then.
    fn took(&self, round: &Round, from: Duration, to: Duration, what: &str) {
        if to - from > PAUSE {
            self.noted(round, |work| work.pauses.push(Span { from, to, what: what.to_owned() }));
        }
        if !self.workload.is_program() {
            round.credit(from, to);
        }
    }

    fn begins(&self, round: &Round) -> Duration {
        let now = round.begin.elapsed();
        *lock(&round.steps[self.number]) = Some(now);
        now
    }

    fn ends(&self, round: &Round) -> Duration {
        *lock(&round.steps[self.number]) = None;
        round.begin.elapsed()
    }

    /// Works until the round is over, or something is wrong.
    pub(super) fn run(&mut self, round: &Round) {
        let (mut struck, mut before) = (0, round.world.disorder());
        while !round.is_over.load(Ordering::SeqCst) {
            let strikes = round.strikes_done.load(Ordering::SeqCst);
            if strikes != struck {
                // Not only who got an error looks: what was lost would soon be overwritten.
                if !self.look(round, |workload, dir| workload.check(dir)) {
                    return;
                }
                self.looked_after(round, struck..strikes);
                struck = strikes;
            }
            let seat = &round.world.seats[self.seat];
            let Some((life, mount)) = seat.wait_mounted() else { return };
            // Since the step before this one: a program may be told late, or find what it failed to remove.
            let disorder = std::mem::replace(&mut before, round.world.disorder());
            let from = self.begins(round);
            let done = self.workload.step(&mount.join(&self.dir), &mut self.random);
            let to = self.ends(round);
            let acknowledged = self.workload.acknowledged();
            self.noted(round, |work| {
                work.steps += 1;
                work.acknowledged = acknowledged;
                work.failed += u64::from(done.is_err());
            });
            self.took(round, from, to, if done.is_ok() { "waited" } else { "failed" });
            if to - from > STUCK {
                round.found(&self.who, format!("it waited for {:.1?}; {}", to - from, last_lines(&seat.log())));
                return;
            }
            let Err(error) = done else { continue };
            let of_mount = seat.is_over(life) && may_be(&error, &OF_A_DEAD_MOUNT);
            let causes = disorder.causes_until(round.world.disorder());
            let was_in_disorder = !causes.is_empty();
            let of_disk = was_in_disorder && may_be(&error, causes);
            // Who ignores what close(2) says may read back less than it wrote, where it is written when it is closed.
            let is_excused = was_in_disorder && !self.workload.heeds_close() && seat.mode() != Mode::Direct;
            if (is_broken(&error) && !is_excused) || !(of_mount || of_disk) {
                round.found(&self.who, format!("{error}; {}", last_lines(&seat.log())));
                // What is there tells whether an operation was lost, done twice, or refused for nothing; and what is there
                // a little later, whether it was only late.
                self.begins(round);
                let there = self.workload.check(&mount.join(&self.dir));
                thread::sleep(LATER);
                let later = self.workload.check(&mount.join(&self.dir));
                self.ends(round);
                round.found(&self.who, format!("after that: {there:?}; after {LATER:?}: {later:?}"));
                return;
            }
            if !self.look(round, |workload, dir| workload.settle(dir)) {
                return;
            }
        }
        // After the last strike, too.
        let strikes = round.strikes_done.load(Ordering::SeqCst);
        if strikes != struck && self.look(round, |workload, dir| workload.check(dir)) {
            self.looked_after(round, struck..strikes);
        }
    }

    fn looked_after(&self, round: &Round, strikes: Range<u64>) {
        if !self.workload.is_program() {
            round.looked_after(strikes);
        }
    }

    /// Looks what is there, and what became of what was under way. `false` if something is wrong.
    fn look(
        &mut self,
        round: &Round,
        look: impl Fn(&mut dyn Workload, &Path) -> io::Result<Result<(), Broken>>,
    ) -> bool {
        let seat = &round.world.seats[self.seat];
        loop {
            let Some((life, mount)) = seat.wait_mounted() else { return false };
            let disorder = round.world.disorder();
            if !disorder.is_none() {
                thread::sleep(Duration::from_millis(10));
                continue;
            }
            let from = self.begins(round);
            let looked = look(&mut *self.workload, &mount.join(&self.dir));
            let to = self.ends(round);
            self.noted(round, |work| work.checks += 1);
            self.took(round, from, to, "looked");
            if to - from > STUCK {
                round.found(&self.who, format!("it looked for {:.1?}; {}", to - from, last_lines(&seat.log())));
                return false;
            }
            match looked {
                Ok(Ok(())) => return true,
                // A program that meets the end of its mount says what it likes: it is looked at once more.
                _ if seat.is_over(life) || round.world.disorder() != disorder => continue,
                Ok(Err(broken)) => round.found(&self.who, broken),
                Err(error) => round.found(&self.who, format!("looking what is there: {error}")),
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
