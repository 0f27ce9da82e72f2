//! One round: workers, faults again and again, and the checks.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use anyhow::{Context, Result};
use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};

use super::fault::Struck;
use super::outcome::{Depot, Finding, Outcome, Plan, Span, Strike, Work, credit};
use super::resources::{Curve, Sample, Thinned, descriptors, size};
use super::watchdog::Watchdog;
use super::worker::{STUCK, Worker, last_lines};
use super::workload::{Common, of_seat};
use super::world::{STORE, World};
use crate::lock;
use crate::mount::Mode;
use crate::process::have_own_files;
use crate::source::Source;

/// Files that are unpacked at a time.
const FILES: usize = 60;
/// Between two faults, at least and at most.
const REST_MS: (u64, u64) = (200, 900);
/// How long a worker may take to end its step once nothing is broken any more.
const PATIENCE: Duration = Duration::from_secs(180);
/// How long it may take to end it when no mount is left.
const GIVEN_UP: Duration = Duration::from_secs(120);
/// How long one strike, one check or the end may take.
const OVERDUE: Duration = Duration::from_secs(300);
/// How often the outcome so far is told.
const PROGRESS: Duration = Duration::from_secs(120);
/// How often it is looked at what processes use.
const SAMPLED: Duration = Duration::from_millis(500);
/// How long it may take until what is not needed any more is let go of.
const QUIET: Duration = Duration::from_secs(60);
/// Bytes that a store or a cache may occupy when all files are removed: the free pages of its database, and its journal. What
/// a store keeps for clients that died is added.
const EMPTY: u64 = 48 << 20;

/// What the threads of a round share.
pub(super) struct Round {
    pub(super) world: World,
    pub(super) begin: Instant,
    pub(super) is_over: AtomicBool,
    /// Times that something was broken and mended.
    pub(super) strikes_done: AtomicU64,
    /// In the order of the workers.
    pub(super) work: Vec<Mutex<Work>>,
    /// Since when each of them is in its step, or looks.
    pub(super) steps: Vec<Mutex<Option<Duration>>>,
    plan: Plan,
    findings: Mutex<Vec<Finding>>,
    strikes: Mutex<Vec<Strike>>,
    resources: Mutex<Vec<Curve>>,
    depots: Mutex<Vec<Depot>>,
}

impl Round {
    pub(super) fn found(&self, who: &str, what: impl Into<String>) {
        let is_over = self.is_over.load(Ordering::SeqCst);
        let fault = lock(&self.strikes).last().map(|strike| strike.fault).filter(|_| !is_over);
        lock(&self.findings).push(Finding { at: self.begin.elapsed(), who: who.to_owned(), what: what.into(), fault });
    }

    /// A step took from then until then.
    pub(super) fn credit(&self, from: Duration, to: Duration) {
        credit(&mut lock(&self.strikes), from, to);
    }

    /// A worker has looked what it finds after these strikes.
    pub(super) fn looked_after(&self, strikes: Range<u64>) {
        let workers = self.work.iter().filter(|work| !lock(work).is_program).count();
        let mut all = lock(&self.strikes);
        for number in strikes {
            let Some(strike) = all.get_mut(number as usize) else { return };
            strike.looked += 1;
            if strike.looked == workers {
                strike.recovered = Some(self.begin.elapsed());
            }
        }
    }

    /// Does something that must not take too long.
    fn watched<T>(&self, watchdog: &Watchdog, what: &str, act: impl FnOnce() -> T) -> T {
        let (done, overdue) = watchdog.watched(what, act);
        overdue.into_iter().for_each(|overdue| self.found("the round", overdue));
        done
    }

    fn is_sound(&self) -> bool {
        lock(&self.findings).is_empty()
    }

    /// Notes what processes use, and how far workers are; and tells of one that does not get on.
    fn sample(&self) {
        let now = self.begin.elapsed();
        for (work, step) in self.work.iter().zip(&self.steps) {
            let mut work = lock(work);
            let acknowledged = work.acknowledged;
            work.progress.add((now, acknowledged));
            // Once: the round ends with it.
            if let Some(since) = lock(step).take_if(|since| now.saturating_sub(*since) > STUCK + STUCK / 4) {
                self.found(&work.who, format!("it is still waiting after {:.1?}", now - since));
            }
        }
        for (who, process) in self.world.processes() {
            let Some(sample) = Sample::of(process, self.begin.elapsed()) else { continue };
            let mut curves = lock(&self.resources);
            match curves.iter_mut().find(|curve| curve.who == who) {
                Some(curve) => curve.add(process, sample),
                None => curves.push(Curve::new(who, process, sample)),
            }
        }
    }

