//! How long one request takes on its way, beside what the way itself takes.
//!
//! What the kernel and FUSE take is measured on a file system that answers at once
//! ([`pass_through`](crate::pass_through)), what tarpc and TCP take with a request that asks for nothing
//! ([`ping`](crate::bench::ping)). No request of Larder can take less than both together.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Asking;
use crate::bench::candidate::{Candidate, Larder, PASS_THROUGH, PassThrough, Setting};
use crate::bench::ping::Pinger;
use crate::bench::progress::Progress;
use crate::bench::results::{Axis, Cost, Plot, Sample, Unit};
use crate::bench::statistics::quantile;
use crate::mount::Mode;

/// How long the kernel keeps what it is told where it may.
const KEPT: Duration = Duration::from_secs(24 * 60 * 60);
/// Values of a round that a distribution keeps.
const SHOWN: usize = 100;
/// Bytes of a small file and of a small read.
const SMALL: usize = 4096;
/// Bytes of a large read.
const LARGE: usize = 1 << 20;

/// What the table of this question is called.
const WORKLOAD: &str = "path";
/// The row of asking for attributes.
const GETATTR: &str = "getattr, not cached";

pub(super) fn ask(asking: &mut Asking<'_>) -> Result<()> {
    let count = asking.scale.pick(50, 3000, 10_000);
    getattr(asking, count)?;
    others(asking, asking.scale.pick(10, 500, 2000), asking.scale.pick(4, 64, 256))
}

/// The median of these, in microseconds.
fn median(took: &[f64]) -> Result<f64> {
    let mut sorted = took.to_vec();
    sorted.sort_by(f64::total_cmp);
    quantile(&sorted, 0.5).context("nothing was measured")
}

fn micros(took: Vec<Duration>) -> Vec<f64> {
    took.into_iter().map(|took| took.as_secs_f64() * 1e6).collect()
}

/// What so many of these take, one after the other.
fn timed<T>(count: usize, mut work: impl FnMut(usize) -> Result<T>) -> Result<Vec<f64>> {
    let one = |number| {
        let begin = Instant::now();
        let result = work(number)?;
        let took = begin.elapsed();
        drop(result);
        Ok(took)
    };
    (0..count).map(one).collect::<Result<_>>().map(micros)
}

/// Where attributes are asked for.
struct Asked {
    candidate: Box<dyn Candidate>,
    file: File,
    line: String,
}

fn getattr(asking: &mut Asking<'_>, count: usize) -> Result<()> {
    let dir = asking.dir.join("path-getattr");
    fs::create_dir_all(&dir)?;
    let mut all: Vec<(Box<dyn Candidate>, String)> =
        vec![(Box::new(PassThrough::start(&dir, Duration::ZERO)?), "FUSE alone".to_owned())];
    for mode in asking.modes {
        // With callbacks, nothing would be asked.
        let (options, line) = match mode {
            Mode::Direct => ("", "direct"),
            Mode::Nfs => ("actimeo=0", "nfs, actimeo=0"),
            Mode::Afs => continue,
        };
        let setting = Setting { options: options.to_owned(), ..Setting::of(*mode) };
        all.push((Box::new(Larder::start(&dir, setting)?), line.to_owned()));
    }
    let mut asked = Vec::new();
    for (mut candidate, line) in all {
        candidate.need_clients(1)?;
        let path = candidate.path(0).join("file");
        fs::write(&path, [1; SMALL])?;
        asked.push(Asked { file: File::open(&path)?, candidate, line });
    }
    let pinger = Pinger::start(&dir)?;
    let note = format!(
        "fstat(2) of a file whose attributes nobody keeps, {count} times in each of {} rounds, beside the two parts of its way: \
         the same on a FUSE file system that answers at once, and a tarpc request that asks for nothing.",
        asking.rounds
    );
    let mut plot = Plot::new(WORKLOAD, "How long getattr takes", &note, Axis::log("time", "µs"), Axis::share());
    let mut progress = Progress::new(asking.rounds * (asked.len() + 1))?;
    for round in 0..asking.rounds {
        let mut parts = 0.0;
        let mut medians = Vec::new();
        for turn in 0..=asked.len() {
            let (line, candidate, took) = match asked.get((turn + round) % (asked.len() + 1)) {
                Some(one) => {
                    progress.begin(format!("getattr: {}", one.line));
                    (one.line.as_str(), one.candidate.name(), timed(count, |_| Ok(one.file.metadata()?.len()))?)
                }
                None => {
                    progress.begin("tarpc".to_owned());
                    ("tarpc alone", "tarpc", micros(pinger.ping(count)?))
                }
            };
            progress.done();
            let middle = median(&took)?;
            let row = if candidate == "tarpc" { "tarpc ping" } else { GETATTR };
            // The table has no column for what is no file system.
            let column = if candidate == "tarpc" { PASS_THROUGH } else { candidate };
            note_sample(asking, row, Unit::Microseconds, column, middle);
            if column == PASS_THROUGH {
                parts += middle;
            } else {
                medians.push((candidate.to_owned(), middle));
            }
            keep(&mut plot, line, took);
        }
        for (candidate, middle) in medians {
            note_sample(asking, "getattr, of FUSE and tarpc together", Unit::Times, &candidate, middle / parts);
        }
    }
    asking.results.add_plot(plot);
    for mut one in asked {
        drop(one.file);
        one.candidate.end()?;
    }
    Ok(())
}

