//! How soon things go on after the server was killed, and that a mount whose server or client does not answer can always
//! be taken down, with every program that waits for it.
#![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use larder_benches::in_each_mode;
use larder_benches::mount::{Mode, Mount};
use larder_benches::process::scratch;
use larder_benches::proxy::Proxy;
use larder_benches::raw::Raw;
use larder_benches::server::Server;
use larder_benches::size::Size;
use larder_protocol::service::file::{Query, QueryReply};
use rustix::process::Signal;

/// Files in each directory of a large tree.
const IN_A_DIRECTORY: usize = 1_000;
/// Clients that make the tree.
const MAKERS: usize = 8;
/// How soon the first answer comes after the server's start, and all clients are back after that, in the full size; else
/// a machine may be slow.
const SOON: Duration = Duration::from_secs(1);
/// How soon, whatever the machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Makes empty files through connections of its own, beside each other.
fn make_files(address: &str, count: usize) {
    std::thread::scope(|scope| {
        for maker in 0..MAKERS {
            scope.spawn(move || {
                let executor = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                executor.block_on(async {
                    let mut raw = Raw::connect(address).await.unwrap();
                    for dir in (0..count.div_ceil(IN_A_DIRECTORY)).filter(|dir| dir % MAKERS == maker) {
                        let made = raw.mkdir(raw.root, format!("d{dir}").as_bytes()).await.unwrap();
                        for file in 0..IN_A_DIRECTORY.min(count - dir * IN_A_DIRECTORY) {
                            raw.create(made.fid, format!("f{file}").as_bytes()).await.unwrap();
                        }
                    }
                });
            });
        }
    });
}

/// Waits for an answer of the server to a question about its store.
fn first_answer(address: &str) {
    let executor = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    executor.block_on(async {
        let raw = Raw::connect(address).await.unwrap();
        let answer = raw.query(Query::Getattr { fid: raw.root }).await.unwrap();
        assert!(matches!(answer, Ok(QueryReply::Attr(_))), "{answer:?}");
    });
}

/// A program that makes, moves and lists on a mount until it is killed, and notes each time that it got through.
struct Program {
    child: Child,
    notes: PathBuf,
}

impl Program {
    fn start(mount: &Mount, dir: &Path) -> Program {
        let notes = dir.join(format!("notes-{}", mount.mode().name()));
        File::create(&notes).unwrap();
        let script = r#"
            mkdir "$1" && cd "$1" || exit
            while echo "$$" >new && mv new old && ls >/dev/null && grep -qx "$$" old; do echo >>"$2"; done
        "#;
        let mut command = Command::new("sh");
        command.args(["-c", script, "program"]).arg(mount.at(mount.mode().name())).arg(&notes);
        Program { child: command.stdin(Stdio::null()).spawn().unwrap(), notes }
    }

    fn rounds(&self) -> u64 {
        fs::metadata(&self.notes).unwrap().len()
    }

