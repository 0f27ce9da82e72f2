//! Reading what is on its way to the server.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use larder_client::vfs::{Mode, ROOT, Vfs};
use larder_protocol::faults::Weather;
use larder_server::volume::Durability;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rustix::fs::OFlags;

use crate::machine::Disk;
use crate::mounts::{cred, flags, mount};
use crate::world::World;

fn asked(vfs: &Vfs, kind: &str) -> u64 {
    vfs.stats().requests.get(kind).map_or(0, |requests| requests.count)
}

async fn nfs(world: &Arc<World>, random: &mut SmallRng) -> Arc<Vfs> {
    mount(world, Weather::default(), Mode::Nfs, Duration::from_secs(1), random).await
}

async fn create(vfs: &Vfs, name: &str) -> u64 {
    vfs.create(&cred(), ROOT, name.as_bytes(), 0o644, 0, flags(OFlags::RDWR)).await.unwrap().1.handle
}

async fn close(vfs: &Vfs, file: u64) {
    vfs.flush(file).await.unwrap();
    vfs.release(file).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_being_written_here_and_there_is_read_back_without_the_server() {
    let world = World::new(1, Durability::Process, Disk::Instant);
    let vfs = nfs(&world, &mut SmallRng::seed_from_u64(1)).await;
    let file = create(&vfs, "file").await;
    let mut model: Vec<u8> = Vec::new();
    // As linkers do: here and there, with looks at what is around.
    for (number, (at, len)) in [(9000, 500), (64, 100), (0, 64), (15_000, 5000), (300, 200)].into_iter().enumerate() {
        let data = Bytes::from(vec![number as u8 + 1; len]);
        model.resize(model.len().max(at + len), 0);
        model[at..at + len].copy_from_slice(&data);
        vfs.write(file, at as u64, data).await.unwrap();
        let seen = vfs.read(file, 0, model.len() as u32).await.unwrap();
        assert!(seen == model, "after {len} bytes at {at}");
    }
    assert_eq!((asked(&vfs, "write"), asked(&vfs, "read")), (0, 0), "the server has nothing of it");
    vfs.flush(file).await.unwrap();
    // What the server has is around what is here, and one request brings it.
    vfs.write(file, 10, Bytes::from_static(b"new")).await.unwrap();
    model[10..13].copy_from_slice(b"new");
    let (written, read) = (asked(&vfs, "write"), asked(&vfs, "read"));
    assert!(vfs.read(file, 0, model.len() as u32).await.unwrap() == model);
    assert_eq!((asked(&vfs, "write"), asked(&vfs, "read")), (written, read + 1));
    close(&vfs, file).await;
    vfs.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_hole_before_what_is_being_written_is_read_as_one() {
    let world = World::new(1, Durability::Process, Disk::Instant);
    let vfs = nfs(&world, &mut SmallRng::seed_from_u64(1)).await;
    let file = create(&vfs, "file").await;
    let mut model = vec![1; 80_000];
    vfs.write(file, 0, Bytes::from(model.clone())).await.unwrap();
    vfs.flush(file).await.unwrap();
    // The server's file ends at 80,000; here it goes on behind a hole.
    for (at, len) in [(60_000, 5000), (200_000, 8000)] {
        model.resize(model.len().max(at + len), 0);
        model[at..at + len].fill(2);
        vfs.write(file, at as u64, Bytes::from(vec![2; len])).await.unwrap();
    }
    let ranges =
        [(64_000, 20_000), (60_000, 5000), (79_000, 40_000), (90_000, 10_000), (64_500, 140_000), (0, 250_000)];
    for (at, len) in ranges {
        let seen = vfs.read(file, at as u64, len as u32).await.unwrap();
        let end = model.len().min(at + len);
        assert!(seen == model[at..end], "{len} bytes from {at}: {} of {} came", seen.len(), end - at);
    }
    close(&vfs, file).await;
    vfs.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_read_is_what_was_written_wherever_it_is() {
    let world = World::new(1, Durability::Process, Disk::Instant);
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let vfs = nfs(&world, &mut random).await;
    // Many short lives of files: it is while they grow that ends and holes differ here and there.
    for number in 0..200 {
        let name = format!("file-{number}");
        let file = create(&vfs, &name).await;
        let mut model: Vec<u8> = Vec::new();
        for step in 0..30 {
            let (at, len) = (random.random_range(0..300_000), random.random_range(1..100_000));
            match random.random_range(0..10) {
                0 => vfs.flush(file).await.unwrap(),
                1..4 => {
                    model.resize(model.len().max(at + len), 0);
                    model[at..at + len].fill(step + 1);
                    vfs.write(file, at as u64, Bytes::from(vec![step + 1; len])).await.unwrap();
                }
                _ => {
                    let seen = vfs.read(file, at as u64, len as u32).await.unwrap();
                    let (from, to) = (at.min(model.len()), model.len().min(at + len));
                    assert!(seen == model[from..to], "{name}, step {step}: {len} bytes from {at}: {} came", seen.len());
                }
            }
        }
        close(&vfs, file).await;
    }
    vfs.shutdown().await;
}
