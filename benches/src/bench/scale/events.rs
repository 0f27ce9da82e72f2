//! Clients, what they do, and the requests that come of it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::SAMPLE;
use crate::bench::behaviour::{self, Deed, FILES, PAUSE, Writes};

/// How long it is looked at that has no beginning, in seconds, and how long before that names are believed at random.
pub(super) const STEADY: Window = Window { writes: Writes::USUAL, seed: 0, is_fresh: false, warm: 5.0, length: 90.0 };
/// How long a directory's attributes are believed at first in `nfs` mode, and with them each name from when it was asked for
/// (`acdirmin`), and once they were found unchanged (`acdirmax`).
const NAMES: [f64; 2] = [30.0, 60.0];
/// Which part of a lease's term may be left when the kernel is given a name in `afs` mode: it is renewed twice in a term, and
/// a little of that is not counted.
const NAMES_OF_TERM: std::ops::Range<f64> = 0.475..0.95;
/// Names asked for one by one in `afs` mode, until all of them are asked for.
const LIST_AFTER: u32 = 2;
/// How long a file's attributes are believed at most (`acregmax`), which is what one that is left alone gets.
const ATTRIBUTES: f64 = 60.0;
/// How long they are believed at first, after a change (`acregmin`); each time that nothing has changed, twice as long.
const ATTRIBUTES_FIRST: f64 = 3.0;
/// How often a lease is renewed in its term.
const RENEWALS: f64 = 2.0;
/// Times at which it is asked how old attributes are.
const LOOKS: usize = 20_000;

/// How clients of a mode keep up with the server.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Rules {
    /// Every deed asks for the name, the attributes and the data.
    Direct,
    /// An open asks for the attributes, and for the data if they show another version.
    Nfs,
    /// Nothing is asked as long as the server has promised to tell.
    Afs,
}

impl Rules {
    pub(super) fn of(mode: &str) -> Rules {
        match mode {
            "direct" => Rules::Direct,
            "nfs" => Rules::Nfs,
            _ => Rules::Afs,
        }
    }

    /// How long it takes on average, in seconds, until stat(2) shows a change of a shared file to a client that asks for
    /// nothing else, where so many write it; if that depends on time and not on messages.
    pub(super) fn until_seen(&self, clients: u64) -> Option<f64> {
        if !matches!(self, Rules::Nfs) {
            return None;
        }
        let mut random = SmallRng::seed_from_u64(clients);
        let between = PAUSE * FILES as f64 / (clients as f64 * Writes::USUAL.shared);
        let waits = (0..LOOKS).map(|_| {
            // Since the change before was seen, attributes were asked for after longer and longer times.
            let changed = behaviour::exponential(&mut random, between);
            let (mut asked, mut interval) = (ATTRIBUTES_FIRST, ATTRIBUTES_FIRST);
            while asked < changed {
                interval = (interval * 2.0).min(ATTRIBUTES);
                asked += interval;
            }
            asked - changed
        });
        Some(waits.sum::<f64>() / LOOKS as f64)
    }
}

/// Which part of the clients' days is looked at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Window {
    /// How often clients write.
    pub(super) writes: Writes,
    /// What chance depends on.
    pub(super) seed: u64,
    /// Whether all clients have just read everything; else it has always been as it is.
    pub(super) is_fresh: bool,
    /// Seconds before anything counts.
    pub(super) warm: f64,
    /// Seconds in which it does.
    pub(super) length: f64,
}

/// What all clients send, in a second.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Traffic {
    /// Requests by kind.
    pub(super) requests: BTreeMap<&'static str, f64>,
    /// Clients that have to be told of a change of a shared file, on average.
    pub(super) holders: f64,
}

impl Traffic {
    /// The mean of these.
    pub(super) fn mean(of: impl Iterator<Item = Traffic>) -> Traffic {
        let mut sum = Traffic::default();
        let mut count = 0.0;
        for one in of {
            one.requests.into_iter().for_each(|(kind, times)| *sum.requests.entry(kind).or_default() += times);
            sum.holders += one.holders;
            count += 1.0;
        }
        sum.requests.values_mut().for_each(|times| *times /= f64::max(count, 1.0));
        sum.holders /= f64::max(count, 1.0);
        sum
    }

