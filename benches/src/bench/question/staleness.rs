//! How long it takes until one client sees what another has closed.

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::{Asking, at_once, each};
use crate::bench::candidate::{Candidate, Larder, Setting};
use crate::bench::results::{Axis, Plot};
use crate::lock;
use crate::mount::Mode;
use crate::process::{SetAtEnd, store};

/// From one look to the next.
const LOOKS: Duration = Duration::from_micros(500);
/// The same where many files are looked at.
const SELDOM_LOOKS: Duration = Duration::from_millis(20);
/// How long a version may take to be seen: attributes may be used for a minute.
const PATIENCE: Duration = Duration::from_secs(120);
/// The longest pause before the next version: how long a file was left alone is what `nfs` goes by.
const PAUSE_MS: u64 = 4000;
/// What is shown of what is seen sooner than can be told.
pub(super) const AT_ONCE: f64 = 1e-4;

/// How a reader looks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// It asks how long the file is.
    Stat,
    /// It opens and reads it.
    Open,
}

impl Look {
    /// Each mode with each way to look.
    pub(super) fn in_each(modes: &[Mode]) -> Vec<(Mode, Look)> {
        modes.iter().flat_map(|mode| [Look::Stat, Look::Open].map(|look| (*mode, look))).collect()
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Look::Stat => "stat",
            Look::Open => "open and read",
        }
    }

    /// The version that is there.
    fn look(self, path: &Path) -> Result<u64> {
        Ok(match self {
            Look::Stat => fs::metadata(path)?.len(),
            Look::Open => fs::read(path)?.len() as u64,
        })
    }
}

/// How often a file changes, and how often somebody looks at it.
#[derive(Clone)]
pub(super) struct Pace {
    /// Versions, one after the other.
    pub(super) versions: u64,
    /// How long it is left alone before each.
    pub(super) pause: Range<Duration>,
    /// From one look to the next.
    pub(super) looks: Duration,
}

pub(super) fn ask(asking: &mut Asking<'_>) -> Result<()> {
    often(asking)?;
    seldom(asking)
}

/// Of a file that changes every other second.
fn often(asking: &mut Asking<'_>) -> Result<()> {
    let (versions, pause) = asking.scale.pick((2, 100), (25, PAUSE_MS), (100, PAUSE_MS));
    let pace = Pace { versions, pause: Duration::ZERO..Duration::from_millis(pause), looks: LOOKS };
    let note = format!(
        "A client writes a file and closes it, {versions} times with pauses of up to {} s; another looks every half \
         millisecond. From the end of close(2) until it sees that.",
        pace.pause.end.as_secs_f64()
    );
    let settings = Look::in_each(asking.modes);
    let plot = |look: Look| {
        let name = format!("What another client sees by {}", look.name());
        Plot::new("staleness", &name, &note, Axis::log("after close(2)", "s"), Axis::share())
    };
    let mut plots = [plot(Look::Stat), plot(Look::Open)];
    let dir = asking.dir;
    let told = |(mode, look): (Mode, Look)| format!("{} by {}", mode.name(), look.name());
    each(&settings, told, |(mode, look)| {
        let name = format!("staleness-{}-{}", mode.name(), look as u8);
        let found = delays(dir, Setting::named(name, mode), look, 1, &pace)?;
        let plot = &mut plots[look as usize];
        found.into_iter().for_each(|delay| plot.note_value(mode.name(), delay.max(AT_ONCE)));
        Ok(())
    })?;
    plots.into_iter().for_each(|plot| asking.results.add_plot(plot));
    Ok(())
}

/// Of files that were left alone for a minute: `nfs` uses attributes the longer, the longer they have been the same.
fn seldom(asking: &mut Asking<'_>) -> Result<()> {
    let (files, versions, alone) = asking.scale.pick((2, 1, 1), (8, 2, 60), (16, 4, 60));
    let alone = Duration::from_secs(alone);
    let pace = Pace { versions, pause: alone..alone * 3 / 2, looks: SELDOM_LOOKS };
    let note = format!(
        "{files} files, each left alone for {} to {} s before it is written and closed, {versions} times; another client opens \
         and reads each every {} ms, or asks how long it is. From the end of close(2) until it sees that.",
        pace.pause.start.as_secs(),
        pace.pause.end.as_secs_f64(),
        SELDOM_LOOKS.as_millis()
    );
    let settings = Look::in_each(asking.modes);
    let name = "What another client sees of a file that was left alone";
    let mut plot = Plot::new("staleness", name, &note, Axis::log("after close(2)", "s"), Axis::share());
    let dir = asking.dir;
    let found = at_once(&settings, |(mode, look)| {
        let name = format!("alone-{}-{}", mode.name(), look as u8);
        delays(dir, Setting::named(name, mode), look, files, &pace)
    })?;
    for ((mode, look), found) in settings.into_iter().zip(found) {
        let line = format!("{}, by {}", mode.name(), look.name());
        found.into_iter().for_each(|delay| plot.note_value(&line, delay.max(AT_ONCE)));
    }
    asking.results.add_plot(plot);
    Ok(())
}

/// How many seconds each version of so many files took to be seen by another client.
pub(super) fn delays(dir: &Path, setting: Setting, look: Look, files: usize, pace: &Pace) -> Result<Vec<f64>> {
    let mut larder = Larder::start(dir, setting)?;
    larder.need_clients(2)?;
    let [writer, reader] = [0, 1].map(|client| larder.path(client));
    let of_file = |file: usize| {
        let name = format!("file-{file}");
        delays_of(&writer.join(&name), &reader.join(&name), look, pace, file as u64)
    };
    let found = at_once(&(0..files).collect::<Vec<_>>(), of_file)?;
    larder.end()?;
    Ok(found.into_iter().flatten().map(|delay| delay.as_secs_f64()).collect())
}

fn delays_of(writer: &Path, reader: &Path, look: Look, pace: &Pace, seed: u64) -> Result<Vec<Duration>> {
    fs::write(writer, "")?;
    ensure!(look.look(reader)? == 0, "the file is not empty");
    // When each version, by its number, was there and when it was seen first.
    let seen: Mutex<Vec<Instant>> = Mutex::new(Vec::new());
    let is_over = AtomicBool::new(false);
    let mut random = SmallRng::seed_from_u64(seed);
    thread::scope(|scope| {
        let looking = scope.spawn(|| -> Result<()> {
            let mut known = 0;
            while !is_over.load(Ordering::Relaxed) {
                // One that is just being written may be seen in part: empty.
                let version = look.look(reader)?;
                if version > known {
                    known = version;
                    lock(&seen).push(Instant::now());
                }
                thread::sleep(pace.looks);
            }
            Ok(())
        });
        let _over = SetAtEnd(&is_over);
        let mut delays = Vec::new();
        for version in 1..=pace.versions {
            thread::sleep(random.random_range(pace.pause.clone()));
            store(writer, &vec![7; version as usize])?;
            let closed = Instant::now();
            let first = loop {
                if let Some(first) = lock(&seen).get(version as usize - 1) {
                    break *first;
                }
                ensure!(closed.elapsed() < PATIENCE, "version {version} is not seen after {PATIENCE:?}");
                ensure!(!looking.is_finished(), "the reader has failed");
                thread::sleep(LOOKS);
            };
            delays.push(first.saturating_duration_since(closed));
        }
        is_over.store(true, Ordering::Relaxed);
        let ended = looking.join().map_err(|_| anyhow::anyhow!("the reader panicked"))?;
        ended.context("the reader")?;
        Ok(delays)
    })
}
