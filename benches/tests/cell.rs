//! Several servers, one tree: who mounts from one of them sees the volumes of all, and one that is away is missed by nobody
//! else.
#![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use larder_benches::mount::{Mode, Mount, Setup};
use larder_benches::process::{binary, have_own_files, run, scratch};
use larder_benches::server::Server;
use larder_benches::size::Size;
use tempfile::TempDir;

/// How long something may take that waits for nobody.
const SOON: Duration = Duration::from_secs(20);

/// Servers of one cell, whose directory the first has.
struct World {
    servers: Vec<Server>,
    dir: TempDir,
}

impl World {
    fn new(count: usize) -> World {
        let dir = scratch().unwrap();
        let mut world = World { servers: Vec::new(), dir };
        for number in 0..count {
            let place = world.dir.path().join(format!("server-{number}"));
            fs::create_dir(&place).unwrap();
            let location = world.servers.first().map(|first| format!("larder://{}", first.address()));
            let arguments: Vec<&str> = location.iter().flat_map(|location| ["--location", location]).collect();
            world.servers.push(Server::start_with(&place, &arguments).unwrap());
        }
        world
    }

    fn larder(&self, server: usize, arguments: &[&str]) -> String {
        let mut command = Command::new(binary("larder").unwrap());
        command.args(arguments).env("LARDER_SERVER", self.servers[server].address());
        String::from_utf8(run(&mut command).unwrap().stdout).unwrap()
    }

    /// Makes so many volumes at each server, and lets them appear in the root directory of the mount.
    fn spread(&self, mount: &Mount, each: usize) -> Vec<(usize, String)> {
        let mut names = Vec::new();
        for number in 0..each {
            for server in 0..self.servers.len() {
                let name = format!("at-{server}-{number}");
                self.larder(server, &["volume", "create", &name]);
                self.larder(0, &["mountpoint", "add", mount.at(&name).to_str().unwrap(), &name]);
                names.push((server, name));
            }
        }
        names
    }

    fn mount(&self, name: &str, server: usize, mode: Mode, options: &str) -> Mount {
        Mount::new(self.dir.path(), name, &self.servers[server], mode, options).unwrap()
    }

    /// Requests of a kind that all servers have answered.
    fn answered(&self, kind: &str) -> u64 {
        let of = |server: &Server| server.stats().unwrap().requests.get(kind).map_or(0, |of_kind| of_kind.count);
        self.servers.iter().map(of).sum()
    }

    fn end(mut self) {
        // The one with the directory last.
        for server in self.servers.iter_mut().rev() {
            server.check().unwrap();
        }
    }
}

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

#[test]
fn who_mounts_from_one_server_sees_the_volumes_of_all() {
    let files = Size::get().pick(40, 100, 500);
    let world = World::new(3);
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
fn a_server_that_is_away_is_missed_in_its_own_volumes_alone() {
    for mode in Mode::ALL {
        let mut world = World::new(3);
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
fn with_the_first_server_away_the_others_go_on_and_new_mounts_find_them() {
    let mut world = World::new(3);
    let mount = world.mount("mnt", 0, Mode::Nfs, "hard");
    let volumes = world.spread(&mount, 1);
    let (name, path) = (&volumes[2].1, mount.at(&volumes[2].1));
    fs::write(path.join("file"), "here").unwrap();
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
