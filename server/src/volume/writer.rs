//! The one way in: every change of a volume's metadata goes through here, in batches.
//!
//! Mutations queue up; whoever finds the writer idle takes all that wait, runs them one after the other against a
//! draft, and commits the draft as one batch. So mutations that arrive while a batch is being synced share the next
//! sync (group commit), and a mutation sees all that came before it.
//!
//! **W1.** Ids, times and change attributes are decided in the writer, after any waiting.
//! **W2.** A mutation that fails leaves nothing in the draft.
//! **W3.** A mutation's effects, its result in its replay slot and the header's counters are in one batch.
//! **W4.** Nobody learns a result before its batch is committed (and, under `power`, durable).

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use larder_protocol::cell::Quota;
use larder_protocol::error::ErrorCode;
use larder_protocol::failpoint::Planted;
use larder_protocol::ids::{ClientId, OpId};
use larder_protocol::runtime::SharedRuntime;
use larder_protocol::service::callback::Grants;
use larder_protocol::service::file::{Mutated, OpReply};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::codec;
use super::context::{ChangeCounter, Context, Effects};
use super::data::room::RoomGauge;
use super::data::unsettled::UnsettledMap;
use super::error::{StoreError, StoreResult};
use super::keys::{self, Table};
use super::meta::Metadata;
use super::quota::{Growth, QuotaGauge};
use super::record::{ClientRecord, HeaderRecord, SlotRecord};
use super::view::{Draft, Records, Verified};
use crate::failpoint::Failpoint;

/// Mutations in one batch at most: bounds how long the first waits for the last.
const MAX_BATCH: usize = 256;

/// Batches that a task runs itself before it hands over.
const INLINE_BATCHES: usize = 4;

/// How often the `last_seen` of a client that changes something is written, in seconds.
const SEEN_GRANULARITY: i64 = 60;

type Run = Box<dyn FnOnce(&mut Context<'_, '_>) -> Result<Option<OpReply>, ErrorCode> + Send>;
type Done = oneshot::Sender<Result<Place, ErrorCode>>;
type EffectsHandler = Box<dyn Fn(Effects) + Send + Sync>;

struct Job {
    slot: Option<OpId>,
    /// Whether what it takes up must be within the quota: not what only records what is there already.
    is_limited: bool,
    run: Run,
    done: Option<Done>,
}

/// A committed mutation's place in the volume's history.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    sequence: u64,
    durable: u64,
}

/// A client's operation on its way through the volume.
#[derive(Clone, Debug)]
pub(super) struct Operation {
    /// Its id.
    pub(super) id: OpId,
    /// The vnodes that it may change, if that is bounded.
    pub(super) scope: Option<Arc<Scope>>,
}

/// The vnodes whose callbacks are broken for an operation. What it changes is decided only in the writer; if that is
/// more than these, it is not applied, and the rest is broken first (P2 of [`core::promises`](crate::core::promises)).
#[derive(Debug)]
pub(super) struct Scope {
    vnodes: BTreeSet<u64>,
    missed: Mutex<Vec<u64>>,
}

impl Scope {
    pub(super) fn new(vnodes: BTreeSet<u64>) -> Scope {
        Scope { vnodes, missed: Mutex::default() }
    }

    fn check(&self, changed: &[u64]) -> Result<(), ErrorCode> {
        let missed: Vec<u64> = changed.iter().copied().filter(|vnode| !self.vnodes.contains(vnode)).collect();
        if missed.is_empty() {
            return Ok(());
        }
        *self.missed.lock() = missed;
        Err(ErrorCode::Busy)
    }

    /// What the operation would have changed beside what it may.
    pub(super) fn missed(&self) -> Vec<u64> {
        std::mem::take(&mut *self.missed.lock())
    }
}

impl From<OpId> for Operation {
    fn from(id: OpId) -> Operation {
        Operation { id, scope: None }
    }
}

struct State {
    header: HeaderRecord,
    /// Clients whose row is committed, with the incarnation and the hour it says.
    clients: HashMap<ClientId, (u64, i64)>,
}

/// The writer of one volume.
pub(super) struct Writer {
    meta: Arc<dyn Metadata>,
    runtime: SharedRuntime,
    durable: bool,
    changes: Arc<ChangeCounter>,
    unsettled: Arc<UnsettledMap>,
    room: Arc<RoomGauge>,
    quota: QuotaGauge,
    queue: Mutex<VecDeque<Job>>,
    lazy: Mutex<Vec<Job>>,
    /// Held by whoever runs batches, and tried by nobody else: so "it is taken" means that someone will look at the
    /// queue once more.
    turn: Mutex<()>,
    /// What the committed batches made of the header and of who is known. Never held for long.
    state: Mutex<State>,
    scheduled: AtomicBool,
    effects: OnceLock<EffectsHandler>,
    batches: AtomicU64,
    mutations: AtomicU64,
}

