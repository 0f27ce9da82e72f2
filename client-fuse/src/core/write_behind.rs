//! Data of one file on its way to the server: what to send, what to commit, what to send again.
//!
//! A byte goes from *dirty* (only here) to *in flight* (a write request has it) to *sent* (the server has it, not
//! durably) and then leaves. Rules:
//!
//! 1. No two requests in flight overlap. Newer data over a request in flight stays dirty until that is answered.
//! 2. Sent data is kept until a commit is answered with the verifier of its write. A commit vouches only for writes that
//!    were answered before it was sent.
//! 3. At any other verifier the data is dirty again and is sent again, and as soon as another server process answers.
//! 4. Data that the server refuses for good is dropped; the caller records the error.
//! 5. A flush waits for the data that was there when it began, not for data written later (*epochs*), so a steady
//!    writer cannot hold it for ever.
//! 6. Dirty data is kept back to be coalesced until somebody flushes, it is old, or there is much of it.
//! 7. While it is held, only what was there when that began is sent, as often as it takes until it is committed.
//! 8. What a flush waits for goes in as few requests as it fits in, however scattered it is. What was held back for age or
//!    memory alone goes piece by piece, so that it can be overwritten here for longer.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use larder_protocol::ids::{Epoch, Verifier};
use larder_protocol::limits::MAX_WRITE_PARTS;
use larder_protocol::runtime::BootTime;

use super::extents::{Extents, Piece};

/// How much to hold back.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Bytes of one write request at most.
    pub max_write: usize,
    /// Write requests in flight at most.
    pub window: usize,
    /// More dirty bytes than this begin to be sent.
    pub high: u64,
    /// Down to this many.
    pub low: u64,
    /// More sent bytes than this are committed.
    pub commit_at: u64,
}

impl Default for Config {
    fn default() -> Config {
        Config { max_write: 1 << 20, window: 8, high: 8 << 20, low: 4 << 20, commit_at: 32 << 20 }
    }
}

/// A request to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Write, then report with [`WriteBehind::wrote`].
    Write {
        /// Names the request.
        id: u64,
        /// What goes where: ranges that do not overlap, each with its offset.
        parts: Vec<(u64, Bytes)>,
        /// Whether it must be durable when answered.
        stable: bool,
    },
    /// Commit, then report with [`WriteBehind::committed`].
    Commit {
        /// Names the request.
        id: u64,
    },
}

/// What is known here about a range to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cover {
    /// Nothing: the server has it.
    None,
    /// All of it.
    Full(Bytes),
    /// Some of it: these pieces, in order, each with its offset.
    Partial(Vec<(u64, Bytes)>),
}

#[derive(Debug)]
struct Dirty {
    data: BytesMut,
    epoch: u64,
    since: BootTime,
}

#[derive(Debug)]
struct Sent {
    data: Bytes,
    epoch: u64,
    since: BootTime,
    verifier: Verifier,
    stamp: u64,
}

/// A range of a request in flight.
#[derive(Debug)]
struct Part {
    offset: u64,
    data: Bytes,
    epoch: u64,
    since: BootTime,
}

#[derive(Debug)]
struct InFlight {
    id: u64,
    parts: Vec<Part>,
    wanted: bool,
}

#[derive(Debug)]
struct Committing {
    id: u64,
    stamp: u64,
    owed: Option<Owed>,
}

/// A commit that is due although the data it was to be for was overwritten meanwhile.
#[derive(Clone, Copy, Debug)]
struct Owed {
    /// The first flush that waits for it.
    epoch: u64,
    /// That of the overwritten writes, or `None` if they had several, so that some are lost already.
    verifier: Option<Verifier>,
}

impl Piece for Dirty {
    fn len(&self) -> usize {
        self.data.len()
    }

    fn split_off(&mut self, at: usize) -> Self {
        Dirty { data: self.data.split_off(at), ..*self }
    }
}

impl Piece for Sent {
    fn len(&self) -> usize {
        self.data.len()
    }

    fn split_off(&mut self, at: usize) -> Self {
        Sent { data: self.data.split_off(at), ..*self }
    }
}

impl Part {
    fn end(&self) -> u64 {
        self.offset + self.data.len() as u64
    }
}

