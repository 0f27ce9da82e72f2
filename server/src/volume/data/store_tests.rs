//! Staging and storing: every kind of contents, what goes wrong, and power cuts at every step.

use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use larder_protocol::attr::{Attr, Credential, SETGID, SETUID, SetAttr};
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::ClientId;
use larder_protocol::limits::{MAX_STAGES, STAGE_KEPT};
use larder_protocol::payload::Payload;
use larder_protocol::service::file::{NewContents, Op, OpReply, StageRequest, WriteRequest};

use super::tests::{World, root};
use crate::volume::Durability;
use crate::volume::content::{Content, ContentId};
use crate::volume::keys::{self, Table};
use crate::volume::meta::{Batch, Metadata};
use crate::volume::record::{BLOCK, Body, INLINE_MAX};
use crate::volume::view::{Records, Verified};

/// Bytes of which no two blocks are alike.
pub(super) fn bytes(len: u64, seed: u64) -> Bytes {
    (0..len).map(|at| (at / 251 + at * 7 + seed * 31) as u8).collect()
}

pub(super) async fn store(
    world: &mut World,
    file: usize,
    contents: NewContents,
    base: Option<u64>,
) -> Result<Attr, ErrorCode> {
    let fid = world.fids[file];
    match world.op(Op::Store { fid, contents, base }).await? {
        OpReply::Attr(change) => Ok(change.attr),
        other => panic!("{other:?}"),
    }
}

pub(super) fn whole(data: &Bytes) -> NewContents {
    NewContents::Whole(Payload(data.clone()))
}

/// Content files that belong to no record.
pub(super) fn scratch(world: &World) -> Vec<ContentId> {
    let snapshot = world.meta.snapshot().unwrap();
    let view = Verified(&*snapshot);
    let mut found = Vec::new();
    let mut each = |id: ContentId| {
        let record = view.vnode(id.vnode).unwrap();
        if record.is_none_or(|record| record.body != Body::Content { version: id.version }) {
            found.push(id);
        }
    };
    world.content.list(&mut each, &mut |strange| panic!("{strange}")).unwrap();
    found
}

fn intents(world: &World) -> usize {
    let snapshot = world.meta.snapshot().unwrap();
    Verified(&*snapshot).with_prefix(Table::Intents, &[], usize::MAX).unwrap().len()
}

/// Nothing is left to be done, and nothing lies about.
pub(super) async fn at_rest(world: &World) {
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(scratch(world), []);
    assert_eq!(intents(world), 0);
    assert!(!world.volume.data.removals.is_any());
    assert!(world.volume.data.undecided.lock().is_empty());
    for fid in &world.fids {
        assert!(world.volume.data.dirty.get(fid.vnode).is_none(), "settled");
    }
}

