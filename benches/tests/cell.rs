//! Several servers, one tree: who mounts from one of them sees the volumes of all, and one that is away is missed by nobody
//! else.
#![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use larder_benches::many_servers::{Directory, ManyServers};
use larder_benches::mount::{Mode, Mount, Setup};
use larder_benches::process::{binary, have_own_files, run};
use larder_benches::server::Server;
use larder_benches::size::Size;

/// How long something may take that waits for nobody.
const SOON: Duration = Duration::from_secs(20);

/// A tree of so many files, and what it is compared with.
fn tree(at: &Path, files: usize) {
    for number in 0..files {
        let dir = at.join(format!("dir-{}", number % 20));
        if number < 20 {
            fs::create_dir_all(&dir).unwrap();
        }
        fs::write(dir.join(format!("file-{number}")), format!("{number} ").repeat(number % 700)).unwrap();
    }
}

fn one_address_leads_to_all(directory: Directory) {
    let files = Size::get().pick(40, 100, 500);
    let world = ManyServers::apart(3, directory);
    let model = world.dir.path().join("model");
    tree(&model, files);
    let admin = world.mount("admin", 0, Mode::Direct, "");
    let volumes = world.spread(&admin, 4);
    for mode in Mode::ALL {
        let mount = world.mount(mode.name(), 0, mode, "");
        for (_, name) in &volumes {
            run(Command::new("cp").arg("-r").arg(&model).arg(mount.at(name).join(mode.name()))).unwrap();
        }
        // One that knows another server of the cell.
        let other = world.mount(&format!("{}-other", mode.name()), 2, mode, "");
        let before = world.answered("locate");
        for _ in 0..20 {
            for (_, name) in &volumes {
                for mount in [&mount, &other] {
                    assert!(mount.at(name).join(mode.name()).join("dir-1").is_dir());
                }
            }
        }
        let asked = world.answered("locate") - before;
        assert!(asked <= volumes.len() as u64, "{asked} questions where {} volumes are", volumes.len());
        for (_, name) in &volumes {
            run(Command::new("diff").arg("-r").arg(&model).arg(other.at(name).join(mode.name()))).unwrap();
        }
        for mount in [mount, other] {
            mount.close(false).unwrap();
        }
    }
    let told = world.larder(1, &["server", "list"]);
    assert_eq!(told.lines().count(), 4, "{told}");
    let told = world.larder(2, &["volume", "list"]);
    assert_eq!(told.lines().count(), 2 + volumes.len(), "{told}");
    admin.close(false).unwrap();
    world.end();
}

#[test]
fn who_mounts_from_one_server_sees_the_volumes_of_all() {
    one_address_leads_to_all(Directory::Embedded);
}

#[test]
fn who_mounts_from_one_server_of_a_cell_in_etcd_sees_the_volumes_of_all() {
    one_address_leads_to_all(Directory::Etcd);
}

#[test]
fn a_server_that_is_away_is_missed_in_its_own_volumes_alone() {
    for mode in Mode::ALL {
        let mut world = ManyServers::new(3, Directory::Embedded);
        let mount = world.mount("mnt", 0, mode, "hard");
        let volumes = world.spread(&mount, 1);
        let at = |server: usize| -> PathBuf { mount.at(&volumes[server].1) };
        for server in 0..3 {
            fs::write(at(server).join("before"), "there").unwrap();
        }
        world.servers[1].kill().unwrap();
        let (path, (done, is_done)) = (at(1).join("during"), mpsc::channel());
        let waiting = thread::spawn(move || {
            // SAFETY: all that it opens it opens from here on.
            unsafe { have_own_files() }.unwrap();
            let written = fs::write(path, "patience");
            done.send(()).unwrap();
            written
        });
        for round in 0..20 {
            for server in [0, 2] {
                let file = at(server).join(format!("round-{round}"));
                fs::write(&file, "on").unwrap();
                assert_eq!(fs::read_to_string(&file).unwrap(), "on");
            }
        }
        assert!(is_done.try_recv().is_err(), "{}: nobody was there to do it", mode.name());
        world.servers[1].restart().unwrap();
        is_done.recv_timeout(SOON * 3).unwrap();
        waiting.join().unwrap().unwrap();
        assert_eq!(fs::read_to_string(at(1).join("during")).unwrap(), "patience");
        assert_eq!(fs::read_to_string(at(1).join("before")).unwrap(), "there");
        mount.close(false).unwrap();
        world.end();
    }
}