fn note_sample(asking: &mut Asking<'_>, row: &str, unit: Unit, candidate: &str, value: f64) {
    let sample = Sample { value, cost: Cost::default() };
    asking.results.note(WORKLOAD, row, unit, candidate, sample);
    if !asking.results.candidates.iter().any(|known| known == candidate) {
        asking.results.candidates.push(candidate.to_owned());
    }
}

/// Keeps some of these, evenly spread over all.
fn keep(plot: &mut Plot, line: &str, mut took: Vec<f64>) {
    took.sort_by(f64::total_cmp);
    for place in 0..SHOWN.min(took.len()) {
        let part = (place as f64 + 0.5) / SHOWN.min(took.len()) as f64;
        quantile(&took, part).into_iter().for_each(|value| plot.note_value(line, value));
    }
}

/// Opens, small reads, creations and large reads. `files` small ones, and one of so many mebibytes.
fn others(asking: &mut Asking<'_>, files: usize, mebibytes: usize) -> Result<()> {
    let dir = asking.dir.join("path");
    fs::create_dir_all(&dir)?;
    let mut candidates: Vec<Box<dyn Candidate>> = vec![Box::new(PassThrough::start(&dir, KEPT)?)];
    for mode in asking.modes {
        candidates.push(Box::new(Larder::start(&dir, Setting::of(*mode))?));
    }
    for candidate in &mut candidates {
        candidate.need_clients(1)?;
        let place = candidate.path(0);
        for file in 0..files {
            fs::write(place.join(format!("small-{file}")), [2; SMALL])?;
        }
        fs::write(place.join("large"), vec![3; mebibytes * LARGE])?;
    }
    let mut progress = Progress::new(asking.rounds * candidates.len())?;
    for round in 0..asking.rounds {
        for turn in 0..candidates.len() {
            let count = candidates.len();
            let candidate = &mut candidates[(turn + round) % count];
            progress.begin(format!("round {}: {}", round + 1, candidate.name()));
            candidate.forget(0)?;
            let place = candidate.path(0);
            for (row, took) in round_of(&place, round, files, mebibytes)? {
                note_sample(asking, row, Unit::Microseconds, candidate.name(), median(&took)?);
            }
            progress.done();
        }
    }
    candidates.iter_mut().try_for_each(|candidate| candidate.end())
}

/// One round on a client with empty caches.
fn round_of(place: &Path, round: usize, files: usize, mebibytes: usize) -> Result<[(&'static str, Vec<f64>); 4]> {
    let small = |number: usize| place.join(format!("small-{number}"));
    let cold = timed(files, |number| {
        let mut buffer = [0; SMALL];
        let file = File::open(small(number))?;
        file.read_exact_at(&mut buffer, 0)?;
        drop(file);
        ensure!(buffer == [2; SMALL], "a small file has other contents");
        Ok(())
    })?;
    let warm = timed(files, |_| Ok(File::open(small(0)).map(drop)?))?;
    let created = timed(files, |number| Ok(File::create_new(place.join(format!("made-{round}-{number}"))).map(drop)?))?;
    // The kernel's own cache stays out of it: each read is one request.
    let large = File::options().read(true).custom_flags(libc::O_DIRECT).open(place.join("large"))?;
    let mut room = vec![0; LARGE + SMALL];
    let aligned = room.as_ptr().align_offset(SMALL);
    let read = timed(mebibytes, |number| {
        let part = &mut room[aligned..aligned + LARGE];
        large.read_exact_at(part, (number * LARGE) as u64)?;
        ensure!(part.first() == Some(&3), "the large file has other contents");
        Ok(())
    })?;
    Ok([
        ("open, read 4 KiB, close, cold", cold),
        ("open, close, warm", warm),
        ("create, close", created),
        ("read 1 MiB", read),
    ])
}
