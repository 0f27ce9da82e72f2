//! What is left when a client in afs mode dies, at every place that matters and at any time: the cache is consistent at
//! the next mount, what the server has is whole, and nothing that a program was told is done is lost.
#![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use larder_benches::mount::{Mode, Mount, Setup};
use larder_benches::process::{binary, close, run, scratch, store};
use larder_benches::server::Server;
use larder_benches::size::Size;
use larder_client::failpoint::Failpoint;

/// Bytes of the file: several pieces of a store or a fetch, and a bit.
const LEN: usize = (3 << 20) + 17;
/// Writes to it, each to a part of its own.
const WRITES: usize = 6;
/// Bytes from one of these parts to the next.
const STRIDE: usize = 500_000;
/// Bytes of a write.
const WRITE: usize = 300_000;

/// The file after so many writes.
fn after(writes: usize) -> Vec<u8> {
    let mut contents: Vec<u8> = (0..LEN).map(|at| b'a' + (at % 23) as u8).collect();
    for write in 0..writes {
        contents[write * STRIDE..][..WRITE].fill(b'0' + write as u8);
    }
    contents
}

/// How many of the writes contents show: the first ones, each whole. Of the next one there may be a part, for the kernel
/// hands over a write in several pieces.
fn writes_in(contents: &[u8]) -> usize {
    for writes in 0..=WRITES {
        let (without, with) = (after(writes), after((writes + 1).min(WRITES)));
        let common = contents.iter().zip(&with).take_while(|(found, with)| found == with).count();
        if contents.len() == LEN && (contents == with || contents[common..] == without[common..]) {
            return if contents == with { (writes + 1).min(WRITES) } else { writes };
        }
    }
    panic!("a mixture of {} bytes", contents.len());
}

/// What a program was told.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    writes: usize,
    closed: bool,
}

/// Writes the file until the client dies.
fn write(path: &Path) -> Told {
    let mut told = Told::default();
    let Ok(file) = OpenOptions::new().read(true).write(true).open(path) else { return told };
    for write in 0..WRITES {
        if file.write_all_at(&vec![b'0' + write as u8; WRITE], (write * STRIDE) as u64).is_err() {
            break;
        }
        told.writes += 1;
    }
    told.closed = close(file).is_ok() && told.writes == WRITES;
    told
}

/// A server with the file, and a directory for mounts and their caches.
struct World {
    server: Server,
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> World {
        let dir = scratch().unwrap();
        let server = Server::start_with(dir.path(), &["--lease-term", "3"]).unwrap();
        let world = World { server, dir };
        let maker = world.other();
        store(maker.at("file"), &after(0)).unwrap();
        maker.close(false).unwrap();
        world
    }

    /// The client that dies, at this place if one is named.
    fn mount(&self, failpoint: Option<&str>) -> anyhow::Result<Mount> {
        self.mount_as(&Setup { failpoint, ..Setup::default() })
    }

    fn mount_as(&self, setup: &Setup<'_>) -> anyhow::Result<Mount> {
        let cache = self.dir.path().join("cache");
        let setup = Setup { cache: Some(&cache), ..*setup };
        Mount::set_up(self.dir.path(), "mnt", self.server.address(), Mode::Afs, &setup)
    }

    /// A client that sees what the server has.
    fn other(&self) -> Mount {
        Mount::new(self.dir.path(), "other", &self.server, Mode::Direct, "").unwrap()
    }

    /// Ends everything, and looks whether the store is sound.
    fn end(mut self) {
        self.server.check().unwrap();
    }
}

fn of_state(mount: &Mount, state: &str) -> Vec<serde_json::Value> {
    mount.cached().unwrap().into_iter().filter(|file| file["state"] == state).collect()
}

fn verify(mount: &Mount) {
    let mut command = Command::new(binary("larder").unwrap());
    let verified = run(command.args(["cache", "verify"]).arg(mount.path())).unwrap();
    let said = String::from_utf8_lossy(&verified.stdout).into_owned();
    assert!(said.contains("0 of"), "{said}");
}

