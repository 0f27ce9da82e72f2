//! What a run of the benchmark found, as it is kept: `bench.json`.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::behaviour::Writes;
use super::candidate::{LOCAL, PASS_THROUGH};
use super::statistics::Summary;

/// The form of the file; raised when what is in it changes its meaning.
pub const FORM: u32 = 1;

/// Everything that one run, or several that were merged, found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// The form of the file.
    pub form: u32,
    /// Each run's circumstances.
    pub runs: Vec<About>,
    /// What was measured, in the order in which it is shown.
    pub candidates: Vec<String>,
    /// What could not be measured, and why.
    pub left_out: Vec<LeftOut>,
    /// The figures.
    pub rows: Vec<Row>,
    /// What questions were answered with.
    #[serde(default)]
    pub plots: Vec<Plot>,
    /// What numbers of clients cost a server.
    #[serde(default)]
    pub loads: Vec<Load>,
}

/// What so many clients cost a server in a while, in which each did what [`behaviour`](super::behaviour) says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// Their mode.
    pub mode: String,
    /// How many they were.
    pub clients: u64,
    /// How often they wrote.
    pub writes: Writes,
    /// The term of leases, in seconds.
    pub term: f64,
    /// Seconds that they were at work before.
    pub warm: f64,
    /// How long it was.
    pub seconds: f64,
    /// What they did in that time, all together.
    pub deeds: u64,
    /// What it cost.
    pub cost: Cost,
}

/// The circumstances of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct About {
    /// The command line.
    pub command: String,
    /// When it began, in UTC.
    pub began: String,
    /// How long it took, in seconds.
    pub took: f64,
    /// What is known of the machine.
    pub machine: BTreeMap<String, String>,
    /// Versions of what was measured.
    pub versions: BTreeMap<String, String>,
    /// How what was measured is set up.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
    /// How much was done, if workloads were.
    #[serde(default)]
    pub amounts: Option<Amounts>,
}

/// How much was done in the workloads of a run: those of other amounts are not comparable.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Amounts {
    /// `quick`, `usual` or `full`.
    pub scale: String,
    /// Clients where several were at work.
    pub clients: usize,
    /// Milliseconds that messages of Larder's took there and back, beside what the machine took.
    pub rtt: f64,
}

/// Something that has no figures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// The candidate.
    pub candidate: String,
    /// Of which workload, if not of all.
    pub workload: Option<String>,
    /// Why.
    pub why: String,
}

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// Seconds that something took.
    Seconds,
    /// How often something was done in a second.
    PerSecond,
    /// Mebibytes that were moved in a second.
    MebibytesPerSecond,
    /// Mebibytes that something takes up.
    Mebibytes,
    /// Microseconds that something took.
    Microseconds,
    /// How many times what it is compared with something took.
    Times,
}

impl Unit {
    /// Whether a higher figure is a better one.
    pub fn more_is_better(self) -> bool {
        matches!(self, Unit::PerSecond | Unit::MebibytesPerSecond)
    }

    /// As it is shown.
    pub fn name(self) -> &'static str {
        match self {
            Unit::Seconds => "s",
            Unit::PerSecond => "/s",
            Unit::MebibytesPerSecond => "MiB/s",
            Unit::Mebibytes => "MiB",
            Unit::Microseconds => "µs",
            Unit::Times => "×",
        }
    }
}

/// One thing that was measured of every candidate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The workload.
    pub workload: String,
    /// Which part of it.
    pub name: String,
    /// What the figures are in.
    pub unit: Unit,
    /// Each candidate's rounds.
    pub of: BTreeMap<String, Vec<Sample>>,
}

/// How something depends on something else, or how it is distributed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plot {
    /// The question.
    pub question: String,
    /// Which part of the answer.
    pub name: String,
    /// What was done, for who reads it.
    pub note: String,
    /// What it depends on; of a distribution, what is distributed.
    pub x: Axis,
    /// What depends on it; of a distribution, [`Axis::share`].
    pub y: Axis,
    /// Each line's points by rising `x`. A distribution has one point, with all values.
    pub of: BTreeMap<String, Vec<Point>>,
}

/// One of a plot's axes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Axis {
    /// What is on it.
    pub label: String,
    /// In what.
    pub unit: String,
    /// Whether equal distances are equal ratios.
    pub is_log: bool,
}

/// What was measured at one place of a plot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// The place.
    pub x: f64,
    /// Each round's value.
    pub values: Vec<f64>,
}