#[test]
fn a_volume_that_nobody_has_used_is_waited_for_though_its_server_has_been_away_for_long() {
    let mut world = ManyServers::new(2, Directory::Embedded);
    let mount = world.mount("mnt", 0, Mode::Nfs, "hard");
    world.add(1, &mount, "unused");
    // One that has not come to it yet.
    let other = world.mount("other", 0, Mode::Nfs, "hard");
    world.servers[1].kill().unwrap();
    // The directory does not count it as there any more.
    while world.larder(0, &["server", "list"]).lines().count() > 2 {
        thread::sleep(Duration::from_millis(100));
    }
    let path = other.at("unused").join("file");
    let waiting = thread::spawn(move || {
        // SAFETY: all that it opens it opens from here on.
        unsafe { have_own_files() }.unwrap();
        fs::write(path, "patience")
    });
    thread::sleep(Duration::from_secs(3));
    assert!(!waiting.is_finished(), "nobody was there to do it");
    world.servers[1].restart().unwrap();
    waiting.join().unwrap().unwrap();
    other.close(false).unwrap();
    mount.close(false).unwrap();
    world.end();
}

#[test]
fn with_the_first_server_away_the_others_go_on_and_new_mounts_find_them() {
    let mut world = ManyServers::new(3, Directory::Embedded);
    let mount = world.mount("mnt", 0, Mode::Nfs, "hard");
    let volumes = world.spread(&mount, 1);
    let (name, path) = (&volumes[2].1, mount.at(&volumes[2].1));
    fs::write(path.join("file"), "here").unwrap();
    // Who is asked for it has asked for it.
    world.larder(1, &["volume", "list"]);
    world.servers[0].kill().unwrap();
    fs::write(path.join("other"), "here, too").unwrap();
    // What the others know of the cell's directory suffices to find a volume.
    let setup = Setup { volume: Some(name), ..Setup::default() };
    let address = world.servers[1].address();
    let second = Mount::set_up(world.dir.path(), "second", address, Mode::Nfs, &setup).unwrap();
    assert_eq!(fs::read_to_string(second.at("file")).unwrap(), "here");
    second.close(false).unwrap();
    let mut refused = Command::new(binary("larder").unwrap());
    refused.args(["volume", "create", "more"]).env("LARDER_SERVER", world.servers[1].address());
    let refused = refused.output().unwrap();
    let told = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && told.contains(world.servers[0].address()), "{told}");
    world.servers[0].restart().unwrap();
    world.larder(1, &["volume", "create", "more"]);
    mount.close(false).unwrap();
    world.end();
}

#[test]
fn without_etcd_clients_go_on_in_the_volumes_that_they_know() {
    let mut world = ManyServers::new(2, Directory::Etcd);
    let mount = world.mount("mnt", 0, Mode::Afs, "hard");
    let volumes = world.spread(&mount, 2);
    for (_, name) in &volumes {
        fs::write(mount.at(name).join("before"), name).unwrap();
    }
    let etcd = world.etcd.as_mut().unwrap();
    etcd.stop().unwrap();
    let address = etcd.address();
    // Longer than servers count as there that have not said so.
    let over = Instant::now() + Duration::from_secs(Size::get().pick(20, 20, 60) as u64);
    for round in 0.. {
        for (_, name) in &volumes {
            let file = mount.at(name).join(format!("file-{}", round % 10));
            fs::write(&file, round.to_string()).unwrap();
            assert_eq!(fs::read_to_string(&file).unwrap(), round.to_string());
        }
        if Instant::now() > over {
            break;
        }
        thread::sleep(Duration::from_millis(50));
    }
    for arguments in [&["volume", "create", "more"][..], &["volume", "list"], &["volume", "rename", "at-0-0", "other"]]
    {
        let told = world.refused(1, arguments);
        assert!(told.contains("etcd") && told.contains(&address), "{arguments:?}: {told}");
    }
    world.etcd.as_mut().unwrap().restart().unwrap();
    let began = Instant::now();
    while !world.command(1, &["volume", "create", "more"]).output().unwrap().status.success() {
        assert!(began.elapsed() < SOON);
    }
    assert_eq!(world.larder(0, &["volume", "list"]).lines().count(), 3 + volumes.len());
    mount.close(false).unwrap();
    world.end();
}

#[test]
fn a_second_server_with_the_same_identity_is_refused() {
    for directory in [Directory::Embedded, Directory::Etcd] {
        let world = ManyServers::new(2, directory);
        let copy = world.dir.path().join("copy");
        fs::create_dir(&copy).unwrap();
        run(Command::new("cp").arg("-r").arg(world.servers[1].store()).arg(&copy)).unwrap();
        let refused = Server::start_with(&copy, &[]).unwrap_err();
        assert!(format!("{refused:#}").contains("identity"), "{refused:#}");
        world.end();
    }
}
