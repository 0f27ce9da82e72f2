//! What share of the requests only asks whether something has changed.
//!
//! The lectures' servers got nine such requests in ten (section "attribute cache" of the NFS lecture); `actimeo` trades
//! them for staleness.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::{Asking, at_once};
use crate::bench::candidate::{Candidate, Larder, Setting};
use crate::bench::results::{Axis, Plot};
use crate::mount::Mode;

/// Files in the tree.
const FILES: usize = 200;
/// Files in one of its directories.
const IN_DIRECTORY: usize = 20;
/// Bytes of each.
const SIZE: usize = 8192;
/// Files that are read in a step.
const READ: usize = 10;
/// From one step to the next.
const STEP: Duration = Duration::from_millis(500);
/// Steps from one write to the next.
const WRITES: usize = 10;
/// Values of `actimeo`, in seconds.
const ACTIMEO: [f64; 6] = [0.0, 1.0, 3.0, 10.0, 30.0, 60.0];
/// How long is worked for a value of so many seconds: attributes must have run out a few times, and half a time more, so that
/// no moment at which all of them do is at the end.
fn length(actimeo: f64) -> Duration {
    Duration::from_secs_f64((5.5 * actimeo).max(20.0))
}

/// What was asked of the server, in a second.
pub(super) struct Asked {
    attributes: f64,
    names: f64,
    all: f64,
}

impl Asked {
    fn share(&self, part: f64) -> f64 {
        100.0 * part / self.all.max(1e-9)
    }

    /// Percent of all requests that only ask whether something is as it was.
    pub(super) fn checks(&self) -> f64 {
        self.share(self.attributes + self.names)
    }
}

pub(super) fn ask(asking: &mut Asking<'_>) -> Result<()> {
    let values = asking.scale.pick(&ACTIMEO[..1], &ACTIMEO[..5], &ACTIMEO[..]);
    let is_quick = values.len() == 1;
    let length = |actimeo: f64| if is_quick { Duration::from_secs(1) } else { length(actimeo) };
    let note = format!(
        "One client lists a tree of {FILES} files and looks at each, reads {READ} of them, and now and then writes one, twice \
         a second. Measured in {} s and more, after everything was read once.",
        length(0.0).as_secs()
    );
    let x = || Axis::linear("actimeo", "s");
    let mut share = Plot::new("attributes", "Attribute checks among requests", &note, x(), Axis::linear("share", "%"));
    let mut rate = Plot::new("attributes", "Requests to the server", &note, x(), Axis::log("requests", "/s"));
    let mut settings: Vec<(Mode, f64)> = Vec::new();
    for mode in asking.modes {
        match mode {
            Mode::Nfs => settings.extend(values.iter().map(|value| (Mode::Nfs, *value))),
            other => settings.push((*other, 0.0)),
        }
    }
    let dir = asking.dir;
    let all = at_once(&settings, |(mode, actimeo)| {
        let options = if mode == Mode::Nfs { format!("actimeo={actimeo}") } else { String::new() };
        let setting = Setting { options, ..Setting::named(format!("attributes-{}-{actimeo}", mode.name()), mode) };
        requests(dir, setting, length(actimeo))
    })?;
    for ((mode, actimeo), asked) in settings.into_iter().zip(all) {
        let name = mode.name();
        // The other modes know no actimeo: a level line.
        let places = if mode == Mode::Nfs { vec![actimeo] } else { values.to_vec() };
        for place in places {
            share.note(&format!("{name}: getattr"), place, asked.share(asked.attributes));
            if mode == Mode::Nfs {
                share.note("nfs: getattr and lookup", place, asked.checks());
            }
            rate.note(name, place, asked.all);
        }
    }
    asking.results.add_plot(share);
    asking.results.add_plot(rate);
    Ok(())
}

/// What a client asks for that works so long.
pub(super) fn requests(dir: &Path, setting: Setting, length: Duration) -> Result<Asked> {
    let mut larder = Larder::start(dir, setting)?;
    larder.need_clients(1)?;
    let place = larder.path(0).join("tree");
    for file in 0..FILES {
        let path = place.join(path(file));
        if file % IN_DIRECTORY == 0 {
            fs::create_dir_all(place.join(directory(file)))?;
        }
        fs::write(path, vec![1; SIZE])?;
    }
    let mut random = SmallRng::seed_from_u64(7);
    (0..FILES).try_for_each(|file| fs::read(place.join(path(file))).map(drop))?;
    let (begin, before) = (Instant::now(), larder.reading()?);
    for number in 0.. {
        step(&place, number, &mut random)?;
        if begin.elapsed() >= length {
            break;
        }
        // At the same pace in every mode.
        thread::sleep((STEP * (number as u32 + 1)).saturating_sub(begin.elapsed()));
    }
    let requests = larder.reading()?.since(&before).requests;
    let seconds = begin.elapsed().as_secs_f64();
    larder.end()?;
    let of = |kind: &str| requests.get(kind).copied().unwrap_or(0) as f64 / seconds;
    Ok(Asked { attributes: of("getattr"), names: of("lookup"), all: requests.values().sum::<u64>() as f64 / seconds })
}

fn directory(file: usize) -> String {
    format!("dir-{}", file / IN_DIRECTORY)
}

fn path(file: usize) -> String {
    format!("{}/file-{file}", directory(file))
}

fn step(place: &Path, number: usize, random: &mut SmallRng) -> Result<()> {
    for dir in fs::read_dir(place)? {
        for entry in fs::read_dir(dir?.path())? {
            entry?.metadata()?;
        }
    }
    for _ in 0..READ {
        fs::read(place.join(path(random.random_range(0..FILES))))?;
    }
    if number % WRITES == WRITES - 1 {
        fs::write(place.join(path(random.random_range(0..FILES))), vec![number as u8; SIZE])?;
    }
    Ok(())
}
