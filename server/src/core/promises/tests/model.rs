//! All rules at once: requests, answers, losses and restarts in any order, against clients that keep a copy of what they
//! read.

use std::collections::BTreeMap;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::{at, granted, terms};
use crate::core::promises::*;

/// What is done wrong on purpose, to see that the model notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrong {
    /// Nothing.
    Nothing,
    /// A mutation is applied without waiting.
    NobodyWaits,
    /// A mutation does not break anything, and what was read beside it is promised.
    NothingIsBroken,
    /// A read is counted from behind its rows.
    ReadsBeginLate,
    /// Clients take replies that a break has overtaken.
    RepliesAreNotOvertaken,
    /// Clients acknowledge before they drop what they have.
    AcknowledgedTooEarly,
    /// Clients count their leases from the answer.
    LeasesAreCountedFromTheAnswer,
    /// Clients' clocks run at two thirds of the speed.
    ClocksDriftTooFar,
    /// Clients go on as before after their lease has lapsed.
    LapsedLeasesAreRevived,
    /// A server that restarts waits for nobody.
    HoldersAreForgotten,
}

const OBJECTS: u64 = 4;
const CLIENTS: usize = 3;
const STEPS: usize = 500;

/// A client that keeps versions of what it read, and uses them as long as it may.
struct Reader {
    id: ClientId,
    /// Thousandths of a second that pass on its clock in each second of the server's.
    rate: u64,
    /// The server process that it speaks to.
    epoch: u64,
    lease: Option<LeaseId>,
    /// Until when the lease counts, by its clock.
    until: BootTime,
    acked: u64,
    renewing: bool,
    copies: BTreeMap<u64, u64>,
    /// What it is changing itself.
    changing: BTreeMap<u64, u32>,
    log: EventLog,
    /// Breaks that have come and are not applied yet.
    received: Vec<(LeaseId, Vec<Break>)>,
}

impl Reader {
    fn clock(&self, now: BootTime) -> BootTime {
        now * self.rate as u32 / 1000
    }

    fn void(&mut self) {
        self.lease = None;
        self.until = BootTime::ZERO;
        self.acked = 0;
        self.copies.clear();
        self.received.clear();
        self.log.note_all();
    }

    /// What it would answer a program with that asked now.
    fn usable(&self, now: BootTime) -> impl Iterator<Item = (u64, u64)> + '_ {
        let counts = self.lease.is_some() && self.clock(now) < self.until;
        let copies = self.copies.iter().filter(move |(object, _)| counts && !self.changing.contains_key(object));
        copies.map(|(object, version)| (*object, *version))
    }
}

/// A mutation on its way.
struct Change {
    client: Option<usize>,
    /// Whether the client is there still, and waits for the answer.
    awaited: bool,
    objects: BTreeSet<u64>,
    /// The client's moment of sending.
    sent: Option<Since>,
}

/// Everything that is under way. Any of these may go on next.
enum UnderWay {
    ReadAsked { client: usize, objects: Vec<u64>, sent: Since },
    Reading { client: usize, left: Vec<u64>, sent: Since, since: Since, rows: Vec<(u64, u64)> },
    ReadAnswered { client: usize, sent: Since, rows: Vec<(u64, u64)>, grants: Grants },
    RenewalAsked { client: usize, sent: BootTime, lease: Option<LeaseId>, acked: u64 },
    RenewalAnswered { client: usize, sent: BootTime, answer: Renewed },
    BreaksAsked { client: usize, lease: LeaseId, acked: u64 },
    BreaksAnswered { client: usize, lease: LeaseId, answer: Breaks },
    ChangeAsked { change: Change },
    ChangeWaits { change: Change, breaking: Breaking, began: BootTime, settled: bool },
    ChangeApplied { change: Change, breaking: Breaking, rows: Vec<(u64, u64)> },
    ChangeAnswered { change: Change, rows: Vec<(u64, u64)>, grants: Grants },
}