/// When a failpoint is to be deadly.
fn deadly(point: Failpoint) -> String {
    let passes = match point {
        Failpoint::Fetching | Failpoint::Staging => 1,
        Failpoint::Written => 3,
        _ => 0,
    };
    if passes == 0 { format!("{}=return", point.name()) } else { format!("{}={passes}*off->return", point.name()) }
}

/// Whether the client dies of it while a file is fetched, while it is written, or at the next mount.
enum When {
    Fetch,
    Write,
    NextMount,
}

fn when(point: Failpoint) -> When {
    match point {
        Failpoint::Fetching | Failpoint::Fetched | Failpoint::Installed => When::Fetch,
        Failpoint::Recorded
        | Failpoint::Written
        | Failpoint::Storing
        | Failpoint::Staging
        | Failpoint::Staged
        | Failpoint::Stored
        | Failpoint::Settled => When::Write,
        Failpoint::Recovering | Failpoint::Recovered => When::NextMount,
    }
}

/// Lets a client die there; what its program was told.
fn die_at(world: &World, point: Failpoint) -> Told {
    match when(point) {
        When::Fetch => {
            let mount = world.mount(Some(&deadly(point))).unwrap();
            // It may or may not be answered before the client is dead.
            let _ = fs::read(mount.at("file"));
            mount.bury().unwrap();
            Told::default()
        }
        When::Write => {
            let mount = world.mount(Some(&deadly(point))).unwrap();
            let told = write(&mount.at("file"));
            mount.bury().unwrap();
            told
        }
        When::NextMount => {
            let told = die_at(world, Failpoint::Storing);
            let failed = world.mount(Some(&deadly(point))).map(|mount| mount.bury());
            assert!(failed.is_err() || failed.is_ok_and(|buried| buried.is_ok()));
            told
        }
    }
}

#[test]
fn a_client_that_dies_anywhere_leaves_nothing_half_done() {
    for point in Failpoint::ALL {
        let world = World::new();
        let told = die_at(&world, point);
        let mount = world.mount(None).unwrap();
        let writes = writes_in(&fs::read(mount.at("file")).unwrap());
        println!("{}: told {told:?}, found {writes} writes", point.name());
        assert!(writes >= told.writes, "{point:?}: {told:?}, and {writes} writes are there");
        assert!(!told.closed || writes == WRITES, "{point:?}");
        let other = world.other();
        assert_eq!(writes_in(&fs::read(other.at("file")).unwrap()), writes, "{point:?}: the server has other contents");
        assert!(of_state(&mount, "dirty").is_empty() && of_state(&mount, "conflict").is_empty(), "{point:?}");
        verify(&mount);
        // And it goes on.
        store(mount.at("file"), b"more").unwrap();
        assert_eq!(fs::read(other.at("file")).unwrap(), b"more");
        other.close(false).unwrap();
        mount.close(false).unwrap();
        world.end();
    }
}

#[test]
fn what_another_client_has_replaced_meanwhile_becomes_a_conflict() {
    for point in [Failpoint::Written, Failpoint::Storing, Failpoint::Staged] {
        let world = World::new();
        let told = die_at(&world, point);
        let other = world.other();
        store(other.at("file"), b"of another client").unwrap();
        other.close(false).unwrap();
        let mount = world.mount(None).unwrap();
        assert_eq!(fs::read(mount.at("file")).unwrap(), b"of another client", "{point:?}");
        let conflicts = of_state(&mount, "conflict");
        assert_eq!(conflicts.len(), 1, "{point:?}: {conflicts:?}");
        let kept = fs::read(conflicts[0]["path"].as_str().unwrap()).unwrap();
        assert!(writes_in(&kept) >= told.writes, "{point:?}");
        mount.forget_conflicts().unwrap();
        assert!(of_state(&mount, "conflict").is_empty());
        mount.close(false).unwrap();
        world.end();
    }
}

