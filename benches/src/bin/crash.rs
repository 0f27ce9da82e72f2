//! Breaks everything and checks every promise: `scripts/crash` runs it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};
use larder_benches::crash::report::About;
use larder_benches::crash::round::run;
use larder_benches::crash::{Fault, Outcome, Plan, report};
use larder_benches::mount::Mode;

/// How the mounts of a round cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Modes {
    /// Attributes and blocks, polled
    Nfs,
    /// Whole files on disk, with callbacks
    Afs,
    /// Nothing
    Direct,
    /// One mount in each mode
    Mixed,
    /// Each of the others in turn
    All,
}

/// Breaks things under programs that work, and checks what they were promised
#[derive(Parser)]
#[command(
    name = "scripts/crash",
    after_help = "\
Each round prints its seed, and one that finds something prints the command that runs it again. What the seed decides is
what is done and broken, and when; what that meets is up to the machine.

It needs root, loop devices, ext4 and XFS, and up to 4 GiB in TMPDIR (default: /tmp). What it mounts is gone at its end, also
after an interrupt, which takes a while.

Exit status: 0 if every promise was kept, 1 if one was broken, 2 if it could not run.

Examples:
  scripts/crash
  scripts/crash --mode afs --fault server-power,client-power --rounds 10
  scripts/crash --mode mixed --combine
  scripts/crash --mode mixed --soak 2h --report soak"
)]
struct Cli {
    /// How the mounts cache
    #[arg(long, value_enum, default_value = "all")]
    mode: Modes,
    /// What is broken, one after the other in rounds of their own [default: everything]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "LIST")]
    fault: Vec<Fault>,
    /// All of them in each round, at random, each at least once
    #[arg(long)]
    combine: bool,
    /// One round for this long, such as 90s, 30m or 2h, as with --combine; the report is written every few minutes
    #[arg(long, value_name = "DURATION", value_parser = duration, conflicts_with_all = ["rounds", "length"])]
    soak: Option<Duration>,
    /// Rounds of each fault in each mode
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// The first round's seed; the next ones are those that follow [default: a random one]
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// How long things are broken in a round, in seconds; longer if that is too short for each fault to happen once
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    length: u64,
    /// Mounts in a round, 1 to 3
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=3))]
    mounts: u8,
    /// Where to write crash.html and crash.json, after each round, and the logs of rounds that find something
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
}

/// A number and its unit.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text} is not a number with s, m or h behind it");
    let unit = match text.as_bytes().last() {
        Some(b's') => 1,
        Some(b'm') => 60,
        Some(b'h') => 3600,
        _ => return Err(wrong()),
    };
    let seconds = text[..text.len() - 1].parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    let seconds = seconds.filter(|seconds| *seconds > 0);
    seconds.map(Duration::from_secs).ok_or_else(wrong)
}

