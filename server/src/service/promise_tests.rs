//! Leases and callbacks as clients meet them: over connections in memory, in virtual time.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant as StdInstant};

use larder_protocol::attr::{Attr, Credential, SetAttr};
use larder_protocol::handshake::{Hello, MAX_VERSION, MIN_VERSION};
use larder_protocol::ids::{ClientId, Fid, OpId};
use larder_protocol::limits::BREAKS_WAIT;
use larder_protocol::name::Name;
use larder_protocol::payload::Payload;
use larder_protocol::runtime::SimRuntime;
use larder_protocol::service::LarderClient;
use larder_protocol::service::callback::{Break, Breaks, Grants, LeaseId, ObjectId, Renew, Renewed};
use larder_protocol::service::file::{CreateHow, Mutated, Op, OpReply, Query, QueryReply, RenameHow, WriteRequest};
use larder_protocol::transport::{ClientTransport, ServerTransport};
use tarpc::context::Context;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::*;
use crate::promises::holders::HolderMemory;
use crate::volume::content::memory::MemoryContent;
use crate::volume::meta::memory::MemoryMetadata;
use crate::volume::{open_on, prepare};

/// The default term, and what the server adds to it.
pub(super) const TERM: Duration = Duration::from_secs(10);
const KEPT: Duration = Duration::from_millis(10_500);

const SECOND: Duration = Duration::from_secs(1);

/// A server with a volume in memory, and what outlives it.
pub(super) struct World {
    runtime: SharedRuntime,
    meta: Arc<MemoryMetadata>,
    pub(super) content: Arc<MemoryContent>,
    holders: Arc<HolderMemory>,
    server: Arc<Server>,
    clients: AtomicU64,
}

impl World {
    pub(super) fn new() -> World {
        let runtime: SharedRuntime = Arc::new(SimRuntime::new(7));
        let meta = Arc::new(MemoryMetadata::new());
        prepare(&*meta, VolumeId::ROOT, "root", runtime.wall()).unwrap();
        let content = Arc::new(MemoryContent::new());
        let holders = Arc::new(HolderMemory::default());
        let server = start(&runtime, &meta, &content, &holders, TERM);
        World { runtime, meta, content, holders, server, clients: AtomicU64::new(0) }
    }

    /// The server is gone, without a word, and another one is there.
    pub(super) fn restart(&mut self, term: Duration) {
        // A copy, so that nothing the old one still does can reach the new one.
        self.meta = Arc::new(self.meta.power_cut(u64::MAX));
        self.server = start(&self.runtime, &self.meta, &self.content, &self.holders, term);
    }

    fn dial(&self) -> LarderClient {
        let (near, far) = tokio::io::duplex(1 << 20);
        self.server.clone().serve_in_background(ServerTransport::new(far), Peer::Local);
        LarderClient::new(tarpc::client::Config::default(), ClientTransport::new(near)).spawn()
    }

    /// A client that has said hello.
    pub(super) async fn client(&self) -> Client {
        let id = ClientId(u128::from(self.clients.fetch_add(1, Ordering::Relaxed) + 1));
        self.life(id, 1, 0, 1).await
    }

    pub(super) async fn life(&self, id: ClientId, incarnation: u64, channel: u32, generation: u64) -> Client {
        let rpc = self.dial();
        let hello = Hello {
            min_version: MIN_VERSION,
            max_version: MAX_VERSION,
            prompt: false,
            client: id,
            incarnation,
            channel,
            generation,
            software: "test".to_owned(),
        };
        let welcome = rpc.hello(context(), hello).await.unwrap().unwrap();
        assert_eq!(welcome.epoch, self.server.epoch());
        assert_eq!(welcome.lease, self.server.settings.lease);
        Client { rpc, id, incarnation, epoch: welcome.epoch, seq: Arc::default() }
    }

    pub(super) async fn root(&self) -> Fid {
        self.server.volumes.get(VolumeId::ROOT).await.unwrap().root()
    }

