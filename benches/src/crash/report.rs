//! What came of a run, as JSON and as one page of HTML that says the same.

mod html;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::fault::Fault;
use super::outcome::{Finding, Outcome, Plan, Span, Strike, coarsen};
use super::resources::{Sample, Thinned};
use crate::bench::machine;

/// Spans of a kind that are written out of a round; of more, those that are close become one.
const SPANS: usize = 1000;
/// Samples of a process that are written.
const SAMPLES: usize = 256;

/// What is said of a run beside what came of its rounds.
#[derive(Clone, Debug)]
pub struct About {
    /// As it was started.
    pub command: String,
    /// What it runs on, and since when: names and what they are.
    pub machine: BTreeMap<String, String>,
    /// Rounds that there are to be.
    pub planned: usize,
    /// Rounds that are over.
    pub done: usize,
}

impl About {
    /// A run that begins on this machine now.
    pub fn new(command: String, planned: usize) -> About {
        let mut machine = machine::facts(&std::env::temp_dir());
        machine.insert("began".to_owned(), format!("{} UTC", machine::now()));
        About { command, machine, planned, done: 0 }
    }

    /// What is known by now, where some of it is still to come.
    fn so_far(&self) -> Option<String> {
        (self.done < self.planned).then(|| format!("{} of {} rounds are over", self.done, self.planned))
    }
}

/// The round's modes in one word.
pub fn modes(outcome: &Outcome) -> &'static str {
    match &outcome.plan.modes[..] {
        [first, others @ ..] if others.iter().all(|mode| mode == first) => first.name(),
        _ => "mixed",
    }
}

/// What runs a round again.
pub fn again(outcome: &Outcome) -> String {
    let Plan { modes: seats, faults, seed, length, .. } = &outcome.plan;
    let names: Vec<String> = faults.iter().map(|fault| fault.name()).collect();
    let (combine, seconds) = (if names.len() > 1 { " --combine" } else { "" }, length.as_secs());
    format!(
        "scripts/crash --mode {} --fault {}{combine} --seed {seed} --length {seconds} --mounts {}",
        modes(outcome),
        names.join(","),
        seats.len()
    )
}

