//! The rounds: workload by workload, and in each one candidate after the other, so that a machine that drifts favours none.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;

use super::candidate::Candidate;
use super::inputs::Inputs;
use super::machine;
use super::progress::Progress;
use super::results::{About, Amounts, FORM, LeftOut, Results};
use super::workload::{Bench, Kind, Workload};

/// What is to be done.
pub struct Plan {
    /// The workloads.
    pub workloads: Vec<Kind>,
    /// Clients where several are at work, at least two.
    pub clients: usize,
    /// Rounds of each.
    pub rounds: usize,
    /// Whether it is a step of something that tells itself how far it is.
    pub is_step: bool,
    /// Milliseconds that messages of Larder's take there and back, beside what the machine takes.
    pub rtt: f64,
    /// As it was asked for.
    pub command: String,
    /// Where results go, after each round.
    pub results: PathBuf,
}

/// The steps of a run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Prepare,
    Round(usize),
    Remove(usize),
}

/// Runs everything on all of these. A candidate that fails in a workload is left out of the rest of that one.
///
/// # Errors
/// If results cannot be written.
pub fn run(
    plan: &Plan,
    inputs: &Inputs,
    candidates: &mut [Box<dyn Candidate>],
    left_out: Vec<LeftOut>,
) -> Result<Results> {
    let begin = Instant::now();
    let place = inputs.source.parent().unwrap_or(&inputs.source);
    let versions = candidates.iter().filter_map(|one| Some((one.name().to_owned(), one.version()?))).collect();
    let about = About {
        command: plan.command.clone(),
        began: machine::now(),
        took: 0.0,
        machine: machine::facts(place),
        versions,
        settings: candidates.iter().filter_map(|one| Some((one.name().to_owned(), one.settings()?))).collect(),
        amounts: Some(Amounts { scale: inputs.scale.name().to_owned(), clients: plan.clients, rtt: plan.rtt }),
    };
    let names = candidates.iter().map(|one| one.name().to_owned()).collect();
    let mut results = Results { form: FORM, runs: vec![about], candidates: names, left_out, ..Results::default() };
    let rounds = (0..plan.rounds).map(Step::Round);
    let removals = (0..plan.rounds).map(Step::Remove);
    let steps: Vec<Step> = std::iter::once(Step::Prepare).chain(rounds).chain(removals).collect();
    let mut progress = if plan.is_step {
        Progress::silent()
    } else {
        Progress::new(steps.len() * plan.workloads.len() * candidates.len())?
    };
    let mut failed: BTreeSet<(Kind, String)> = BTreeSet::new();
    let mut random = SmallRng::seed_from_u64(1);
    let disk = File::open(place).context("opening the disk")?;
    for step in steps {
        for kind in &plan.workloads {
            let workload = kind.workload(plan.clients);
            // In another order each time: nobody always comes after the same one.
            let mut turns: Vec<usize> = (0..candidates.len()).collect();
            turns.shuffle(&mut random);
            for turn in turns {
                let candidate = &mut candidates[turn];
                let key = (*kind, candidate.name().to_owned());
                progress.begin(format!("{} {} on {}", step.name(), kind.name(), key.1));
                // What the one before has left to be written is not for this one to wait for.
                rustix::fs::syncfs(&disk).context("syncing the disk")?;
                if !failed.contains(&key)
                    && let Err(error) = take(step, *kind, &*workload, &mut **candidate, inputs, &mut results)
                {
                    let why = format!("{error:#}").split_whitespace().collect::<Vec<_>>().join(" ");
                    progress.say(&format!("note: {} fails on {}: {why}", kind.name(), key.1));
                    let workload = Some(kind.name().to_owned());
                    let why = format!("{}: {why}", step.name().trim_end_matches(':'));
                    results.left_out.push(LeftOut { candidate: key.1.clone(), workload, why });
                    failed.insert(key);
                }
                progress.done();
            }
        }
        results.runs[0].took = begin.elapsed().as_secs_f64();
        results.write(&plan.results)?;
    }
    Ok(results)
}

impl Step {
    fn name(self) -> String {
        match self {
            Step::Prepare => "preparing".to_owned(),
            Step::Round(round) => format!("round {}:", round + 1),
            Step::Remove(round) => format!("removing what round {} left:", round + 1),
        }
    }
}

fn take(
    step: Step,
    kind: Kind,
    workload: &dyn Workload,
    candidate: &mut dyn Candidate,
    inputs: &Inputs,
    results: &mut Results,
) -> Result<()> {
    let round = match step {
        Step::Prepare => 0,
        Step::Round(round) | Step::Remove(round) => round,
    };
    let mut bench = Bench { kind, candidate, inputs, round, results };
    match step {
        Step::Prepare => {
            bench.candidate.need_clients(workload.clients())?;
            let base = bench.base(0);
            std::fs::create_dir(&base).with_context(|| format!("making {}", base.display()))?;
            workload.prepare(&mut bench)
        }
        Step::Round(_) => workload.round(&mut bench),
        Step::Remove(_) => workload.remove(&mut bench),
    }
}
