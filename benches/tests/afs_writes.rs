//! What is written in afs mode is at the server once it is closed, whichever way it was written: by requests, by the
//! kernel's own way to the cache file (passthrough), or by a mapping.
#![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::Duration;

use larder_benches::mount::{Mode, Mount};
use larder_benches::process::{close, scratch, store};
use larder_benches::server::Server;
use rustix::fs::OFlags;
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};

/// Bytes of the files: more than the kernel hands over at once, and no whole number of pages.
const LEN: usize = (2 << 20) + 777;

/// A mount in afs mode, and one without a cache that shows what the server has.
struct World {
    server: Server,
    direct: Mount,
    afs: Mount,
    options: &'static str,
    dir: tempfile::TempDir,
}

impl World {
    fn new(options: &'static str) -> World {
        let dir = scratch().unwrap();
        let server = Server::start(dir.path(), "process").unwrap();
        let direct = Mount::new(dir.path(), "direct", &server, Mode::Direct, "").unwrap();
        let afs = Mount::new(dir.path(), "afs", &server, Mode::Afs, options).unwrap();
        World { server, direct, afs, options, dir }
    }

    /// A file that the mount has not fetched.
    fn file(&self, name: &str) -> Vec<u8> {
        let data = contents(name.len() as u8);
        store(self.direct.at(name), &data).unwrap();
        data
    }

    fn at_server(&self, name: &str, wanted: &[u8], what: &str) {
        let found = fs::read(self.direct.at(name)).unwrap();
        let differs = found.iter().zip(wanted).position(|(found, wanted)| found != wanted);
        let (options, len) = (self.options, found.len());
        assert!(found == wanted, "{what} ({options}): {len} bytes, the first that is wrong at {differs:?}");
    }

    fn open(&self, name: &str) -> File {
        OpenOptions::new().read(true).write(true).open(self.afs.at(name)).unwrap()
    }

    fn end(mut self) {
        self.afs.close(false).unwrap();
        self.direct.close(false).unwrap();
        self.server.check().unwrap();
        drop(self.dir);
    }
}

fn contents(seed: u8) -> Vec<u8> {
    (0..LEN).map(|at| (at / 1000) as u8 ^ seed).collect()
}

/// A file that is mapped, shared and writable.
struct Mapped(*mut u8);

impl Mapped {
    fn new(file: &File) -> Mapped {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, which nothing else in this process refers to; `write` stays within it.
        let at = unsafe { mmap(std::ptr::null_mut(), LEN, access, MapFlags::SHARED, file.as_fd(), 0) };
        Mapped(at.unwrap().cast())
    }

    fn write(&mut self, at: usize, data: &[u8], model: &mut [u8]) {
        assert!(at + data.len() <= LEN);
        // SAFETY: within the mapping, which is writable and nobody else's.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), self.0.add(at), data.len()) };
        model[at..at + data.len()].copy_from_slice(data);
    }

    fn sync(&self) {
        // SAFETY: the mapping is there until this is dropped.
        unsafe { msync(self.0.cast(), LEN, MsyncFlags::SYNC) }.unwrap();
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length, and nothing refers to it any more.
        unsafe { munmap(self.0.cast(), LEN) }.unwrap();
    }
}

fn write(file: &File, at: usize, data: &[u8], model: &mut [u8]) {
    file.write_all_at(data, at as u64).unwrap();
    model[at..at + data.len()].copy_from_slice(data);
}

fn two_writers_beside_a_reader(world: &World) {
    let mut model = world.file("two");
    let reader = File::open(world.afs.at("two")).unwrap();
    let (one, two) = (world.open("two"), world.open("two"));
    write(&one, 10, b"the first", &mut model);
    write(&two, 1_500_000, b"the second", &mut model);
    close(one).unwrap();
    world.at_server("two", &model, "after the first close");
    model.extend_from_slice(b"more");
    write(&two, LEN - 5, b"at an end", &mut model);
    close(two).unwrap();
    world.at_server("two", &model, "after the second close");
    let mut seen = vec![0; 10];
    reader.read_exact_at(&mut seen, 1_500_000).unwrap();
    assert_eq!(seen, b"the second", "programs of one machine see each other's writes");
}

