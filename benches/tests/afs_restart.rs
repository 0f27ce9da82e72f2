//! A server that is killed and started again under the load of three clients in afs mode: what was acknowledged is
//! there, nothing old is shown, and the clients go on by themselves.
//!
//! Each thing that changes has one writer and a version that only grows. Who looks at it knows the version that was
//! acknowledged before and the one that was begun last; what is seen must be one of those from the first to the second.
#![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

use std::fs::{self, File};
use std::io;
use std::ops::RangeInclusive;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use larder_benches::mount::{Mode, Mount};
use larder_benches::process::{scratch, store};
use larder_benches::server::Server;
use larder_benches::size::Size;

/// The test that runs itself once more, as the programs.
const TEST: &str = "nothing_is_lost_or_stale_when_the_server_is_killed_again_and_again";
/// Names the directory of the mounts to the process that uses them.
const DIR: &str = "LARDER_RESTART_DIR";
/// Clients.
const CLIENTS: usize = 3;
/// How long the first change may take once the server is back, in the full size; else a machine may be slow.
const PAUSE: Duration = Duration::from_secs(2);
/// How long it may take a client to go on, whatever the machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// The version of something: the last one that was begun, and the last one that was acknowledged.
#[derive(Debug, Default)]
struct Version {
    begun: AtomicU64,
    acknowledged: AtomicU64,
}

impl Version {
    /// Makes the next version.
    fn make(&self, make: impl FnOnce(u64)) {
        let next = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        make(next);
        self.acknowledged.store(next, Ordering::SeqCst);
    }

    /// What `look` sees, and which versions that could be.
    fn watch<T>(&self, look: impl FnOnce() -> T) -> (T, RangeInclusive<u64>) {
        let oldest = self.acknowledged.load(Ordering::SeqCst);
        let seen = look();
        (seen, oldest..=self.begun.load(Ordering::SeqCst))
    }
}

/// A file that one client writes, whole each time.
#[derive(Debug)]
struct Written {
    path: &'static str,
    /// Bytes of the shortest version.
    len: usize,
    version: Version,
}

/// What a client changes.
#[derive(Debug)]
struct Share {
    /// Small ones, one that is sent in several pieces, and one that the kernel serves itself.
    files: [Written; 3],
    /// A file whose name has the version in it.
    moved: Version,
    /// The subdirectory that is there is that of the version.
    dir: Version,
}

/// The changes of all clients, and how many of them each has got an answer to.
#[derive(Debug)]
struct World {
    shares: Vec<Share>,
    progress: Progress,
    dir: PathBuf,
}

/// How many changes each client has got an answer to, and how often was looked at what they change: numbers in a file,
/// which the process that uses the mounts writes and the one that restarts the server reads.
#[derive(Debug)]
struct Progress(File);

impl Progress {
    fn open(dir: &Path) -> Progress {
        let path = dir.join("progress");
        Progress(File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap())
    }

    /// Each number has one writer.
    fn add(&self, place: usize) {
        let next = self.read(place) + 1;
        self.0.write_all_at(&next.to_le_bytes(), place as u64 * 8).unwrap();
    }

    fn read(&self, place: usize) -> u64 {
        let mut number = [0; 8];
        // What is not there yet was not written yet.
        self.0.read_at(&mut number, place as u64 * 8).unwrap();
        u64::from_le_bytes(number)
    }

    fn changes(&self) -> Vec<u64> {
        (0..CLIENTS).map(|client| self.read(client)).collect()
    }

    fn looks(&self) -> u64 {
        (CLIENTS..2 * CLIENTS).map(|client| self.read(client)).sum()
    }
}

impl World {
    fn new(dir: &Path) -> World {
        let file = |path, len| Written { path, len, version: Version::default() };
        let share = || Share {
            files: [file("small", 2_000), file("middle", 150_000), file("large", 2_500_000)],
            moved: Version::default(),
            dir: Version::default(),
        };
        let shares = (0..CLIENTS).map(|_| share()).collect();
        World { shares, progress: Progress::open(dir), dir: dir.to_owned() }
    }

    /// Whether the programs are to end. Whoever says so makes a file.
    fn is_over(&self) -> bool {
        self.dir.join("enough").exists()
    }

    fn versions(&self) -> impl Iterator<Item = &Version> {
        self.shares
            .iter()
            .flat_map(|share| share.files.iter().map(|file| &file.version).chain([&share.moved, &share.dir]))
    }
}

/// The contents of a version: its number again and again, to a length of its own.
fn contents(version: u64, len: usize) -> Vec<u8> {
    let line = format!("{version:019}\n").into_bytes();
    line.iter().copied().cycle().take(len + (version % 1000) as usize).collect()
}

/// The version that these contents are of, which must be whole.
fn version_of(data: &[u8], len: usize) -> u64 {
    let text = data.get(..19).and_then(|line| std::str::from_utf8(line).ok());
    let version =
        text.and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no version in {} bytes", data.len()));
    assert!(data == contents(version, len), "version {version} is not whole: {} bytes", data.len());
    version
}

