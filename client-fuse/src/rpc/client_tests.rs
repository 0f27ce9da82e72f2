use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64};

use futures::StreamExt;
use larder_protocol::handshake::{Hello, LeaseTerms, Refusal};
use larder_protocol::ids::{Epoch, OpId, VolumeId};
use larder_protocol::payload::Payload;
use larder_protocol::runtime::{BoxFuture, SharedRuntime, SimRuntime};
use larder_protocol::service::Larder;
use larder_protocol::service::callback::{Breaks, Grants, LeaseId, Promised, Renew, Renewed};
use larder_protocol::service::file::{NewContents, OpReply, StageRequest};
use larder_protocol::service::registry::{RegistryError, RegistryReply, RegistryRequest};
use larder_protocol::service::transfer::{TransferReply, TransferRequest};
use larder_protocol::stats::ServerStats;
use larder_protocol::transport::{ClientTransport, ServerTransport};
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tarpc::context::Context;
use tarpc::server::{BaseChannel, Channel as _};
use tokio_util::sync::CancellationToken;

use super::super::connector::{BoxTransport, Connector};
use super::*;

const SLOTS: u32 = 4;
const FID: Fid = Fid { volume: VolumeId::ROOT, vnode: 2, generation: 1 };

/// How the network and the server behave, in chances of 1,000 for each request.
#[derive(Clone, Copy, Default)]
struct Weather {
    /// The connection is cut before the request is executed.
    cut_before: u32,
    /// It is executed, and cut before the reply is sent.
    cut_after: u32,
    /// The request is swallowed.
    swallow: u32,
    /// The server says it is not ready.
    not_ready: u32,
}

/// The part of a server that this is about: slots, generations, incarnations.
struct Server {
    weather: Weather,
    random: Mutex<SmallRng>,
    world: Mutex<World>,
    unreachable: AtomicBool,
    forget_client: AtomicU64,
    /// Requests to be swallowed, whatever the weather.
    swallow_next: AtomicU64,
    /// What was executed, and on which channels.
    operations: Mutex<Vec<Op>>,
    channels: Mutex<Vec<u32>>,
    executed: AtomicU64,
}

#[derive(Default)]
struct World {
    incarnation: u64,
    generations: BTreeMap<u32, u64>,
    slots: BTreeMap<u32, (u64, u64)>,
    epoch: u64,
}

impl Server {
    fn new(weather: Weather, seed: u64) -> Arc<Server> {
        Arc::new(Server {
            weather,
            random: Mutex::new(SmallRng::seed_from_u64(seed)),
            world: Mutex::new(World { epoch: 1, ..World::default() }),
            unreachable: AtomicBool::new(false),
            forget_client: AtomicU64::new(0),
            swallow_next: AtomicU64::new(0),
            operations: Mutex::default(),
            channels: Mutex::default(),
            executed: AtomicU64::new(0),
        })
    }

    fn chance(&self, of_thousand: u32) -> bool {
        self.random.lock().random_range(0..1000) < of_thousand
    }

    fn executed(&self) -> u64 {
        self.executed.load(Ordering::Relaxed)
    }
}

#[derive(Clone)]
struct Session {
    server: Arc<Server>,
    cut: CancellationToken,
    me: Arc<Mutex<Option<(u64, u32, u64)>>>,
}

impl Session {
    fn fenced(&self) -> bool {
        let world = self.server.world.lock();
        match *self.me.lock() {
            Some((incarnation, channel, generation)) => {
                incarnation < world.incarnation || generation < world.generations[&channel]
            }
            None => true,
        }
    }

    async fn lose<T>(&self) -> T {
        self.cut.cancel();
        std::future::pending().await
    }
}

impl Larder for Session {
    async fn hello(self, _: Context, hello: Hello) -> Result<Welcome, Refusal> {
        let mut world = self.server.world.lock();
        if hello.incarnation < world.incarnation {
            return Err(Refusal::Fenced);
        }
        if hello.incarnation > world.incarnation {
            world.incarnation = hello.incarnation;
            world.slots.clear();
        }
        let newest = world.generations.entry(hello.channel).or_default();
        if hello.generation <= *newest {
            return Err(Refusal::Fenced);
        }
        *newest = hello.generation;
        *self.me.lock() = Some((hello.incarnation, hello.channel, hello.generation));
        Ok(Welcome {
            durable: true,
            version: 1,
            server: ServerId(1),
            epoch: Epoch(world.epoch),
            software: "test".to_owned(),
            slots: SLOTS,
            max_read: 1 << 20,
            max_write: 1 << 20,
            lease: LeaseTerms::default(),
        })
    }

