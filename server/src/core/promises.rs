//! Promises: leases, the callbacks under them, and what must be waited for before an object changes.
//!
//! Rules, cited by the tests.
//!
//! - **P1** A callback counts while its holder's lease runs. The server keeps a lease for `term + margin` after the
//!   renewal came in; a lease that has ended is never revived: its number lapses, and all callbacks with it. Nor does a
//!   request for a lease that comes late end one that its client asked for since.
//! - **P2** *Break, then apply*: a mutation breaks the callbacks of all others on the objects that it changes, and is
//!   applied when each of them has acknowledged or its lease has ended. A break that an earlier mutation began and that
//!   is not acknowledged yet is waited for as well.
//! - **P3** From the first break until the change is visible an object is *breaking*: nobody gets a callback on it.
//!   Nobody waits for that either.
//! - **P4** A callback is granted with an answer only if the object was not breaking at any moment since before its row
//!   was read.
//! - **P5** A renewal is granted only when every break is acknowledged. So no client that renews and never acknowledges
//!   holds a mutation up for longer than its lease runs.
//! - **P6** After a restart every client that may hold callbacks of the process before is waited for, until it has
//!   named the new epoch, or until what could have been granted to it has ended.
//! - **P7** Callbacks are bounded: the oldest are broken to make room. So are breaks that wait to be acknowledged: a
//!   client with too many of them lets its lease run out.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use larder_protocol::event_log::{EventLog, Since};
use larder_protocol::failpoint::Planted;
use larder_protocol::handshake::LeaseTerms;
use larder_protocol::ids::{ClientId, Fid, MAX_VNODE, VolumeId};
use larder_protocol::limits::{MAX_BREAKS, MAX_CALLBACKS, MAX_OUTSTANDING};
use larder_protocol::runtime::BootTime;
use larder_protocol::service::callback::{Break, Breaks, Grants, LeaseId, ObjectId, Renewed};
use larder_protocol::stats::PromiseStats;

use super::callbacks::{Callbacks, Holder};

/// What a server has promised. Objects are numbers here; see [`ObjectId`].
#[derive(Debug)]
pub struct Promises {
    terms: LeaseTerms,
    /// What lease ids begin with: those of another process are not mistaken for this one's.
    seed: u64,
    clients: Vec<Client>,
    places: BTreeMap<ClientId, u32>,
    callbacks: Callbacks,
    /// Objects that are breaking, and how many mutations say so.
    breaking: HashMap<u64, u32>,
    /// Volumes on which nobody gets callbacks, and how many say so.
    quiet: BTreeMap<VolumeId, u32>,
    log: EventLog,
    grace: BTreeSet<ClientId>,
    grace_ends: BootTime,
    max_callbacks: usize,
    /// Places of clients with breaks outstanding, or that found no room.
    unacked: BTreeSet<u32>,
    /// Clients with breaks that they have not been told of yet.
    fresh: BTreeSet<ClientId>,
    /// Leases have ended since callbacks were last swept up.
    litter: bool,
    stats: PromiseStats,
}

#[derive(Debug)]
struct Client {
    id: ClientId,
    /// Counts its leases; the callbacks of earlier ones are void.
    life: u32,
    /// When its lease ends; `None` if it has none.
    ends: Option<BootTime>,
    /// The last request for a lease that was heard, as its life counts them.
    begun: u64,
    last_serial: u64,
    acked: u64,
    /// Breaks not acknowledged yet.
    outstanding: VecDeque<Break>,
    /// It has too many of these, so its lease is not renewed any more (P7).
    overrun: bool,
}

/// What a mutation waits for, until it is given back with [`Promises::applied`].
#[derive(Debug)]
#[must_use = "its objects are breaking until it is given back"]
pub struct Breaking {
    objects: BTreeSet<u64>,
    /// The mutating client's callbacks stay.
    client: Option<ClientId>,
    waits: BTreeMap<Holder, u64>,
    since: Since,
}

/// Whether a mutation may be applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// Now.
    Yes,
    /// Not before an acknowledgement comes in, or this moment.
    NotBefore(BootTime),
}

impl Breaking {
    /// The objects that may be changed.
    pub fn objects(&self) -> &BTreeSet<u64> {
        &self.objects
    }
}

