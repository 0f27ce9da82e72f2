//! What happened to objects while something else was under way.
//!
//! A reply that was worked out, or sent, while an object changed must not be taken for fresh; see rule 6 of
//! `client-fuse/src/mode/afs/mod.rs`. Whoever begins takes a [`Since`]; later it asks whether an object had an event
//! since then. Events are kept only as long as someone may ask for them.

use std::collections::{BTreeMap, VecDeque};

/// The moment at which something began. Has to be given back with [`EventLog::end`].
#[derive(Debug, PartialEq, Eq)]
#[must_use = "events are kept until it is given back"]
pub struct Since(u64);

/// Events on objects, in their order.
#[derive(Debug, Default)]
pub struct EventLog {
    next: u64,
    events: VecDeque<(u64, u64)>,
    /// The last event that concerns every object.
    last_of_all: Option<u64>,
    open: BTreeMap<u64, usize>,
}

impl EventLog {
    /// Something begins now.
    pub fn begin(&mut self) -> Since {
        *self.open.entry(self.next).or_default() += 1;
        Since(self.next)
    }

    /// Something happens to an object.
    pub fn note(&mut self, object: u64) {
        if !self.open.is_empty() {
            self.events.push_back((self.next, object));
        }
        self.next += 1;
    }

    /// Something happens to all objects.
    pub fn note_all(&mut self) {
        self.last_of_all = Some(self.next);
        self.next += 1;
    }

    /// Whether anything happened to the object since then.
    pub fn overtaken(&self, since: &Since, object: u64) -> bool {
        if self.last_of_all.is_some_and(|last| last >= since.0) {
            return true;
        }
        let from = self.events.partition_point(|(number, _)| *number < since.0);
        self.events.range(from..).any(|(_, seen)| *seen == object)
    }

    /// Nobody asks about this moment any more.
    pub fn end(&mut self, since: Since) {
        if let Some(count) = self.open.get_mut(&since.0) {
            *count -= 1;
            if *count == 0 {
                self.open.remove(&since.0);
            }
        }
        let oldest = self.open.first_key_value().map_or(self.next, |(oldest, _)| *oldest);
        while self.events.front().is_some_and(|(number, _)| *number < oldest) {
            self.events.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_count_from_the_moment_on() {
        let mut log = EventLog::default();
        log.note(1);
        let first = log.begin();
        assert!(!log.overtaken(&first, 1));
        log.note(2);
        let second = log.begin();
        assert!(log.overtaken(&first, 2) && !log.overtaken(&second, 2));
        log.note(3);
        assert!(log.overtaken(&first, 3) && log.overtaken(&second, 3) && !log.overtaken(&second, 1));
        log.end(first);
        assert!(log.overtaken(&second, 3));
        log.end(second);
        assert!(log.events.is_empty() && log.open.is_empty());
    }

    #[test]
    fn an_event_on_all_overtakes_everything_before_it() {
        let mut log = EventLog::default();
        let before = log.begin();
        log.note_all();
        let after = log.begin();
        assert!(log.overtaken(&before, 9) && !log.overtaken(&after, 9));
        log.end(before);
        log.end(after);
    }

    #[test]
    fn nothing_is_kept_for_nobody() {
        let mut log = EventLog::default();
        for object in 0..1000 {
            log.note(object);
        }
        assert!(log.events.is_empty());
        let (old, new) = (log.begin(), log.begin());
        log.note(1);
        log.end(old);
        assert_eq!(log.events.len(), 1, "another one that began then is still there");
        log.end(new);
        assert!(log.events.is_empty());
    }
}
