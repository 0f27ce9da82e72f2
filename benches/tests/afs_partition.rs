//! A client in afs mode that is cut off from its server: whoever writes waits for the rest of its lease and goes on, the
//! client shows nothing that may be old, and when it is back it asks about all that it has in a few requests.
//!
//! Each machine is a network namespace. Time is real here: it is the kernel's clocks and caches that are tested.
#![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use larder_benches::mount::{Counts, Mode, Mount, Setup};
use larder_benches::network::{Network, ip};
use larder_benches::process::{run, scratch};
use larder_benches::server::Server;

/// The term of the leases.
const TERM: Duration = Duration::from_secs(3);
/// What a lease may last beyond its term for the server: a twentieth of it.
const MARGIN: Duration = TERM.checked_div(20).unwrap();
/// What a loaded machine may add to any wait.
const SLACK: Duration = Duration::from_secs(5);
/// How long a client may take to find its server again.
const RETURN: Duration = Duration::from_secs(60);
/// Files in each directory of the tree.
const FILES: usize = 50;
/// Files of the tree that are changed meanwhile.
const CHANGED: usize = 3;

/// A machine, and its number in the network; the first one has the switch.
#[derive(Clone, Copy, Debug)]
enum Machine {
    Server,
    A,
    B,
}

/// How A is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// Its cable is pulled.
    Cable,
    /// It hears nothing, and is heard.
    Deaf,
    /// It is not heard, and hears everything.
    Mute,
}

/// A queue without room drops what would leave by this interface.
fn drop_at(network: &Network, machine: Machine, interface: &str, drops: bool) {
    let verb = if drops { ["add", "pfifo", "limit", "0"].as_slice() } else { &["del"] };
    let mut command = Command::new("tc");
    command.args(["-n", &network.of(machine as usize), "qdisc", verb[0], "dev", interface, "root"]).args(&verb[1..]);
    run(&mut command).unwrap();
}

fn set(network: &Network, cut: Cut, is_cut: bool) {
    let port = network.port(Machine::A as usize);
    match cut {
        Cut::Cable => {
            let state = if is_cut { "down" } else { "up" };
            ip(Some(&network.of(Machine::Server as usize)), &format!("link set {port} {state}")).unwrap();
        }
        Cut::Deaf => drop_at(network, Machine::Server, &port, is_cut),
        Cut::Mute => drop_at(network, Machine::A, "cable", is_cut),
    }
}

/// The file that B writes, at version 0 or 1.
fn shared(version: usize) -> String {
    format!("version {version}\n").repeat(300 + version)
}

/// Looks at something that B changes, in the mount on A; gives the version that is seen.
type View = fn(&Path) -> io::Result<usize>;

/// The ways to look.
const VIEWS: [(&str, View); 5] = [
    ("open", |root| {
        let text = fs::read_to_string(root.join("shared"))?;
        let version = (0..2).find(|version| text == shared(*version));
        Ok(version.unwrap_or_else(|| panic!("neither version: {text:?}")))
    }),
    ("stat", |root| Ok(usize::from(fs::metadata(root.join("shared"))?.len() != shared(0).len() as u64))),
    ("lookup", |root| match fs::symlink_metadata(root.join("names/old")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(1),
        result => result.map(|_| 0),
    }),
    ("lookup of a new name", |root| match fs::symlink_metadata(root.join("names/new")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        result => result.map(|_| 1),
    }),
    ("readdir", |root| {
        let names: BTreeSet<_> =
            fs::read_dir(root.join("names"))?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<_>>()?;
        Ok(usize::from(!names.contains(OsStr::new("old"))))
    }),
];

/// What was seen, how, and when it was asked for and answered.
#[derive(Clone, Debug)]
struct Look {
    view: &'static str,
    began: Instant,
    ended: Instant,
    seen: Result<usize, String>,
}

/// Programs that look again and again. While A is cut off they hang, so nobody waits for their end: it comes with the
/// end of the mount.
struct Watchers {
    looks: Arc<Mutex<Vec<Look>>>,
    enough: Arc<AtomicBool>,
}

