//! A server with one volume in memory, the network to it, and what can befall both.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use larder_client::rpc::channel::Shared;
use larder_client::rpc::{BoxTransport, Client, Connector, Patience};
use larder_protocol::attr::Credential;
use larder_protocol::faults::{Faulty, Weather};
use larder_protocol::handshake::LeaseTerms;
use larder_protocol::ids::{ClientId, Epoch, Fid, OpId, VolumeId};
use larder_protocol::name::Name;
use larder_protocol::runtime::{BoxFuture, Clocks, Runtime, SharedRuntime, SimRuntime};
use larder_protocol::service::file::{CreateHow, Op, OpReply};
use larder_protocol::service::{LarderRequest, LarderResponse};
use larder_protocol::transport::{ClientTransport, ServerTransport};
use larder_server::net::sessions::Peer;
use larder_server::promises::holders::HolderMemory;
use larder_server::service::{Server, Settings};
use larder_server::volume::content::memory::MemoryContent;
use larder_server::volume::meta::memory::MemoryMetadata;
use larder_server::volume::{Durability, Volume, open_on, prepare};
use rand::Rng;
use rand::rngs::SmallRng;
use tokio::io::DuplexStream;

use crate::machine::{Disk, Machine};

/// Bytes in flight between the two ends of a connection.
const PIPE: usize = 1 << 20;
/// Who makes the files that tests begin with.
const SETUP: ClientId = ClientId(0);

/// A server process.
struct Process {
    server: Arc<Server>,
    volume: Arc<Volume>,
    machine: Arc<Machine>,
}

/// What a server process leaves behind.
struct Engines {
    meta: Arc<MemoryMetadata>,
    content: Arc<MemoryContent>,
}

/// The server's side of the world.
pub(crate) struct World {
    sim: Arc<SimRuntime>,
    durability: Durability,
    disk: Disk,
    process: Mutex<Option<Process>>,
    engines: Mutex<Engines>,
    holders: Arc<HolderMemory>,
    setup_seq: AtomicU64,
    /// Mutations answered from slots by processes that are gone.
    replayed: AtomicU64,
    crashes: AtomicU64,
}

impl World {
    /// A running server with an empty volume `root`.
    pub(crate) fn new(seed: u64, durability: Durability, disk: Disk) -> Arc<World> {
        World::with_clocks(seed, durability, disk, Clocks::default())
    }

    /// The same on a machine with such clocks.
    pub(crate) fn with_clocks(seed: u64, durability: Durability, disk: Disk, clocks: Clocks) -> Arc<World> {
        let sim = Arc::new(SimRuntime::with_clocks(seed, clocks));
        let engines = Engines { meta: Arc::new(MemoryMetadata::new()), content: Arc::new(MemoryContent::new()) };
        prepare(&*engines.meta, VolumeId::ROOT, "root", sim.wall()).unwrap();
        let world = World {
            sim,
            durability,
            disk,
            process: Mutex::default(),
            engines: Mutex::new(engines),
            holders: Arc::default(),
            setup_seq: AtomicU64::new(0),
            replayed: AtomicU64::new(0),
            crashes: AtomicU64::new(0),
        };
        world.start();
        Arc::new(world)
    }

    /// Starts a server process on what the last one left.
    pub(crate) fn start(&self) {
        let epoch = Epoch(self.sim.random());
        let machine = Machine::new(self.sim.clone(), self.disk);
        let runtime: SharedRuntime = machine.clone();
        let (meta, content) = {
            let engines = self.engines.lock().unwrap();
            (engines.meta.clone(), engines.content.clone())
        };
        let volume = open_on(meta, content, self.durability, epoch, runtime.clone()).unwrap();
        let holders = self.holders.clone();
        let server = Server::with_volumes(epoch, vec![volume.clone()], holders, Settings::default(), runtime).unwrap();
        let before = self.process.lock().unwrap().replace(Process { server, volume, machine });
        assert!(before.is_none(), "one process at a time");
    }

    /// Kills the server. Under `Power` durability the machine loses its power too, and with it what was not synced.
    pub(crate) fn crash(&self) {
        self.end(self.durability == Durability::Power);
    }

    /// The machine loses its power, and with it what was not synced.
    pub(crate) fn cut_power(&self) {
        self.end(true);
    }

    fn end(&self, power: bool) {
        let process = self.process.lock().unwrap().take().expect("a server runs");
        process.machine.kill();
        self.replayed.fetch_add(process.volume.replayed(), Ordering::Relaxed);
        self.crashes.fetch_add(1, Ordering::Relaxed);
        let mut engines = self.engines.lock().unwrap();
        if power {
            engines.content = Arc::new(engines.content.power_cut(Some(self.sim.random())));
            engines.meta = Arc::new(engines.meta.power_cut(0));
        } else {
            // A copy, so that nothing the dead process still does can reach its successor.
            engines.meta = Arc::new(engines.meta.power_cut(u64::MAX));
        }
    }

    /// The disk under the server.
    pub(crate) fn content(&self) -> Arc<MemoryContent> {
        self.engines.lock().unwrap().content.clone()
    }