    /// With what it takes so many clients to keep leases of this term, in seconds.
    pub(super) fn with_leases(mut self, clients: u64, term: f64) -> Traffic {
        self.requests.insert("renew", clients as f64 * RENEWALS / term);
        self
    }
}

/// Time as a number that has an order: microseconds.
fn moment(seconds: f64) -> u64 {
    (seconds * 1e6) as u64
}

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A client does something.
    Deed(usize),
    /// One of the clients that are not modelled writes a shared file.
    Elsewhere,
}

struct Client {
    random: SmallRng,
    /// The version of each file that it has.
    has: [u64; FILES],
    /// Whether the server has promised to tell it of a change of each.
    is_told: [bool; FILES],
    /// Until when it believes each name, the last of which is that of its own file.
    names: [f64; FILES + 1],
    /// Names that it has asked for one by one.
    asked: u32,
}

struct World<'a> {
    rules: &'a Rules,
    window: Window,
    /// Real clients that one of ours stands for.
    weight: f64,
    now: f64,
    versions: [u64; FILES],
    /// Seconds of a lease's term.
    term: f64,
    clients: Vec<Client>,
    counts: BTreeMap<&'static str, f64>,
    /// Changes of shared files, and all that had to be told of them.
    changes: f64,
    told: f64,
}

/// So many clients by these rules, with leases of this term. Where all have just read everything, they do the very deeds that
/// measured ones do, one by one: how often chance has a file change while one looks is then the same.
pub(super) fn simulate_in(window: Window, rules: &Rules, clients: u64, term: f64) -> Traffic {
    let modelled = (clients as usize).min(SAMPLE);
    let Window { writes, .. } = window;
    let seed = clients ^ window.seed << 48;
    let mut random = SmallRng::seed_from_u64(seed);
    // A client has what it read after it was changed the last time: the one of two independent events that came later.
    let changes = clients as f64 * writes.shared / PAUSE / FILES as f64;
    let has = |file: usize| behaviour::read_rate(writes, file) / (behaviour::read_rate(writes, file) + changes);
    let believed = match rules {
        Rules::Afs => term * (NAMES_OF_TERM.start + NAMES_OF_TERM.end) / 2.0,
        Rules::Nfs | Rules::Direct => NAMES[1],
    };
    let mut client = |number: usize| {
        let mut own = SmallRng::seed_from_u64(if window.is_fresh { number as u64 } else { seed << 16 ^ number as u64 });
        if window.is_fresh {
            // It has written its own file, too.
            behaviour::contents(&mut own);
        }
        let is_told: [bool; FILES] = std::array::from_fn(|file| window.is_fresh || random.random_bool(has(file)));
        let names = std::array::from_fn(|file| {
            let rate = if file < FILES { behaviour::read_rate(writes, file) } else { writes.own / PAUSE };
            let is_known = window.is_fresh || random.random_bool(rate * believed / (1.0 + rate * believed));
            let left =
                if window.is_fresh && *rules == Rules::Nfs { NAMES[0] } else { random.random_range(0.0..believed) };
            if is_known { left } else { 0.0 }
        });
        Client { random: own, has: is_told.map(u64::from), is_told, names, asked: 0 }
    };
    let clients_of = (0..modelled).map(&mut client).collect();
    let weight = clients as f64 / modelled.max(1) as f64;
    let mut world = World {
        rules,
        window,
        weight,
        now: 0.0,
        versions: [1; FILES],
        term,
        clients: clients_of,
        counts: BTreeMap::new(),
        changes: 0.0,
        told: 0.0,
    };
    let mut events = BinaryHeap::new();
    for number in 0..modelled {
        let first = behaviour::pause(&mut world.clients[number].random);
        events.push(Reverse((moment(first), Event::Deed(number))));
    }
    // Of the other clients only what they write counts.
    let others = (clients as usize - modelled) as f64 * writes.shared / PAUSE;
    let mut random = SmallRng::seed_from_u64(!seed);
    let mut pause = || behaviour::exponential(&mut random, 1.0 / others);
    if others > 0.0 {
        events.push(Reverse((moment(pause()), Event::Elsewhere)));
    }
    let mut files = SmallRng::seed_from_u64(seed + 1);
    while let Some(Reverse((at, event))) = events.pop() {
        world.now = at as f64 / 1e6;
        if world.now >= window.warm + window.length {
            break;
        }
        match event {
            Event::Deed(number) => {
                let deed = behaviour::deed(writes, &mut world.clients[number].random);
                world.act(number, deed);
                let next = world.now + behaviour::pause(&mut world.clients[number].random);
                events.push(Reverse((moment(next), event)));
            }
            Event::Elsewhere => {
                // Its requests are those that the weight of ours accounts for.
                world.change(files.random_range(0..FILES), None);
                events.push(Reverse((moment(world.now + pause()), event)));
            }
        }
    }
    world.traffic()
}

