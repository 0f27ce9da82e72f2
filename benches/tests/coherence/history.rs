//! What the programs saw, and whether there is an order of all operations that explains it.
//!
//! Each file is a history of its own, and so are the directories between which names are not moved: a system is
//! linearizable if each of its objects is.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use larder_benches::digest::Digest;
use todc_utils::specifications::Specification;
use tokio::time::Instant;

use crate::contents::Value;
use crate::spec::{Changes, FileOp, FileSpec, NameOp, NameSpec, Object, Place};
use crate::wgl::{self, End};

/// Operations shown of a history without an explanation.
const SHOWN: usize = 25;

/// A moment in a world, which has one order of all that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment {
    at: Duration,
    number: u64,
}

impl Moment {
    /// Behind everything.
    const NEVER: Moment = Moment { at: Duration::MAX, number: u64::MAX };
}

/// An operation, and when it may have taken its place.
#[derive(Clone, Debug)]
pub(crate) struct Event<T> {
    pub(crate) began: Moment,
    /// At any time from then on, or not at all, if this is [`Moment::NEVER`].
    pub(crate) ended: Moment,
    pub(crate) op: T,
    /// The client, for whoever reads of it.
    pub(crate) by: usize,
}

/// A write that was begun, until it is known to be done or never to be.
#[derive(Debug)]
#[must_use = "it counts as one of unknown fate"]
pub(crate) struct Ticket {
    file: usize,
    place: usize,
}

#[derive(Clone, Copy, Debug)]
enum Seen {
    Op(FileOp),
    /// Its size, asked for without opening it.
    Size(u32),
    /// A write that will never be.
    Nothing,
}

#[derive(Debug, Default)]
struct Inner {
    last: u64,
    last_id: u32,
    files: Vec<Vec<Event<Seen>>>,
    names: Vec<Vec<Event<NameOp>>>,
    listings: Vec<Event<(usize, BTreeMap<usize, u64>)>>,
    /// The objects by their inode numbers, as far as anybody has seen both.
    objects: BTreeMap<u64, Object>,
    /// Sizes that were given out, of each file.
    sizes: Vec<Vec<u32>>,
}

/// What happened in a world.
#[derive(Debug)]
pub(crate) struct History {
    began: Instant,
    /// Which set of directories one belongs to.
    groups: Vec<usize>,
    inner: Mutex<Inner>,
}

/// How much there was to be explained.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) reads: usize,
    pub(crate) writes: usize,
    pub(crate) names: usize,
    /// Changes of which nobody knows whether they happened.
    pub(crate) unknown: usize,
}

