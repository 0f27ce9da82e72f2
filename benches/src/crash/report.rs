//! What came of a run, as JSON and as one page of HTML that says the same.

mod html;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::round::{Outcome, Span};

/// The round's modes in one word.
pub fn modes(outcome: &Outcome) -> String {
    let mut names: Vec<&str> = outcome.plan.modes.iter().map(|mode| mode.name()).collect();
    names.dedup();
    names.join("+")
}

/// The longest time for which a worker waited.
pub fn longest_pause(outcome: &Outcome) -> Duration {
    let pauses = outcome.work.iter().flat_map(|work| &work.pauses);
    pauses.map(|pause| pause.to - pause.from).max().unwrap_or_default()
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn spans(spans: &[Span]) -> Value {
    let one = |span: &Span| json!({"from_us": micros(span.from), "to_us": micros(span.to), "what": span.what});
    spans.iter().map(one).collect()
}

/// All of it.
pub fn json(outcomes: &[Outcome]) -> Value {
    let round = |outcome: &Outcome| {
        let work: Vec<Value> = outcome
            .work
            .iter()
            .map(|work| {
                json!({
                    "who": work.who, "steps": work.steps, "acknowledged": work.acknowledged, "failed": work.failed,
                    "pauses": spans(&work.pauses),
                })
            })
            .collect();
        let findings: Vec<Value> = outcome
            .findings
            .iter()
            .map(|finding| json!({"at_us": micros(finding.at), "who": finding.who, "what": finding.what}))
            .collect();
        json!({
            "mode": modes(outcome), "fault": outcome.plan.fault.name(), "seed": outcome.plan.seed,
            "took_us": micros(outcome.took), "longest_pause_us": micros(longest_pause(outcome)),
            "checks": outcome.checks, "faults": spans(&outcome.strikes), "work": work, "findings": findings,
        })
    };
    let findings: usize = outcomes.iter().map(|outcome| outcome.findings.len()).sum();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "verdict": if findings == 0 { "every promise was kept" } else { "promises were broken" },
        "rounds": outcomes.iter().map(round).collect::<Vec<_>>(),
    })
}

/// A line of the table: a fault in a mode, over all rounds.
#[derive(Clone, Debug, Default)]
pub struct Row {
    /// Rounds.
    pub rounds: usize,
    /// How often it struck.
    pub strikes: usize,
    /// Operations that were acknowledged.
    pub acknowledged: u64,
    /// How often something was held against what was acknowledged.
    pub checks: u64,
    /// What was wrong.
    pub findings: usize,
    /// The longest that a program waited.
    pub pause: Duration,
}

/// The table: by mode and fault.
pub fn table(outcomes: &[Outcome]) -> BTreeMap<(String, String), Row> {
    let mut table: BTreeMap<(String, String), Row> = BTreeMap::new();
    for outcome in outcomes {
        let row = table.entry((modes(outcome), outcome.plan.fault.name())).or_default();
        row.rounds += 1;
        row.strikes += outcome.strikes.len();
        row.acknowledged += outcome.work.iter().map(|work| work.acknowledged).sum::<u64>();
        row.checks += outcome.checks;
        row.findings += outcome.findings.len();
        row.pause = row.pause.max(longest_pause(outcome));
    }
    table
}

/// Writes `DIR/crash.json` and `DIR/crash.html`.
///
/// # Errors
/// If they cannot be written.
pub fn write(dir: &Path, outcomes: &[Outcome]) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    for (name, text) in
        [("crash.json", serde_json::to_string_pretty(&json(outcomes))?), ("crash.html", html::page(outcomes))]
    {
        let path = dir.join(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}
