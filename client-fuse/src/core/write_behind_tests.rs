use std::collections::BTreeMap;

use larder_protocol::ids::Epoch;
use proptest::prelude::*;

use super::*;

const NOW: BootTime = Duration::from_secs(1);

fn verifier(epoch: u64) -> Verifier {
    Verifier { epoch: Epoch(epoch), volume: 1 }
}

fn small() -> WriteBehind {
    WriteBehind::new(Config { max_write: 16, window: 4, high: 2000, low: 600, commit_at: 3000 })
}

fn bytes(value: u8, len: usize) -> Bytes {
    Bytes::from(vec![value; len])
}

/// The next action, which must be a write of one range.
fn write(data: &mut WriteBehind) -> (u64, u64, Bytes, bool) {
    match data.next_action() {
        Some(Action::Write { id, parts, stable }) => match <[_; 1]>::try_from(parts) {
            Ok([(offset, data)]) => (id, offset, data, stable),
            Err(parts) => panic!("a write of several ranges: {parts:?}"),
        },
        other => panic!("no write but {other:?}"),
    }
}

/// Where the ranges of the next action lie, which must be a write, and whether it is stable.
fn scattered(data: &mut WriteBehind) -> (u64, Vec<(u64, usize)>, bool) {
    match data.next_action() {
        Some(Action::Write { id, parts, stable }) => {
            (id, parts.into_iter().map(|(offset, data)| (offset, data.len())).collect(), stable)
        }
        other => panic!("no write but {other:?}"),
    }
}

fn commit(data: &mut WriteBehind) -> u64 {
    match data.next_action() {
        Some(Action::Commit { id }) => id,
        other => panic!("no commit but {other:?}"),
    }
}

#[test]
fn data_stays_here_until_somebody_flushes() {
    let mut data = WriteBehind::new(Config::default());
    for piece in 0..4 {
        data.write(piece << 20, bytes(1, 1 << 20), NOW);
    }
    assert_eq!(data.next_action(), None, "4 MiB are kept back");
    let epoch = data.flush(true);
    assert!(!data.reached(epoch, true));
    assert_eq!(write(&mut data).1, 0);
}

#[test]
fn much_data_is_streamed_out_down_to_the_low_mark() {
    let mut data = WriteBehind::new(Config::default());
    for piece in 0..9 {
        data.write(piece << 20, bytes(1, 1 << 20), NOW);
    }
    let mut sent = 0;
    while let Some(Action::Write { id, stable, .. }) = data.next_action() {
        assert!(!stable);
        data.wrote(id, Some((false, verifier(1))));
        sent += 1;
    }
    assert_eq!(sent, 6, "4 MiB and their administration are a little too much");
}

#[test]
fn a_flush_of_one_request_is_stable_and_needs_no_commit() {
    let mut data = small();
    data.write(0, bytes(1, 4), NOW);
    data.write(4, bytes(2, 4), NOW);
    let epoch = data.flush(true);
    let (id, offset, sent, stable) = write(&mut data);
    assert_eq!((offset, sent.len(), stable), (0, 8, true), "coalesced");
    data.wrote(id, Some((true, verifier(1))));
    assert!(data.reached(epoch, true) && data.is_idle());
}

#[test]
fn a_flush_of_several_requests_ends_with_a_commit() {
    let mut data = small();
    data.write(0, bytes(1, 16), NOW);
    data.write(32, bytes(2, 16), NOW);
    let epoch = data.flush(true);
    let (first, _, _, stable) = write(&mut data);
    let second = write(&mut data).0;
    assert!(!stable);
    data.wrote(first, Some((false, verifier(1))));
    assert_eq!(data.next_action(), None, "the commit waits for the second write");
    data.wrote(second, Some((false, verifier(1))));
    assert!(data.reached(epoch, false) && !data.reached(epoch, true));
    let id = commit(&mut data);
    assert_eq!(data.next_action(), None);
    data.committed(id, Some(verifier(1)));
    assert!(data.reached(epoch, true) && data.is_idle());
}

#[test]
fn what_a_flush_waits_for_goes_in_one_request_however_scattered_it_is() {
    let mut data = small();
    for at in [40, 0, 20] {
        data.write(at, bytes(1, 4), NOW);
    }
    let epoch = data.flush(true);
    data.write(60, bytes(2, 2), NOW);
    let (id, parts, stable) = scattered(&mut data);
    assert_eq!((parts, stable), (vec![(0, 4), (20, 4), (40, 4)], true), "and nothing that was written later");
    assert_eq!(data.next_action(), None);
    assert_eq!(data.read(20, 24), Cover::Full(bytes(1, 4)));
    data.write(21, bytes(3, 1), NOW);
    data.wrote(id, Some((true, verifier(1))));
    assert!(data.reached(epoch, true));
    assert_eq!(data.read(19, 24), Cover::Partial(vec![(21, bytes(3, 1))]));
}