    /// What has come of it so far.
    fn outcome(&self) -> Outcome {
        let work: Vec<Work> = self.work.iter().map(|work| lock(work).clone()).collect();
        Outcome {
            plan: self.plan.clone(),
            strikes: lock(&self.strikes).clone(),
            checks: work.iter().map(|work| work.checks).sum(),
            work,
            findings: lock(&self.findings).clone(),
            resources: lock(&self.resources).clone(),
            depots: lock(&self.depots).clone(),
            took: self.begin.elapsed(),
        }
    }
}

/// Runs a round. What has come of it is told to `progress` every few minutes.
///
/// # Errors
/// If a world cannot be made. What goes wrong in it is a finding.
pub fn run(plan: &Plan, progress: &mut dyn FnMut(&Outcome)) -> Result<Outcome> {
    // In worlds of several modes each has its turn to write what the others read.
    let mut modes = plan.modes.clone();
    let turn = plan.seed % modes.len().max(1) as u64;
    modes.rotate_left(turn as usize);
    let world = World::new(&Plan { modes: modes.clone(), ..plan.clone() })?;
    let common = Common::new(world.dir(), Source::new(world.dir(), FILES)?);
    let mut random = SmallRng::seed_from_u64(plan.seed);
    let turn = random.random_range(0..modes.len());
    let (mut workers, mut work) = (Vec::new(), Vec::new());
    for (number, seat) in world.seats.iter().enumerate() {
        for (place, workload) in of_seat(number, &modes, turn, &common).into_iter().enumerate() {
            let who = format!("seat {number} ({}), {}", seat.mode().name(), workload.name());
            let dir = format!("seat{number}-{place}");
            let (_, mount) = seat.wait_mounted().context("the mount is gone before it was used")?;
            fs::create_dir(mount.join(&dir))?;
            let mine = Work {
                who: who.clone(),
                is_program: workload.is_program(),
                steps: 0,
                acknowledged: 0,
                failed: 0,
                checks: 0,
                pauses: Vec::new(),
                progress: Thinned::default(),
            };
            let random = SmallRng::seed_from_u64(random.random());
            workers.push(Worker { number: work.len(), who, seat: number, dir, workload, random });
            work.push(Mutex::new(mine));
        }
    }
    let round = Arc::new(Round {
        world,
        begin: Instant::now(),
        is_over: AtomicBool::new(false),
        strikes_done: AtomicU64::new(0),
        steps: work.iter().map(|_| Mutex::default()).collect(),
        work,
        plan: plan.clone(),
        findings: Mutex::default(),
        strikes: Mutex::default(),
        resources: Mutex::default(),
        depots: Mutex::default(),
    });
    let threads: Vec<_> = workers
        .into_iter()
        .map(|mut worker| {
            let round = round.clone();
            thread::spawn(move || {
                // SAFETY: workloads keep no file open between two steps. What they share with others that owns a descriptor
                // is dropped by the main thread, which joins this one first.
                if let Err(error) = unsafe { have_own_files() } {
                    round.found(&worker.who, format!("no table of files of its own: {error}"));
                    return worker;
                }
                worker.run(&round);
                worker
            })
        })
        .collect();
    let sampling = round.clone();
    let sampler = thread::spawn(move || {
        while !sampling.is_over.load(Ordering::SeqCst) {
            thread::sleep(SAMPLED);
            sampling.sample();
        }
    });
    let watchdog = Watchdog::new(round.world.dir(), OVERDUE);
    strike(&round, &watchdog, &mut random, progress);
    round.is_over.store(true, Ordering::SeqCst);
    if !end_within(&threads, PATIENCE) {
        let logs: Vec<String> = round.world.seats.iter().map(|seat| last_lines(&seat.log())).collect();
        round.found("the round", format!("workers wait, {PATIENCE:?} after all was mended: {logs:?}"));
        round.world.give_up();
        // What is known by now is not lost, whatever becomes of them.
        progress(&round.outcome());
        if !end_within(&threads, GIVEN_UP) {
            round.found("the round", format!("workers wait, {GIVEN_UP:?} after all mounts were taken down"));
            // They keep the world, but the rounds after this one are not to share the machine with it.
            round.world.leave();
            keep_logs(plan, round.world.dir());
            return Ok(round.outcome());
        }
    }
    let all = threads.len();
    let workers: Vec<Worker> = threads.into_iter().filter_map(|thread| thread.join().ok()).collect();
    if workers.len() < all || sampler.join().is_err() {
        round.found("the round", "a worker met a defect");
    }
    judge(&round, &watchdog, workers);
    let outcome = round.outcome();
    let kept = keep_logs(plan, round.world.dir());
    let outcome = end(round, &watchdog, outcome);
    if let Some(kept) = kept.filter(|_| outcome.findings.is_empty()) {
        fs::remove_dir_all(&kept).with_context(|| format!("removing {}", kept.display()))?;
    }
    Ok(outcome)
}

