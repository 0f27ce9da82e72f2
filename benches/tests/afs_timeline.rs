//! One afternoon of two clients and one file, in afs mode and in nfs mode: which requests each step sends.
//!
//! A file of three blocks of 1 MiB; a unit of time is 100 ms. At 0 client A opens it, reads blocks at 10, 20, 30, 31, 60,
//! 80 and 81, closes it at 90, opens it again at 100, reads at 110 and closes at 120. Client B opens it at 40, writes a
//! block at 50 and closes it at 70. Each client has listed the directory before, and nothing is read ahead.
#![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

use std::ffi::c_void;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use larder_benches::mount::{Counts, Mode, Mount};
use larder_benches::process::{binary, run, scratch};
use larder_benches::server::Server;
use rustix::fs::{Advice, fadvise};
use rustix::mm::{MapFlags, ProtFlags, mlock, mmap, munmap};

/// Bytes in a block.
const BLOCK: usize = 1 << 20;
/// Blocks of the file.
const BLOCKS: usize = 3;
/// A unit of time.
const UNIT: Duration = Duration::from_millis(100);

/// Two clients, and what has been counted so far.
struct Afternoon {
    a: Mount,
    b: Mount,
    server: Server,
    counters: Counters,
    start: Instant,
    seen: Seen,
    _dir: tempfile::TempDir,
}

/// Counters at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    a: Counts,
    b: Counts,
    server: Counts,
    /// Callbacks that were broken.
    broken: u64,
}

/// A program that asks for counters. It is started before any file is open: one that is started while a file is would
/// close it in the child, which flushes it.
struct Counters {
    shell: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
    /// The two mounts and the server.
    targets: [String; 3],
}

