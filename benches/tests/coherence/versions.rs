//! Versions of one file that are open at the same time: what the histories of many worlds have brought to light.

use std::sync::Arc;
use std::time::Duration;

use larder_benches::seeds::in_virtual_time;
use larder_protocol::attr::Credential;
use larder_protocol::faults::Weather;
use rustix::fs::OFlags;
use tokio::time::sleep;

use crate::contents::Value;
use crate::mounted::{Client, FILE, LARGE, slow, world};

#[test]
fn what_one_node_has_stored_no_other_shows_the_past_of() {
    in_virtual_time(async {
        let world = world().await;
        let (a, b) = (Client::mount(&world, Weather::default(), 1).await, Client::mount(&world, Weather::default(), 2));
        let b = b.await;
        let [v1, v2, v3] = [1, 2, 3].map(|id| Value::new(id, 1000 * id));
        b.write(v1).await;
        let node = a.look().await;
        let first = a.open(node, OFlags::RDONLY).await;
        b.write(v2).await;
        // The first node stands for what is open there, so this is another.
        let another = a.look().await;
        assert_ne!(another, node);
        let second = a.open(another, OFlags::RDONLY).await;
        assert_eq!((a.contents(first).await, a.contents(second).await), (v1, v2));
        a.close(first).await;
        a.close(second).await;
        // Both are known at this version, and one is used to write.
        assert_eq!(a.look().await, node);
        a.vfs.getattr(&Credential::root(), another, None).await.unwrap();
        a.write_node(node, v3).await;
        let third = a.open(node, OFlags::RDONLY).await;
        let seen = a.look().await;
        for node in [seen, another] {
            let attributes = a.vfs.getattr(&Credential::root(), node, None).await.unwrap();
            assert_eq!(attributes.attr.size, u64::from(v3.len()));
        }
        let fourth = a.open(seen, OFlags::RDONLY).await;
        assert_eq!((a.contents(third).await, a.contents(fourth).await), (v3, v3));
        a.close(third).await;
        a.close(fourth).await;
    });
}

#[test]
fn an_open_shows_nothing_that_was_stored_after_it() {
    in_virtual_time(async {
        let world = world().await;
        // Answers to the reader take long.
        let weather = slow();
        let a = Arc::new(Client::mount(&world, weather, 1).await);
        let b = Client::mount(&world, Weather::default(), 2).await;
        let value = |id: u32| Value::new(id, 1_100_000 + id);
        for round in 0..4 {
            let (before, after) = (value(2 * round + 1), value(2 * round + 2));
            b.write(before).await;
            let reading = tokio::spawn({
                let a = a.clone();
                async move { a.open(a.look().await, OFlags::RDONLY).await }
            });
            while !reading.is_finished() {
                sleep(Duration::from_millis(1)).await;
            }
            // Had the open not waited for all of it, some of it would still be on its way.
            b.write(after).await;
            let handle = reading.await.unwrap();
            let found = a.contents(handle).await;
            assert_eq!(found, before, "something that was stored after the open");
            a.close(handle).await;
        }
    });
}

#[test]
fn what_is_recovered_beside_a_mount_that_is_used_is_not_shown_as_it_was() {
    in_virtual_time(async {
        let world = world().await;
        let names: Vec<String> = (0..24).map(|number| format!("file-{number}")).collect();
        for name in &names {
            world.file(world.volume().root(), name).await;
        }
        // Slow enough that whoever mounts does not wait for all of it.
        let weather = slow();
        let a = Client::mount(&world, weather, 1).await;
        let b = Client::mount(&world, Weather::default(), 2).await;
        let left = Value::new(7, 1000);
        for name in &names {
            let handle = a.open(a.look_for(name.as_bytes()).await, OFlags::WRONLY).await;
            a.vfs.write(handle, 0, left.range(0, left.len())).await.unwrap();
        }
        let a = Client::mount_with(a.kill().await, &world, weather, 3).await;
        let mut past = 0;
        for name in &names {
            past += usize::from(a.read(name.as_bytes()).await == Value::EMPTY);
        }
        assert!(past > 0, "all was recovered before the mount was used");
        for name in &names {
            while b.read(name.as_bytes()).await != left {
                sleep(Duration::from_millis(50)).await;
            }
            assert_eq!(a.read(name.as_bytes()).await, left, "{name} as it was before it was recovered");
        }
    });
}

