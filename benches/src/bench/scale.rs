//! What many clients come to, where there are more than can be measured.
//!
//! A discrete-event model: clients do what [`behaviour`](super::behaviour) says, and each mode's rules say which requests
//! come of it. What a request of each kind costs the server, in processor time and in bytes, is fitted on measured loads of
//! at most [`FITTED`] clients and held against larger ones.
//!
//! **What it leaves out.** Requests cost the same however many there are: no processor, disk or network is ever full, so a
//! prediction of ten processors means that ten are needed and says nothing of what happens with four. Batches grow with the
//! load and make requests cheaper, which it does not know. All clients do the same and are independent of each other. No
//! client is ever cut off, and all files stay cached. Beyond [`SAMPLE`] clients each that is modelled stands for several;
//! what all of them write is modelled in full.

mod events;
mod fit;

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use self::events::{Rules, Traffic, Window, simulate, simulate_in};
use self::fit::nonnegative;
use super::results::{Axis, Load, Plot, Results};

/// The question's name in reports.
const QUESTION: &str = "scale";
/// The most clients of a load that the model is fitted on.
pub const FITTED: u64 = 500;
/// Clients that are modelled one by one.
pub const SAMPLE: usize = 2000;
/// How far a prediction may be off, for those who look at the validation.
const WITHIN: f64 = 20.0;
/// Numbers of clients that are predicted.
const CLIENTS: [u64; 9] = [100, 300, 1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000];
/// Terms of leases that are predicted, in seconds; the first is the usual one.
const TERMS: [f64; 3] = [10.0, 1.0, 60.0];
/// Modes of which loads are used.
const MODES: [&str; 3] = ["direct", "nfs", "afs"];

/// What a request of each kind costs a server.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Costs {
    /// Processor seconds.
    pub cpu: BTreeMap<String, f64>,
    /// Bytes on the network, both ways.
    pub bytes: BTreeMap<String, f64>,
    /// Processor seconds in a second of a server to which nobody comes.
    pub idle: f64,
}

impl Costs {
    /// Those that explain these loads best.
    ///
    /// # Errors
    /// If there are fewer loads than kinds of requests.
    pub fn fit<'a>(loads: impl Iterator<Item = &'a Load> + Clone) -> Result<Costs> {
        let mut kinds: Vec<&String> = loads.clone().flat_map(|load| load.cost.requests.keys()).collect();
        kinds.sort();
        kinds.dedup();
        let count = loads.clone().count();
        ensure!(count > kinds.len(), "{count} loads are too few to tell what {} kinds of requests cost", kinds.len());
        let row = |load: &Load| {
            let of_kinds = kinds.iter().map(|kind| load.cost.requests.get(*kind).copied().unwrap_or(0) as f64);
            of_kinds.chain([load.seconds]).collect::<Vec<f64>>()
        };
        let rows: Vec<Vec<f64>> = loads.clone().map(row).collect();
        let cpu: Vec<f64> = loads.clone().map(|load| load.cost.server_cpu).collect();
        let bytes: Vec<f64> = loads.map(|load| load.cost.wire as f64).collect();
        let (cpu, bytes) = (nonnegative(&rows, &cpu), nonnegative(&rows, &bytes));
        let named = |costs: &[f64]| kinds.iter().zip(costs).map(|(kind, cost)| ((*kind).clone(), *cost)).collect();
        Ok(Costs { cpu: named(&cpu), bytes: named(&bytes), idle: cpu.last().copied().unwrap_or(0.0) })
    }

    fn sum(of: &BTreeMap<String, f64>, traffic: &Traffic) -> f64 {
        traffic.requests.iter().map(|(kind, count)| count * of.get(*kind).copied().unwrap_or(0.0)).sum()
    }

    /// Processors that a server is busy on.
    fn processors(&self, traffic: &Traffic) -> f64 {
        self.idle + Costs::sum(&self.cpu, traffic)
    }

    /// MiB in a second.
    fn mib(&self, traffic: &Traffic) -> f64 {
        Costs::sum(&self.bytes, traffic) / f64::from(1 << 20)
    }
}

/// Fits the model on the loads that were measured, and adds its predictions and how good they are.
///
/// # Errors
/// If too little was measured.
pub fn predict(results: &mut Results) -> Result<()> {
    predict_for(results, &CLIENTS)
}