impl Promises {
    /// A server process begins. `seed` is one no process had before, `holders` are the clients that may hold
    /// callbacks of the process before (P6).
    pub fn new(terms: LeaseTerms, seed: u64, holders: impl IntoIterator<Item = ClientId>, now: BootTime) -> Promises {
        Promises {
            terms,
            seed,
            clients: Vec::new(),
            places: BTreeMap::new(),
            callbacks: Callbacks::default(),
            breaking: HashMap::new(),
            quiet: BTreeMap::new(),
            log: EventLog::default(),
            grace: holders.into_iter().collect(),
            grace_ends: now + terms.kept(),
            max_callbacks: MAX_CALLBACKS,
            unacked: BTreeSet::new(),
            fresh: BTreeSet::new(),
            litter: false,
            stats: PromiseStats::default(),
        }
    }

    /// The process before had other terms: its clients are waited for as long as those say (P6).
    pub fn wait_at_most(&mut self, terms: LeaseTerms, now: BootTime) {
        self.grace_ends = now + terms.kept();
    }

    /// With room for fewer callbacks, for tests.
    pub fn with_max_callbacks(mut self, max: usize) -> Promises {
        self.max_callbacks = max;
        self
    }

    /// The terms of its leases.
    pub fn terms(&self) -> LeaseTerms {
        self.terms
    }

    fn lease_id(&self, holder: Holder) -> LeaseId {
        let number = (u64::from(holder.client) << 32) | u64::from(holder.life);
        LeaseId(number.wrapping_add(self.seed))
    }

    fn client(&mut self, holder: Holder) -> Option<&mut Client> {
        self.clients.get_mut(holder.client as usize).filter(|client| client.life == holder.life)
    }

    /// The client's lease, if it runs (P1).
    fn running(&self, client: ClientId, now: BootTime) -> Option<Holder> {
        let place = *self.places.get(&client)?;
        let entry = &self.clients[place as usize];
        entry.ends.is_some_and(|ends| now < ends).then_some(Holder { client: place, life: entry.life })
    }

    /// The object is no more: callbacks on it are of no use to anybody, and there is nothing to tell.
    pub fn freed(&mut self, object: ObjectId) {
        self.callbacks.take(object.0, None);
    }

    /// The client has named this process's epoch (P6), or has left.
    pub fn heard_of(&mut self, client: ClientId) {
        self.grace.remove(&client);
    }

    /// Ends the client's lease, if it has one, and with it all its callbacks.
    pub fn end_lease(&mut self, client: ClientId) {
        if let Some(place) = self.places.get(&client).copied() {
            let life = self.clients[place as usize].life;
            self.end(Holder { client: place, life });
            // Its next life counts anew.
            self.clients[place as usize].begun = 0;
        }
    }

    fn end(&mut self, holder: Holder) {
        if let Some(client) = self.client(holder) {
            let ran = client.ends.is_some();
            client.life += 1;
            client.ends = None;
            client.outstanding = VecDeque::new();
            client.overrun = false;
            // It may be waiting for breaks, and must learn that there will be none.
            let id = client.id;
            self.fresh.insert(id);
            self.unacked.remove(&holder.client);
            self.litter |= ran;
        }
    }

    /// The clients whose requests for breaks can be answered now.
    pub fn take_fresh(&mut self) -> BTreeSet<ClientId> {
        std::mem::take(&mut self.fresh)
    }

    /// Begins a lease, or prolongs one. The caller has the client recorded durably before it answers the first one.
    pub fn renew(&mut self, id: ClientId, lease: Option<LeaseId>, acked: u64, now: BootTime) -> Renewed {
        self.heard_of(id);
        let Some(lease) = lease else { return self.begin_lease(id, acked, now) };
        let Some(holder) = self.running(id, now).filter(|holder| self.lease_id(*holder) == lease) else {
            // If it names an older one it comes late: its client counts on the newer one.
            let place = self.places.get(&id).copied();
            let last = place.map(|place| Holder { client: place, life: self.clients[place as usize].life });
            if let Some(holder) = last.filter(|holder| self.lease_id(*holder) == lease) {
                self.stats.lapsed += 1;
                self.end(holder);
            }
            return Renewed::Lapsed;
        };
        self.acknowledge(holder, acked);
        let ends = now + self.terms.kept();
        let Some(client) = self.client(holder) else { return Renewed::Lapsed };
        if client.overrun {
            return Renewed::BreaksFirst(Vec::new());
        }
        if !client.outstanding.is_empty() {
            return Renewed::BreaksFirst(client.outstanding.iter().take(MAX_BREAKS).copied().collect());
        }
        client.ends = Some(ends);
        Renewed::Granted { lease }
    }

