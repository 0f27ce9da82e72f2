//! What a client may count on: its lease, the callbacks under it, and which replies were overtaken.
//!
//! The rules cited are those of `mode/afs/mod.rs`.

use std::collections::HashMap;
use std::time::Duration;

use larder_protocol::event_log::{EventLog, Since};
use larder_protocol::failpoint::Planted;
use larder_protocol::handshake::LeaseTerms;
use larder_protocol::ids::Epoch;
use larder_protocol::runtime::BootTime;
use larder_protocol::service::callback::{Break, Grants, LeaseId, ObjectId, Renew, Renewed};

use super::attr_cache::Miss;

/// A callback on an object, as good as the lease that it was granted under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promise {
    server: u32,
    life: u32,
}

impl Promise {
    /// Which of the client's servers has given it.
    pub fn server(self) -> u32 {
        self.server
    }
}

/// What is to be done about the answer to a renewal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// The lease runs.
    Runs,
    /// These breaks are to be applied, and then the lease to be asked for again.
    Apply(Vec<Break>),
    /// Everything is void: the kernel must forget, and then a new lease is to be asked for.
    Void,
}

/// A client's side of its promises with one server.
#[derive(Debug)]
pub struct Promises {
    /// Which of the client's servers it is.
    server: u32,
    terms: LeaseTerms,
    epoch: Option<Epoch>,
    lease: Option<LeaseId>,
    /// Until when the lease counts (rule 1).
    until: BootTime,
    /// Counts the leases. A promise of an earlier one is void (rule 7).
    life: u32,
    /// The last break that was applied.
    acked: u64,
    /// Counts the requests for a lease, of which any may be given up and reach the server late.
    begins: u64,
    log: EventLog,
    /// Objects that this client is changing, and how many changes are under way.
    changing: HashMap<u64, u32>,
    renewals: u64,
    breaks: u64,
    voids: u64,
}

impl Promises {
    /// With the server of this number, without a lease.
    pub fn new(server: u32, terms: LeaseTerms) -> Promises {
        Promises {
            server,
            terms,
            epoch: None,
            lease: None,
            until: BootTime::ZERO,
            life: 0,
            acked: 0,
            begins: 0,
            log: EventLog::default(),
            changing: HashMap::new(),
            renewals: 0,
            breaks: 0,
            voids: 0,
        }
    }

    /// How often the lease is to be renewed: once more than it must be. Should the server not answer, it is asked again
    /// and again for as long.
    pub fn renew_every(&self) -> Duration {
        self.terms.counted() / 2
    }

    /// The server's terms.
    pub fn terms(&self) -> LeaseTerms {
        self.terms
    }

    /// These are the server's terms.
    pub fn set_terms(&mut self, terms: LeaseTerms) {
        self.terms = terms;
    }

    /// How long the lease still counts.
    ///
    /// # Errors
    /// `LeaseExpired`.
    pub fn remaining(&self, now: BootTime) -> Result<Duration, Miss> {
        let longer = if Planted::LeaseOffByOne.is_on() { Duration::from_secs(1) } else { Duration::ZERO };
        match (self.until + longer).checked_sub(now) {
            Some(left) if !left.is_zero() && self.lease.is_some() => Ok(left),
            _ => Err(Miss::LeaseExpired),
        }
    }

    /// For how long an object may be used without asking.
    ///
    /// # Errors
    /// The rule that says no.
    pub fn usable(&self, promise: Option<Promise>, object: ObjectId, now: BootTime) -> Result<Duration, Miss> {
        match promise {
            None => Err(Miss::NoCallback),
            Some(promise) if promise.server != self.server => Err(Miss::NoCallback),
            Some(promise) if promise.life != self.life => Err(Miss::Lapsed),
            Some(_) if self.changing.contains_key(&object.0) => Err(Miss::Changing),
            Some(_) => self.remaining(now),
        }
    }

    /// A request is going to be sent whose answer may bring promises.
    pub fn begin(&mut self) -> Since {
        self.log.begin()
    }

    /// The answer was used, or there is none.
    pub fn end(&mut self, since: Since) {
        self.log.end(since);
    }