fn predict_for(results: &mut Results, numbers: &[u64]) -> Result<()> {
    let fitted = results.loads.iter().filter(|load| load.clients <= FITTED);
    let costs = Costs::fit(fitted)?;
    let note = "A discrete-event model of the load above: what each kind of request costs the server is fitted on up to 500 \
                measured clients, and held against those that were measured beyond. No processor, disk or network is ever \
                full in it: ten processors mean that ten are needed. Requests cost the same however many there are, clients \
                do not depend on each other, none is cut off, and all that they use stays cached.";
    let x = || Axis::log("clients", "");
    let mut plots = [
        Plot::new(QUESTION, "Server's processors", note, x(), Axis::log("busy processors", "")),
        Plot::new(QUESTION, "Requests to the server", note, x(), Axis::log("requests", "/s")),
        Plot::new(QUESTION, "Traffic", note, x(), Axis::log("traffic", "MiB/s")),
        Plot::new(QUESTION, "How long a change waits for all to know", note, x(), Axis::log("processor time", "s")),
        Plot::new(QUESTION, "Attributes older than the file", note, x(), Axis::log("mean age", "s")),
    ];
    for mode in MODES {
        let rules = Rules::of(mode);
        for &clients in numbers {
            let traffic = simulate(&rules, clients);
            let leases =
                TERMS.map(|term| (format!("afs, leases of {term} s"), traffic.clone().with_leases(clients, term)));
            let lines = if mode == "afs" { leases.to_vec() } else { vec![(mode.to_owned(), traffic)] };
            for (name, traffic) in lines {
                let at = clients as f64;
                plots[0].note(&name, at, costs.processors(&traffic));
                plots[1].note(&name, at, traffic.requests.values().sum());
                plots[2].note(&name, at, costs.mib(&traffic));
                if mode == "afs" {
                    let of_break = costs.cpu.get("breaks").copied().unwrap_or(0.0);
                    plots[3].note(&name, at, (traffic.holders * of_break).max(1e-6));
                }
                if let Some(age) = rules.attributes_age() {
                    plots[4].note(&name, at, age);
                }
            }
        }
    }
    let mut quality = Plot::new(
        QUESTION,
        "Predictions against measurements",
        &format!("100 % is right; within {WITHIN} % is what is aimed at from 1,000 clients on."),
        Axis::log("clients", ""),
        Axis::linear("predicted, of what was measured", "%"),
    );
    for load in &results.loads {
        let window = Window { is_fresh: true, warm: load.warm, length: load.seconds };
        let traffic = measured_alike(window, &load.mode, load.clients);
        let per_second = |value: f64| value / load.seconds;
        let requests: u64 = load.cost.requests.values().sum();
        let figures = [
            ("processors", costs.processors(&traffic), load.cost.server_cpu, 0),
            ("requests", traffic.requests.values().sum(), requests as f64, 1),
            ("traffic", costs.mib(&traffic), load.cost.wire as f64 / f64::from(1 << 20), 2),
        ];
        for (what, predicted, measured, plot) in figures {
            let measured = per_second(measured);
            plots[plot].note(&format!("{}, measured", load.mode), load.clients as f64, measured);
            // Clock ticks are too coarse for a handful of clients.
            if load.clients >= 50 {
                quality.note(&format!("{}: {what}", load.mode), load.clients as f64, 100.0 * predicted / measured);
            }
        }
    }
    // What was predicted before is of other loads.
    results.plots.retain(|plot| plot.question != QUESTION);
    results.plots.extend(plots.into_iter().chain([quality]));
    Ok(())
}

/// What clients send that are measured: their leases have the usual term.
fn measured_alike(window: Window, mode: &str, clients: u64) -> Traffic {
    let traffic = simulate_in(window, &Rules::of(mode), clients);
    if mode == "afs" { traffic.with_leases(clients, TERMS[0]) } else { traffic }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::results::Cost;

    /// A server in which this is true by construction.
    fn load(mode: &str, clients: u64) -> Load {
        let window = Window { is_fresh: true, warm: 20.0, length: 30.0 };
        let traffic = measured_alike(window, mode, clients);
        let requests: BTreeMap<String, u64> =
            traffic.requests.iter().map(|(kind, count)| ((*kind).to_owned(), (count * 30.0) as u64)).collect();
        let of = |kind: &str, count: u64| if kind == "fetch" { 3e-5 * count as f64 } else { 1e-5 * count as f64 };
        let server_cpu = requests.iter().map(|(kind, count)| of(kind, *count)).sum::<f64>() + 30.0 * 0.002;
        let wire = requests.values().sum::<u64>() * 500;
        let cost = Cost { requests, server_cpu, wire, ..Cost::default() };
        Load { mode: mode.to_owned(), clients, warm: 20.0, seconds: 30.0, deeds: clients * 30, cost }
    }

    #[test]
    fn it_finds_what_requests_cost_and_predicts_what_it_has_not_seen() {
        let mut results = Results::default();
        for clients in [50, 100, 200, 500, 1000, 2000] {
            results.loads.extend(MODES.map(|mode| load(mode, clients)));
        }
        let numbers = [1_000, 10_000, 100_000];
        predict_for(&mut results, &numbers).unwrap();
        let quality = results.plot(QUESTION, "Predictions against measurements").unwrap();
        for (line, points) in &quality.of {
            for point in points.iter().filter(|point| point.x >= 1000.0) {
                assert!((point.values[0] - 100.0).abs() < 5.0, "{line} at {}: {:?}", point.x, point.values);
            }
        }
        let processors = results.plot(QUESTION, "Server's processors").unwrap();
        let at = |line: &str, clients: f64| processors.at(line, clients).unwrap();
        assert!(at("nfs", 1e5) > 50.0 * at("nfs", 1e3), "each client asks by itself");
        assert!(at("afs, leases of 60 s", 1e4) < at("afs, leases of 1 s", 1e4), "short leases are renewed more often");
        let plots = results.plots.len();
        predict_for(&mut results, &numbers).unwrap();
        assert_eq!(results.plots.len(), plots, "it takes the place of what was predicted before");
    }

    #[test]
    fn too_few_loads_are_refused() {
        let mut results = Results { loads: vec![load("nfs", 10)], ..Results::default() };
        assert!(predict(&mut results).unwrap_err().to_string().contains("too few"));
    }
}