/// Puts the logs of all processes where they stay, if they are to. What cannot be copied is said, and left out.
fn keep_logs(plan: &Plan, from: &Path) -> Option<PathBuf> {
    let to = plan.keep.as_ref()?.join(format!("logs-{}", plan.seed));
    let copy = || -> io::Result<()> {
        fs::create_dir_all(&to)?;
        for entry in fs::read_dir(from)? {
            let path = entry?.path();
            if let Some(name) =
                path.file_name().filter(|_| path.extension().is_some_and(|extension| extension == "log"))
            {
                fs::copy(&path, to.join(name))?;
            }
        }
        Ok(())
    };
    if let Err(error) = copy() {
        eprintln!("keeping the logs of {} in {}: {error}", from.display(), to.display());
    }
    Some(to)
}

/// Waits for the end of all of these, but not for ever. Says whether they have ended.
fn end_within<T>(threads: &[thread::JoinHandle<T>], limit: Duration) -> bool {
    let begin = Instant::now();
    loop {
        match threads.iter().all(thread::JoinHandle::is_finished) {
            false if begin.elapsed() < limit => thread::sleep(Duration::from_millis(5)),
            ended => return ended,
        }
    }
}

/// Breaks and mends until the time is over.
fn strike(round: &Round, watchdog: &Watchdog, random: &mut SmallRng, progress: &mut dyn FnMut(&Outcome)) {
    let faults = &round.plan.faults;
    let mut due = faults.clone();
    due.shuffle(random);
    let mut told = Instant::now();
    loop {
        thread::sleep(Duration::from_millis(random.random_range(REST_MS.0..REST_MS.1)));
        if !round.is_sound() || (round.begin.elapsed() > round.plan.length && due.is_empty()) {
            return;
        }
        if told.elapsed() > PROGRESS {
            progress(&round.outcome());
            told = Instant::now();
        }
        let Some(fault) = due.pop().or_else(|| faults.choose(random).copied()) else { return };
        let from = round.begin.elapsed();
        // Already there while it strikes, for those who meet it.
        lock(&round.strikes).push(Strike::new(fault, from));
        let done = round.watched(watchdog, &fault.name(), || fault.strike(&round.world, random));
        let to = round.begin.elapsed();
        let is_lost = done.is_err();
        let Struck { what, place } = done.unwrap_or_else(|error| {
            round.found("the fault", format!("{}: {error:#}", fault.name()));
            Struck { what: "failed".to_owned(), place: None }
        });
        if let Some(strike) = lock(&round.strikes).last_mut() {
            (strike.span, strike.place) = (Span { from, to, what }, place);
        }
        round.strikes_done.fetch_add(1, Ordering::SeqCst);
        if is_lost {
            // What it has broken stays so, and who waits for it would only hide what is wrong.
            round.world.give_up();
            return;
        }
    }
}

/// Holds everything against what was acknowledged, by the mounts themselves and by one that has seen nothing; and what is
/// used against what was used at first.
fn judge(round: &Round, watchdog: &Watchdog, mut workers: Vec<Worker>) {
    if !round.is_sound() {
        return;
    }
    for worker in &mut workers {
        if let Some((_, mount)) = round.world.seats[worker.seat].wait_mounted() {
            round.watched(watchdog, "a check", || worker.check(round, mount, "its own"));
        }
    }
    let judged = round.world.judge().and_then(|judge| {
        for worker in &mut workers {
            round.watched(watchdog, "a check", || worker.check(round, judge.path().to_owned(), "another"));
        }
        judge.close(false)
    });
    if let Err(error) = judged {
        round.found("the judge", format!("{error:#}"));
    }
    // They may keep files open.
    drop(workers);
    if round.is_sound() {
        round.watched(watchdog, "to remove everything", || empty(round));
    }
}

