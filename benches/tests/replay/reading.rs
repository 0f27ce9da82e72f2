//! Reading what is on its way to the server.

use std::time::Duration;

use bytes::Bytes;
use larder_client::vfs::{Mode, ROOT, Vfs};
use larder_protocol::faults::Weather;
use larder_server::volume::Durability;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rustix::fs::OFlags;

use crate::machine::Disk;
use crate::mounts::{cred, flags, mount};
use crate::world::World;

fn asked(vfs: &Vfs, kind: &str) -> u64 {
    vfs.stats().requests.get(kind).map_or(0, |requests| requests.count)
}

#[tokio::test(start_paused = true)]
async fn what_is_being_written_here_and_there_is_read_back_without_the_server() {
    let world = World::new(1, Durability::Process, Disk::Instant);
    let mut random = SmallRng::seed_from_u64(1);
    let vfs = mount(&world, Weather::default(), Mode::Nfs, Duration::from_secs(1), &mut random).await;
    let (_, opened) = vfs.create(&cred(), ROOT, b"file", 0o644, 0, flags(OFlags::RDWR)).await.unwrap();
    let mut model: Vec<u8> = Vec::new();
    // As linkers do: here and there, with looks at what is around.
    for (number, (at, len)) in [(9000, 500), (64, 100), (0, 64), (15_000, 5000), (300, 200)].into_iter().enumerate() {
        let data = Bytes::from(vec![number as u8 + 1; len]);
        model.resize(model.len().max(at + len), 0);
        model[at..at + len].copy_from_slice(&data);
        vfs.write(opened.handle, at as u64, data).await.unwrap();
        let seen = vfs.read(opened.handle, 0, model.len() as u32).await.unwrap();
        assert!(seen == model, "after {len} bytes at {at}");
    }
    assert_eq!((asked(&vfs, "write"), asked(&vfs, "read")), (0, 0), "the server has nothing of it");
    vfs.flush(opened.handle).await.unwrap();
    // What the server has is around what is here, and one request brings it.
    vfs.write(opened.handle, 10, Bytes::from_static(b"new")).await.unwrap();
    model[10..13].copy_from_slice(b"new");
    let (written, read) = (asked(&vfs, "write"), asked(&vfs, "read"));
    assert!(vfs.read(opened.handle, 0, model.len() as u32).await.unwrap() == model);
    assert_eq!((asked(&vfs, "write"), asked(&vfs, "read")), (written, read + 1));
    vfs.flush(opened.handle).await.unwrap();
    vfs.release(opened.handle).await;
    vfs.shutdown().await;
}