/// What has happened, to see that the model does not pass because nothing does.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    used: u64,
    applied: u64,
    waited: u64,
    withheld: u64,
    own: u64,
    breaks: u64,
    breaks_first: u64,
    lapsed: u64,
    restarts: u64,
    for_room: u64,
}

struct Model {
    random: SmallRng,
    wrong: Wrong,
    now: BootTime,
    epoch: u64,
    room: usize,
    server: Promises,
    /// The durable record of holders, and what this process knows to be in it.
    durable: BTreeSet<ClientId>,
    recorded: BTreeSet<ClientId>,
    versions: Vec<u64>,
    clients: Vec<Reader>,
    under_way: Vec<UnderWay>,
    tally: Tally,
}

impl Model {
    fn new(seed: u64, wrong: Wrong) -> Model {
        let mut random = SmallRng::seed_from_u64(seed);
        let room = if random.random_bool(0.3) { random.random_range(1..5) } else { MAX_CALLBACKS };
        let clients = (0..CLIENTS).map(|client| Reader {
            id: ClientId(client as u128),
            // A twentieth either way is the margin.
            rate: if wrong == Wrong::ClocksDriftTooFar { 667 } else { random.random_range(950..=1050) },
            epoch: 1,
            lease: None,
            until: BootTime::ZERO,
            acked: 0,
            renewing: false,
            copies: BTreeMap::new(),
            changing: BTreeMap::new(),
            log: EventLog::default(),
            received: Vec::new(),
        });
        let clients = clients.collect();
        Model {
            wrong,
            now: at(1000),
            epoch: 1,
            room,
            server: Promises::new(terms(), random.random(), [], at(1000)).with_max_callbacks(room),
            durable: BTreeSet::new(),
            recorded: BTreeSet::new(),
            versions: vec![0; OBJECTS as usize],
            clients,
            under_way: Vec::new(),
            tally: Tally::default(),
            random,
        }
    }

    fn some_objects(&mut self) -> Vec<u64> {
        (0..OBJECTS).filter(|_| self.random.random_bool(0.4)).collect()
    }

    fn run(mut self) -> Result<Tally, String> {
        for step in 0..STEPS {
            self.step();
            self.check().map_err(|what| format!("step {step}: {what}"))?;
        }
        Ok(self.tally)
    }

    fn step(&mut self) {
        let client = self.random.random_range(0..CLIENTS);
        let connected = self.clients[client].epoch == self.epoch;
        match self.random.random_range(0..1000) {
            0..100 => self.now += at(self.random.random_range(1..100)),
            100..125 => self.now += at(self.random.random_range(100..6000)),
            125..127 => self.restart(),
            127..133 => self.leave(client),
            133..200 => self.apply_breaks(client),
            200..220 => self.ask_change(None),
            220..1000 if self.under_way.len() > 12 || self.random.random_bool(0.6) => self.go_on(),
            _ if !connected => self.reconnect(client),
            220..500 => {
                let objects = self.some_objects();
                let sent = self.clients[client].log.begin();
                self.under_way.push(UnderWay::ReadAsked { client, objects, sent });
            }
            500..680 => {
                let reader = &mut self.clients[client];
                if !reader.renewing {
                    reader.renewing = true;
                    let (sent, lease, acked) = (reader.clock(self.now), reader.lease, reader.acked);
                    self.under_way.push(UnderWay::RenewalAsked { client, sent, lease, acked });
                }
            }
            680..900 => {
                if let Reader { lease: Some(lease), acked, .. } = self.clients[client] {
                    self.under_way.push(UnderWay::BreaksAsked { client, lease, acked });
                }
            }
            _ => self.ask_change(Some(client)),
        }
    }

    fn ask_change(&mut self, client: Option<usize>) {
        let objects: BTreeSet<u64> = self.some_objects().into_iter().take(2).collect();
        let sent = client.map(|client| {
            let reader = &mut self.clients[client];
            objects.iter().for_each(|object| *reader.changing.entry(*object).or_default() += 1);
            reader.log.begin()
        });
        let change = Change { client, awaited: client.is_some(), objects, sent };
        self.under_way.push(UnderWay::ChangeAsked { change });
    }

