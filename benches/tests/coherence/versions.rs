//! Versions of one file that are open at the same time: what the histories of many worlds have brought to light.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use larder_benches::seeds::in_virtual_time;
use larder_client::vfs::{CacheOptions, Entry, LookupResult, Mode, MountOptions, ROOT, Vfs};
use larder_protocol::attr::Credential;
use larder_protocol::faults::Weather;
use larder_protocol::runtime::SimRuntime;
use larder_server::volume::Durability;
use rustix::fs::OFlags;
use tokio::time::sleep;

use crate::contents::Value;
use crate::machine::{Disk, Machine};
use crate::world::{Road, World};

/// The file.
const FILE: &[u8] = b"file";

/// A mount, and what a program does there.
struct Client {
    vfs: Arc<Vfs>,
    machine: Arc<Machine>,
    cache: tempfile::TempDir,
}

impl Client {
    async fn mount(world: &Arc<World>, weather: Weather, seed: u64) -> Client {
        Client::mount_with(tempfile::tempdir().unwrap(), world, weather, seed).await
    }

    async fn mount_with(cache: tempfile::TempDir, world: &Arc<World>, weather: Weather, seed: u64) -> Client {
        let machine = Machine::new(Arc::new(SimRuntime::new(seed)), Disk::Instant);
        let dir = CacheOptions { dir: cache.path().to_owned(), size: 1 << 30, passthrough: None };
        let options = MountOptions { mode: Mode::Afs, cache: Some(dir), ..MountOptions::default() };
        let road = Road::new(world, weather, seed);
        let vfs = Vfs::attach(machine.clone(), road, "root", options).await.unwrap();
        Client { vfs, machine, cache }
    }

    /// The process is killed; what is left of it is its cache.
    async fn kill(self) -> tempfile::TempDir {
        let rest = Arc::downgrade(&self.vfs);
        drop(self.vfs);
        self.machine.kill();
        // Its tasks go when they are next polled.
        sleep(Duration::from_secs(1)).await;
        assert_eq!(rest.strong_count(), 0, "nothing outlives the process");
        self.cache
    }

    async fn look(&self) -> u64 {
        self.look_for(FILE).await
    }

    async fn look_for(&self, name: &[u8]) -> u64 {
        match self.vfs.lookup(&Credential::root(), ROOT, name).await {
            Ok(LookupResult::Found(Entry { node, .. })) => node,
            other => panic!("{other:?}"),
        }
    }

    async fn read(&self, name: &[u8]) -> Value {
        let handle = self.open(self.look_for(name).await, OFlags::RDONLY).await;
        let value = self.contents(handle).await;
        self.close(handle).await;
        value
    }

    async fn open(&self, node: u64, how: OFlags) -> u64 {
        let flags = how.bits().cast_signed();
        self.vfs.open(&Credential::root(), node, flags).await.unwrap().handle
    }

    async fn close(&self, handle: u64) {
        self.vfs.flush(handle).await.unwrap();
        self.vfs.release(handle).await;
    }

    async fn write_node(&self, node: u64, value: Value) {
        let handle = self.open(node, OFlags::WRONLY | OFlags::TRUNC).await;
        let data: Bytes = value.range(0, value.len());
        assert_eq!(self.vfs.write(handle, 0, data).await.unwrap(), value.len());
        self.close(handle).await;
    }

    async fn write(&self, value: Value) {
        self.write_node(self.look().await, value).await;
    }

    async fn contents(&self, handle: u64) -> Value {
        Value::of(&self.vfs.read(handle, 0, 8 << 20).await.unwrap(), "the file")
    }
}

async fn world() -> Arc<World> {
    let world = World::new(1, Durability::Process, Disk::Instant);
    let root = world.volume().root();
    world.file(root, "file").await;
    world
}

