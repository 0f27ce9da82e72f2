//! How long a change waits, by the term of leases.
//!
//! A change waits until all others have given up what they cached. One that is alive does so at once, and one that is dead
//! when its lease ends: the longer the term, the less often leases are renewed and the longer the dead hold up the living.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rustix::process::Signal;

use super::{Asking, at_once};
use crate::bench::candidate::{Candidate, Larder, Setting};
use crate::bench::results::{Axis, Plot};
use crate::mount::Mode;
use crate::process::store;

/// Terms, in seconds.
const TERMS: [f64; 5] = [1.0, 2.0, 5.0, 10.0, 30.0];
/// Changes beside a client that is alive.
const CHANGES: usize = 50;
/// How long a client that was dead has to come back.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn ask(asking: &mut Asking<'_>) -> Result<()> {
    if !asking.modes.contains(&Mode::Afs) {
        return Ok(());
    }
    let (terms, rounds) =
        asking.scale.pick((&TERMS[..1], 1), (&TERMS[..4], asking.rounds), (&TERMS[..], asking.rounds));
    let note = "A client has a file cached, and another writes and closes it: how long that takes the other one, by the term of \
                leases. The dead client is stopped at a random moment after it has read the file.";
    let (x, y) = (Axis::linear("term of leases", "s"), Axis::log("write and close", "s"));
    let mut delays = Plot::new("lease", "How long a change waits", note, x.clone(), y);
    let renewals = "Requests by which two clients that do nothing keep their leases.";
    let mut upkeep = Plot::new("lease", "What leases cost", renewals, x, Axis::linear("renewals of a client", "/s"));
    let dir = asking.dir;
    // Changes that wait for nobody take as long as the machine does, which is to have nothing else to do.
    for term in terms {
        let delays_of = alive(dir, *term, &Setting::of(Mode::Afs), CHANGES)?;
        delays_of.into_iter().for_each(|delay| delays.note("all alive", *term, delay));
    }
    let all = at_once(terms, |term| beside_the_dead(dir, term, &Setting::of(Mode::Afs), rounds))?;
    for (term, found) in terms.iter().zip(all) {
        found.dead.into_iter().for_each(|delay| delays.note("one dead", *term, delay));
        upkeep.note("renewals", *term, found.renewals);
    }
    asking.results.add_plot(delays);
    asking.results.add_plot(upkeep);
    Ok(())
}

pub(super) struct Found {
    /// Seconds that each change took.
    pub(super) dead: Vec<f64>,
    /// Of a client, in a second.
    renewals: f64,
}

/// A server whose leases have this term, and two clients.
fn start(dir: &Path, name: &str, term: f64, setting: &Setting) -> Result<Larder> {
    let server = vec!["--lease-term".to_owned(), term.to_string()];
    let setting = Setting { server, name: format!("lease-{name}-{term}"), ..setting.clone() };
    let mut larder = Larder::start(dir, setting)?;
    larder.need_clients(2)?;
    Ok(larder)
}

/// Seconds that each change takes beside a client that has the file and is alive.
pub(super) fn alive(dir: &Path, term: f64, setting: &Setting, changes: usize) -> Result<Vec<f64>> {
    let mut larder = start(dir, "alive", term, setting)?;
    let [writer, holder] = [0, 1].map(|client| larder.path(client).join("file"));
    fs::write(&writer, "first")?;
    let one = |number| {
        fs::read(&holder)?;
        change(&writer, number)
    };
    let delays = (0..changes).map(one).collect::<Result<_>>()?;
    larder.end()?;
    Ok(delays)
}

/// The same beside one that has died.
pub(super) fn beside_the_dead(dir: &Path, term: f64, setting: &Setting, rounds: usize) -> Result<Found> {
    let mut larder = start(dir, "dead", term, setting)?;
    let [writer, holder] = [0, 1].map(|client| larder.path(client).join("file"));
    let mut found = Found { dead: Vec::new(), renewals: 0.0 };
    fs::write(&writer, "first")?;
    let renewals = || -> Result<u64> { Ok(larder.server().counts()?.of("renew")) };
    let (begin, before) = (Instant::now(), renewals()?);
    thread::sleep(Duration::from_secs_f64((3.0 * term).clamp(3.0, 60.0)));
    found.renewals = (renewals()? - before) as f64 / 2.0 / begin.elapsed().as_secs_f64();
    let mut random = SmallRng::seed_from_u64(5);
    for number in 0..rounds {
        fs::read(&holder)?;
        // The lease has been renewed at some time in the last half of its term.
        thread::sleep(Duration::from_secs_f64(random.random_range(0.0..term / 2.0)));
        fs::read(&holder)?;
        let client = larder.client(1).context("the client is gone")?;
        client.signal(Signal::STOP)?;
        let delay = change(&writer, number);
        // Whatever came of it: who is stopped cannot be ended in good order.
        client.signal(Signal::CONT)?;
        found.dead.push(delay?);
        await_contents(&holder, number)?;
    }
    larder.end()?;
    Ok(found)
}

fn contents(number: usize) -> String {
    format!("change {number}")
}

fn change(path: &Path, number: usize) -> Result<f64> {
    let begin = Instant::now();
    store(path, contents(number).as_bytes()).with_context(|| format!("writing {}", path.display()))?;
    Ok(begin.elapsed().as_secs_f64())
}

/// Until the client that was away sees what was changed.
fn await_contents(path: &Path, number: usize) -> Result<()> {
    let begin = Instant::now();
    loop {
        let read = fs::read(path)?;
        if read == contents(number).into_bytes() {
            return Ok(());
        }
        anyhow::ensure!(begin.elapsed() < PATIENCE, "a client that was away does not see what was changed");
        thread::sleep(Duration::from_millis(50));
    }
}
