//! An operation sent again gets the answer of its one run, whatever happened to the first answer.

use larder_benches::seeds::in_virtual_time;
use std::sync::Arc;
use std::time::Duration;

use larder_protocol::error::ErrorCode;
use larder_protocol::ids::Fid;
use larder_protocol::payload::Payload;
use larder_protocol::runtime::Clocks;
use larder_protocol::service::file::{Op, OpReply, RenameHow};
use larder_server::volume::Durability;
use tokio::time::sleep;

use crate::machine::Disk;
use crate::raw::{CLIENT, Failed, Link};
use crate::registers::contents;
use crate::tree;
use crate::world::{World, name};

fn mkdir(dir: Fid, at: &str) -> Op {
    Op::Mkdir { dir, name: name(at), mode: 0o755, umask: 0 }
}

fn fid_of(reply: &OpReply) -> Fid {
    match reply {
        OpReply::Entry { attr, .. } => attr.fid,
        other => panic!("not an entry: {other:?}"),
    }
}

/// Operations each of which would fail, or do more, if it ran a second time.
fn once(root: Fid, file: Fid) -> Vec<Op> {
    let (from_name, to_name) = (name("dir"), name("moved"));
    vec![
        mkdir(root, "dir"),
        Op::Rename { from_dir: root, from_name, to_dir: root, to_name, how: RenameHow::Replace, keep: false },
        Op::Rmdir { dir: root, name: name("moved") },
        Op::Link { fid: file, dir: root, name: name("link") },
        Op::Append { fid: file, data: Payload(b"appended".as_slice().into()) },
        Op::Append { fid: file, data: Payload(vec![1; 20_000].into()) },
        Op::Remove { dir: root, name: name("link"), keep: false },
    ]
}

async fn world_with_file(durability: Durability, disk: Disk) -> (Arc<World>, Fid, Fid) {
    let world = World::new(1, durability, disk);
    let root = world.volume().root();
    let fid = world.file(root, "file").await;
    (world, root, fid)
}

#[test]
fn a_lost_answer_is_given_again_also_by_the_next_server_process() {
    for durability in [Durability::Power, Durability::Process] {
        in_virtual_time(async {
            let (world, root, file) = world_with_file(durability, Disk::Instant).await;
            let (mut link, mut generation) = (Link::greeted(&world, 1, 1).await, 1);
            for (seq, op) in (1..).zip(once(root, file)) {
                let first = link.mutate(seq, &op).await.unwrap();
                let replayed = world.server().stats().replayed;
                assert_eq!(link.mutate(seq, &op).await.unwrap(), first, "{op:?} on the same connection");
                generation += 1;
                link = Link::greeted(&world, 1, generation).await;
                assert_eq!(link.mutate(seq, &op).await.unwrap(), first, "{op:?} on the next connection");
                assert_eq!(world.server().stats().replayed, replayed + 2);
                let before = tree::read(&world.volume(), root).await;
                world.crash();
                world.start();
                link = Link::greeted(&world, 1, 1).await;
                generation = 1;
                let again = link.mutate(seq, &op).await.unwrap();
                assert_eq!(again.sequence, first.sequence, "{op:?} after a crash");
                assert_eq!(again.reply, first.reply, "{op:?} after a crash");
                assert_eq!(world.server().stats().replayed, 1);
                tree::assert_same(&before, &tree::read(&world.volume(), root).await, "nothing was done twice");
            }
            let text = contents(&world.volume(), file).await;
            assert_eq!(text.len(), b"appended".len() + 20_000);
        });
    }
}

#[test]
fn a_failure_is_given_again() {
    in_virtual_time(async {
        let (world, root, _) = world_with_file(Durability::Power, Disk::Instant).await;
        let link = Link::greeted(&world, 1, 1).await;
        let taken = link.mutate(1, &mkdir(root, "file")).await;
        assert_eq!(taken.err(), Some(Failed::Refused(ErrorCode::Exists)));
        world.make(mkdir(root, "other")).await;
        // The name is free by now, and yet the answer stays what it was.
        let remove = Op::Remove { dir: root, name: name("file"), keep: false };
        let other = Link::greeted(&world, 1, 2).await;
        let setup = world.volume();
        let id =
            larder_protocol::ids::OpId { client: larder_protocol::ids::ClientId(99), incarnation: 1, slot: 0, seq: 1 };
        setup.mutate(&larder_protocol::attr::Credential::root(), id, remove).await.unwrap();
        assert_eq!(other.mutate(1, &mkdir(root, "file")).await.err(), Some(Failed::Refused(ErrorCode::Exists)));
        other.mutate(2, &mkdir(root, "file")).await.unwrap();
    });
}