impl Axis {
    /// Of equal distances.
    pub fn linear(label: &str, unit: &str) -> Axis {
        Axis { label: label.to_owned(), unit: unit.to_owned(), is_log: false }
    }

    /// Of equal ratios.
    pub fn log(label: &str, unit: &str) -> Axis {
        Axis { is_log: true, ..Axis::linear(label, unit) }
    }

    /// The share of values that are at most so large: the other axis of a distribution.
    pub fn share() -> Axis {
        Axis::linear("share", "%")
    }
}

impl Plot {
    /// Without points.
    pub fn new(question: &str, name: &str, note: &str, x: Axis, y: Axis) -> Plot {
        let (question, name, note) = (question.to_owned(), name.to_owned(), note.to_owned());
        Plot { question, name, note, x, y, of: BTreeMap::new() }
    }

    /// Whether it is the distribution of one thing.
    pub fn is_distribution(&self) -> bool {
        self.y == Axis::share()
    }

    /// Notes a value of a line.
    pub fn note(&mut self, line: &str, x: f64, value: f64) {
        let points = self.of.entry(line.to_owned()).or_default();
        match points.binary_search_by(|point| point.x.total_cmp(&x)) {
            Ok(place) => points[place].values.push(value),
            Err(place) => points.insert(place, Point { x, values: vec![value] }),
        }
    }

    /// Notes a value of what is distributed.
    pub fn note_value(&mut self, line: &str, value: f64) {
        self.note(line, 0.0, value);
    }

    /// All values of a line, sorted: what a distribution is made of.
    pub fn sorted(&self, line: &str) -> Vec<f64> {
        let points = self.of.get(line).into_iter().flatten();
        let mut values: Vec<f64> = points.flat_map(|point| point.values.iter().copied()).collect();
        values.sort_by(f64::total_cmp);
        values
    }

    /// The median of a line at a place.
    pub fn at(&self, line: &str, x: f64) -> Option<f64> {
        let point = self.of.get(line)?.iter().find(|point| point.x == x)?;
        Summary::of(&point.values).map(|summary| summary.median)
    }

    /// From which `x` on one line is below another one, if it is above it before: between two places in proportion, as the
    /// axes are.
    pub fn falls_below(&self, line: &str, other: &str) -> Option<f64> {
        let places = self.of.get(line)?.iter().map(|point| point.x);
        let both = places.filter_map(|x| Some((x, self.at(line, x)?.ln() - self.at(other, x)?.ln())));
        let both: Vec<(f64, f64)> = both.collect();
        let (before, after) =
            both.iter().zip(both.get(1..)?).find(|(before, after)| before.1 > 0.0 && after.1 <= 0.0)?;
        let part = before.1 / (before.1 - after.1);
        let between = |from: f64, to: f64| from + part * (to - from);
        Some(if self.x.is_log { between(before.0.ln(), after.0.ln()).exp() } else { between(before.0, after.0) })
    }
}

/// One round's figure and what it cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The figure.
    pub value: f64,
    /// What it cost.
    pub cost: Cost,
}

/// What something cost beside time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Requests that the server answered, by kind. Only Larder's server tells.
    pub requests: BTreeMap<String, u64>,
    /// Bytes that went over the network, both ways.
    pub wire: u64,
    /// Processor seconds of the servers.
    pub server_cpu: f64,
    /// Processor seconds of the clients' processes; not of programs that use the mounts.
    pub client_cpu: f64,
    /// Resident bytes of the servers afterwards.
    pub server_memory: u64,
    /// Resident bytes of the clients afterwards.
    pub client_memory: u64,
}

impl Row {
    /// The figures of a candidate.
    pub fn values(&self, candidate: &str) -> Vec<f64> {
        self.of.get(candidate).into_iter().flatten().map(|sample| sample.value).collect()
    }

    /// What can be said of a candidate's figures.
    pub fn summary(&self, candidate: &str) -> Option<Summary> {
        Summary::of(&self.values(candidate))
    }

    /// By what factor one candidate is better than another: 2 is twice as good, in less time or with more done.
    pub fn ratio(&self, candidate: &str, other: &str) -> Option<f64> {
        let (ours, theirs) = (self.summary(candidate)?.median, self.summary(other)?.median);
        let (above, below) = if self.unit.more_is_better() { (ours, theirs) } else { (theirs, ours) };
        (below > 0.0).then(|| above / below)
    }

    /// The most rounds that any candidate has.
    pub fn rounds(&self) -> usize {
        self.of.values().map(Vec::len).max().unwrap_or(0)
    }

