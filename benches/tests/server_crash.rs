//! A server that dies at any place of its code that matters, under programs on mounts of every mode: they wait, and all
//! that they did is there once, as if nothing had been.
#![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use larder_benches::chores::{same, work};
use larder_benches::mount::{Mode, Mount};
use larder_benches::process::{SetAtEnd, binary, have_own_files, scratch};
use larder_benches::server::Server;
use larder_benches::size::Size;
use larder_server::failpoint::Failpoint;

/// How soon the server comes to each place, with all that is done.
const WITHIN: Duration = Duration::from_secs(30);
/// A file that one program changes and the others read.
const SHARED: &str = "shared";

#[test]
fn a_server_that_dies_anywhere_leaves_nothing_half_done() {
    // Passed at each start, and after some time.
    let passes = Size::get().pick(1, 1, 4);
    for (number, point) in Failpoint::OF_FILES.into_iter().enumerate() {
        let dir = scratch().unwrap();
        let durability = ["power", "process"][number % 2];
        let mut server = Server::start(dir.path(), durability).unwrap();
        let mounts = Mode::ALL.map(|mode| Mount::new(dir.path(), mode.name(), &server, mode, "hard").unwrap());
        let mirrors = Mode::ALL.map(|mode| dir.path().join(format!("{}-mirror", mode.name())));
        fs::write(mounts[0].at(SHARED), "0").unwrap();
        for (mount, mirror) in mounts.iter().zip(&mirrors) {
            fs::create_dir(mount.at(mount.mode().name())).unwrap();
            fs::create_dir(mirror).unwrap();
        }
        let is_over = AtomicBool::new(false);
        let is_over = &is_over;
        let died: Vec<bool> = thread::scope(|scope| {
            for (number, (mount, mirror)) in mounts.iter().zip(&mirrors).enumerate() {
                scope.spawn(move || {
                    // SAFETY: all that it opens it opens from here on. (The server is started beside it.)
                    unsafe { have_own_files() }.unwrap();
                    let dir = mount.at(mount.mode().name());
                    for round in 0.. {
                        work(&dir, round);
                        work(mirror, round);
                        if number == 0 {
                            fs::write(mount.at(SHARED), round.to_string()).unwrap();
                        } else {
                            fs::read(mount.at(SHARED)).unwrap();
                        }
                        // After the last death, too.
                        if is_over.load(Ordering::SeqCst) {
                            return;
                        }
                    }
                });
            }
            let _end = SetAtEnd(is_over);
            let die = |server: &mut Server, pass| {
                server.kill()?;
                let is_of_start = matches!(point, Failpoint::Recovering | Failpoint::Recovered);
                let after = if is_of_start { 0 } else { pass * 5 };
                server.restart_to_die(&format!("{}={after}*off->return", point.name()), WITHIN)
            };
            (0..passes)
                .map(|pass| {
                    let died = die(&mut server, pass);
                    // Whatever went wrong: programs wait for it.
                    server.restart()?;
                    died
                })
                .collect::<Result<_>>()
        })
        .unwrap();
        assert!(died.iter().all(|died| *died), "{}: it was not passed: {died:?}", point.name());
        let other = Mount::new(dir.path(), "other", &server, Mode::Direct, "").unwrap();
        for (mount, mirror) in mounts.iter().zip(&mirrors) {
            let name = mount.mode().name();
            same(&mount.at(name), mirror);
            same(&other.at(name), mirror);
        }
        other.close(false).unwrap();
        mounts.into_iter().for_each(|mount| mount.close(false).unwrap());
        server.check().unwrap();
        println!("{}: died {passes} times, {durability}", point.name());
    }
}

/// Runs `larder` until it is done, as an administrator does who is not told what became of it. What it says when it was done
/// before is one of `done`.
fn administer(server: &str, arguments: &[&str], done: &[&str]) {
    let began = Instant::now();
    loop {
        let mut command = Command::new(binary("larder").unwrap());
        let output = command.args(arguments).env("LARDER_SERVER", server).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        if output.status.success() || done.iter().any(|done| told.contains(done)) {
            return;
        }
        let is_away = ["cannot reach the server", "does not answer"].iter().any(|away| told.contains(away));
        assert!(is_away && began.elapsed() < WITHIN * 2, "larder {arguments:?}: {told}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Makes a volume, shows it in the tree, uses it, calls it otherwise, and deletes each other one.
fn manage(server: &str, mount: &Mount, round: usize) {
    let (name, later) = (format!("volume-{round}"), format!("renamed-{round}"));
    let at = mount.at(&name);
    let path = at.to_str().unwrap();
    administer(server, &["volume", "create", &name], &["there is a volume"]);
    administer(server, &["mountpoint", "add", path, &name], &[]);
    fs::write(at.join("file"), round.to_string()).unwrap();
    administer(server, &["volume", "rename", &name, &later], &["there is no volume"]);
    assert_eq!(fs::read_to_string(at.join("file")).unwrap(), round.to_string());
    if round.is_multiple_of(2) {
        administer(server, &["mountpoint", "remove", path], &[]);
        administer(server, &["volume", "delete", &later], &["there is no volume"]);
    }
}

#[test]
fn a_server_that_dies_while_volumes_are_made_and_changed_leaves_none_half_done() {
    for point in Failpoint::OF_VOLUMES {
        let dir = scratch().unwrap();
        let mut server = Server::start(dir.path(), "power").unwrap();
        // What it asks for is asked again by itself: each step takes place once.
        let mount = Mount::new(dir.path(), "mnt", &server, Mode::Nfs, "hard").unwrap();
        let (is_over, address) = (AtomicBool::new(false), server.address().to_owned());
        let (is_over, mounted) = (&is_over, &mount);
        let rounds = thread::scope(|scope| {
            let managing = scope.spawn(move || {
                // SAFETY: all that it opens it opens from here on. (The server is started beside it.)
                unsafe { have_own_files() }.unwrap();
                for round in 1.. {
                    manage(&address, mounted, round);
                    if is_over.load(Ordering::SeqCst) {
                        return round;
                    }
                }
                0
            });
            {
                let _end = SetAtEnd(is_over);
                for pass in 0..Size::get().pick(3, 6, 20) {
                    server.kill().unwrap();
                    let died = server.restart_to_die(&format!("{}={pass}*off->return", point.name()), WITHIN);
                    // Whatever went wrong: programs wait for it.
                    server.restart().unwrap();
                    assert!(died.unwrap(), "{}: it was not passed", point.name());
                }
            }
            managing.join().unwrap()
        });
        let mut there: Vec<usize> = fs::read_dir(mount.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_str().unwrap().strip_prefix("volume-").unwrap().parse().unwrap())
            .collect();
        there.sort_unstable();
        let odd: Vec<usize> = (1..=rounds).filter(|round| !round.is_multiple_of(2)).collect();
        assert_eq!(there, odd, "{}", point.name());
        for round in odd {
            let file = mount.at(format!("volume-{round}")).join("file");
            assert_eq!(fs::read_to_string(file).unwrap(), round.to_string());
        }
        mount.close(false).unwrap();
        server.check().unwrap();
        println!("{}: {rounds} volumes", point.name());
    }
}
