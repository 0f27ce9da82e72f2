//! A program that keeps files open, for `scripts/crash`: one without a name, and one that is mapped. `holder SOCKET`.
//!
//! It answers one line to each connection: `begin NUMBER SEED DIR` makes the files, `look` holds what is in them against
//! what it has written, and `use SEED` changes them after that. `ok`, `broken WHAT`, `failed ERRNO` (0 if there is none).
//! It ends when the mount is gone that its files are on: whoever keeps a file of it open keeps all of it in the kernel, with
//! the files of the disk cache that it reads in its place, and so the disk of a client that is dead.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{process, ptr, thread};

use anyhow::{Context, Result};
use larder_benches::crash::workload::holding::{Answer, IDLE, Request};
use larder_benches::crash::workload::kind_of_mount;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync};

/// Bytes of each file: many pages.
const LEN: usize = 200_000;
/// How often it is looked whether the mount is there.
const WATCHED: Duration = Duration::from_millis(500);

/// A mapping of a file.
struct Mapping {
    file: File,
    path: PathBuf,
    at: *mut u8,
}

impl Mapping {
    fn new(path: PathBuf) -> io::Result<Mapping> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        file.set_len(LEN as u64)?;
        // SAFETY: the kernel chooses a place that nothing else has.
        let at = unsafe { mmap(ptr::null_mut(), LEN, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &file, 0) }?;
        Ok(Mapping { file, path, at: at.cast() })
    }

    fn read(&self) -> Vec<u8> {
        // SAFETY: the mapping is LEN bytes long and is never taken down; nobody else writes to the file.
        unsafe { std::slice::from_raw_parts(self.at, LEN) }.to_vec()
    }

    fn write(&mut self, at: usize, bytes: &[u8]) -> io::Result<()> {
        assert!(at + bytes.len() <= LEN, "within the mapping");
        // SAFETY: within the mapping, as was just looked at, which this has alone.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.at.add(at), bytes.len()) };
        // SAFETY: the mapping is LEN bytes long.
        unsafe { msync(self.at.cast(), LEN, MsyncFlags::SYNC) }?;
        self.file.sync_data()
    }
}

struct Held {
    file: File,
    expected: Vec<u8>,
    mapping: Mapping,
    mapped: Vec<u8>,
}

fn some(random: &mut SmallRng) -> (Range<usize>, Vec<u8>) {
    let from = random.random_range(0..LEN);
    let to = random.random_range(from..LEN) + 1;
    let mut bytes = vec![0; to - from];
    random.fill(&mut bytes[..]);
    (from..to, bytes)
}

impl Held {
    fn new(dir: &Path, number: u64, random: &mut SmallRng) -> io::Result<Held> {
        let path = dir.join(format!("held-{number}"));
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        let mut expected = vec![0; LEN];
        random.fill(&mut expected[..]);
        file.write_all_at(&expected, 0)?;
        file.sync_all()?;
        fs::remove_file(path)?;
        let mapping = Mapping::new(dir.join(format!("mapped-{number}")))?;
        Ok(Held { file, expected, mapping, mapped: vec![0; LEN] })
    }

    /// What is wrong.
    fn look(&self) -> io::Result<Option<String>> {
        let found = self.file.metadata()?;
        if (found.nlink(), found.len()) != (0, LEN as u64) {
            return Ok(Some(format!("a file without a name has {} names and {} bytes", found.nlink(), found.len())));
        }
        let mut bytes = vec![0; LEN];
        self.file.read_exact_at(&mut bytes, 0)?;
        let by_name = fs::read(&self.mapping.path)?;
        let all = [
            ("a file without a name", &bytes, &self.expected),
            ("a mapping", &self.mapping.read(), &self.mapped),
            ("a file that is mapped", &by_name, &self.mapped),
        ];
        Ok(all.into_iter().find_map(|(what, found, expected)| {
            let at = (0..LEN).find(|at| found.get(*at) != expected.get(*at))?;
            let (length, found, expected) = (found.len(), found.get(at), expected[at]);
            Some(format!("{what} has {found:?} at {at} of {length}, and {expected} was written"))
        }))
    }

    fn change(&mut self, random: &mut SmallRng) -> io::Result<()> {
        let (range, bytes) = some(random);
        self.file.write_all_at(&bytes, range.start as u64)?;
        self.file.sync_data()?;
        self.expected[range].copy_from_slice(&bytes);
        let (range, bytes) = some(random);
        self.mapping.write(range.start, &bytes)?;
        self.mapped[range].copy_from_slice(&bytes);
        Ok(())
    }
}

/// Ends this process when what is mounted there is not there any more. On a mount that has no answer it waits for one.
fn watch(dir: PathBuf) {
    let mounted = kind_of_mount(&dir);
    thread::spawn(move || {
        while kind_of_mount(&dir) == mounted {
            thread::sleep(WATCHED);
        }
        process::exit(1);
    });
}

fn answer(held: &mut Option<Held>, request: &Request) -> io::Result<Option<String>> {
    match request {
        Request::Begin { dir, number, seed } => {
            *held = Some(Held::new(dir, *number, &mut SmallRng::seed_from_u64(*seed))?);
            watch(dir.clone());
            Ok(None)
        }
        Request::Look => held.as_ref().map_or(Ok(None), Held::look),
        Request::Use { seed } => {
            let Some(held) = held else { return Ok(None) };
            if let Some(wrong) = held.look()? {
                return Ok(Some(wrong));
            }
            held.change(&mut SmallRng::seed_from_u64(*seed))?;
            held.look()
        }
    }
}

fn serve(mut connection: UnixStream, held: &mut Option<Held>) -> Result<()> {
    let mut line = String::new();
    BufReader::new(&connection).read_line(&mut line)?;
    let request = Request::parse(line.trim_end()).with_context(|| format!("a strange request: {line}"))?;
    let answer = match answer(held, &request) {
        Ok(None) => Answer::Ok,
        Ok(Some(wrong)) => Answer::Broken(wrong),
        Err(error) => Answer::Failed(error.raw_os_error().unwrap_or(0)),
    };
    Ok(writeln!(connection, "{answer}")?)
}

fn main() -> Result<()> {
    let socket = std::env::args_os().nth(1).context("usage: holder SOCKET")?;
    let listener = UnixListener::bind(&socket).with_context(|| format!("listening on {}", socket.display()))?;
    let mut held = None;
    // Nobody who forgets about it leaves it behind.
    let idle = Timespec::try_from(IDLE)?;
    while poll(&mut [PollFd::new(&listener, PollFlags::IN)], Some(&idle))? > 0 {
        // Who asked may be gone.
        if let Err(error) = serve(listener.accept()?.0, &mut held) {
            eprintln!("holder: {error:#}");
        }
    }
    Ok(())
}