    async fn mutate(self, _: Context, _: Credential, id: OpId, op: Op) -> Result<Mutated, ErrorCode> {
        let (server, weather) = (self.server.clone(), self.server.weather);
        if self.fenced() {
            return Err(ErrorCode::Fenced);
        }
        let forgets = |left: u64| left.checked_sub(1);
        if server.forget_client.fetch_update(Ordering::Relaxed, Ordering::Relaxed, forgets).is_ok() {
            return Err(ErrorCode::UnknownClient);
        }
        if server.chance(weather.not_ready) {
            return Err(ErrorCode::Unavailable);
        }
        let counts = |left: u64| left.checked_sub(1);
        let swallowed = server.swallow_next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, counts).is_ok();
        if swallowed || server.chance(weather.swallow) {
            return std::future::pending().await;
        }
        if server.chance(weather.cut_before) {
            return self.lose().await;
        }
        let result = {
            let mut world = server.world.lock();
            let (last, recorded) = world.slots.get(&id.slot).copied().unwrap_or_default();
            if id.seq > last {
                let result = server.executed.fetch_add(1, Ordering::Relaxed) + 1;
                world.slots.insert(id.slot, (id.seq, result));
                server.operations.lock().push(op);
                server.channels.lock().extend(self.me.lock().map(|(_, channel, _)| channel));
                result
            } else if id.seq == last {
                recorded
            } else {
                return Err(ErrorCode::BadSequence);
            }
        };
        tokio::time::sleep(Duration::from_millis(1)).await;
        if server.chance(weather.cut_after) {
            return self.lose().await;
        }
        Ok(Mutated { sequence: result, durable: result, reply: OpReply::Forgotten, grants: Grants::default() })
    }

    async fn query(self, _: Context, _: Credential, _: Query) -> Result<QueryReply, ErrorCode> {
        if self.fenced() { Err(ErrorCode::Fenced) } else { Ok(QueryReply::Offset(self.server.executed())) }
    }

    async fn promised(self, _: Context, _: Credential, _: Query) -> Result<Promised, ErrorCode> {
        Err(ErrorCode::NotSupported)
    }

    async fn renew(self, _: Context, _: Renew) -> Result<Renewed, ErrorCode> {
        Err(ErrorCode::NotSupported)
    }

    async fn registry(self, _: Context, _: RegistryRequest) -> Result<RegistryReply, RegistryError> {
        Err(RegistryError { service: String::new(), cause: String::new() })
    }

    async fn transfer(self, _: Context, _: TransferRequest) -> Result<TransferReply, AdminError> {
        Err(AdminError { code: ErrorCode::NotSupported, text: String::new() })
    }

    async fn admin(self, _: Context, _: Credential, _: AdminRequest) -> Result<AdminReply, AdminError> {
        let text = String::new();
        Err(AdminError { code: ErrorCode::NotSupported, text })
    }

    async fn breaks(self, _: Context, _: LeaseId, _: u64) -> Result<Breaks, ErrorCode> {
        Err(ErrorCode::NotSupported)
    }

    async fn stage(self, _: Context, _: Credential, _: StageRequest) -> Result<(), ErrorCode> {
        Err(ErrorCode::NotSupported)
    }

    async fn write(self, _: Context, _: Credential, _: WriteRequest) -> Result<Written, ErrorCode> {
        Err(ErrorCode::NotSupported)
    }

    async fn sync(self, _: Context, _: VolumeId, _: Epoch) -> Result<(), ErrorCode> {
        Err(ErrorCode::NotSupported)
    }

    async fn commit(self, _: Context, _: Credential, _: Fid) -> Result<Committed, ErrorCode> {
        Err(ErrorCode::NotSupported)
    }

    async fn volume(self, _: Context, _: Credential, _: VolumeRequest) -> Result<VolumeReply, ErrorCode> {
        Err(ErrorCode::NotSupported)
    }

    async fn goodbye(self, _: Context) -> Result<(), ErrorCode> {
        Ok(())
    }

    async fn stats(self, _: Context) -> ServerStats {
        ServerStats::default()
    }
}

struct Wire(Arc<Server>);

impl Connector for Wire {
    fn connect(&self, _: u32) -> BoxFuture<io::Result<BoxTransport>> {
        let server = self.0.clone();
        Box::pin(async move {
            if server.unreachable.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            let (near, far) = tokio::io::duplex(1 << 16);
            let session = Session { server, cut: CancellationToken::new(), me: Arc::default() };
            let cut = session.cut.clone();
            let transport: ServerTransport<_, LarderRequest, LarderResponse> = ServerTransport::new(far);
            let serving = BaseChannel::with_defaults(transport).execute(session.serve()).for_each(|request| async {
                tokio::spawn(request);
            });
            tokio::spawn(async move {
                tokio::select! {
                    () = serving => {}
                    () = cut.cancelled() => {}
                }
            });
            let transport: ClientTransport<_, LarderRequest, LarderResponse> = ClientTransport::new(near);
            Ok(Box::pin(transport) as BoxTransport)
        })
    }