/// What a volume's metadata says of it when it is opened.
pub(super) struct Recorded {
    pub(super) header: HeaderRecord,
    pub(super) quota: Quota,
}

impl Writer {
    pub(super) fn new(
        meta: Arc<dyn Metadata>,
        runtime: SharedRuntime,
        durable: bool,
        changes: Arc<ChangeCounter>,
        unsettled: Arc<UnsettledMap>,
        room: Arc<RoomGauge>,
        Recorded { header, quota }: Recorded,
    ) -> Writer {
        Writer {
            meta,
            runtime,
            durable,
            changes,
            unsettled,
            room,
            quota: QuotaGauge::new(quota),
            queue: Mutex::default(),
            lazy: Mutex::default(),
            turn: Mutex::new(()),
            state: Mutex::new(State { header, clients: HashMap::new() }),
            scheduled: AtomicBool::new(false),
            effects: OnceLock::new(),
            batches: AtomicU64::new(0),
            mutations: AtomicU64::new(0),
        }
    }

    /// Says who carries out the effects of committed batches. Called once.
    pub(super) fn on_effects(&self, handler: EffectsHandler) {
        let first = self.effects.set(handler).is_ok();
        debug_assert!(first, "the handler is set once, at open");
    }

    /// Batches committed so far.
    pub(super) fn batches(&self) -> u64 {
        self.batches.load(Ordering::Relaxed)
    }

    /// Mutations in them.
    pub(super) fn mutations(&self) -> u64 {
        self.mutations.load(Ordering::Relaxed)
    }

    /// The volume's counters, with everything committed.
    pub(super) fn header(&self) -> HeaderRecord {
        self.state.lock().header.clone()
    }

    /// What the volume may hold.
    pub(super) fn quota(&self) -> &QuotaGauge {
        &self.quota
    }

    /// Sets what the volume may hold.
    pub(super) async fn set_quota(self: &Arc<Self>, quota: Quota) -> Result<(), ErrorCode> {
        self.internal(move |cx| Ok(cx.draft.put(Table::Header, keys::QUOTA, &quota)?)).await?;
        self.quota.set(quota);
        Ok(())
    }

