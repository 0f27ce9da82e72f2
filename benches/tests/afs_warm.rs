//! What is cached in afs mode and has not changed costs the server nothing but the renewal of the lease.
#![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use larder_benches::mount::{Counts, Mode, Mount};
use larder_benches::process::{run, scratch};
use larder_benches::server::Server;

/// Directories of the tree.
const DIRS: usize = 20;
/// Files in each of them.
const FILES: usize = 50;
/// The term of the leases.
const TERM: Duration = Duration::from_secs(2);

fn git(tree: &Path, args: &[&str]) -> String {
    let mut command = Command::new("git");
    // Else `git status` writes the index anew.
    command.env("GIT_OPTIONAL_LOCKS", "0").env("GIT_CONFIG_GLOBAL", "/dev/null");
    command.args(["-c", "user.name=Larder", "-c", "user.email=larder@localhost", "-c", "safe.directory=*"]);
    command.args(["-c", "gc.auto=0", "-c", "maintenance.auto=false", "-C"]).arg(tree).args(args);
    String::from_utf8(run(&mut command).unwrap().stdout).unwrap()
}

/// A thousand sources, a Makefile that makes something of each directory, and their repository.
fn plant(tree: &Path) {
    let mut rules = String::from("all:");
    (0..DIRS).for_each(|dir| rules.push_str(&format!(" dir-{dir}/all")));
    rules.push('\n');
    for dir in 0..DIRS {
        let sub = tree.join(format!("dir-{dir}"));
        fs::create_dir_all(&sub).unwrap();
        rules.push_str(&format!("dir-{dir}/all:"));
        for file in 0..FILES {
            let text = format!("{dir} {file} {}\n", "some text ".repeat(file * 7));
            fs::write(sub.join(format!("file-{file}")), text).unwrap();
            rules.push_str(&format!(" dir-{dir}/file-{file}"));
        }
        rules.push_str("\n\tcat $^ > $@\n");
    }
    fs::write(tree.join("Makefile"), rules).unwrap();
    fs::write(tree.join(".gitignore"), "all\n").unwrap();
    git(tree, &["init", "-q"]);
    git(tree, &["add", "."]);
    git(tree, &["commit", "-q", "-m", "all"]);
    run(Command::new("make").arg("-s").arg("-C").arg(tree)).unwrap();
}

/// Finds, searches, asks git and make; with what each of them sent.
fn pass(mount: &Mount, tree: &Path) -> Vec<(&'static str, Counts)> {
    let mut costs = Vec::new();
    let mut before = mount.counts().unwrap();
    let mut done = |what| {
        let now = mount.counts().unwrap();
        costs.push((what, now.since(&before)));
        before = now;
    };
    let found = run(Command::new("find").arg(tree).args(["-type", "f", "-size", "-100k", "-name", "file-*"])).unwrap();
    assert_eq!(found.stdout.iter().filter(|byte| **byte == b'\n').count(), DIRS * FILES);
    done("find");
    let found = run(Command::new("grep").args(["-r", "-l", "--exclude-dir=.git", "some text"]).arg(tree)).unwrap();
    assert_eq!(found.stdout.iter().filter(|byte| **byte == b'\n').count(), DIRS * (FILES - 1 + 1));
    done("grep -r");
    assert_eq!(git(tree, &["status", "--porcelain"]), "");
    done("git status");
    let made = run(Command::new("make").arg("-C").arg(tree)).unwrap();
    assert!(String::from_utf8_lossy(&made.stdout).contains("Nothing to be done"), "make did something");
    done("make");
    costs
}

fn warm_tree(options: &str) {
    let dir = scratch().unwrap();
    let term = TERM.as_secs().to_string();
    let mut server = Server::start_with(dir.path(), &["--lease-term", &term]).unwrap();
    let maker = Mount::new(dir.path(), "maker", &server, Mode::Afs, "").unwrap();
    plant(&maker.at("tree"));
    maker.close(false).unwrap();

    let mount = Mount::new(dir.path(), "mnt", &server, Mode::Afs, options).unwrap();
    let tree = mount.at("tree");
    for (what, cost) in pass(&mount, &tree) {
        println!("cold {what}: {:?}", cost.0);
    }
    let at_server = server.counts().unwrap();
    for round in ["at once", "after more than a term"] {
        for (what, cost) in pass(&mount, &tree) {
            assert_eq!(cost, Counts::default(), "{what} {round}, with {options:?}");
        }
        // What ends by itself, if nobody renews it, has ended then.
        std::thread::sleep(TERM + TERM / 2);
    }
    assert_eq!(server.counts().unwrap().since(&at_server), Counts::default(), "at the server");
    mount.close(false).unwrap();
    server.check().unwrap();
}

#[test]
fn a_warm_tree_is_searched_and_compared_without_a_request() {
    warm_tree("");
}

/// The kernel serves every file that is not empty.
#[test]
fn a_warm_tree_costs_nothing_either_where_the_kernel_serves_its_files() {
    warm_tree("passthrough=1");
}

#[test]
fn listing_a_thousand_names_takes_a_request_or_two() {
    const NAMES: usize = 1000;
    let dir = scratch().unwrap();
    let mut server = Server::start(dir.path(), "process").unwrap();
    let maker = Mount::new(dir.path(), "maker", &server, Mode::Afs, "").unwrap();
    fs::create_dir(maker.at("dir")).unwrap();
    (0..NAMES).for_each(|i| drop(File::create_new(maker.at(format!("dir/file-{i}"))).unwrap()));
    maker.close(false).unwrap();
    let mount = Mount::new(dir.path(), "mnt", &server, Mode::Afs, "").unwrap();
    let mut before = mount.counts().unwrap();
    for (round, most) in [("first", 6), ("second", 0)] {
        let listed = run(Command::new("ls").arg("-l").arg(mount.at("dir"))).unwrap();
        assert_eq!(String::from_utf8(listed.stdout).unwrap().lines().count(), NAMES + 1);
        let now = mount.counts().unwrap();
        let cost = now.since(&before);
        before = now;
        println!("{round} ls -l of {NAMES} names: {:?}", cost.0);
        assert!(cost.of("readdir") <= 2 && cost.total() <= most, "{round} ls -l: {:?}", cost.0);
    }
    let names: BTreeSet<_> = fs::read_dir(mount.at("dir")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), NAMES);
    mount.close(false).unwrap();
    server.check().unwrap();
}