/// Removes everything, and looks whether what it took comes back.
fn empty(round: &Round) {
    round.sample();
    let depots = round.world.depots();
    let sizes = || depots.iter().map(|(_, path)| size(path));
    let full: Vec<u64> = sizes().collect();
    if let Err(error) = round.world.remove_everything() {
        round.found("the end", format!("{error:#}"));
        return;
    }
    // Whether it is too much is known at the end only.
    patiently(round, |_| sizes().filter(|size| *size > EMPTY).collect());
    let excess = |round: &Round| {
        round.sample();
        let of = |curve: &Curve| Some((curve.who.clone(), curve.excess()?));
        lock(&round.resources).iter().filter_map(of).collect()
    };
    for (who, what) in patiently(round, excess) {
        let processes = round.world.processes();
        let kinds = processes.iter().find(|(name, _)| *name == who).map(|(_, process)| descriptors(*process));
        round.found(&who, format!("it has {what} when all files are removed: {}", kinds.unwrap_or_default()));
    }
    let names = depots.iter().map(|(who, _)| who.clone());
    let sizes = full.into_iter().zip(sizes());
    *lock(&round.depots) = names.zip(sizes).map(|(who, (full, empty))| Depot { who, full, empty, kept: 0 }).collect();
}

/// The depots that hold too much for ones whose files are all removed.
fn too_large(depots: &[Depot]) -> impl Iterator<Item = (String, String)> {
    depots.iter().filter(|depot| depot.empty > EMPTY + depot.kept).map(|Depot { who, empty, kept, .. }| {
        let kept = format!("{} MiB of them kept for clients that died", kept >> 20);
        (who.clone(), format!("it holds {} MiB when all files are removed, {kept}", empty >> 20))
    })
}

/// What is still wrong after a while.
fn patiently<T>(round: &Round, wrong: impl Fn(&Round) -> Vec<T>) -> Vec<T> {
    let begin = Instant::now();
    loop {
        let found = wrong(round);
        if found.is_empty() || begin.elapsed() > QUIET {
            return found;
        }
        thread::sleep(Duration::from_millis(200));
    }
}

/// Takes the world down, and has the store checked.
fn end(round: Arc<Round>, watchdog: &Watchdog, mut outcome: Outcome) -> Outcome {
    let begin = round.begin;
    // In afs mode a client keeps its identity, and the server lets go of what its earlier lives had open.
    let none_died = round.world.seats.iter().all(|seat| seat.lives() == 0 || seat.mode() == Mode::Afs);
    let (ended, overdue) = watchdog.watched("to end", || match Arc::into_inner(round) {
        Some(round) => round.world.end(),
        None => Err(anyhow::anyhow!("a worker lives on")),
    });
    // `larderd check` is the last of it.
    outcome.checks += u64::from(ended.is_ok());
    // What the store keeps is known only if it could be checked.
    let store_is_known = ended.is_ok();
    let mut wrong: Vec<(String, String)> = overdue.into_iter().map(|what| ("the end".to_owned(), what)).collect();
    match ended {
        Ok(kept) => {
            if none_died && kept.files > 0 {
                let what =
                    format!("it keeps {} removed files for clients that died, and none did for good", kept.files);
                wrong.push((STORE.to_owned(), what));
            }
            if let Some(store) = outcome.depots.iter_mut().find(|depot| depot.who == STORE) {
                store.kept = kept.bytes;
            }
        }
        Err(error) => wrong.push(("the end".to_owned(), format!("{error:#}"))),
    }
    wrong.extend(too_large(&outcome.depots).filter(|(who, _)| who != STORE || store_is_known));
    let at = begin.elapsed();
    outcome.findings.extend(wrong.into_iter().map(|(who, what)| Finding { at, who, what, fault: None }));
    outcome.took = begin.elapsed();
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_for_the_dead_is_not_too_much() {
        let depot = |who: &str, empty: u64, kept: u64| Depot {
            who: who.to_owned(),
            full: 0,
            empty: empty << 20,
            kept: kept << 20,
        };
        let depots = [depot("small", 48, 0), depot("large", 49, 0), depot("kept", 100, 60), depot("both", 120, 60)];
        let found: Vec<String> = too_large(&depots).map(|(who, _)| who).collect();
        assert_eq!(found, ["large", "both"]);
    }
}
