//! What is kept for somebody's convenience gives way.

use std::time::Duration;

use bytes::Bytes;
use larder_protocol::attr::{Attr, Credential, SetAttr};
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::ClientId;
use larder_protocol::payload::Payload;
use larder_protocol::service::file::{Op, Query, QueryReply, StageRequest, WriteRequest};

use super::reclaim::KEPT_WHEN_FULL;
use super::store_tests::{at_rest, bytes, scratch, store, whole};
use super::tests::{World, root};
use crate::volume::Durability;
use crate::volume::meta::Metadata;

const MIB: u64 = 1 << 20;

/// A disk with room for three files of 1 MiB, of which the first is there.
async fn small_disk(durability: Durability) -> World {
    let mut world = World::new(1, durability).await;
    store(&mut world, 0, whole(&bytes(MIB, 0)), None).await.unwrap();
    world.model[0] = bytes(MIB, 0).to_vec();
    at_rest(&world).await;
    // 4 MiB are the reserve.
    world.content.set_disk_size(7 * MIB + 1);
    world
}

async fn fetch_copy(world: &World, file: usize) -> Result<(Bytes, Attr), ErrorCode> {
    let query = Query::Fetch { fid: world.fids[file], offset: 0, len: 9, version: None, copy: true };
    match world.volume.query(&Credential::root(), query).await? {
        QueryReply::Data { data, attr } => Ok((data.0, attr)),
        other => panic!("{other:?}"),
    }
}

/// Somebody who was cut off in a store.
async fn stage_of_another(world: &World, file: usize) -> Result<(), ErrorCode> {
    let data = Payload(bytes(MIB, 9));
    let request = StageRequest { fid: world.fids[file], stage: 1, first: true, offset: 0, data };
    world.volume.stage(&root(), ClientId(2), request).await
}

#[tokio::test(start_paused = true)]
async fn copies_of_a_removed_file_go_with_it() {
    for durability in [Durability::Power, Durability::Process] {
        let mut world = small_disk(durability).await;
        fetch_copy(&world, 0).await.unwrap();
        stage_of_another(&world, 0).await.unwrap();
        assert_eq!(scratch(&world).len(), 2);
        world.remove(0).await;
        assert_eq!(stage_of_another(&world, 0).await, Err(ErrorCode::Stale));
        at_rest(&world).await;
    }
}

/// What needs room.
#[derive(Clone, Copy, Debug)]
enum Take {
    Store,
    Stage,
    Write,
    Fetch,
}

impl Take {
    const ALL: [Take; 4] = [Take::Store, Take::Stage, Take::Write, Take::Fetch];

    async fn take(self, world: &mut World) -> Result<(), ErrorCode> {
        let data = bytes(MIB / 2, 2);
        match self {
            Take::Store => store(world, 2, whole(&data), None).await.map(drop),
            Take::Stage => world.stage(2, 1, true, 0, data).await,
            Take::Write => {
                let request = WriteRequest { fid: world.fids[2], offset: 0, data: Payload(data), stable: false };
                world.volume.write(&root(), request).await.map(drop)
            }
            Take::Fetch => {
                // Another version than the one that there is a copy of.
                let set = SetAttr { size: Some(MIB - 1), ..SetAttr::default() };
                world.op(Op::Setattr { fid: world.fids[0], set, open: false }).await?;
                fetch_copy(world, 0).await.map(drop)
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_nobody_uses_gives_way_on_a_full_disk() {
    for take in Take::ALL {
        for is_idle in [false, true] {
            let mut world = small_disk(Durability::Power).await;
            fetch_copy(&world, 0).await.unwrap();
            stage_of_another(&world, 1).await.unwrap();
            world.content.set_disk_size(7 * MIB);
            if is_idle {
                tokio::time::sleep(KEPT_WHEN_FULL).await;
            }
            // As long as it may be used it stays.
            let expected = if is_idle { Ok(()) } else { Err(ErrorCode::NoSpace) };
            assert_eq!(take.take(&mut world).await, expected, "{take:?}, idle: {is_idle}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_being_removed_makes_room() {
    for durability in [Durability::Power, Durability::Process] {
        for take in [Take::Store, Take::Stage, Take::Write] {
            let mut world = small_disk(durability).await;
            for file in 1..3 {
                store(&mut world, file, whole(&bytes(MIB, 1)), None).await.unwrap();
            }
            world.content.set_disk_size(7 * MIB);
            // A reader is in the way of the removal, for a while.
            let gates = world.volume.data.gates.clone();
            let reader = gates.shared(world.fids[0].vnode).await;
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_secs(3)).await;
                drop(reader);
            });
            world.remove(0).await;
            let begin = tokio::time::Instant::now();
            assert_eq!(take.take(&mut world).await, Ok(()), "{take:?} under {durability:?}");
            assert!(begin.elapsed() < Duration::from_secs(4));
            // Without any hope it does not wait.
            let begin = tokio::time::Instant::now();
            assert_eq!(store(&mut world, 1, whole(&bytes(3 * MIB, 1)), None).await, Err(ErrorCode::NoSpace));
            assert!(begin.elapsed() < Duration::from_secs(1));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_removed_for_doubt_goes_when_that_ends() {
    let mut world = World::new(1, Durability::Power).await;
    world.meta.doubt_commit(1, false);
    assert_eq!(store(&mut world, 0, whole(&bytes(MIB, 1)), None).await, Err(ErrorCode::Io));
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(world.meta.is_in_doubt());
    assert_eq!(scratch(&world).len(), 1);
    store(&mut world, 1, whole(&bytes(5, 1)), None).await.unwrap();
    assert!(!world.meta.is_in_doubt());
    at_rest(&world).await;
}
