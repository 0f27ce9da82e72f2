//! Keeping promises: [`core::promises`](crate::core::promises) decides, here is waited, and recorded who may hold any.

pub mod holders;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use larder_protocol::error::ErrorCode;
use larder_protocol::event_log::Since;
use larder_protocol::failpoint::Planted;
use larder_protocol::handshake::LeaseTerms;
use larder_protocol::ids::{ClientId, Epoch, VolumeId};
use larder_protocol::limits::BREAKS_WAIT;
use larder_protocol::runtime::{BootTime, RuntimeExt, SharedRuntime};
use larder_protocol::service::callback::{Breaks, Grants, LeaseId, ObjectId, Renew, Renewed};
use larder_protocol::stats::PromiseStats;
use parking_lot::Mutex;
use tokio::sync::{MutexGuard, Notify};
use tracing::error;

use crate::core::promises::{Breaking, Promises, Settled};
use crate::failpoint::Failpoint;
use holders::Holders;

/// All promises of a server process.
pub struct PromiseKeeper {
    epoch: Epoch,
    core: Mutex<Promises>,
    runtime: SharedRuntime,
    /// Told when a mutation may have become settled.
    settled: Notify,
    /// Who waits for breaks.
    waiting: Mutex<HashMap<ClientId, Arc<Notify>>>,
    /// The incarnation that each client's last lease was begun by.
    lives: Mutex<HashMap<ClientId, u64>>,
    /// Clients that do not wait.
    prompt: Mutex<BTreeSet<ClientId>>,
    holders: Arc<dyn Holders>,
    /// The clients that the durable record has.
    recorded: tokio::sync::Mutex<BTreeSet<ClientId>>,
    /// The longest term of the processes before whose leases may still run.
    term_before: Duration,
}

impl PromiseKeeper {
    /// A server process begins. Reads who may hold callbacks of the one before.
    ///
    /// # Errors
    /// The record cannot be read.
    pub fn new(
        epoch: Epoch,
        terms: LeaseTerms,
        holders: Arc<dyn Holders>,
        runtime: SharedRuntime,
    ) -> std::io::Result<Arc<PromiseKeeper>> {
        let mut before = holders.load()?;
        if Planted::IgnoreGrace.is_on() {
            before.clients.clear();
        }
        // A longer term may have been in force when they were granted theirs.
        let terms_before = before.term.map_or(terms, |term| LeaseTerms::new(term.max(terms.term)));
        let mut core = Promises::new(terms, epoch.0, before.clients.iter().copied(), runtime.boottime());
        core.wait_at_most(terms_before, runtime.boottime());
        Ok(Arc::new(PromiseKeeper {
            epoch,
            core: Mutex::new(core),
            runtime,
            settled: Notify::new(),
            waiting: Mutex::default(),
            lives: Mutex::default(),
            prompt: Mutex::default(),
            holders,
            recorded: tokio::sync::Mutex::new(BTreeSet::new()),
            term_before: terms_before.term,
        }))
    }

    /// The terms of leases.
    pub fn terms(&self) -> LeaseTerms {
        self.core.lock().terms()
    }

    /// Does something with the state, and wakes whom it concerns.
    fn with<T>(&self, work: impl FnOnce(&mut Promises, BootTime) -> T) -> T {
        let (result, fresh) = {
            let mut core = self.core.lock();
            // The clock is read under the lock: a renewal that read it before, and came in behind a mutation that saw
            // the lease at its end, would revive it (P1).
            let now = self.runtime.boottime();
            let result = work(&mut core, now);
            (result, core.take_fresh())
        };
        if !fresh.is_empty() {
            let waiting = self.waiting.lock();
            for client in fresh {
                if let Some(waiting) = waiting.get(&client) {
                    // All of them: the client may have given one up and asked again on another channel.
                    waiting.notify_waiters();
                }
            }
            drop(waiting);
            self.settled.notify_waiters();
        }
        result
    }

    /// Whether the client's changes are applied without waiting for others (delta coherence).
    pub fn set_prompt(&self, client: ClientId, prompt: bool) {
        let mut clients = self.prompt.lock();
        if prompt {
            clients.insert(client);
        } else {
            clients.remove(&client);
        }
    }

