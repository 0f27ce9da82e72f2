//! The disk cache of afs mode where it is full, cannot be written, is somebody else's, is deleted or damaged under the
//! mount, or is smaller than a file; and what its owner does with it.
#![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use larder_benches::disk::Disk;
use larder_benches::mount::{Mode, Mount, Setup, wait_until};
use larder_benches::process::{binary, close, scratch, store};
use larder_benches::server::Server;
use rustix::io::Errno;
use serde_json::Value;

const MIB: usize = 1 << 20;

fn mount(dir: &Path, name: &str, server: &Server, cache: &Path, arguments: &[&str]) -> anyhow::Result<Mount> {
    let setup = Setup { cache: Some(cache), arguments, ..Setup::default() };
    let mount = Mount::set_up(dir, name, server.address(), Mode::Afs, &setup)?;
    // In the foreground it is mounted a moment before it answers `larder cache`.
    wait_until("the mount answers", || mount.stats().is_ok());
    Ok(mount)
}

/// What `larder cache` says, as JSON if it is asked for.
fn cache(mount: &Mount, arguments: &[&str]) -> Result<Value, String> {
    let (verb, rest) = arguments.split_first().unwrap();
    let mut command = Command::new(binary("larder").unwrap());
    command.args(["cache", verb]).arg(mount.path()).args(rest);
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    if !output.status.success() {
        return Err(text + &String::from_utf8(output.stderr).unwrap());
    }
    Ok(serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

fn stat(mount: &Mount, name: &str) -> u64 {
    mount.stats().unwrap()["cache"][name].as_u64().unwrap_or_else(|| panic!("no figure called {name}"))
}

/// Contents that differ from file to file, and from block to block.
fn contents(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 4096) as u8 ^ (at as u8).wrapping_mul(31) ^ seed).collect()
}

/// The files in the cache that hold just this.
fn copies(cache: &Path, wanted: &[u8]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for low in fs::read_dir(cache.join("files")).unwrap() {
        for file in fs::read_dir(low.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            // It may be removed while this looks.
            if fs::read(&path).is_ok_and(|data| data == wanted) {
                found.push(path);
            }
        }
    }
    found
}

#[test]
fn a_cache_without_room_serves_readers_and_refuses_writers() {
    let dir = scratch().unwrap();
    let mut server = Server::start(dir.path(), "process").unwrap();
    let disk = Disk::memory(dir.path(), 8).unwrap();
    let direct = Mount::new(dir.path(), "direct", &server, Mode::Direct, "").unwrap();
    let mnt = mount(dir.path(), "mnt", &server, &disk.path().join("cache"), &[]).unwrap();
    let (small, large) = (contents(1, 100_000), contents(2, 12 * MIB));
    store(direct.at("small"), &small).unwrap();
    store(direct.at("large"), &large).unwrap();
    assert!(fs::read(mnt.at("large")).unwrap() == large, "a file that finds no room is read from the server");
    // Copies give way, to those who read and to those who write.
    let two: Vec<Vec<u8>> = (10..16).map(|seed| contents(seed, 2 * MIB)).collect();
    for (number, data) in two.iter().enumerate() {
        store(direct.at(format!("two-{number}")), data).unwrap();
        assert!(fs::read(mnt.at(format!("two-{number}"))).unwrap() == *data, "two-{number}");
    }
    let (evicted, uncached) = (stat(&mnt, "evicted"), stat(&mnt, "uncached_opens"));
    assert!(evicted >= 3, "{evicted} copies were evicted for six of a quarter of the disk each");
    store(mnt.at("written"), &contents(3, 5 * MIB)).unwrap();
    assert!(fs::read(direct.at("written")).unwrap() == contents(3, 5 * MIB));
    assert!(stat(&mnt, "evicted") > evicted && stat(&mnt, "uncached_opens") == uncached);
    fs::remove_file(mnt.at("written")).unwrap();
    (0..two.len()).for_each(|number| fs::remove_file(mnt.at(format!("two-{number}"))).unwrap());
    // Somebody else fills the disk.
    let mut hog = File::create(disk.path().join("hog")).unwrap();
    while hog.write_all(&[7; 4096]).is_ok() {}
    assert!(fs::read(mnt.at("small")).unwrap() == small, "also where there is room for nothing at all");
    let refused = store(mnt.at("new"), &large).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(Errno::NOSPC.raw_os_error()), "{refused}");
    drop(hog);
    fs::remove_file(disk.path().join("hog")).unwrap();
    store(mnt.at("new"), &small).unwrap();
    assert!(fs::read(direct.at("new")).unwrap() == small);
    assert!(fs::read(mnt.at("small")).unwrap() == small);
    assert_eq!(stat(&mnt, "dirty_files"), 0);
    mnt.close(false).unwrap();
    direct.close(false).unwrap();
    server.check().unwrap();
}