    /// What the answer to a request sent then promises about an object that it shows (rule 6).
    pub fn promise(&self, grants: &Grants, since: &Since, object: ObjectId) -> Option<Promise> {
        let lease = self.lease?;
        let good = grants.include(lease, object) && !self.log.overtaken(since, object.0);
        good.then_some(Promise { server: self.server, life: self.life })
    }

    /// This client is going to change objects: until it has the answer it does not know which state they are in.
    pub fn change_begins(&mut self, objects: &[ObjectId]) {
        for object in objects {
            *self.changing.entry(object.0).or_default() += 1;
        }
    }

    /// The answer has come and was used, or there is none.
    pub fn change_ends(&mut self, objects: &[ObjectId]) {
        for object in objects {
            self.log.note(object.0);
            if let Some(count) = self.changing.get_mut(&object.0) {
                *count -= 1;
                if *count == 0 {
                    self.changing.remove(&object.0);
                }
            }
        }
    }

    /// What to ask for to have the lease prolonged, or to get one.
    pub fn renewal(&mut self, epoch: Epoch) -> Renew {
        let lease = self.lease.filter(|_| self.epoch == Some(epoch));
        self.begins += u64::from(lease.is_none());
        Renew { epoch, lease, acked: if lease.is_some() { self.acked } else { self.begins } }
    }

    /// Whether what is promised was promised by another server process than this.
    pub fn is_of_another(&self, epoch: Epoch) -> bool {
        self.lease.is_some() && self.epoch != Some(epoch)
    }

    /// Takes in the answer to a renewal that was sent then (rules 1 and 7).
    pub fn renewed(&mut self, sent: BootTime, request: &Renew, answer: Renewed) -> Renewal {
        match answer {
            Renewed::Granted { lease } => {
                if self.lease != Some(lease) {
                    if self.lease.is_some() {
                        self.void();
                    }
                    self.lease = Some(lease);
                    self.epoch = Some(request.epoch);
                    self.life += 1;
                    self.acked = 0;
                }
                self.until = self.until.max(sent + self.terms.counted());
                self.renewals += 1;
                Renewal::Runs
            }
            Renewed::BreaksFirst(breaks) => Renewal::Apply(breaks),
            Renewed::Lapsed => Renewal::Void,
        }
    }

    /// The lease under which breaks are to be asked for, and the last one applied.
    pub fn place(&self) -> Option<(LeaseId, u64)> {
        Some((self.lease?, self.acked))
    }

    /// Breaks have come in; those that are new. From here on no reply on its way counts (rule 6).
    pub fn broken(&mut self, breaks: &[Break]) -> Vec<ObjectId> {
        let new: Vec<ObjectId> = breaks.iter().filter(|one| one.serial > self.acked).map(|one| one.object).collect();
        new.iter().for_each(|object| self.log.note(object.0));
        self.breaks += new.len() as u64;
        new
    }

    /// They are applied: neither this client nor its kernel uses what it knew before.
    pub fn applied(&mut self, breaks: &[Break], lease: LeaseId) {
        if self.lease == Some(lease)
            && let Some(last) = breaks.last()
        {
            self.acked = self.acked.max(last.serial);
        }
    }

    /// Every promise is void (rules 7 and 8).
    pub fn void(&mut self) {
        self.lease = None;
        self.until = BootTime::ZERO;
        self.life += 1;
        self.acked = 0;
        self.voids += 1;
        self.log.note_all();
    }