    /// The best of these candidates. One that failed on the way is not.
    pub fn best<'a>(&self, candidates: impl IntoIterator<Item = &'a String>) -> Option<&'a String> {
        let rounds = self.rounds();
        let median = |candidate: &&String| {
            self.summary(candidate).filter(|summary| summary.count == rounds).map(|summary| summary.median)
        };
        let known = candidates.into_iter().filter_map(|candidate| Some((candidate, median(&candidate)?)));
        let order = |a: &(&String, f64), b: &(&String, f64)| a.1.total_cmp(&b.1);
        let best = if self.unit.more_is_better() { known.max_by(order) } else { known.min_by(order) };
        best.map(|(candidate, _)| candidate)
    }
}

impl Results {
    /// Notes a figure.
    pub fn note(&mut self, workload: &str, name: &str, unit: Unit, candidate: &str, sample: Sample) {
        let place = self.rows.iter().position(|row| row.workload == workload && row.name == name);
        let place = place.unwrap_or_else(|| {
            let (workload, name) = (workload.to_owned(), name.to_owned());
            self.rows.push(Row { workload, name, unit, of: BTreeMap::new() });
            self.rows.len() - 1
        });
        self.rows[place].of.entry(candidate.to_owned()).or_default().push(sample);
    }

    /// The plot of this name, if there is one.
    pub fn plot(&self, question: &str, name: &str) -> Option<&Plot> {
        self.plots.iter().find(|plot| plot.question == question && plot.name == name)
    }

    /// Adds a plot, or its values to those of the plot of this name.
    pub fn add_plot(&mut self, plot: Plot) {
        match self.plots.iter_mut().find(|ours| ours.question == plot.question && ours.name == plot.name) {
            Some(ours) => {
                for (line, points) in &plot.of {
                    for point in points {
                        point.values.iter().for_each(|value| ours.note(line, point.x, *value));
                    }
                }
            }
            None => self.plots.push(plot),
        }
    }

