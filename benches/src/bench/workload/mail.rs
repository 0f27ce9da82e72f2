//! Mail in a maildir: each message is written in `tmp`, synced and renamed to `new`; who reads it moves it to `cur`.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{Bench, Task, Workload, read, together};
use crate::bench::results::Unit;

/// Bytes of a message.
const SIZE: usize = 6000;
/// How long the reader looks for mail. The directory may be believed unchanged for a minute.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long it waits when there is none.
const PAUSE: Duration = Duration::from_millis(5);

/// The last client reads, and all others deliver.
pub(super) struct Mail {
    pub(super) clients: usize,
}

impl Workload for Mail {
    fn clients(&self) -> usize {
        self.clients
    }

    fn round(&self, bench: &mut Bench<'_>) -> Result<()> {
        let place = bench.make_place()?;
        for directory in ["tmp", "new", "cur"] {
            fs::create_dir(place.join(directory))?;
        }
        let messages = bench.inputs.scale.pick(5, 60, 400);
        let places: Vec<_> = (0..self.clients).map(|client| bench.place(client)).collect();
        let delivering = self.clients - 1;
        let all = messages * delivering;
        bench.rate("deliver", Unit::PerSecond, || {
            let work = places[..delivering].iter().enumerate().map(|(client, place)| {
                let deliver = move || (0..messages).try_for_each(|message| deliver(place, client, message));
                Box::new(deliver) as Task<'_, ()>
            });
            together(work.collect())?;
            Ok(all as f64)
        })?;
        bench.rate("find and read", Unit::PerSecond, || {
            take(&places[delivering], all)?;
            Ok(all as f64)
        })
    }
}

fn deliver(place: &Path, client: usize, message: usize) -> Result<()> {
    let name = format!("{message}.{client}");
    let temporary = place.join("tmp").join(&name);
    let mut file = File::create_new(&temporary).with_context(|| format!("making {}", temporary.display()))?;
    file.write_all(&vec![b'a' + client as u8; SIZE])?;
    file.sync_all()?;
    drop(file);
    fs::rename(&temporary, place.join("new").join(&name)).with_context(|| format!("delivering {name}"))
}

/// Takes so many messages, as they are found.
fn take(place: &Path, count: usize) -> Result<()> {
    let begin = Instant::now();
    let mut taken = 0;
    while taken < count {
        let before = taken;
        for entry in fs::read_dir(place.join("new"))? {
            let entry = entry?;
            let message = read(&entry.path())?;
            ensure!(message.len() == SIZE, "a message has {} bytes", message.len());
            fs::rename(entry.path(), place.join("cur").join(entry.file_name()))?;
            taken += 1;
        }
        if taken == before {
            ensure!(begin.elapsed() < PATIENCE, "{taken} of {count} messages are seen after {PATIENCE:?}");
            thread::sleep(PAUSE);
        }
    }
    Ok(())
}
