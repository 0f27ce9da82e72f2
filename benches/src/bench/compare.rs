//! What has changed between two runs, beyond the noise.

use std::fmt::Write;

use super::results::Results;
use super::statistics::changed;

/// A figure that is another now.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Workload and row.
    pub row: String,
    /// Of which candidate.
    pub candidate: String,
    /// The medians before and now.
    pub medians: (f64, f64),
    /// The unit of these.
    pub unit: &'static str,
    /// How much better it is now: 2 is twice as good, 0.5 half as good.
    pub better: f64,
}

/// The changes, the worst one first.
pub fn changes(old: &Results, new: &Results) -> Vec<Change> {
    let mut changes = Vec::new();
    for row in &new.rows {
        let Some(before) = old.row(&row.workload, &row.name).filter(|before| before.unit == row.unit) else { continue };
        for candidate in row.of.keys() {
            let (Some(was), Some(is)) = (before.summary(candidate), row.summary(candidate)) else { continue };
            if let Some(factor) = changed(&was, &is) {
                changes.push(Change {
                    row: format!("{}: {}", row.workload, row.name),
                    candidate: candidate.clone(),
                    medians: (was.median, is.median),
                    unit: row.unit.name(),
                    better: if row.unit.more_is_better() { factor } else { 1.0 / factor },
                });
            }
        }
    }
    changes.sort_by(|a, b| a.better.total_cmp(&b.better));
    changes
}

/// The changes in words, a line each.
pub fn told(changes: &[Change]) -> String {
    let mut text = String::new();
    if changes.is_empty() {
        text.push_str("Nothing has changed beyond the noise.\n");
    }
    for Change { row, candidate, medians: (was, is), unit, better } in changes {
        let (word, factor) = if *better >= 1.0 { ("better", *better) } else { ("worse", 1.0 / better) };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{factor:>6.2} times {word:<6}  {candidate:<10} {row}: {was:.4} -> {is:.4} {unit}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::results::{Cost, Sample, Unit};

    #[test]
    fn what_got_worse_is_named_first() {
        let results = |untar: f64, scan: f64| {
            let mut results = Results::default();
            for noise in [0.99, 1.0, 1.01, 1.0, 0.995] {
                for candidate in ["afs", "nfs"] {
                    let sample = |value: f64| Sample { value: value * noise, cost: Cost::default() };
                    results.note("tree", "untar", Unit::PerSecond, candidate, sample(untar));
                    results.note("andrew", "scan", Unit::Seconds, candidate, sample(scan));
                    results.note("andrew", "copy", Unit::Seconds, candidate, sample(2.0));
                }
            }
            results
        };
        let found = changes(&results(100.0, 1.0), &results(200.0, 3.0));
        let rows: Vec<&str> = found.iter().map(|change| change.row.as_str()).collect();
        assert_eq!(rows, ["andrew: scan", "andrew: scan", "tree: untar", "tree: untar"]);
        assert!((found[0].better - 1.0 / 3.0).abs() < 1e-9 && (found[2].better - 2.0).abs() < 1e-9);
        assert!(told(&found).starts_with("  3.00 times worse   afs        andrew: scan: 1.0000 -> 3.0000 s\n"));
        assert!(told(&changes(&results(1.0, 1.0), &results(1.0, 1.0))).starts_with("Nothing"));
    }
}