    fn server(&self) -> String {
        "test:1".to_owned()
    }

    fn to(&self, _: &str) -> Arc<dyn Connector> {
        Arc::new(Wire(self.0.clone()))
    }
}

fn client(server: &Arc<Server>, seed: u64, patience: Patience) -> Arc<Client> {
    let runtime: SharedRuntime = Arc::new(SimRuntime::new(seed));
    Client::new(Shared::new(runtime, Arc::new(Wire(server.clone())), Duration::from_secs(5)), patience)
}

fn op() -> Op {
    Op::Forget { fids: vec![FID] }
}

async fn mutate(client: &Arc<Client>) -> Result<u64, Failure> {
    client.mutate(&Credential::root(), op()).await.map(|mutated| mutated.sequence)
}

#[tokio::test(start_paused = true)]
async fn each_operation_runs_once_in_any_weather() {
    let (mut retries, mut reconnects) = (0, 0);
    for seed in 0..60 {
        let weather = Weather { cut_before: 60, cut_after: 60, swallow: 10, not_ready: 30 };
        let server = Server::new(weather, seed);
        let client = client(&server, seed, Patience::Hard);
        client.connect().await.unwrap();
        let tasks: Vec<_> = (0..8)
            .map(|_| {
                let client = client.clone();
                tokio::spawn(async move {
                    let mut results = Vec::new();
                    for _ in 0..10 {
                        results.push(mutate(&client).await.expect("a hard mount has no errors"));
                    }
                    results
                })
            })
            .collect();
        let mut results = Vec::new();
        for task in tasks {
            results.extend(task.await.unwrap());
        }
        results.sort_unstable();
        assert_eq!(results, (1..=80).collect::<Vec<u64>>(), "seed {seed}: each result belongs to one operation");
        assert_eq!(server.executed(), 80, "seed {seed}");
        assert!(server.world.lock().slots.keys().all(|slot| *slot < SLOTS), "seed {seed}");
        retries += client.retries();
        reconnects += client.shared().reconnects.load(Ordering::Relaxed);
        client.shared().aborted.cancel();
    }
    assert!(retries > 100 && reconnects > 100, "the weather was bad: {retries} retries, {reconnects} reconnects");
}