    fn begin_lease(&mut self, id: ClientId, number: u64, now: BootTime) -> Renewed {
        let begun = self.places.get(&id).map_or(0, |place| self.clients[*place as usize].begun);
        if number > 0 && number <= begun {
            // It comes late or twice: its client has given it up, and may count on the lease that it asked for since.
            return Renewed::Lapsed;
        }
        self.end_lease(id);
        let place = match self.places.get(&id) {
            Some(place) => *place,
            None => {
                let place = self.clients.len() as u32;
                self.clients.push(Client {
                    id,
                    life: 0,
                    ends: None,
                    begun: 0,
                    last_serial: 0,
                    acked: 0,
                    outstanding: VecDeque::new(),
                    overrun: false,
                });
                self.places.insert(id, place);
                place
            }
        };
        let ends = now + self.terms.kept();
        let client = &mut self.clients[place as usize];
        client.life += 1;
        client.ends = Some(ends);
        client.begun = number.max(begun);
        client.last_serial = 0;
        client.acked = 0;
        let holder = Holder { client: place, life: client.life };
        Renewed::Granted { lease: self.lease_id(holder) }
    }

    fn acknowledge(&mut self, holder: Holder, acked: u64) {
        if let Some(client) = self.client(holder) {
            // A serial that was never sent cannot have been applied.
            client.acked = client.acked.max(acked.min(client.last_serial));
            let acked = client.acked;
            while client.outstanding.front().is_some_and(|first| first.serial <= acked) {
                client.outstanding.pop_front();
            }
            if client.outstanding.is_empty() && !client.overrun {
                self.unacked.remove(&holder.client);
            }
        }
    }

    /// The client acknowledges breaks and asks for those that are outstanding. `None`: there are none yet.
    pub fn breaks(&mut self, id: ClientId, lease: LeaseId, acked: u64, now: BootTime) -> Option<Breaks> {
        let Some(holder) = self.running(id, now).filter(|holder| self.lease_id(*holder) == lease) else {
            return Some(Breaks::Lapsed);
        };
        self.acknowledge(holder, acked);
        let outstanding = &self.client(holder)?.outstanding;
        if outstanding.is_empty() {
            return None;
        }
        Some(Breaks::Outstanding(outstanding.iter().take(MAX_BREAKS).copied().collect()))
    }

    /// Something is going to be read, perhaps with callbacks (P4).
    pub fn begin_read(&mut self) -> Since {
        self.log.begin()
    }

    /// It was read, and nothing is to be promised.
    pub fn end_read(&mut self, since: Since) {
        self.log.end(since);
    }

    /// Grants callbacks on the objects that an answer shows, read since then, as far as that can be (P3, P4).
    pub fn grant(
        &mut self,
        id: ClientId,
        objects: impl IntoIterator<Item = ObjectId>,
        since: Since,
        now: BootTime,
    ) -> Grants {
        let grants = self.grant_since(id, objects, &since, now);
        self.log.end(since);
        grants
    }

    fn grant_since(
        &mut self,
        id: ClientId,
        objects: impl IntoIterator<Item = ObjectId>,
        since: &Since,
        now: BootTime,
    ) -> Grants {
        let Some(holder) = self.running(id, now) else { return Grants::default() };
        let mut withheld = Vec::new();
        for object in objects {
            let is_quiet = !self.quiet.is_empty() && self.quiet.contains_key(&object.volume());
            if is_quiet || self.breaking.contains_key(&object.0) || self.log.overtaken(since, object.0) {
                withheld.push(object);
            } else if self.callbacks.grant(object.0, holder) {
                self.stats.granted += 1;
            }
        }
        self.stats.withheld += withheld.len() as u64;
        let lease = self.lease_id(holder);
        self.make_room(now);
        Grants { lease: Some(lease), withheld }
    }