#[tokio::test(start_paused = true)]
async fn whole_contents_of_every_size_are_stored() {
    for durability in [Durability::Power, Durability::Process] {
        let mut world = World::new(1, durability).await;
        for size in [5, 0, INLINE_MAX, INLINE_MAX + 1, 3 * BLOCK, 1 << 20, 3 * BLOCK + 1, 0, 2 * BLOCK, 7] {
            let data = bytes(size, size);
            let before = world.attr(0).await;
            let attr = store(&mut world, 0, whole(&data), Some(before.data_version)).await.unwrap();
            assert_eq!((attr.size, attr.clone()), (size, world.attr(0).await));
            assert_ne!(attr.change, before.change);
            world.model[0] = data.to_vec();
            world.check(0, "after a store").await;
            assert!(world.volume.data.dirty.get(world.fids[0].vnode).is_none(), "it is settled at once");
            world.crash(durability == Durability::Power, size);
            assert_eq!(world.attr(0).await, attr, "there was nothing to recover");
            world.check(0, "after a crash").await;
            at_rest(&world).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn staged_contents_of_every_shape_are_stored() {
    let mut world = World::new(1, Durability::Power).await;
    let block = BLOCK as usize;
    // Pieces by offset and length, and the size.
    let shapes: [(&[(u64, usize)], u64); 9] = [
        (&[(0, 0)], 0),
        (&[(0, 5)], 5),
        (&[(0, 100)], INLINE_MAX),
        (&[(0, 0)], 3 * BLOCK + 5),
        (&[(0, block), (BLOCK, block), (2 * BLOCK, 17)], 2 * BLOCK + 17),
        (&[(2 * BLOCK, 17), (0, block), (BLOCK, block)], 2 * BLOCK + 17),
        (&[(BLOCK / 2, block), (5 * BLOCK + 9, 1)], 9 * BLOCK),
        (&[(0, 5 * block), (10 * BLOCK, block)], 3 * BLOCK + 100),
        (&[(0, 5 * block)], 100),
    ];
    for (number, (pieces, size)) in shapes.into_iter().enumerate() {
        let mut model = Vec::new();
        for (index, &(offset, len)) in pieces.iter().enumerate() {
            let data = bytes(len as u64, number as u64);
            super::splice(&mut model, offset, &data);
            world.stage(0, number as u64, index == 0, offset, data).await.unwrap();
        }
        world.check(0, "while the next contents are staged").await;
        model.resize(size as usize, 0);
        let contents = NewContents::Staged { stage: number as u64, size };
        store(&mut world, 0, contents.clone(), None).await.unwrap();
        world.model[0] = model;
        world.check(0, "after a store").await;
        assert_eq!(store(&mut world, 0, contents, None).await, Err(ErrorCode::NotStaged), "it was consumed");
        world.crash(true, number as u64);
        world.check(0, "after a power cut").await;
        at_rest(&world).await;
    }
}

#[tokio::test(start_paused = true)]
async fn stored_contents_have_checksums() {
    let mut world = World::new(1, Durability::Power).await;
    store(&mut world, 0, whole(&bytes(3 * BLOCK + 9, 1)), None).await.unwrap();
    for piece in [2, 0, 1] {
        world.stage(1, 1, piece == 2, piece * BLOCK, bytes(BLOCK + 9, piece)).await.unwrap();
    }
    store(&mut world, 1, NewContents::Staged { stage: 1, size: 3 * BLOCK + 9 }, None).await.unwrap();
    for file in 0..2 {
        for block in 0..4 {
            let at = block * BLOCK + 3;
            assert!(world.read(file, at, 1).await.is_ok());
            world.content.flip_bit(world.fids[file].vnode, at);
            assert_eq!(world.read(file, at, 1).await, Err(ErrorCode::Io), "block {block} of {file}");
            world.content.flip_bit(world.fids[file].vnode, at);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn pieces_come_in_any_order_and_more_than_once() {
    let mut world = World::new(1, Durability::Power).await;
    let data = bytes(5 * BLOCK + 100, 3);
    let piece = |at: u64| data.slice((at * BLOCK) as usize..data.len().min(((at + 1) * BLOCK) as usize));
    for (at, first) in [(3, true), (5, false), (0, false), (3, true), (4, false), (1, false), (3, true), (2, false)] {
        world.stage(0, 9, first, at * BLOCK, piece(at)).await.unwrap();
    }
    // Nor does a second first piece, or one that overlaps, begin anything anew.
    world.stage(0, 9, true, 10, data.slice(10..100)).await.unwrap();
    store(&mut world, 0, NewContents::Staged { stage: 9, size: data.len() as u64 }, None).await.unwrap();
    world.model[0] = data.to_vec();
    world.check(0, "after a store").await;
    world.crash(true, 7);
    world.check(0, "after a power cut").await;
}

#[tokio::test(start_paused = true)]
async fn what_is_not_staged_is_said_to_be_so() {
    let mut world = World::new(1, Durability::Power).await;
    let data = bytes(2 * BLOCK, 1);
    let staged = NewContents::Staged { stage: 1, size: 2 * BLOCK };
    let not_staged = Err(ErrorCode::NotStaged);
    assert_eq!(world.stage(0, 1, false, 0, data.clone()).await, not_staged);
    assert_eq!(store(&mut world, 0, staged.clone(), None).await, Err(ErrorCode::NotStaged));
    world.stage(0, 1, true, 0, data.clone()).await.unwrap();
    assert_eq!(world.stage(1, 1, false, 0, data.clone()).await, not_staged, "another file's");
    assert_eq!(world.stage(0, 2, false, 0, data.clone()).await, not_staged, "another number");
    let request = StageRequest { fid: world.fids[0], stage: 1, first: false, offset: 0, data: Payload(data.clone()) };
    assert_eq!(world.volume.stage(&root(), ClientId(2), request).await, not_staged, "another client's");
    world.crash(true, 1);
    assert_eq!(world.stage(0, 1, false, 0, data.clone()).await, not_staged, "after a power cut");
    assert_eq!(store(&mut world, 0, staged.clone(), None).await, Err(ErrorCode::NotStaged));
    at_rest(&world).await;
    // Left alone for too long.
    world.stage(0, 1, true, 0, data.clone()).await.unwrap();
    tokio::time::sleep(STAGE_KEPT / 2).await;
    world.stage(0, 1, false, BLOCK, data.clone()).await.unwrap();
    tokio::time::sleep(STAGE_KEPT - Duration::from_secs(10)).await;
    world.stage(0, 1, false, BLOCK, data.clone()).await.unwrap();
    tokio::time::sleep(STAGE_KEPT + Duration::from_secs(10)).await;
    assert_eq!(world.stage(0, 1, false, BLOCK, data.clone()).await, not_staged, "left alone");
    at_rest(&world).await;
    // A clean end leaves nothing to be recovered.
    world.stage(0, 1, true, 0, data.clone()).await.unwrap();
    world.volume.close().await.unwrap();
    assert_eq!(scratch(&world), []);
    // A client's end.
    world.crash(false, 0);
    world.stage(0, 1, true, 0, data.clone()).await.unwrap();
    world.volume.client_gone(ClientId(2), None).await.unwrap();
    world.stage(0, 1, false, 0, data.clone()).await.unwrap();
    world.volume.client_gone(ClientId(1), Some(2)).await.unwrap();
    assert_eq!(world.stage(0, 1, false, 0, data).await, not_staged, "a newer life of the client");
    at_rest(&world).await;
}

#[tokio::test(start_paused = true)]
async fn the_oldest_stage_goes_when_a_client_has_too_many() {
    let mut world = World::new(1, Durability::Power).await;
    let data = bytes(BLOCK, 1);
    for number in 0..MAX_STAGES as u64 {
        world.stage(0, number, true, 0, data.clone()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    world.stage(0, 0, false, 0, data.clone()).await.unwrap();
    let request = StageRequest { fid: world.fids[0], stage: 0, first: true, offset: 0, data: Payload(data.clone()) };
    world.volume.stage(&root(), ClientId(2), request).await.unwrap();
    world.stage(0, 1000, true, 0, data.clone()).await.unwrap();
    assert_eq!(world.stage(0, 1, false, 0, data.clone()).await, Err(ErrorCode::NotStaged));
    for number in [0, 2, 1000] {
        world.stage(0, number, false, 0, data.clone()).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(scratch(&world).len(), MAX_STAGES + 1);
    store(&mut world, 0, NewContents::Staged { stage: 0, size: BLOCK }, None).await.unwrap();
    world.crash(true, 3);
    at_rest(&world).await;
}

#[tokio::test(start_paused = true)]
async fn a_conflict_leaves_the_file_and_what_is_staged() {
    let mut world = World::new(1, Durability::Power).await;
    let (old, new) = (bytes(2 * BLOCK, 1), bytes(3 * BLOCK, 2));
    let base = world.attr(0).await.data_version;
    world.write(0, 0, old.clone(), false).await;
    world.model[0] = old.to_vec();
    world.stage(0, 1, true, 0, new.clone()).await.unwrap();
    let staged = NewContents::Staged { stage: 1, size: 3 * BLOCK };
    for contents in [whole(&new.slice(..5)), whole(&new), staged.clone()] {
        assert_eq!(store(&mut world, 0, contents, Some(base)).await, Err(ErrorCode::Conflict));
    }
    world.check(0, "after conflicts").await;
    let base = world.attr(0).await.data_version;
    store(&mut world, 0, staged, Some(base)).await.unwrap();
    world.model[0] = new.to_vec();
    world.check(0, "after a store").await;
    at_rest(&world).await;
}

#[tokio::test(start_paused = true)]
async fn a_conflict_is_decided_after_all_waiting() {
    let world = World::new(1, Durability::Power).await;
    let base = world.attr(0).await.data_version;
    let pass = world.volume.data.gates.alone(world.fids[0].vnode).await;
    let (volume, fid) = (Arc::clone(&world.volume), world.fids[0]);
    let id = larder_protocol::ids::OpId { client: ClientId(2), incarnation: 1, slot: 0, seq: 1 };
    let op = Op::Store { fid, contents: whole(&bytes(2 * BLOCK, 1)), base: Some(base) };
    let storing = tokio::spawn(async move { volume.mutate(&root(), id, op).await });
    tokio::time::sleep(Duration::from_millis(5)).await;
    // Another change of the file comes between, whose place at the gate is this test's.
    let change = world.volume.data.writer.internal(move |cx| {
        let mut record = cx.resolve(fid)?;
        cx.touch_data(fid.vnode, &mut record)?;
        Ok(())
    });
    change.await.unwrap();
    drop(pass);
    assert_eq!(storing.await.unwrap().map(|done| done.sequence), Err(ErrorCode::Conflict));
    world.check(0, "after a conflict").await;
    at_rest(&world).await;
}

#[tokio::test(start_paused = true)]
async fn a_store_needs_permission_and_takes_privileges_away() {
    let mut world = World::new(1, Durability::Power).await;
    let user = Credential { uid: 1000, gid: 1000, groups: Vec::new() };
    let fid = world.fids[0];
    let data = bytes(2 * BLOCK, 1);
    let id = |seq| larder_protocol::ids::OpId { client: ClientId(5), incarnation: 1, slot: 0, seq };
    let op = |contents| Op::Store { fid, contents, base: None };
    let piece = |first| StageRequest { fid, stage: 1, first, offset: 0, data: Payload(data.clone()) };
    let mut seq = 0;
    for contents in [whole(&data), whole(&data.slice(..3)), NewContents::Staged { stage: 1, size: 3 }] {
        seq += 1;
        let refused = world.volume.mutate(&user, id(seq), op(contents)).await;
        assert_eq!(refused.map(|done| done.sequence), Err(ErrorCode::AccessDenied));
    }
    assert_eq!(world.volume.stage(&user, ClientId(5), piece(true)).await, Err(ErrorCode::AccessDenied));
    for contents in [whole(&data), whole(&data.slice(..3)), NewContents::Staged { stage: 1, size: 2 * BLOCK }] {
        let set = SetAttr { mode: Some(SETUID | SETGID | 0o777), ..SetAttr::default() };
        world.op(Op::Setattr { fid, set, open: false }).await.unwrap();
        world.volume.stage(&user, ClientId(5), piece(true)).await.unwrap();
        seq += 1;
        world.volume.mutate(&user, id(seq), op(contents)).await.unwrap();
        assert_eq!(world.attr(0).await.mode, 0o777);
    }
    let directory = Op::Store { fid: world.volume.root(), contents: whole(&data), base: None };
    assert_eq!(world.op(directory).await, Err(ErrorCode::IsDirectory));
}

#[tokio::test(start_paused = true)]
async fn a_store_supersedes_what_was_written_in_place() {
    for size in [5, 2 * BLOCK] {
        let mut world = World::new(1, Durability::Power).await;
        world.write(0, 0, bytes(4 * BLOCK, 1), false).await;
        let data = bytes(size, 2);
        store(&mut world, 0, whole(&data), None).await.unwrap();
        world.model[0] = data.to_vec();
        world.check(0, "after a store").await;
        let verifier = world.volume.data.verifier();
        let committed = world.volume.commit(&root(), world.fids[0]).await.unwrap();
        assert_eq!((committed.verifier, committed.attr), (verifier, world.attr(0).await));
        at_rest(&world).await;
        assert_eq!(world.volume.data.verifier(), verifier, "no sync failed");
        world.write(0, 1, Bytes::from_static(b"and on"), true).await;
        world.put(0, 1, b"and on");
        world.crash(true, 11);
        world.check(0, "after a power cut").await;
        at_rest(&world).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_leaves_the_old_contents() {
    let mut world = World::new(1, Durability::Power).await;
    let (old, new) = (bytes(2 * BLOCK, 1), bytes(3 * BLOCK, 2));
    store(&mut world, 0, whole(&old), None).await.unwrap();
    world.model[0] = old.to_vec();
    let staged = NewContents::Staged { stage: 1, size: 3 * BLOCK };
    world.content.fail_next_write();
    assert_eq!(store(&mut world, 0, whole(&new), None).await, Err(ErrorCode::NoSpace));
    world.content.fail_next_sync();
    assert_eq!(store(&mut world, 0, whole(&new), None).await, Err(ErrorCode::Io));
    at_rest(&world).await;
    world.check(0, "after failed stores").await;
    world.content.fail_next_write();
    assert_eq!(world.stage(0, 1, true, 0, new.clone()).await, Err(ErrorCode::NoSpace));
    world.stage(0, 1, true, 0, new.clone()).await.unwrap();
    world.content.fail_next_sync();
    assert_eq!(store(&mut world, 0, staged.clone(), None).await, Err(ErrorCode::Io));
    // After a failed sync nobody knows what is there.
    assert_eq!(store(&mut world, 0, staged.clone(), None).await, Err(ErrorCode::NotStaged));
    at_rest(&world).await;
    world.stage(0, 1, true, 0, new.clone()).await.unwrap();
    world.meta.fail_next_commit(crate::volume::error::StoreError::Engine("for a test".to_owned()));
    assert_eq!(store(&mut world, 0, staged.clone(), None).await, Err(ErrorCode::Io));
    world.check(0, "after a failed commit").await;
    store(&mut world, 0, staged, None).await.unwrap();
    world.model[0] = new.to_vec();
    world.check(0, "after a store").await;
    world.crash(true, 4);
    world.check(0, "after a power cut").await;
    at_rest(&world).await;
}

#[tokio::test(start_paused = true)]
async fn a_file_with_damaged_checksums_is_not_read_and_can_be_removed() {
    let mut world = World::new(1, Durability::Power).await;
    store(&mut world, 0, whole(&bytes(3 * BLOCK, 1)), None).await.unwrap();
    at_rest(&world).await;
    let key = keys::checksums(world.fids[0].vnode, 0);
    let mut row = world.meta.snapshot().unwrap().get(Table::Checksums, &key).unwrap().unwrap();
    row[1] ^= 1;
    let damage = Batch { changes: vec![(Table::Checksums, key, Some(row))] };
    world.meta.commit(world.volume.data.writer.header().sequence, &damage, true).unwrap();
    assert_eq!(world.read(0, 0, 1).await, Err(ErrorCode::Io));
    world.remove(0).await;
    at_rest(&world).await;
    let left = world.meta.snapshot().unwrap().range(Table::Checksums, Bound::Unbounded, Bound::Unbounded, 9).unwrap();
    assert_eq!(left, []);
}

/// A file with small contents `old` gets others by a commit that fails and may be in effect after the next start, which it
/// is if `survives`.
async fn replace_in_doubt(survives: bool, commits_before: usize, old: &Bytes, how: impl AsyncFn(&mut World)) -> World {
    let mut world = World::new(1, Durability::Power).await;
    store(&mut world, 0, whole(old), None).await.unwrap();
    world.model[0] = old.to_vec();
    tokio::time::sleep(Duration::from_secs(5)).await;
    world.meta.doubt_commit(commits_before, true);
    how(&mut world).await;
    assert!(world.meta.is_in_doubt());
    world.check(0, "before the restart").await;
    // All that can be tidied up is.
    tokio::time::sleep(STAGE_KEPT * 2).await;
    assert!(world.meta.is_in_doubt());
    world.volume.data.drop_scratch().await;
    world.restart(survives);
    world
}

#[tokio::test(start_paused = true)]
async fn what_a_failed_commit_may_have_made_contents_is_kept_until_the_next_start() {
    let new = bytes(3 * BLOCK, 2);
    for survives in [false, true] {
        for old in [bytes(5, 1), bytes(2 * BLOCK, 1)] {
            let mut world = replace_in_doubt(survives, 1, &old, async |world| {
                assert_eq!(store(world, 0, whole(&new), None).await, Err(ErrorCode::Io));
            })
            .await;
            if survives {
                world.model[0] = new.to_vec();
            }
            world.check(0, "after a store").await;
            at_rest(&world).await;

            let mut world = replace_in_doubt(survives, 1, &old, async |world| {
                world.stage(0, 1, true, 0, new.clone()).await.unwrap();
                let staged = NewContents::Staged { stage: 1, size: 3 * BLOCK };
                assert_eq!(store(world, 0, staged, None).await, Err(ErrorCode::Io));
            })
            .await;
            if survives {
                world.model[0] = new.to_vec();
            }
            world.check(0, "after a store of staged contents").await;
            at_rest(&world).await;
        }
        // Contents that move out of the metadata, for a write that never comes. That they are to be removed is committed
        // first.
        for commits_before in [0, 1, 2] {
            let world = replace_in_doubt(survives, commits_before, &bytes(5, 1), async |world| {
                let data = Payload(bytes(INLINE_MAX, 3));
                let request = WriteRequest::one(world.fids[0], BLOCK, data, false);
                assert_eq!(world.volume.write(&root(), request).await.map(|_| ()), Err(ErrorCode::Io));
            })
            .await;
            world.check(0, "after a write").await;
            at_rest(&world).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_an_append_in_doubt_has_written_is_kept_until_that_is_decided() {
    let append = async |world: &mut World, data: &Bytes| {
        world.op(Op::Append { fid: world.fids[0], data: Payload(data.clone()) }).await.map(|_| ())
    };
    let (old, more) = (bytes(2 * BLOCK + 5, 1), bytes(BLOCK, 2));
    for survives in [false, true] {
        // The first commit makes the file dirty, the second one has its new size.
        let mut world = replace_in_doubt(survives, 1, &old, async |world| {
            assert_eq!(append(world, &more).await, Err(ErrorCode::Io));
        })
        .await;
        if survives {
            world.model[0].extend_from_slice(&more);
        }
        world.check(0, "after an append").await;
        at_rest(&world).await;
        append(&mut world, &more).await.unwrap();
        world.model[0].extend_from_slice(&more);
        world.check(0, "after another append").await;
        at_rest(&world).await;
    }
    // Decided by the next commit: it has not happened, and what is written far behind leaves a hole.
    let mut world = World::new(1, Durability::Power).await;
    store(&mut world, 0, whole(&old), None).await.unwrap();
    world.model[0] = old.to_vec();
    world.meta.doubt_commit(1, false);
    assert_eq!(append(&mut world, &more).await, Err(ErrorCode::Io));
    world.check(0, "after an append that failed").await;
    let request = WriteRequest::one(world.fids[0], 5 * BLOCK, Payload(bytes(9, 3)), false);
    world.volume.write(&root(), request).await.unwrap();
    world.model[0].resize(5 * BLOCK as usize, 0);
    world.model[0].extend_from_slice(&bytes(9, 3));
    world.check(0, "after a write").await;
    at_rest(&world).await;
    world.check(0, "at rest").await;
}

#[tokio::test(start_paused = true)]
async fn what_was_staged_for_a_removed_file_goes() {
    let mut world = World::new(1, Durability::Power).await;
    world.stage(0, 1, true, 0, bytes(2 * BLOCK, 1)).await.unwrap();
    world.remove(0).await;
    let staged = NewContents::Staged { stage: 1, size: 2 * BLOCK };
    assert_eq!(store(&mut world, 0, staged, None).await, Err(ErrorCode::Stale));
    assert_eq!(world.stage(0, 1, false, 0, bytes(5, 1)).await, Err(ErrorCode::Stale));
    at_rest(&world).await;
}
