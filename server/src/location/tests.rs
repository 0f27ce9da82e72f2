use larder_protocol::attr::Timestamp;
use larder_protocol::ids::Epoch;
use larder_protocol::runtime::SystemRuntime;

use super::embedded::EmbeddedRegistry;
use super::*;

const HERE: ServerId = ServerId(1);

fn cells(count: usize) -> (tempfile::TempDir, Vec<Arc<Cell>>) {
    let dir = tempfile::tempdir().unwrap();
    let runtime: SharedRuntime = Arc::new(SystemRuntime::new(tokio::runtime::Handle::current()));
    let registry = EmbeddedRegistry::open(dir.path(), runtime.clone()).unwrap();
    let cells = (0..count).map(|_| Cell::new(registry.clone(), runtime.clone())).collect();
    (dir, cells)
}

fn record(id: u32, name: &str) -> VolumeRecord {
    let state = VolumeState::Online;
    VolumeRecord { id: VolumeId(id), name: name.to_owned(), server: HERE, state, mounted: None, moving: None }
}

#[test]
fn a_directory_is_in_the_own_store_or_at_a_server() {
    for text in ["own", "larder://host:7425", "larder://[::1]:7425", "etcd://a:2379,b:2379", "etcd://a:1/cell"] {
        assert_eq!(text.parse::<Location>().unwrap().to_string(), text);
    }
    for bad in [
        "",
        "host:7425",
        "larder://host",
        "larder://:7425",
        "larder://host:x",
        "nfs://host:1",
        "etcd://",
        "etcd://a",
        "etcd://a:1/b/c",
    ] {
        assert!(bad.parse::<Location>().is_err(), "{bad}");
    }
}

#[test]
fn a_volume_has_a_name_that_is_no_number() {
    for good in ["root", "home.anna", "a", "2026-backup", "x_1", &"n".repeat(MAX_VOLUME_NAME)] {
        assert!(is_volume_name(good), "{good}");
    }
    for bad in ["", "12", "a/b", "a b", ".hidden", "-o", "ä", &"n".repeat(MAX_VOLUME_NAME + 1)] {
        assert!(!is_volume_name(bad), "{bad}");
    }
}