    fn stats(&self) -> larder_protocol::stats::PromiseStats {
        self.server.stats().promises
    }
}

fn start(
    runtime: &SharedRuntime,
    meta: &Arc<MemoryMetadata>,
    content: &Arc<MemoryContent>,
    holders: &Arc<HolderMemory>,
    term: Duration,
) -> Arc<Server> {
    let epoch = Epoch(runtime.random());
    let volume = open_on(meta.clone(), content.clone(), Durability::Process, epoch, runtime.clone()).unwrap();
    let settings = Settings { lease: LeaseTerms::new(term), ..Settings::default() };
    Server::with_volumes(epoch, vec![volume], holders.clone(), settings, runtime.clone()).unwrap()
}

pub(super) fn context() -> Context {
    let mut context = tarpc::context::current();
    context.deadline = StdInstant::now() + Duration::from_secs(590);
    context
}

pub(super) fn name(name: &str) -> Name {
    Name::new(name.as_bytes()).unwrap()
}

fn create(dir: Fid, file: &str) -> Op {
    Op::Create { dir, name: name(file), mode: 0o644, umask: 0, how: CreateHow::Exclusive }
}

fn chmod(fid: Fid) -> Op {
    Op::Setattr { fid, set: SetAttr { mode: Some(0o600), ..SetAttr::default() }, open: false }
}

fn rename(dir: Fid, from: &str, to: &str) -> Op {
    let how = RenameHow::Replace;
    Op::Rename { from_dir: dir, from_name: name(from), to_dir: dir, to_name: name(to), how, keep: false }
}

fn ids(fids: &[Fid]) -> Vec<ObjectId> {
    fids.iter().map(|fid| (*fid).into()).collect()
}

/// One client on one connection.
#[derive(Clone)]
pub(super) struct Client {
    pub(super) rpc: LarderClient,
    pub(super) id: ClientId,
    incarnation: u64,
    epoch: Epoch,
    seq: Arc<AtomicU64>,
}

impl Client {
    async fn renew(&self, lease: Option<LeaseId>, acked: u64) -> Renewed {
        let request = Renew { epoch: self.epoch, lease, acked };
        self.rpc.renew(context(), request).await.unwrap().unwrap()
    }

    /// A new lease.
    async fn lease(&self) -> LeaseId {
        match self.renew(None, 0).await {
            Renewed::Granted { lease } => lease,
            other => panic!("no lease: {other:?}"),
        }
    }

    async fn promised(&self, query: Query) -> (QueryReply, Grants) {
        let promised = self.rpc.promised(context(), Credential::root(), query).await.unwrap().unwrap();
        (promised.reply, promised.grants)
    }

    /// Gets a callback on an object, and says whether it did.
    async fn hold(&self, fid: Fid) -> bool {
        let (reply, grants) = self.promised(Query::Getattr { fid }).await;
        assert!(matches!(reply, QueryReply::Attr(attr) if attr.fid == fid));
        grants.lease.is_some_and(|lease| grants.include(lease, fid.into()))
    }

    async fn breaks(&self, lease: LeaseId, acked: u64) -> Breaks {
        self.rpc.breaks(context(), lease, acked).await.unwrap().unwrap()
    }

    /// Waits for exactly one break, of this object, and leaves it unacknowledged.
    async fn told(&self, lease: LeaseId, acked: u64, fid: Fid) {
        let told = Break { serial: acked + 1, object: fid.into() };
        assert_eq!(self.breaks(lease, acked).await, Breaks::Outstanding(vec![told]));
    }

    fn next_id(&self) -> OpId {
        let seq = self.seq.fetch_add(1, Ordering::Relaxed) + 1;
        OpId { client: self.id, incarnation: self.incarnation, slot: 0, seq }
    }

    pub(super) async fn mutate(&self, op: Op) -> Result<Mutated, ErrorCode> {
        self.rpc.mutate(context(), Credential::root(), self.next_id(), op).await.unwrap()
    }