#[test]
fn a_cache_that_cannot_be_written_or_is_taken_is_refused() {
    let dir = scratch().unwrap();
    let mut server = Server::start(dir.path(), "process").unwrap();
    let disk = Disk::memory(dir.path(), 8).unwrap();
    disk.remount("ro").unwrap();
    let refused = format!("{:#}", mount(dir.path(), "ro", &server, &disk.path().join("cache"), &[]).unwrap_err());
    let named = disk.path().join("cache").display().to_string();
    assert!(refused.contains(&named) && refused.contains("Read-only file system"), "{refused}");
    disk.remount("rw").unwrap();
    let cache = disk.path().join("cache");
    let first = mount(dir.path(), "first", &server, &cache, &[]).unwrap();
    let refused = format!("{:#}", mount(dir.path(), "second", &server, &cache, &[]).unwrap_err());
    assert!(refused.contains(&named) && refused.contains("in use by another mount"), "{refused}");
    // Who was there first has not noticed.
    store(first.at("file"), b"data").unwrap();
    first.close(false).unwrap();
    let second = mount(dir.path(), "second", &server, &cache, &[]).unwrap();
    assert_eq!(fs::read(second.at("file")).unwrap(), b"data");
    second.close(false).unwrap();
    server.check().unwrap();
}

#[test]
fn a_cache_that_is_deleted_under_the_mount_loses_nothing() {
    let dir = scratch().unwrap();
    let mut server = Server::start(dir.path(), "process").unwrap();
    let cache = dir.path().join("cache");
    let mnt = mount(dir.path(), "mnt", &server, &cache, &[]).unwrap();
    let direct = Mount::new(dir.path(), "direct", &server, Mode::Direct, "").unwrap();
    let (one, two) = (contents(1, 300_000), contents(2, 2 * MIB + 5));
    store(mnt.at("one"), &one).unwrap();
    // Changed and not stored; and changed, stored, and going to be changed again.
    let mut writing = File::create(mnt.at("two")).unwrap();
    writing.write_all(&two[..MIB]).unwrap();
    let mut synced = File::create(mnt.at("four")).unwrap();
    synced.write_all(&two[..MIB]).unwrap();
    synced.sync_all().unwrap();
    // The mount makes anew what it misses, also while this goes on.
    while let Err(error) = fs::remove_dir_all(&cache) {
        assert_eq!(error.kind(), ErrorKind::DirectoryNotEmpty, "{error}");
    }
    writing.write_all(&two[MIB..]).unwrap();
    close(writing).unwrap();
    synced.write_all(&two[MIB..]).unwrap();
    close(synced).unwrap();
    for name in ["two", "four"] {
        assert!(fs::read(direct.at(name)).unwrap() == two, "what was being written to {name} is stored");
    }
    for (name, wanted) in [("one", &one), ("two", &two), ("four", &two)] {
        assert!(fs::read(mnt.at(name)).unwrap() == *wanted, "{name}");
    }
    store(mnt.at("three"), &one).unwrap();
    assert!(fs::read(direct.at("three")).unwrap() == one);
    mnt.close(false).unwrap();
    // What is there now is a cache like any other.
    let again = mount(dir.path(), "again", &server, &cache, &[]).unwrap();
    for (name, wanted) in [("one", &one), ("two", &two), ("three", &one)] {
        assert!(fs::read(again.at(name)).unwrap() == *wanted, "{name}");
    }
    again.close(false).unwrap();
    direct.close(false).unwrap();
    server.check().unwrap();
}

