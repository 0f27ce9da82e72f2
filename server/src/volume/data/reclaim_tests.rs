//! What is kept for somebody's convenience gives way.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use larder_protocol::attr::{Attr, Credential, SetAttr};
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::ClientId;
use larder_protocol::payload::Payload;
use larder_protocol::service::file::{
    AllocateHow, NewContents, Op, OpReply, Query, QueryReply, StageRequest, WriteRequest, XattrHow,
};

use super::gates::Pass;
use super::reclaim::KEPT_WHEN_FULL;
use super::reclaim::WITHOUT_SLOTS;
use super::stage::StageKey;
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

/// A disk that three files have filled, of which the first is being removed; a reader is in the way of that.
async fn removal_held_up(durability: Durability) -> (World, Pass) {
    let mut world = small_disk(durability).await;
    for file in 1..3 {
        store(&mut world, file, whole(&bytes(MIB, 1)), None).await.unwrap();
    }
    world.content.set_disk_size(7 * MIB);
    let reader = world.volume.data.gates.shared(world.fids[0].vnode).await;
    world.remove(0).await;
    (world, reader)
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

fn stage_key(world: &World, file: usize) -> StageKey {
    StageKey { client: ClientId(2), fid: world.fids[file], number: 1 }
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
                let request = WriteRequest::one(world.fids[2], 0, Payload(data), false);
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
            let (mut world, reader) = removal_held_up(durability).await;
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_secs(25)).await;
                drop(reader);
            });
            let begin = tokio::time::Instant::now();
            assert_eq!(take.take(&mut world).await, Ok(()), "{take:?} under {durability:?}");
            assert!(begin.elapsed() < Duration::from_secs(26));
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

/// Whether something ends within a moment, with what.
async fn at_once<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(1), work).await.expect("it waits")
}

#[tokio::test(start_paused = true)]
async fn what_another_drops_is_waited_for() {
    let mut world = small_disk(Durability::Power).await;
    stage_of_another(&world, 1).await.unwrap();
    store(&mut world, 1, whole(&bytes(MIB, 1)), None).await.unwrap();
    world.content.set_disk_size(7 * MIB);
    tokio::time::sleep(KEPT_WHEN_FULL).await;
    let (volume, cred) = (world.volume.clone(), root());
    let request = |file: usize| WriteRequest::one(world.fids[file], 0, Payload(bytes(9, 2)), false);
    let (one, other) = (request(2), request(0));
    // The first one takes out what is idle, and the second one finds nothing more to take out.
    let both = tokio::join!(volume.write(&cred, one), volume.write(&cred, other));
    assert_eq!((both.0.map(drop), both.1.map(drop)), (Ok(()), Ok(())));
}

