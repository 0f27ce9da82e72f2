//! What programs may rely on when the server goes away, in each mode.
#![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

use std::fs;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use larder_benches::in_each_mode;
use larder_benches::mount::{Mode, Mount};
use larder_benches::process::{Process, binary, run, scratch};
use larder_benches::proxy::Proxy;
use larder_benches::server::Server;
use larder_benches::size::Size;
use larder_benches::source::Source;
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::Signal;

in_each_mode![
    untar_and_git_gc_survive_a_server_that_is_killed_every_second,
    what_was_synced_survives_the_server,
    forced_unmount_works_without_a_server,
    a_soft_mount_gives_up_with_etimedout,
    client_stats_answer_without_a_server,
    after_a_rename_without_an_answer_the_names_are_looked_up_again,
    a_client_that_is_killed_while_it_mounts_dies,
];

/// How long before its end a server works for clients that hear nothing of it any more.
const UNANSWERED: Duration = Duration::from_millis(20);

/// Programs that change names meanwhile.
const CHANGERS: usize = 4;

fn git(dir: &Path, args: &[&str]) {
    let mut command = Command::new("git");
    command.args(["-c", "user.name=Larder", "-c", "user.email=larder@localhost", "-c", "safe.directory=*"]);
    command.args(["-c", "gc.auto=0", "-C"]).arg(dir).args(args);
    run(&mut command).unwrap();
}

/// Changes a name again and again, each time in a way that fails when it is done twice, and says how often.
fn changing(dir: PathBuf, enough: &AtomicBool) -> impl FnOnce() -> usize {
    move || {
        fs::create_dir(&dir).unwrap();
        let mut changes = 0;
        while !enough.load(Ordering::SeqCst) {
            fs::create_dir(dir.join("a")).unwrap();
            fs::rename(dir.join("a"), dir.join("b")).unwrap();
            fs::remove_dir(dir.join("b")).unwrap();
            changes += 3;
        }
        fs::remove_dir(&dir).unwrap();
        changes
    }
}

fn untar_and_git_gc_survive_a_server_that_is_killed_every_second(mode: Mode) {
    let dir = scratch().unwrap();
    let Source { tree, archive } = Source::new(dir.path(), Size::get().pick(200, 600, 3_000)).unwrap();
    let kills = Size::get().pick(2, 6, 20);
    let mut server = Server::start(dir.path(), "process").unwrap();
    let proxy = Proxy::start(server.address()).unwrap();
    let mount = Mount::of_address(dir.path(), "mnt", &proxy.address(), mode, "hard").unwrap();
    let enough = AtomicBool::new(false);
    let mut replayed = 0;
    std::thread::scope(|scope| {
        let changes: Vec<_> =
            (0..CHANGERS).map(|i| scope.spawn(changing(mount.at(format!("changes-{i}")), &enough))).collect();
        let work = scope.spawn(|| {
            // Round after round until the killing is over, so that it always meets a program at work.
            for round in 0.. {
                let at = mount.at(format!("round-{round}"));
                fs::create_dir(&at).unwrap();
                run(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&at)).unwrap();
                run(Command::new("diff").arg("-r").arg(&tree).arg(at.join("tree"))).unwrap();
                git(&at.join("tree"), &["init", "-q"]);
                git(&at.join("tree"), &["add", "."]);
                git(&at.join("tree"), &["commit", "-q", "-m", "all"]);
                git(&at.join("tree"), &["gc", "-q"]);
                git(&at.join("tree"), &["fsck", "--full"]);
                run(Command::new("diff").args(["-r", "-x", ".git"]).arg(&tree).arg(at.join("tree"))).unwrap();
                if enough.load(Ordering::SeqCst) {
                    return round + 1;
                }
                fs::remove_dir_all(&at).unwrap();
            }
            unreachable!("an endless range")
        });
        for _ in 0..kills {
            std::thread::sleep(Duration::from_secs(1));
            if work.is_finished() {
                break;
            }
            // The counter starts anew with each process, so it is read before each end.
            replayed += server.stats().unwrap().replayed;
            // What is under way is then carried out, and its client cannot know.
            proxy.lose_replies();
            std::thread::sleep(UNANSWERED);
            server.kill().unwrap();
            server.restart().unwrap();
        }
        enough.store(true, Ordering::SeqCst);
        let rounds = work.join().unwrap();
        let changes: usize = changes.into_iter().map(|changes| changes.join().unwrap()).sum();
        replayed += server.stats().unwrap().replayed;
        let mode = mode.name();
        println!(
            "{mode} mode: {kills} kills during {rounds} rounds and {changes} changes, {replayed} replies from slots"
        );
    });
    assert!(kills < 6 || replayed > 0, "no kill met an operation that was carried out and not answered");
    mount.close(false).unwrap();
    server.check().unwrap();
}