/// One file's data on its way.
#[derive(Debug)]
pub struct WriteBehind {
    config: Config,
    dirty: Extents<Dirty>,
    in_flight: Vec<InFlight>,
    sent: Extents<Sent>,
    committing: Option<Committing>,
    owed: Option<Owed>,
    epoch: u64,
    send_goal: u64,
    commit_goal: u64,
    commit_now: bool,
    streaming: bool,
    /// While it is held: the last epoch that is sent.
    barrier: Option<u64>,
    last_id: u64,
    stamp: u64,
    /// How often data became dirty again.
    setbacks: u64,
}

impl WriteBehind {
    /// Nothing on its way.
    pub fn new(config: Config) -> WriteBehind {
        WriteBehind {
            config,
            dirty: Extents::default(),
            in_flight: Vec::new(),
            sent: Extents::default(),
            committing: None,
            owed: None,
            epoch: 1,
            send_goal: 0,
            commit_goal: 0,
            commit_now: false,
            streaming: false,
            barrier: None,
            last_id: 0,
            stamp: 0,
            setbacks: 0,
        }
    }

    /// Takes data to be sent later.
    pub fn write(&mut self, offset: u64, data: Bytes, now: BootTime) {
        if data.is_empty() {
            return;
        }
        let end = offset + data.len() as u64;
        self.overwrite_sent(offset, end);
        if let Some((start, chunk)) = self.dirty.at_mut(offset)
            && start + chunk.data.len() as u64 >= end
        {
            let at = (offset - start) as usize;
            chunk.data[at..at + data.len()].copy_from_slice(&data);
            return;
        }
        let (mut epoch, mut since) = (self.epoch, now);
        // Data under it that a flush waits for makes the new data part of what that flush waits for (rule 5).
        for (_, old) in self.dirty.carve(offset, end) {
            epoch = epoch.min(old.epoch);
            since = since.min(old.since);
        }
        match self.dirty.remove_ending_at(offset) {
            // What a hold waits for does not grow, lest a steady writer keep it waiting.
            Some((start, mut chunk))
                if chunk.data.len() + data.len() <= self.config.max_write
                    && self.barrier.is_none_or(|barrier| chunk.epoch > barrier) =>
            {
                chunk.data.extend_from_slice(&data);
                chunk.epoch = chunk.epoch.min(epoch);
                chunk.since = chunk.since.min(since);
                self.dirty.insert(start, chunk);
            }
            other => {
                if let Some((start, chunk)) = other {
                    self.dirty.insert(start, chunk);
                }
                self.dirty.insert(offset, Dirty { data: BytesMut::from(data), epoch, since });
            }
        }
        self.streaming |= self.dirty.weight() > self.config.high;
    }

    /// Puts data in flight at once, for a mode that buffers nothing. `None` if it has to wait, because older data of
    /// the range is still on its way (rule 1) or it is held (rule 7).
    pub fn write_through(&mut self, offset: u64, data: &Bytes, now: BootTime) -> Option<Action> {
        let end = offset + data.len() as u64;
        if self.barrier.is_some() || self.dirty.overlaps(offset, end) || self.in_flight_overlaps(offset, end) {
            return None;
        }
        self.overwrite_sent(offset, end);
        let part = Part { offset, data: data.clone(), epoch: self.epoch, since: now };
        Some(self.put_in_flight(vec![part], false))
    }

    /// Wants everything that is here now sent, and with `durable` committed too. Wait until
    /// [`WriteBehind::reached`] says so of the epoch returned.
    pub fn flush(&mut self, durable: bool) -> u64 {
        let epoch = self.epoch;
        self.epoch += 1;
        self.send_goal = epoch;
        if durable {
            self.commit_goal = epoch;
        }
        epoch
    }

    /// Whether a flush is done.
    pub fn reached(&self, epoch: u64, durable: bool) -> bool {
        let on_its_way = self.parts_in_flight().any(|part| part.epoch <= epoch)
            || self.dirty.iter().any(|(_, chunk)| chunk.epoch <= epoch);
        !(on_its_way || durable && self.uncommitted(epoch))
    }

    /// Wants what is sent committed, without waiting for what is not.
    pub fn commit_soon(&mut self) {
        self.commit_now = true;
    }

    /// Wants less memory used: commits what was sent, or if there is nothing to commit, sends what is dirty. What is
    /// already under way will do, so that requests do not become small under pressure.
    pub fn relieve(&mut self) {
        if self.has_uncommitted() {
            self.commit_now = true;
        } else if self.in_flight.is_empty() {
            self.flush(false);
        }
    }