fn main() -> ExitCode {
    match rounds(&Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("crash: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// The modes of a round's mounts.
fn seats(mode: Modes, mounts: u8) -> Vec<Mode> {
    let of_seat = |seat: usize| match mode {
        Modes::Nfs => Mode::Nfs,
        Modes::Afs => Mode::Afs,
        Modes::Direct => Mode::Direct,
        Modes::Mixed | Modes::All => Mode::ALL[seat % Mode::ALL.len()],
    };
    (0..usize::from(mounts)).map(of_seat).collect()
}

/// The rounds that are asked for, but for their seeds.
fn plans(cli: &Cli) -> Result<Vec<Plan>> {
    ensure!(cli.mode != Modes::Mixed || cli.mounts > 1, "--mode mixed needs at least two mounts");
    let modes = match cli.mode {
        Modes::All => vec![Modes::Nfs, Modes::Afs, Modes::Direct, Modes::Mixed],
        one => vec![one],
    };
    let mut wanted = if cli.fault.is_empty() { Fault::value_variants().to_vec() } else { cli.fault.clone() };
    let mut seen = BTreeSet::new();
    wanted.retain(|fault| seen.insert(fault.name()));
    let length = cli.soak.unwrap_or(Duration::from_secs(cli.length));
    let mut plans = Vec::new();
    for mode in modes {
        let seats = seats(mode, cli.mounts);
        let (faults, others): (Vec<Fault>, Vec<Fault>) =
            wanted.iter().partition(|fault| seats.iter().any(|mode| fault.is_of(*mode)));
        if !cli.fault.is_empty() && !others.is_empty() {
            let names: Vec<String> = others.iter().map(|fault| fault.name()).collect();
            eprintln!("crash: {} cannot happen without a mount in afs mode, and is left out there", names.join(", "));
        }
        let sets = match cli.combine || cli.soak.is_some() {
            true => Vec::from_iter((!faults.is_empty()).then_some(faults)),
            false => faults.into_iter().map(|fault| vec![fault]).collect(),
        };
        let plan =
            |faults| Plan { modes: seats.clone(), faults, seed: 0, length, durability: None, keep: cli.report.clone() };
        plans.extend(sets.into_iter().flat_map(|faults| vec![plan(faults); cli.rounds as usize]));
    }
    ensure!(!plans.is_empty(), "none of these faults can happen in this mode");
    ensure!(cli.soak.is_none() || plans.len() == 1, "--soak is one round: say in which --mode");
    Ok(plans)
}

fn rounds(cli: &Cli) -> Result<bool> {
    let plans = plans(cli)?;
    let command = std::env::args().skip(1).fold("scripts/crash".to_owned(), |all, word| format!("{all} {word}"));
    let about = About::new(command, plans.len());
    let write = |done, outcomes: &[Outcome]| match &cli.report {
        Some(dir) => report::write(dir, &About { done, ..about.clone() }, outcomes),
        None => Ok(()),
    };
    // Not only after an hour is it told that this cannot be done.
    write(0, &[])?;
    let first = cli.seed.unwrap_or_else(rand::random);
    let mut outcomes: Vec<Outcome> = Vec::new();
    for (number, plan) in plans.iter().enumerate() {
        let plan = Plan { seed: first.wrapping_add(number as u64), ..plan.clone() };
        let outcome = run(&plan, &mut |so_far| {
            println!("{}", summary("so far", so_far));
            if let Err(error) = write(number, &[&*outcomes, std::slice::from_ref(so_far)].concat()) {
                eprintln!("crash: {error:#}");
            }
        })?;
        let verdict = if outcome.findings.is_empty() { "ok" } else { "not ok" };
        println!("{}", summary(verdict, &outcome));
        for finding in &outcome.findings {
            println!("    {:.2?} {}: {}", finding.at, finding.who, finding.what);
        }
        if !outcome.findings.is_empty() {
            println!("    once more: {}", report::again(&outcome));
        }
        outcomes.push(outcome);
        // After each round, so that a run which is cut off leaves what it has.
        write(number + 1, &outcomes)?;
    }
    Ok(outcomes.iter().all(|outcome| outcome.findings.is_empty()))
}

/// A round in a line.
fn summary(verdict: &str, outcome: &Outcome) -> String {
    format!(
        "{verdict} - {} {} --seed {}: {} times, {} operations, {} checks, longest wait {:.1?}, {:.1?}",
        report::modes(outcome),
        report::faults(outcome),
        outcome.plan.seed,
        outcome.strikes.len(),
        outcome.acknowledged(),
        outcome.checks,
        outcome.longest_wait(),
        outcome.took,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_has_a_number_and_a_unit() {
        let seconds = |text| duration(text).map(|duration| duration.as_secs());
        assert_eq!((seconds("90s"), seconds("30m"), seconds("2h")), (Ok(90), Ok(1800), Ok(7200)));
        for text in ["", "h", "0s", "2", "2d", "-1s", "99999999999999999999h", "9999999999999999999h", "2\u{e9}"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