impl History {
    /// Nothing yet. `groups` has the set that each directory belongs to.
    pub(crate) fn new(files: usize, groups: &[usize]) -> Arc<History> {
        let sets = groups.iter().max().map_or(0, |last| last + 1);
        let inner = Inner {
            files: vec![Vec::new(); files],
            names: vec![Vec::new(); sets],
            sizes: vec![Vec::new(); files],
            ..Inner::default()
        };
        Arc::new(History { began: Instant::now(), groups: groups.to_vec(), inner: Mutex::new(inner) })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// Now.
    pub(crate) fn now(&self) -> Moment {
        let mut inner = self.lock();
        inner.last += 1;
        Moment { at: self.began.elapsed(), number: inner.last }
    }

    /// A number that nothing had before.
    pub(crate) fn new_id(&self) -> u32 {
        let mut inner = self.lock();
        inner.last_id += 1;
        inner.last_id
    }

    /// About so many bytes: as many as no version of the file had before, so that the size alone tells which it is.
    pub(crate) fn new_size(&self, file: usize, about: u32) -> u32 {
        let sizes = &mut self.lock().sizes[file];
        let size = (about..).find(|size| !sizes.contains(size)).unwrap_or(about);
        sizes.push(size);
        size
    }

    /// A file was opened between these moments, and has this in it.
    pub(crate) fn read(&self, by: usize, file: usize, began: Moment, ended: Moment, value: Value) {
        self.lock().files[file].push(Event { began, ended, op: Seen::Op(FileOp::Read(value)), by });
    }

    /// A file was of this size at some moment since.
    pub(crate) fn size(&self, by: usize, file: usize, began: Moment, size: u32) {
        let ended = self.now();
        self.lock().files[file].push(Event { began, ended, op: Seen::Size(size), by });
    }

    /// From now on this may get into a file.
    pub(crate) fn may_write(&self, by: usize, file: usize, value: Value) -> Ticket {
        let began = self.now();
        let events = &mut self.lock().files[file];
        events.push(Event { began, ended: Moment::NEVER, op: Seen::Op(FileOp::Write(value)), by });
        Ticket { file, place: events.len() - 1 }
    }

    /// It is in the file, or was.
    pub(crate) fn written(&self, ticket: Ticket) {
        let ended = self.now();
        self.lock().files[ticket.file][ticket.place].ended = ended;
    }

    /// It has not got into the file and will not: something else takes its place.
    pub(crate) fn not_written(&self, ticket: Ticket) {
        self.lock().files[ticket.file][ticket.place].op = Seen::Nothing;
    }

    /// A change of names is going to be asked for.
    pub(crate) fn may_change(&self, by: usize, dir: usize, op: NameOp) -> Ticket {
        let began = self.now();
        let set = self.groups[dir];
        let events = &mut self.lock().names[set];
        events.push(Event { began, ended: Moment::NEVER, op, by });
        Ticket { file: set, place: events.len() - 1 }
    }

    /// It was answered so.
    pub(crate) fn changed(&self, ticket: Ticket, op: NameOp) {
        let ended = self.now();
        let event = &mut self.lock().names[ticket.file][ticket.place];
        (event.ended, event.op) = (ended, op);
    }

    /// A name was looked up.
    pub(crate) fn looked_up(&self, by: usize, at: Place, began: Moment, found: Option<Object>) {
        let ended = self.now();
        let set = self.groups[at.0];
        self.lock().names[set].push(Event { began, ended, op: NameOp::Lookup { at, found }, by });
    }

    /// A directory was listed: names and inode numbers.
    pub(crate) fn listed(&self, by: usize, dir: usize, began: Moment, names: BTreeMap<usize, u64>) {
        let ended = self.now();
        self.lock().listings.push(Event { began, ended, op: (dir, names), by });
    }

    /// This object has that inode number.
    pub(crate) fn is(&self, inode: u64, object: Object) {
        let before = self.lock().objects.insert(inode, object);
        assert!(before.is_none_or(|before| before == object), "inode {inode} is of {object} and of {before:?}");
    }

    /// All of it.
    pub(crate) fn note(&self, digest: &mut Digest) {
        digest.note(&*self.lock());
    }

    /// How many files there are, and sets of directories.
    fn objects(&self) -> (usize, usize) {
        let inner = self.lock();
        (inner.files.len(), inner.names.len())
    }

    fn file_events(&self, file: usize) -> Vec<Event<FileOp>> {
        let inner = self.lock();
        let events = &inner.files[file];
        let written = |size: u32| {
            let mut values: Vec<Value> = events
                .iter()
                .filter_map(|event| match event.op {
                    Seen::Op(FileOp::Write(value)) if value.len() == size => Some(value),
                    _ => None,
                })
                .collect();
            values.dedup();
            match values[..] {
                _ if size == 0 => Some(Value::EMPTY),
                [] => Some(Value::nobodys(size)),
                [value] => Some(value),
                // There is no telling.
                _ => None,
            }
        };
        let told = events.iter().filter_map(|event| {
            let op = match event.op {
                Seen::Op(op) => op,
                Seen::Size(size) => FileOp::Read(written(size)?),
                Seen::Nothing => return None,
            };
            Some(Event { began: event.began, ended: event.ended, op, by: event.by })
        });
        let mut told: Vec<Event<FileOp>> = told.collect();
        // A write of unknown fate that nobody has seen can take its place behind everything. That needs no search.
        let seen: Vec<Value> = told
            .iter()
            .filter_map(|event| match event.op {
                FileOp::Read(value) => Some(value),
                FileOp::Write(_) => None,
            })
            .collect();
        told.retain(|event| match event.op {
            FileOp::Write(value) => event.ended < Moment::NEVER || seen.contains(&value),
            FileOp::Read(_) => true,
        });
        told
    }

    fn name_events(&self, set: usize) -> Vec<Event<NameOp>> {
        let inner = self.lock();
        let listings = inner.listings.iter().filter(|event| self.groups[event.op.0] == set);
        let listings = listings.map(|event| {
            let (dir, names) = &event.op;
            let names = names.iter().map(|(name, inode)| (*name, inner.objects.get(inode).copied())).collect();
            Event { began: event.began, ended: event.ended, op: NameOp::List { dir: *dir, names }, by: event.by }
        });
        inner.names[set].iter().cloned().chain(listings).collect()
    }

    /// How much there was.
    pub(crate) fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        let (files, sets) = self.objects();
        for event in (0..files).flat_map(|file| self.file_events(file)) {
            match event.op {
                FileOp::Read(_) => counts.reads += 1,
                FileOp::Write(_) if event.ended == Moment::NEVER => counts.unknown += 1,
                FileOp::Write(_) => counts.writes += 1,
            }
        }
        for event in (0..sets).flat_map(|set| self.name_events(set)) {
            counts.names += 1;
            counts.unknown += usize::from(event.ended == Moment::NEVER);
        }
        counts
    }