    /// Begins a lease, or prolongs one.
    ///
    /// # Errors
    /// `Io` if the client cannot be recorded as a holder.
    pub async fn renew(
        self: &Arc<Self>,
        client: ClientId,
        incarnation: u64,
        request: Renew,
    ) -> Result<Renewed, ErrorCode> {
        if request.epoch != self.epoch {
            // It speaks of another process. What it holds of that is void, and it has not said so yet.
            return Ok(Renewed::Lapsed);
        }
        // Kept until the lease runs: whoever writes the record next must see it.
        let recorded = match request.lease {
            None => Some(self.record(client).await?),
            Some(_) => None,
        };
        let renewed = self.with(|core, now| {
            if request.lease.is_none() {
                self.lives.lock().insert(client, incarnation);
            }
            core.renew(client, request.lease, request.acked, now)
        });
        drop(recorded);
        self.settled.notify_waiters();
        Ok(renewed)
    }

    /// Has the client in the durable record before it gets its first lease.
    async fn record(self: &Arc<Self>, client: ClientId) -> Result<MutexGuard<'_, BTreeSet<ClientId>>, ErrorCode> {
        let mut recorded = self.recorded.lock().await;
        if recorded.contains(&client) {
            return Ok(recorded);
        }
        let (mut clients, in_grace) = self.with(|core, now| (core.holders(now), core.in_grace(now)));
        clients.insert(client);
        let term = if in_grace { self.term_before.max(self.terms().term) } else { self.terms().term };
        match self.save(&mut recorded, clients, term).await {
            Ok(()) => Ok(recorded),
            Err(error) => {
                error!("cannot record which clients hold leases: {error}");
                Err(ErrorCode::Io)
            }
        }
    }

    async fn save(
        &self,
        recorded: &mut BTreeSet<ClientId>,
        clients: BTreeSet<ClientId>,
        term: Duration,
    ) -> std::io::Result<()> {
        // If it fails nobody knows which record will be found.
        recorded.clear();
        let (holders, saved) = (self.holders.clone(), clients.clone());
        let done = self.runtime.blocking(move || holders.save(term, &saved)).await;
        done.unwrap_or_else(|| Err(std::io::Error::other("a thread panicked that was to do it")))?;
        *recorded = clients;
        Failpoint::Recorded.pass();
        Ok(())
    }

    /// Acknowledges breaks, and waits for others.
    pub async fn breaks(&self, client: ClientId, lease: LeaseId, acked: u64) -> Breaks {
        let waiting = self.waiting.lock().entry(client).or_default().clone();
        let mut time_over = self.runtime.sleep(BREAKS_WAIT);
        loop {
            let told = waiting.notified();
            let answer = self.with(|core, now| core.breaks(client, lease, acked, now));
            self.settled.notify_waiters();
            if let Some(answer) = answer {
                return answer;
            }
            tokio::select! {
                // Whoever is told looks again, and is answered if there is anything to say: the time is not kept waiting.
                biased;
                () = told => {}
                () = &mut time_over => return Breaks::Outstanding(Vec::new()),
            }
        }
    }

    /// The client's lives before this one are over, or all are: what they hold of this process is void. Its new life is
    /// not thereby heard of (P6): a hello is said before the answer tells the client that its peer is another process.
    pub fn gone(&self, client: ClientId, before: Option<u64>) {
        self.with(|core, _| {
            let mut lives = self.lives.lock();
            match before {
                // It has a lease already: a hello may be answered late, or more than once.
                Some(before) if lives.get(&client).is_some_and(|life| *life >= before) => {}
                Some(_) => core.end_lease(client),
                None => {
                    lives.remove(&client);
                    core.end_lease(client);
                    // There is nobody left who could use what an older process promised.
                    core.heard_of(client);
                }
            }
        });
        self.settled.notify_waiters();
    }

    /// These objects are no more, and nobody can ask for them again.
    pub fn freed(&self, objects: impl IntoIterator<Item = ObjectId>) {
        self.with(|core, _| objects.into_iter().for_each(|object| core.freed(object)));
    }

    /// Something is going to be read, with callbacks on what is shown.
    pub fn begin_read(self: &Arc<Self>) -> Reading {
        Reading { keeper: self.clone(), since: Some(self.core.lock().begin_read()) }
    }

    /// A mutation by this client is going to change these objects: their callbacks are broken, but for its own.
    pub fn begin_break(
        self: &Arc<Self>,
        objects: impl IntoIterator<Item = ObjectId>,
        client: Option<ClientId>,
    ) -> Held {
        let breaking = self.with(|core, now| core.begin_break(objects, client, now));
        let prompt = client.is_some_and(|client| self.prompt.lock().contains(&client));
        Held { keeper: self.clone(), breaking: Some(breaking), prompt, none: BTreeSet::new() }
    }

    /// From now on nobody gets callbacks on what is in a volume.
    pub fn quiet(self: &Arc<Self>, volume: VolumeId) -> Quiet {
        self.with(|core, _| core.quiet(volume));
        Quiet { keeper: self.clone(), volume }
    }

    /// Breaks all callbacks on what is in a volume, and waits until they are acknowledged or their leases have ended. So are
    /// those that others have broken and not waited for.
    pub async fn break_volume(self: &Arc<Self>, volume: VolumeId) {
        let objects = self.core.lock().objects_of(volume);
        let mut held = self.begin_break(objects, None);
        held.settled().await;
    }

    /// Sweeps up what ended leases have left, in the durable record too.
    pub async fn sweep(self: &Arc<Self>) {
        self.with(|core, now| core.sweep(now));
        self.settled.notify_waiters();
        let mut recorded = self.recorded.lock().await;
        let (clients, in_grace) = self.with(|core, now| (core.holders(now), core.in_grace(now)));
        if in_grace || recorded.is_subset(&clients) {
            return;
        }
        // Held meanwhile: nobody gets a lease whom this leaves out.
        if let Err(error) = self.save(&mut recorded, clients, self.terms().term).await {
            error!("cannot record that fewer clients hold leases: {error}");
        }
    }

    /// Counters.
    pub fn stats(&self) -> PromiseStats {
        self.core.lock().stats(self.runtime.boottime())
    }
}

