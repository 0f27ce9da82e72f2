//! Breaks everything and checks every promise: `scripts/crash` runs it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};
use larder_benches::crash::round::run;
use larder_benches::crash::{Fault, Plan, report};
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
Each round prints its seed; `--mode MODE --fault FAULT --seed SEED --rounds 1` runs it again. What the seed decides is
what is done and broken, and when; what that meets is up to the machine.

Exit status: 0 if every promise was kept, 1 if one was broken, 2 if it could not run.

Examples:
  scripts/crash
  scripts/crash --mode afs --fault server-power,client-power --rounds 10"
)]
struct Cli {
    /// How the mounts cache
    #[arg(long, value_enum, default_value = "all")]
    mode: Modes,
    /// What is broken, one after the other [default: everything]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "LIST")]
    fault: Vec<Fault>,
    /// Rounds of each fault in each mode
    #[arg(long, value_name = "N", default_value_t = 1)]
    rounds: u64,
    /// The first round's seed; the next ones are those that follow [default: a random one]
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// How long things are broken in a round, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    length: u64,
    /// Mounts in a round, 1 to 3
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=3))]
    mounts: u8,
    /// Where to write crash.html and crash.json
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
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

fn rounds(cli: &Cli) -> Result<bool> {
    let modes = match cli.mode {
        Modes::All => vec![Modes::Nfs, Modes::Afs, Modes::Direct, Modes::Mixed],
        one => vec![one],
    };
    let faults = if cli.fault.is_empty() { Fault::value_variants().to_vec() } else { cli.fault.clone() };
    let mut seed = cli.seed.unwrap_or_else(rand::random);
    let mut outcomes = Vec::new();
    for mode in modes {
        for fault in &faults {
            let seats: Vec<Mode> = (0..usize::from(cli.mounts))
                .map(|seat| match mode {
                    Modes::Nfs => Mode::Nfs,
                    Modes::Afs => Mode::Afs,
                    Modes::Direct => Mode::Direct,
                    Modes::Mixed | Modes::All => Mode::ALL[seat % Mode::ALL.len()],
                })
                .collect();
            if !seats.iter().any(|mode| fault.is_of(*mode)) {
                continue;
            }
            for _ in 0..cli.rounds {
                let plan = Plan {
                    modes: seats.clone(),
                    fault: *fault,
                    seed,
                    length: Duration::from_secs(cli.length),
                    durability: None,
                };
                let outcome = run(&plan)?;
                let acknowledged: u64 = outcome.work.iter().map(|work| work.acknowledged).sum();
                println!(
                    "{} - {} {} --seed {seed}: {} times, {acknowledged} operations, {} checks, longest wait {:.1?}, {:.1?}",
                    if outcome.findings.is_empty() { "ok" } else { "not ok" },
                    report::modes(&outcome),
                    fault.name(),
                    outcome.strikes.len(),
                    outcome.checks,
                    report::longest_pause(&outcome),
                    outcome.took,
                );
                for finding in &outcome.findings {
                    println!("    {:.2?} {}: {}", finding.at, finding.who, finding.what);
                }
                outcomes.push(outcome);
                seed = seed.wrapping_add(1);
                // After each round, so that a run which is cut off leaves what it has.
                if let Some(dir) = &cli.report {
                    report::write(dir, &outcomes)?;
                }
            }
        }
    }
    ensure!(!outcomes.is_empty(), "none of these faults can happen in this mode");
    Ok(outcomes.iter().all(|outcome| outcome.findings.is_empty()))
}
