//! Versions of one file that are open at the same time: what the histories of many worlds have brought to light.

use std::sync::Arc;
use std::time::Duration;

use larder_benches::seeds::in_virtual_time;
use larder_protocol::attr::Credential;
use larder_protocol::faults::Weather;
use rustix::fs::OFlags;
use tokio::time::sleep;

use crate::contents::Value;
use crate::mounted::{Client, world};

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
        let weather = Weather { delay: 1000, max_delay: Duration::from_millis(300), ..Weather::default() };
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
        let weather = Weather { delay: 1000, max_delay: Duration::from_millis(300), ..Weather::default() };
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
            let opening = tokio::spawn({
                let a = a.clone();
                async move { a.open(node, OFlags::RDONLY).await }
            });
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
