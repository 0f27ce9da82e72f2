//! The linearizability checker: the algorithm of Wing and Gong ("Testing and verifying concurrent objects", 1993) as
//! Lowe improved it ("Testing for linearizability", 2017). It knows specifications and moments, and nothing of file
//! systems.
//!
//! It looks for an order depth first: of all operations that have begun before the first end that is left, it takes one
//! that the specification allows, takes it off the history, and goes on. When it comes to an end whose operation was not
//! taken, the last one taken was wrong. What was tried is remembered as the set of operations taken and the state that
//! they led to (Lowe), so that no situation is gone into twice.
//!
//! To that comes one thing which the crate `todc-utils`, whose checker the tests compare this one with, does not know:
//! an operation that only looks, and sees what is there now, is taken at once and for good. Wherever else it might have
//! its place in an order, here it has it too, and the others do not mind. Without this the looks of `prompt` clients,
//! which may be ten seconds early, make too many orders.

use std::collections::HashSet;

use todc_utils::specifications::Specification;

use crate::spec::Changes;

/// What the two ends of one operation are, in the order of their moments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Call(usize),
    Return(usize),
}

/// The ends that are left, as a list in both directions. Place 0 is its head.
struct Left {
    next: Vec<usize>,
    before: Vec<usize>,
}

impl Left {
    fn new(ends: usize) -> Left {
        let next = (1..=ends + 1).map(|place| place % (ends + 1)).collect();
        let before = (0..=ends).map(|place| (place + ends) % (ends + 1)).collect();
        Left { next, before }
    }

    fn remove(&mut self, place: usize) {
        let (before, next) = (self.before[place], self.next[place]);
        self.next[before] = next;
        self.before[next] = before;
    }

    /// Undoes the last removal that is not undone.
    fn put_back(&mut self, place: usize) {
        let (before, next) = (self.before[place], self.next[place]);
        self.next[before] = place;
        self.before[next] = place;
    }
}

/// The operations that were taken.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Taken(Vec<u64>);

impl Taken {
    fn flip(&mut self, operation: usize) {
        self.0[operation / 64] ^= 1 << (operation % 64);
    }
}

