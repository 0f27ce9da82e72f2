//! A request of an older life is never applied after the answer to a newer `hello`.

use larder_benches::seeds::in_virtual_time;
use std::sync::Arc;
use std::time::Duration;

use larder_protocol::error::ErrorCode;
use larder_protocol::handshake::Refusal;
use larder_protocol::ids::Fid;
use larder_protocol::payload::Payload;
use larder_protocol::service::file::Op;
use larder_server::volume::Durability;
use tokio::time::{Instant, sleep};

use crate::machine::Disk;
use crate::raw::{Failed, Link};
use crate::registers::contents;
use crate::world::World;

/// Long enough for everything in the network and at the server to come to rest.
const REST: Duration = Duration::from_secs(60);

async fn world_with_file(disk: Disk) -> (Arc<World>, Fid) {
    let world = World::new(1, Durability::Power, disk);
    let root = world.volume().root();
    let fid = world.file(root, "file").await;
    (world, fid)
}

async fn read(world: &World, fid: Fid) -> Vec<u8> {
    contents(&world.volume(), fid).await
}

#[test]
fn a_write_held_back_on_an_older_generation_is_not_applied() {
    in_virtual_time(async {
        let (world, fid) = world_with_file(Disk::Instant).await;
        let old = Link::greeted(&world, 1, 1).await;
        old.hold(true);
        let first = old.write(fid, b"AAAA");
        sleep(Duration::from_secs(1)).await;
        let new = Link::greeted(&world, 1, 2).await;
        new.write(fid, b"BBBB").await.unwrap().unwrap();
        old.hold(false);
        sleep(REST).await;
        assert_eq!(first.await.unwrap().err(), Some(Failed::Unanswered));
        assert_eq!(read(&world, fid).await, b"BBBB");
    });
}

#[test]
fn hello_waits_for_a_write_that_the_server_has_begun() {
    in_virtual_time(async {
        let slow = Duration::from_secs(5);
        let (world, fid) = world_with_file(Disk::Slow(slow)).await;
        let old = Link::greeted(&world, 1, 1).await;
        let first = old.write(fid, b"AAAA");
        sleep(Duration::from_secs(1)).await;
        let began = Instant::now();
        let new = Link::greeted(&world, 1, 2).await;
        assert_eq!(began.elapsed(), slow - Duration::from_secs(1), "the older write came to its end first");
        assert_eq!(read(&world, fid).await, b"AAAA");
        new.write(fid, b"BBBB").await.unwrap().unwrap();
        sleep(REST).await;
        assert_eq!(first.await.unwrap().err(), Some(Failed::Unanswered));
        assert_eq!(read(&world, fid).await, b"BBBB");
    });
}

#[test]
fn a_write_held_back_in_an_older_incarnation_is_not_applied() {
    in_virtual_time(async {
        let (world, fid) = world_with_file(Disk::Instant).await;
        let old = Link::greeted(&world, 1, 9).await;
        old.hold(true);
        let first = old.write(fid, b"AAAA");
        sleep(Duration::from_secs(1)).await;
        let new = Link::greeted(&world, 2, 1).await;
        new.write(fid, b"BBBB").await.unwrap().unwrap();
        old.hold(false);
        sleep(REST).await;
        assert_eq!(first.await.unwrap().err(), Some(Failed::Unanswered));
        assert_eq!(read(&world, fid).await, b"BBBB");
        let late = Link::new(&world, 1);
        assert_eq!(late.hello(10).await.err(), Some(Refusal::Fenced), "the older incarnation does not come back");
        assert_eq!(late.commit(fid).await.err(), Some(Failed::Refused(ErrorCode::UnknownClient)));
    });
}

#[test]
fn an_append_held_back_and_sent_again_is_there_once() {
    in_virtual_time(async {
        let (world, fid) = world_with_file(Disk::Instant).await;
        let append = |text: &'static [u8]| Op::Append { fid, data: Payload(text.into()) };
        let old = Link::greeted(&world, 1, 1).await;
        old.mutate(1, &append(b"one ")).await.unwrap();
        old.hold(true);
        let held = old.send(2, &append(b"two "));
        sleep(Duration::from_secs(1)).await;
        let new = Link::greeted(&world, 1, 2).await;
        new.mutate(2, &append(b"two ")).await.unwrap();
        new.mutate(3, &append(b"three")).await.unwrap();
        old.hold(false);
        sleep(REST).await;
        assert_eq!(held.await.unwrap().err(), Some(Failed::Unanswered));
        assert_eq!(read(&world, fid).await, b"one two three");
    });
}

#[test]
fn a_hello_that_comes_late_is_fenced() {
    in_virtual_time(async {
        let (world, fid) = world_with_file(Disk::Instant).await;
        let late = Link::new(&world, 1);
        let new = Link::greeted(&world, 1, 5).await;
        assert_eq!(late.hello(4).await.err(), Some(Refusal::Fenced));
        assert_eq!(late.write(fid, b"late").await.unwrap().err(), Some(Failed::Refused(ErrorCode::UnknownClient)));
        new.write(fid, b"good").await.unwrap().unwrap();
        assert_eq!(read(&world, fid).await, b"good");
    });
}