#[test]
fn what_a_power_cut_may_have_torn_is_kept_beside_and_not_stored() {
    let world = World::new();
    let in_boot =
        |boot| world.mount_as(&Setup { boot: Some(boot), options: "fsync=local", ..Setup::default() }).unwrap();
    let mount = in_boot(1);
    store(mount.at("synced"), b"before").unwrap();
    let [torn, synced] =
        ["file", "synced"].map(|name| OpenOptions::new().read(true).write(true).open(mount.at(name)).unwrap());
    torn.write_all_at(b"not closed", 0).unwrap();
    synced.write_all_at(b"synced", 0).unwrap();
    synced.sync_all().unwrap();
    mount.signal(rustix::process::Signal::KILL).unwrap();
    // What closes them has nobody to store them.
    drop((torn, synced));
    mount.bury().unwrap();

    let mount = in_boot(2);
    let other = world.other();
    assert!(fs::read(other.at("file")).unwrap() == after(0), "what was closed before was replaced");
    assert_eq!(fs::read(mount.at("synced")).unwrap(), b"synced");
    assert_eq!(fs::read(other.at("synced")).unwrap(), b"synced");
    let conflicts = of_state(&mount, "conflict");
    assert_eq!(conflicts.len(), 1, "{conflicts:?}");
    assert!(conflicts[0]["why"].as_str().unwrap().contains("started anew"), "{conflicts:?}");
    let kept = fs::read(conflicts[0]["path"].as_str().unwrap()).unwrap();
    assert!(kept.starts_with(b"not closed") && kept.len() == LEN);
    other.close(false).unwrap();
    mount.close(false).unwrap();
    world.end();
}

/// A version of a file for the next test: its number, and nothing else.
fn version(number: u64) -> Vec<u8> {
    let unit = format!("{number:08}\n").into_bytes();
    unit.iter().copied().cycle().take(unit.len() * (1 + number as usize * 7919 % 40_000)).collect()
}

/// Writes version after version until the client dies.
fn write_versions(path: &Path, next: &AtomicU64, done: &AtomicU64) {
    loop {
        let number = next.fetch_add(1, Ordering::SeqCst) + 1;
        if store(path, &version(number)).is_err() {
            return;
        }
        done.store(number, Ordering::SeqCst);
    }
}

#[test]
fn a_client_that_is_killed_at_any_time_loses_nothing_that_was_closed() {
    const FILES: usize = 3;
    let rounds = Size::get().pick(3, 8, 100) as u64;
    let world = World::new();
    let counters: Vec<Arc<(AtomicU64, AtomicU64)>> = (0..FILES).map(|_| Arc::default()).collect();
    for round in 0..rounds {
        let mount = world.mount(None).unwrap();
        std::thread::scope(|scope| {
            for (file, counters) in counters.iter().enumerate() {
                let path = mount.at(format!("versions-{file}"));
                scope.spawn(move || write_versions(&path, &counters.0, &counters.1));
            }
            std::thread::sleep(Duration::from_millis(20 + round * 137 % 500));
            mount.signal(rustix::process::Signal::KILL).unwrap();
        });
        mount.bury().unwrap();
        let mount = world.mount(None).unwrap();
        let other = world.other();
        for (file, counters) in counters.iter().enumerate() {
            let name = format!("versions-{file}");
            let (begun, closed) = (counters.0.load(Ordering::SeqCst), counters.1.load(Ordering::SeqCst));
            let found = fs::read(mount.at(&name)).unwrap_or_default();
            assert!(
                fs::read(other.at(&name)).unwrap_or_default() == found,
                "round {round}: two different files {name}"
            );
            // The last one may have been cut off while it was written.
            let good = (closed..=begun).any(|number| found == version(number)) || version(begun).starts_with(&found);
            assert!(good, "round {round}: {name} has {} bytes of no version of {closed} to {begun}", found.len());
            if closed == begun {
                assert!(found == version(closed), "round {round}: {name}");
            }
        }
        assert!(of_state(&mount, "conflict").is_empty(), "round {round}");
        verify(&mount);
        other.close(false).unwrap();
        mount.close(false).unwrap();
    }
    let closed: u64 = counters.iter().map(|counters| counters.1.load(Ordering::SeqCst)).sum();
    println!("{rounds} rounds, {closed} files stored");
    assert!(closed > rounds);
    world.end();
}