    /// P7.
    fn make_room(&mut self, now: BootTime) {
        if self.callbacks.len() <= self.max_callbacks {
            return;
        }
        // Only if it helps: it looks at every callback there is.
        if std::mem::take(&mut self.litter) {
            let clients = &self.clients;
            self.callbacks.sweep(|holder| counts(clients, holder, now));
        }
        while self.callbacks.len() > self.max_callbacks {
            let Some((object, holder)) = self.callbacks.take_oldest() else { break };
            if counts(&self.clients, holder, now) {
                self.enqueue(holder, object);
                self.stats.broken_for_room += 1;
            }
        }
    }

    /// Tells a client that a callback is broken; the serial to wait for.
    fn enqueue(&mut self, holder: Holder, object: u64) -> Option<u64> {
        let client = self.client(holder)?;
        client.last_serial += 1;
        let serial = client.last_serial;
        // Nothing behind one that found no room: to acknowledge it would be to acknowledge that one.
        if !client.overrun && client.outstanding.len() < MAX_OUTSTANDING {
            client.outstanding.push_back(Break { serial, object: ObjectId(object) });
        } else {
            client.overrun = true;
        }
        let id = client.id;
        self.fresh.insert(id);
        self.unacked.insert(holder.client);
        Some(serial)
    }

    /// A mutation by this client is going to change these objects (P2).
    pub fn begin_break(
        &mut self,
        objects: impl IntoIterator<Item = ObjectId>,
        client: Option<ClientId>,
        now: BootTime,
    ) -> Breaking {
        let mut breaking =
            Breaking { objects: BTreeSet::new(), client, waits: BTreeMap::new(), since: self.log.begin() };
        self.extend(&mut breaking, objects, now);
        // Taken behind the events that say that the objects begin to break: those are its own.
        let since = std::mem::replace(&mut breaking.since, self.log.begin());
        self.log.end(since);
        breaking
    }

    /// From now on nobody gets callbacks on what is in a volume, until each who has said so says [`loud`](Promises::loud).
    pub fn quiet(&mut self, volume: VolumeId) {
        *self.quiet.entry(volume).or_default() += 1;
    }

    /// One who has said [`quiet`](Promises::quiet) does not say so any more.
    pub fn loud(&mut self, volume: VolumeId) {
        if let Some(count) = self.quiet.get_mut(&volume) {
            *count -= 1;
            if *count == 0 {
                self.quiet.remove(&volume);
            }
        }
    }

    /// The objects of a volume on which there are callbacks, or were, whose breaks are not acknowledged.
    pub fn objects_of(&self, volume: VolumeId) -> Vec<ObjectId> {
        let at = |vnode| ObjectId::from(Fid { volume, vnode, generation: 0 }).0;
        let objects = self.callbacks.within(&(at(0)..at(MAX_VNODE) + 1)).into_iter().map(ObjectId);
        let unacked = self.unacked.iter().flat_map(|place| &self.clients[*place as usize].outstanding);
        let unacked = unacked.map(|one| one.object).filter(|object| object.volume() == volume);
        objects.chain(unacked).collect()
    }

    /// It is going to change these as well.
    pub fn extend(&mut self, breaking: &mut Breaking, objects: impl IntoIterator<Item = ObjectId>, now: BootTime) {
        let but = breaking.client.and_then(|client| self.places.get(&client).copied());
        for ObjectId(object) in objects {
            if !breaking.objects.insert(object) {
                continue;
            }
            *self.breaking.entry(object).or_default() += 1;
            self.log.note(object);
            for holder in self.callbacks.take(object, but) {
                if !counts(&self.clients, holder, now) || Planted::SkipBreak.is_on() {
                    continue;
                }
                if let Some(serial) = self.enqueue(holder, object) {
                    self.stats.broken += 1;
                    breaking.waits.insert(holder, serial);
                }
            }
        }
        // P2, its second sentence. There are few clients with breaks outstanding at any moment.
        for place in &self.unacked {
            let client = &self.clients[*place as usize];
            let holder = Holder { client: *place, life: client.life };
            if Some(holder.client) == but || !counts(&self.clients, holder, now) {
                continue;
            }
            let last = if client.overrun {
                // Which objects found no room is not known. This serial is never acknowledged, so the lease runs out.
                Some(client.last_serial)
            } else {
                let mut outstanding = client.outstanding.iter().rev();
                outstanding.find(|one| breaking.objects.contains(&one.object.0)).map(|one| one.serial)
            };
            if let Some(last) = last {
                let serial = breaking.waits.entry(holder).or_default();
                *serial = (*serial).max(last);
            }
        }
    }

