//! The other questions' answers, by how far away the server is: less of each than what these ask themselves.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::super::load::TERM;
use super::super::staleness::{Look, Pace};
use super::super::{Asking, at_once, attributes, caching, each, lease, load, staleness};
use crate::bench::candidate::{Candidate, Larder, Setting, round_trip};
use crate::bench::inputs::Scale;
use crate::bench::results::{Axis, Plot};
use crate::bench::statistics::quantile;
use crate::mount::Mode;
use crate::proxy::Link;

/// From one look of a reader to the next.
const LOOKS: Duration = Duration::from_millis(2);

/// What is asked again.
#[derive(Clone, Copy, Debug)]
enum Part {
    Attributes,
    Staleness,
    Lease,
    Caching,
    Load,
}

const PARTS: [Part; 5] = [Part::Attributes, Part::Staleness, Part::Lease, Part::Caching, Part::Load];

/// One distance.
struct At<'a> {
    /// Milliseconds there and back.
    trip: f64,
    link: Link,
    dir: PathBuf,
    scale: Scale,
    modes: &'a [Mode],
}

impl At<'_> {
    fn setting(&self, what: &str, mode: Mode) -> Setting {
        Setting { link: self.link, ..Setting::named(format!("{what}-{}", mode.name()), mode) }
    }
}

/// The pictures, in which all have the round-trip time below.
struct Plots {
    checks: Plot,
    stale: Plot,
    waits: Plot,
    pieces: Plot,
    opens: Plot,
    cpu: Plot,
}

impl Plots {
    fn new() -> Plots {
        let plot =
            |name: &str, note: &str, y: Axis| Plot::new("distance", name, note, Axis::log("round trip", "ms"), y);
        Plots {
            checks: plot(
                "Attribute checks among requests",
                "As in the question of attributes: the share of requests that only ask whether something is as it was. Options \
                 are as they come.",
                Axis::linear("share", "%"),
            ),
            stale: plot(
                "Until another client sees a change",
                "As in the question of staleness, of a file that changes every other second: the median, and how far the \
                 quartiles are apart.",
                Axis::log("after close(2)", "s"),
            ),
            waits: plot(
                "How long a change waits in afs mode",
                &format!("As in the question of leases: beside a client that has the file, with leases of {TERM} s."),
                Axis::log("write and close", "s"),
            ),
            pieces: plot(
                "Whole file or blocks",
                "As in the question of caching: a file is opened, a part of it read in pieces of 64 KiB in random order, and \
                 closed, by a client whose caches are empty. The network has no other limit.",
                Axis::log("open, read, close", "s"),
            ),
            opens: plot(
                "Opening and reading a file",
                "As in the question of load: the 99th percentile of many clients.",
                Axis::log("99th percentile", "ms"),
            ),
            cpu: plot("Server's processor for one client", "As in the question of load.", Axis::log("busy", "ms/s")),
        }
    }

    fn add(&mut self, part: Part, at: &At<'_>) -> Result<()> {
        match part {
            Part::Attributes => self.attributes(at),
            Part::Staleness => self.staleness(at),
            Part::Lease => self.lease(at),
            Part::Caching => self.caching(at),
            Part::Load => self.load(at),
        }
    }

    fn attributes(&mut self, at: &At<'_>) -> Result<()> {
        let length = Duration::from_secs(at.scale.pick(1, 60, 120));
        let asked = at_once(at.modes, |mode| attributes::requests(&at.dir, at.setting("attributes", mode), length))?;
        for (mode, asked) in at.modes.iter().zip(asked) {
            self.checks.note(mode.name(), at.trip, asked.checks());
        }
        Ok(())
    }

    fn staleness(&mut self, at: &At<'_>) -> Result<()> {
        let (versions, pause) = at.scale.pick((1, 100), (10, 4000), (30, 4000));
        let pace = Pace { versions, pause: Duration::ZERO..Duration::from_millis(pause), looks: LOOKS };
        let settings = Look::in_each(at.modes);
        let found = at_once(&settings, |(mode, look)| {
            let setting = at.setting(&format!("staleness-{}", look as u8), mode);
            staleness::delays(&at.dir, setting, look, 1, &pace)
        })?;
        for ((mode, look), delays) in settings.into_iter().zip(found) {
            let line = format!("{}, by {}", mode.name(), look.name());
            delays.into_iter().for_each(|delay| self.stale.note(&line, at.trip, delay.max(staleness::AT_ONCE)));
        }
        Ok(())
    }