    /// Looks for an order that explains everything; what shows the past may take its place `earlier` than it began.
    ///
    /// # Errors
    /// Objects of which there is no such order, with all that was done to them.
    pub(crate) fn check(&self, earlier: Duration) -> Result<(), String> {
        let (files, sets) = self.objects();
        let mut failed = Vec::new();
        for file in 0..files {
            let events = self.file_events(file);
            let early = |op: &FileOp| shift(!op.changes(), earlier);
            if !linearizable::<FileSpec>(&events, early) {
                failed.push(format!("file {file}:\n{}", shown::<FileSpec>(&events, early)));
            }
        }
        for set in 0..sets {
            let events = self.name_events(set);
            let early = |op: &NameOp| shift(!op.changes(), earlier);
            if !linearizable::<NameSpec>(&events, early) {
                failed.push(format!("directories {set}:\n{}", shown::<NameSpec>(&events, early)));
            }
        }
        if failed.is_empty() { Ok(()) } else { Err(failed.join("\n")) }
    }
}

fn shift(is_read: bool, earlier: Duration) -> Duration {
    if is_read { earlier } else { Duration::ZERO }
}

/// Whether there is an order of the operations, each between its beginning and its end, that the specification allows.
/// `earlier` says how much earlier than it began one may take its place.
fn linearizable<S: Specification<Operation: Changes>>(
    events: &[Event<S::Operation>],
    earlier: impl Fn(&S::Operation) -> Duration,
) -> bool {
    let mut ends: Vec<(Moment, End)> = Vec::new();
    for (number, event) in events.iter().enumerate() {
        let by = earlier(&event.op);
        let mut began = event.began;
        if !by.is_zero() {
            began = Moment { at: began.at.saturating_sub(by), number: 0 };
        }
        ends.extend([(began, End::Call(number)), (event.ended, End::Return(number))]);
    }
    ends.sort_by_key(|(moment, _)| *moment);
    let operations: Vec<S::Operation> = events.iter().map(|event| event.op.clone()).collect();
    let ends: Vec<End> = ends.into_iter().map(|(_, end)| end).collect();
    wgl::linearizable::<S>(&operations, &ends)
}