#[tokio::test(start_paused = true)]
async fn a_soft_mount_knows_what_was_certainly_not_executed() {
    let server = Server::new(Weather::default(), 1);
    let time = Duration::from_secs(15);
    let client = client(&server, 1, Patience::Soft(time));
    client.connect().await.unwrap();
    assert_eq!(mutate(&client).await, Ok(1));
    server.unreachable.store(true, Ordering::Relaxed);
    client.channels[0].kill();
    let began = tokio::time::Instant::now();
    assert_eq!(mutate(&client).await, Err(Failure::NotSent(Cause::TimedOut)));
    assert_eq!(began.elapsed().as_secs(), time.as_secs());
    server.unreachable.store(false, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(client.is_connected(), "it comes back by itself");
    assert_eq!(mutate(&client).await, Ok(2));
}

#[tokio::test(start_paused = true)]
async fn an_operation_given_up_keeps_its_slot_until_it_is_answered() {
    let server = Server::new(Weather { swallow: 1000, ..Weather::default() }, 1);
    let client = client(&server, 1, Patience::Soft(Duration::from_secs(12)));
    client.connect().await.unwrap();
    let waiting: Vec<_> = (0..SLOTS).map(|_| mutate(&client)).collect();
    for result in futures::future::join_all(waiting).await {
        assert_eq!(result, Err(Failure::MaybeExecuted(Cause::TimedOut)));
    }
    // All slots hold operations that may yet be executed, so nothing new can begin.
    assert_eq!(mutate(&client).await, Err(Failure::NotSent(Cause::TimedOut)));
    assert_eq!(server.executed(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_operation_given_up_is_not_executed_later() {
    let server = Server::new(Weather::default(), 1);
    let client = client(&server, 1, Patience::Soft(Duration::from_secs(3)));
    client.connect().await.unwrap();
    assert_eq!(mutate(&client).await, Ok(1));
    server.swallow_next.store(1, Ordering::Relaxed);
    assert_eq!(mutate(&client).await, Err(Failure::MaybeExecuted(Cause::TimedOut)));
    assert!(!client.is_connected(), "what comes next goes over a connection that fences this one");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let nothing = Op::Forget { fids: vec![Fid { volume: FID.volume, vnode: 0, generation: 0 }] };
    assert_eq!(*server.operations.lock(), [op(), nothing], "its number is used up");
    assert_eq!(mutate(&client).await, Ok(3));
    assert_eq!(server.world.lock().slots.keys().copied().collect::<Vec<_>>(), [0], "and its slot is free");
}

#[tokio::test(start_paused = true)]
async fn no_store_is_executed_after_a_later_one_of_its_file() {
    let server = Server::new(Weather::default(), 1);
    let client = client(&server, 1, Patience::Soft(Duration::from_secs(3)));
    client.connect().await.unwrap();
    let store = |len: usize| {
        let contents = NewContents::Whole(Payload(vec![7; len].into()));
        let (client, op) = (client.clone(), Op::Store { fid: FID, contents, base: None });
        async move { client.mutate(&Credential::root(), op).await.map(|mutated| mutated.sequence) }
    };
    assert_eq!((store(10).await, store(1 << 20).await), (Ok(1), Ok(2)));
    assert_eq!(*server.channels.lock(), [0, 1], "each goes where it hinders least");
    // The small one is swallowed, and so is what settles it at first: the large one takes its channel meanwhile.
    server.swallow_next.store(2, Ordering::Relaxed);
    assert_eq!(store(10).await, Err(Failure::MaybeExecuted(Cause::TimedOut)));
    assert_eq!(store(1 << 20).await, Ok(3));
    assert_eq!(*server.channels.lock(), [0, 1, 0], "W2");
    // Under way at the same time they take one channel as well.
    tokio::time::sleep(Duration::from_secs(10)).await;
    server.channels.lock().clear();
    let (large, small) = tokio::join!(store(1 << 20), store(10));
    assert!(large.is_ok() && small.is_ok());
    assert_eq!(*server.channels.lock(), [1, 1], "W2");
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_mount_ends_every_wait() {
    let server = Server::new(Weather { swallow: 1000, ..Weather::default() }, 1);
    let client = client(&server, 1, Patience::Hard);
    client.connect().await.unwrap();
    let waiting: Vec<_> = (0..SLOTS + 2).map(|_| mutate(&client)).collect();
    let abort = async {
        tokio::time::sleep(Duration::from_secs(100)).await;
        client.shared().aborted.cancel();
    };
    let (results, ()) = tokio::join!(futures::future::join_all(waiting), abort);
    let not_sent = results.iter().filter(|result| **result == Err(Failure::NotSent(Cause::Aborted))).count();
    let sent = results.iter().filter(|result| **result == Err(Failure::MaybeExecuted(Cause::Aborted))).count();
    assert_eq!((not_sent, sent), (2, SLOTS as usize));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_was_forgotten_begins_a_new_life() {
    let server = Server::new(Weather::default(), 1);
    let client = client(&server, 1, Patience::Hard);
    client.connect().await.unwrap();
    assert_eq!(mutate(&client).await, Ok(1));
    // Once is not enough: the server may have lost only the connection's greeting.
    server.forget_client.store(1, Ordering::Relaxed);
    assert_eq!(mutate(&client).await, Ok(2));
    assert_eq!(client.shared().slots.incarnation(), 1);
    server.forget_client.store(2, Ordering::Relaxed);
    assert_eq!(mutate(&client).await, Ok(3), "it was certainly not executed before, so it runs in the new life");
    assert_eq!(client.shared().slots.incarnation(), 2);
    assert_eq!(server.executed(), 3);
    let query = Query::Getattr { fid: FID };
    assert!(client.query(&Credential::root(), query).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_new_server_process_is_noticed_without_a_request() {
    let server = Server::new(Weather::default(), 1);
    let client = client(&server, 1, Patience::Hard);
    client.connect().await.unwrap();
    server.world.lock().epoch = 2;
    client.channels[0].kill();
    client.shared().new_epoch.notified().await;
    assert_eq!(client.shared().server_restarts.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_control_channel_that_dies_before_it_is_up_is_opened_again() {
    let server = Server::new(Weather::default(), 1);
    let client = client(&server, 1, Patience::Hard);
    client.connect().await.unwrap();
    let channel = &client.channels[0];
    let dead = channel.connection().await.unwrap();
    dead.kill();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(client.is_connected());
    channel.up(dead);
    assert!(!client.is_connected());
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(client.is_connected(), "although nothing is asked");
}

#[tokio::test(start_paused = true)]
async fn an_unreachable_server_is_reported_at_once() {
    let server = Server::new(Weather::default(), 1);
    server.unreachable.store(true, Ordering::Relaxed);
    let client = client(&server, 1, Patience::Hard);
    assert!(matches!(client.connect().await, Err(ConnectError::Network(_))));
}