    pub(super) async fn create(&self, dir: Fid, file: &str) -> (Attr, Grants) {
        let Mutated { reply, grants, .. } = self.mutate(create(dir, file)).await.unwrap();
        match reply {
            OpReply::Entry { attr, .. } => (attr, grants),
            other => panic!("no entry: {other:?}"),
        }
    }

    async fn write(&self, fid: Fid) {
        let data = Payload(vec![7; 10].into());
        let request = WriteRequest::one(fid, 0, data, false);
        self.rpc.write(context(), Credential::root(), request).await.unwrap().unwrap();
    }

    /// A mutation that goes on beside, with the time that it took.
    fn beside(&self, op: Op) -> Beside<Result<Mutated, ErrorCode>> {
        let this = self.clone();
        Beside::start(async move { this.mutate(op).await })
    }
}

/// Something that goes on beside the test.
struct Beside<T>(JoinHandle<(T, Duration)>);

impl<T: Send + 'static> Beside<T> {
    fn start(work: impl Future<Output = T> + Send + 'static) -> Beside<T> {
        Beside(tokio::spawn(async move {
            let start = Instant::now();
            (work.await, start.elapsed())
        }))
    }

    /// Asserts that it is not done in a second's time.
    async fn still_waits(&self) {
        sleep(SECOND).await;
        assert!(!self.0.is_finished(), "it did not wait");
    }

    /// Its result, and the time that it took.
    async fn done(self) -> (T, Duration) {
        self.0.await.unwrap()
    }
}

fn about(took: Duration, expected: Duration) {
    assert!(took >= expected && took < expected + Duration::from_millis(50), "it took {took:?}, not {expected:?}");
}

