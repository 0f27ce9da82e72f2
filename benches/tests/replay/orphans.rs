//! Files without a name that a server failed to forget: it is told again, soon at first and then less and less often.

use std::time::Duration;

use larder_client::vfs::{Mode, ROOT};
use larder_protocol::faults::Weather;
use larder_protocol::service::file::{Query, QueryReply};
use larder_server::volume::Durability;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rustix::fs::OFlags;
use tokio::time::sleep;

use crate::machine::Disk;
use crate::mounts::{cred, find, flags, mount};
use crate::world::World;

/// How long the server's metadata cannot be written.
const BROKEN_FOR: Duration = Duration::from_secs(20);

async fn objects(world: &World) -> u64 {
    let volume = world.volume();
    match volume.query(&cred(), Query::Statfs { fid: volume.root() }).await.unwrap() {
        QueryReply::Space(space) => space.files - space.files_free,
        other => panic!("{other:?}"),
    }
}

async fn refused_and_told_again(mode: Mode) {
    let world = World::new(1, Durability::Process, Disk::Instant);
    let before = objects(&world).await;
    world.file(world.volume().root(), "file").await;
    let vfs = mount(&world, Weather::default(), mode, Duration::from_secs(1), &mut SmallRng::seed_from_u64(1)).await;
    let node = find(&vfs, ROOT, "file").await.node;
    let opened = vfs.open(&cred(), node, flags(OFlags::RDONLY)).await.unwrap();
    vfs.unlink(&cred(), ROOT, b"file").await.unwrap();
    assert_eq!(objects(&world).await, before + 1, "it is kept while it is open");
    world.meta().set_full(true);
    // From here on nothing happens at this client but what it does by itself.
    vfs.release(opened.handle).await;
    sleep(BROKEN_FOR).await;
    assert_eq!(objects(&world).await, before + 1, "the server cannot forget it");
    let tries = || world.server().stats().requests.get("forget").map_or(0, |kind| kind.count);
    // With all others and alone, after 1, 3, 6 and 11 s or so.
    assert!((4..=12).contains(&tries()), "{} tries", tries());
    world.meta().set_full(false);
    sleep(2 * BROKEN_FOR).await;
    assert_eq!(objects(&world).await, before, "it is told again");
    let tries_then = tries();
    sleep(100 * BROKEN_FOR).await;
    assert_eq!(tries(), tries_then, "once is enough");
    vfs.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn what_a_server_failed_to_forget_is_told_again() {
    refused_and_told_again(Mode::Nfs).await;
    refused_and_told_again(Mode::Direct).await;
}