/// The end of the shortest part of a history, from its beginning on, that has no explanation.
fn shown<S: Specification<Operation: Changes>>(
    events: &[Event<S::Operation>],
    earlier: impl Fn(&S::Operation) -> Duration + Copy,
) -> String {
    let mut ends: Vec<Moment> = events.iter().map(|event| event.ended).collect();
    ends.sort();
    let until = |end: Moment| -> Vec<Event<S::Operation>> {
        let cut = |event: &Event<S::Operation>| {
            let ended = if event.ended <= end { event.ended } else { Moment::NEVER };
            Event { ended, ..event.clone() }
        };
        // What looked and had not ended may have seen anything.
        let begun = events.iter().filter(|event| event.began < end);
        begun.filter(|event| event.ended <= end || event.op.changes()).map(cut).collect()
    };
    // A part without an explanation does not get one by what follows.
    let first = ends.partition_point(|end| linearizable::<S>(&until(*end), earlier));
    let mut part = until(ends.get(first).copied().unwrap_or(Moment::NEVER));
    part.sort_by_key(|event| event.began);
    let line = |event: &Event<S::Operation>| {
        let Event { began, ended, op, by } = event;
        let end = if *ended == Moment::NEVER {
            "an unknown moment".to_owned()
        } else {
            format!("{:.3} ({})", ended.at.as_secs_f64(), ended.number)
        };
        format!("  from {:.3} ({}) to {end}, client {by}: {op:?}", began.at.as_secs_f64(), began.number)
    };
    let skip = part.len().saturating_sub(SHOWN);
    let lines = part[skip..].iter().map(line).collect::<Vec<_>>().join("\n");
    format!("  (after {skip} others)\n{lines}")
}

#[cfg(test)]
mod tests {
    use larder_protocol::service::file::RenameHow;

    use super::*;
    use crate::spec::Done;
    use FileOp::{Read, Write};

    fn at(secs: u64) -> Moment {
        if secs == u64::MAX {
            return Moment::NEVER;
        }
        Moment { at: Duration::from_secs(secs), number: secs }
    }

    fn holds<S: Specification<Operation: Changes>>(events: &[(u64, u64, S::Operation)]) -> bool {
        holds_with::<S>(events, |_| Duration::ZERO)
    }

    fn holds_with<S: Specification<Operation: Changes>>(
        events: &[(u64, u64, S::Operation)],
        earlier: impl Fn(&S::Operation) -> Duration,
    ) -> bool {
        let event = |(began, ended, op): &(u64, u64, S::Operation)| Event {
            began: at(*began),
            ended: at(*ended),
            op: op.clone(),
            by: 0,
        };
        linearizable::<S>(&events.iter().map(event).collect::<Vec<_>>(), earlier)
    }

    fn value(id: u32) -> Value {
        Value::new(id, 100)
    }

    const EVER: u64 = u64::MAX;

    #[test]
    fn a_read_shows_what_was_written_last() {
        let (a, b) = (value(1), value(2));
        assert!(holds::<FileSpec>(&[(1, 2, Read(Value::EMPTY)), (3, 4, Write(a)), (5, 6, Read(a))]));
        assert!(!holds::<FileSpec>(&[(3, 4, Write(a)), (5, 6, Read(Value::EMPTY))]));
        assert!(!holds::<FileSpec>(&[(1, 2, Write(a)), (3, 4, Write(b)), (5, 6, Read(a))]));
        assert!(!holds::<FileSpec>(&[(1, 2, Write(a)), (3, 4, Read(b))]), "nobody wrote that");
    }

    #[test]
    fn what_overlaps_may_be_in_either_order_but_in_one() {
        let (a, b) = (value(1), value(2));
        for (first, last) in [(a, b), (b, a)] {
            assert!(holds::<FileSpec>(&[(1, 9, Write(a)), (2, 8, Write(b)), (10, 11, Read(last))]));
            assert!(holds::<FileSpec>(&[
                (1, 9, Write(a)),
                (2, 8, Write(b)),
                (3, 4, Read(first)),
                (5, 6, Read(last)),
                (10, 11, Read(last)),
            ]));
        }
        assert!(!holds::<FileSpec>(&[(1, 9, Write(a)), (2, 8, Write(b)), (10, 11, Read(a)), (12, 13, Read(b))]));
        assert!(!holds::<FileSpec>(&[(1, 9, Write(a)), (2, 3, Read(a)), (4, 5, Read(Value::EMPTY))]));
    }

