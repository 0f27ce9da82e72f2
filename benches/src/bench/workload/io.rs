//! Reads and writes of one large file, by fio.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{Bench, Workload};
use crate::bench::results::Unit;
use crate::process::{close, run};

pub(super) struct Io;

/// Touches memory and gives it back. A virtual machine gets memory that it has not used lately from its host, page by page
/// and slowly; what is measured next should not pay for that.
fn warm(mib: u64) -> Result<()> {
    /// Bytes of a page, or less.
    const PAGE: usize = 4096;
    let mut memory = Vec::<u8>::new();
    let bytes = usize::try_from(mib << 20)?;
    memory.try_reserve_exact(bytes).context("not that much memory")?;
    memory.resize(bytes, 1);
    let touched: usize = std::hint::black_box(&memory).iter().step_by(PAGE).map(|byte| usize::from(*byte)).sum();
    ensure!(touched == bytes / PAGE, "{touched} pages were touched");
    Ok(())
}

/// One job of fio.
struct Job<'a> {
    /// How it reads or writes: `read`, `write`, `randread` or `randwrite`.
    how: &'a str,
    /// Bytes at a time, as fio says it.
    block: &'a str,
    /// More arguments.
    more: &'a [&'a str],
}

impl Job<'_> {
    /// MiB per second, or, of random ones, how many per second.
    fn run(&self, file: &Path, mib: u64) -> Result<f64> {
        let mut command = Command::new("timeout");
        command.args(["600", "fio", "--name=job", "--ioengine=psync", "--fallocate=none", "--invalidate=0"]);
        command.args(["--output-format=json", "--randseed=1"]);
        command.arg(format!("--filename={}", file.display()));
        command.arg(format!("--rw={}", self.how)).arg(format!("--bs={}", self.block)).arg(format!("--size={mib}M"));
        command.args(self.more);
        let output = run(&mut command)?;
        // Warnings come before the JSON.
        let text = String::from_utf8_lossy(&output.stdout);
        let json = text.find('{').map(|begin| &text[begin..]).context("fio prints no JSON")?;
        let told: serde_json::Value = serde_json::from_str(json).context("reading what fio prints")?;
        let of = &told["jobs"][0][if self.how.ends_with("read") { "read" } else { "write" }];
        let figure = |name: &str| of[name].as_f64().with_context(|| format!("fio does not say {name}"));
        // The time includes the fsync at the end.
        if self.how.starts_with("rand") {
            Ok(figure("total_ios")? / (figure("runtime")? / 1e3))
        } else {
            Ok(figure("io_bytes")? / (1 << 20) as f64 / (figure("runtime")? / 1e3))
        }
    }
}

impl Workload for Io {
    fn round(&self, bench: &mut Bench<'_>) -> Result<()> {
        let place = bench.make_place()?;
        let mib = bench.inputs.scale.pick(8, 256, 1024);
        let file = place.join("large");
        let large = |how, more| Job { how, block: "1M", more };
        let mibs = Unit::MebibytesPerSecond;
        warm(mib * 4)?;
        bench.figure("write, fsync", mibs, || large("write", &["--end_fsync=1"]).run(&file, mib))?;
        if bench.candidate.can_forget() {
            bench.candidate.forget(0)?;
            bench.figure("read, cold", mibs, || large("read", &[]).run(&file, mib))?;
        } else {
            large("read", &[]).run(&file, mib)?;
        }
        bench.figure("read, warm", mibs, || large("read", &[]).run(&file, mib))?;
        // As many random blocks as make up a part of the file.
        let seconds = bench.inputs.scale.pick("100ms", "2", "10");
        let runtime = format!("--runtime={seconds}");
        let timed = ["--time_based", runtime.as_str()];
        bench.figure("random 4 KiB reads, warm", Unit::PerSecond, || {
            Job { how: "randread", block: "4k", more: &timed }.run(&file, mib)
        })?;
        if bench.candidate.can_forget() {
            bench.candidate.forget(0)?;
            bench.figure("random 4 KiB reads, cold", Unit::PerSecond, || {
                Job { how: "randread", block: "4k", more: &["--io_size=4M"] }.run(&file, mib)
            })?;
        }
        let fsync = [timed[0], timed[1], "--fsync=16"];
        bench.figure("random 4 KiB writes, fsync after 16", Unit::PerSecond, || {
            Job { how: "randwrite", block: "4k", more: &fsync }.run(&file, mib)
        })?;
        let direct = bench
            .figure("write, O_DIRECT", mibs, || {
                large("write", &["--direct=1", "--end_fsync=1"]).run(&place.join("direct"), mib / 4)
            })
            .and_then(|()| {
                bench.figure("read, O_DIRECT", mibs, || {
                    large("read", &["--direct=1"]).run(&place.join("direct"), mib / 4)
                })
            })
            .and_then(|()| {
                bench.figure("random 4 KiB reads, O_DIRECT", Unit::PerSecond, || {
                    let direct = ["--direct=1", timed[0], timed[1]];
                    Job { how: "randread", block: "4k", more: &direct }.run(&place.join("direct"), mib / 4)
                })
            });
        bench.leave_out("O_DIRECT", direct);
        // Their room is needed, and files without contents are soon removed.
        for name in ["large", "direct"] {
            if let Ok(file) = File::options().write(true).open(place.join(name)) {
                file.set_len(0)?;
                close(file)?;
            }
        }
        Ok(())
    }
}