    /// Whether the mutation may be applied now (P2, P6).
    pub fn settled(&mut self, breaking: &mut Breaking, now: BootTime) -> Settled {
        let mut until: Option<BootTime> = None;
        let mut ended = Vec::new();
        let clients = &self.clients;
        breaking.waits.retain(|holder, serial| {
            let client = &clients[holder.client as usize];
            let (true, Some(ends)) = (client.life == holder.life, client.ends) else { return false };
            if client.acked >= *serial {
                return false;
            }
            if now >= ends {
                ended.push(*holder);
                return false;
            }
            until = Some(until.map_or(ends, |until| until.min(ends)));
            true
        });
        for holder in ended {
            self.stats.lapsed += 1;
            self.end(holder);
        }
        if now >= self.grace_ends {
            self.grace.clear();
        }
        if self.grace.iter().any(|client| Some(*client) != breaking.client) {
            until = Some(until.map_or(self.grace_ends, |until| until.min(self.grace_ends)));
        }
        until.map_or(Settled::Yes, Settled::NotBefore)
    }

    /// The mutation was applied, or was not and will not be. If it was, its client gets callbacks on the objects that
    /// its reply shows, unless others have changed them since.
    pub fn applied(&mut self, breaking: Breaking, shown: impl IntoIterator<Item = ObjectId>, now: BootTime) -> Grants {
        let Breaking { objects, client, since, .. } = breaking;
        for object in &objects {
            if let Some(count) = self.breaking.get_mut(object) {
                *count -= 1;
                if *count == 0 {
                    self.breaking.remove(object);
                }
            }
        }
        // Before the events below, which are for others.
        let grants = match client {
            Some(client) => self.grant_since(client, shown, &since, now),
            None => Grants::default(),
        };
        self.log.end(since);
        for object in objects {
            self.log.note(object);
        }
        grants
    }

    /// A mutation had to wait.
    pub fn waited(&mut self, time: std::time::Duration) {
        self.stats.waited += 1;
        self.stats.longest_wait_us = self.stats.longest_wait_us.max(time.as_micros() as u64);
    }

    /// The clients that may hold callbacks now, for the durable record of them.
    pub fn holders(&self, now: BootTime) -> BTreeSet<ClientId> {
        let running = self.clients.iter().filter(|client| client.ends.is_some_and(|ends| now < ends));
        running.map(|client| client.id).chain(self.grace.iter().copied()).collect()
    }

    /// Whether clients of the process before may still hold callbacks (P6).
    pub fn in_grace(&self, now: BootTime) -> bool {
        now < self.grace_ends && !self.grace.is_empty()
    }

    /// Sweeps up what ended leases have left.
    pub fn sweep(&mut self, now: BootTime) {
        let over: Vec<Holder> = (0..self.clients.len() as u32)
            .map(|place| Holder { client: place, life: self.clients[place as usize].life })
            .filter(|holder| self.clients[holder.client as usize].ends.is_some_and(|ends| now >= ends))
            .collect();
        for holder in over {
            self.stats.lapsed += 1;
            self.end(holder);
        }
        self.litter = false;
        let clients = &self.clients;
        self.callbacks.sweep(|holder| counts(clients, holder, now));
    }

    /// Counters.
    pub fn stats(&self, now: BootTime) -> PromiseStats {
        PromiseStats {
            leases: self.clients.iter().filter(|client| client.ends.is_some_and(|ends| now < ends)).count() as u64,
            callbacks: self.callbacks.len() as u64,
            callback_bytes: self.callbacks.bytes() as u64,
            in_grace: if now < self.grace_ends { self.grace.len() as u64 } else { 0 },
            ..self.stats.clone()
        }
    }
}

/// Whether a holder's callbacks count (P1).
fn counts(clients: &[Client], holder: Holder, now: BootTime) -> bool {
    let client = clients.get(holder.client as usize);
    client.is_some_and(|client| client.life == holder.life && client.ends.is_some_and(|ends| now < ends))
}

#[cfg(test)]
mod tests;
