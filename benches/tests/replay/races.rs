//! Mounts that race for one name: exactly one wins, and the others are told why they did not.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use larder_client::vfs::{Error, LookupResult, ROOT, Vfs};
use larder_protocol::attr::Credential;
use larder_protocol::error::ErrorCode;
use larder_protocol::service::file::RenameHow;
use rand::Rng;
use rand::rngs::SmallRng;
use rustix::fs::OFlags;

use crate::mounts::find;

/// What mounts race to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Race {
    Mkdir,
    Create,
    Symlink,
    Link,
    /// Each moves a file of its own to the name, which must be free.
    RenameTo,
    /// Each moves the file of that name to a name of its own.
    RenameFrom,
    Unlink,
    Rmdir,
}

const ALL: [Race; 8] =
    [Race::Mkdir, Race::Create, Race::Symlink, Race::Link, Race::RenameTo, Race::RenameFrom, Race::Unlink, Race::Rmdir];

/// Runs races in the directory of this name. Returns how many.
pub(crate) async fn run(mounts: Vec<Arc<Vfs>>, dir: &'static str, mut random: SmallRng, rounds: usize) -> usize {
    let dirs = join_all(mounts.iter().map(|vfs| find(vfs, ROOT, dir))).await;
    for round in 0..rounds {
        let race = ALL[random.random_range(0..ALL.len())];
        let name = format!("race-{round}");
        prepare(&mounts[0], dirs[0].node, race, &name, mounts.len()).await;
        let attempts = mounts.iter().zip(&dirs).enumerate().map(|(runner, (vfs, dir))| {
            let head_start = Duration::from_micros(random.random_range(0..2000));
            let name = &name;
            async move {
                tokio::time::sleep(head_start).await;
                attempt(vfs, dir.node, race, name, runner).await
            }
        });
        let results = join_all(attempts).await;
        let wins = results.iter().filter(|result| result.is_ok()).count();
        assert_eq!(wins, 1, "{race:?} of {name}: {results:?}");
        let removes = matches!(race, Race::RenameFrom | Race::Unlink | Race::Rmdir);
        let reason = if removes { ErrorCode::NotFound } else { ErrorCode::Exists };
        for error in results.iter().filter_map(|result| result.err()) {
            assert_eq!(error, Error::from(reason), "{race:?} of {name}: {results:?}");
        }
        let there = vfs_has(&mounts[mounts.len() - 1], dirs[mounts.len() - 1].node, &name).await;
        assert_eq!(there, !removes, "{race:?} of {name}");
        let winner = results.iter().position(|result| result.is_ok());
        let taken = |runner: usize| (Some(runner) == winner) == (race == Race::RenameFrom);
        if matches!(race, Race::RenameTo | Race::RenameFrom) {
            for runner in 0..mounts.len() {
                let own = vfs_has(&mounts[0], dirs[0].node, &own(&name, runner)).await;
                assert_eq!(own, taken(runner), "{race:?} of {name}: the name of runner {runner}");
            }
        }
    }
    rounds
}

fn own(name: &str, runner: usize) -> String {
    format!("{name}-of-{runner}")
}

async fn vfs_has(vfs: &Vfs, dir: u64, name: &str) -> bool {
    match vfs.lookup(&Credential::root(), dir, name.as_bytes()).await {
        Ok(LookupResult::Found(_)) => true,
        Ok(LookupResult::Missing { .. }) => false,
        Err(error) => panic!("looking up {name}: {error}"),
    }
}

async fn create(vfs: &Vfs, dir: u64, name: &str) -> Result<(), Error> {
    let flags = (OFlags::RDWR | OFlags::CREATE | OFlags::EXCL).bits().cast_signed();
    let (_, opened) = vfs.create(&Credential::root(), dir, name.as_bytes(), 0o644, 0, flags).await?;
    vfs.release(opened.handle).await;
    Ok(())
}

async fn prepare(vfs: &Vfs, dir: u64, race: Race, name: &str, runners: usize) {
    match race {
        Race::Mkdir | Race::Create | Race::Symlink => {}
        Race::Link | Race::RenameTo => {
            for runner in 0..runners {
                create(vfs, dir, &own(name, runner)).await.unwrap();
            }
        }
        Race::RenameFrom | Race::Unlink => create(vfs, dir, name).await.unwrap(),
        Race::Rmdir => {
            vfs.mkdir(&Credential::root(), dir, name.as_bytes(), 0o755, 0).await.unwrap();
        }
    }
}

async fn attempt(vfs: &Vfs, dir: u64, race: Race, name: &str, runner: usize) -> Result<(), Error> {
    let (cred, own, name) = (Credential::root(), own(name, runner), name.as_bytes());
    match race {
        Race::Mkdir => vfs.mkdir(&cred, dir, name, 0o755, 0).await.map(|_| ()),
        Race::Create => create(vfs, dir, &String::from_utf8_lossy(name)).await,
        Race::Symlink => vfs.symlink(&cred, dir, name, own.as_bytes()).await.map(|_| ()),
        Race::Link => {
            let node = find(vfs, dir, &own).await.node;
            vfs.link(&cred, node, dir, name).await.map(|_| ())
        }
        Race::RenameTo => vfs.rename(&cred, dir, own.as_bytes(), dir, name, RenameHow::NoReplace).await,
        Race::RenameFrom => vfs.rename(&cred, dir, name, dir, own.as_bytes(), RenameHow::Replace).await,
        Race::Unlink => vfs.unlink(&cred, dir, name).await,
        Race::Rmdir => vfs.rmdir(&cred, dir, name).await,
    }
}
