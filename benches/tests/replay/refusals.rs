//! A server's disk that is full or fails now and then: a close (in direct mode, an fsync) that returned without an error
//! has kept all that was written, also when the power is cut right after it.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use larder_benches::digest::Digested;
use larder_benches::seeds::{self, Worlds};
use larder_client::vfs::{Mode, ROOT};
use larder_protocol::faults::Weather;
use larder_server::volume::Durability;
use larder_server::volume::content::Space;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rustix::fs::OFlags;
use tokio::time::sleep;

use crate::machine::Disk;
use crate::mounts::{cred, find, flags, mount};
use crate::registers::contents;
use crate::world::World;

/// Files that are written.
const FILES: usize = 4;
/// Times that one of them is written.
const ROUNDS: usize = 40;
/// No room, and much.
const FULL: Space = Space { total: 1 << 40, free: 0, available: 0, files_free: u64::MAX };
const ROOM: Space = Space { free: 1 << 40, available: 1 << 40, ..FULL };

/// Closes that went well, and those that did not.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    kept: usize,
    refused: usize,
}

impl Digested for Summary {}

/// Writes files whole, on a disk that is broken now and then.
pub(crate) async fn world_of(seed: u64) -> Summary {
    let mut random = SmallRng::seed_from_u64(seed);
    let world = World::new(random.random(), Durability::Power, Disk::Instant);
    let root = world.volume().root();
    let mut fids = Vec::new();
    for file in 0..FILES {
        fids.push(world.file(root, &format!("file-{file}")).await);
    }
    let mode = if random.random() { Mode::Nfs } else { Mode::Direct };
    let vfs = mount(&world, Weather::default(), mode, Duration::from_secs(1), &mut random).await;
    let (mut summary, mut kept) = (Summary::default(), BTreeMap::new());
    for round in 0..ROUNDS {
        let file = random.random_range(0..FILES);
        let node = find(&vfs, ROOT, &format!("file-{file}")).await.node;
        let opened = vfs.open(&cred(), node, flags(OFlags::WRONLY | OFlags::TRUNC)).await;
        kept.remove(&file);
        let Ok(opened) = opened else {
            summary.refused += 1;
            world.content().set_space(ROOM);
            continue;
        };
        match random.random_range(0..6) {
            0 => world.content().set_space(FULL),
            1 => world.content().fail_next_sync(),
            2 => world.content().fail_next_write(),
            _ => {}
        }
        // Larger than what lies in the metadata, or not.
        let data = vec![round as u8; random.random_range(1..60_000)];
        let mut written = Ok(());
        for (number, piece) in data.chunks(20_000).enumerate() {
            let wrote = vfs.write(opened.handle, number as u64 * 20_000, Bytes::copy_from_slice(piece)).await;
            written = written.and(wrote.map(|_| ()));
        }
        // In direct mode a close promises no more than that of a local file does.
        let synced = if mode == Mode::Direct || random.random_bool(0.3) {
            vfs.fsync(opened.handle, false).await
        } else {
            Ok(())
        };
        let flushed = vfs.flush(opened.handle).await;
        vfs.release(opened.handle).await;
        if written.is_ok() && synced.is_ok() && flushed.is_ok() {
            summary.kept += 1;
            kept.insert(file, data);
        } else {
            summary.refused += 1;
        }
        world.content().set_space(ROOM);
        if random.random_bool(0.2) {
            world.crash();
            world.start();
        }
        if random.random_bool(0.2) {
            sleep(Duration::from_secs(40).mul_f64(random.random())).await;
        }
        for (file, data) in &kept {
            let there = contents(&world.volume(), fids[*file]).await;
            assert!(there == *data, "file-{file} was closed without an error, and is not what was written to it");
        }
    }
    vfs.shutdown().await;
    summary
}

#[test]
fn a_close_that_returned_has_kept_what_was_written() {
    let test = "a_close_that_returned_has_kept_what_was_written";
    let worlds = seeds::run(Worlds { target: "replay", test, count: 50, once_failed: &[] }, world_of).worlds;
    let (kept, refused) = worlds.iter().fold((0, 0), |(k, r), world| (k + world.kept, r + world.refused));
    println!("{kept} closes went well, {refused} did not");
    if worlds.len() >= 10 {
        assert!(kept > 0 && refused > 0);
    }
}