fn share_of(root: &Path, client: usize) -> PathBuf {
    root.join(format!("client-{client}"))
}

/// Makes the first version of everything.
fn plant(root: &Path, world: &World) {
    for (client, share) in world.shares.iter().enumerate() {
        let root = share_of(root, client);
        fs::create_dir(&root).unwrap();
        share.files.iter().for_each(|file| fs::write(root.join(file.path), contents(0, file.len)).unwrap());
        fs::write(root.join("moved-0"), "").unwrap();
        fs::create_dir(root.join("dir-0")).unwrap();
    }
}

/// One round of changes.
fn change(root: &Path, share: &Share, round: u64, done: impl Fn()) {
    for (number, file) in share.files.iter().enumerate() {
        // The large ones less often.
        if round.is_multiple_of(1 << (2 * number)) {
            file.version.make(|version| store(root.join(file.path), &contents(version, file.len)).unwrap());
            done();
        }
    }
    share.moved.make(|version| {
        fs::rename(root.join(format!("moved-{}", version - 1)), root.join(format!("moved-{version}"))).unwrap();
    });
    done();
    share.dir.make(|version| {
        fs::create_dir(root.join(format!("dir-{version}"))).unwrap();
        done();
        fs::remove_dir(root.join(format!("dir-{}", version - 1))).unwrap();
    });
    done();
}

/// Looks at everything that a client changes; at what it writes only from other clients, for programs of its own see
/// what is being written.
fn look(root: &Path, share: &Share, own: bool) {
    for file in share.files.iter().filter(|_| !own) {
        let (data, possible) = file.version.watch(|| fs::read(root.join(file.path)).unwrap());
        let seen = version_of(&data, file.len);
        assert!(possible.contains(&seen), "{}: version {seen}, not one of {possible:?}", file.path);
        let (meta, possible) = file.version.watch(|| fs::metadata(root.join(file.path)).unwrap());
        let possible: Vec<u64> = possible.map(|version| contents(version, file.len).len() as u64).collect();
        assert!(possible.contains(&meta.len()), "{}: {} bytes, not one of {possible:?}", file.path, meta.len());
    }
    let name = |prefix: &str, version: u64| root.join(format!("{prefix}-{version}"));
    // The one that is acknowledged has no older name, and if it has not been renamed since, it has its own.
    for (prefix, version) in [("moved", &share.moved), ("dir", &share.dir)] {
        let last = version.acknowledged.load(Ordering::SeqCst);
        if let Some(before) = last.checked_sub(1) {
            assert!(is_gone(&name(prefix, before)), "{prefix}-{before} is there though {last} was acknowledged");
        }
        let (there, possible) = version.watch(|| !is_gone(&name(prefix, last)));
        assert!(there || *possible.end() > last, "{prefix}-{last} was acknowledged and is not there");
    }
    let (names, possible) = share.moved.watch(|| moved_names(root));
    assert!(names.iter().all(|version| possible.contains(version)), "listed {names:?}, not of {possible:?}");
}

fn is_gone(path: &Path) -> bool {
    match fs::symlink_metadata(path) {
        Ok(_) => false,
        Err(error) if error.kind() == io::ErrorKind::NotFound => true,
        Err(error) => panic!("{}: {error}", path.display()),
    }
}

/// The versions in the names of the file that is moved.
fn moved_names(root: &Path) -> Vec<u64> {
    let names = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter_map(|name| name.strip_prefix("moved-")?.parse().ok()).collect()
}

/// A client's programs, until it is enough: one changes, the other looks at what all change.
fn load(root: PathBuf, client: usize, world: &Arc<World>) -> [JoinHandle<()>; 2] {
    let changer = {
        let (root, world) = (share_of(&root, client), world.clone());
        move || {
            for round in 0.. {
                change(&root, &world.shares[client], round, || world.progress.add(client));
                if world.is_over() {
                    return;
                }
            }
        }
    };
    let watcher = {
        let world = world.clone();
        move || {
            while !world.is_over() {
                for (other, share) in world.shares.iter().enumerate() {
                    look(&share_of(&root, other), share, other == client);
                    world.progress.add(CLIENTS + client);
                }
            }
        }
    };
    [std::thread::spawn(changer), std::thread::spawn(watcher)]
}

/// The process that uses the mounts. Not the one that starts servers: what that had open on a mount would be closed in
/// the new process, which waits for a server.
struct Programs {
    process: Child,
    progress: Progress,
}

