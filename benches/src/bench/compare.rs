//! What has changed between two runs, beyond the noise.

use std::fmt::Write;

use super::results::Results;
use super::statistics::{LEAST, changed};

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

/// What is to be said of two runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Comparison {
    /// The changes, the worst one first.
    pub changes: Vec<Change>,
    /// Figures that are there no more: what could be measured then fails now, or was not asked for.
    pub gone: Vec<String>,
    /// Figures of which one run or the other has fewer than [`LEAST`] rounds.
    pub too_few: usize,
}

impl Comparison {
    /// Whether anything got worse, or is gone.
    pub fn is_worse(&self) -> bool {
        !self.gone.is_empty() || self.changes.iter().any(|change| change.better < 1.0)
    }
}

/// Compares two runs.
pub fn compare(old: &Results, new: &Results) -> Comparison {
    let mut comparison = Comparison::default();
    for before in &old.rows {
        let row = new.row(&before.workload, &before.name).filter(|row| row.unit == before.unit);
        for candidate in before.of.keys() {
            let name = format!("{}: {}", before.workload, before.name);
            let Some(was) = before.summary(candidate) else { continue };
            let Some((row, is)) = row.and_then(|row| Some((row, row.summary(candidate)?))) else {
                comparison.gone.push(format!("{candidate} {name}"));
                continue;
            };
            comparison.too_few += usize::from(was.count.min(is.count) < LEAST);
            if let Some(factor) = changed(&was, &is) {
                comparison.changes.push(Change {
                    row: name,
                    candidate: candidate.clone(),
                    medians: (was.median, is.median),
                    unit: row.unit.name(),
                    better: if row.unit.more_is_better() { factor } else { 1.0 / factor },
                });
            }
        }
    }
    comparison.changes.sort_by(|a, b| a.better.total_cmp(&b.better));
    comparison
}

/// That in words, a line each.
pub fn told(comparison: &Comparison) -> String {
    let Comparison { changes, gone, too_few } = comparison;
    let mut text = String::new();
    if changes.is_empty() && gone.is_empty() {
        text.push_str("Nothing has changed beyond the noise.\n");
    }
    for Change { row, candidate, medians: (was, is), unit, better } in changes {
        let (word, factor) = if *better >= 1.0 { ("better", *better) } else { ("worse", 1.0 / better) };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{factor:>6.2} times {word:<6}  {candidate:<10} {row}: {was:.4} -> {is:.4} {unit}");
    }
    for name in gone {
        let _ = writeln!(text, "  gone                {name}");
    }
    if *too_few > 0 {
        let _ = writeln!(text, "Of {too_few} figures nothing can be said: they have fewer than {LEAST} rounds.");
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
        let found = compare(&results(100.0, 1.0), &results(200.0, 3.0));
        let rows: Vec<&str> = found.changes.iter().map(|change| change.row.as_str()).collect();
        assert_eq!(rows, ["andrew: scan", "andrew: scan", "tree: untar", "tree: untar"]);
        assert!((found.changes[0].better - 1.0 / 3.0).abs() < 1e-9 && (found.changes[2].better - 2.0).abs() < 1e-9);
        assert!(told(&found).starts_with("  3.00 times worse   afs        andrew: scan: 1.0000 -> 3.0000 s\n"));
        assert!(found.is_worse());
        let same = compare(&results(1.0, 1.0), &results(1.0, 1.0));
        assert!(told(&same) == "Nothing has changed beyond the noise.\n" && !same.is_worse());
    }

    #[test]
    fn what_is_gone_and_what_is_not_sure_is_said() {
        let mut old = Results::default();
        for candidate in ["afs", "nfs"] {
            for value in [1.0, 1.0, 1.0] {
                old.note("tree", "untar", Unit::PerSecond, candidate, Sample { value, cost: Cost::default() });
            }
        }
        let mut new = Results::default();
        new.note("tree", "untar", Unit::PerSecond, "nfs", Sample { value: 0.1, cost: Cost::default() });
        let found = compare(&old, &new);
        assert_eq!((found.gone.as_slice(), found.too_few), (&["afs tree: untar".to_owned()][..], 1));
        assert!(found.is_worse() && told(&found).contains("gone") && told(&found).contains("fewer than 3"));
    }
}