#[tokio::test(start_paused = true)]
async fn who_cannot_be_helped_is_told_at_once_and_costs_others_nothing() {
    let mut world = small_disk(Durability::Power).await;
    world.content.set_disk_size(8 * MIB);
    stage_of_another(&world, 1).await.unwrap();
    fetch_copy(&world, 0).await.unwrap();
    tokio::time::sleep(KEPT_WHEN_FULL).await;
    // A removal that does not end.
    store(&mut world, 2, whole(&bytes(100_000, 1)), None).await.unwrap();
    let reader = world.volume.data.gates.shared(world.fids[2].vnode).await;
    world.remove(2).await;
    // More than the disk has.
    let (fid, how) = (world.fids[1], AllocateHow::Reserve);
    let op = Op::Allocate { fid, offset: 0, len: 4 * MIB, how };
    assert_eq!(at_once(world.op(op)).await.map(drop), Err(ErrorCode::NoSpace));
    // A limit that has nothing to do with the disk, which has room.
    world.content.set_disk_size(100 * MIB);
    let mut set = async |number: usize| {
        let name = Bytes::from(format!("user.{number}"));
        let op = Op::Setxattr { fid, name, value: Payload(bytes(9, 1)), how: XattrHow::Set };
        at_once(world.op(op)).await.map(drop)
    };
    let mut number = 0;
    let refused = loop {
        number += 1;
        if let Err(code) = set(number).await {
            break code;
        }
    };
    assert_eq!(refused, ErrorCode::NoSpace);
    // Neither the stage nor the copy has gone.
    drop(reader);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(scratch(&world).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_ever_for_room() {
    let (mut world, reader) = removal_held_up(Durability::Power).await;
    let begin = tokio::time::Instant::now();
    assert_eq!(Take::Write.take(&mut world).await, Err(ErrorCode::NoSpace));
    assert!(begin.elapsed() < Duration::from_secs(40));
    // Nor for what somebody works with.
    drop(reader);
    at_rest(&world).await;
    world.content.set_disk_size(7 * MIB + 1);
    stage_of_another(&world, 1).await.unwrap();
    let stage = world.volume.data.stages.find(stage_key(&world, 1), Duration::ZERO).unwrap();
    let working = stage.state.lock().await;
    world.content.set_disk_size(7 * MIB);
    tokio::time::sleep(KEPT_WHEN_FULL).await;
    assert_eq!(at_once(Take::Write.take(&mut world)).await, Err(ErrorCode::NoSpace));
    drop(working);
    assert_eq!(Take::Write.take(&mut world).await, Ok(()), "it gives way when nobody does");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_lost_its_stage_on_a_full_disk_is_told_so_when_there_is_room() {
    let mut world = small_disk(Durability::Power).await;
    world.stage(2, 1, true, 0, bytes(MIB, 3)).await.unwrap();
    stage_of_another(&world, 1).await.unwrap();
    world.content.set_disk_size(7 * MIB);
    tokio::time::sleep(KEPT_WHEN_FULL).await;
    // The disk refuses to cut it to its size; others give way meanwhile.
    world.content.fail_next_write();
    let staged = NewContents::Staged { stage: 1, size: MIB - 1 };
    assert_eq!(store(&mut world, 2, staged.clone(), None).await, Err(ErrorCode::NotStaged));
    world.stage(2, 1, true, 0, bytes(MIB, 3)).await.unwrap();
    assert!(store(&mut world, 2, staged, None).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_room_when_the_server_ends() {
    let (mut world, reader) = removal_held_up(Durability::Power).await;
    let volume = world.volume.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(5)).await;
        volume.hurry();
    });
    let begin = tokio::time::Instant::now();
    // Its client asks again, when there is a server.
    assert_eq!(Take::Write.take(&mut world).await, Err(ErrorCode::Unavailable));
    assert!((5..6).contains(&begin.elapsed().as_secs()));
    drop(reader);
}

#[tokio::test(start_paused = true)]
async fn only_so_many_wait_for_room() {
    let (world, reader) = removal_held_up(Durability::Power).await;
    let cred = root();
    let write = || {
        let request = WriteRequest::one(world.fids[2], 0, Payload(bytes(9, 2)), false);
        world.volume.write(&cred, request)
    };
    let mut waiting: futures::stream::FuturesUnordered<_> = (0..WITHOUT_SLOTS + 8).map(|_| write()).collect();
    let mut refused = 0;
    while let Ok(Some(done)) = tokio::time::timeout(Duration::from_secs(1), waiting.next()).await {
        assert_eq!(done.map(drop), Err(ErrorCode::NoSpace));
        refused += 1;
    }
    assert_eq!((refused, waiting.len()), (8, WITHOUT_SLOTS));
    drop(reader);
    assert!(waiting.all(|done| async move { done.is_ok() }).await);
}

#[tokio::test(start_paused = true)]
async fn what_was_refused_room_happens_once() {
    let (mut world, reader) = removal_held_up(Durability::Power).await;
    let append = Op::Append { fid: world.fids[1], data: Payload(bytes(100, 2)) };
    let (done, ()) = tokio::join!(world.op(append), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        drop(reader);
    });
    let Ok(OpReply::Appended { offset, .. }) = done else { panic!("{done:?}") };
    assert_eq!((offset, world.attr(1).await.size), (MIB, MIB + 100));
}

#[tokio::test(start_paused = true)]
async fn what_is_committed_is_not_tried_again() {
    let mut world = small_disk(Durability::Power).await;
    stage_of_another(&world, 1).await.unwrap();
    tokio::time::sleep(KEPT_WHEN_FULL).await;
    world.content.set_disk_size(6 * MIB);
    let set = SetAttr { size: Some(MIB / 2), ..SetAttr::default() };
    let before = world.attr(0).await.change;
    world.content.fail_next_write();
    let cut = Op::Setattr { fid: world.fids[0], set, open: false };
    assert_eq!(world.op(cut).await.map(drop), Err(ErrorCode::Io));
    assert_ne!(world.attr(0).await.change, before, "it has happened");
}