    /// Flushes durably and until [`WriteBehind::release`] sends nothing that is written later (rule 7). Once the epoch
    /// returned is reached and it is quiet, nothing is sent at all. One hold at a time.
    pub fn hold(&mut self) -> u64 {
        let epoch = self.flush(true);
        self.barrier = Some(epoch);
        epoch
    }

    /// Ends the hold.
    pub fn release(&mut self) {
        self.barrier = None;
    }

    /// Forgets all data: the file is gone.
    pub fn discard(&mut self) {
        self.dirty.clear();
        self.sent.clear();
        self.owed = None;
        self.streaming = false;
        for piece in &mut self.in_flight {
            piece.wanted = false;
        }
    }

    /// The next request to make, if any is due. Call it until it returns `None`.
    pub fn next_action(&mut self) -> Option<Action> {
        self.next_commit().or_else(|| self.next_write())
    }

    fn next_commit(&mut self) -> Option<Action> {
        if self.sent.is_empty() && self.owed.is_none() {
            self.commit_now = false;
            return None;
        }
        let goal = self.committable();
        let flushed = self.uncommitted(goal) && self.reached(goal, false);
        let due = flushed || self.commit_now || self.sent.weight() > self.config.commit_at;
        if self.committing.is_some() || !due {
            return None;
        }
        self.commit_now = false;
        let id = self.new_id();
        self.committing = Some(Committing { id, stamp: self.stamp, owed: self.owed.take() });
        Some(Action::Commit { id })
    }

    /// The last epoch that is to be committed. What is held back is not waited for.
    fn committable(&self) -> u64 {
        self.barrier.map_or(self.commit_goal, |barrier| barrier.min(self.commit_goal))
    }

    fn next_write(&mut self) -> Option<Action> {
        if self.in_flight.len() >= self.config.window {
            return None;
        }
        let (goal, max) = (self.send_goal, self.config.max_write);
        self.streaming &= self.dirty.weight() > self.config.low;
        let free = |(start, chunk): &(u64, &Dirty)| self.may_go(*start, chunk);
        let mut due = self.dirty.iter().find(|at| at.1.epoch <= goal && free(at));
        if due.is_none() && self.streaming {
            let full = |at: &(u64, &Dirty)| at.1.data.len() >= max && free(at);
            due = self.dirty.iter().find(full).or_else(|| self.dirty.iter().find(free));
        }
        let (offset, _) = due?;
        let mut parts = vec![self.take(offset)?];
        if parts[0].epoch <= goal {
            self.take_more(goal, &mut parts);
        }
        // A flush of a single request needs no commit if that request is stable.
        let goal = self.committable();
        let stable = parts.iter().any(|part| part.epoch <= goal)
            && self.in_flight.is_empty()
            && self.reached(goal, true)
            && self.committing.is_none();
        Some(self.put_in_flight(parts, stable))
    }

    /// Whether the beginning of a chunk may be sent now (rules 1 and 7).
    fn may_go(&self, start: u64, chunk: &Dirty) -> bool {
        self.may_pass(chunk)
            && !self.in_flight_overlaps(start, start + chunk.data.len().min(self.config.max_write) as u64)
    }

    /// Rule 7.
    fn may_pass(&self, chunk: &Dirty) -> bool {
        self.barrier.is_none_or(|barrier| chunk.epoch <= barrier)
    }

    /// Takes the chunk at `offset`, as much of it as a request holds, and with it what follows without a gap.
    fn take(&mut self, offset: u64) -> Option<Part> {
        let max = self.config.max_write;
        let mut chunk = self.dirty.remove(offset)?;
        if chunk.data.len() > max {
            let rest = chunk.split_off(max);
            self.dirty.insert(offset + max as u64, rest);
        }
        loop {
            let end = offset + chunk.data.len() as u64;
            let joins = |next: &Dirty| self.may_pass(next) && chunk.data.len() + next.data.len() <= max;
            match self.dirty.at(end) {
                Some((start, next)) if start == end && joins(next) => {
                    if self.in_flight_overlaps(end, end + next.data.len() as u64) {
                        break;
                    }
                }
                _ => break,
            }
            let Some(next) = self.dirty.remove(end) else { break };
            chunk.data.extend_from_slice(&next.data);
            chunk.epoch = chunk.epoch.min(next.epoch);
            chunk.since = chunk.since.min(next.since);
        }
        let Dirty { data, epoch, since } = chunk;
        Some(Part { offset, data: data.freeze(), epoch, since })
    }

