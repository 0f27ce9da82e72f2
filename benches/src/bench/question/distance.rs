//! How much of each mode's speed is the network's: the same work, and the same questions, by how far away the server is.

mod answers;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Asking, each};
use crate::bench::candidate::{Candidate, Larder, Setting, round_trip};
use crate::bench::inputs::{Inputs, Scale};
use crate::bench::results::{Axis, Plot, Results, Unit};
use crate::bench::run::{Plan, run};
use crate::bench::workload::Kind;
use crate::mount::Mode;

/// Milliseconds there and back.
const ROUND_TRIPS: [f64; 4] = [0.1, 1.0, 20.0, 100.0];
/// From where on once is enough: the network is all that counts.
const FAR: f64 = 20.0;
/// What is done.
const WORK: [Kind; 4] = [Kind::Tree, Kind::Small, Kind::Sqlite, Kind::Mail];

pub(super) fn ask(asking: &mut Asking<'_>) -> Result<()> {
    let trips = asking.scale.pick(&ROUND_TRIPS[1..2], &ROUND_TRIPS[..3], &ROUND_TRIPS[..]);
    let dir = asking.dir.join("distance");
    std::fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
    // Small amounts: from 1 ms on the machine hardly counts.
    let inputs = Inputs::make(&dir, Scale::Quick)?;
    work(asking, trips, &dir, &inputs)?;
    answers::ask(asking, trips, &dir)
}

/// Workloads.
fn work(asking: &mut Asking<'_>, trips: &[f64], dir: &Path, inputs: &Inputs) -> Result<()> {
    let mut settings: Vec<(f64, Mode)> = Vec::new();
    for trip in trips {
        settings.extend(asking.modes.iter().map(|mode| (*trip, *mode)));
    }
    let rounds = asking.rounds;
    let mut found: Vec<(f64, Results)> = Vec::new();
    let told = |(trip, mode): (f64, Mode)| format!("{} at {trip} ms", mode.name());
    each(&settings, told, |(trip, mode)| {
        let place = dir.join(format!("{}-{trip}", mode.name()));
        std::fs::create_dir(&place)?;
        let link = round_trip(Duration::from_secs_f64(trip / 1e3));
        let larder = Larder::start(&place, Setting { link, ..Setting::of(mode) })?;
        let mut candidates: Vec<Box<dyn Candidate>> = vec![Box::new(larder)];
        let plan = Plan {
            clients: 2,
            rtt: trip,
            workloads: asking.scale.pick(&WORK[2..3], &WORK[..], &WORK[..]).to_vec(),
            rounds: if trip < FAR { rounds } else { 1 },
            is_step: true,
            command: String::new(),
            results: place.join("bench.json"),
        };
        let results = run(&plan, inputs, &mut candidates, Vec::new())?;
        if let Some(failed) = results.left_out.first() {
            anyhow::bail!("{} at {trip} ms: {}", mode.name(), failed.why);
        }
        for candidate in &mut candidates {
            candidate.end()?;
        }
        found.push((trip, results));
        Ok(())
    })?;
    for (trip, results) in found {
        for row in &results.rows {
            let name = format!("{}: {}", row.workload, row.name);
            let note = "The rows of these workloads with small amounts, as time for one piece of work (a file, a transaction, \
                        a command), by the round-trip time of a proxy between client and server.";
            let (x, y) = (Axis::log("round trip", "ms"), Axis::log("time for one", "ms"));
            let mut plot = Plot::new("distance", &name, note, x, y);
            for (candidate, samples) in &row.of {
                for sample in samples {
                    let seconds = if row.unit == Unit::Seconds { sample.value } else { 1.0 / sample.value.max(1e-9) };
                    plot.note(candidate, trip, seconds * 1e3);
                }
            }
            asking.results.add_plot(plot);
        }
    }
    Ok(())
}