    /// Renewals granted, breaks received, and times that everything became void.
    pub fn counters(&self) -> (u64, u64, u64) {
        (self.renewals, self.breaks, self.voids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: Epoch = Epoch(1);
    const LEASE: LeaseId = LeaseId(5);
    const A: ObjectId = ObjectId(1);
    const B: ObjectId = ObjectId(2);

    fn secs(secs: u64) -> BootTime {
        Duration::from_secs(secs)
    }

    fn running() -> Promises {
        let mut promises = Promises::new(3, LeaseTerms::new(secs(10)));
        let request = promises.renewal(EPOCH);
        assert_eq!((request.lease, request.acked), (None, 1));
        let renewal = promises.renewed(secs(100), &request, Renewed::Granted { lease: LEASE });
        assert_eq!(renewal, Renewal::Runs);
        promises
    }

    fn granted() -> Grants {
        Grants { lease: Some(LEASE), withheld: vec![] }
    }

    fn promise(promises: &mut Promises, object: ObjectId) -> Option<Promise> {
        let since = promises.begin();
        let promise = promises.promise(&granted(), &since, object);
        promises.end(since);
        promise
    }

    #[test]
    fn rule_1_a_promise_counts_until_the_term_less_the_margin_is_over() {
        let mut promises = running();
        let promise = promise(&mut promises, A);
        assert_eq!(promises.usable(promise, A, secs(105)), Ok(Duration::from_millis(4500)));
        assert_eq!(promises.usable(promise, A, Duration::from_millis(109_500)), Err(Miss::LeaseExpired));
        let request = promises.renewal(EPOCH);
        promises.renewed(secs(111), &request, Renewed::Granted { lease: LEASE });
        assert!(promises.usable(promise, A, secs(112)).is_ok(), "the same lease: nothing was missed");
        assert_eq!(promises.usable(None, A, secs(112)), Err(Miss::NoCallback));
    }

    #[test]
    fn rule_6_a_reply_that_a_break_overtook_promises_nothing() {
        let mut promises = running();
        let since = promises.begin();
        let broken = promises.broken(&[Break { serial: 1, object: A }]);
        assert_eq!(broken, [A]);
        assert_eq!(promises.promise(&granted(), &since, A), None);
        assert!(promises.promise(&granted(), &since, B).is_some());
        promises.end(since);
        let withheld = Grants { lease: Some(LEASE), withheld: vec![B] };
        let since = promises.begin();
        assert!(promises.promise(&withheld, &since, A).is_some());
        assert_eq!(promises.promise(&withheld, &since, B), None);
        assert_eq!(promises.promise(&Grants::default(), &since, A), None);
        promises.end(since);
    }

    #[test]
    fn rule_7_a_lapsed_lease_revives_nothing() {
        let mut promises = running();
        let old = promise(&mut promises, A);
        let since = promises.begin();
        promises.void();
        assert_eq!(promises.usable(old, A, secs(101)), Err(Miss::Lapsed));
        let request = promises.renewal(EPOCH);
        assert_eq!(request.lease, None);
        promises.renewed(secs(101), &request, Renewed::Granted { lease: LeaseId(6) });
        assert_eq!(promises.usable(old, A, secs(102)), Err(Miss::Lapsed));
        let late = Grants { lease: Some(LeaseId(6)), withheld: vec![] };
        assert_eq!(promises.promise(&late, &since, A), None, "it was sent under the old lease");
        promises.end(since);
    }

    #[test]
    fn rule_8_another_epoch_is_asked_for_a_new_lease() {
        let mut promises = running();
        assert!(promises.is_of_another(Epoch(2)) && !promises.is_of_another(EPOCH));
        assert_eq!(promises.renewal(Epoch(2)).lease, None);
        assert_eq!(promises.renewal(EPOCH).lease, Some(LEASE));
    }

    #[test]
    fn breaks_are_acknowledged_once_they_are_applied() {
        let mut promises = running();
        let breaks = [Break { serial: 1, object: A }, Break { serial: 2, object: B }];
        promises.broken(&breaks);
        assert_eq!(promises.place(), Some((LEASE, 0)));
        promises.applied(&breaks, LEASE);
        assert_eq!(promises.place(), Some((LEASE, 2)));
        assert!(promises.broken(&breaks).is_empty(), "they come again when the answer was lost");
        promises.applied(&[Break { serial: 9, object: A }], LeaseId(4));
        assert_eq!(promises.place(), Some((LEASE, 2)), "those of another lease do not count");
        assert_eq!(promises.renewal(EPOCH).acked, 2);
    }

    #[test]
    fn an_object_that_is_being_changed_here_is_not_used() {
        let mut promises = running();
        let promise = promise(&mut promises, A);
        let since = promises.begin();
        promises.change_begins(&[A]);
        promises.change_begins(&[A]);
        promises.change_ends(&[A]);
        assert_eq!(promises.usable(promise, A, secs(101)), Err(Miss::Changing));
        promises.change_ends(&[A]);
        assert!(promises.usable(promise, A, secs(101)).is_ok());
        assert_eq!(promises.promise(&granted(), &since, A), None, "a read beside it shows nobody knows which state");
        promises.end(since);
    }
}