/// Writes a part of one file to another, waits for a line, writes the rest, syncs, waits, closes.
const WRITER: &str = r#"
    open(my $in, "<:raw", $ARGV[0]) or die; my $data = do { local $/; <$in> };
    open(my $out, ">:raw", $ARGV[1]) or die; $| = 1;
    syswrite($out, substr($data, 0, 700000)) == 700000 or die; print "written\n"; <STDIN>;
    my $rest = substr($data, 700000); syswrite($out, $rest) == length($rest) or die;
    $out->sync or die; print "synced\n"; <STDIN>;
    close($out) or die;
"#;

fn what_was_synced_survives_the_server(mode: Mode) {
    let dir = scratch().unwrap();
    let mut server = Server::start(dir.path(), "power").unwrap();
    let mount = Mount::new(dir.path(), "mnt", &server, mode, "hard").unwrap();
    let bytes: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    fs::write(dir.path().join("bytes"), &bytes).unwrap();
    // In a process of its own: starting the server from one that has the file open would close it in the child, which
    // flushes, which waits for the server.
    let mut writer = Command::new("perl")
        .args(["-MIO::Handle", "-e", WRITER])
        .args([&dir.path().join("bytes"), &mount.at("file")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = std::io::BufReader::new(writer.stdout.take().unwrap());
    let mut line = String::new();
    // Unstable writes on both sides of a crash, then one sync over all.
    said.read_line(&mut line).unwrap();
    server.kill().unwrap();
    server.restart().unwrap();
    writer.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    said.read_line(&mut line).unwrap();
    assert_eq!(line, "written\nsynced\n");
    server.kill().unwrap();
    server.restart().unwrap();
    writer.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    assert!(writer.wait().unwrap().success());
    assert!(fs::read(mount.at("file")).unwrap() == bytes);
    mount.close(false).unwrap();
    // Once more through a mount that never saw it.
    server.stop().unwrap();
    server.restart().unwrap();
    let mount = Mount::new(dir.path(), "second", &server, mode, "").unwrap();
    assert!(fs::read(mount.at("file")).unwrap() == bytes);
    mount.close(false).unwrap();
    server.check().unwrap();
}

fn forced_unmount_works_without_a_server(mode: Mode) {
    let dir = scratch().unwrap();
    let mut server = Server::start(dir.path(), "process").unwrap();
    let mount = Mount::new(dir.path(), "mnt", &server, mode, "hard").unwrap();
    fs::write(mount.at("file"), vec![1; 3 << 20]).unwrap();
    server.kill().unwrap();
    let path = mount.at("other");
    let mut blocked = Command::new("cat").arg(&path).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert!(blocked.try_wait().unwrap().is_none(), "a hard mount waits for its server");
    let start = Instant::now();
    mount.close(true).unwrap();
    while blocked.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < Duration::from_secs(15), "the blocked program outlives the mount");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(!blocked.wait().unwrap().success());
}

fn a_soft_mount_gives_up_with_etimedout(mode: Mode) {
    let dir = scratch().unwrap();
    let mut server = Server::start(dir.path(), "process").unwrap();
    // timeo counts tenths of a second, as in nfs(5).
    let mount = Mount::new(dir.path(), "mnt", &server, mode, "soft,timeo=10,retrans=1").unwrap();
    fs::write(mount.at("before"), "").unwrap();
    server.kill().unwrap();
    let start = Instant::now();
    let error = fs::write(mount.at("during"), "").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::TIMEDOUT.raw_os_error()), "{error}");
    assert!(start.elapsed() < Duration::from_secs(20), "gave up only after {:?}", start.elapsed());
    server.restart().unwrap();
    // The first request after the server's return may still meet the pause between two attempts to connect.
    let start = Instant::now();
    while let Err(error) = fs::write(mount.at("after"), "back") {
        assert!(start.elapsed() < Duration::from_secs(30), "still {error} after the server's return");
    }
    assert_eq!(fs::read_to_string(mount.at("after")).unwrap(), "back");
}

