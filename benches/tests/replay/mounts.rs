//! Mounting the volume, and what all who use a mount need.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use larder_client::vfs::{Entry, LookupResult, Mode, MountOptions, ROOT, Vfs};
use larder_protocol::attr::Credential;
use larder_protocol::faults::Weather;
use larder_protocol::runtime::{SharedRuntime, SimRuntime};
use rand::Rng;
use rand::rngs::SmallRng;
use rustix::fs::OFlags;

use crate::registers::{Fate, record};
use crate::world::{Road, World, clocks};

/// Mounts the volume.
pub(crate) async fn mount(
    world: &Arc<World>,
    weather: Weather,
    mode: Mode,
    timeo: Duration,
    random: &mut SmallRng,
) -> Arc<Vfs> {
    let clocks = clocks(random);
    for _ in 0..1000 {
        // A mount is tried once; who wants more tries again.
        let runtime: SharedRuntime = Arc::new(SimRuntime::with_clocks(random.random(), clocks));
        let road = Road::new(world, weather, random.random());
        let options = MountOptions { mode, timeo, ..MountOptions::default() };
        if let Ok(vfs) = Vfs::attach(runtime, road, "root", options).await {
            return vfs;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("no mount in 1,000 attempts");
}

pub(crate) fn flags(flags: OFlags) -> i32 {
    flags.bits().cast_signed()
}

pub(crate) fn cred() -> Credential {
    Credential::root()
}

/// The object under a name, which must be there.
pub(crate) async fn find(vfs: &Vfs, parent: u64, name: &str) -> Entry {
    match vfs.lookup(&cred(), parent, name.as_bytes()).await {
        Ok(LookupResult::Found(entry)) => entry,
        other => panic!("looking up {name}: {other:?}"),
    }
}

/// Appends records through a file opened with `O_APPEND`.
pub(crate) async fn append(
    vfs: Arc<Vfs>,
    name: &'static str,
    writer: u8,
    mut random: SmallRng,
    records: u16,
) -> Vec<Fate> {
    let node = find(&vfs, ROOT, name).await.node;
    let opened = vfs.open(&cred(), node, flags(OFlags::WRONLY | OFlags::APPEND)).await.unwrap();
    for number in 0..records {
        let data = record(writer, number, &mut random);
        assert_eq!(vfs.write(opened.handle, 0, Bytes::from(data.clone())).await.unwrap() as usize, data.len());
    }
    vfs.flush(opened.handle).await.unwrap();
    vfs.release(opened.handle).await;
    vec![Fate::Acknowledged; records.into()]
}