    /// The row of this name.
    pub fn row(&self, workload: &str, name: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.workload == workload && row.name == name)
    }

    /// The candidates that have figures in any of these rows.
    pub fn measured(&self, rows: &[&Row]) -> Vec<&String> {
        let has_figures = |candidate: &&String| rows.iter().any(|row| row.of.contains_key(*candidate));
        self.candidates.iter().filter(has_figures).collect()
    }

    /// The candidates without those that only say what is possible: no network is paid for in them.
    pub fn contestants(&self) -> impl Iterator<Item = &String> {
        self.candidates.iter().filter(|candidate| ![LOCAL, PASS_THROUGH].contains(&candidate.as_str()))
    }

    /// The workloads, each once, in the order of their rows.
    pub fn workloads(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for row in &self.rows {
            if !names.contains(&row.workload.as_str()) {
                names.push(&row.workload);
            }
        }
        names
    }

    /// Adds what another run found: its rows, or more rounds of the same.
    ///
    /// # Errors
    /// If the same row is in other units, or one of other amounts.
    pub fn merge(&mut self, other: Results) -> Result<()> {
        if !self.rows.is_empty() && !other.rows.is_empty() {
            let amounts = |results: &Results| results.runs.iter().find_map(|run| run.amounts.clone());
            if let (Some(ours), Some(others)) = (amounts(self), amounts(&other)) {
                ensure!(
                    ours == others,
                    "one run has done {ours:?} and the other {others:?}: what they measured is not the same"
                );
            }
        }
        for row in &other.rows {
            if let Some(ours) = self.row(&row.workload, &row.name) {
                ensure!(ours.unit == row.unit, "the row {} {} is in two units", row.workload, row.name);
            }
        }
        for row in other.rows {
            for (candidate, samples) in row.of {
                for sample in samples {
                    self.note(&row.workload, &row.name, row.unit, &candidate, sample);
                }
            }
        }
        other.plots.into_iter().for_each(|plot| self.add_plot(plot));
        self.loads.extend(other.loads);
        self.runs.extend(other.runs);
        for candidate in other.candidates {
            if !self.candidates.contains(&candidate) {
                self.candidates.push(candidate);
            }
        }
        for left_out in other.left_out {
            if !self.left_out.contains(&left_out) {
                self.left_out.push(left_out);
            }
        }
        Ok(())
    }

    /// Reads the file that [`write`](Results::write) wrote: `bench.json`, or the directory it is in.
    ///
    /// # Errors
    /// If it cannot be read, or is no such file.
    pub fn read(path: &Path) -> Result<Results> {
        let path = if path.is_dir() { path.join("bench.json") } else { path.to_owned() };
        let shown = path.display();
        let text = std::fs::read(&path).with_context(|| format!("reading {shown}"))?;
        let results: Results =
            serde_json::from_slice(&text).with_context(|| format!("{shown} is not a benchmark's"))?;
        ensure!(
            results.form == FORM,
            "{shown} has form {}, and this program reads form {FORM}: measure again, or use the version that wrote it",
            results.form
        );
        Ok(results)
    }

    /// Writes the file, all of it or nothing.
    ///
    /// # Errors
    /// The operating system's, with the path.
    pub fn write(&self, path: &Path) -> Result<()> {
        let partial = path.with_extension("json.partial");
        std::fs::write(&partial, serde_json::to_vec_pretty(self)?)
            .and_then(|()| std::fs::rename(&partial, path))
            .with_context(|| format!("writing {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(value: f64) -> Sample {
        Sample { value, cost: Cost::default() }
    }

    fn results(values: &[(&str, f64)], unit: Unit) -> Results {
        let mut results = Results { form: FORM, ..Results::default() };
        for (candidate, value) in values {
            results.candidates.push((*candidate).to_owned());
            results.note("tree", "untar", unit, candidate, sample(*value));
        }
        results
    }

    #[test]
    fn who_failed_on_the_way_is_not_the_best() {
        let mut results = results(&[("afs", 2.0), ("afs", 2.0), ("sshfs", 1.0)], Unit::Seconds);
        results.candidates.dedup();
        assert_eq!(results.row("tree", "untar").unwrap().best(&results.candidates).unwrap(), "afs");
    }

    #[test]
    fn less_time_and_more_done_are_better() {
        let candidates = ["afs".to_owned(), "sshfs".to_owned()];
        let time = results(&[("afs", 2.0), ("sshfs", 3.0)], Unit::Seconds);
        let row = time.row("tree", "untar").unwrap();
        assert_eq!((row.ratio("afs", "sshfs"), row.best(&candidates)), (Some(1.5), Some(&candidates[0])));
        let speed = results(&[("afs", 2.0), ("sshfs", 3.0)], Unit::PerSecond);
        let row = speed.row("tree", "untar").unwrap();
        assert_eq!((row.ratio("sshfs", "afs"), row.best(&candidates)), (Some(1.5), Some(&candidates[1])));
        assert_eq!(row.ratio("afs", "moosefs"), None);
    }

    #[test]
    fn it_is_told_where_lines_cross() {
        let mut plot = Plot::new("caching", "time", "", Axis::log("part", "%"), Axis::log("time", "s"));
        for (x, whole, blocks) in [(1.0, 8.0, 1.0), (10.0, 8.0, 4.0), (100.0, 8.0, 16.0)] {
            plot.note("afs", x, whole);
            plot.note("nfs", x, blocks);
        }
        let crossing = plot.falls_below("afs", "nfs").unwrap();
        assert!((crossing - 1000f64.sqrt()).abs() < 1e-6, "{crossing}");
        assert_eq!((plot.falls_below("nfs", "afs"), plot.falls_below("afs", "direct")), (None, None));
    }

    #[test]
    fn merged_results_are_written_and_read_again() {
        let mut all = results(&[("afs", 2.0)], Unit::Seconds);
        all.merge(results(&[("afs", 4.0), ("sshfs", 3.0)], Unit::Seconds)).unwrap();
        assert_eq!(all.row("tree", "untar").unwrap().values("afs"), [2.0, 4.0]);
        assert_eq!(all.candidates, ["afs", "sshfs"]);
        let mut plot = Plot::new("lease", "delay", "", Axis::linear("term", "s"), Axis::log("delay", "s"));
        for (x, value) in [(10.0, 4.0), (2.0, 1.0)] {
            plot.note("alive", x, value);
        }
        all.add_plot(plot.clone());
        let other = Results { form: FORM, plots: vec![plot], ..Results::default() };
        all.merge(other).unwrap();
        let places: Vec<(f64, usize)> =
            all.plots[0].of["alive"].iter().map(|point| (point.x, point.values.len())).collect();
        assert_eq!(places, [(2.0, 2), (10.0, 2)]);
        assert!(all.merge(results(&[("afs", 4.0)], Unit::PerSecond)).is_err());
        let dir = tempfile::tempdir().unwrap();
        all.write(&dir.path().join("bench.json")).unwrap();
        assert_eq!(Results::read(dir.path()).unwrap(), all);
        all.form += 1;
        all.write(&dir.path().join("bench.json")).unwrap();
        assert!(Results::read(dir.path()).unwrap_err().to_string().contains("form 2"));
    }
}