    /// A client applies the breaks that it has received, and may acknowledge them from then on.
    fn apply_breaks(&mut self, client: usize) {
        let reader = &mut self.clients[client];
        for (lease, breaks) in std::mem::take(&mut reader.received) {
            for one in &breaks {
                reader.copies.remove(&one.object.0);
            }
            if let (true, Some(last)) = (reader.lease == Some(lease), breaks.last()) {
                reader.acked = reader.acked.max(last.serial);
            }
        }
    }

    /// A client finds that it speaks to another process: what it holds is void.
    fn reconnect(&mut self, client: usize) {
        self.lose(|one| one.belongs_to() == Some(client));
        self.clients[client].void();
        self.clients[client].epoch = self.epoch;
    }

    /// A client leaves, or a new life of it begins.
    fn leave(&mut self, client: usize) {
        self.lose(|one| one.belongs_to() == Some(client));
        let reader = &mut self.clients[client];
        reader.void();
        reader.changing.clear();
        reader.epoch = self.epoch;
        self.server.heard_of(reader.id);
        self.server.end_lease(reader.id);
        for one in &mut self.under_way {
            if let Some(change) = one.change()
                && change.client == Some(client)
            {
                change.awaited = false;
            }
        }
    }

    /// Loses what is on its way between the two sides.
    fn lose(&mut self, which: impl Fn(&UnderWay) -> bool) {
        for one in std::mem::take(&mut self.under_way) {
            if which(&one) { self.give_up(one) } else { self.under_way.push(one) }
        }
    }

    fn give_up(&mut self, one: UnderWay) {
        match one {
            UnderWay::ReadAsked { client, sent, .. } | UnderWay::ReadAnswered { client, sent, .. } => {
                self.clients[client].log.end(sent);
            }
            UnderWay::Reading { client, sent, since, .. } => {
                self.clients[client].log.end(sent);
                self.server.end_read(since);
            }
            UnderWay::RenewalAsked { client, .. } | UnderWay::RenewalAnswered { client, .. } => {
                self.clients[client].renewing = false;
            }
            _ => {}
        }
    }

    /// The server ends at any moment, and another process begins.
    fn restart(&mut self) {
        self.tally.restarts += 1;
        self.lose(UnderWay::is_asked);
        for one in std::mem::take(&mut self.under_way) {
            match one {
                // The clients ask again and learn that it is done, or not to be done.
                UnderWay::ChangeAsked { change }
                | UnderWay::ChangeWaits { change, .. }
                | UnderWay::ChangeApplied { change, .. } => {
                    self.under_way.push(UnderWay::ChangeAnswered { change, rows: vec![], grants: Grants::default() });
                }
                other => self.under_way.push(other),
            }
        }
        let holders = if self.wrong == Wrong::HoldersAreForgotten { BTreeSet::new() } else { self.durable.clone() };
        self.epoch += 1;
        let seed = self.random.random();
        self.server = Promises::new(terms(), seed, holders, self.now).with_max_callbacks(self.room);
        self.recorded.clear();
    }

    /// One of those under way gets one step further, or is lost.
    fn go_on(&mut self) {
        if self.under_way.is_empty() {
            return;
        }
        let place = self.random.random_range(0..self.under_way.len());
        let one = self.under_way.swap_remove(place);
        if one.may_be_lost() && self.random.random_bool(0.05) {
            return self.give_up(one);
        }
        if let Some(next) = self.next(one) {
            self.under_way.push(next);
        }
    }

