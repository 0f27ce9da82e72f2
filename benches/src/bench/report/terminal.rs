//! A table for the terminal.

use std::fmt::Write;

use super::figure;
use super::plot::short;
use crate::bench::results::{Point, Results, Row};
use crate::bench::statistics::{Summary, quantile};

/// All rows, a candidate in each column; the best one with a network is marked.
pub fn table(results: &Results) -> String {
    let mut text = String::new();
    let width = results.candidates.iter().map(String::len).max().unwrap_or(0).max(9) + 2;
    for workload in results.workloads() {
        // Writing to a string cannot fail.
        let _ = write!(text, "\n{workload:<38}");
        let rows: Vec<&Row> = results.rows.iter().filter(|row| row.workload == workload).collect();
        let candidates = results.measured(&rows);
        for candidate in &candidates {
            let _ = write!(text, "{candidate:>width$}");
        }
        text.push('\n');
        for row in rows {
            let best = row.best(results.contestants());
            let name = format!("  {} ({})", row.name, row.unit.name());
            let _ = write!(text, "{name:<38}");
            for candidate in candidates.iter().copied() {
                let shown = row.summary(candidate).map_or("–".to_owned(), |summary| figure(summary.median));
                let mark = if best == Some(candidate) { "*" } else { " " };
                let _ = write!(text, "{:>width$}", format!("{shown}{mark}"));
            }
            text.push('\n');
        }
    }
    for plot in &results.plots {
        let unit = if plot.y.unit.is_empty() { String::new() } else { format!(" ({})", plot.y.unit) };
        let _ = writeln!(text, "\n{}: {}, {}{unit}", plot.question, plot.name, plot.y.label);
        for (line, points) in &plot.of {
            let told: Vec<String> = if plot.is_distribution() {
                let values = plot.sorted(line);
                let parts = [("median", 0.5), ("90 %", 0.9), ("most", 1.0)];
                let told = |(name, part): &(&str, f64)| {
                    Some(format!("{name} {} {}", figure(quantile(&values, *part)?), plot.x.unit))
                };
                parts.iter().filter_map(told).collect()
            } else {
                let median = |point: &Point| Some(figure(Summary::of(&point.values)?.median));
                let told = |point: &Point| Some(format!("{} {}: {}", short(point.x), plot.x.unit, median(point)?));
                points.iter().filter_map(told).collect()
            };
            let _ = writeln!(text, "  {line:<24}{}", told.join("  "));
        }
    }
    for left_out in &results.left_out {
        let workload = left_out.workload.as_deref().unwrap_or("everything");
        let _ = writeln!(text, "\nnote: {} is left out of {workload}: {}", left_out.candidate, left_out.why);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::results::{Cost, Sample, Unit};

    #[test]
    fn the_best_that_has_a_network_is_marked() {
        let mut results = Results::default();
        for (candidate, value) in [("local", 9.0), ("pass-through", 8.0), ("afs", 5.0), ("sshfs", 4.0)] {
            results.candidates.push(candidate.to_owned());
            results.note("tree", "untar", Unit::PerSecond, candidate, Sample { value, cost: Cost::default() });
        }
        let table = table(&results);
        let row = table.lines().find(|line| line.contains("untar")).unwrap();
        assert_eq!(row.split_whitespace().collect::<Vec<_>>(), ["untar", "(/s)", "9.00", "8.00", "5.00*", "4.00"]);
    }
}