#[tokio::test(start_paused = true)]
async fn promised_answers_bring_callbacks_on_what_they_show() {
    let world = World::new();
    let (a, root) = (world.client().await, world.root().await);
    let one = a.create(root, "one").await.0.fid;
    let two = a.create(root, "two").await.0.fid;
    let lookup = |file: &str| Query::Lookup { dir: root, name: name(file) };
    assert_eq!(a.promised(lookup("one")).await.1, Grants::default(), "without a lease there are none");
    assert_eq!(world.stats().callbacks, 0);

    let lease = a.lease().await;
    let all = Grants { lease: Some(lease), withheld: vec![] };
    let listing = |plus| Query::Readdir { dir: root, cookie: 0, max_bytes: 1 << 16, plus };
    // Queries with the number of callbacks after each.
    for (query, callbacks) in [
        (lookup("nothing"), 1),
        (listing(false), 1),
        (lookup("one"), 2),
        (Query::Getattr { fid: one }, 2),
        (Query::Recheck { items: vec![(two, 0)] }, 3),
        (listing(true), 3),
        (Query::Statfs { fid: root }, 3),
    ] {
        let (reply, grants) = a.promised(query.clone()).await;
        assert_eq!(grants, all, "{query:?}");
        assert_eq!(world.stats().callbacks, callbacks, "{query:?} {reply:?}");
    }
    assert_eq!((world.stats().leases, world.stats().granted), (1, 3));
    let queried = a.rpc.query(context(), Credential::root(), Query::Getattr { fid: root }).await.unwrap();
    assert!(queried.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_listing_with_attributes_brings_callbacks_on_all_of_them() {
    let world = World::new();
    let (a, b, root) = (world.client().await, world.client().await, world.root().await);
    let mut files = Vec::new();
    for file in 0..20 {
        files.push(b.create(root, &format!("file{file}")).await.0.fid);
    }
    let lease = a.lease().await;
    let query = Query::Readdir { dir: root, cookie: 0, max_bytes: 1 << 16, plus: true };
    let (_, grants) = a.promised(query).await;
    assert!(ids(&files).into_iter().chain([root.into()]).all(|object| grants.include(lease, object)));
    for (serial, file) in (0..).zip(&files) {
        let changing = b.beside(chmod(*file));
        a.told(lease, serial, *file).await;
        assert_eq!(a.renew(Some(lease), serial + 1).await, Renewed::Granted { lease });
        changing.done().await.0.unwrap();
    }
    assert_eq!((world.stats().callbacks, world.stats().broken), (1, 20));
}

#[tokio::test(start_paused = true)]
async fn a_mutation_waits_until_the_break_is_acknowledged_by_the_next_request_for_breaks() {
    let world = World::new();
    let (a, b, root) = (world.client().await, world.client().await, world.root().await);
    let file = b.create(root, "file").await.0.fid;
    let lease = a.lease().await;
    assert!(a.hold(file).await);
    let waiting = a.clone();
    let told = Beside::start(async move { waiting.told(lease, 0, file).await });
    told.still_waits().await;
    let changing = b.beside(chmod(file));
    about(told.done().await.1, SECOND);
    changing.still_waits().await;
    let (_, grants) = a.promised(Query::Getattr { fid: file }).await;
    assert_eq!(grants, Grants { lease: Some(lease), withheld: vec![file.into()] }, "answered at once, not promised");
    let waiting = a.clone();
    let next = Beside::start(async move { waiting.breaks(lease, 1).await });
    let (changed, took) = changing.done().await;
    assert!(changed.is_ok());
    about(took, SECOND);
    assert!(a.hold(file).await, "it is over");
    next.still_waits().await;
    let stats = world.stats();
    assert_eq!((stats.waited, stats.broken, stats.withheld), (1, 1, 1));
    about(Duration::from_micros(stats.longest_wait_us), SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_mutation_waits_until_the_break_is_acknowledged_by_a_renewal() {
    let world = World::new();
    let (a, b, root) = (world.client().await, world.client().await, world.root().await);
    let file = b.create(root, "file").await.0.fid;
    let lease = a.lease().await;
    assert!(a.hold(file).await);
    let changing = b.beside(chmod(file));
    changing.still_waits().await;
    let break_of_file = Break { serial: 1, object: file.into() };
    assert_eq!(a.renew(Some(lease), 0).await, Renewed::BreaksFirst(vec![break_of_file]));
    changing.still_waits().await;
    assert_eq!(a.renew(Some(lease), 1).await, Renewed::Granted { lease });
    about(changing.done().await.1, 2 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_write_in_place_breaks_callbacks_too_ones_own_among_them() {
    let world = World::new();
    let (a, b, root) = (world.client().await, world.client().await, world.root().await);
    let file = b.create(root, "file").await.0.fid;
    // B has no lease, as a client that polls.
    let lease = a.lease().await;
    for (acked, writer) in [(0, b), (1, a.clone())] {
        assert!(a.hold(file).await);
        let writing = Beside::start(async move { writer.write(file).await });
        a.told(lease, acked, file).await;
        writing.still_waits().await;
        let QueryReply::Attr(attr) = a.promised(Query::Getattr { fid: file }).await.0 else { panic!("no attr") };
        assert_eq!(attr.size, 10 * acked, "it is not written before");
        assert_eq!(a.renew(Some(lease), acked + 1).await, Renewed::Granted { lease });
        about(writing.done().await.1, SECOND);
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_answers_holds_a_writer_until_its_lease_ends() {
    let world = World::new();
    let (a, b, root) = (world.client().await, world.client().await, world.root().await);
    let file = b.create(root, "file").await.0.fid;
    let lease = a.lease().await;
    assert!(a.hold(file).await);
    sleep(3 * SECOND).await;
    let (changed, took) = b.beside(chmod(file)).done().await;
    assert!(changed.is_ok());
    about(took, KEPT - 3 * SECOND);
    assert_eq!(a.renew(Some(lease), 1).await, Renewed::Lapsed);
    assert_eq!(a.breaks(lease, 1).await, Breaks::Lapsed);
    assert_eq!(world.stats().lapsed, 1);
    // The next one waits for nobody.
    about(b.beside(chmod(file)).done().await.1, Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_client_whose_connection_is_gone_holds_a_writer_no_longer_than_that() {
    let world = World::new();
    let (a, b, root) = (world.client().await, world.client().await, world.root().await);
    let file = b.create(root, "file").await.0.fid;
    a.lease().await;
    assert!(a.hold(file).await);
    drop(a);
    let changing = b.beside(chmod(file));
    changing.still_waits().await;
    about(changing.done().await.1, KEPT);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_renews_but_never_acknowledges_holds_a_writer_no_longer_than_that() {
    let world = World::new();
    let (a, b, root) = (world.client().await, world.client().await, world.root().await);
    let file = b.create(root, "file").await.0.fid;
    let lease = a.lease().await;
    assert!(a.hold(file).await);
    for _ in 0..20 {
        sleep(SECOND).await;
        assert_eq!(a.renew(Some(lease), 0).await, Renewed::Granted { lease }, "as long as nothing is broken");
    }
    let changing = b.beside(chmod(file));
    let break_of_file = Break { serial: 1, object: file.into() };
    for _ in 0..10 {
        sleep(SECOND).await;
        assert_eq!(a.renew(Some(lease), 0).await, Renewed::BreaksFirst(vec![break_of_file]));
        assert_eq!(a.breaks(lease, 0).await, Breaks::Outstanding(vec![break_of_file]));
    }
    let (changed, took) = changing.done().await;
    assert!(changed.is_ok());
    about(took, KEPT);
    assert_eq!(a.renew(Some(lease), 0).await, Renewed::Lapsed);
}

#[tokio::test(start_paused = true)]
async fn goodbye_and_a_new_life_free_what_was_held_at_once() {
    let world = World::new();
    let (b, root) = (world.client().await, world.root().await);
    let file = b.create(root, "file").await.0.fid;
    for leaves in [true, false] {
        let a = world.client().await;
        a.lease().await;
        assert!(a.hold(file).await);
        let changing = b.beside(chmod(file));
        changing.still_waits().await;
        if leaves {
            a.rpc.goodbye(context()).await.unwrap().unwrap();
        } else {
            let new = world.life(a.id, 2, 0, 1).await;
            assert!(!new.hold(file).await, "it has no lease");
        }
        about(changing.done().await.1, SECOND);
    }
    assert_eq!(world.stats().lapsed, 0, "they asked for it");
}

#[tokio::test(start_paused = true)]
async fn a_new_connection_of_the_same_life_goes_on_with_its_lease() {
    let world = World::new();
    let (a, b, root) = (world.client().await, world.client().await, world.root().await);
    let file = b.create(root, "file").await.0.fid;
    let lease = a.lease().await;
    assert!(a.hold(file).await);
    let old = a.clone();
    let waiting = tokio::spawn(async move { old.rpc.breaks(context(), lease, 0).await });
    sleep(SECOND).await;
    let start = Instant::now();
    let again = world.life(a.id, 1, 0, 2).await;
    about(start.elapsed(), Duration::ZERO);
    assert!(waiting.await.unwrap().is_err(), "the older connection is closed");
    let changing = b.beside(chmod(file));
    again.told(lease, 0, file).await;
    changing.still_waits().await;
    assert_eq!(again.renew(Some(lease), 1).await, Renewed::Granted { lease });
    about(changing.done().await.1, SECOND);
}

#[tokio::test(start_paused = true)]
async fn breaks_come_to_every_request_that_waits_for_them() {
    let world = World::new();
    let (a, b, root) = (world.client().await, world.client().await, world.root().await);
    let other = world.life(a.id, 1, 1, 1).await;
    let file = b.create(root, "file").await.0.fid;
    let lease = a.lease().await;
    assert!(a.hold(file).await);
    let waiting: Vec<_> = [a.clone(), other, a.clone()]
        .map(|client| Beside::start(async move { client.told(lease, 0, file).await }))
        .into();
    sleep(SECOND).await;
    let changing = b.beside(chmod(file));
    for told in waiting {
        about(told.done().await.1, SECOND);
    }
    changing.still_waits().await;
}

#[tokio::test(start_paused = true)]
async fn a_request_for_breaks_ends_with_its_lease_its_patience_or_the_server() {
    let world = World::new();
    let (a, b, root) = (world.client().await, world.client().await, world.root().await);
    let file = b.create(root, "file").await.0.fid;
    let lease = a.lease().await;
    let waiting = |lease| {
        let client = a.clone();
        Beside::start(async move { client.rpc.breaks(context(), lease, 0).await.unwrap() })
    };
    let first = waiting(lease);
    first.still_waits().await;
    let second = a.lease().await;
    let (answer, took) = first.done().await;
    assert_eq!(answer, Ok(Breaks::Lapsed), "another one has taken its place");
    about(took, SECOND);
    // When a mutation has seen the lease at its end, whoever waits under it learns so at once.
    assert!(a.hold(file).await);
    let patient = waiting(second);
    let (_, took) = b.beside(chmod(file)).done().await;
    about(took, KEPT);
    assert!(matches!(patient.done().await.0, Ok(Breaks::Outstanding(_))), "it was told of the break");
    assert_eq!(a.breaks(second, 0).await, Breaks::Lapsed);

    let third = a.lease().await;
    let long = waiting(third);
    let renewing = a.clone();
    let renewals = tokio::spawn(async move {
        loop {
            sleep(3 * SECOND).await;
            assert_eq!(renewing.renew(Some(third), 0).await, Renewed::Granted { lease: third });
        }
    });
    let (answer, took) = long.done().await;
    assert_eq!(answer, Ok(Breaks::Outstanding(vec![])));
    about(took, BREAKS_WAIT);
    renewals.abort();

    let last = waiting(third);
    last.still_waits().await;
    let start = Instant::now();
    world.server.shut_down(60 * SECOND).await.unwrap();
    assert!(start.elapsed() < SECOND, "nobody waits for it: {:?}", start.elapsed());
    assert_eq!(last.done().await.0, Err(ErrorCode::Unavailable));
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_a_mutation_waits_until_the_holder_has_renewed_naming_the_new_epoch() {
    let mut world = World::new();
    let (a, b, root) = (world.client().await, world.client().await, world.root().await);
    let file = b.create(root, "file").await.0.fid;
    let lease = a.lease().await;
    assert!(a.hold(file).await);
    world.restart(TERM);
    let b = world.life(b.id, 1, 0, 2).await;
    b.seq.store(1, Ordering::Relaxed);
    assert_eq!(world.stats().in_grace, 1, "B never had a lease");
    let changing = b.beside(chmod(file));
    changing.still_waits().await;
    // Neither a hello nor anything that names the old epoch is enough.
    let again = world.life(a.id, 1, 0, 2).await;
    changing.still_waits().await;
    let stale = Renew { epoch: a.epoch, lease: Some(lease), acked: 0 };
    assert_eq!(again.rpc.renew(context(), stale).await.unwrap().unwrap(), Renewed::Lapsed);
    assert!(!again.hold(file).await, "reads are answered");
    assert_eq!(again.breaks(lease, 0).await, Breaks::Lapsed);
    changing.still_waits().await;
    let new = again.lease().await;
    assert_ne!(new, lease);
    about(changing.done().await.1, 3 * SECOND);
    assert!(again.hold(file).await);
    assert_eq!((world.stats().in_grace, world.stats().waited), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_a_holder_that_never_comes_is_waited_for_as_long_as_its_lease_may_run() {
    let mut world = World::new();
    let (a, b, root) = (world.client().await, world.client().await, world.root().await);
    let file = b.create(root, "file").await.0.fid;
    a.lease().await;
    assert!(a.hold(file).await);
    world.restart(TERM);
    sleep(2 * SECOND).await;
    let b = world.client().await;
    let writing = {
        let b = b.clone();
        Beside::start(async move { b.write(file).await })
    };
    let changing = b.beside(chmod(root));
    about(changing.done().await.1, KEPT - 2 * SECOND);
    about(writing.done().await.1, KEPT - 2 * SECOND);
    about(b.beside(chmod(file)).done().await.1, Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_a_new_life_of_the_holder_is_waited_for_until_it_has_renewed_too() {
    let mut world = World::new();
    let (a, b, root) = (world.client().await, world.client().await, world.root().await);
    let file = b.create(root, "file").await.0.fid;
    a.lease().await;
    assert!(a.hold(file).await);
    world.restart(TERM);
    let b = world.client().await;
    let changing = b.beside(chmod(file));
    changing.still_waits().await;
    let new = world.life(a.id, 2, 0, 1).await;
    // To this process it might be the same life that held the lease.
    changing.still_waits().await;
    new.lease().await;
    about(changing.done().await.1, 2 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_longer_term_of_any_earlier_process_is_waited_for() {
    let mut world = World::new();
    let (a, b, root) = (world.client().await, world.client().await, world.root().await);
    let file = b.create(root, "file").await.0.fid;
    world.restart(100 * SECOND);
    let start = Instant::now();
    let a = world.life(a.id, 1, 0, 2).await;
    a.lease().await;
    assert!(a.hold(file).await);
    world.restart(TERM);
    sleep(SECOND).await;
    // Another client has itself recorded under the short term, while A may still count on the long one.
    world.client().await.lease().await;
    world.restart(TERM);
    let (changed, _) = world.client().await.beside(chmod(file)).done().await;
    assert!(changed.is_ok());
    assert!(start.elapsed() >= 105 * SECOND, "A is waited for {:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_client_keeps_its_callbacks_through_its_own_mutations_and_gets_them_on_what_is_new() {
    let world = World::new();
    let (a, b, root) = (world.client().await, world.client().await, world.root().await);
    let lease = a.lease().await;
    assert!(a.hold(root).await);
    let changing = a.beside(create(root, "file"));
    let (made, took) = changing.done().await;
    about(took, Duration::ZERO);
    let Mutated { reply: OpReply::Entry { attr, .. }, grants, .. } = made.unwrap() else { panic!("not an entry") };
    let file = attr.fid;
    assert_eq!(grants, Grants { lease: Some(lease), withheld: vec![] });
    assert_eq!(world.stats().callbacks, 2);
    for (acked, fid) in [(0, file), (1, root)] {
        let changing = b.beside(chmod(fid));
        a.told(lease, acked, fid).await;
        changing.still_waits().await;
        assert_eq!(a.renew(Some(lease), acked + 1).await, Renewed::Granted { lease });
        assert_eq!(changing.done().await.0.unwrap().grants, Grants::default(), "B has no lease");
    }
    // Nothing is left to wait for.
    about(b.beside(chmod(root)).done().await.1, Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_retry_brings_no_callbacks_that_may_have_been_broken_since() {
    let world = World::new();
    let (a, b, root) = (world.client().await, world.client().await, world.root().await);
    let lease = a.lease().await;
    let id = a.next_id();
    let send = || a.rpc.mutate(context(), Credential::root(), id, create(root, "file"));
    let first = send().await.unwrap().unwrap();
    let OpReply::Entry { attr, .. } = &first.reply else { panic!("not an entry") };
    assert!(first.grants.include(lease, attr.fid.into()));
    let changing = b.beside(chmod(attr.fid));
    a.told(lease, 0, attr.fid).await;
    assert_eq!(a.renew(Some(lease), 1).await, Renewed::Granted { lease });
    changing.done().await.0.unwrap();
    let again = send().await.unwrap().unwrap();
    assert_eq!(again.reply, first.reply);
    assert!(!again.grants.include(lease, attr.fid.into()), "{:?}", again.grants);
}

#[tokio::test(start_paused = true)]
async fn a_rename_whose_target_appears_while_it_waits_breaks_the_callback_on_that_too() {
    let world = World::new();
    let (a, b, c, root) = (world.client().await, world.client().await, world.client().await, world.root().await);
    let from = b.create(root, "from").await.0.fid;
    let (a_lease, c_lease) = (a.lease().await, c.lease().await);
    assert!(a.hold(from).await);
    let renaming = b.beside(rename(root, "from", "to"));
    a.told(a_lease, 0, from).await;
    // It waits for A. Its target comes into being, and nobody knew that it would change it.
    let (to, grants) = c.create(root, "to").await;
    assert_eq!(grants.withheld, [root.into()]);
    assert!(grants.include(c_lease, to.fid.into()));
    assert!(c.hold(to.fid).await);
    renaming.still_waits().await;
    assert_eq!(a.renew(Some(a_lease), 1).await, Renewed::Granted { lease: a_lease });
    c.told(c_lease, 0, to.fid).await;
    renaming.still_waits().await;
    assert_eq!(c.promised(Query::Lookup { dir: root, name: name("to") }).await.1.withheld.len(), 2);
    assert_eq!(c.renew(Some(c_lease), 1).await, Renewed::Granted { lease: c_lease });
    let (renamed, took) = renaming.done().await;
    about(took, 2 * SECOND);
    assert!(matches!(renamed.unwrap().reply, OpReply::Renamed { other: Some(other), .. } if other.fid == to.fid));
    let QueryReply::Entry { attr, .. } = c.promised(Query::Lookup { dir: root, name: name("to") }).await.0 else {
        panic!("no entry")
    };
    assert_eq!(attr.unwrap().fid, from);
}

#[tokio::test(start_paused = true)]
async fn a_mutation_that_fails_leaves_its_objects_as_they_were() {
    let world = World::new();
    let (a, b, root) = (world.client().await, world.client().await, world.root().await);
    let lease = a.lease().await;
    assert!(a.hold(root).await);
    let remove = Op::Remove { dir: root, name: name("nothing"), keep: false };
    let removing = b.beside(remove);
    a.told(lease, 0, root).await;
    assert_eq!(a.renew(Some(lease), 1).await, Renewed::Granted { lease });
    assert_eq!(removing.done().await.0, Err(ErrorCode::NotFound));
    assert!(a.hold(root).await, "it is not breaking any more");
}

#[tokio::test(start_paused = true)]
async fn a_mutation_whose_client_is_gone_goes_on_waiting_and_is_applied() {
    let world = World::new();
    let (a, b, root) = (world.client().await, world.client().await, world.root().await);
    let file = b.create(root, "file").await.0.fid;
    let lease = a.lease().await;
    assert!(a.hold(file).await);
    let changing = b.beside(chmod(file));
    a.told(lease, 0, file).await;
    changing.0.abort();
    drop((changing, b));
    sleep(SECOND).await;
    assert!(!a.hold(file).await, "it is breaking still");
    assert_eq!(a.renew(Some(lease), 1).await, Renewed::Granted { lease });
    sleep(SECOND).await;
    let (QueryReply::Attr(attr), grants) = a.promised(Query::Getattr { fid: file }).await else { panic!("no attr") };
    assert_eq!(attr.mode & 0o777, 0o600);
    assert!(grants.include(lease, file.into()));
}

#[tokio::test(start_paused = true)]
async fn two_clients_that_change_what_the_other_one_holds_do_not_wait_for_ever() {
    let world = World::new();
    let (a, b, root) = (world.client().await, world.client().await, world.root().await);
    let file = b.create(root, "file").await.0.fid;
    let leases = [(a.clone(), a.lease().await), (b.clone(), b.lease().await)];
    assert!(a.hold(file).await && b.hold(file).await);
    let changing = [a.beside(chmod(file)), b.beside(chmod(file))];
    for (client, lease) in &leases {
        client.told(*lease, 0, file).await;
        let client = client.clone();
        let lease = *lease;
        tokio::spawn(async move { client.breaks(lease, 1).await });
    }
    for change in changing {
        let (changed, took) = change.done().await;
        assert_eq!(changed.unwrap().grants.withheld, [file.into()], "neither knows which came last");
        about(took, Duration::ZERO);
    }
}