    fn next(&mut self, one: UnderWay) -> Option<UnderWay> {
        let now = self.now;
        match one {
            UnderWay::ReadAsked { client, objects, sent } => {
                let since = self.server.begin_read();
                Some(UnderWay::Reading { client, left: objects, sent, since, rows: vec![] })
            }
            UnderWay::Reading { client, mut left, sent, mut since, mut rows } => {
                if let Some(object) = left.pop() {
                    rows.push((object, self.versions[object as usize]));
                    return Some(UnderWay::Reading { client, left, sent, since, rows });
                }
                if self.wrong == Wrong::ReadsBeginLate {
                    self.server.end_read(since);
                    since = self.server.begin_read();
                }
                let shown: Vec<ObjectId> = rows.iter().map(|(object, _)| ObjectId(*object)).collect();
                let grants = self.server.grant(self.clients[client].id, shown, since, now);
                self.tally.withheld += grants.withheld.len() as u64;
                Some(UnderWay::ReadAnswered { client, sent, rows, grants })
            }
            UnderWay::ReadAnswered { client, sent, rows, grants } => {
                let reader = &mut self.clients[client];
                for (object, version) in rows {
                    let overtaken = reader.log.overtaken(&sent, object) && self.wrong != Wrong::RepliesAreNotOvertaken;
                    if reader.lease.is_some_and(|lease| grants.include(lease, ObjectId(object))) && !overtaken {
                        reader.copies.insert(object, version);
                    }
                }
                reader.log.end(sent);
                None
            }
            UnderWay::RenewalAsked { client, sent, lease, acked } => {
                let id = self.clients[client].id;
                if lease.is_none() && !self.recorded.contains(&id) {
                    self.recorded = self.server.holders(now);
                    self.recorded.insert(id);
                    self.durable = self.recorded.clone();
                }
                let answer = self.server.renew(id, lease, acked, now);
                Some(UnderWay::RenewalAnswered { client, sent, answer })
            }
            UnderWay::RenewalAnswered { client, sent, answer } => {
                self.renewed(client, sent, answer);
                None
            }
            UnderWay::BreaksAsked { client, lease, acked } => {
                match self.server.breaks(self.clients[client].id, lease, acked, now) {
                    Some(answer) => Some(UnderWay::BreaksAnswered { client, lease, answer }),
                    // It waits. That it acknowledges again later is no harm.
                    None => Some(UnderWay::BreaksAsked { client, lease, acked }),
                }
            }
            UnderWay::BreaksAnswered { client, lease, answer } => {
                match answer {
                    Breaks::Outstanding(breaks) => self.broken(client, lease, breaks),
                    Breaks::Lapsed => self.lapsed(client, lease),
                }
                None
            }
            UnderWay::ChangeAsked { change } => {
                let objects: Vec<ObjectId> = change.objects.iter().map(|object| ObjectId(*object)).collect();
                let objects = if self.wrong == Wrong::NothingIsBroken { vec![] } else { objects };
                let id = change.client.map(|client| self.clients[client].id);
                let breaking = self.server.begin_break(objects, id, now);
                Some(UnderWay::ChangeWaits { change, breaking, began: now, settled: false })
            }
            UnderWay::ChangeWaits { mut change, mut breaking, began, settled } => {
                if !settled && self.wrong != Wrong::NobodyWaits {
                    return Some(UnderWay::ChangeWaits { change, breaking, began, settled });
                }
                match self.random.random_range(0..10) {
                    // It was not applied.
                    0 => Some(UnderWay::ChangeApplied { change, breaking, rows: vec![] }),
                    // It would have changed more.
                    1 => {
                        let more = self.random.random_range(0..OBJECTS);
                        if change.objects.insert(more) {
                            if let (true, Some(client)) = (change.awaited, change.client) {
                                *self.clients[client].changing.entry(more).or_default() += 1;
                            }
                            if self.wrong != Wrong::NothingIsBroken {
                                self.server.extend(&mut breaking, [ObjectId(more)], now);
                            }
                        }
                        Some(UnderWay::ChangeWaits { change, breaking, began: now, settled: false })
                    }
                    _ => {
                        self.tally.applied += 1;
                        let mut rows = Vec::new();
                        for object in &change.objects {
                            self.versions[*object as usize] += 1;
                            rows.push((*object, self.versions[*object as usize]));
                        }
                        Some(UnderWay::ChangeApplied { change, breaking, rows })
                    }
                }
            }
            UnderWay::ChangeApplied { change, breaking, rows } => {
                let shown: Vec<ObjectId> = rows.iter().map(|(object, _)| ObjectId(*object)).collect();
                let grants = self.server.applied(breaking, shown, now);
                Some(UnderWay::ChangeAnswered { change, rows, grants })
            }
            UnderWay::ChangeAnswered { change, rows, grants } => {
                self.changed(change, &rows, &grants);
                None
            }
        }
    }