impl World<'_> {
    fn count(&mut self, kind: &'static str, times: f64) {
        if self.now >= self.window.warm {
            *self.counts.entry(kind).or_default() += times * self.weight;
        }
    }

    fn act(&mut self, number: usize, deed: Deed) {
        let (file, is_write) = match deed {
            Deed::Read(file) => (file, false),
            Deed::WriteShared(file) => (file, true),
            Deed::WriteOwn => (FILES, true),
        };
        if is_write {
            behaviour::contents(&mut self.clients[number].random);
        }
        let is_current = file == FILES || self.clients[number].has[file] == self.versions[file];
        match self.rules {
            Rules::Direct => {
                self.count("lookup", 1.0);
                self.count("getattr", 1.0);
                self.count(if is_write { "write" } else { "read" }, 1.0);
            }
            Rules::Nfs => {
                if self.clients[number].names[file] <= self.now {
                    let is_new = self.window.is_fresh && self.now < NAMES[0];
                    self.clients[number].names[file] = self.now + NAMES[usize::from(!is_new)];
                    self.count("lookup", 1.0);
                }
                self.count("getattr", 1.0);
                if is_write {
                    self.count("write", 1.0);
                } else if !is_current {
                    self.clients[number].has[file] = self.versions[file];
                    self.count("read", 1.0);
                }
            }
            Rules::Afs => {
                self.look_up(number, file);
                if is_write {
                    self.count("store", 1.0);
                } else if !is_current {
                    // The answer comes with a promise.
                    let client = &mut self.clients[number];
                    (client.has[file], client.is_told[file]) = (self.versions[file], true);
                    self.count("fetch", 1.0);
                }
            }
        }
        if let Deed::WriteShared(file) = deed {
            self.change(file, Some(number));
        }
    }

    /// In `afs` mode: a name is used, which the kernel has forgotten when it has had it for some time.
    fn look_up(&mut self, number: usize, file: usize) {
        let (now, term) = (self.now, self.term);
        let client = &mut self.clients[number];
        if client.names[file] > now {
            return;
        }
        // Spread, and as chance would not have it: the deeds are to be the same.
        let spread = (now * 7.0 + number as f64 * 0.618).fract();
        let left = NAMES_OF_TERM.start + spread * (NAMES_OF_TERM.end - NAMES_OF_TERM.start);
        client.names[file] = now + term * left;
        if file == FILES || client.is_told[file] {
            return;
        }
        client.is_told[file] = true;
        client.asked += 1;
        let lists = client.asked == LIST_AFTER;
        if lists {
            client.asked = 0;
            client.is_told = [true; FILES];
        }
        self.count("lookup", 1.0);
        if lists {
            self.count("readdir", 1.0);
        }
    }

    /// A shared file changes; all that were promised to be told are, in `afs` mode. Each change by one of ours stands for itself
    /// alone: what those make for which it stands comes as [`Event::Elsewhere`].
    fn change(&mut self, file: usize, by: Option<usize>) {
        let mut told = 0.0;
        for (number, client) in self.clients.iter_mut().enumerate() {
            if by != Some(number) {
                told += f64::from(u8::from(std::mem::replace(&mut client.is_told[file], false)));
            }
        }
        self.versions[file] += 1;
        if let Some(number) = by {
            let client = &mut self.clients[number];
            (client.has[file], client.is_told[file]) = (self.versions[file], true);
        }
        if let Rules::Afs = self.rules {
            self.count("breaks", told);
            if self.now >= self.window.warm {
                self.changes += 1.0;
                self.told += told * self.weight;
            }
        }
    }

    fn traffic(self) -> Traffic {
        let seconds = self.window.length;
        let requests = self.counts.iter().map(|(kind, count)| (*kind, count / seconds)).collect();
        Traffic { requests, holders: if self.changes > 0.0 { self.told / self.changes } else { 0.0 } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn simulate(rules: &Rules, clients: u64) -> Traffic {
        simulate_in(STEADY, rules, clients, 10.0)
    }

    #[test]
    fn clients_send_what_their_rules_say() {
        let clients = 1000;
        let of = |rules: Rules| simulate(&rules, clients);
        let at = |traffic: &Traffic, kind: &str| traffic.requests.get(kind).copied().unwrap_or(0.0) / clients as f64;
        let direct = of(Rules::Direct);
        for kind in ["lookup", "getattr"] {
            assert!((at(&direct, kind) * PAUSE - 1.0).abs() < 0.02, "each deed asks for both: {direct:?}");
        }
        let nfs = of(Rules::Nfs);
        // Each of 41 names once in a minute, but for those that are hardly ever used.
        assert!((0.2..0.5).contains(&at(&nfs, "lookup")), "{nfs:?}");
        assert!((at(&nfs, "getattr") * PAUSE - 1.0).abs() < 0.02 && at(&nfs, "read") < 0.3, "{nfs:?}");
        let afs = of(Rules::Afs).with_leases(clients, 10.0);
        assert!((at(&afs, "renew") - 0.2).abs() < 1e-9 && at(&afs, "getattr") == 0.0, "{afs:?}");
        // Who is told of a change fetches at most once, and who asks finds the change as often.
        assert!(at(&afs, "breaks") > at(&afs, "fetch") && at(&afs, "fetch") > at(&afs, "lookup"), "{afs:?}");
        assert!(at(&afs, "lookup") > at(&afs, "readdir"), "{afs:?}");
        assert!((at(&nfs, "read") / at(&afs, "fetch") - 1.0).abs() < 0.3, "{nfs:?}");
        assert!(afs.holders > 1.0 && afs.holders < clients as f64, "{afs:?}");
    }

    #[test]
    fn a_file_that_changes_often_is_asked_for_often() {
        let seen = |clients: u64| Rules::Nfs.until_seen(clients).unwrap();
        // Once in half an hour: attributes are used for a minute by then, and run out at any time in it.
        assert!((seen(100) - ATTRIBUTES / 2.0).abs() < 3.0, "{}", seen(100));
        // Five times a second: they have just been asked for.
        let often = seen(1_000_000);
        assert!(often < ATTRIBUTES_FIRST && often > ATTRIBUTES_FIRST * 0.8, "{often}");
        assert_eq!(Rules::Afs.until_seen(100), None);
    }

    #[test]
    fn clients_that_stand_for_others_send_as_much_as_these() {
        // Twice as many as are modelled one by one, against twice what these send with as many writers.
        let rules = Rules::Afs;
        let (half, whole) = (simulate(&rules, SAMPLE as u64), simulate(&rules, 2 * SAMPLE as u64));
        let store = whole.requests["store"] / half.requests["store"];
        assert!((store - 2.0).abs() < 0.15, "stores grow by {store}");
        // Files change twice as often, so each client fetches more; not more than twice.
        let fetch = whole.requests["fetch"] / half.requests["fetch"];
        assert!(fetch > 2.0 && fetch < 4.2, "fetches grow by {fetch}");
    }
}