fn client_stats_answer_without_a_server(mode: Mode) {
    let dir = scratch().unwrap();
    let mut server = Server::start(dir.path(), "process").unwrap();
    let mount = Mount::new(dir.path(), "mnt", &server, mode, "hard").unwrap();
    fs::write(mount.at("file"), "counted").unwrap();
    server.kill().unwrap();
    let stats = mount.stats().unwrap();
    assert!(stats["requests"]["create"]["count"].as_u64() >= Some(1), "{stats}");
}

/// What the kernel knows of the names is what was before, though the server has renamed. A file that is opened by its old
/// name would be the renamed one.
fn after_a_rename_without_an_answer_the_names_are_looked_up_again(mode: Mode) {
    let dir = scratch().unwrap();
    let mut server = Server::start_with(dir.path(), &["--lease-term", "3"]).unwrap();
    let mount = |name: &str, mode, options| Mount::new(dir.path(), name, &server, mode, options).unwrap();
    let [holder, judge] = [mount("holder", Mode::Afs, ""), mount("judge", Mode::Direct, "")];
    let mount = mount("mnt", mode, "soft,timeo=3,retrans=1,actimeo=60");
    let (new, state) = (mount.at("state.new"), mount.at("state"));
    fs::write(&new, "first").unwrap();
    // Until its lease is over the server waits for it.
    assert_eq!(fs::read(holder.at("state.new")).unwrap(), b"first");
    assert_eq!(fs::read_dir(holder.path()).unwrap().count(), 1);
    holder.signal(Signal::STOP).unwrap();
    let error = fs::rename(&new, &state).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::TIMEDOUT.raw_os_error()), "{error}");
    assert!(judge.at("state.new").exists(), "it was renamed in time");
    let begin = Instant::now();
    while judge.at("state.new").exists() {
        assert!(begin.elapsed() < Duration::from_secs(30), "it was never renamed");
        std::thread::sleep(Duration::from_millis(20));
    }
    holder.signal(Signal::CONT).unwrap();
    fs::write(&new, "second").unwrap();
    assert_eq!(fs::read(&state).unwrap(), b"first", "another file was written by the name that it had");
    fs::rename(&new, &state).unwrap();
    assert_eq!(fs::read(&state).unwrap(), b"second");
    [mount, holder, judge].into_iter().for_each(|mount| mount.close(false).unwrap());
    server.check().unwrap();
}

fn a_client_that_is_killed_while_it_mounts_dies(mode: Mode) {
    let dir = scratch().unwrap();
    let mut server = Server::start(dir.path(), "process").unwrap();
    for number in 0..Size::get().pick(2, 5, 50) {
        let path = dir.path().join(format!("mnt-{number}"));
        fs::create_dir(&path).unwrap();
        let mut command = Command::new(binary("larder").unwrap());
        command.args(["mount", "--foreground", "--mode", mode.name()]);
        if mode == Mode::Afs {
            command.arg("--cache").arg(dir.path().join("cache"));
        }
        let mut client = Process::spawn(command.arg(server.address()).arg(&path), dir.path(), "client").unwrap();
        let is_mounted = || {
            let table = fs::read_to_string("/proc/self/mounts").unwrap();
            table.contains(path.to_str().unwrap()).then_some(())
        };
        client.wait_ready(Duration::from_secs(30), is_mounted).unwrap();
        // What the client asks now has no answer.
        server.signal(Signal::STOP).unwrap();
        std::thread::sleep(Duration::from_millis(5));
        client.signal(Signal::KILL).unwrap();
        let ended = client.wait(Duration::from_secs(10));
        server.signal(Signal::CONT).unwrap();
        // As an aborted connection, it lets go of whom it has.
        unmount(&path, UnmountFlags::FORCE | UnmountFlags::DETACH).unwrap();
        ended.unwrap();
    }
    server.check().unwrap();
}
