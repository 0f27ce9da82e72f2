//! What a round is to do, and what came of it.

use std::path::PathBuf;
use std::time::Duration;

use super::fault::Fault;
use super::resources::{Curve, Thinned};
use crate::mount::Mode;

/// What a round does. The seed decides when what is done; the machine decides what meets it.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How the mounts cache.
    pub modes: Vec<Mode>,
    /// What is broken: each at least once, and then any of them, at random.
    pub faults: Vec<Fault>,
    /// Decides all that is random.
    pub seed: u64,
    /// How long things are broken.
    pub length: Duration,
    /// What an acknowledgement is to survive, if it is not what the faults ask for: to show that the difference is found.
    pub durability: Option<&'static str>,
    /// Where the logs of a round go in which something is found.
    pub keep: Option<PathBuf>,
}

/// A promise that was broken, or something that does not work.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Since the round's beginning.
    pub at: Duration,
    /// Who met it.
    pub who: String,
    /// What it is.
    pub what: String,
    /// What was broken last before it. `None` at the round's end, where it may be of any.
    pub fault: Option<Fault>,
}

/// A span of the round's time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Since the round's beginning.
    pub from: Duration,
    /// Its end.
    pub to: Duration,
    /// What it is.
    pub what: String,
}

/// Something that was broken.
#[derive(Clone, Debug)]
pub struct Strike {
    /// What kind.
    pub fault: Fault,
    /// When, and what was done.
    pub span: Span,
    /// The failpoint at which a process was to die, and whether it did.
    pub place: Option<(&'static str, bool)>,
    /// The longest step of a worker that met this fault more than any other. Whole runs of programs do not count.
    pub longest_wait: Duration,
    /// Workers that have looked since, and found what they were told; but not those whose steps are programs.
    pub looked: usize,
    /// When all of them had, since the round's beginning. `None` if the round was over before.
    pub recovered: Option<Duration>,
}

impl Strike {
    /// One that begins.
    pub(super) fn new(fault: Fault, from: Duration) -> Strike {
        let span = Span { from, to: from, what: "under way".to_owned() };
        Strike { fault, span, place: None, longest_wait: Duration::ZERO, looked: 0, recovered: None }
    }

    /// From its end until all workers had looked.
    pub fn recovery(&self) -> Option<Span> {
        let to = self.recovered?;
        Some(Span { from: self.span.to.min(to), to, what: format!("until all had looked after {}", self.fault.name()) })
    }
}

/// What a worker did.
#[derive(Clone, Debug)]
pub struct Work {
    /// The seat's number, its mode, and the workload.
    pub who: String,
    /// Whether a step is the whole run of a program.
    pub is_program: bool,
    /// Steps.
    pub steps: u64,
    /// Operations that were acknowledged.
    pub acknowledged: u64,
    /// Steps whose mount died, or whose disk was out of order.
    pub failed: u64,
    /// How often something was held against what was acknowledged.
    pub checks: u64,
    /// Steps that took long.
    pub pauses: Vec<Span>,
    /// How many operations were acknowledged by when.
    pub progress: Thinned<(Duration, u64)>,
}

/// What came of a round, or has come of it so far.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What was to be done.
    pub plan: Plan,
    /// What was broken, and when.
    pub strikes: Vec<Strike>,
    /// What went on.
    pub work: Vec<Work>,
    /// How often something was held against what was acknowledged.
    pub checks: u64,
    /// What was wrong.
    pub findings: Vec<Finding>,
    /// Memory and descriptors of each process.
    pub resources: Vec<Curve>,
    /// Bytes in the store and in each cache, before and after all files were removed.
    pub depots: Vec<Depot>,
    /// How long the round took.
    pub took: Duration,
}

/// What a store or a cache holds.
#[derive(Clone, Debug)]
pub struct Depot {
    /// Whose it is.
    pub who: String,
    /// Bytes on the disk when the work was done.
    pub full: u64,
    /// Bytes on the disk when all files were removed.
    pub empty: u64,
    /// Bytes of these that belong to removed files which clients had open when they died.
    pub kept: u64,
}

impl Outcome {
    /// Operations that were acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.work.iter().map(|work| work.acknowledged).sum()
    }

    /// The longest time for which a worker waited. Whole runs of programs do not count.
    pub fn longest_wait(&self) -> Duration {
        let pauses = self.work.iter().filter(|work| !work.is_program).flat_map(|work| &work.pauses);
        pauses.map(|pause| pause.to - pause.from).max().unwrap_or_default()
    }
}

/// Credits a step that took long to the strike that it met most of. A strike's time lasts until the next one.
pub(super) fn credit(strikes: &mut [Strike], from: Duration, to: Duration) {
    let mut until = to;
    let mut most: Option<(Duration, usize)> = None;
    for (index, strike) in strikes.iter().enumerate().rev() {
        let met = until.saturating_sub(strike.span.from.max(from));
        if !met.is_zero() && most.is_none_or(|(longest, _)| met > longest) {
            most = Some((met, index));
        }
        until = until.min(strike.span.from);
        if until <= from {
            break;
        }
    }
    if let Some((_, index)) = most {
        let wait = &mut strikes[index].longest_wait;
        *wait = (*wait).max(to - from);
    }
}

/// The same spans, those that are less than `grain` apart as one: for a picture, or a file, that is to stay small.
pub fn coarsen(spans: &[Span], grain: Duration) -> Vec<Span> {
    let mut coarse: Vec<(Span, usize)> = Vec::new();
    for span in spans {
        match coarse.last_mut() {
            Some((last, times)) if span.from < last.to + grain => {
                last.to = last.to.max(span.to);
                *times += 1;
            }
            _ => coarse.push((span.clone(), 1)),
        }
    }
    let name = |(mut span, times): (Span, usize)| {
        if times > 1 {
            span.what = format!("{times} times, the first: {}", span.what);
        }
        span
    };
    coarse.into_iter().map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn span(from: u64, to: u64) -> Span {
        Span { from: ms(from), to: ms(to), what: format!("{from}") }
    }

    #[test]
    fn spans_that_are_close_become_one() {
        let spans = [span(0, 10), span(15, 20), span(40, 45), span(42, 43), span(100, 101)];
        assert_eq!(coarsen(&spans, Duration::ZERO).len(), 4, "those that overlap are one");
        let coarse = coarsen(&spans, ms(10));
        let ends: Vec<_> = coarse.iter().map(|span| (span.from, span.to)).collect();
        assert_eq!(ends, [(ms(0), ms(20)), (ms(40), ms(45)), (ms(100), ms(101))]);
        assert_eq!(coarse[0].what, "2 times, the first: 0");
        assert_eq!(coarse[2], span(100, 101));
    }

    #[test]
    fn a_wait_is_that_of_the_strike_it_met_most_of() {
        let strike = |fault, from| Strike { span: span(from, from + 1), ..Strike::new(fault, Duration::ZERO) };
        let waits = |from, to| {
            let mut strikes =
                [strike(Fault::ServerKill, 100), strike(Fault::Partition, 200), strike(Fault::Reset, 900)];
            credit(&mut strikes, ms(from), ms(to));
            strikes.map(|strike| strike.longest_wait.as_millis())
        };
        assert_eq!(waits(0, 99), [0, 0, 0], "before anything broke");
        assert_eq!(waits(110, 190), [80, 0, 0]);
        assert_eq!(waits(180, 950), [0, 770, 0]);
        assert_eq!(waits(890, 950), [0, 0, 60]);
        assert_eq!(waits(0, 150), [150, 0, 0]);
    }
}