    /// The metadata on it.
    pub(crate) fn meta(&self) -> Arc<MemoryMetadata> {
        self.engines.lock().unwrap().meta.clone()
    }

    /// Ends the server in good order.
    pub(crate) async fn shut_down(&self) {
        let process = self.process.lock().unwrap().take().expect("a server runs");
        self.replayed.fetch_add(process.volume.replayed(), Ordering::Relaxed);
        process.server.shut_down(Duration::from_secs(60)).await.unwrap();
    }

    pub(crate) fn volume(&self) -> Arc<Volume> {
        self.process.lock().unwrap().as_ref().expect("a server runs").volume.clone()
    }

    pub(crate) fn server(&self) -> Arc<Server> {
        self.process.lock().unwrap().as_ref().expect("a server runs").server.clone()
    }

    /// Mutations answered from slots, in all processes that are gone.
    pub(crate) fn replayed(&self) -> u64 {
        self.replayed.load(Ordering::Relaxed)
    }

    /// A number that depends on how many random numbers were drawn here, and so on all that happened.
    pub(crate) fn trace(&self) -> u64 {
        self.sim.random()
    }

    pub(crate) fn crashes(&self) -> u64 {
        self.crashes.load(Ordering::Relaxed)
    }

    /// The near end of a new connection.
    pub(crate) fn dial(&self, weather: Weather, seed: u64) -> io::Result<DuplexStream> {
        let process = self.process.lock().unwrap();
        let process = process.as_ref().ok_or(io::ErrorKind::ConnectionRefused)?;
        let (near, far) = tokio::io::duplex(PIPE);
        let transport: Faulty<_, _> =
            Faulty::new(ServerTransport::<_, LarderRequest, LarderResponse>::new(far), weather, seed);
        process.server.clone().serve_in_background(transport, Peer::Local);
        Ok(near)
    }

    /// Makes something before the clients come.
    pub(crate) async fn make(&self, op: Op) -> Fid {
        let seq = self.setup_seq.fetch_add(1, Ordering::Relaxed) + 1;
        let id = OpId { client: SETUP, incarnation: 1, slot: 0, seq };
        let volume = self.volume();
        match volume.mutate(&Credential::root(), id, op).await.unwrap().reply {
            OpReply::Entry { attr, .. } => attr.fid,
            other => panic!("not an entry: {other:?}"),
        }
    }

    pub(crate) async fn mkdir(&self, dir: Fid, at: &str) -> Fid {
        self.make(Op::Mkdir { dir, name: name(at), mode: 0o755, umask: 0 }).await
    }

    pub(crate) async fn file(&self, dir: Fid, at: &str) -> Fid {
        self.make(Op::Create { dir, name: name(at), mode: 0o644, umask: 0, how: CreateHow::Exclusive }).await
    }
}

/// Clocks as wrong as leases allow. The server counts `term + margin` by its clock from when it heard of a renewal, the
/// client `term - margin` by its own from before it asked: so no client counts on a lease that the server takes for ended
/// while neither clock is off true time by more than `margin / term`, which is 5 %. Most are off by just that.
pub(crate) fn clocks(random: &mut SmallRng) -> Clocks {
    let LeaseTerms { term, margin } = LeaseTerms::default();
    let most = (margin.as_micros() * 1_000_000 / term.as_micros()) as i32;
    let drift = [-most, most, 0, random.random_range(-most..=most)][random.random_range(0..4)];
    Clocks { drift, jumps: random.random() }
}

pub(crate) fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

/// One client's way to the server.
pub(crate) struct Road {
    world: Arc<World>,
    weather: Weather,
    random: SimRuntime,
}

impl Road {
    pub(crate) fn new(world: &Arc<World>, weather: Weather, seed: u64) -> Arc<Road> {
        Arc::new(Road { world: world.clone(), weather, random: SimRuntime::new(seed) })
    }

    fn open(&self) -> io::Result<BoxTransport> {
        let near = self.world.dial(self.weather, self.random.random())?;
        let transport: Faulty<_, _> = Faulty::new(
            ClientTransport::<_, LarderRequest, LarderResponse>::new(near),
            self.weather,
            self.random.random(),
        );
        Ok(Box::pin(transport))
    }
}

impl Connector for Road {
    fn connect(&self, _channel: u32) -> BoxFuture<io::Result<BoxTransport>> {
        let opened = self.open();
        Box::pin(async move { opened })
    }

    fn server(&self) -> String {
        "the simulated server".to_owned()
    }

    fn to(&self, _address: &str) -> Arc<dyn Connector> {
        unreachable!("the only server has all volumes")
    }
}

/// A client without a file system, connected.
pub(crate) async fn connect(
    world: &Arc<World>,
    weather: Weather,
    timeo: Duration,
    patience: Patience,
    random: &mut SmallRng,
) -> Arc<Client> {
    let runtime: SharedRuntime = Arc::new(SimRuntime::with_clocks(random.random(), clocks(random)));
    let shared = Shared::new(runtime, Road::new(world, weather, random.random()), timeo);
    let client = Client::new(shared, patience);
    for _ in 0..1000 {
        if client.connect().await.is_ok() {
            return client;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("no connection in 1,000 attempts");
}
