//! A volume that is used at its limit: by several programs on several clients, in every way that takes up room or gives it back.
//!
//! `LARDER_TEST_SIZE=full` goes through 100 mixes.
#![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use larder_benches::cell::Cell;
use larder_benches::mount::{Mode, Mount};
use larder_benches::raw::Raw;
use larder_benches::size::Size;
use larder_protocol::ids::VolumeId;
use larder_protocol::service::admin::{AdminReply, AdminRequest, VolumeUsage};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

/// Bytes that the volume may hold.
const QUOTA: u64 = 4 << 20;
/// Files that it may hold.
const FILES: u64 = 24;
/// What programs may go past that by: what one request carries, for each client.
const BUFFERS: u64 = 2 << 20;
/// Operations of one program in a mix.
const OPERATIONS: usize = 40;
/// Bytes of the longest write, and of the longest file.
const WRITE: usize = 700 << 10;
const LONGEST: u64 = 2 << 20;
/// How long the last of what was removed may count: a client tells of it within a second or two.
const SETTLED: Duration = Duration::from_secs(20);
/// What an empty volume holds: its root directory.
const EMPTY: (u64, u64) = (4096, 1);

/// What a program may see beside EDQUOT: names come and go.
fn expected(error: &io::Error) -> bool {
    let Some(code) = error.raw_os_error().map(Errno::from_raw_os_error) else { return false };
    code == Errno::NOENT
}

/// One program, with files of its own and one that it shares with the others.
struct Program {
    dir: PathBuf,
    random: SmallRng,
    stores_whole: bool,
    refused: usize,
}

impl Program {
    fn file(&mut self) -> PathBuf {
        let name = if self.random.random_bool(0.1) {
            "../shared".to_owned()
        } else {
            self.random.random_range(0..5).to_string()
        };
        self.dir.join(name)
    }

    fn own(&mut self) -> PathBuf {
        self.dir.join(self.random.random_range(0..5).to_string())
    }

    /// One operation, and whether it may take up more.
    fn operate(&mut self) -> (io::Result<()>, bool) {
        let kind = self.random.random_range(0..10);
        // Closing stores the whole file in afs mode, which may take the place of a smaller one.
        (self.carry_out(kind), matches!(kind, 0..4 | 9..) || (self.stores_whole && matches!(kind, 4..6)))
    }

    fn carry_out(&mut self, kind: u32) -> io::Result<()> {
        match kind {
            0..4 => {
                let (path, len) = (self.file(), self.random.random_range(1..WRITE));
                let at = self.random.random_range(0..LONGEST - WRITE as u64);
                let mut data = vec![0; len];
                self.random.fill(&mut data[..]);
                let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
                file.write_all_at(&data, at)?;
                file.sync_all()
            }
            4 => File::options().write(true).open(self.file())?.set_len(self.random.random_range(0..LONGEST)),
            5 => {
                let (at, len) = (self.random.random_range(0..LONGEST), self.random.random_range(1..LONGEST));
                let file = File::options().write(true).open(self.file())?;
                let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                Ok(rustix::fs::fallocate(&file, punch, at, len)?)
            }
            6 => {
                let (from, to) = (self.own(), self.own());
                if from == to || to.exists() { Ok(()) } else { fs::hard_link(from, to) }
            }
            7 => fs::remove_file(self.own()),
            8 => fs::rename(self.own(), self.own()),
            _ => {
                // Replaced, as editors do.
                let (path, len) = (self.own(), self.random.random_range(0..WRITE));
                let new = path.with_extension("new");
                let written = fs::write(&new, vec![7; len]);
                if written.is_err() {
                    fs::remove_file(&new)?;
                }
                written?;
                fs::rename(new, path)
            }
        }
    }

    fn run(mut self) -> usize {
        for _ in 0..OPERATIONS {
            if let (Err(error), may_grow) = self.operate() {
                let is_full = may_grow && error.raw_os_error() == Some(Errno::DQUOT.raw_os_error());
                assert!(is_full || expected(&error), "{}: {error}", self.dir.display());
                self.refused += usize::from(is_full);
            }
        }
        self.refused
    }
}