#[test]
fn more_than_a_request_holds_goes_in_several_and_is_committed() {
    let mut data = small();
    for at in 0..3 {
        data.write(at * 20, bytes(1, 7), NOW);
    }
    let epoch = data.flush(true);
    let (first, parts, stable) = scattered(&mut data);
    assert_eq!((parts, stable), (vec![(0, 7), (20, 7)], false));
    let (second, parts, _) = scattered(&mut data);
    assert_eq!(parts, [(40, 7)]);
    for id in [second, first] {
        data.wrote(id, Some((false, verifier(1))));
    }
    let id = commit(&mut data);
    data.committed(id, Some(verifier(1)));
    assert!(data.reached(epoch, true) && data.is_idle());
}

#[test]
fn a_request_has_no_more_ranges_than_the_server_takes() {
    let mut data = WriteBehind::new(Config::default());
    for at in 0..MAX_WRITE_PARTS as u64 + 1 {
        data.write(at * 10, bytes(1, 1), NOW);
    }
    data.flush(true);
    let (_, parts, stable) = scattered(&mut data);
    assert_eq!((parts.len(), stable), (MAX_WRITE_PARTS, false));
    assert_eq!(scattered(&mut data).1, [(MAX_WRITE_PARTS as u64 * 10, 1)]);
}

#[test]
fn what_memory_alone_sends_away_goes_piece_by_piece() {
    let mut data = small();
    for at in 0..20 {
        data.write(at * 20, bytes(1, 4), NOW);
    }
    assert_eq!(scattered(&mut data).1, [(0, 4)]);
}

#[test]
fn another_verifier_sends_everything_again() {
    let mut data = small();
    data.write(0, bytes(1, 16), NOW);
    data.write(32, bytes(2, 16), NOW);
    let epoch = data.flush(true);
    let (first, second) = (write(&mut data).0, write(&mut data).0);
    data.wrote(first, Some((false, verifier(1))));
    data.wrote(second, Some((false, verifier(1))));
    let id = commit(&mut data);
    data.committed(id, Some(verifier(2)));
    assert!(!data.reached(epoch, false));
    assert_eq!(write(&mut data).1, 0);
    assert_eq!(write(&mut data).1, 32);
}

#[test]
fn what_only_an_older_server_process_had_is_here_again_as_soon_as_a_new_one_answers() {
    let mut data = small();
    data.write(0, bytes(1, 8), NOW);
    data.flush(false);
    let (id, ..) = write(&mut data);
    data.wrote(id, Some((false, verifier(1))));
    data.served_by(Epoch(1));
    assert_eq!((data.read(0, 8), data.setbacks()), (Cover::None, 0));
    data.served_by(Epoch(2));
    assert_eq!((data.read(0, 8), data.end(), data.setbacks()), (Cover::Full(bytes(1, 8)), Some(8), 1));
    let (_, offset, again, _) = write(&mut data);
    assert_eq!((offset, again), (0, bytes(1, 8)), "nobody has to ask for it");
}

#[test]
fn a_write_that_sees_another_verifier_brings_the_older_ones_back() {
    let mut data = small();
    data.write(0, bytes(1, 16), NOW);
    data.write(32, bytes(2, 16), NOW);
    data.flush(false);
    let (first, second) = (write(&mut data).0, write(&mut data).0);
    data.wrote(first, Some((false, verifier(1))));
    data.wrote(second, Some((false, verifier(2))));
    assert_eq!(write(&mut data).1, 0, "without waiting for a commit");
}

#[test]
fn a_commit_vouches_only_for_writes_answered_before_it() {
    let mut data = small();
    data.write(0, bytes(1, 16), NOW);
    data.flush(false);
    let first = write(&mut data).0;
    data.wrote(first, Some((false, verifier(1))));
    data.commit_soon();
    let id = commit(&mut data);
    data.write(32, bytes(2, 16), NOW);
    data.flush(false);
    let second = write(&mut data).0;
    data.wrote(second, Some((false, verifier(1))));
    data.committed(id, Some(verifier(1)));
    assert!(data.has_uncommitted(), "the second write came after the commit");
}