    fn renewed(&mut self, client: usize, sent: BootTime, answer: Renewed) {
        let reader = &mut self.clients[client];
        reader.renewing = false;
        match answer {
            Renewed::Granted { lease } => {
                if reader.lease != Some(lease) {
                    reader.void();
                    reader.lease = Some(lease);
                }
                let from = match self.wrong {
                    Wrong::LeasesAreCountedFromTheAnswer => reader.clock(self.now),
                    _ => sent,
                };
                reader.until = reader.until.max(from + terms().counted());
            }
            Renewed::BreaksFirst(breaks) => {
                self.tally.breaks_first += 1;
                if let Some(lease) = reader.lease {
                    self.broken(client, lease, breaks);
                }
            }
            Renewed::Lapsed => {
                if let Some(lease) = reader.lease {
                    self.lapsed(client, lease);
                }
            }
        }
    }

    fn lapsed(&mut self, client: usize, lease: LeaseId) {
        let reader = &mut self.clients[client];
        if reader.lease != Some(lease) {
            return;
        }
        self.tally.lapsed += 1;
        let copies = std::mem::take(&mut reader.copies);
        reader.void();
        if self.wrong == Wrong::LapsedLeasesAreRevived {
            let lease = granted(self.server.renew(reader.id, None, 0, self.now));
            reader.lease = Some(lease);
            reader.until = reader.clock(self.now) + terms().counted();
            reader.copies = copies;
        }
    }

    fn broken(&mut self, client: usize, lease: LeaseId, breaks: Vec<Break>) {
        let reader = &mut self.clients[client];
        if reader.lease != Some(lease) {
            return;
        }
        let acked = reader.acked;
        let new: Vec<Break> = breaks.into_iter().filter(|one| one.serial > acked).collect();
        self.tally.breaks += new.len() as u64;
        new.iter().for_each(|one| reader.log.note(one.object.0));
        if let (Wrong::AcknowledgedTooEarly, Some(last)) = (self.wrong, new.last()) {
            reader.acked = last.serial;
        }
        reader.received.push((lease, new));
    }

    /// A client gets the answer to its own mutation.
    fn changed(&mut self, change: Change, rows: &[(u64, u64)], grants: &Grants) {
        let (true, Some(client), Some(sent)) = (change.awaited, change.client, change.sent) else { return };
        let reader = &mut self.clients[client];
        for object in &change.objects {
            let row = rows.iter().find(|(shown, _)| shown == object);
            let overtaken = reader.log.overtaken(&sent, *object);
            match row {
                Some((_, version))
                    if reader.lease.is_some_and(|lease| grants.include(lease, ObjectId(*object))) && !overtaken =>
                {
                    reader.copies.insert(*object, *version);
                    self.tally.own += 1;
                }
                _ => {
                    reader.copies.remove(object);
                }
            }
            reader.log.note(*object);
            let count = reader.changing.entry(*object).or_default();
            *count = count.saturating_sub(1);
            if *count == 0 {
                reader.changing.remove(object);
            }
        }
        reader.log.end(sent);
    }

