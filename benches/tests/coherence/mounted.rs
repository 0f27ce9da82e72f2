//! A client of `afs` mode without a mount, and what a program does there.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use larder_client::rpc::Connector;
use larder_client::vfs::{CacheOptions, Entry, LookupResult, Mode, MountOptions, ROOT, Vfs};
use larder_protocol::attr::Credential;
use larder_protocol::faults::Weather;
use larder_protocol::runtime::{Clocks, SimRuntime};
use larder_server::volume::Durability;
use rustix::fs::OFlags;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::client::cache_dir;
use crate::contents::Value;
use crate::machine::{Disk, Machine};
use crate::world::{Road, World};

/// The file.
pub(crate) const FILE: &[u8] = b"file";

/// A mount, and what a program does there.
pub(crate) struct Client {
    pub(crate) vfs: Arc<Vfs>,
    machine: Arc<Machine>,
    cache: tempfile::TempDir,
}

impl Client {
    pub(crate) async fn mount(world: &Arc<World>, weather: Weather, seed: u64) -> Client {
        Client::mount_with(cache_dir().unwrap(), world, weather, seed).await
    }

    pub(crate) async fn mount_with(
        cache: tempfile::TempDir,
        world: &Arc<World>,
        weather: Weather,
        seed: u64,
    ) -> Client {
        Client::mount_over(cache, Road::new(world, weather, seed), SimRuntime::new(seed)).await
    }

    /// On a machine of its own, over any connection.
    pub(crate) async fn mount_over(cache: tempfile::TempDir, road: Arc<dyn Connector>, sim: SimRuntime) -> Client {
        let machine = Machine::new(Arc::new(sim), Disk::Instant);
        let dir = CacheOptions {
            dir: cache.path().to_owned(),
            size: 1 << 30,
            passthrough: None,
            keep_open: CacheOptions::KEEP_OPEN,
        };
        let options = MountOptions { mode: Mode::Afs, cache: Some(dir), ..MountOptions::default() };
        let vfs = Vfs::attach(machine.clone(), road, "root", options).await.unwrap();
        Client { vfs, machine, cache }
    }

    /// The process is killed; what is left of it is its cache.
    pub(crate) async fn kill(self) -> tempfile::TempDir {
        let rest = Arc::downgrade(&self.vfs);
        drop(self.vfs);
        self.machine.kill();
        // Its tasks go when they are next polled.
        sleep(Duration::from_secs(1)).await;
        assert_eq!(rest.strong_count(), 0, "nothing outlives the process");
        self.cache
    }

    pub(crate) async fn look(&self) -> u64 {
        self.look_for(FILE).await
    }

    pub(crate) async fn look_for(&self, name: &[u8]) -> u64 {
        match self.vfs.lookup(&Credential::root(), ROOT, name).await {
            Ok(LookupResult::Found(Entry { node, .. })) => node,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn read(&self, name: &[u8]) -> Value {
        let handle = self.open(self.look_for(name).await, OFlags::RDONLY).await;
        let value = self.contents(handle).await;
        self.close(handle).await;
        value
    }

    pub(crate) async fn open(&self, node: u64, how: OFlags) -> u64 {
        let flags = how.bits().cast_signed();
        self.vfs.open(&Credential::root(), node, flags).await.unwrap().handle
    }

    /// Opens while something else goes on.
    pub(crate) fn opening(self: &Arc<Client>, node: u64, how: OFlags) -> JoinHandle<u64> {
        let client = self.clone();
        tokio::spawn(async move { client.open(node, how).await })
    }

    pub(crate) async fn close(&self, handle: u64) {
        self.vfs.flush(handle).await.unwrap();
        self.vfs.release(handle).await;
    }

    pub(crate) async fn write_node(&self, node: u64, value: Value) {
        let handle = self.open(node, OFlags::WRONLY | OFlags::TRUNC).await;
        let data: Bytes = value.range(0, value.len());
        assert_eq!(self.vfs.write(handle, 0, data).await.unwrap(), value.len());
        self.close(handle).await;
    }

    pub(crate) async fn write(&self, value: Value) {
        self.write_node(self.look().await, value).await;
    }

    pub(crate) async fn contents(&self, handle: u64) -> Value {
        Value::of(&self.vfs.read(handle, 0, 8 << 20).await.unwrap(), "the file")
    }
}

/// Contents of three parts of a fetch or a store.
pub(crate) const LARGE: u32 = 2_200_000;

/// A network on which everything takes long.
pub(crate) fn slow() -> Weather {
    Weather { delay: 1000, max_delay: Duration::from_millis(300), ..Weather::default() }
}

/// A server with an empty file.
pub(crate) async fn world() -> Arc<World> {
    world_with(Clocks::default()).await
}

/// The same on a machine with such clocks.
pub(crate) async fn world_with(clocks: Clocks) -> Arc<World> {
    let world = World::with_clocks(1, Durability::Process, Disk::Instant, clocks);
    let root = world.volume().root();
    world.file(root, "file").await;
    world
}