#[test]
fn no_two_requests_in_flight_overlap() {
    let mut data = small();
    data.write(0, bytes(1, 16), NOW);
    data.flush(true);
    let first = write(&mut data).0;
    data.write(8, bytes(2, 16), NOW);
    let epoch = data.flush(true);
    assert_eq!(data.next_action(), None);
    assert_eq!(data.write_through(0, &bytes(3, 4), NOW), None);
    data.wrote(first, Some((true, verifier(1))));
    let (second, offset, sent, _) = write(&mut data);
    assert_eq!((offset, &sent[..]), (8, &[2; 16][..]));
    data.wrote(second, Some((true, verifier(1))));
    assert!(data.reached(epoch, true));
}

#[test]
fn a_flush_does_not_wait_for_what_is_written_later() {
    let mut data = small();
    data.write(0, bytes(1, 16), NOW);
    let epoch = data.flush(true);
    let id = write(&mut data).0;
    data.write(100, bytes(2, 16), NOW);
    data.wrote(id, Some((true, verifier(1))));
    assert!(data.reached(epoch, true));
    assert_eq!(data.next_action(), None, "and the later data is kept back");
}

#[test]
fn overwriting_sent_data_does_not_spare_a_flush_its_commit() {
    let mut data = small();
    data.write(0, bytes(1, 16), NOW);
    data.write(32, bytes(1, 16), NOW);
    let epoch = data.flush(true);
    let (first, second) = (write(&mut data).0, write(&mut data).0);
    data.wrote(first, Some((false, verifier(1))));
    data.wrote(second, Some((false, verifier(1))));
    data.write(0, bytes(2, 16), NOW);
    data.write(32, bytes(2, 16), NOW);
    assert!(!data.reached(epoch, true));
    let id = commit(&mut data);
    assert!(!data.reached(epoch, true));
    data.committed(id, Some(verifier(1)));
    assert!(data.reached(epoch, true));
}

#[test]
fn reads_see_the_newest_layer() {
    let mut data = small();
    assert_eq!(data.read(0, 8), Cover::None);
    data.write(0, bytes(1, 8), NOW);
    data.flush(false);
    let id = write(&mut data).0;
    data.write(2, bytes(2, 2), NOW);
    assert_eq!(data.read(0, 8), Cover::Full(Bytes::from_static(&[1, 1, 2, 2, 1, 1, 1, 1])));
    assert_eq!(data.read(4, 9), Cover::Partial(vec![(4, bytes(1, 4))]));
    assert_eq!(data.end(), Some(8));
    data.wrote(id, Some((false, verifier(1))));
    assert_eq!(data.read(4, 8), Cover::None, "the server has it");
    assert_eq!(data.read(1, 4), Cover::Partial(vec![(2, bytes(2, 2))]));
}

#[test]
fn what_is_refused_or_discarded_is_gone() {
    let mut data = small();
    data.write(0, bytes(1, 8), NOW);
    let epoch = data.flush(true);
    let id = write(&mut data).0;
    data.wrote(id, None);
    assert!(data.reached(epoch, true) && data.is_idle());

    data.write(0, bytes(1, 16), NOW);
    data.write(32, bytes(1, 16), NOW);
    data.flush(false);
    let id = write(&mut data).0;
    data.discard();
    data.wrote(id, Some((false, verifier(1))));
    assert!(data.is_idle());
}

#[test]
fn a_hold_sends_what_was_there_and_nothing_written_later() {
    let mut data = small();
    data.write(0, bytes(1, 4), NOW);
    let epoch = data.hold();
    data.write(4, bytes(2, 4), NOW);
    data.flush(true);
    assert_eq!(data.write_through(50, &bytes(3, 4), NOW), None);
    let (id, offset, sent, _) = write(&mut data);
    assert_eq!((offset, sent), (0, bytes(1, 4)));
    assert_eq!(data.next_action(), None);
    data.wrote(id, Some((false, verifier(1))));
    let id = commit(&mut data);
    data.committed(id, Some(verifier(2)));
    assert!(!data.reached(epoch, true));
    let (id, _, sent, _) = write(&mut data);
    assert_eq!(sent, bytes(1, 4), "lost, so it is sent again although it is held");
    data.wrote(id, Some((true, verifier(2))));
    assert!(data.reached(epoch, true) && data.is_quiet());
    assert_eq!(data.next_action(), None);
    data.release();
    assert_eq!(write(&mut data).1, 4);
}

