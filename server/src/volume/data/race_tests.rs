//! Contents when something fails half-way or comes in between: one test for each way that went wrong.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use larder_protocol::attr::SetAttr;
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::{ClientId, OpId, VolumeId};
use larder_protocol::name::Name;
use larder_protocol::runtime::{SharedRuntime, SystemRuntime};
use larder_protocol::service::file::{CreateHow, Op, OpReply, Query, RenameHow};

use super::dirty::DirtyFile;
use super::tests::{World, open, root};
use crate::volume::content::ContentId;
use crate::volume::content::memory::MemoryContent;
use crate::volume::meta::memory::MemoryMetadata;
use crate::volume::record::{BLOCK, DirtyRecord, INLINE_MAX};
use crate::volume::{Durability, Volume, prepare};

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_failed_copy_leaves_the_target_as_it_was() {
    let mut world = World::new(1, Durability::Power).await;
    let (source, target) = (Bytes::from(vec![5; 3 * BLOCK as usize]), Bytes::from(vec![6; 100_000]));
    world.write(0, 0, source, true).await;
    world.write(1, 0, target, true).await;
    let (from, to) = (world.fids[0], world.fids[1]);
    world.content.fail_next_sync();
    let op = Op::CopyRange { from, from_offset: 0, to, to_offset: 90_000, len: 3 * BLOCK };
    assert_eq!(world.op(op).await, Err(ErrorCode::Io));
    assert_eq!(world.attr(1).await.size, 100_000);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(world.volume.data.dirty.get(to.vnode).is_none(), "settled");
    let set = SetAttr { size: Some(3 * BLOCK), ..SetAttr::default() };
    world.op(Op::Setattr { fid: to, set, open: false }).await.unwrap();
    let behind = world.read(1, 100_000, 1 << 20).await.unwrap();
    assert!(behind.iter().all(|byte| *byte == 0), "nothing shows behind the old end");
}

#[tokio::test(start_paused = true)]
async fn emptying_a_name_leaves_the_file_that_had_it_alone() {
    let mut world = World::new(1, Durability::Power).await;
    let data = Bytes::from(vec![9; 2 * INLINE_MAX as usize]);
    world.write(0, 0, data.clone(), false).await;
    world.model[0] = data.to_vec();
    let dir = world.volume.root();
    let how = CreateHow::Open { access: 2, truncate: true };
    let create = Op::Create { dir, name: name("file0"), mode: 0o644, umask: 0, how };
    let rename = Op::Rename {
        from_dir: dir,
        from_name: name("file0"),
        to_dir: dir,
        to_name: name("elsewhere"),
        how: RenameHow::Replace,
        keep: false,
    };
    // The create finds the old file and waits for its gate, which is ours; meanwhile the name goes.
    let pass = world.volume.data.gates.alone(world.fids[0].vnode).await;
    let volume = Arc::clone(&world.volume);
    let id = OpId { client: ClientId(2), incarnation: 1, slot: 0, seq: 1 };
    let creating = tokio::spawn(async move { volume.mutate(&root(), id, create).await });
    tokio::time::sleep(Duration::from_millis(5)).await;
    world.op(rename).await.unwrap();
    drop(pass);
    let created = creating.await.unwrap().unwrap().reply;
    assert!(matches!(created, OpReply::Entry { created: true, .. }));
    world.check(0, "after its old name was taken").await;
    world.commit(0).await;
    world.crash(true, 5);
    world.check(0, "after a power cut").await;
}

#[tokio::test(start_paused = true)]
async fn a_dirty_file_that_is_gone_is_forgotten_and_changes_no_verifier() {
    let mut world = World::new(1, Durability::Power).await;
    let vnode = world.fids[0].vnode;
    let before = world.volume.data.verifier();
    let remove = Op::Remove { dir: world.volume.root(), name: name("file0"), keep: false };
    world.op(remove).await.unwrap();
    // As if a write had made it dirty while it was being removed.
    let id = ContentId { vnode, version: 1 };
    world.volume.data.dirty.insert(DirtyFile::new(id, DirtyRecord::InPlace, Duration::ZERO));
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(world.volume.data.verifier(), before);
    assert!(world.volume.data.dirty.get(vnode).is_none(), "it is forgotten");
}

/// On real threads: nobody who looks at the header makes a mutation wait for ever.
#[test]
fn mutations_end_while_others_look_and_fail() {
    let executor = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    for durability in [Durability::Power, Durability::Process] {
        let runtime: SharedRuntime = Arc::new(SystemRuntime::new(executor.handle().clone()));
        let meta = Arc::new(MemoryMetadata::new());
        prepare(&*meta, VolumeId(7), "test", runtime.wall()).unwrap();
        let content = Arc::new(MemoryContent::new());
        executor.block_on(async {
            let volume = open(&meta, &content, durability, 1, &runtime);
            let racers: Vec<_> = (0..8).map(|client| tokio::spawn(racer(Arc::clone(&volume), client))).collect();
            for racer in racers {
                racer.await.unwrap();
            }
        });
    }
}

async fn racer(volume: Arc<Volume>, client: u128) {
    for seq in 1..=300 {
        let id = OpId { client: ClientId(client), incarnation: 1, slot: 0, seq };
        // Most of them lose the race for the name.
        let op = Op::Mkdir { dir: volume.root(), name: name(&format!("{}", seq % 50)), mode: 0o755, umask: 0 };
        let done = tokio::time::timeout(Duration::from_secs(20), volume.mutate(&root(), id, op)).await;
        assert!(done.is_ok(), "operation {seq} of client {client} is stuck");
        volume.query(&root(), Query::Statfs { fid: volume.root() }).await.unwrap();
    }
}
