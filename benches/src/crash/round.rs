//! One round: workers, a fault again and again, and the checks.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::fault::Fault;
use super::workload::{Register, Workload, of_seat};
use super::world::World;
use crate::lock;
use crate::mount::Mode;
use crate::source::Source;

/// Files that are unpacked at a time.
const FILES: usize = 60;
/// Between two faults, at least and at most.
const REST_MS: (u64, u64) = (200, 900);
/// How long a worker may take to end its step once nothing is broken any more.
const PATIENCE: Duration = Duration::from_secs(90);
/// A step that took longer is a pause.
const PAUSE: Duration = Duration::from_millis(100);

/// What a round does. The seed decides when what is done; the machine decides what meets it.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How the mounts cache.
    pub modes: Vec<Mode>,
    /// What is broken.
    pub fault: Fault,
    /// Decides all that is random.
    pub seed: u64,
    /// How long things are broken.
    pub length: Duration,
    /// What an acknowledgement is to survive, if it is not what the fault asks for: to show that the difference is found.
    pub durability: Option<&'static str>,
}

/// A promise that was broken, or something that does not work.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Since the round's beginning.
    pub at: Duration,
    /// Who met it.
    pub who: String,
    /// What it is.
    pub what: String,
}

/// A span of the round's time.
#[derive(Clone, Debug)]
pub struct Span {
    /// Since the round's beginning.
    pub from: Duration,
    /// Its end.
    pub to: Duration,
    /// What it is.
    pub what: String,
}

/// What a worker did.
#[derive(Clone, Debug)]
pub struct Work {
    /// The seat's number, its mode, and the workload.
    pub who: String,
    /// Steps.
    pub steps: u64,
    /// Operations that were acknowledged.
    pub acknowledged: u64,
    /// Steps whose mount died, or whose disk was full.
    pub failed: u64,
    /// Steps that took long.
    pub pauses: Vec<Span>,
}

/// What came of a round.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What was to be done.
    pub plan: Plan,
    /// What was broken, and when.
    pub strikes: Vec<Span>,
    /// What went on.
    pub work: Vec<Work>,
    /// How often something was held against what was acknowledged.
    pub checks: u64,
    /// What was wrong.
    pub findings: Vec<Finding>,
    /// How long the round took.
    pub took: Duration,
}

/// What the threads of a round share.
struct Round {
    world: World,
    begin: Instant,
    is_over: AtomicBool,
    findings: Mutex<Vec<Finding>>,
}

struct Worker {
    who: String,
    seat: usize,
    dir: String,
    workload: Box<dyn Workload>,
    random: SmallRng,
    work: Work,
    checks: u64,
}

impl Round {
    fn found(&self, who: &str, what: impl Into<String>) {
        lock(&self.findings).push(Finding { at: self.begin.elapsed(), who: who.to_owned(), what: what.into() });
    }
}

/// From now on this thread has a table of open files of its own. A process that is started has a copy of all files that
/// the starting thread can see, until it has closed them; and closing one of a mount waits for the server, which is what
/// is being started.
fn have_own_files() -> io::Result<()> {
    // SAFETY: what was open before is in both tables. This thread closes nothing that another one opened: what it shares
    // with others is behind an `Arc` that `judge` outlives it with.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FILES) }?;
    Ok(())
}

/// Whether a promise was broken, rather than a mount.
fn is_broken(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidData && error.raw_os_error().is_none()
}

impl Worker {
    /// Works until the round is over, or something is wrong.
    fn run(&mut self, round: &Round) {
        while !round.is_over.load(Ordering::SeqCst) {
            let seat = &round.world.seats[self.seat];
            let Some((life, mount)) = seat.wait_mounted() else { return };
            let fullness = round.world.fullness();
            let from = round.begin.elapsed();
            let done = self.workload.step(&mount.join(&self.dir), &mut self.random);
            let to = round.begin.elapsed();
            self.work.steps += 1;
            if to - from > PAUSE {
                let what = if done.is_ok() { "waited" } else { "failed" };
                self.work.pauses.push(Span { from, to, what: what.to_owned() });
            }
            let Err(error) = done else { continue };
            self.work.failed += 1;
            let is_excused = seat.lives() != life || fullness % 2 == 1 || round.world.fullness() != fullness;
            if is_broken(&error) || !is_excused {
                round.found(&self.who, format!("{error} {}", last_lines(&seat.log())));
                return;
            }
            if !self.settle(round) {
                return;
            }
        }
    }

    /// Finds out what became of what was under way. `false` if something is wrong.
    fn settle(&mut self, round: &Round) -> bool {
        let seat = &round.world.seats[self.seat];
        loop {
            let Some((life, mount)) = seat.wait_mounted() else { return false };
            let fullness = round.world.fullness();
            if fullness % 2 == 1 {
                thread::sleep(Duration::from_millis(10));
                continue;
            }
            self.checks += 1;
            match self.workload.settle(&mount.join(&self.dir)) {
                Ok(Ok(())) => return true,
                Ok(Err(broken)) => round.found(&self.who, broken),
                Err(_) if seat.lives() != life || round.world.fullness() != fullness => continue,
                Err(error) => round.found(&self.who, format!("after its mount came back: {error}")),
            }
            return false;
        }
    }

