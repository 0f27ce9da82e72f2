//! What a server and a client need for many files.

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::candidate::{Candidate, Larder, Setting};
use super::meter::{Reading, Usage};
use super::results::{Cost, Results, Sample, Unit};
use crate::mount::Mode;
use crate::process::run;
use crate::raw::Raw;

/// Files in a directory.
const IN_DIRECTORY: usize = 1000;
/// How long a process has to give back what it does not need any more.
const PAUSE: Duration = Duration::from_secs(5);

/// Fills a server with empty files, and has a client look at all of them, in each mode. Notes what both need then.
///
/// # Errors
/// If that cannot be done.
pub fn measure(dir: &Path, files: usize, results: &mut Results) -> Result<()> {
    for mode in Mode::ALL {
        let mut larder = Larder::start(dir, Setting::named(format!("memory-{}", mode.name()), mode))?;
        populate(larder.server().address(), files)?;
        let mut note = |what: &str, usage: Usage| {
            let sample = Sample { value: usage.memory as f64 / (1 << 20) as f64, cost: Cost::default() };
            results.note("memory", what, Unit::Mebibytes, mode.name(), sample);
        };
        let reading = |larder: &Larder| -> Result<Reading> {
            thread::sleep(PAUSE);
            larder.reading()
        };
        note(&format!("server, {files} files"), reading(&larder)?.servers);
        larder.need_clients(1)?;
        run(Command::new("timeout").args(["3600", "find"]).arg(larder.path(0)).arg("-ls"))?;
        let walked = reading(&larder)?;
        note("server, after a client has seen them all", walked.servers);
        note("client, after it has seen them all", walked.clients);
        // Not every machine lets its caches be dropped.
        if std::fs::write("/proc/sys/vm/drop_caches", "2").is_ok() {
            note("client, after the kernel has forgotten them", reading(&larder)?.clients);
        }
        larder.end()?;
    }
    Ok(())
}

fn populate(address: &str, files: usize) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut raw = Raw::connect(address).await?;
        for first in (0..files).step_by(IN_DIRECTORY) {
            let name = format!("dir-{first:07}");
            let dir = raw.mkdir(raw.root, name.as_bytes()).await.with_context(|| format!("making {name}"))?.fid;
            for file in first..files.min(first + IN_DIRECTORY) {
                raw.create(dir, format!("file-{file:07}").as_bytes()).await?;
            }
        }
        Ok(())
    })
}
