//! What a client knows of a directory after changes of its own.

use larder_benches::seeds::in_virtual_time;
use larder_client::vfs::{LookupResult, ROOT};
use larder_protocol::attr::Credential;
use larder_protocol::faults::Weather;
use larder_protocol::service::file::RenameHow;

use crate::mounted::{Client, FILE, world};

async fn link(client: &Client, name: &[u8]) {
    client.vfs.link(&Credential::root(), client.look().await, ROOT, name).await.unwrap();
}

async fn make(client: &Client, name: &[u8]) {
    client.vfs.mknod(&Credential::root(), ROOT, name, 0o644, 0o022, 0).await.unwrap();
}

async fn rename(client: &Client, from: &[u8], to: &[u8]) {
    client.vfs.rename(&Credential::root(), ROOT, from, ROOT, to, RenameHow::Replace).await.unwrap();
}

async fn is_there(client: &Client, name: &[u8]) -> bool {
    matches!(client.vfs.lookup(&Credential::root(), ROOT, name).await.unwrap(), LookupResult::Found(_))
}

fn lookups(client: &Client) -> u64 {
    client.vfs.stats().requests.get("lookup").map_or(0, |kind| kind.count)
}

#[test]
fn a_rename_of_one_name_of_a_file_over_another_does_nothing() {
    in_virtual_time(async {
        let world = world().await;
        let a = Client::mount(&world, Weather::default(), 1).await;
        link(&a, b"other").await;
        // One that knows nothing of the directory yet, and one that knows it.
        let b = Client::mount(&world, Weather::default(), 2).await;
        for client in [&b, &a] {
            rename(client, b"other", FILE).await;
            assert!(is_there(client, b"other").await && is_there(client, FILE).await);
        }
    });
}

#[test]
fn names_that_a_client_made_it_knows_whatever_others_do_there() {
    in_virtual_time(async {
        let world = world().await;
        let a = Client::mount(&world, Weather::default(), 1).await;
        let b = Client::mount(&world, Weather::default(), 2).await;
        for turn in 0..3 {
            let [of_a, of_b] = ["a", "b"].map(|client| format!("{client}-{turn}"));
            make(&b, of_b.as_bytes()).await;
            make(&a, of_a.as_bytes()).await;
            let asked = lookups(&a);
            assert!(is_there(&a, of_a.as_bytes()).await);
            assert_eq!(lookups(&a), asked, "it asks for what it has just made");
            assert!(is_there(&a, of_b.as_bytes()).await && !is_there(&a, b"nothing").await);
        }
    });
}
