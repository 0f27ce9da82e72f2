//! Files that several clients use at the same time.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{Bench, Task, Workload, read, repeat, together};
use crate::bench::results::Unit;
use crate::process::store;

/// How long each is done, by scale.
const LENGTH: [Duration; 3] = [Duration::from_millis(100), Duration::from_secs(2), Duration::from_secs(5)];
/// How long one client may wait for what another has closed: sshfs believes what it has for 20 seconds.
const PATIENCE: Duration = Duration::from_secs(90);
/// Handed over at most in a round.
const HANDED_OVER: u64 = 200;
/// Bytes that a writer writes at a time.
const BLOCK: usize = 4096;

/// The first client changes what all others read.
pub(super) struct Shared {
    pub(super) clients: usize,
}

impl Workload for Shared {
    fn clients(&self) -> usize {
        self.clients
    }

    fn round(&self, bench: &mut Bench<'_>) -> Result<()> {
        let place = bench.make_place()?;
        let places: Vec<PathBuf> = (0..self.clients).map(|client| bench.place(client)).collect();
        let files = bench.inputs.scale.pick(20, 200, 1000);
        let [quick, usual, full] = LENGTH;
        let length = bench.inputs.scale.pick(quick, usual, full);
        for file in 0..files {
            fs::write(place.join(format!("file-{file}")), vec![1; BLOCK])?;
        }
        bench.figure("read a tree that changes", Unit::PerSecond, || {
            let pass = |place: &Path| {
                (0..files).try_for_each(|file| {
                    ensure!(read(&place.join(format!("file-{file}")))?.len() == BLOCK, "a file has another size");
                    Ok(())
                })?;
                Ok(files)
            };
            // Not truncated before: a reader between the two would be right to find an empty file.
            let change = |count: u8| {
                let file = File::options().write(true).open(place.join("file-7"))?;
                file.write_all_at(&vec![count; BLOCK], 0)?;
                Ok(crate::process::close(file)?)
            };
            read_beside(length, &places[1..], pass, change, Duration::from_millis(100))
        })?;
        replace(&place, 0)?;
        bench.figure("read a file that is replaced", Unit::PerSecond, || {
            let look = |place: &Path| {
                match fs::read(place.join("hot")) {
                    Ok(_) => Ok(1),
                    // Removed by another client while it was read.
                    Err(error) if error.raw_os_error() == Some(libc::ESTALE) => Ok(0),
                    Err(error) => Err(error.into()),
                }
            };
            read_beside(length, &places[1..], look, |count| replace(&place, count), Duration::from_millis(250))
        })?;
        fs::write(place.join("there"), 0u64.to_le_bytes())?;
        fs::write(place.join("back"), 0u64.to_le_bytes())?;
        bench.figure("hand over and back", Unit::PerSecond, || hand_over(length, &places[0], &places[1]))?;
        fs::write(place.join("halves"), vec![0; 2 * BLOCK])?;
        bench.figure("two writers of one file", Unit::PerSecond, || {
            let writer = |half: usize| -> Task<'_, f64> {
                let path = places[half].join("halves");
                Box::new(move || {
                    repeat(length, || {
                        let file = File::options().write(true).open(&path).context("opening it to write")?;
                        file.write_all_at(&vec![half as u8; BLOCK], (half * BLOCK) as u64)?;
                        crate::process::close(file).context("closing what was written")?;
                        Ok(1)
                    })
                })
            };
            Ok(together(vec![writer(0), writer(1)])?.into_iter().sum())
        })
    }
}

fn replace(place: &Path, count: u8) -> Result<()> {
    store(place.join("hot.new"), &[count; BLOCK])?;
    Ok(fs::rename(place.join("hot.new"), place.join("hot"))?)
}

/// Reads on each of these clients while another changes something now and then. Reads per second in all.
fn read_beside(
    length: Duration,
    readers: &[PathBuf],
    pass: impl Fn(&Path) -> Result<usize> + Sync,
    change: impl Fn(u8) -> Result<()> + Sync,
    pause: Duration,
) -> Result<f64> {
    let is_over = AtomicBool::new(false);
    let (pass, change, is_over) = (&pass, &change, &is_over);
    let writer: Task<'_, f64> = Box::new(move || {
        let mut count = 0u8;
        while !is_over.load(Ordering::Relaxed) {
            count = count.wrapping_add(1);
            change(count)?;
            thread::sleep(pause);
        }
        Ok(0.0)
    });
    let reader = |place: &'_ PathBuf| -> Task<'_, f64> {
        let place = place.clone();
        Box::new(move || {
            let _over = crate::process::SetAtEnd(is_over);
            repeat(length, || pass(&place))
        })
    };
    let mut work: Vec<Task<'_, f64>> = readers.iter().map(reader).collect();
    work.push(writer);
    Ok(together(work)?.into_iter().sum())
}

/// One client writes a number and closes the file; another opens it until it finds that, and answers in the same way. How
/// often it goes there and back in a second.
fn hand_over(length: Duration, one: &Path, other: &Path) -> Result<f64> {
    let is_over = AtomicBool::new(false);
    let is_over = &is_over;
    let await_number = move |path: &Path, number: u64| -> Result<bool> {
        let begin = Instant::now();
        loop {
            let found = read(path)?;
            if found.get(..8).is_some_and(|found| found == number.to_le_bytes()) {
                return Ok(true);
            }
            if is_over.load(Ordering::Relaxed) {
                return Ok(false);
            }
            ensure!(begin.elapsed() < PATIENCE, "what another client has closed is not seen after {PATIENCE:?}");
        }
    };
    let begin = Instant::now();
    let asking: Task<'_, f64> = Box::new(move || {
        let _over = crate::process::SetAtEnd(is_over);
        let mut number = 0;
        while number < HANDED_OVER && begin.elapsed() < length {
            number += 1;
            store(one.join("there"), &number.to_le_bytes())?;
            ensure!(await_number(&one.join("back"), number)?, "the other side has failed");
        }
        Ok(number as f64 / begin.elapsed().as_secs_f64())
    });
    let answering: Task<'_, f64> = Box::new(move || {
        let _over = crate::process::SetAtEnd(is_over);
        for number in 1.. {
            if !await_number(&other.join("there"), number)? {
                break;
            }
            store(other.join("back"), &u64::to_le_bytes(number))?;
        }
        Ok(0.0)
    });
    Ok(together(vec![asking, answering])?.into_iter().sum())
}