/// Where `fsync` makes durable on this machine what is not stored.
#[test]
fn fsync_stores_what_has_no_place_in_the_cache_any_more() {
    let dir = scratch().unwrap();
    let mut server = Server::start(dir.path(), "process").unwrap();
    let cache = dir.path().join("cache");
    let mnt = mount(dir.path(), "mnt", &server, &cache, &["--fsync", "local"]).unwrap();
    let direct = Mount::new(dir.path(), "direct", &server, Mode::Direct, "").unwrap();
    let (one, two) = (contents(1, 100_000), contents(2, 100_000));
    // One that is stored when the cache goes, and one that is not.
    store(mnt.at("stored"), &one).unwrap();
    let stored = OpenOptions::new().write(true).open(mnt.at("stored")).unwrap();
    let mut written = File::create(mnt.at("written")).unwrap();
    written.write_all(&one).unwrap();
    written.sync_all().unwrap();
    while let Err(error) = fs::remove_dir_all(&cache) {
        assert_eq!(error.kind(), ErrorKind::DirectoryNotEmpty, "{error}");
    }
    for (name, file) in [("stored", &stored), ("written", &written)] {
        file.write_all_at(&two, 0).unwrap();
        file.sync_all().unwrap();
        assert!(fs::read(direct.at(name)).unwrap() == two, "{name}: fsync promised what the cache cannot keep");
    }
    close(stored).unwrap();
    close(written).unwrap();
    mnt.close(false).unwrap();
    direct.close(false).unwrap();
    server.check().unwrap();
}

#[test]
fn a_damaged_copy_is_fetched_again_and_never_served() {
    let dir = scratch().unwrap();
    let mut server = Server::start(dir.path(), "process").unwrap();
    let cache_dir = dir.path().join("cache");
    let mnt = mount(dir.path(), "mnt", &server, &cache_dir, &[]).unwrap();
    let files: Vec<(&str, Vec<u8>)> =
        vec![("flipped", contents(1, 70_000)), ("cut", contents(2, 80_000)), ("whole", contents(3, 90_000))];
    for (name, data) in &files {
        store(mnt.at(name), data).unwrap();
    }
    mnt.close(false).unwrap();
    let damage = |name: usize| {
        let found = copies(&cache_dir, &files[name].1);
        assert_eq!(found.len(), 1, "one copy of {}", files[name].0);
        OpenOptions::new().write(true).open(&found[0]).unwrap()
    };
    // With the old time only the checksum tells.
    let flipped = damage(0);
    let time = flipped.metadata().unwrap().modified().unwrap();
    flipped.write_all_at(b"!", 40_000).unwrap();
    flipped.set_modified(time).unwrap();
    drop(flipped);
    damage(1).set_len(10_000).unwrap();
    let mnt = mount(dir.path(), "mnt", &server, &cache_dir, &[]).unwrap();
    let damaged = stat(&mnt, "damaged");
    for (name, data) in &files {
        assert!(fs::read(mnt.at(name)).unwrap() == *data, "{name}");
    }
    assert_eq!(stat(&mnt, "fetches"), 2, "the two that are damaged, and not the third");
    // While it is mounted and the copy is not open: `verify` reads all of them.
    assert!(cache(&mnt, &["verify"]).is_ok());
    damage(2).write_all_at(b"!", 5).unwrap();
    let told = cache(&mnt, &["verify"]);
    let text = format!("{told:?}");
    assert!(text.contains("whole"), "{text}");
    assert!(stat(&mnt, "damaged") > damaged);
    // The kernel has pages of it that are good; a program that reads anew gets what the server has.
    fs::write("/proc/sys/vm/drop_caches", "1").unwrap();
    assert!(fs::read(mnt.at("whole")).unwrap() == files[2].1);
    assert_eq!(cache(&mnt, &["verify"]).map(|_| ()), Ok(()));
    mnt.close(false).unwrap();
    server.check().unwrap();
}