#[tokio::test]
async fn numbers_are_given_out_once_though_many_ask() {
    let (_dir, cells) = cells(4);
    let asking = (0..40).map(|n| {
        let cell = cells[n % 4].clone();
        tokio::spawn(async move { cell.next_id().await.unwrap().0 })
    });
    let mut numbers: Vec<u32> = futures::future::join_all(asking).await.into_iter().map(Result::unwrap).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (2..42).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_name_belongs_to_one_volume() {
    let (_dir, cells) = cells(2);
    cells[0].enter(record(2, "home")).await.unwrap();
    assert_eq!(cells[1].enter(record(3, "home")).await, Err(LocationError::Exists("home".to_owned())));
    assert_eq!(cells[1].enter(record(2, "other")).await, Err(LocationError::Exists("other".to_owned())));
    cells[1].enter(record(3, "work")).await.unwrap();
    let taken = cells[0].update(VolumeId(3), |volume| {
        "home".clone_into(&mut volume.name);
        Ok(())
    });
    assert_eq!(taken.await, Err(LocationError::Exists("home".to_owned())));
    let renamed = cells[0].update(VolumeId(2), |volume| {
        "house".clone_into(&mut volume.name);
        Ok(())
    });
    renamed.await.unwrap();
    assert_eq!(cells[1].volume_named("house").await.unwrap().id, VolumeId(2));
    assert_eq!(cells[1].volume_named("home").await, Err(LocationError::NoSuchVolume("home".to_owned())));
    assert_eq!(cells[1].known_as("house").unwrap().id, VolumeId(2));
}

#[tokio::test]
async fn a_deleted_volume_gives_its_name_up_and_can_come_back_under_another() {
    let (_dir, cells) = cells(1);
    let cell = &cells[0];
    cell.enter(record(2, "home")).await.unwrap();
    let set = |state: VolumeState| {
        move |volume: &mut VolumeRecord| {
            volume.state = state;
            Ok(())
        }
    };
    assert!(matches!(cell.forget(VolumeId(2)).await, Err(LocationError::NotNow(_))));
    cell.update(VolumeId(2), set(VolumeState::Deleted { since: Timestamp::default() })).await.unwrap();
    assert_eq!(cell.known_as("home"), None);
    cell.enter(record(3, "home")).await.unwrap();
    assert_eq!(cell.update(VolumeId(2), set(VolumeState::Online)).await, Err(LocationError::Exists("home".to_owned())));
    let back = cell.update(VolumeId(2), |volume| {
        "home.old".clone_into(&mut volume.name);
        volume.state = VolumeState::Online;
        Ok(())
    });
    assert_eq!(back.await.unwrap().name, "home.old");
    assert_eq!(cell.volumes().await.unwrap().len(), 2);
}

#[tokio::test]
async fn changes_of_one_volume_do_not_undo_each_other() {
    let (_dir, cells) = cells(2);
    cells[0].enter(record(2, "count")).await.unwrap();
    let raise = |cell: Arc<Cell>| async move {
        for _ in 0..20 {
            let next = |volume: &mut VolumeRecord| {
                volume.server = ServerId(volume.server.0 + 1);
                Ok(())
            };
            cell.update(VolumeId(2), next).await.unwrap();
        }
    };
    let raised =
        futures::future::join(tokio::spawn(raise(cells[0].clone())), tokio::spawn(raise(cells[1].clone()))).await;
    assert!(raised.0.is_ok() && raised.1.is_ok());
    assert_eq!(cells[0].volume(VolumeId(2)).await.unwrap().server, ServerId(41));
}

#[tokio::test]
async fn who_follows_learns_of_volumes_and_servers() {
    let (_dir, cells) = cells(2);
    let ending = CancellationToken::new();
    let following = tokio::spawn(cells[1].clone().follow(ending.clone()));
    let server =
        ServerRecord { id: HERE, address: "127.0.0.1:1".to_owned(), software: "larderd".to_owned(), epoch: Epoch(7) };
    cells[0].register(&server).await.unwrap();
    cells[0].enter(record(2, "home")).await.unwrap();
    let begin = std::time::Instant::now();
    while cells[1].known_as("home").is_none() || cells[1].server(HERE) != Some(server.clone()) {
        assert!(begin.elapsed() < Duration::from_secs(30), "nothing is learned");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    ending.cancel();
    following.await.unwrap();
}

#[tokio::test]
async fn two_processes_cannot_be_one_server() {
    let (_dir, cells) = cells(1);
    let server = |address: &str, epoch| ServerRecord {
        id: HERE,
        address: address.to_owned(),
        software: String::new(),
        epoch: Epoch(epoch),
    };
    cells[0].register(&server("127.0.0.1:1", 1)).await.unwrap();
    cells[0].register(&server("127.0.0.1:1", 1)).await.unwrap();
    // It was restarted.
    cells[0].register(&server("127.0.0.1:1", 2)).await.unwrap();
    let copy = cells[0].register(&server("127.0.0.1:9", 3)).await.unwrap_err().to_string();
    assert!(copy.contains("127.0.0.1:1"), "{copy}");
}

#[test]
fn what_is_known_of_a_volume_never_goes_back() {
    let mut known = Known::default();
    let at = |version: u64, name: &str| Versioned { record: record(2, name), version };
    let named = |known: &Known| known.volumes.get(&VolumeId(2)).map(|volume| volume.record.name.clone());
    known.learn(at(5, "five"));
    known.learn_all(Vec::new(), 3);
    assert_eq!(named(&known).as_deref(), Some("five"), "it was made after that was listed");
    known.learn_all(vec![at(4, "four")], 4);
    assert_eq!(known.names.keys().collect::<Vec<_>>(), ["five"]);
    known.learn(at(6, "six"));
    assert_eq!(known.names.keys().collect::<Vec<_>>(), ["six"]);
    known.learn_all(Vec::new(), 7);
    assert_eq!((named(&known), known.names.len()), (None, 0));
    known.learn(at(6, "six"));
    assert_eq!(named(&known), None, "that answer came late");
}
