//! A store on a disk that is full, or fails: errors where they belong, and a store that works again after.
#![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

use std::fs::{self, File};
use std::io::Write;
use std::time::{Duration, Instant};

use larder_benches::disk::Disk;
use larder_benches::in_each_mode;
use larder_benches::medium::{Failure, Medium};
use larder_benches::mount::{Mode, Mount};
use larder_benches::process::{close, scratch};
use larder_benches::server::Server;
use rustix::io::Errno;

in_each_mode![a_full_disk_refuses_and_then_works_again];

/// Fills the disk with large files, then small ones, until both are refused; every refusal must be ENOSPC.
fn fill(mount: &Mount) -> usize {
    let refused = |error: std::io::Error| {
        assert_eq!(error.raw_os_error(), Some(Errno::NOSPC.raw_os_error()), "{error}");
    };
    let mut made = 0;
    for size in [4 << 20, 1 << 16, 100] {
        for i in 0..100_000 {
            let written = File::create(mount.at(format!("fill-{size}-{i}")))
                .and_then(|mut file| file.write_all(&vec![7; size]).and_then(|()| file.sync_all()));
            match written {
                Ok(()) => made += 1,
                Err(error) => {
                    refused(error);
                    break;
                }
            }
        }
    }
    made
}

fn a_full_disk_refuses_and_then_works_again(mode: Mode) {
    let dir = scratch().unwrap();
    let disk = Disk::ext4(dir.path(), "disk", 64).unwrap();
    let mut server = Server::start_on(dir.path(), disk.path().join("store"), "power").unwrap();
    let mount = Mount::new(dir.path(), "mnt", &server, mode, "").unwrap();
    fs::write(mount.at("before"), "kept").unwrap();
    for round in 0..2 {
        assert!(fill(&mount) > 5, "round {round}: the disk should hold a few files");
        assert_eq!(fs::read_to_string(mount.at("before")).unwrap(), "kept", "reading goes on");
        for entry in fs::read_dir(mount.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.file_name().is_some_and(|name| name != "before") {
                fs::remove_file(&path).unwrap_or_else(|error| panic!("removing makes room: {error}"));
            }
        }
        fs::write(mount.at("before"), "kept").unwrap();
    }
    fs::write(mount.at("after"), vec![1; 8 << 20]).unwrap();
    assert_eq!(fs::metadata(mount.at("after")).unwrap().len(), 8 << 20);
    mount.close(false).unwrap();
    server.check().unwrap();
    drop(server);
    drop(disk);
}

/// Objects that the volume has.
fn objects(mount: &Mount) -> u64 {
    let space = rustix::fs::statvfs(mount.path()).unwrap();
    space.f_files - space.f_ffree
}

#[test]
fn what_was_closed_while_the_disk_failed_is_freed_once_it_is_mended() {
    // A client in afs mode reads its own copy: the server keeps nothing for it.
    [Mode::Nfs, Mode::Direct].into_iter().for_each(closed_while_the_disk_fails);
}

fn closed_while_the_disk_fails(mode: Mode) {
    let dir = scratch().unwrap();
    let mut disk = Medium::new(dir.path(), "disk", 64).unwrap();
    let mut server = Server::start_on(dir.path(), disk.path().join("store"), "power").unwrap();
    let mount = Mount::new(dir.path(), "mnt", &server, mode, "").unwrap();
    let before = objects(&mount);
    let path = mount.at("open");
    fs::write(&path, "kept while it is open").unwrap();
    let open = File::open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(objects(&mount), before + 1, "the server keeps it for this client");
    disk.fail(Failure::Gone).unwrap();
    // Whether closing succeeds is not asked here.
    let _ = close(open);
    let begin = Instant::now();
    while !server.log().contains("cannot commit a batch") {
        assert!(begin.elapsed() < Duration::from_secs(30), "the client tells the server, which fails");
        std::thread::sleep(Duration::from_millis(50));
    }
    server.abandon().unwrap();
    disk.mend().unwrap();
    server.restart().unwrap();
    let begin = Instant::now();
    while objects(&mount) > before {
        assert!(begin.elapsed() < Duration::from_secs(30), "it is still kept");
        std::thread::sleep(Duration::from_millis(50));
    }
    mount.close(false).unwrap();
    server.check().unwrap();
    drop(server);
    drop(disk);
}