fn a_mapping_that_is_closed_before_the_file(world: &World) {
    let mut model = world.file("mapped");
    let file = world.open("mapped");
    let mut map = Mapped::new(&file);
    map.write(0, b"at the beginning", &mut model);
    map.write(1 << 20, &[7; 10_000], &mut model);
    drop(map);
    close(file).unwrap();
    world.at_server("mapped", &model, "after the close");
}

fn a_mapping_that_is_written_again_after_fsync(world: &World) {
    let mut model = world.file("synced");
    let file = world.open("synced");
    let mut map = Mapped::new(&file);
    for round in 0..3u8 {
        // The same pages each time: what was written back must count as written again.
        map.write(4096, &[b'a' + round; 5000], &mut model);
        map.sync();
        file.sync_all().unwrap();
        world.at_server("synced", &model, "after fsync");
    }
    map.write(4096, b"after the last fsync", &mut model);
    drop(map);
    close(file).unwrap();
    world.at_server("synced", &model, "after the close");
}

fn a_mapping_that_outlives_the_file(world: &World) {
    let mut model = world.file("outlived");
    let file = world.open("outlived");
    let mut map = Mapped::new(&file);
    map.write(0, b"before", &mut model);
    close(file).unwrap();
    map.write(1_000_000, b"after the close", &mut model);
    drop(map);
    // No program waits for what the kernel closes last.
    for _ in 0..100 {
        if fs::read(world.direct.at("outlived")).unwrap() == model {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    world.at_server("outlived", &model, "after it was unmapped");
}

fn a_truncation_without_writing(world: &World) {
    world.file("emptied");
    let flags = OFlags::TRUNC.bits().cast_signed();
    drop(OpenOptions::new().read(true).custom_flags(flags).open(world.afs.at("emptied")).unwrap());
    world.at_server("emptied", b"", "after O_RDONLY|O_TRUNC");
    let mut model = world.file("cut");
    let file = world.open("cut");
    file.set_len(100_000).unwrap();
    model.truncate(100_000);
    close(file).unwrap();
    world.at_server("cut", &model, "after ftruncate");
    model.truncate(5);
    let path = std::ffi::CString::new(world.afs.at("cut").into_os_string().into_vec()).unwrap();
    // SAFETY: the path ends with a zero byte, and is there for the call.
    assert_eq!(unsafe { libc::truncate(path.as_ptr(), 5) }, 0);
    world.at_server("cut", &model, "after truncate");
}

fn appending_to_what_another_has_stored(world: &World) {
    let mut model = world.file("log");
    assert_eq!(fs::read(world.afs.at("log")).unwrap(), model);
    model = contents(99);
    model.extend_from_slice(b"longer");
    store(world.direct.at("log"), &model).unwrap();
    let mut file = OpenOptions::new().append(true).open(world.afs.at("log")).unwrap();
    for line in [&b"one"[..], b"two"] {
        file.write_all(line).unwrap();
        model.extend_from_slice(line);
    }
    close(file).unwrap();
    world.at_server("log", &model, "after appending");
}

fn every_way_of_writing(options: &'static str) {
    let world = World::new(options);
    two_writers_beside_a_reader(&world);
    a_mapping_that_is_closed_before_the_file(&world);
    a_mapping_that_is_written_again_after_fsync(&world);
    a_mapping_that_outlives_the_file(&world);
    a_truncation_without_writing(&world);
    appending_to_what_another_has_stored(&world);
    let stats = world.afs.stats().unwrap();
    let passed = stats["cache"]["passthrough_opens"].as_u64().unwrap();
    assert_eq!(passed > 0, options == "passthrough=1", "{passed} opens were served by the kernel");
    assert_eq!(stats["cache"]["conflicts"], 0);
    world.end();
}

#[test]
fn what_is_written_is_stored_when_it_is_closed() {
    every_way_of_writing("passthrough=off");
}

#[test]
fn what_is_written_by_way_of_the_kernel_is_stored_too() {
    every_way_of_writing("passthrough=1");
}