#[test]
fn a_duplicate_joins_the_operation_that_runs() {
    in_virtual_time(async {
        let (world, root, file) = world_with_file(Durability::Power, Disk::Slow(Duration::from_secs(1))).await;
        let link = Link::greeted(&world, 1, 1).await;
        let mut before = world.server().stats();
        for (seq, op) in (1..).zip(once(root, file)) {
            let (first, second) = (link.send(seq, &op), link.send(seq, &op));
            let first = first.await.unwrap().unwrap();
            assert_eq!(second.await.unwrap().unwrap(), first, "{op:?}");
            let after = world.server().stats();
            assert_eq!(after.replayed, before.replayed + 1, "{op:?}");
            before = after;
        }
        assert_eq!(contents(&world.volume(), file).await.len(), b"appended".len() + 20_000);
    });
}

#[test]
fn a_duplicate_on_a_newer_connection_joins_or_is_answered_from_the_slot() {
    in_virtual_time(async {
        let (world, root, _) = world_with_file(Durability::Power, Disk::Slow(Duration::from_secs(1))).await;
        let old = Link::greeted(&world, 1, 1).await;
        let lost = old.send(1, &mkdir(root, "dir"));
        sleep(Duration::from_millis(100)).await;
        let new = Link::greeted(&world, 1, 2).await;
        let made = new.mutate(1, &mkdir(root, "dir")).await.unwrap();
        assert_eq!(lost.await.unwrap().err(), Some(Failed::Unanswered));
        assert_eq!(world.server().stats().replayed, 1);
        let there = tree::read(&world.volume(), root).await;
        assert_eq!(there["/dir/"].fid, fid_of(&made.reply));
    });
}

#[test]
fn older_numbers_are_out_of_order_also_after_a_crash() {
    in_virtual_time(async {
        let (world, root, _) = world_with_file(Durability::Power, Disk::Instant).await;
        let link = Link::greeted(&world, 1, 1).await;
        link.mutate(1, &mkdir(root, "a")).await.unwrap();
        link.mutate(2, &mkdir(root, "b")).await.unwrap();
        let refused = Some(Failed::Refused(ErrorCode::BadSequence));
        assert_eq!(link.mutate(1, &mkdir(root, "a")).await.err(), refused);
        assert_eq!(link.mutate(0, &mkdir(root, "c")).await.err(), refused);
        world.crash();
        world.start();
        let link = Link::greeted(&world, 1, 1).await;
        assert_eq!(link.mutate(1, &mkdir(root, "a")).await.err(), refused);
        link.mutate(3, &mkdir(root, "c")).await.unwrap();
    });
}

#[test]
fn a_client_that_is_away_for_hours_is_not_forgotten_whatever_the_calendar_says() {
    for seed in 0..20 {
        in_virtual_time(async move {
            let clocks = Clocks { drift: 0, jumps: true };
            let world = World::with_clocks(seed, Durability::Power, Disk::Instant, clocks);
            let root = world.volume().root();
            // By now it is wrong.
            sleep(Duration::from_secs(600)).await;
            let link = Link::greeted(&world, 1, 1).await;
            link.mutate(1, &mkdir(root, "a")).await.unwrap();
            drop(link);
            sleep(Duration::from_secs(3 * 3600 + 1800)).await;
            let link = Link::greeted(&world, 1, 2).await;
            link.mutate(2, &mkdir(root, "b")).await.unwrap();
        });
    }
}

#[test]
fn a_client_that_was_forgotten_is_told_so() {
    in_virtual_time(async {
        let (world, root, _) = world_with_file(Durability::Power, Disk::Instant).await;
        let link = Link::greeted(&world, 1, 1).await;
        link.mutate(1, &mkdir(root, "a")).await.unwrap();
        world.volume().client_gone(CLIENT, None).await.unwrap();
        let unknown = Some(Failed::Refused(ErrorCode::UnknownClient));
        assert_eq!(link.mutate(2, &mkdir(root, "b")).await.err(), unknown);
        world.crash();
        world.start();
        let link = Link::greeted(&world, 1, 1).await;
        assert_eq!(link.mutate(2, &mkdir(root, "b")).await.err(), unknown);
        // A new life begins at one.
        let link = Link::greeted(&world, 2, 1).await;
        link.mutate(1, &mkdir(root, "b")).await.unwrap();
        link.goodbye().await;
        let link = Link::greeted(&world, 2, 2).await;
        assert_eq!(link.mutate(2, &mkdir(root, "c")).await.err(), unknown);
    });
}