impl Counters {
    fn start(a: &Mount, b: &Mount, server: &Server) -> Counters {
        const ASK: &str = r#"while read -r target; do "$0" stats "$target" --json | tr -d '\n'; echo; done"#;
        let mut shell = Command::new("sh")
            .args(["-c", ASK])
            .arg(binary("larder").unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (ask, answers) = (shell.stdin.take().unwrap(), BufReader::new(shell.stdout.take().unwrap()));
        let path = |mount: &Mount| mount.path().to_str().unwrap().to_owned();
        Counters { shell, ask, answers, targets: [path(a), path(b), server.address().to_owned()] }
    }

    fn read(&mut self) -> Seen {
        let mut all = Vec::new();
        for target in &self.targets {
            writeln!(self.ask, "{target}").unwrap();
            let mut line = String::new();
            self.answers.read_line(&mut line).unwrap();
            let stats: serde_json::Value = serde_json::from_str(&line).unwrap();
            all.push((Counts::in_stats(&stats).unwrap(), stats["promises"].clone()));
        }
        let [(a, _), (b, _), (server, promises)] = <[_; 3]>::try_from(all).unwrap();
        Seen { a, b, server, broken: promises["broken"].as_u64().unwrap() }
    }

    /// Once nothing is on its way any more: what a client asked for the server has answered, and the client has got it.
    fn settled(&mut self, first: &Seen) -> Seen {
        let mut last = None;
        for _ in 0..100 {
            let seen = self.read();
            let (a, b, server) = (seen.a.since(&first.a), seen.b.since(&first.b), seen.server.since(&first.server));
            if a.total() + b.total() == server.total() && last.as_ref() == Some(&server) {
                return seen;
            }
            last = Some(server);
        }
        panic!("the clients and the server never agree on what was sent");
    }
}

impl Drop for Counters {
    fn drop(&mut self) {
        // It ends by itself when nobody asks any more; that is not waited for.
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

/// What a step cost.
struct Cost {
    step: String,
    /// The client's requests.
    own: Counts,
    /// Those that the server answered, of both clients.
    server: Counts,
    /// Callbacks that the server broke.
    broken: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    A,
    B,
}

fn block(version: u8, number: usize) -> Vec<u8> {
    (0..BLOCK).map(|at| version.wrapping_mul(31) ^ (number * 7 + at % 251) as u8).collect()
}

fn open(path: &Path, write: bool) -> File {
    let file = OpenOptions::new().read(true).write(write).open(path).unwrap();
    fadvise(&file, 0, None::<NonZeroU64>, Advice::Random).unwrap();
    file
}

/// Reads block `number`, counted from 1, and requires that it is of this version.
fn read(file: &File, number: usize, version: u8) {
    let mut data = vec![0; BLOCK];
    file.read_exact_at(&mut data, ((number - 1) * BLOCK) as u64).unwrap();
    assert!(data == block(version, number), "block {number} is not that of version {version}");
}

impl Afternoon {
    fn new(mode: Mode, options: &str) -> Afternoon {
        let dir = scratch().unwrap();
        let server = Server::start(dir.path(), "process").unwrap();
        let maker = Mount::new(dir.path(), "maker", &server, mode, "").unwrap();
        let contents: Vec<u8> = (1..=BLOCKS).flat_map(|number| block(0, number)).collect();
        fs::write(maker.at("file"), contents).unwrap();
        maker.close(false).unwrap();
        let a = Mount::new(dir.path(), "a", &server, mode, options).unwrap();
        let b = Mount::new(dir.path(), "b", &server, mode, options).unwrap();
        for mount in [&a, &b] {
            run(Command::new("ls").arg(mount.path())).unwrap();
        }
        let mut counters = Counters::start(&a, &b, &server);
        let seen = counters.read();
        Afternoon { a, b, server, counters, start: Instant::now(), seen, _dir: dir }
    }

    fn path(&self, who: Who) -> PathBuf {
        if who == Who::A { self.a.at("file") } else { self.b.at("file") }
    }

    /// Waits for the time of a step, and does it.
    fn step<T>(&mut self, time: u32, who: Who, what: &str, act: impl FnOnce() -> T) -> (T, Cost) {
        // What the timeline is about is what clients do at certain times.
        std::thread::sleep((UNIT * time).saturating_sub(self.start.elapsed()));
        let result = act();
        let now = self.counters.settled(&self.seen);
        let before = std::mem::replace(&mut self.seen, now);
        let (own, other) = (self.seen.a.since(&before.a), self.seen.b.since(&before.b));
        let (own, other) = if who == Who::A { (own, other) } else { (other, own) };
        let (server, broken) = (self.seen.server.since(&before.server), self.seen.broken - before.broken);
        let step = format!("t={time} {who:?} {what}");
        println!("{step}: {:?}; the server answered {:?} and broke {broken}", own.0, server.0);
        assert_eq!(other, Counts::default(), "{step}: the other client sent requests");
        (result, Cost { step, own, server, broken })
    }
}

impl Cost {
    /// Exactly these requests, and as many breaks; what the server answered is what the client sent.
    fn is(&self, requests: &[(&str, u64)], broken: u64) {
        let wanted = Counts(requests.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect());
        assert_eq!(self.own, wanted, "{}", self.step);
        assert_eq!(self.server, wanted, "{}: at the server", self.step);
        assert_eq!(self.broken, broken, "{}: callbacks broken", self.step);
    }

    fn is_free(&self) {
        self.is(&[], 0);
    }

    /// One fetch of the whole file, after at most one question.
    fn is_a_fetch(&self) {
        assert_eq!(self.own, self.server, "{}: at the server", self.step);
        assert_eq!(self.own.of("fetch"), BLOCKS as u64, "{}: one for each part: {:?}", self.step, self.own);
        let asked = self.own.of("getattr") + self.own.of("lookup");
        assert!(asked <= 1, "{}: one question is enough: {:?}", self.step, self.own);
        assert_eq!(self.own.total(), BLOCKS as u64 + asked, "{}: {:?}", self.step, self.own);
        assert_eq!(self.broken, 0, "{}: callbacks broken", self.step);
    }

    /// No other kinds than these, and no more of each.
    fn is_at_most(&self, requests: &[(&str, u64)]) {
        for (kind, count) in &self.own.0 {
            let most = requests.iter().find(|(allowed, _)| allowed == kind).map_or(0, |(_, most)| *most);
            assert!(*count <= most, "{}: {:?}, at most {requests:?}", self.step, self.own);
        }
    }

    fn has(&self, kind: &str) {
        assert!(self.own.of(kind) > 0, "{}: no {kind}: {:?}", self.step, self.own);
    }
}

/// As many as may be.
const ANY: u64 = u64::MAX;

/// A open: fetch with callback; reads: nothing. B open: fetch; write: nothing; close: store, which breaks A's callback.
/// A reads the version that it has until it closes the file; its next open fetches.
fn an_open_file_costs_nothing_and_a_close_breaks_one_callback(options: &str) {
    let mut day = Afternoon::new(Mode::Afs, options);
    let (a_path, b_path) = (day.path(Who::A), day.path(Who::B));
    let (a, cost) = day.step(0, Who::A, "open", || open(&a_path, false));
    cost.is_a_fetch();
    for (time, number) in [(10, 1), (20, 2), (30, 1), (31, 2)] {
        day.step(time, Who::A, "read", || read(&a, number, 0)).1.is_free();
    }
    let (b, cost) = day.step(40, Who::B, "open", || open(&b_path, true));
    cost.is_a_fetch();
    day.step(50, Who::B, "write block 1", || b.write_all_at(&block(1, 1), 0).unwrap()).1.is_free();
    day.step(60, Who::A, "read", || read(&a, 1, 0)).1.is_free();
    let cost = day.step(70, Who::B, "close", || drop(b)).1;
    cost.is(&[("stage", BLOCKS as u64), ("store", 1)], 1);
    for (time, number) in [(80, 1), (81, 2)] {
        day.step(time, Who::A, "read", || read(&a, number, 0)).1.is_free();
    }
    day.step(90, Who::A, "close", || drop(a)).1.is_free();
    let (a, cost) = day.step(100, Who::A, "open", || open(&a_path, false));
    cost.is_a_fetch();
    day.step(110, Who::A, "read", || read(&a, 1, 1)).1.is_free();
    day.step(120, Who::A, "close", || drop(a)).1.is_free();
    let Afternoon { a, b, mut server, .. } = day;
    for (mount, fetches) in [(&a, 2), (&b, 1)] {
        let stats = mount.stats().unwrap();
        if let Some(counted) = stats.get("fetches") {
            assert_eq!(counted.as_u64(), Some(fetches), "files fetched: {stats}");
        }
    }
    a.close(false).unwrap();
    b.close(false).unwrap();
    server.check().unwrap();
}

#[test]
fn in_afs_mode_an_open_file_costs_nothing_and_a_close_breaks_one_callback() {
    an_open_file_costs_nothing_and_a_close_breaks_one_callback("passthrough=off");
}

#[test]
fn in_afs_mode_it_is_the_same_where_the_kernel_serves_the_file() {
    an_open_file_costs_nothing_and_a_close_breaks_one_callback("passthrough=256K");
}

/// A block that stays in the kernel's page cache until it is no longer good: a machine that wants memory takes what was
/// read and not mapped from there at any time, and in nfs mode it is nowhere else.
struct Pinned(*mut c_void);

impl Pinned {
    fn new(file: &File, number: usize) -> Pinned {
        let offset = ((number - 1) * BLOCK) as u64;
        // SAFETY: a new mapping where the kernel likes, which nobody reads or writes through.
        let at = unsafe { mmap(std::ptr::null_mut(), BLOCK, ProtFlags::READ, MapFlags::SHARED, file, offset) }.unwrap();
        let pinned = Pinned(at);
        // SAFETY: the range is that mapping.
        unsafe { mlock(at, BLOCK) }.unwrap();
        pinned
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: the range is the mapping that was made for this, and is not used any more.
        let _ = unsafe { munmap(self.0, BLOCK) };
    }
}

/// Attributes are asked for when they are older than `actimeo`, and at open; data that has not changed comes from the
/// cache. B's close writes, and A sees the change when its attributes are next asked for.
#[test]
fn in_nfs_mode_attributes_are_asked_for_again_and_again() {
    let mut day = Afternoon::new(Mode::Nfs, "actimeo=0.9");
    let (a_path, b_path) = (day.path(Who::A), day.path(Who::B));
    let to_open = [("lookup", 1), ("getattr", 2)];
    let to_read = [("read", ANY), ("getattr", 1)];
    let (a, cost) = day.step(0, Who::A, "open", || open(&a_path, false));
    cost.is_at_most(&to_open);
    assert!(cost.own.total() > 0, "open asks the server");
    let mut pinned = Vec::new();
    for (time, number) in [(10, 1), (20, 2)] {
        let cost = day.step(time, Who::A, "read", || read(&a, number, 0)).1;
        pinned.push(Pinned::new(&a, number));
        cost.is_at_most(&to_read);
        cost.has("read");
    }
    let cost = day.step(30, Who::A, "read", || read(&a, 1, 0)).1;
    cost.is_at_most(&[("getattr", 1)]);
    cost.has("getattr");
    day.step(31, Who::A, "read", || read(&a, 2, 0)).1.is_free();
    let (b, cost) = day.step(40, Who::B, "open", || open(&b_path, true));
    cost.is_at_most(&to_open);
    assert!(cost.own.total() > 0, "open asks the server");
    // The kernel wants to know of file capabilities before a write, and that there are none is an attribute.
    let cost = day.step(50, Who::B, "write block 1", || b.write_all_at(&block(1, 1), 0).unwrap()).1;
    cost.is_at_most(&[("getattr", 1)]);
    let cost = day.step(60, Who::A, "read", || read(&a, 1, 0)).1;
    cost.is_at_most(&[("getattr", 1)]);
    cost.has("getattr");
    let cost = day.step(70, Who::B, "close", || drop(b)).1;
    cost.is_at_most(&[("write", ANY), ("commit", 1), ("getattr", 1)]);
    // One piece needs no commit: it is durable when the write is answered.
    cost.has("write");
    let cost = day.step(80, Who::A, "read", || read(&a, 1, 1)).1;
    cost.is_at_most(&to_read);
    cost.has("getattr");
    cost.has("read");
    let cost = day.step(81, Who::A, "read", || read(&a, 2, 0)).1;
    cost.is_at_most(&to_read);
    cost.has("read");
    drop(pinned);
    day.step(90, Who::A, "close", || drop(a)).1.is_free();
    let (a, cost) = day.step(100, Who::A, "open", || open(&a_path, false));
    cost.is_at_most(&to_open);
    assert!(cost.own.total() > 0, "open asks the server");
    // The pages were read while a change came to light, so that open has dropped them: whether they are all new is not
    // known. A client that knew would read nothing.
    day.step(110, Who::A, "read", || read(&a, 1, 1)).1.is_at_most(&to_read);
    day.step(120, Who::A, "close", || drop(a)).1.is_free();
    let Afternoon { a, b, mut server, .. } = day;
    a.close(false).unwrap();
    b.close(false).unwrap();
    server.check().unwrap();
}