/// As long as this is there nobody gets callbacks on what is in a volume.
pub struct Quiet {
    keeper: Arc<PromiseKeeper>,
    volume: VolumeId,
}

impl Drop for Quiet {
    fn drop(&mut self) {
        self.keeper.with(|core, _| core.loud(self.volume));
    }
}

/// Something that is being read.
pub struct Reading {
    keeper: Arc<PromiseKeeper>,
    since: Option<Since>,
}

impl Reading {
    /// Grants the client callbacks on what was read.
    pub fn grant(mut self, client: ClientId, shown: Vec<ObjectId>) -> Grants {
        match self.since.take() {
            Some(since) => self.keeper.with(|core, now| core.grant(client, shown, since, now)),
            None => Grants::default(),
        }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        if let Some(since) = self.since.take() {
            self.keeper.core.lock().end_read(since);
        }
    }
}

/// Objects on which nobody but the mutation's client has a callback, nor gets one.
pub struct Held {
    keeper: Arc<PromiseKeeper>,
    /// There until it is given back.
    breaking: Option<Breaking>,
    prompt: bool,
    none: BTreeSet<u64>,
}

impl Held {
    /// The objects.
    pub fn objects(&self) -> &BTreeSet<u64> {
        self.breaking.as_ref().map_or(&self.none, Breaking::objects)
    }

    /// These as well.
    pub fn extend(&mut self, objects: impl IntoIterator<Item = ObjectId>) {
        if let Some(breaking) = &mut self.breaking {
            self.keeper.with(|core, now| core.extend(breaking, objects, now));
        }
    }

    /// Waits until the mutation may be applied: no longer than a lease runs, and not at all for a prompt client.
    pub async fn settled(&mut self) {
        let (keeper, Some(breaking)) = (self.keeper.clone(), &mut self.breaking) else { return };
        if self.prompt {
            return;
        }
        let began = keeper.runtime.boottime();
        let mut waited = false;
        loop {
            let told = keeper.settled.notified();
            tokio::pin!(told);
            // Registered before the state is looked at, so that nothing is missed.
            told.as_mut().enable();
            match keeper.with(|core, now| (core.settled(breaking, now), now)) {
                (Settled::Yes, _) => break Failpoint::Broken.pass(),
                (Settled::NotBefore(moment), now) => {
                    waited = true;
                    tokio::select! {
                        biased;
                        () = told => {}
                        () = keeper.runtime.sleep(moment.saturating_sub(now)) => {}
                    }
                }
            }
        }
        if waited {
            let time = keeper.runtime.boottime().saturating_sub(began);
            keeper.core.lock().waited(time);
        }
    }

    /// The mutation was applied; its client gets callbacks on what its reply shows.
    pub fn applied(mut self, shown: Vec<ObjectId>) -> Grants {
        self.give_back(shown)
    }

    fn give_back(&mut self, shown: Vec<ObjectId>) -> Grants {
        match self.breaking.take() {
            Some(breaking) => self.keeper.with(|core, now| core.applied(breaking, shown, now)),
            None => Grants::default(),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.give_back(Vec::new());
    }
}
