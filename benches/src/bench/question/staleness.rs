//! How long it takes until one client sees what another has closed.

use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::{Asking, each};
use crate::bench::candidate::{Candidate, Larder, Setting};
use crate::bench::results::{Axis, Plot};
use crate::lock;
use crate::process::{SetAtEnd, store};

/// From one look to the next.
const LOOKS: Duration = Duration::from_micros(500);
/// How long a version may take to be seen: attributes may be used for a minute.
const PATIENCE: Duration = Duration::from_secs(90);
/// The longest pause before the next version: how long a file was left alone is what `nfs` goes by.
const PAUSE_MS: u64 = 4000;
/// What is shown of what is seen sooner than can be told.
const AT_ONCE: f64 = 1e-4;

/// How a reader looks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    /// It asks how long the file is.
    Stat,
    /// It opens and reads it.
    Open,
}

impl Look {
    fn name(self) -> &'static str {
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

pub(super) fn ask(asking: &mut Asking<'_>) -> Result<()> {
    let (versions, pause) = asking.scale.pick((2, 100), (25, PAUSE_MS), (100, PAUSE_MS));
    let note = format!(
        "A client writes a file and closes it, {versions} times with pauses of up to {} s; another looks every half \
         millisecond. From the end of close(2) until it sees that.",
        pause as f64 / 1e3
    );
    let mut settings = Vec::new();
    for mode in asking.modes {
        settings.extend([Look::Stat, Look::Open].map(|look| (*mode, look)));
    }
    let plot = |look: Look| {
        let name = format!("What another client sees by {}", look.name());
        Plot::new("staleness", &name, &note, Axis::log("after close(2)", "s"), Axis::share())
    };
    let mut plots = [plot(Look::Stat), plot(Look::Open)];
    let dir = asking.dir;
    let told = |(mode, look): (crate::mount::Mode, Look)| format!("{} by {}", mode.name(), look.name());
    each(&settings, told, |(mode, look)| {
        let name = format!("staleness-{}-{}", mode.name(), look as u8);
        let mut larder = Larder::start(dir, Setting::named(name, mode))?;
        larder.need_clients(2)?;
        let [writer, reader] = [0, 1].map(|client| larder.path(client).join("file"));
        let found = delays(&writer, &reader, look, versions, pause)?;
        let plot = &mut plots[look as usize];
        found.into_iter().for_each(|delay| plot.note_value(mode.name(), delay.as_secs_f64().max(AT_ONCE)));
        larder.end()
    })?;
    plots.into_iter().for_each(|plot| asking.results.add_plot(plot));
    Ok(())
}

/// How long each version took to be seen.
fn delays(writer: &Path, reader: &Path, look: Look, versions: u64, pause_ms: u64) -> Result<Vec<Duration>> {
    fs::write(writer, "")?;
    ensure!(look.look(reader)? == 0, "the file is not empty");
    // When each version, by its number, was there and when it was seen first.
    let seen: Mutex<Vec<Instant>> = Mutex::new(Vec::new());
    let is_over = AtomicBool::new(false);
    let mut random = SmallRng::seed_from_u64(3);
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
                thread::sleep(LOOKS);
            }
            Ok(())
        });
        let _over = SetAtEnd(&is_over);
        let mut delays = Vec::new();
        for version in 1..=versions {
            thread::sleep(Duration::from_millis(random.random_range(0..pause_ms)));
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
