//! Operations of several clients on the same few names, and the proof that they happened once each, in one order.
//!
//! A successful mutation is answered with its place in the volume's history. So the order need not be searched for:
//! the successes are followed through the model in that order, and each reply must be what the model says. A failure
//! has no place; it must be what the model says at some moment between its beginning and its end.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use larder_client::rpc::{Client, Failure};
use larder_protocol::attr::{Credential, FileType, SetAttr};
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::Fid;
use larder_protocol::name::Name;
use larder_protocol::payload::Payload;
use larder_protocol::service::file::{CreateHow, Mutated, Op, OpReply, RenameHow};
use rand::Rng;
use rand::rngs::SmallRng;
use tokio::time::Instant;

use crate::model::Model;
use crate::world::name;

/// Names that operations use.
const NAMES: [&str; 4] = ["a", "b", "c", "d"];
/// Objects, of those known last, that operations use.
const RECENT: usize = 6;

/// One operation and what came of it.
#[derive(Debug)]
struct Event {
    op: Op,
    result: Result<Mutated, ErrorCode>,
    /// The highest place that any answer had named when it began.
    floor: u64,
    began: Instant,
    ended: Instant,
}

/// What all clients did.
#[derive(Debug, Default)]
pub(crate) struct History {
    events: Vec<Event>,
    highest: u64,
    dirs: Vec<Fid>,
    files: Vec<Fid>,
}

impl History {
    /// Nothing yet, in this directory.
    pub(crate) fn new(root: Fid) -> Arc<Mutex<History>> {
        Arc::new(Mutex::new(History { dirs: vec![root], ..History::default() }))
    }

    /// Sizes of the history: successes and failures.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let good = self.events.iter().filter(|event| event.result.is_ok()).count();
        (good, self.events.len() - good)
    }

    fn random_op(&self, random: &mut SmallRng) -> Op {
        let any = |random: &mut SmallRng, of: &[Fid]| {
            let recent = &of[of.len().saturating_sub(RECENT)..];
            recent[random.random_range(0..recent.len())]
        };
        // The directory that all began in is used most, so that they meet.
        let dir = |random: &mut SmallRng| {
            if random.random_bool(0.6) { self.dirs[0] } else { any(random, &self.dirs) }
        };
        let a_name = |random: &mut SmallRng| -> Name { name(NAMES[random.random_range(0..NAMES.len())]) };
        let here = dir(random);
        match random.random_range(0..20) {
            0..4 => Op::Create { dir: here, name: a_name(random), mode: 0o644, umask: 0, how: CreateHow::Exclusive },
            4 => {
                let how = CreateHow::Open { access: 0, truncate: false };
                Op::Create { dir: here, name: a_name(random), mode: 0o644, umask: 0, how }
            }
            5..8 => Op::Mkdir { dir: here, name: a_name(random), mode: 0o755, umask: 0 },
            8 => {
                let target = Bytes::from(format!("target-{}", random.random::<u32>()));
                Op::Symlink { dir: here, name: a_name(random), target }
            }
            9..11 if !self.files.is_empty() => {
                Op::Link { fid: any(random, &self.files), dir: here, name: a_name(random) }
            }
            11..13 => Op::Remove { dir: here, name: a_name(random), keep: false },
            13 => Op::Rmdir { dir: here, name: a_name(random) },
            14..17 => {
                let how = [RenameHow::Replace, RenameHow::NoReplace, RenameHow::Exchange];
                Op::Rename {
                    from_dir: here,
                    from_name: a_name(random),
                    to_dir: dir(random),
                    to_name: a_name(random),
                    how: how[random.random_range(0..how.len())],
                    keep: false,
                }
            }
            17..19 if !self.files.is_empty() => {
                let data = vec![random.random(); random.random_range(1..7000)];
                Op::Append { fid: any(random, &self.files), data: Payload(data.into()) }
            }
            19 if !self.files.is_empty() => {
                let set = SetAttr { size: Some(random.random_range(0..20_000)), ..SetAttr::default() };
                Op::Setattr { fid: any(random, &self.files), set, open: false }
            }
            _ => {
                let set = SetAttr { mode: Some(random.random_range(0..0o1000)), ..SetAttr::default() };
                Op::Setattr { fid: here, set, open: false }
            }
        }
    }

    fn record(&mut self, event: Event) {
        if let Ok(mutated) = &event.result {
            self.highest = self.highest.max(mutated.sequence);
            if let OpReply::Entry { attr, created: true, .. } = &mutated.reply {
                match attr.kind {
                    FileType::Directory => self.dirs.push(attr.fid),
                    FileType::Regular => self.files.push(attr.fid),
                    _ => {}
                }
            }
        }
        self.events.push(event);
    }

    /// Follows the history through the model.
    ///
    /// # Panics
    /// If it is not one that a single file system with one order of operations could have.
    pub(crate) fn check(&self, model: &mut Model) {
        let mut done: Vec<(u64, &Event)> = Vec::new();
        let mut failed: Vec<(&Event, ErrorCode)> = Vec::new();
        for event in &self.events {
            match &event.result {
                Ok(mutated) => done.push((mutated.sequence, event)),
                Err(code) => failed.push((event, *code)),
            }
        }
        done.sort_by_key(|(sequence, _)| *sequence);
        for pair in done.windows(2) {
            assert!(pair[0].0 < pair[1].0, "two operations have one place: {:?} and {:?}", pair[0].1, pair[1].1);
        }
        // Each failure with the numbers of successes, from and to, at which it may have been decided.
        let mut open: Vec<(usize, usize, &Event, ErrorCode)> = failed
            .into_iter()
            .map(|(event, code)| {
                let from = done.partition_point(|(sequence, _)| *sequence <= event.floor);
                let begun = |(_, other): &(u64, &Event)| other.began <= event.ended;
                let to = done.iter().rposition(begun).map_or(0, |last| last + 1);
                (from, to.max(from), event, code)
            })
            .collect();
        for step in 0..=done.len() {
            open.retain(|(from, to, event, code)| {
                let found = *from <= step && model.would(&event.op) == Err(*code);
                assert!(found || *to > step, "it failed, and at no time should have so: {event:?}");
                !found
            });
            if let Some((sequence, event)) = done.get(step) {
                assert!(*sequence > event.floor, "it happened before it began: {event:?}");
                let reply = event.result.as_ref().map(|mutated| &mutated.reply);
                let Ok(reply) = reply else { unreachable!("only successes are in `done`") };
                let following = std::panic::AssertUnwindSafe(|| model.follow(&event.op, reply));
                if let Err(panic) = std::panic::catch_unwind(following) {
                    eprintln!("at {event:?}");
                    std::panic::resume_unwind(panic);
                }
            }
        }
        assert!(open.is_empty());
    }
}

/// Performs random operations, one after the other.
pub(crate) async fn act(client: Arc<Client>, history: Arc<Mutex<History>>, mut random: SmallRng, operations: usize) {
    for _ in 0..operations {
        let (op, floor) = {
            let history = history.lock().unwrap();
            (history.random_op(&mut random), history.highest)
        };
        let began = Instant::now();
        let result = match client.mutate(&Credential::root(), op.clone()).await {
            Ok(mutated) => Ok(mutated),
            Err(Failure::Refused(code)) => Err(code),
            Err(other) => panic!("a hard mount has no such errors: {other:?} of {op:?}"),
        };
        history.lock().unwrap().record(Event { op, result, floor, began, ended: Instant::now() });
        if random.random_bool(0.3) {
            tokio::time::sleep(Duration::from_micros(random.random_range(0..100_000))).await;
        }
    }
}
