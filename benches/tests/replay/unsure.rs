//! A rename that failed on the server's disk, and may have happened after the server's next start: until that is over nobody
//! is told that a name may be kept.

use std::time::Duration;

use larder_client::vfs::{Entry, Error, LookupResult, Mode, ROOT, Vfs};
use larder_protocol::error::ErrorCode;
use larder_protocol::faults::Weather;
use larder_protocol::service::file::RenameHow;
use larder_server::volume::Durability;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::time::sleep;

use crate::machine::Disk;
use crate::mounts::{cred, find, mount};
use crate::world::World;

/// Longer than anything takes that is on its way, and than attributes are kept.
const LONG: Duration = Duration::from_secs(100);

/// The file, whichever of the two names it has.
async fn found(vfs: &Vfs) -> Entry {
    for name in [b"old", b"new"] {
        if let Ok(LookupResult::Found(entry)) = vfs.lookup(&cred(), ROOT, name).await {
            return entry;
        }
    }
    panic!("it has neither name");
}

#[tokio::test(start_paused = true)]
async fn no_name_is_kept_where_a_rename_may_still_happen() {
    let world = World::new(1, Durability::Process, Disk::Instant);
    world.file(world.volume().root(), "old").await;
    let vfs =
        mount(&world, Weather::default(), Mode::Nfs, Duration::from_secs(1), &mut SmallRng::seed_from_u64(1)).await;
    assert!(find(&vfs, ROOT, "old").await.entry_ttl > Duration::ZERO);
    world.meta().doubt_commit(0, true);
    let renamed = vfs.rename(&cred(), ROOT, b"old", ROOT, b"new", RenameHow::Replace).await;
    assert_eq!(renamed.map(|_| ()), Err(Error::Refused(ErrorCode::Io)));
    for _ in 0..3 {
        assert_eq!(found(&vfs).await.entry_ttl, Duration::ZERO);
        sleep(LONG).await;
    }
    world.crash();
    world.start();
    // It knows of the new server by then.
    found(&vfs).await;
    sleep(LONG).await;
    found(&vfs).await;
    assert!(found(&vfs).await.entry_ttl > Duration::ZERO, "it is over");
    vfs.shutdown().await;
}
