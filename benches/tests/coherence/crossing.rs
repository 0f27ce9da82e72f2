//! Answers that cross: one that was given before a change comes in after a request was sent that began after it. What the
//! second answer says may then be the older of the two for all that the client knows, and it has to ask again.

use std::sync::Arc;
use std::time::Duration;

use larder_benches::seeds::in_virtual_time;
use larder_client::vfs::Error;
use larder_protocol::attr::Credential;
use larder_protocol::error::ErrorCode;
use larder_protocol::faults::Weather;
use larder_protocol::runtime::SimRuntime;
use rustix::fs::OFlags;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::client::cache_dir;
use crate::contents::Value;
use crate::mounted::{Client, FILE, world};
use crate::wire::{Cut, Dialer, Line};
use crate::world::Road;

/// After this there is no lease at either end, whenever it was renewed last.
const NO_LEASE: Duration = Duration::from_secs(60);
/// A request has reached the server, and its answer waits on the line.
const A_MOMENT: Duration = Duration::from_millis(10);

/// A client whose answers can be held, and another one.
async fn clients() -> (Arc<Client>, Client, Arc<Line>) {
    let world = world().await;
    let line = Line::new(false);
    let dialer = Dialer { road: Road::new(&world, Weather::default(), 2), line: line.clone() };
    let a = Client::mount_over(cache_dir().unwrap(), Arc::new(dialer), SimRuntime::new(2)).await;
    (Arc::new(a), Client::mount(&world, Weather::default(), 3).await, line)
}

fn size(client: &Arc<Client>, node: u64) -> JoinHandle<u64> {
    let client = client.clone();
    tokio::spawn(async move { client.vfs.getattr(&Credential::root(), node, None).await.unwrap().attr.size })
}

#[test]
fn a_stat_whose_answer_is_crossed_by_an_older_one_asks_again() {
    in_virtual_time(async {
        let (a, b, line) = clients().await;
        let [old, new] = [1, 2].map(|id| Value::new(id, 1000 * id));
        b.write(old).await;
        let node = a.look().await;
        line.cut(Cut::FromServer);
        sleep(NO_LEASE).await;
        let first = size(&a, node);
        sleep(A_MOMENT).await;
        b.write(new).await;
        let second = size(&a, node);
        sleep(A_MOMENT).await;
        line.mend(false);
        assert_eq!(first.await.unwrap(), u64::from(old.len()), "it was answered before the change");
        assert_eq!(second.await.unwrap(), u64::from(new.len()), "what was before the change had returned");
    });
}

#[test]
fn an_open_whose_answer_is_crossed_by_an_older_one_asks_again() {
    in_virtual_time(async {
        let (a, b, line) = clients().await;
        let [old, new] = [1, 2].map(|id| Value::new(id, 1000 * id));
        b.write(old).await;
        let node = a.look().await;
        let held = a.open(node, OFlags::RDONLY).await;
        line.cut(Cut::FromServer);
        sleep(NO_LEASE).await;
        let first = size(&a, node);
        sleep(A_MOMENT).await;
        b.write(new).await;
        let opening = tokio::spawn({
            let a = a.clone();
            async move { a.vfs.open(&Credential::root(), node, OFlags::RDONLY.bits().cast_signed()).await }
        });
        sleep(A_MOMENT).await;
        line.mend(false);
        assert_eq!(first.await.unwrap(), u64::from(old.len()), "what is open here");
        match opening.await.unwrap() {
            // The kernel looks the name up again.
            Err(Error::Refused(ErrorCode::Stale)) => {}
            Ok(opened) => assert_eq!(a.contents(opened.handle).await, new, "what was before the change had returned"),
            Err(error) => panic!("{error}"),
        }
        assert_eq!(a.read(FILE).await, new);
        a.close(held).await;
    });
}
