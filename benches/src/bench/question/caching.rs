//! Whole files against blocks: by the size of files, and by the part of them that is read.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;

use super::{Asking, each};
use crate::bench::candidate::{Candidate, Larder, Setting};
use crate::bench::results::{Axis, Plot};
use crate::mount::Mode;
use crate::proxy::Link;

/// Bytes read at a time.
const PIECE: u64 = 64 << 10;
const MIB: u64 = 1 << 20;
/// Sizes of files that are read whole and in part.
const SIZES: [u64; 6] = [64 << 10, MIB, 4 * MIB, 16 * MIB, 64 * MIB, 256 * MIB];
/// Parts of the file whose parts are read.
pub(super) const PARTS: [f64; 6] = [0.002, 0.01, 0.05, 0.2, 0.5, 1.0];
/// The part that is read of files of each size.
const A_PART: f64 = 0.05;
/// A network of 1 Gbit/s and half a millisecond.
const LINK: Link = Link { is_cut: [false; 2], is_mute: false, delay: Duration::from_micros(250), rate: 125_000_000 };

/// What one read took.
pub(super) struct Took {
    /// The part that was read: whole pieces.
    pub(super) part: f64,
    pub(super) seconds: f64,
    mib: f64,
}

pub(super) fn ask(asking: &mut Asking<'_>) -> Result<()> {
    let sizes = asking.scale.pick(&SIZES[..2], &SIZES[..5], &SIZES[..]);
    let (largest, rounds) = (sizes[sizes.len() - 1], asking.scale.pick(1, asking.rounds.min(3), asking.rounds));
    let network = "on a network of 1 Gbit/s and 0.5 ms, by a client whose caches are empty";
    let how =
        |what: &str| format!("{what} is opened, read in pieces of 64 KiB in random order, and closed, {network}.");
    let time = || Axis::log("open, read, close", "s");
    let traffic = || Axis::log("over the network", "MiB");
    let percent = A_PART * 100.0;
    let size_note = how(&format!("A file of this size: the whole of it, or {percent} % of it,"));
    let part_note = how(&format!("This part of a file of {} MiB", largest / MIB));
    let size = || Axis::log("size of the file", "MiB");
    let part = || Axis::log("part that is read", "%");
    let mut plots = [
        Plot::new("caching", "Time by size", &size_note, size(), time()),
        Plot::new("caching", "Traffic by size", &size_note, size(), traffic()),
        Plot::new("caching", "Time by part", &part_note, part(), time()),
        Plot::new("caching", "Traffic by part", &part_note, part(), traffic()),
    ];
    let mut settings = Vec::new();
    for mode in asking.modes {
        settings.extend((0..rounds).map(|round| (*mode, round)));
    }
    let dir = asking.dir;
    each(
        &settings,
        |(mode, round): (Mode, usize)| format!("{}, round {}", mode.name(), round + 1),
        |(mode, round)| {
            let name = format!("caching-{}-{round}", mode.name());
            let mut larder = Larder::start(dir, Setting { link: LINK, ..Setting::named(name, mode) })?;
            larder.need_clients(1)?;
            for size in sizes {
                fs::write(larder.path(0).join(size.to_string()), vec![1; *size as usize])?;
            }
            let mut note = |plot: usize, line: &str, x: f64, took: Took| {
                plots[plot].note(line, x, took.seconds);
                plots[plot + 1].note(line, x, took.mib);
            };
            for size in sizes {
                for (part, what) in [(1.0, "whole".to_owned()), (A_PART, format!("{percent} %"))] {
                    let took = read(&mut larder, *size, part)?;
                    // A file of a few pieces has no such part.
                    if took.part > part * 1.3 {
                        continue;
                    }
                    note(0, &format!("{}, {what}", mode.name()), *size as f64 / MIB as f64, took);
                }
            }
            for part in PARTS {
                let took = read(&mut larder, largest, part)?;
                let part = took.part;
                note(2, mode.name(), part * 100.0, took);
            }
            larder.end()
        },
    )?;
    for plot in &mut plots[2..] {
        plot.note = format!("{} {}: {}.", plot.note, plot.name, crossover(plot));
    }
    plots.into_iter().for_each(|plot| asking.results.add_plot(plot));
    Ok(())
}

/// From where on the whole file costs less than its blocks, in a plot by the part that is read.
pub(super) fn crossover(plot: &Plot) -> String {
    match plot.falls_below("afs", "nfs") {
        Some(part) => format!("from {part:.0} % on the whole file (afs) costs less than its blocks (nfs)"),
        None => "the whole file (afs) never comes to cost less than its blocks (nfs)".to_owned(),
    }
}

/// Reads a part of the file of this size, with empty caches.
pub(super) fn read(larder: &mut Larder, size: u64, part: f64) -> Result<Took> {
    larder.forget(0)?;
    let pieces = size.div_ceil(PIECE);
    let mut order: Vec<u64> = (0..pieces).collect();
    order.shuffle(&mut SmallRng::seed_from_u64(size));
    order.truncate(((pieces as f64 * part).ceil() as usize).max(1));
    let before = larder.reading()?;
    let begin = Instant::now();
    read_pieces(&larder.path(0).join(size.to_string()), &order)?;
    let seconds = begin.elapsed().as_secs_f64();
    // Half of it went between the proxy and the server.
    let mib = larder.reading()?.since(&before).wire as f64 / 2.0 / MIB as f64;
    Ok(Took { part: order.len() as f64 / pieces as f64, seconds, mib })
}

fn read_pieces(path: &Path, pieces: &[u64]) -> Result<()> {
    let file = File::open(path)?;
    let mut buffer = vec![0; PIECE as usize];
    for piece in pieces {
        file.read_exact_at(&mut buffer, piece * PIECE)?;
        ensure!(buffer.iter().all(|byte| *byte == 1), "{} has other contents", path.display());
    }
    Ok(())
}