/// Whether there is an order of these operations, each between its two ends, that the specification allows.
pub(crate) fn linearizable<S: Specification<Operation: Changes>>(operations: &[S::Operation], ends: &[End]) -> bool {
    let mut places = vec![(0, 0); operations.len()];
    for (place, end) in ends.iter().enumerate() {
        match end {
            End::Call(operation) => places[*operation].0 = place + 1,
            End::Return(operation) => places[*operation].1 = place + 1,
        }
    }
    assert!(places.iter().all(|(call, end)| 0 < *call && call < end), "an operation ends before it begins");
    let mut left = Left::new(ends.len());
    let mut taken = Taken(vec![0; operations.len().div_ceil(64)]);
    let mut tried: HashSet<(Taken, S::State)> = HashSet::new();
    let mut order: Vec<(usize, S::State)> = Vec::new();
    let mut state = S::init();
    let mut place = left.next[0];
    while left.next[0] != 0 {
        let mut is_wrong = true;
        if let End::Call(operation) = ends[place - 1] {
            let (allowed, after) = S::apply(&operations[operation], &state);
            taken.flip(operation);
            if allowed && tried.insert((taken.clone(), after.clone())) {
                left.remove(places[operation].0);
                left.remove(places[operation].1);
                order.push((operation, std::mem::replace(&mut state, after)));
                place = left.next[0];
                continue;
            }
            taken.flip(operation);
            // Had it been taken, that would have been for good; but what follows then was tried before.
            is_wrong = allowed && !operations[operation].changes();
        }
        if !is_wrong {
            place = left.next[place];
            continue;
        }
        loop {
            let Some((last, before)) = order.pop() else { return false };
            state = before;
            taken.flip(last);
            left.put_back(places[last].1);
            left.put_back(places[last].0);
            if operations[last].changes() {
                place = left.next[places[last].0];
                break;
            }
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};
    use todc_utils::linearizability::WGLChecker;
    use todc_utils::linearizability::history::{Action, History};

    use super::*;
    use crate::contents::Value;
    use crate::spec::{Done, FileOp, FileSpec, NameOp, NameSpec};

    /// Random ends of so many operations, some of which go on to the end of the history.
    fn random_ends(random: &mut SmallRng, operations: usize) -> Vec<End> {
        let mut ends: Vec<(u32, End)> = Vec::new();
        for operation in 0..operations {
            let call = random.random_range(0..100);
            let end = if random.random_bool(0.15) { 1000 } else { call + random.random_range(1..40) };
            ends.extend([(call, End::Call(operation)), (end, End::Return(operation))]);
        }
        ends.sort_by_key(|(moment, _)| *moment);
        ends.into_iter().map(|(_, end)| end).collect()
    }

    /// The other checker's verdict is this one's.
    fn agree<S: Specification<Operation: Changes>>(operations: &[S::Operation], ends: &[End]) -> bool {
        let action = |end: &End| match end {
            End::Call(operation) => (*operation, Action::Call(operations[*operation].clone())),
            End::Return(operation) => (*operation, Action::Response(operations[*operation].clone())),
        };
        let others = WGLChecker::<S>::is_linearizable(History::from_actions(ends.iter().map(action).collect()));
        assert_eq!(linearizable::<S>(operations, ends), others, "{operations:?} {ends:?}");
        others
    }

    fn both_often(verdicts: &[bool]) {
        let good = verdicts.iter().filter(|good| **good).count();
        assert!(good > verdicts.len() / 20 && good < verdicts.len() / 20 * 19, "{good} of {}", verdicts.len());
    }

    #[test]
    fn registers_are_judged_as_by_another_checker() {
        let mut random = SmallRng::seed_from_u64(1);
        let verdicts = (0..2000).map(|_| {
            let operation = |random: &mut SmallRng| {
                let value = Value::new(random.random_range(1..4), 10);
                if random.random_bool(0.5) { FileOp::Write(value) } else { FileOp::Read(value) }
            };
            let count = random.random_range(2..9);
            let operations: Vec<FileOp> = (0..count).map(|_| operation(&mut random)).collect();
            agree::<FileSpec>(&operations, &random_ends(&mut random, count))
        });
        both_often(&verdicts.collect::<Vec<_>>());
    }

    #[test]
    fn names_are_judged_as_by_another_checker() {
        let mut random = SmallRng::seed_from_u64(2);
        let verdicts = (0..2000).map(|_| {
            let operation = |random: &mut SmallRng, object: u32| {
                let at = (0, random.random_range(0..2));
                let done = [Done::Yes, Done::Yes, Done::No, Done::Unknown][random.random_range(0..4)];
                match random.random_range(0..3) {
                    0 => NameOp::Create { at, object, done },
                    1 => NameOp::Unlink { at, done },
                    _ => NameOp::Lookup { at, found: random.random_bool(0.4).then(|| random.random_range(0..4)) },
                }
            };
            let count = random.random_range(2..8);
            let operations: Vec<NameOp> = (0..count).map(|object| operation(&mut random, object as u32)).collect();
            agree::<NameSpec>(&operations, &random_ends(&mut random, count))
        });
        both_often(&verdicts.collect::<Vec<_>>());
    }

    #[test]
    fn many_looks_that_may_be_early_make_no_work() {
        // Each look may come before or behind all writes but the one that it must see; then nobody wrote what is seen.
        let value = |id: usize| Value::new(id as u32 + 1, 10);
        let mut operations: Vec<FileOp> = (0..60).map(|id| FileOp::Write(value(id))).collect();
        operations.extend((0..600).map(|look| FileOp::Read(value(look / 10))));
        operations.push(FileOp::Read(value(1000)));
        let mut ends: Vec<End> = (60..661).map(End::Call).collect();
        ends.extend((0..60).flat_map(|write| [End::Call(write), End::Return(write)]));
        ends.extend((60..661).map(End::Return));
        assert!(!linearizable::<FileSpec>(&operations, &ends));
        operations.pop();
        ends.retain(|end| !matches!(end, End::Call(660) | End::Return(660)));
        assert!(linearizable::<FileSpec>(&operations, &ends));
    }
}
