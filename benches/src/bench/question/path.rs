//! How long one request takes on its way, beside what the way itself takes.
//!
//! What the kernel and FUSE take is measured on a file system that answers at once
//! ([`pass_through`](crate::pass_through)), what tarpc and TCP take with a request that asks for nothing
//! ([`ping`](crate::bench::ping)). A request of Larder needs both. All take turns after a few requests each: which
//! processors threads are on, and how deeply these sleep, changes from one moment to the next.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Asking;
use crate::bench::candidate::{Candidate, KEPT, Larder, PASS_THROUGH, PassThrough, Setting};
use crate::bench::ping::Pinger;
use crate::bench::progress::Progress;
use crate::bench::results::{Axis, Cost, Plot, Sample, Unit};
use crate::bench::statistics::{Summary, quantile};
use crate::mount::Mode;
use crate::process::close;

/// Requests until the next one's turn.
const TURN: usize = 50;
/// Requests before any counts.
const WARM: usize = 200;
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
/// How many times as long that takes as its way.
const OF_BOTH: &str = "getattr, of FUSE and tarpc together";

pub(super) fn ask(asking: &mut Asking<'_>) -> Result<()> {
    let count = asking.scale.pick(50, 3000, 10_000);
    getattr(asking, count)?;
    others(asking, asking.scale.pick(10, 500, 2000), asking.scale.pick(4, 64, 256))
}

/// The median of these, in microseconds.
fn median(took: &[f64]) -> Result<f64> {
    Ok(Summary::of(took).context("nothing was measured")?.median)
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

/// What takes turns.
enum Part {
    /// Attributes of a file are asked for; what the line is called, and the column if there is one.
    Getattr { candidate: Box<dyn Candidate>, file: File, line: &'static str, column: Option<&'static str> },
    /// Nothing is.
    Ping(Pinger),
}

impl Part {
    fn line(&self) -> &'static str {
        match self {
            Part::Getattr { line, .. } => line,
            Part::Ping(_) => "tarpc alone",
        }
    }

    /// How long each of so many took, in microseconds.
    fn measure(&self, count: usize) -> Result<Vec<f64>> {
        match self {
            Part::Getattr { file, .. } => timed(count, |_| Ok(file.metadata()?.len())),
            Part::Ping(pinger) => pinger.ping(count).map(micros),
        }
    }
}

fn getattr(asking: &mut Asking<'_>, count: usize) -> Result<()> {
    let dir = asking.dir.join("path-getattr");
    fs::create_dir_all(&dir)?;
    let yardstick = Box::new(PassThrough::start(&dir, Duration::ZERO)?);
    let mut all: Vec<(Box<dyn Candidate>, &str, Option<&str>)> = vec![(yardstick, "FUSE alone", Some(PASS_THROUGH))];
    for mode in asking.modes {
        // With callbacks, nothing would be asked.
        let options = match mode {
            Mode::Direct => "",
            Mode::Nfs => "actimeo=0",
            Mode::Afs => continue,
        };
        let options = options.to_owned();
        let line = if *mode == Mode::Nfs { "nfs, actimeo=0" } else { mode.name() };
        let setting = Setting { options: options.clone(), ..Setting::of(*mode) };
        all.push((Box::new(Larder::start(&dir, setting)?), line, Some(mode.name())));
        if *mode == Mode::Direct {
            let setting = Setting { options, ..Setting::named("no-busy-poll".to_owned(), *mode) }.without_busy_poll();
            all.push((Box::new(Larder::start(&dir, setting)?), "direct, --busy-poll 0", None));
        }
    }
    let mut parts = vec![Part::Ping(Pinger::start(&dir)?)];
    for (mut candidate, line, column) in all {
        candidate.need_clients(1)?;
        let path = candidate.path(0).join("file");
        fs::write(&path, [1; SMALL])?;
        parts.push(Part::Getattr { file: File::open(&path)?, candidate, line, column });
    }
    let note = format!(
        "fstat(2) of a file whose attributes nobody keeps, {count} times in each of {} rounds, beside the two parts of its way: \
         the same on a FUSE file system that answers at once, and a tarpc request that asks for nothing. All take turns after \
         {TURN} requests.",
        asking.rounds
    );
    let mut plot = Plot::new(WORKLOAD, "How long getattr takes", &note, Axis::log("time", "µs"), Axis::share());
    parts.iter().try_for_each(|part| part.measure(WARM.min(count)).map(drop))?;
    let mut progress = Progress::new(asking.rounds)?;
    for round in 0..asking.rounds {
        progress.begin(format!("getattr, round {}", round + 1));
        let mut took: Vec<Vec<f64>> = vec![Vec::new(); parts.len()];
        while took[0].len() < count {
            for (part, took) in parts.iter().zip(&mut took) {
                took.extend(part.measure(TURN)?);
            }
        }
        let medians: Vec<f64> = took.iter().map(|took| median(took)).collect::<Result<_>>()?;
        // The first two are what the way itself takes.
        let way = medians[0] + medians[1];
        for ((part, took), middle) in parts.iter().zip(took).zip(medians) {
            keep(&mut plot, part.line(), took);
            match part {
                // The table has no column for what is no file system.
                Part::Ping(_) => note_sample(asking, "tarpc ping", Unit::Microseconds, PASS_THROUGH, middle),
                Part::Getattr { column: Some(column), .. } => {
                    note_sample(asking, GETATTR, Unit::Microseconds, column, middle);
                    if *column != PASS_THROUGH {
                        note_sample(asking, OF_BOTH, Unit::Times, column, middle / way);
                    }
                }
                Part::Getattr { column: None, .. } => {}
            }
        }
        progress.done();
    }
    asking.results.add_plot(plot);
    for part in parts {
        if let Part::Getattr { mut candidate, file, .. } = part {
            drop(file);
            candidate.end()?;
        }
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
    let created = timed(files, |number| Ok(close(File::create_new(place.join(format!("made-{round}-{number}")))?)?))?;
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
        ("read 1 MiB, cold", read),
    ])
}