#[test]
fn a_file_larger_than_the_cache_is_served_without_one() {
    let dir = scratch().unwrap();
    let mut server = Server::start(dir.path(), "process").unwrap();
    let direct = Mount::new(dir.path(), "direct", &server, Mode::Direct, "").unwrap();
    let mnt = mount(dir.path(), "mnt", &server, &dir.path().join("cache"), &["--cache-size", "3M"]).unwrap();
    let (large, other) = (contents(1, 5 * MIB + 3), contents(2, 6 * MIB));
    store(direct.at("large"), &large).unwrap();
    store(direct.at("other"), &other).unwrap();
    for _ in 0..2 {
        assert!(fs::read(mnt.at("large")).unwrap() == large);
        assert!(fs::read(mnt.at("other")).unwrap() == other);
    }
    assert_eq!(mnt.log().matches("--cache-size").count(), 1, "it is said once:\n{}", mnt.log());
    assert!(stat(&mnt, "uncached_opens") >= 4);
    // Writing one works as well, in place and anew.
    let file = OpenOptions::new().write(true).open(mnt.at("large")).unwrap();
    file.write_all_at(b"changed", MIB as u64).unwrap();
    close(file).unwrap();
    let mut changed = large;
    changed[MIB..MIB + 7].copy_from_slice(b"changed");
    assert!(fs::read(direct.at("large")).unwrap() == changed);
    store(mnt.at("new"), &other).unwrap();
    assert!(fs::read(direct.at("new")).unwrap() == other && fs::read(mnt.at("new")).unwrap() == other);
    // The kernel closes files for good a moment after programs do.
    wait_until("what is too large is not kept", || stat(&mnt, "bytes") <= 3 * MIB as u64);
    assert_eq!((stat(&mnt, "dirty_files"), stat(&mnt, "conflicts")), (0, 0));
    mnt.close(false).unwrap();
    direct.close(false).unwrap();
    server.check().unwrap();
}

#[test]
fn what_is_written_is_evicted_as_what_is_read() {
    let dir = scratch().unwrap();
    let mut server = Server::start(dir.path(), "process").unwrap();
    let mnt = mount(dir.path(), "mnt", &server, &dir.path().join("cache"), &["--cache-size", "2M"]).unwrap();
    for number in 0..12 {
        store(mnt.at(format!("file-{number}")), &contents(number, 500_000)).unwrap();
    }
    wait_until("the cache keeps to its size", || stat(&mnt, "bytes") <= 2 * MIB as u64);
    assert!(stat(&mnt, "files") >= 3, "and does not give up more than it must");
    for number in 0..12 {
        assert!(fs::read(mnt.at(format!("file-{number}"))).unwrap() == contents(number, 500_000));
    }
    mnt.close(false).unwrap();
    server.check().unwrap();
}

#[test]
fn a_cache_in_what_it_is_a_cache_of_is_refused() {
    let dir = scratch().unwrap();
    let mut server = Server::start(dir.path(), "process").unwrap();
    let below = dir.path().join("inside/cache");
    fs::create_dir_all(&below).unwrap();
    let refused = format!("{:#}", mount(dir.path(), "inside", &server, &below, &[]).unwrap_err());
    assert!(refused.contains("below the mount point"), "{refused}");
    let direct = Mount::new(dir.path(), "direct", &server, Mode::Direct, "").unwrap();
    let refused = format!("{:#}", mount(dir.path(), "mnt", &server, &direct.at("new/cache"), &[]).unwrap_err());
    assert!(refused.contains("below the mount point"), "{refused}");
    assert_eq!(fs::read_dir(direct.path()).unwrap().count(), 0, "nothing was made there");
    direct.close(false).unwrap();
    server.check().unwrap();
}