/// What was broken in a round, in a few words.
pub fn faults(outcome: &Outcome) -> String {
    match &outcome.plan.faults[..] {
        [fault] => fault.name(),
        many => format!("{} faults combined", many.len()),
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Those of a round that took so long, or fewer.
fn few(spans: &[Span], took: Duration) -> Vec<Span> {
    let grain = if spans.len() > SPANS { took / SPANS as u32 } else { return spans.to_vec() };
    coarsen(spans, grain)
}

/// Each sample, or fewer.
fn few_samples<T>(samples: &Thinned<T>) -> impl Iterator<Item = &T> {
    let kept = samples.kept();
    kept.iter().step_by(kept.len().div_ceil(SAMPLES).max(1))
}

fn spans(spans: &[Span], took: Duration) -> Value {
    let one = |span: &Span| json!({"from_us": micros(span.from), "to_us": micros(span.to), "what": span.what});
    few(spans, took).iter().map(one).collect()
}

/// When what was broken.
fn strikes(outcome: &Outcome) -> Vec<Span> {
    let is_one = outcome.plan.faults.len() == 1;
    let strikes = outcome.strikes.iter();
    let name = |fault: Fault, what: &str| if is_one { what.to_owned() } else { format!("{}: {what}", fault.name()) };
    strikes.map(|strike| Span { what: name(strike.fault, &strike.span.what), ..strike.span.clone() }).collect()
}

/// When what came back.
fn recoveries(outcome: &Outcome) -> Vec<Span> {
    outcome.strikes.iter().filter_map(Strike::recovery).collect()
}

/// What was held against what was promised, and how often.
pub fn checked(outcomes: &[Outcome]) -> BTreeMap<String, u64> {
    let mut checked = BTreeMap::new();
    let mut add = |what: &str, times: u64| *checked.entry(what.to_owned()).or_default() += times;
    for outcome in outcomes {
        for work in &outcome.work {
            let workload = work.who.split_once(", ").map_or(&*work.who, |(_, workload)| workload);
            add(workload, work.checks);
        }
        let by_workers: u64 = outcome.work.iter().map(|work| work.checks).sum();
        add("the store (larderd check)", outcome.checks - by_workers);
        if !outcome.depots.is_empty() {
            add("memory and descriptors of a process", outcome.resources.len() as u64);
            add("room of the store or a cache", outcome.depots.len() as u64);
        }
    }
    checked
}

/// How often processes died at each failpoint, and how often they were to and did not come there in their time.
pub fn places(outcomes: &[Outcome]) -> BTreeMap<&'static str, [u64; 2]> {
    let mut places: BTreeMap<&str, [u64; 2]> = BTreeMap::new();
    for (name, died) in outcomes.iter().flat_map(|outcome| &outcome.strikes).filter_map(|strike| strike.place) {
        places.entry(name).or_default()[usize::from(!died)] += 1;
    }
    places
}

/// All of it.
pub fn json(about: &About, outcomes: &[Outcome]) -> Value {
    let sample = |sample: &Sample| json!({"memory": sample.memory, "files": sample.files, "at_us": micros(sample.at)});
    let round = |outcome: &Outcome| {
        let of_work = outcome.work.iter().map(|work| {
            json!({
                "who": work.who, "is_program": work.is_program, "steps": work.steps, "acknowledged": work.acknowledged, "failed": work.failed,
                "checks": work.checks,
                "progress": few_samples(&work.progress).map(|(at, count)| json!([micros(*at), count])).collect::<Vec<_>>(),
                "pauses": spans(&work.pauses, outcome.took),
            })
        });
        let findings = outcome.findings.iter().map(|finding| {
            let fault = finding.fault.map(Fault::name);
            json!({"at_us": micros(finding.at), "who": finding.who, "what": finding.what, "fault": fault})
        });
        let resources = outcome.resources.iter().map(|curve| {
            json!({
                "who": curve.who, "most_memory": curve.most.memory, "most_files": curve.most.files,
                "first": sample(&curve.first()), "last": sample(&curve.last()),
                "samples": few_samples(&curve.samples).map(sample).collect::<Vec<_>>(),
            })
        });
        let depots = outcome.depots.iter();
        let depots =
            depots.map(|depot| json!({"who": depot.who, "full": depot.full, "empty": depot.empty, "kept": depot.kept}));
        json!({
            "mode": modes(outcome), "seed": outcome.plan.seed, "again": again(outcome),
            "plan": outcome.plan.faults.iter().map(|fault| fault.name()).collect::<Vec<_>>(),
            "took_us": micros(outcome.took), "longest_wait_us": micros(outcome.longest_wait()),
            "checks": outcome.checks, "faults": spans(&strikes(outcome), outcome.took),
            "recoveries": spans(&recoveries(outcome), outcome.took),
            "work": of_work.collect::<Vec<_>>(), "findings": findings.collect::<Vec<_>>(),
            "resources": resources.collect::<Vec<_>>(), "room": depots.collect::<Vec<_>>(),
        })
    };
    let rows = table(outcomes).into_iter().map(|((mode, fault), row)| {
        json!({
            "mode": mode, "fault": fault, "rounds": row.rounds, "times": row.strikes, "findings": row.findings,
            "longest_wait_us": micros(row.wait), "longest_recovery_us": row.recovery.map(micros),
        })
    });
    let failpoints: BTreeMap<_, _> = places(outcomes)
        .into_iter()
        .map(|(name, [died, missed])| (name, json!({"died": died, "did_not_come": missed})))
        .collect();
    let findings: usize = outcomes.iter().map(|outcome| outcome.findings.len()).sum();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "verdict": match findings {
            0 if about.done == 0 => "no round is over",
            0 => "every promise was kept",
            _ => "promises were broken",
        },
        "command": about.command, "so_far": about.so_far(), "machine": about.machine,
        "checked": checked(outcomes), "failpoints": failpoints, "table": rows.collect::<Vec<_>>(),
        "rounds": outcomes.iter().map(round).collect::<Vec<_>>(),
    })
}

/// A line of the table: a fault in a mode, over all rounds.
#[derive(Clone, Debug, Default)]
pub struct Row {
    /// Rounds in which it was among the faults.
    pub rounds: usize,
    /// How often it struck.
    pub strikes: usize,
    /// What was wrong after it, and at the end of a round with it.
    pub findings: usize,
    /// The longest that a program waited for it.
    pub wait: Duration,
    /// The longest time from its end until all had looked and found what they were told, but for whole programs: through
    /// what broke next, where that came before. `None` if it was never seen.
    pub recovery: Option<Duration>,
}

/// The table: by mode and fault.
pub fn table(outcomes: &[Outcome]) -> BTreeMap<(String, String), Row> {
    let mut table: BTreeMap<(String, String), Row> = BTreeMap::new();
    for outcome in outcomes {
        for fault in &outcome.plan.faults {
            let strikes: Vec<_> = outcome.strikes.iter().filter(|strike| strike.fault == *fault).collect();
            if strikes.is_empty() && outcome.findings.is_empty() {
                continue;
            }
            let row = table.entry((modes(outcome).to_owned(), fault.name())).or_default();
            row.rounds += 1;
            row.strikes += strikes.len();
            row.wait = strikes.iter().map(|strike| strike.longest_wait).max().unwrap_or_default().max(row.wait);
            let recoveries = strikes.iter().filter_map(|strike| strike.recovery());
            row.recovery = recoveries.map(|span| span.to - span.from).max().max(row.recovery);
            let of_it = |finding: &&Finding| finding.fault.is_none_or(|of| of == *fault);
            row.findings += outcome.findings.iter().filter(of_it).count();
        }
    }
    table
}

/// Writes `DIR/crash.json` and `DIR/crash.html`.
///
/// # Errors
/// If they cannot be written.
pub fn write(dir: &Path, about: &About, outcomes: &[Outcome]) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("making the directory {} for the report", dir.display()))?;
    for (name, text) in [
        ("crash.json", serde_json::to_string_pretty(&json(about, outcomes))?),
        ("crash.html", html::page(about, outcomes)),
    ] {
        let path = dir.join(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}