    #[test]
    fn a_write_of_unknown_fate_happens_late_or_never_but_once() {
        let (a, b) = (value(1), value(2));
        let lost = (1, EVER, Write(a));
        assert!(holds::<FileSpec>(&[lost, (2, 3, Write(b)), (4, 5, Read(b))]));
        assert!(holds::<FileSpec>(&[lost, (2, 3, Write(b)), (4, 5, Read(b)), (6, 7, Read(a))]));
        assert!(!holds::<FileSpec>(&[lost, (2, 3, Read(a)), (4, 5, Write(b)), (6, 7, Read(a))]));
        assert!(!holds::<FileSpec>(&[(2, 3, Read(a)), (4, EVER, Write(a))]));
    }

    #[test]
    fn a_read_that_may_be_early_is_late_by_no_more() {
        let history = [(1, 2, Write(value(1))), (20, 21, Write(value(2))), (30, 31, Read(value(1)))];
        let early = |secs: u64| move |op: &FileOp| Duration::from_secs(if matches!(op, Read(_)) { secs } else { 0 });
        assert!(!holds_with::<FileSpec>(&history, early(8)));
        assert!(holds_with::<FileSpec>(&history, early(10)));
    }

    #[test]
    fn names_are_made_moved_and_removed() {
        let create = |name, object, done| NameOp::Create { at: (0, name), object, done };
        let unlink = |name, done| NameOp::Unlink { at: (0, name), done };
        let lookup = |name, found| NameOp::Lookup { at: (0, name), found };
        let rename = |from, to, how, done| NameOp::Rename { from: (0, from), to: (1, to), how, done };
        assert!(holds::<NameSpec>(&[
            (1, 2, lookup(1, None)),
            (3, 4, create(1, 7, Done::Yes)),
            (5, 6, create(1, 8, Done::No)),
            (7, 8, rename(1, 2, RenameHow::Exchange, Done::No)),
            (9, 10, rename(1, 2, RenameHow::NoReplace, Done::Yes)),
            (11, 12, unlink(1, Done::No)),
            (13, 14, NameOp::Lookup { at: (1, 2), found: Some(7) }),
            (15, 16, NameOp::List { dir: 1, names: BTreeMap::from([(2, None)]) }),
            (17, 18, NameOp::List { dir: 0, names: BTreeMap::new() }),
        ]));
        assert!(!holds::<NameSpec>(&[(1, 2, create(1, 7, Done::Yes)), (3, 4, lookup(1, None))]));
        assert!(!holds::<NameSpec>(&[(1, 2, create(1, 7, Done::Yes)), (3, 4, create(1, 8, Done::Yes))]));
        assert!(!holds::<NameSpec>(&[(1, 2, create(1, 7, Done::Yes)), (3, 4, lookup(1, Some(8)))]));
        let list = |object| NameOp::List { dir: 0, names: BTreeMap::from([(1, Some(object))]) };
        assert!(holds::<NameSpec>(&[(1, 2, create(1, 7, Done::Yes)), (3, 4, list(7))]));
        assert!(!holds::<NameSpec>(&[(1, 2, create(1, 7, Done::Yes)), (3, 4, list(8))]));
        // A removal of unknown fate: between the two lookups, or not.
        let lost = (3, EVER, unlink(1, Done::Unknown));
        let made = (1, 2, create(1, 7, Done::Yes));
        assert!(holds::<NameSpec>(&[made.clone(), lost.clone(), (5, 6, lookup(1, Some(7))), (7, 8, lookup(1, None))]));
        assert!(!holds::<NameSpec>(&[made, lost, (5, 6, lookup(1, None)), (7, 8, lookup(1, Some(7)))]));
    }
}