    fn lease(&mut self, at: &At<'_>) -> Result<()> {
        if !at.modes.contains(&Mode::Afs) {
            return Ok(());
        }
        let (term, changes, rounds) = at.scale.pick((1.0, 2, 1), (TERM, 20, 3), (TERM, 20, 5));
        let setting = at.setting("lease", Mode::Afs);
        for delay in lease::alive(&at.dir, term, &setting, changes)? {
            self.waits.note("afs, all alive", at.trip, delay);
        }
        for delay in lease::beside_the_dead(&at.dir, term, &setting, rounds)?.dead {
            self.waits.note("afs, one dead", at.trip, delay);
        }
        Ok(())
    }

    fn caching(&mut self, at: &At<'_>) -> Result<()> {
        let size: u64 = at.scale.pick(1 << 20, 16 << 20, 64 << 20);
        let parts = at.scale.pick(&caching::PARTS[4..], &caching::PARTS[2..], &caching::PARTS[1..]);
        // By the part that is read, for what is said of it alone.
        let (x, y) = (Axis::log("part that is read", "%"), Axis::log("", "s"));
        let mut by_part = Plot::new("distance", "", "", x, y);
        for mode in at.modes {
            let mut larder = Larder::start(&at.dir, at.setting("caching", *mode))?;
            larder.need_clients(1)?;
            fs::write(larder.path(0).join(size.to_string()), vec![1; size as usize])?;
            for part in parts {
                let took = caching::read(&mut larder, size, *part)?;
                let percent = took.part * 100.0;
                self.pieces.note(&format!("{}, {percent:.0} %", mode.name()), at.trip, took.seconds);
                by_part.note(mode.name(), percent, took.seconds);
            }
            larder.end()?;
        }
        let told = caching::crossover(&by_part);
        self.pieces.note = format!("{} At {} ms, {told} (a file of {} MiB).", self.pieces.note, at.trip, size >> 20);
        Ok(())
    }

    fn load(&mut self, at: &At<'_>) -> Result<()> {
        let (clients, warm, length) = at.scale.pick((4, 1, 1), (100, 20, 15), (200, 30, 30));
        let [warm, length] = [warm, length].map(Duration::from_secs);
        for mode in at.modes {
            let mut larder = Larder::start(&at.dir, at.setting("load", *mode).without_busy_poll())?;
            let (load, opens) = load::measure(&larder, &at.dir, load::Setup::usual(clients, *mode), warm, length)?;
            larder.end()?;
            self.cpu.note(mode.name(), at.trip, load.cost.server_cpu * 1e3 / load.seconds / clients as f64);
            let late = quantile(&opens, 0.99).context("no file was opened")?;
            self.opens.note(mode.name(), at.trip, late * 1e3);
        }
        Ok(())
    }
}

/// Asks all of that at these round-trip times, in milliseconds.
pub(super) fn ask(asking: &mut Asking<'_>, trips: &[f64], dir: &Path) -> Result<()> {
    let mut plots = Plots::new();
    let mut settings: Vec<(f64, Part)> = Vec::new();
    for trip in trips {
        settings.extend(PARTS.map(|part| (*trip, part)));
    }
    each(
        &settings,
        |(trip, part): (f64, Part)| format!("{part:?} at {trip} ms"),
        |(trip, part)| {
            let link = round_trip(Duration::from_secs_f64(trip / 1e3));
            let dir = dir.join(format!("answers-{trip}"));
            fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
            let at = At { trip, link, dir, scale: asking.scale, modes: asking.modes };
            plots.add(part, &at).with_context(|| format!("{part:?} at {trip} ms"))
        },
    )?;
    let Plots { checks, stale, waits, pieces, opens, cpu } = plots;
    for plot in [checks, stale, waits, pieces, opens, cpu] {
        if !plot.of.is_empty() {
            asking.results.add_plot(plot);
        }
    }
    Ok(())
}
