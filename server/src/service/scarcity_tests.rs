//! Removed files that clients have open, on a disk that is nearly full: for whom they stay.

use std::time::Duration;

use larder_protocol::attr::Credential;
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::Fid;
use larder_protocol::limits::ORPHANS_YIELD_AFTER;
use larder_protocol::service::file::{Op, Query};
use tokio::time::sleep;

use super::promise_tests::{Client, TERM, World, context, name};

const MINUTE: Duration = Duration::from_secs(60);
/// So little that room is scarce, and enough to work with.
const DISK: u64 = 8 << 20;

/// Makes a file and removes its name; the client has it open.
async fn removed(client: &Client, dir: Fid, file: &str) -> Fid {
    let (attr, _) = client.create(dir, file).await;
    client.mutate(Op::Remove { dir, name: name(file), keep: true }).await.unwrap();
    attr.fid
}

async fn is_there(asking: &Client, fid: Fid) -> bool {
    match asking.rpc.query(context(), Credential::root(), Query::Getattr { fid }).await.unwrap() {
        Ok(_) => true,
        Err(ErrorCode::Stale) => false,
        Err(error) => panic!("{error:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn removed_files_of_clients_that_are_not_heard_of_make_room() {
    let world = World::new();
    world.content.set_disk_size(DISK);
    let dir = world.root().await;
    let (there, away, gone) = (world.client().await, world.client().await, world.client().await);
    let [of_there, of_away, of_gone] =
        [removed(&there, dir, "there").await, removed(&away, dir, "away").await, removed(&gone, dir, "gone").await];
    drop(gone);
    sleep(10 * MINUTE).await;
    drop(away);
    sleep(ORPHANS_YIELD_AFTER - 11 * MINUTE).await;
    assert!(is_there(&there, of_gone).await, "it may come back");
    sleep(2 * MINUTE).await;
    assert!(!is_there(&there, of_gone).await, "it was away for a quarter of an hour");
    assert!(is_there(&there, of_away).await, "for six minutes");
    sleep(10 * MINUTE).await;
    assert!(!is_there(&there, of_away).await);
    assert!(is_there(&there, of_there).await, "it has a connection, and says nothing");
}

#[tokio::test(start_paused = true)]
async fn how_long_there_was_no_server_is_nobodys_absence() {
    let mut world = World::new();
    world.content.set_disk_size(DISK);
    let dir = world.root().await;
    let (late, gone) = (world.client().await, world.client().await);
    let (of_late, of_gone) = (removed(&late, dir, "late").await, removed(&gone, dir, "gone").await);
    let id = late.id;
    drop((late, gone));
    // What the old one goes on doing is done to a store of its own, and to contents that these have none of.
    world.restart(TERM);
    sleep(ORPHANS_YIELD_AFTER - MINUTE).await;
    let late = world.life(id, 1, 0, 2).await;
    assert!(is_there(&late, of_late).await && is_there(&late, of_gone).await);
    sleep(2 * MINUTE).await;
    assert!(!is_there(&late, of_gone).await, "the server has waited as long for it as it was to");
    assert!(is_there(&late, of_late).await);
}