    /// No client would use another version than the newest, and nobody waits for too long.
    fn check(&mut self) -> Result<(), String> {
        let now = self.now;
        for client in &self.clients {
            for (object, version) in client.usable(now) {
                self.tally.used += 1;
                let newest = self.versions[object as usize];
                if version != newest {
                    let id = client.id;
                    return Err(format!("{id} uses version {version} of {object} at {now:?}, and {newest} is applied"));
                }
            }
        }
        let kept = terms().kept();
        for one in &mut self.under_way {
            let UnderWay::ChangeWaits { breaking, began, settled, .. } = one else { continue };
            match self.server.settled(breaking, now) {
                Settled::Yes => *settled = true,
                Settled::NotBefore(_) if *settled => return Err(format!("what was settled is not at {now:?}")),
                Settled::NotBefore(moment) if moment <= now || moment > *began + kept => {
                    return Err(format!("it began at {began:?}, is not settled at {now:?}, and waits for {moment:?}"));
                }
                Settled::NotBefore(_) => self.tally.waited += 1,
            }
        }
        self.tally.for_room = self.tally.for_room.max(self.server.stats(now).broken_for_room);
        Ok(())
    }
}

impl UnderWay {
    /// The client between whom and the server this is on its way.
    fn belongs_to(&self) -> Option<usize> {
        match self {
            UnderWay::ReadAsked { client, .. }
            | UnderWay::Reading { client, .. }
            | UnderWay::ReadAnswered { client, .. }
            | UnderWay::RenewalAsked { client, .. }
            | UnderWay::RenewalAnswered { client, .. }
            | UnderWay::BreaksAsked { client, .. }
            | UnderWay::BreaksAnswered { client, .. } => Some(*client),
            _ => None,
        }
    }

    fn is_asked(&self) -> bool {
        let asked = matches!(self, UnderWay::ReadAsked { .. } | UnderWay::Reading { .. });
        asked || matches!(self, UnderWay::RenewalAsked { .. } | UnderWay::BreaksAsked { .. })
    }

    fn may_be_lost(&self) -> bool {
        self.belongs_to().is_some() && !matches!(self, UnderWay::Reading { .. })
    }

    fn change(&mut self) -> Option<&mut Change> {
        match self {
            UnderWay::ChangeAsked { change }
            | UnderWay::ChangeWaits { change, .. }
            | UnderWay::ChangeApplied { change, .. }
            | UnderWay::ChangeAnswered { change, .. } => Some(change),
            _ => None,
        }
    }
}

/// Everything at once, in any order: no client ever uses anything but the newest version, and no mutation waits for
/// longer than a lease runs.
#[test]
fn no_client_uses_an_old_version_whatever_happens() {
    let mut all = Tally::default();
    for seed in 0..3000 {
        match Model::new(seed, Wrong::Nothing).run() {
            Ok(tally) => {
                all.used += tally.used;
                all.applied += tally.applied;
                all.waited += tally.waited;
                all.withheld += tally.withheld;
                all.own += tally.own;
                all.breaks += tally.breaks;
                all.breaks_first += tally.breaks_first;
                all.lapsed += tally.lapsed;
                all.restarts += tally.restarts;
                all.for_room += tally.for_room;
            }
            Err(what) => panic!("seed {seed}, {what}"),
        }
    }
    println!("{all:?}");
    let counts = [all.used, all.applied, all.waited, all.withheld, all.own, all.breaks, all.breaks_first];
    assert!(counts.iter().all(|count| *count > 1000), "{all:?}");
    assert!(all.lapsed > 1000 && all.restarts > 1000 && all.for_room > 300, "{all:?}");
}

#[test]
fn the_model_notices_what_is_done_wrong() {
    for wrong in [
        Wrong::NobodyWaits,
        Wrong::NothingIsBroken,
        Wrong::ReadsBeginLate,
        Wrong::RepliesAreNotOvertaken,
        Wrong::AcknowledgedTooEarly,
        Wrong::LeasesAreCountedFromTheAnswer,
        Wrong::ClocksDriftTooFar,
        Wrong::LapsedLeasesAreRevived,
        Wrong::HoldersAreForgotten,
    ] {
        let found = (0..3000).find_map(|seed| Some((seed, Model::new(seed, wrong).run().err()?)));
        match found {
            Some((seed, what)) => println!("{wrong:?}: seed {seed}, {what}"),
            None => panic!("{wrong:?} goes unnoticed"),
        }
    }
}