impl Programs {
    fn start(dir: &Path) -> Programs {
        let me = std::env::current_exe().unwrap();
        let process = Command::new(me)
            .args(["--exact", TEST, "--nocapture"])
            .env(DIR, dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Programs { process, progress: Progress::open(dir) }
    }

    /// Waits until `done`, and fails if the programs fail, or after all patience.
    fn wait_until(&mut self, what: &str, done: impl Fn(&Progress) -> bool) {
        let start = Instant::now();
        while !done(&self.progress) {
            let ended = self.process.try_wait().unwrap();
            assert!(ended.is_none(), "the programs ended: {ended:?}");
            assert!(start.elapsed() < PATIENCE, "{what}: not after {PATIENCE:?}, with {:?}", self.progress.changes());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn end(&mut self) {
        let start = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                assert!(status.success(), "the programs failed: {status}");
                return;
            }
            assert!(start.elapsed() < PATIENCE, "the programs do not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        // It may hang in a mount, and ends with that.
        let _ = self.process.kill();
    }
}

/// Kills the server and starts it again; how long it then is until a change is answered.
fn restart(server: &mut Server, programs: &mut Programs) -> Duration {
    server.kill().unwrap();
    server.restart().unwrap();
    let (start, before) = (Instant::now(), programs.progress.changes());
    programs.wait_until("a first change", |progress| progress.changes() != before);
    let pause = start.elapsed();
    let before = programs.progress.changes();
    programs.wait_until("a change of each client", |progress| {
        progress.changes().iter().zip(&before).all(|(now, before)| now > before)
    });
    pause
}

/// Where a client is mounted.
fn mount_name(client: usize) -> String {
    format!("mnt-{client}")
}

/// Run in a process of its own by the test below: uses the mounts until it is enough, looks whether all is there, and
/// leaves the last versions in a file.
fn use_the_mounts(dir: &Path) {
    let world = Arc::new(World::new(dir));
    let roots: Vec<PathBuf> = (0..CLIENTS).map(|client| dir.join(mount_name(client))).collect();
    let programs: Vec<_> =
        roots.iter().enumerate().flat_map(|(client, root)| load(root.clone(), client, &world)).collect();
    while !programs.iter().all(JoinHandle::is_finished) {
        if world.is_over() || programs.iter().any(JoinHandle::is_finished) {
            // One that has failed is waited for alone: the others may go on for ever.
            let (ended, others): (Vec<_>, Vec<_>) = programs.into_iter().partition(JoinHandle::is_finished);
            ended.into_iter().chain(others).for_each(|program| program.join().unwrap());
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    roots.iter().for_each(|root| verify(root, &world));
    let versions: Vec<String> =
        world.versions().map(|version| version.acknowledged.load(Ordering::SeqCst).to_string()).collect();
    fs::write(dir.join("versions"), versions.join(" ")).unwrap();
}

/// What is there in the end is what was acknowledged last.
fn verify(root: &Path, world: &World) {
    for (client, share) in world.shares.iter().enumerate() {
        let root = share_of(root, client);
        for file in &share.files {
            let seen = version_of(&fs::read(root.join(file.path)).unwrap(), file.len);
            assert_eq!(seen, file.version.acknowledged.load(Ordering::SeqCst), "{}", file.path);
        }
        assert_eq!(moved_names(&root), [share.moved.acknowledged.load(Ordering::SeqCst)]);
        let dir = share.dir.acknowledged.load(Ordering::SeqCst);
        assert!(root.join(format!("dir-{dir}")).is_dir());
        assert_eq!(fs::read_dir(&root).unwrap().count(), share.files.len() + 2);
    }
}

#[test]
fn nothing_is_lost_or_stale_when_the_server_is_killed_again_and_again() {
    if let Some(dir) = std::env::var_os(DIR) {
        return use_the_mounts(Path::new(&dir));
    }
    let restarts = Size::get().pick(3, 5, 20);
    let dir = scratch().unwrap();
    let mut server = Server::start(dir.path(), "process").unwrap();
    let mounts: Vec<Mount> = (0..CLIENTS)
        .map(|client| Mount::new(dir.path(), &mount_name(client), &server, Mode::Afs, "hard").unwrap())
        .collect();
    let world = World::new(dir.path());
    plant(mounts[0].path(), &world);
    let mut programs = Programs::start(dir.path());
    programs.wait_until("the first changes", |progress| progress.changes().iter().all(|count| *count > 0));
    let mut pauses = Vec::new();
    for number in 0..restarts {
        // At another point of the load each time.
        std::thread::sleep(Duration::from_millis(rand::random_range(300..1200)));
        let (changes, looks) = (programs.progress.changes(), programs.progress.looks());
        let pause = restart(&mut server, &mut programs);
        println!("restart {number} after {changes:?} changes and {looks} looks: the first change after {pause:?}");
        pauses.push(pause);
    }
    fs::write(dir.path().join("enough"), "").unwrap();
    programs.end();
    let longest = pauses.iter().max().unwrap();
    println!("{restarts} restarts, the longest pause before the first change: {longest:?}");
    assert!(Size::get() != Size::Full || *longest < PAUSE, "a pause of {longest:?}");
    mounts.into_iter().for_each(|mount| mount.close(false).unwrap());
    let versions = fs::read_to_string(dir.path().join("versions")).unwrap();
    for (version, text) in world.versions().zip(versions.split(' ')) {
        version.acknowledged.store(text.parse().unwrap(), Ordering::SeqCst);
    }
    let fresh = Mount::new(dir.path(), "fresh", &server, Mode::Direct, "").unwrap();
    verify(fresh.path(), &world);
    fresh.close(false).unwrap();
    server.check().unwrap();
}