    /// Takes what else a flush waits for, as far as it fits into the same request (rule 8).
    fn take_more(&mut self, goal: u64, parts: &mut Vec<Part>) {
        let mut room = self.config.max_write - parts.iter().map(|part| part.data.len()).sum::<usize>();
        let mut starts = Vec::new();
        for (start, chunk) in self.dirty.iter() {
            if parts.len() + starts.len() == MAX_WRITE_PARTS || room == 0 {
                break;
            }
            if chunk.epoch <= goal && chunk.data.len() <= room && self.may_go(start, chunk) {
                room -= chunk.data.len();
                starts.push(start);
            }
        }
        for offset in starts {
            let Some(Dirty { data, epoch, since }) = self.dirty.remove(offset) else { continue };
            parts.push(Part { offset, data: data.freeze(), epoch, since });
        }
    }

    fn put_in_flight(&mut self, parts: Vec<Part>, stable: bool) -> Action {
        let id = self.new_id();
        let ranges = parts.iter().map(|part| (part.offset, part.data.clone())).collect();
        self.in_flight.push(InFlight { id, parts, wanted: true });
        Action::Write { id, parts: ranges, stable }
    }

    /// A write was answered: with its stability and verifier, or with `None` if it was refused for good (rule 4).
    pub fn wrote(&mut self, id: u64, outcome: Option<(bool, Verifier)>) {
        let Some(place) = self.in_flight.iter().position(|piece| piece.id == id) else { return };
        let piece = self.in_flight.swap_remove(place);
        let Some((stable, verifier)) = outcome else { return };
        let lost = self.sent.extract(|sent| sent.verifier != verifier);
        self.send_again(lost);
        if stable || !piece.wanted {
            return;
        }
        self.stamp += 1;
        for part in piece.parts {
            let (start, end) = (part.offset, part.end());
            let Part { data, epoch, since, .. } = part;
            self.sent.insert(start, Sent { data, epoch, since, verifier, stamp: self.stamp });
            let overwritten: Vec<(u64, u64)> = self.dirty.covered(start, end).collect();
            for (from, to) in overwritten {
                self.overwrite_sent(from, to);
            }
        }
    }

    /// A commit was answered: with its verifier, or with `None` if it was refused for good (rule 4).
    pub fn committed(&mut self, id: u64, outcome: Option<Verifier>) {
        let Some(commit) = self.committing.take_if(|commit| commit.id == id) else { return };
        let mut covered = self.sent.extract(|sent| sent.stamp <= commit.stamp);
        let Some(verifier) = outcome else { return };
        covered.retain(|(_, sent)| sent.verifier != verifier);
        self.send_again(covered);
        if let Some(owed) = commit.owed
            && owed.verifier != Some(verifier)
        {
            self.make_up_for(owed.epoch);
        }
    }

    /// The server may have lost data that a flush waits for and that is not here any more, because it was overwritten.
    /// That flush now waits for what took its place.
    fn make_up_for(&mut self, epoch: u64) {
        self.setbacks += 1;
        self.send_goal = self.send_goal.max(epoch);
        self.commit_goal = self.commit_goal.max(epoch);
        self.dirty.for_each_mut(|chunk| chunk.epoch = chunk.epoch.min(epoch));
        let in_flight = self.in_flight.iter_mut().flat_map(|piece| &mut piece.parts);
        in_flight.for_each(|part| part.epoch = part.epoch.min(epoch));
        self.sent.for_each_mut(|sent| sent.epoch = sent.epoch.min(epoch));
    }

    /// This server process answers now. What another one had and did not commit may be lost with it, so until it is
    /// sent again the server must not be asked for it (rule 3).
    pub fn served_by(&mut self, epoch: Epoch) {
        let doubtful = self.sent.extract(|sent| sent.verifier.epoch != epoch);
        self.send_again(doubtful);
    }

    /// How often data that the server had became dirty again. Whoever asks the server for it, and finds that this has
    /// changed when the answer is there, may have been shown the file without that data.
    pub fn setbacks(&self) -> u64 {
        self.setbacks
    }

    fn send_again(&mut self, lost: Vec<(u64, Sent)>) {
        self.setbacks += u64::from(!lost.is_empty());
        for (start, sent) in lost {
            self.send_goal = self.send_goal.max(sent.epoch);
            let dirty = Dirty { data: BytesMut::from(sent.data), epoch: sent.epoch, since: sent.since };
            self.dirty.insert(start, dirty);
        }
    }