#[test]
fn a_flush_waits_for_what_took_the_place_of_data_that_the_server_has_lost() {
    let mut data = small();
    data.write(0, bytes(1, 16), NOW);
    data.write(32, bytes(1, 16), NOW);
    let epoch = data.flush(true);
    let (first, second) = (write(&mut data).0, write(&mut data).0);
    data.wrote(first, Some((false, verifier(1))));
    data.wrote(second, Some((false, verifier(1))));
    data.write(0, bytes(2, 16), NOW);
    data.write(32, bytes(2, 16), NOW);
    let id = commit(&mut data);
    let before = data.setbacks();
    data.committed(id, Some(verifier(2)));
    assert!(!data.reached(epoch, true) && data.setbacks() > before);
    let (first, second) = (write(&mut data).0, write(&mut data).0);
    data.wrote(first, Some((false, verifier(2))));
    data.wrote(second, Some((false, verifier(2))));
    assert!(!data.reached(epoch, true));
    let id = commit(&mut data);
    data.committed(id, Some(verifier(2)));
    assert!(data.reached(epoch, true) && data.is_idle());
}

#[test]
fn age_counts_from_the_first_write() {
    let mut data = small();
    data.write(0, bytes(1, 8), Duration::from_secs(1));
    data.write(8, bytes(1, 8), Duration::from_secs(20));
    let age = Duration::from_secs(30);
    assert!(!data.has_older(Duration::from_secs(30), age));
    assert!(data.has_older(Duration::from_secs(31), age));
}

/// A server that keeps unstable writes in memory and loses them when it is restarted.
#[derive(Clone)]
struct Server {
    epoch: u64,
    memory: Vec<u8>,
    disk: Vec<u8>,
}

const SIZE: usize = 96;

#[derive(Clone, Debug)]
enum Step {
    Write { offset: usize, len: usize },
    Through { offset: usize, len: usize },
    Flush { durable: bool },
    CommitSoon,
    Send,
    Answer { which: usize },
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let range = (0..SIZE - 24, 1usize..24);
    prop_oneof![
        5 => range.clone().prop_map(|(offset, len)| Step::Write { offset, len }),
        1 => range.prop_map(|(offset, len)| Step::Through { offset, len }),
        2 => any::<bool>().prop_map(|durable| Step::Flush { durable }),
        1 => Just(Step::CommitSoon),
        6 => Just(Step::Send),
        6 => (0usize..8).prop_map(|which| Step::Answer { which }),
        1 => Just(Step::Restart),
    ]
}

struct World {
    data: WriteBehind,
    server: Server,
    /// Requests on their way: the server acts on one when it is answered.
    requests: Vec<Action>,
    model: Vec<u8>,
    /// The model as it was at each flush not reached yet.
    flushes: BTreeMap<u64, Vec<u8>>,
    /// How often each byte was written since a flush, by flush: such bytes may have a later value.
    value: u8,
}

impl World {
    fn new() -> World {
        let server = Server { epoch: 1, memory: vec![0; SIZE], disk: vec![0; SIZE] };
        World { data: small(), server, requests: Vec::new(), model: vec![0; SIZE], flushes: BTreeMap::new(), value: 0 }
    }