#[test]
fn its_owner_pins_evicts_and_lists() {
    const LEN: usize = 600_000;
    let dir = scratch().unwrap();
    let mut server = Server::start(dir.path(), "process").unwrap();
    let cache_dir = dir.path().join("cache");
    let direct = Mount::new(dir.path(), "direct", &server, Mode::Direct, "").unwrap();
    let mnt = mount(dir.path(), "mnt", &server, &cache_dir, &["--cache-size", "4M"]).unwrap();
    for number in 0..10 {
        store(direct.at(format!("file-{number}")), &contents(number, LEN)).unwrap();
    }
    store(direct.at("huge"), &contents(0, 5 * MIB)).unwrap();
    let refused = cache(&mnt, &["pin", "huge"]).unwrap_err();
    assert!(refused.contains("--cache-size"), "{refused}\n{}", mnt.log());
    assert_eq!(stat(&mnt, "pinned"), 0, "what cannot be pinned is not pinned");
    cache(&mnt, &["pin", "file-0"]).unwrap();
    // One that cannot be had any more is not in the way of others.
    store(direct.at("grows"), &contents(0, 100)).unwrap();
    cache(&mnt, &["pin", "grows"]).unwrap();
    OpenOptions::new().write(true).open(direct.at("grows")).unwrap().set_len(5 << 20).unwrap();
    assert_eq!(copies(&cache_dir, &contents(0, LEN)).len(), 1, "it is fetched when it is pinned");
    for number in 1..10 {
        assert!(fs::read(mnt.at(format!("file-{number}"))).unwrap() == contents(number, LEN));
    }
    assert!(stat(&mnt, "bytes") <= 4 * MIB as u64 && stat(&mnt, "evicted") > 0);
    assert_eq!(copies(&cache_dir, &contents(0, LEN)).len(), 1, "what is pinned is not evicted");
    assert_eq!(copies(&cache_dir, &contents(1, LEN)).len(), 0, "what was used longest ago is");
    assert!(cache(&mnt, &["evict", "file-0"]).unwrap_err().contains("pinned"));

    // Another client changes it: it is there again before anybody asks.
    store(direct.at("file-0"), &contents(77, LEN)).unwrap();
    wait_until("the pinned file is fetched again", || stat(&mnt, "pins_missing") == 1);
    assert_eq!(copies(&cache_dir, &contents(77, LEN)).len(), 1);
    let before = stat(&mnt, "fetches");
    assert!(fs::read(mnt.at("file-0")).unwrap() == contents(77, LEN));
    assert_eq!(stat(&mnt, "fetches"), before, "a pinned file is fetched before anybody asks");

    let listed = cache(&mnt, &["list", "--json"]).unwrap();
    // Names are there for people, as far as they are known.
    let row = |name: &str| {
        let inode = fs::metadata(mnt.at(name)).unwrap().ino();
        listed.as_array().unwrap().iter().find(|row| row["inode"] == inode).cloned()
    };
    assert_eq!(row("file-0").unwrap()["pinned"], true, "{listed:#}");
    assert!(row("file-9").is_some_and(|row| row["pinned"] == false), "{listed:#}");
    assert!(row("file-1").is_none());
    assert_eq!(cache(&mnt, &["status", "--json"]).unwrap()["pinned"], 2);

    cache(&mnt, &["unpin", "file-0"]).unwrap();
    cache(&mnt, &["evict", "file-0"]).unwrap();
    assert!(copies(&cache_dir, &contents(77, LEN)).is_empty());
    let mut open = File::open(mnt.at("file-9")).unwrap();
    let told = cache(&mnt, &["evict", "file-9"]);
    assert!(format!("{told:?}").contains("open"), "{told:?}");
    let mut data = Vec::new();
    open.read_to_end(&mut data).unwrap();
    assert!(data == contents(9, LEN));
    assert!(cache(&mnt, &["pin", "no-such-file"]).unwrap_err().contains("no-such-file"));
    drop(open);
    mnt.close(false).unwrap();
    direct.close(false).unwrap();
    server.check().unwrap();
}

#[test]
fn what_is_removed_leaves_the_cache_and_its_descriptor_is_closed() {
    let dir = scratch().unwrap();
    let mut server = Server::start(dir.path(), "process").unwrap();
    let cache = dir.path().join("cache");
    let mount = mount(dir.path(), "mnt", &server, &cache, &[]).unwrap();
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", mount.id().unwrap())).unwrap().count();
    let before = descriptors();
    for file in 0..100 {
        store(mount.at(format!("file-{file}")), &contents(file, 10_000)).unwrap();
    }
    assert!(stat(&mount, "bytes") >= 100 * 10_000, "they are cached");
    // One that is open stays until it is closed.
    let mut open = File::open(mount.at("file-0")).unwrap();
    for file in 0..100 {
        fs::remove_file(mount.at(format!("file-{file}"))).unwrap();
    }
    wait_until("only the one that is open is left", || stat(&mount, "bytes") <= 10_000);
    let mut bytes = Vec::new();
    open.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, contents(0, 10_000));
    close(open).unwrap();
    wait_until("nothing is left", || stat(&mount, "bytes") == 0);
    // Connections come as they are needed.
    wait_until("descriptors are closed", || descriptors() < before + 20);
    mount.close(false).unwrap();
    server.check().unwrap();
}