    fn overwrite_sent(&mut self, start: u64, end: u64) {
        for (_, old) in self.sent.carve(start, end) {
            if old.epoch <= self.commit_goal {
                let verifier = Some(old.verifier);
                self.owed = Some(match self.owed {
                    Some(owed) => Owed {
                        epoch: owed.epoch.min(old.epoch),
                        verifier: verifier.filter(|_| owed.verifier == verifier),
                    },
                    None => Owed { epoch: old.epoch, verifier },
                });
            }
        }
    }

    fn uncommitted(&self, epoch: u64) -> bool {
        let owed = |owed: Option<Owed>| owed.is_some_and(|owed| owed.epoch <= epoch);
        owed(self.owed)
            || self.committing.as_ref().is_some_and(|commit| owed(commit.owed))
            || self.sent.iter().any(|(_, sent)| sent.epoch <= epoch)
    }

    fn parts_in_flight(&self) -> impl Iterator<Item = &Part> {
        self.in_flight.iter().flat_map(|piece| &piece.parts)
    }

    fn in_flight_overlaps(&self, start: u64, end: u64) -> bool {
        self.parts_in_flight().any(|part| part.offset < end && start < part.end())
    }

    fn new_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// What is known here of `start..end`.
    pub fn read(&self, start: u64, end: u64) -> Cover {
        if !self.dirty.overlaps(start, end) && !self.in_flight_overlaps(start, end) {
            return Cover::None;
        }
        let mut pieces: Vec<(u64, BytesMut)> = Vec::new();
        let mut at = start;
        while at < end {
            let in_flight = || self.parts_in_flight().find(|part| part.offset <= at && at < part.end());
            let (from, data, limit) = match (self.dirty.at(at), in_flight()) {
                (Some((from, chunk)), _) => (from, &chunk.data[..], end),
                (None, Some(part)) => {
                    (part.offset, &part.data[..], self.dirty.next_start(at).map_or(end, |next| next.min(end)))
                }
                (None, None) => {
                    let in_flight = self.parts_in_flight().map(|part| part.offset).filter(|offset| *offset > at);
                    at = self.dirty.next_start(at).into_iter().chain(in_flight).min().unwrap_or(end);
                    continue;
                }
            };
            let stop = (from + data.len() as u64).min(limit);
            let part = &data[(at - from) as usize..(stop - from) as usize];
            match pieces.last_mut() {
                Some((begin, piece)) if *begin + piece.len() as u64 == at => piece.extend_from_slice(part),
                _ => pieces.push((at, part.into())),
            }
            at = stop;
        }
        let mut pieces: Vec<(u64, Bytes)> = pieces.into_iter().map(|(at, piece)| (at, piece.freeze())).collect();
        match &pieces[..] {
            [(_, piece)] if piece.len() as u64 == end - start => Cover::Full(pieces.remove(0).1),
            _ => Cover::Partial(pieces),
        }
    }

    /// Where data that the server does not have yet ends.
    pub fn end(&self) -> Option<u64> {
        self.dirty.end().into_iter().chain(self.parts_in_flight().map(Part::end)).max()
    }

    /// Whether there is data that the server does not have yet.
    pub fn has_unsent(&self) -> bool {
        !self.dirty.is_empty() || !self.in_flight.is_empty()
    }

    /// Whether there is data that the server has and has not committed.
    pub fn has_uncommitted(&self) -> bool {
        !self.sent.is_empty() || self.owed.is_some() || self.committing.is_some()
    }

    /// Whether nothing is on its way.
    pub fn is_idle(&self) -> bool {
        !self.has_unsent() && !self.has_uncommitted()
    }

    /// Whether no request is in flight.
    pub fn is_quiet(&self) -> bool {
        self.in_flight.is_empty() && self.committing.is_none()
    }

    /// Memory held, about, in bytes.
    pub fn weight(&self) -> u64 {
        self.dirty.weight()
            + self.sent.weight()
            + self.parts_in_flight().map(|part| part.data.len() as u64).sum::<u64>()
    }

    /// Whether anything has been here for `age`.
    pub fn has_older(&self, now: BootTime, age: Duration) -> bool {
        let old = |since: BootTime| now.saturating_sub(since) >= age;
        self.dirty.iter().any(|(_, chunk)| old(chunk.since)) || self.sent.iter().any(|(_, sent)| old(sent.since))
    }
}

#[cfg(test)]
#[path = "write_behind_tests.rs"]
mod tests;