    fn check(&mut self, round: &Round, mount: PathBuf, whose: &str) {
        self.checks += 1;
        let broken = match self.workload.check(&mount.join(&self.dir)) {
            Ok(Ok(())) => return,
            Ok(Err(broken)) => broken,
            Err(error) => error.to_string(),
        };
        round.found(&self.who, format!("at the end, by {whose} mount: {broken}"));
    }
}

fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.lines().rev().take(3).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
}

/// Runs a round.
///
/// # Errors
/// If a world cannot be made. What goes wrong in it is a finding.
pub fn run(plan: &Plan) -> Result<Outcome> {
    let world = World::new(plan)?;
    let source = Arc::new(Source::new(world.dir(), FILES)?);
    let (register, mut random) = (Arc::new(Register::default()), SmallRng::seed_from_u64(plan.seed));
    let mut workers = Vec::new();
    for (number, seat) in world.seats.iter().enumerate() {
        for (place, workload) in of_seat(number, &register, &source).into_iter().enumerate() {
            let who = format!("seat {number} ({}), {}", seat.mode().name(), workload.name());
            let dir = format!("seat{number}-{place}");
            let (_, mount) = seat.wait_mounted().context("the mount is gone before it was used")?;
            fs::create_dir(mount.join(&dir))?;
            let work = Work { who: who.clone(), steps: 0, acknowledged: 0, failed: 0, pauses: Vec::new() };
            let random = SmallRng::seed_from_u64(random.random());
            workers.push(Worker { who, seat: number, dir, workload, random, work, checks: 0 });
        }
    }
    let begin = Instant::now();
    let round = Arc::new(Round { world, begin, is_over: AtomicBool::new(false), findings: Mutex::default() });
    let threads: Vec<_> = workers
        .into_iter()
        .map(|mut worker| {
            let round = round.clone();
            thread::spawn(move || {
                if let Err(error) = have_own_files() {
                    round.found(&worker.who, format!("no table of files of its own: {error}"));
                    return worker;
                }
                worker.run(&round);
                worker
            })
        })
        .collect();
    let strikes = strike(plan, &round, &mut random);
    round.is_over.store(true, Ordering::SeqCst);
    let over = Instant::now();
    while threads.iter().any(|thread| !thread.is_finished()) && over.elapsed() < PATIENCE {
        thread::sleep(Duration::from_millis(5));
    }
    if threads.iter().any(|thread| !thread.is_finished()) {
        let logs: Vec<String> = round.world.seats.iter().map(|seat| last_lines(&seat.log())).collect();
        round.found("the round", format!("workers wait, {PATIENCE:?} after all was mended: {logs:?}"));
        round.world.give_up();
    }
    let workers: Vec<Worker> = threads.into_iter().filter_map(|thread| thread.join().ok()).collect();
    Ok(judge(plan, round, workers, strikes))
}

/// Breaks and mends until the time is over.
fn strike(plan: &Plan, round: &Round, random: &mut SmallRng) -> Vec<Span> {
    let mut strikes = Vec::new();
    loop {
        thread::sleep(Duration::from_millis(random.random_range(REST_MS.0..REST_MS.1)));
        if round.begin.elapsed() > plan.length && !strikes.is_empty() {
            return strikes;
        }
        let from = round.begin.elapsed();
        match plan.fault.strike(&round.world, random) {
            Ok(what) => strikes.push(Span { from, to: round.begin.elapsed(), what }),
            Err(error) => {
                round.found("the fault", format!("{}: {error:#}", plan.fault.name()));
                return strikes;
            }
        }
        if !lock(&round.findings).is_empty() {
            return strikes;
        }
    }
}

/// Holds everything against what was acknowledged: by the mounts themselves, and by one that has seen nothing.
fn judge(plan: &Plan, round: Arc<Round>, mut workers: Vec<Worker>, strikes: Vec<Span>) -> Outcome {
    if lock(&round.findings).is_empty() {
        for worker in &mut workers {
            if let Some((_, mount)) = round.world.seats[worker.seat].wait_mounted() {
                worker.check(&round, mount, "its own");
            }
        }
        let judged = round.world.judge().and_then(|judge| {
            workers.iter_mut().for_each(|worker| worker.check(&round, judge.path().to_owned(), "another"));
            judge.close(false)
        });
        if let Err(error) = judged {
            round.found("the judge", format!("{error:#}"));
        }
    }
    let mut checks = workers.iter().map(|worker| worker.checks).sum::<u64>();
    let work = workers
        .into_iter()
        .map(|worker| Work { acknowledged: worker.workload.acknowledged(), ..worker.work })
        .collect();
    let begin = round.begin;
    let mut findings = std::mem::take(&mut *lock(&round.findings));
    match Arc::into_inner(round) {
        Some(round) => {
            checks += 1;
            if let Err(error) = round.world.end() {
                findings.push(Finding { at: begin.elapsed(), who: "the end".to_owned(), what: format!("{error:#}") });
            }
        }
        None => findings.push(Finding {
            at: begin.elapsed(),
            who: "the round".to_owned(),
            what: "a worker met a defect".to_owned(),
        }),
    }
    Outcome { plan: plan.clone(), strikes, work, checks, findings, took: begin.elapsed() }
}