    /// Lets a write in place take up so many bytes more (Q2 of `quota`).
    pub(super) fn let_grow(&self, bytes: u64) -> Result<Growth<'_>, ErrorCode> {
        self.quota.let_grow(bytes, &self.unsettled, || self.meta.glance())
    }

    /// Runs a client's operation; its reply goes into its slot with the same batch.
    pub(super) async fn operation(
        self: &Arc<Self>,
        operation: &Operation,
        run: impl FnOnce(&mut Context<'_, '_>) -> Result<OpReply, ErrorCode> + Send + 'static,
    ) -> Result<Mutated, ErrorCode> {
        let cell = Arc::new(Mutex::new(None));
        let out = Arc::clone(&cell);
        let scope = operation.scope.clone();
        let place = self
            .submit(
                Some(operation.id),
                true,
                Box::new(move |cx| {
                    let reply = run(cx)?;
                    if let Some(scope) = scope {
                        scope.check(&cx.changed)?;
                    }
                    *out.lock() = Some(reply.clone());
                    Ok(Some(reply))
                }),
            )
            .await?;
        let reply = cell.lock().take().ok_or(ErrorCode::Internal)?;
        Ok(Mutated { sequence: place.sequence, durable: place.durable, reply, grants: Grants::default() })
    }

    /// Runs a change that no client named: housekeeping, or a step of an operation.
    pub(super) async fn internal<T: Send + 'static>(
        self: &Arc<Self>,
        run: impl FnOnce(&mut Context<'_, '_>) -> Result<T, ErrorCode> + Send + 'static,
    ) -> Result<T, ErrorCode> {
        self.step(false, run).await
    }

    /// As [`internal`](Writer::internal), for what takes up more only within the quota.
    pub(super) async fn limited<T: Send + 'static>(
        self: &Arc<Self>,
        run: impl FnOnce(&mut Context<'_, '_>) -> Result<T, ErrorCode> + Send + 'static,
    ) -> Result<T, ErrorCode> {
        self.step(true, run).await
    }

    async fn step<T: Send + 'static>(
        self: &Arc<Self>,
        is_limited: bool,
        run: impl FnOnce(&mut Context<'_, '_>) -> Result<T, ErrorCode> + Send + 'static,
    ) -> Result<T, ErrorCode> {
        let cell = Arc::new(Mutex::new(None));
        let out = Arc::clone(&cell);
        self.submit(
            None,
            is_limited,
            Box::new(move |cx| {
                *out.lock() = Some(run(cx)?);
                Ok(None)
            }),
        )
        .await?;
        cell.lock().take().ok_or(ErrorCode::Internal)
    }

    /// Adds a change to the next batch, whenever there is one, and waits for nothing.
    pub(super) fn lazily(&self, run: impl FnOnce(&mut Context<'_, '_>) -> Result<(), ErrorCode> + Send + 'static) {
        let run: Run = Box::new(move |cx| run(cx).map(|()| None));
        self.lazy.lock().push(Job { slot: None, is_limited: false, run, done: None });
    }

    /// Commits what [`lazily`](Writer::lazily) left, if there is any.
    pub(super) async fn flush_lazy(self: &Arc<Self>) -> Result<(), ErrorCode> {
        if self.lazy.lock().is_empty() {
            return Ok(());
        }
        self.internal(|_| Ok(())).await
    }

    async fn submit(self: &Arc<Self>, slot: Option<OpId>, is_limited: bool, run: Run) -> Result<Place, ErrorCode> {
        let (done, result) = oneshot::channel();
        self.queue.lock().push_back(Job { slot, is_limited, run, done: Some(done) });
        if !self.durable {
            // Without a sync a batch takes less than waking another thread.
            self.drain(INLINE_BATCHES);
        } else {
            self.drain_elsewhere();
        }
        // An error means that the writer panicked outside of a mutation, which is logged there.
        result.await.map_err(|_| ErrorCode::Internal)?
    }

    /// Runs batches until the queue is empty, or someone else does. After `limit` batches it hands the rest to a
    /// thread that may block: its caller has an answer to give.
    fn drain(self: &Arc<Self>, limit: usize) {
        let mut batches = 0;
        loop {
            if batches == limit {
                return self.drain_elsewhere();
            }
            let Some(turn) = self.turn.try_lock() else {
                // The holder looks at the queue once more after it let go.
                return;
            };
            let mut jobs: Vec<Job> = {
                let mut queue = self.queue.lock();
                let count = queue.len().min(MAX_BATCH);
                queue.drain(..count).collect()
            };
            if !jobs.is_empty() {
                // Behind the others: what is lazy must not come before what it was derived from.
                jobs.append(&mut self.lazy.lock());
                self.run_batch(jobs);
                batches += 1;
            }
            drop(turn);
            if self.queue.lock().is_empty() {
                return;
            }
        }
    }

    fn drain_elsewhere(self: &Arc<Self>) {
        if !self.scheduled.swap(true, Ordering::AcqRel) {
            let writer = Arc::clone(self);
            self.runtime.spawn_blocking(Box::new(move || {
                writer.scheduled.store(false, Ordering::Release);
                writer.drain(usize::MAX);
            }));
        }
    }

    fn run_batch(&self, jobs: Vec<Job>) {
        let mut waiting = Vec::with_capacity(jobs.len());
        let mut effects = Vec::new();
        let outcome = self.commit_batch(jobs, &mut waiting, &mut effects);
        match &outcome {
            Ok(()) => {
                self.batches.fetch_add(1, Ordering::Relaxed);
                for (_, result) in &waiting {
                    self.mutations.fetch_add(u64::from(result.is_ok()), Ordering::Relaxed);
                }
                if let Some(handler) = self.effects.get() {
                    effects.into_iter().for_each(handler);
                }
            }
            Err(StoreError::Full) => tracing::debug!("no room for a batch of {} mutations", waiting.len()),
            Err(error) => tracing::error!("cannot commit a batch of {} mutations: {error}", waiting.len()),
        }
        let durable = self.meta.durable_up_to();
        for (done, result) in waiting {
            let result = match &outcome {
                Ok(()) => result.map(|sequence| Place { sequence, durable }),
                Err(error) => result.and(Err(error.code())),
            };
            if let Some(done) = done {
                // Whoever asked may be gone; what was asked is done all the same.
                let _ = done.send(result);
            }
        }
    }

    fn commit_batch(
        &self,
        jobs: Vec<Job>,
        waiting: &mut Vec<(Option<Done>, Result<u64, ErrorCode>)>,
        effects: &mut Vec<Effects>,
    ) -> StoreResult<()> {
        let has_room = self.room.has_room();
        let snapshot = match self.meta.glance() {
            Ok(snapshot) => snapshot,
            Err(error) => {
                waiting.extend(jobs.into_iter().map(|job| (job.done, Err(error.code()))));
                return Err(error);
            }
        };
        let base = Verified(&*snapshot);
        let mut draft = Draft::new(&base);
        let committed = self.header();
        let mut header = committed.clone();
        let mut clients = HashMap::new();
        let mut failure = None;
        for job in jobs {
            let point = draft.savepoint();
            let before = header.clone();
            let mut cx = Context {
                draft: &mut draft,
                now: self.runtime.wall(),
                header: &mut header,
                taken: 0,
                has_room,
                effects: Effects::default(),
                changed: Vec::new(),
                changes: &self.changes,
                unsettled: &self.unsettled,
            };
            // W2 for panics too: a defect in one mutation must not end the writer.
            let result = catch_unwind(AssertUnwindSafe(|| (job.run)(&mut cx))).unwrap_or_else(|_| {
                tracing::error!("a mutation panicked; it is refused and leaves no trace");
                Err(ErrorCode::Internal)
            });
            let done = std::mem::take(&mut cx.effects);
            let taken = cx.taken;
            let result = match result {
                Ok(_) if job.is_limited && header != before => {
                    self.quota.check(&before, &header, taken, &draft, &self.unsettled).and(result)
                }
                result => result,
            };
            let recorded = match &result {
                Ok(reply) => {
                    header.sequence += 1;
                    effects.push(done);
                    match (job.slot, reply) {
                        (Some(id), Some(reply)) => record_result(&mut draft, id, header.sequence, reply),
                        _ => Ok(()),
                    }
                }
                Err(_) => {
                    draft.roll_back(point);
                    header = before;
                    Ok(())
                }
            };
            let known = match job.slot {
                Some(id) => self.remember_client(&mut draft, id, &mut clients),
                None => Ok(()),
            };
            if let Err(error) = recorded.and(known) {
                failure.get_or_insert(error);
            }
            waiting.push((job.done, result.map(|_| header.sequence)));
        }
        if let Some(error) = failure {
            return Err(error);
        }
        if header != committed {
            draft.put(Table::Header, keys::HEADER, &header)?;
        }
        if !draft.is_empty() {
            let batch = draft.into_batch();
            drop(snapshot);
            let durable = self.durable && !Planted::AcknowledgeEarly.is_on();
            Failpoint::Committing.pass();
            match self.meta.commit(header.sequence, &batch, durable) {
                // Moving the journal into place may make room for the removals that free some.
                Err(StoreError::Full) => {
                    self.meta.tidy()?;
                    self.meta.commit(header.sequence, &batch, durable)?;
                }
                done => done?,
            }
            Failpoint::Committed.pass();
        }
        let mut state = self.state.lock();
        state.header = header;
        state.clients.extend(clients);
        Ok(())
    }

    /// Sees to it that a client has a durable row from its first mutation on, whatever came of that: a client
    /// without one is unknown.
    fn remember_client(
        &self,
        draft: &mut Draft<'_>,
        id: OpId,
        clients: &mut HashMap<ClientId, (u64, i64)>,
    ) -> StoreResult<()> {
        let now = self.runtime.wall();
        let seen = (id.incarnation, now.secs / SEEN_GRANULARITY);
        if clients.get(&id.client) == Some(&seen) || self.state.lock().clients.get(&id.client) == Some(&seen) {
            return Ok(());
        }
        clients.insert(id.client, seen);
        let row = ClientRecord { incarnation: id.incarnation, last_seen: now };
        draft.put(Table::Clients, &keys::client(id.client), &row)
    }

    /// Sees to it that a client has a row although its operation failed before it came here.
    pub(super) async fn meet(self: &Arc<Self>, id: OpId) -> Result<(), ErrorCode> {
        let known = self.state.lock().clients.get(&id.client).is_some_and(|(life, _)| *life == id.incarnation);
        if known {
            return Ok(());
        }
        self.submit(Some(id), false, Box::new(|_| Ok(None))).await.map(|_| ())
    }

    /// Forgets that a client's row was written, because it is deleted.
    pub(super) fn forget_client(&self, client: ClientId) {
        self.state.lock().clients.remove(&client);
    }

    /// What the store holds of a client: its row, if it has one.
    pub(super) fn client_row(&self, client: ClientId) -> StoreResult<Option<ClientRecord>> {
        let snapshot = self.meta.snapshot()?;
        Verified(&*snapshot).record(Table::Clients, &keys::client(client))
    }
}

fn record_result(draft: &mut Draft<'_>, id: OpId, sequence: u64, reply: &OpReply) -> StoreResult<()> {
    if Planted::ForgetSlot.is_on() {
        return Ok(());
    }
    // How much is durable is filled in when the result is replayed.
    let row = SlotRecord { id, result: Bytes::from(codec::encode(&(sequence, 0u64, reply))?) };
    draft.put(Table::Slots, &keys::slot(id.client, id.slot), &row)
}