#[test]
fn what_one_node_has_stored_no_other_shows_the_past_of() {
    in_virtual_time(async {
        let world = world().await;
        let (a, b) = (Client::mount(&world, Weather::default(), 1).await, Client::mount(&world, Weather::default(), 2));
        let b = b.await;
        let [v1, v2, v3] = [1, 2, 3].map(|id| Value::new(id, 1000 * id));
        b.write(v1).await;
        let node = a.look().await;
        let first = a.open(node, OFlags::RDONLY).await;
        b.write(v2).await;
        // The first node stands for what is open there, so this is another.
        let another = a.look().await;
        assert_ne!(another, node);
        let second = a.open(another, OFlags::RDONLY).await;
        assert_eq!((a.contents(first).await, a.contents(second).await), (v1, v2));
        a.close(first).await;
        a.close(second).await;
        // Both are known at this version, and one is used to write.
        assert_eq!(a.look().await, node);
        a.vfs.getattr(&Credential::root(), another, None).await.unwrap();
        a.write_node(node, v3).await;
        let third = a.open(node, OFlags::RDONLY).await;
        let seen = a.look().await;
        for node in [seen, another] {
            let attributes = a.vfs.getattr(&Credential::root(), node, None).await.unwrap();
            assert_eq!(attributes.attr.size, u64::from(v3.len()));
        }
        let fourth = a.open(seen, OFlags::RDONLY).await;
        assert_eq!((a.contents(third).await, a.contents(fourth).await), (v3, v3));
        a.close(third).await;
        a.close(fourth).await;
    });
}

#[test]
fn an_open_shows_nothing_that_was_stored_after_it() {
    in_virtual_time(async {
        let world = world().await;
        // Answers to the reader take long.
        let weather = Weather { delay: 1000, max_delay: Duration::from_millis(300), ..Weather::default() };
        let a = Arc::new(Client::mount(&world, weather, 1).await);
        let b = Client::mount(&world, Weather::default(), 2).await;
        let value = |id: u32| Value::new(id, 1_100_000 + id);
        for round in 0..4 {
            let (before, after) = (value(2 * round + 1), value(2 * round + 2));
            b.write(before).await;
            let reading = tokio::spawn({
                let a = a.clone();
                async move { a.open(a.look().await, OFlags::RDONLY).await }
            });
            while !reading.is_finished() {
                sleep(Duration::from_millis(1)).await;
            }
            // Had the open not waited for all of it, some of it would still be on its way.
            b.write(after).await;
            let handle = reading.await.unwrap();
            let found = a.contents(handle).await;
            assert_eq!(found, before, "something that was stored after the open");
            a.close(handle).await;
        }
    });
}

#[test]
fn what_is_recovered_beside_a_mount_that_is_used_is_not_shown_as_it_was() {
    in_virtual_time(async {
        let world = world().await;
        let names: Vec<String> = (0..24).map(|number| format!("file-{number}")).collect();
        for name in &names {
            world.file(world.volume().root(), name).await;
        }
        // Slow enough that whoever mounts does not wait for all of it.
        let weather = Weather { delay: 1000, max_delay: Duration::from_millis(300), ..Weather::default() };
        let a = Client::mount(&world, weather, 1).await;
        let b = Client::mount(&world, Weather::default(), 2).await;
        let left = Value::new(7, 1000);
        for name in &names {
            let handle = a.open(a.look_for(name.as_bytes()).await, OFlags::WRONLY).await;
            a.vfs.write(handle, 0, left.range(0, left.len())).await.unwrap();
        }
        let a = Client::mount_with(a.kill().await, &world, weather, 3).await;
        let mut past = 0;
        for name in &names {
            past += usize::from(a.read(name.as_bytes()).await == Value::EMPTY);
        }
        assert!(past > 0, "all was recovered before the mount was used");
        for name in &names {
            while b.read(name.as_bytes()).await != left {
                sleep(Duration::from_millis(50)).await;
            }
            assert_eq!(a.read(name.as_bytes()).await, left, "{name} as it was before it was recovered");
        }
    });
}