impl Watchers {
    fn start(root: &Path) -> Watchers {
        let watchers = Watchers { looks: Arc::default(), enough: Arc::default() };
        for (view, look) in VIEWS {
            let (looks, enough, root) = (watchers.looks.clone(), watchers.enough.clone(), root.to_owned());
            std::thread::spawn(move || {
                while !enough.load(Ordering::SeqCst) {
                    let began = Instant::now();
                    let seen = look(&root).map_err(|error| error.to_string());
                    looks.lock().unwrap().push(Look { view, began, ended: Instant::now(), seen });
                    std::thread::sleep(Duration::from_millis(5));
                }
            });
        }
        watchers
    }

    fn so_far(&self) -> Vec<Look> {
        self.looks.lock().unwrap().clone()
    }

    /// Waits until each view has been taken of something that `wanted` likes.
    fn wait_for(&self, what: &str, wanted: impl Fn(&Look) -> bool) {
        let start = Instant::now();
        loop {
            let looks = self.so_far();
            let missing = VIEWS.iter().find(|(view, _)| !looks.iter().any(|look| look.view == *view && wanted(look)));
            let Some((view, _)) = missing else { return };
            assert!(start.elapsed() < RETURN, "{view}: not {what} after {RETURN:?}: {:?}", looks.last());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Watchers {
    fn drop(&mut self) {
        self.enough.store(true, Ordering::SeqCst);
    }
}

/// A machine's mount.
fn mount(dir: &Path, network: &Network, machine: Machine, name: &str, server: &Server) -> Mount {
    let namespace = network.of(machine as usize);
    let setup = Setup { options: "hard", namespace: Some(&namespace), ..Setup::default() };
    Mount::set_up(dir, name, server.address(), Mode::Afs, &setup).unwrap()
}

fn lease(mount: &Mount) -> Duration {
    Duration::from_millis(mount.stats().unwrap()["cache"]["lease_ms"].as_u64().unwrap())
}

fn files(root: &Path, dirs: usize) -> Vec<PathBuf> {
    (0..dirs)
        .flat_map(|dir| (0..FILES).map(move |file| (dir, file)))
        .map(|(dir, file)| root.join(format!("dir-{dir}/file-{file}")))
        .collect()
}

fn contents(number: usize, changed: bool) -> String {
    format!("file {number}, changed: {changed}\n").repeat(1 + number % 50)
}

/// The tree, made and let go of.
fn plant(root: &Path, dirs: usize) {
    (0..dirs).for_each(|dir| fs::create_dir(root.join(format!("dir-{dir}"))).unwrap());
    files(root, dirs).iter().enumerate().for_each(|(number, path)| fs::write(path, contents(number, false)).unwrap());
    fs::create_dir(root.join("names")).unwrap();
    fs::write(root.join("names/old"), "").unwrap();
    fs::write(root.join("shared"), shared(0)).unwrap();
}

/// A has read all files of `dirs` directories when it is cut off.
fn a_client_is_cut_off(cut: Cut, dirs: usize) {
    let dir = scratch().unwrap();
    let network = Network::new(3).unwrap();
    let term = TERM.as_secs().to_string();
    let arguments = ["--insecure", "--root-squash", "off", "--lease-term", &term];
    let at_server = network.of(Machine::Server as usize);
    let address = format!("{}:0", network.address(Machine::Server as usize));
    let mut server = Server::start_in(dir.path(), &address, &arguments, Some(&at_server)).unwrap();
    let b = mount(dir.path(), &network, Machine::B, "b", &server);
    plant(b.path(), dirs);
    let a = mount(dir.path(), &network, Machine::A, "a", &server);
    for (number, path) in files(a.path(), dirs).iter().enumerate() {
        assert_eq!(fs::read_to_string(path).unwrap(), contents(number, false));
    }
    let watchers = Watchers::start(a.path());
    watchers.wait_for("seen at first", |look| look.seen == Ok(0));
    let (before, lapsed) = (a.counts().unwrap(), server.stats().unwrap().promises.lapsed);

    set(&network, cut, true);
    let cut_at = Instant::now();
    // What A holds a promise of it uses for as long as its lease runs.
    let first = files(a.path(), dirs).remove(0);
    let read = in_time(SLACK, move || fs::read_to_string(first).unwrap());
    if !lease(&a).is_zero() {
        assert_eq!(read.expect("served while the lease runs"), contents(0, false));
    }

    // The first change waits for A, the others find it gone.
    let start = Instant::now();
    fs::write(b.at("shared"), shared(1)).unwrap();
    let stored = Instant::now();
    let waited = stored - start;
    let left = lease(&a);
    fs::remove_file(b.at("names/old")).unwrap();
    fs::write(b.at("names/new"), "").unwrap();
    for (number, path) in files(b.path(), dirs).iter().enumerate().take(CHANGED) {
        fs::write(path, contents(number, true)).unwrap();
    }
    let changed = Instant::now();
    println!("{cut:?}: the first change waited {waited:?}, six more took {:?}", changed - stored);
    assert!(waited <= TERM + MARGIN + SLACK, "the writer waited {waited:?} for a lease of {TERM:?}");
    assert_eq!(left, Duration::ZERO, "the change was answered while A still counted on its lease");
    let stats = server.stats().unwrap().promises;
    assert!(stats.lapsed > lapsed && stats.waited > 0, "nobody waited for the lease: {stats:?}");
    assert!(changed - stored <= SLACK, "later changes waited too: {:?}", changed - stored);

    // Time to show something that it must not.
    std::thread::sleep(TERM / 2);
    let mended = Instant::now();
    let shown: Vec<Look> =
        watchers.so_far().into_iter().filter(|look| look.ended > stored && look.began < mended).collect();
    assert!(shown.is_empty(), "A showed something though it could not know: {shown:?}");
    set(&network, cut, false);
    watchers.wait_for("seen as it is now", |look| look.seen == Ok(1));
    println!(
        "{cut:?}: after {:?} everything is seen as it is, {:?} after the cut is mended",
        cut_at.elapsed(),
        mended.elapsed()
    );
    let looks = watchers.so_far();
    drop(watchers);
    let stale: Vec<&Look> = looks.iter().filter(|look| look.began >= changed && look.seen == Ok(0)).collect();
    assert!(stale.is_empty(), "seen after it had been changed: {stale:?}");
    let failed: Vec<&Look> = looks.iter().filter(|look| look.seen.is_err()).collect();
    assert!(failed.is_empty(), "a hard mount fails nothing: {failed:?}");

    recheck_was_in_bulk(&a, &before, dirs);
    a.close(false).unwrap();
    b.close(false).unwrap();
    server.check().unwrap();
}

/// What `work` gives, if it does in time.
fn in_time<T: Send + 'static>(limit: Duration, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (sender, receiver) = std::sync::mpsc::channel();
    // Whoever waits may have given up.
    std::thread::spawn(move || drop(sender.send(work())));
    receiver.recv_timeout(limit).ok()
}

/// What A has it was told of in a few requests, and only what was changed it has fetched since.
fn recheck_was_in_bulk(a: &Mount, before: &Counts, dirs: usize) {
    let start = Instant::now();
    while a.counts().unwrap().since(before).of("recheck") == 0 || lease(a).is_zero() {
        assert!(start.elapsed() < RETURN, "no recheck after {RETURN:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    // What the watchers asked for until all was known again depends on how long that took, and is not counted.
    let known = a.counts().unwrap();
    for (number, path) in files(a.path(), dirs).iter().enumerate() {
        assert_eq!(fs::read_to_string(path).unwrap(), contents(number, number < CHANGED));
    }
    let now = a.counts().unwrap();
    let (all, reading) = (now.since(before), now.since(&known));
    println!("reading {} files took {:?}; with what was asked before, {:?}", dirs * FILES, reading.0, all.0);
    // One part of each.
    assert_eq!(reading.of("fetch"), CHANGED as u64, "fetched beside what was changed: {reading:?}");
    assert!(all.of("recheck") <= 4, "many rechecks: {all:?}");
    assert!(reading.total() <= 40, "asked about one by one: {reading:?}");
}

#[test]
fn a_client_whose_cable_is_pulled() {
    a_client_is_cut_off(Cut::Cable, 20);
}

#[test]
fn a_client_that_hears_nothing() {
    a_client_is_cut_off(Cut::Deaf, 4);
}

#[test]
fn a_client_that_is_not_heard() {
    a_client_is_cut_off(Cut::Mute, 4);
}