    /// Waits until it got through what it began after now.
    fn goes_on(&mut self) {
        let (from, before) = (Instant::now(), self.rounds());
        // The round that is under way may have needed the server no more.
        while self.rounds() < before + 2 {
            assert!(self.child.try_wait().unwrap().is_none(), "the program has failed");
            assert!(from.elapsed() < PATIENCE, "the program does not go on");
            sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_server_with_many_files_is_back_at_once() {
    let files = Size::get().pick(2_000, 20_000, 1_000_000);
    let kills = Size::get().pick(3, 5, 20);
    let soon = if Size::get() == Size::Full { SOON } else { PATIENCE };
    let dir = scratch().unwrap();
    let mut server = Server::start(dir.path(), "process").unwrap();
    let begun = Instant::now();
    make_files(server.address(), files);
    println!("{files} files made in {:.1?}", begun.elapsed());
    let mounts = Mode::ALL.map(|mode| Mount::new(dir.path(), mode.name(), &server, mode, "hard").unwrap());
    let mut programs = mounts.each_ref().map(|mount| Program::start(mount, dir.path()));
    programs.iter_mut().for_each(Program::goes_on);
    let (mut to_answer, mut to_clients) = (Vec::new(), Vec::new());
    for kill in 0..kills {
        server.kill().unwrap();
        // Long enough for clients to make their longest pauses between two attempts, now and then.
        sleep(Duration::from_millis([10, 300, 2_500][kill % 3]));
        let started = Instant::now();
        server.restart().unwrap();
        first_answer(server.address());
        to_answer.push(started.elapsed());
        let answered = Instant::now();
        programs.iter_mut().for_each(Program::goes_on);
        to_clients.push(answered.elapsed());
    }
    for (what, mut times) in [("the first answer", to_answer), ("all clients", to_clients)] {
        times.sort();
        let longest = times[times.len() - 1];
        println!(
            "{kills} kills with {files} files: {what} after {:.0?}, at most {longest:.0?}",
            times[times.len() / 2]
        );
        assert!(longest < soon, "{what} after {longest:?}");
    }
    drop(programs);
    for mount in mounts {
        mount.close(false).unwrap();
    }
    server.check().unwrap();
}

in_each_mode![
    a_forced_unmount_works_without_the_server,
    a_forced_unmount_works_with_a_server_that_stands_still,
    a_forced_unmount_works_without_a_way_to_the_server,
    a_forced_unmount_works_with_a_client_that_stands_still,
    a_forced_unmount_works_without_a_client,
];

/// What programs may be waiting for.
const CALLS: [&str; 16] = [
    "cat new",
    "cat file",
    "ls -l .",
    "stat other",
    "mkdir dir-2",
    "mv a b",
    "rm c",
    "ln file link",
    "truncate -s 7 file",
    "cp file copy",
    "dd if=/dev/zero of=written bs=64k count=100 conv=fsync status=none",
    "sync -f file",
    "flock file true",
    "setfattr -n user.a -v b file",
    "chmod 600 file",
    "while :; do date >log; done",
];

/// Programs that make all sorts of calls on a mount that does not answer; some may be answered from a cache.
fn callers(mount: &Mount) -> Vec<Child> {
    let start = |call: &&str| {
        // The directory is not asked for beforehand: each waits for its own call.
        let script = format!("cd '{}' && {call}", mount.path().display());
        let mut command = Command::new("sh");
        command.args(["-c", &script]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap()
    };
    CALLS.iter().map(start).collect()
}

/// Unmounts by force, as a user does, and kills whoever is left.
fn let_go(mount: Mount, programs: Vec<Child>) {
    let waiting = Instant::now();
    mount.close(true).unwrap();
    println!("unmounted after {:.1?}", waiting.elapsed());
    for mut program in programs {
        // It may have ended with an error, as it should.
        let _ = program.kill();
        while program.try_wait().unwrap().is_none() {
            assert!(waiting.elapsed() < PATIENCE, "a program cannot be killed");
            sleep(Duration::from_millis(10));
        }
    }
}

fn with_programs(mode: Mode, breaks: impl FnOnce(&mut Server, &Proxy, &Mount)) {
    let dir = scratch().unwrap();
    let mut server = Server::start(dir.path(), "process").unwrap();
    let proxy = Proxy::start(server.address()).unwrap();
    let mount = Mount::of_address(dir.path(), "mnt", &proxy.address(), mode, "hard").unwrap();
    for name in ["file", "a", "c"] {
        fs::write(mount.at(name), vec![7; 300_000]).unwrap();
    }
    breaks(&mut server, &proxy, &mount);
    let programs = callers(&mount);
    sleep(Duration::from_millis(500));
    let mountpoint = mount.path().to_owned();
    let_go(mount, programs);
    assert_eq!(fs::read_dir(&mountpoint).unwrap().count(), 0, "something is still mounted");
    server.signal(Signal::CONT).unwrap();
    if server.id().is_none() {
        server.restart().unwrap();
    }
    server.check().unwrap();
}

fn a_forced_unmount_works_without_the_server(mode: Mode) {
    with_programs(mode, |server, _, _| server.kill().unwrap());
}

fn a_forced_unmount_works_with_a_server_that_stands_still(mode: Mode) {
    with_programs(mode, |server, _, _| server.signal(Signal::STOP).unwrap());
}

fn a_forced_unmount_works_without_a_way_to_the_server(mode: Mode) {
    with_programs(mode, |_, proxy, _| {
        proxy.set(larder_benches::proxy::Link { is_cut: [true, true], ..Default::default() });
    });
}

fn a_forced_unmount_works_with_a_client_that_stands_still(mode: Mode) {
    with_programs(mode, |_, _, mount| mount.signal(Signal::STOP).unwrap());
}

fn a_forced_unmount_works_without_a_client(mode: Mode) {
    with_programs(mode, |_, _, mount| mount.signal(Signal::KILL).unwrap());
}