    fn send(&mut self) {
        while let Some(action) = self.data.next_action() {
            self.requests.push(action);
            let parts = |action: &'_ Action| match action {
                Action::Write { parts, .. } => parts.clone(),
                Action::Commit { .. } => Vec::new(),
            };
            let mut all: Vec<(u64, Bytes)> = self.requests.iter().flat_map(parts).collect();
            all.sort_by_key(|(offset, _)| *offset);
            for pair in all.windows(2) {
                assert!(pair[0].0 + pair[0].1.len() as u64 <= pair[1].0, "{:?} overlap", self.requests);
            }
        }
    }

    fn answer(&mut self, which: usize) {
        if self.requests.is_empty() {
            return;
        }
        let which = which % self.requests.len();
        match self.requests.swap_remove(which) {
            Action::Write { id, parts, stable } => {
                for (offset, data) in parts {
                    let range = offset as usize..offset as usize + data.len();
                    self.server.memory[range.clone()].copy_from_slice(&data);
                    if stable {
                        self.server.disk[range].copy_from_slice(&data);
                    }
                }
                self.data.wrote(id, Some((stable, verifier(self.server.epoch))));
            }
            Action::Commit { id } => {
                self.server.disk.clone_from(&self.server.memory);
                self.data.committed(id, Some(verifier(self.server.epoch)));
            }
        }
        self.check();
    }

    fn write(&mut self, offset: usize, len: usize) -> Bytes {
        self.value = self.value % 250 + 1;
        self.model[offset..offset + len].fill(self.value);
        let mask = self.value;
        // A byte written after a flush may be on the disk in its newer value.
        for snapshot in self.flushes.values_mut() {
            snapshot[offset..offset + len].fill(u8::MAX);
        }
        bytes(mask, len)
    }

    /// What this client reads is always what was written last; what was flushed is on the disk.
    fn check(&mut self) {
        for at in 0..SIZE {
            let seen = match self.data.read(at as u64, at as u64 + 1) {
                Cover::Full(byte) => byte[0],
                Cover::Partial(_) => panic!("a byte has no parts"),
                // Lost by a restart, and sent again once a verifier has told.
                Cover::None if self.data.has_uncommitted() => continue,
                Cover::None => self.server.memory[at],
            };
            assert_eq!(seen, self.model[at], "byte {at}");
        }
        let here = match self.data.read(0, SIZE as u64) {
            Cover::Full(all) => vec![(0, all)],
            Cover::Partial(pieces) => pieces,
            Cover::None => Vec::new(),
        };
        let mut place = 0;
        for (at, piece) in here {
            let at = at as usize;
            let is_here = |at: usize| self.data.read(at as u64, at as u64 + 1) != Cover::None;
            assert!(!(place..at).any(is_here), "a piece is missing before {at}");
            assert_eq!(piece, self.model[at..at + piece.len()], "the piece at {at}");
            place = at + piece.len();
        }
        let data = &self.data;
        let reached: Vec<u64> = self.flushes.keys().copied().filter(|epoch| data.reached(*epoch, true)).collect();
        for epoch in reached {
            let snapshot = self.flushes.remove(&epoch).unwrap_or_default();
            for (at, byte) in snapshot.iter().enumerate() {
                if *byte != u8::MAX {
                    assert_eq!(self.server.disk[at], *byte, "byte {at} of flush {epoch} is not durable");
                }
            }
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Write { offset, len } => {
                let data = self.write(offset, len);
                self.data.write(offset as u64, data, NOW);
                self.check();
            }
            Step::Through { offset, len } => {
                // One that must wait is not made; the model would have to wait with it.
                if let Some(action) = self.data.write_through(offset as u64, &bytes(0, len), NOW) {
                    let Action::Write { id, .. } = action else { panic!("not a write") };
                    self.data.wrote(id, None);
                    let data = self.write(offset, len);
                    let action = self.data.write_through(offset as u64, &data, NOW).unwrap();
                    self.requests.push(action);
                    self.check();
                }
            }
            Step::Flush { durable } => {
                let epoch = self.data.flush(durable);
                if durable {
                    self.flushes.insert(epoch, self.model.clone());
                }
                self.check();
            }
            Step::CommitSoon => self.data.commit_soon(),
            Step::Send => self.send(),
            Step::Answer { which } => self.answer(which),
            Step::Restart => {
                self.server.epoch += 1;
                self.server.memory.clone_from(&self.server.disk);
            }
        }
    }

    fn finish(&mut self) {
        // In the end a flush brings everything to the disk, in a bounded number of steps.
        let epoch = self.data.flush(true);
        self.flushes.insert(epoch, self.model.clone());
        for _ in 0..1000 {
            self.send();
            if self.requests.is_empty() {
                break;
            }
            self.answer(0);
        }
        assert!(self.data.is_idle());
        assert_eq!(self.server.disk, self.model);
        assert!(self.flushes.is_empty() || self.data.reached(epoch, true));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Random writes, flushes, answers in any order, and a server that forgets what it has not made durable: nothing is
    /// lost, nothing in flight overlaps, a flush that was reached is on the disk.
    #[test]
    fn nothing_is_ever_lost(steps in prop::collection::vec(step(), 1..120)) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        world.finish();
    }

    /// Once a hold has been waited for, no write goes out until it is released, whatever is written and whatever
    /// verifier was answered; what was there when it began is on the disk by then.
    #[test]
    fn a_hold_lets_nothing_pass(
        before in prop::collection::vec(step(), 1..60),
        meanwhile in prop::collection::vec(step(), 1..60),
        after in prop::collection::vec(step(), 1..20),
    ) {
        let mut world = World::new();
        for step in before {
            world.step(step);
        }
        let epoch = world.data.hold();
        world.flushes.insert(epoch, world.model.clone());
        for step in meanwhile {
            world.step(step);
        }
        for _ in 0..1000 {
            world.send();
            if world.data.reached(epoch, true) && world.data.is_quiet() {
                break;
            }
            world.answer(0);
        }
        prop_assert!(world.data.reached(epoch, true) && world.data.is_quiet());
        prop_assert!(world.requests.is_empty());
        for step in after {
            world.step(step);
            world.send();
            prop_assert!(world.requests.is_empty(), "{:?}", world.requests);
        }
        world.data.release();
        world.finish();
    }
}