/// What the server says that the volume holds.
struct Watch {
    raw: Raw,
    volume: VolumeId,
    runtime: tokio::runtime::Runtime,
}

impl Watch {
    fn new(cell: &Cell, volume: u32) -> Watch {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let raw = runtime.block_on(Raw::connect(cell.server.address())).unwrap();
        Watch { raw, volume: VolumeId(volume), runtime }
    }

    fn usage(&self) -> VolumeUsage {
        match self.runtime.block_on(self.raw.admin(AdminRequest::Show { volume: self.volume })).unwrap() {
            AdminReply::Shown { usage, .. } => usage,
            other => panic!("{other:?}"),
        }
    }

    /// Looks again and again until `done`; the most that it held, in bytes and files.
    fn most_until(&self, done: &AtomicBool) -> (u64, u64) {
        let mut most = (0, 0);
        loop {
            let is_last = done.load(Ordering::SeqCst);
            let usage = self.usage();
            most = (most.0.max(usage.bytes), most.1.max(usage.files));
            if is_last {
                return most;
            }
        }
    }

    fn is_empty_soon(&self) {
        let began = Instant::now();
        loop {
            let usage = self.usage();
            if (usage.bytes, usage.files) == EMPTY {
                return;
            }
            assert!(began.elapsed() < SETTLED, "what all is removed of holds {usage:?}");
            thread::sleep(Duration::from_millis(50));
        }
    }
}

fn remove_all(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
    }
}

fn mix(mode: Mode, places: [&Path; 2], watch: &Watch, seed: u64) -> usize {
    fs::write(places[0].join("shared"), "").unwrap();
    let programs: Vec<Program> = (0..3)
        .map(|number| {
            let dir = places[number % 2].join(format!("program-{number}"));
            fs::create_dir(&dir).unwrap();
            Program {
                dir,
                random: SmallRng::seed_from_u64(seed * 3 + number as u64),
                stores_whole: mode == Mode::Afs,
                refused: 0,
            }
        })
        .collect();
    let done = AtomicBool::new(false);
    let (refused, most) = thread::scope(|scope| {
        let running: Vec<_> = programs.into_iter().map(|program| scope.spawn(|| program.run())).collect();
        let ended = scope.spawn(|| {
            let refused: Vec<_> = running.into_iter().map(thread::ScopedJoinHandle::join).collect();
            done.store(true, Ordering::SeqCst);
            refused
        });
        let most = watch.most_until(&done);
        let refused = ended.join().unwrap().into_iter().map(|refused| refused.unwrap()).sum::<usize>();
        (refused, most)
    });
    assert!(most.0 <= QUOTA + BUFFERS, "the volume held {} bytes of {QUOTA}", most.0);
    assert!(most.1 <= FILES, "the volume held {} files of {FILES}", most.1);
    println!("seed {seed}: {refused} refused, at most {} KiB of {}", most.0 >> 10, QUOTA >> 10);
    remove_all(places[0]);
    watch.is_empty_soon();
    refused
}

#[test]
fn a_volume_never_holds_more_than_its_quota_and_is_empty_when_all_is_removed() {
    let mixes = Size::get().pick(1, 3, 34);
    for mode in Mode::ALL {
        println!("in {} mode", mode.name());
        let cell = Cell::new(mode).unwrap();
        cell.add("work", &["--quota", &QUOTA.to_string(), "--max-files", &FILES.to_string()]).unwrap();
        let other = Mount::new(cell.dir.path(), "other", &cell.server, mode, "").unwrap();
        let watch = Watch::new(&cell, 2);
        let places = [cell.mount.at("work"), other.at("work")];
        let refused: usize =
            (0..mixes).map(|_| mix(mode, [&places[0], &places[1]], &watch, rand::random::<u32>().into())).sum();
        assert!(refused > 0, "the limit was never reached");
        drop(watch);
        other.close(false).unwrap();
        cell.end().unwrap();
    }
}