#[test]
fn a_file_that_grows_while_it_is_fetched_is_fetched_whole() {
    in_virtual_time(async {
        let world = world().await;
        // Requests of the reader take long to arrive.
        let weather = Weather { delay: 1000, max_delay: Duration::from_millis(100), ..Weather::default() };
        let a = Arc::new(Client::mount(&world, weather, 1).await);
        let b = Client::mount(&world, Weather::default(), 2).await;
        let fetches = || a.vfs.stats().requests["fetch"].count;
        let mut grown = 0;
        for round in 0..40 {
            let (small, large) = (Value::new(2 * round + 1, 1000), Value::new(2 * round + 2, 300_000));
            b.write(small).await;
            let node = a.look().await;
            let before = a.vfs.stats().requests.get("fetch").map_or(0, |kind| kind.count);
            let opening = a.opening(node, OFlags::RDONLY);
            sleep(Duration::from_millis(u64::from(round))).await;
            b.write(large).await;
            let handle = opening.await.unwrap();
            let found = a.contents(handle).await;
            assert!(found == small || found == large, "{found:?}");
            grown += u32::from(found == large && fetches() - before == 2);
            a.close(handle).await;
        }
        assert!(grown > 0, "it never grew on the way");
    });
}

#[test]
fn a_close_stores_nothing_of_what_another_is_still_writing() {
    in_virtual_time(async {
        let world = world().await;
        let a = Client::mount(&world, Weather::default(), 1).await;
        let b = Client::mount(&world, Weather::default(), 2).await;
        let [old, new] = [1, 2].map(|id| Value::new(id, LARGE));
        let node = a.look().await;
        let first = a.open(node, OFlags::WRONLY).await;
        a.vfs.write(first, 0, old.range(0, LARGE)).await.unwrap();
        a.vfs.flush(first).await.unwrap();
        let second = a.open(node, OFlags::WRONLY).await;
        a.vfs.write(second, 0, new.range(0, LARGE / 2)).await.unwrap();
        // The kernel says later than the program's close(2) that a file is closed for good, and the program goes on.
        a.vfs.release(first).await;
        assert_eq!(b.read(FILE).await, old);
        let reader = a.open(node, OFlags::RDONLY).await;
        a.close(reader).await;
        assert_eq!(b.read(FILE).await, old);
        a.vfs.write(second, u64::from(LARGE / 2), new.range(LARGE / 2, LARGE)).await.unwrap();
        a.close(second).await;
        assert_eq!(b.read(FILE).await, new);
    });
}

#[test]
fn what_is_stored_late_is_whole_whoever_opens_the_file_meanwhile() {
    in_virtual_time(async {
        let world = world().await;
        // Storing takes long.
        let weather = slow();
        let a = Arc::new(Client::mount(&world, weather, 1).await);
        let b = Client::mount(&world, Weather::default(), 2).await;
        let node = a.look().await;
        for round in 0..10 {
            let [old, new] = [1, 2].map(|id| Value::new(2 * round + id, LARGE));
            let first = a.open(node, OFlags::WRONLY).await;
            a.vfs.flush(first).await.unwrap();
            // As through a mapping.
            a.vfs.write(first, 0, old.range(0, LARGE)).await.unwrap();
            let storing = tokio::spawn({
                let a = a.clone();
                async move { a.vfs.release(first).await }
            });
            sleep(Duration::from_millis(u64::from(round) * 20)).await;
            let how = if round % 2 == 0 { OFlags::WRONLY } else { OFlags::WRONLY | OFlags::TRUNC };
            let second = a.open(node, how).await;
            a.vfs.write(second, 0, new.range(0, LARGE)).await.unwrap();
            storing.await.unwrap();
            // Before or after all of what came late; this fails where it is neither.
            let seen = b.read(FILE).await;
            assert!(round == 0 || seen.len() == LARGE, "{seen:?} is of no program");
            a.close(second).await;
            assert_eq!(b.read(FILE).await, new);
        }
    });
}

#[test]
fn what_was_left_to_an_open_that_comes_to_nothing_is_stored() {
    in_virtual_time(async {
        let world = world().await;
        let weather = slow();
        let a = Arc::new(Client::mount(&world, weather, 1).await);
        let b = Client::mount(&world, Weather::default(), 2).await;
        let [old, new] = [1, 2].map(|id| Value::new(id, LARGE));
        let node = a.look().await;
        let first = a.open(node, OFlags::WRONLY).await;
        a.vfs.write(first, 0, old.range(0, LARGE)).await.unwrap();
        let storing = tokio::spawn({
            let a = a.clone();
            async move { a.vfs.fsync(first, false).await }
        });
        sleep(Duration::from_millis(10)).await;
        let opening = a.opening(node, OFlags::WRONLY);
        sleep(Duration::from_millis(10)).await;
        a.vfs.write(first, 0, new.range(0, LARGE)).await.unwrap();
        assert!(!opening.is_finished(), "it waits");
        a.vfs.release(first).await;
        opening.abort();
        storing.await.unwrap().unwrap();
        // There may be anything in between: the file was synced while it was written.
        sleep(Duration::from_secs(60)).await;
        assert_eq!(b.read(FILE).await, new);
    });
}
