//! What many clients come to, where there are more than can be measured.
//!
//! A discrete-event model: clients do what [`behaviour`](super::behaviour) says, and each mode's rules say which requests
//! come of it. What a request of each kind costs the server, in processor time and in bytes, is fitted on measured loads of
//! [`FITTED`] clients, some of which write more, or have shorter leases, than those that are predicted: else all kinds would
//! come as often beside each other everywhere, and nothing could tell what one of them costs. Then it is held against loads
//! of more clients.
//!
//! A server that has just done something does the next request for less: it need not be woken, and what it works with is at
//! hand. So each kind costs the same, and a request that comes alone costs something beside. What is at hand goes with time
//! (`exp(-gap/t)`), and requests come by themselves, so that of `n` in a second the part `1/(1 + n·t)` come alone; `t` is
//! fitted too. Those that come together by their nature (`TOGETHER`) do not.
//!
//! **What it leaves out.** No processor, disk or network is ever full, so a prediction of ten processors means that ten are
//! needed and says nothing of what happens with four. Batches grow with the load and make requests cheaper still, which it does
//! not know. All clients do the same and are independent of each other. No
//! client is ever cut off, and all files stay cached. Beyond [`SAMPLE`] clients each that is modelled stands for several;
//! what all of them write is modelled in full.

mod events;
mod fit;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use anyhow::{Context, Result, ensure};

use self::events::{Rules, STEADY, Traffic, Window, simulate_in};
use self::fit::{left_over, nonnegative};
use super::behaviour::{PAUSE, Writes};
use super::results::{Axis, Load, Plot, Results};

/// The question's name in reports.
const QUESTION: &str = "scale";
/// Clients of the loads that the model is fitted on. Of fewer, clock ticks say too little.
pub const FITTED: RangeInclusive<u64> = 50..=500;
/// Clients that are modelled one by one.
pub const SAMPLE: usize = 2000;
/// How far a prediction may be off, in percent.
const WITHIN: f64 = 20.0;
/// Worlds of which a prediction is the mean.
const WORLDS: u64 = 4;
/// The part of what clients were to do that they must have done: with less, the machine could not take more.
const DONE: f64 = 0.9;
/// Numbers of clients that are predicted.
const CLIENTS: [u64; 9] = [100, 300, 1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000];
/// Terms of leases that are predicted, in seconds; the first is the usual one.
const TERMS: [f64; 3] = [10.0, 1.0, 60.0];
/// How long a server may stay warm after a request, in seconds: one of these is fitted.
const WARM: [f64; 12] = [0.0, 0.000_2, 0.000_5, 0.001, 0.001_5, 0.002, 0.003, 0.004, 0.006, 0.008, 0.012, 0.02];
/// Requests whose time the server sets, and that come together: a change is told to all at once, and clients that began
/// together renew their leases together.
const TOGETHER: [&str; 2] = ["breaks", "renew"];
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
    /// Processor seconds that a request takes beside those of its kind when it comes alone.
    pub alone: f64,
    /// How long, in seconds, the server stays warm after a request.
    pub warm: f64,
}

/// How many of these requests, so many in a second, come alone to a server that stays warm for so long.
fn alone(per_second: f64, warm: f64) -> f64 {
    per_second / (1.0 + per_second * warm)
}

/// Those that come by themselves, of requests by kind.
fn by_themselves<'a>(requests: impl Iterator<Item = (&'a str, f64)>) -> f64 {
    requests.filter(|(kind, _)| !TOGETHER.contains(kind)).map(|(_, count)| count).sum()
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
        let of_kinds = |load: &Load| -> Vec<f64> {
            kinds.iter().map(|kind| load.cost.requests.get(*kind).copied().unwrap_or(0) as f64).collect()
        };
        let of_processors = |warm: f64| -> Vec<Vec<f64>> {
            let row = |load: &Load| {
                let mut row = of_kinds(load);
                let requests = load.cost.requests.iter().map(|(kind, count)| (kind.as_str(), *count as f64));
                row.extend([load.seconds, load.seconds * alone(by_themselves(requests) / load.seconds, warm)]);
                row
            };
            loads.clone().map(row).collect()
        };
        let cpu: Vec<f64> = loads.clone().map(|load| load.cost.server_cpu).collect();
        let fitted = WARM.into_iter().map(|warm| {
            let rows = of_processors(warm);
            let costs = nonnegative(&rows, &cpu);
            (left_over(&rows, &cpu, &costs), warm, costs)
        });
        let best = fitted.min_by(|a, b| a.0.total_cmp(&b.0));
        let (_, warm, cpu) = best.context("there is nothing to choose from")?;
        let rows: Vec<Vec<f64>> = loads.clone().map(of_kinds).collect();
        let bytes: Vec<f64> = loads.clone().map(|load| load.cost.wire as f64).collect();
        let bytes = nonnegative(&rows, &bytes);
        let named = |costs: &[f64]| kinds.iter().zip(costs).map(|(kind, cost)| ((*kind).clone(), *cost)).collect();
        let beside = |place: usize| cpu.get(kinds.len() + place).copied().unwrap_or(0.0);
        Ok(Costs { cpu: named(&cpu), bytes: named(&bytes), idle: beside(0), alone: beside(1), warm })
    }

    fn sum(of: &BTreeMap<String, f64>, traffic: &Traffic) -> f64 {
        traffic.requests.iter().map(|(kind, count)| count * of.get(*kind).copied().unwrap_or(0.0)).sum()
    }

    /// Processors that a server is busy on.
    fn processors(&self, traffic: &Traffic) -> f64 {
        let apart = by_themselves(traffic.requests.iter().map(|(kind, count)| (*kind, *count)));
        self.idle + Costs::sum(&self.cpu, traffic) + self.alone * alone(apart, self.warm)
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
    let fitted = results.loads.iter().filter(|load| FITTED.contains(&load.clients) && is_done(load));
    let costs = Costs::fit(fitted)?;
    let note = "A discrete-event model of the load above: what each kind of request costs the server is fitted on 50 to 500 \
                measured clients, and held against those that were measured beyond. No processor, disk or network is ever \
                full in it: ten processors mean that ten are needed. A request that comes alone costs more than one after \
                another; beyond that, requests cost the same however many there are. Clients do not depend on each other, \
                none is cut off, and all that they use stays cached.";
    let x = || Axis::log("clients", "");
    let mut plots = [
        Plot::new(QUESTION, "Server's processors", note, x(), Axis::log("busy processors", "")),
        Plot::new(QUESTION, "Requests to the server", note, x(), Axis::log("requests", "/s")),
        Plot::new(QUESTION, "Traffic", note, x(), Axis::log("traffic", "MiB/s")),
        Plot::new(QUESTION, "What it takes to tell all of a change", note, x(), Axis::log("processor time", "s")),
        Plot::new(QUESTION, "Until stat(2) shows a change", note, x(), Axis::log("mean", "s")),
    ];
    for mode in MODES {
        let rules = Rules::of(mode);
        for &clients in numbers {
            let traffic = mean(STEADY, &rules, clients, TERMS[0]);
            let at = clients as f64;
            let leases = TERMS.map(|term| {
                // The kernel asks again for names when the lease ends that was there.
                let traffic = if term == TERMS[0] { traffic.clone() } else { mean(STEADY, &rules, clients, term) };
                (format!("afs, leases of {term} s"), traffic.with_leases(clients, term))
            });
            if mode == "afs" {
                let of_break = costs.cpu.get("breaks").copied().unwrap_or(0.0);
                plots[3].note(mode, at, (traffic.holders * of_break).max(1e-6));
            }
            if let Some(wait) = rules.until_seen(clients) {
                plots[4].note(mode, at, wait);
            }
            let lines = if mode == "afs" { leases.to_vec() } else { vec![(mode.to_owned(), traffic)] };
            for (name, traffic) in lines {
                plots[0].note(&name, at, costs.processors(&traffic));
                plots[1].note(&name, at, traffic.requests.values().sum());
                plots[2].note(&name, at, costs.mib(&traffic));
            }
        }
    }
    let axis = Axis::linear("predicted, of what was measured", "%");
    let mut quality = Plot::new(QUESTION, "Predictions against measurements", "", Axis::log("clients", ""), axis);
    // Of those that it was not fitted on: how far each figure is off, in percent.
    let mut off: Vec<(f64, String)> = Vec::new();
    let usual = |load: &&Load| load.writes == Writes::USUAL && load.term == TERMS[0];
    for load in results.loads.iter().filter(usual) {
        let traffic = measured_alike(load);
        let requests: u64 = load.cost.requests.values().sum();
        let figures = [
            ("processors", costs.processors(&traffic), load.cost.server_cpu, 0),
            ("requests", traffic.requests.values().sum(), requests as f64, 1),
            ("traffic", costs.mib(&traffic), load.cost.wire as f64 / f64::from(1 << 20), 2),
        ];
        for (what, predicted, measured, plot) in figures {
            let measured = measured / load.seconds;
            plots[plot].note(&format!("{}, measured", load.mode), load.clients as f64, measured);
            if load.clients < *FITTED.start() || !is_done(load) {
                continue;
            }
            let line = format!("{}: {what}", load.mode);
            let percent = 100.0 * predicted / measured;
            quality.note(&line, load.clients as f64, percent);
            if load.clients > *FITTED.end() {
                off.push(((percent - 100.0).abs(), format!("{line} of {} clients", load.clients)));
            }
        }
    }
    let not_done = results.loads.iter().filter(|load| !is_done(load)).count();
    quality.note = verdict(&off, not_done);
    // What was predicted before is of other loads.
    results.plots.retain(|plot| plot.question != QUESTION);
    results.plots.extend(plots.into_iter().chain([quality]));
    Ok(())
}

/// Whether the clients of a load did what they were to do.
fn is_done(load: &Load) -> bool {
    load.deeds as f64 >= DONE * load.clients as f64 * load.seconds / PAUSE
}

/// What is to be said of figures that were predicted and measured, each with how far it is off in percent.
fn verdict(off: &[(f64, String)], not_done: usize) -> String {
    let mut text = "100 % is right. The model is fitted on loads of 50 to 500 clients. ".to_owned();
    let worst = off.iter().max_by(|a, b| a.0.total_cmp(&b.0));
    match worst {
        None => text.push_str("No load of more clients was measured, so it is not validated."),
        Some((most, which)) => {
            let good = off.iter().filter(|(off, _)| *off <= WITHIN).count();
            text.push_str(&format!(
                "Of the {} figures of more clients, {good} are within {WITHIN} %; the worst is off by {most:.0} % ({which}).",
                off.len()
            ));
        }
    }
    if not_done > 0 {
        text.push_str(&format!(
            " {not_done} loads are left out, in which clients got less than {} % done of what they were to do: that is this \
             machine's limit, which the model does not know.",
            DONE * 100.0
        ));
    }
    text
}

/// What so many clients send, by the mean of some worlds.
fn mean(window: Window, rules: &Rules, clients: u64, term: f64) -> Traffic {
    let worlds =
        (0..WORLDS).map(|seed| simulate_in(Window { seed: window.seed + seed, ..window }, rules, clients, term));
    Traffic::mean(worlds)
}

/// What clients send that do what measured ones did, deed by deed.
fn measured_alike(load: &Load) -> Traffic {
    let window = Window { writes: load.writes, seed: 0, is_fresh: true, warm: load.warm, length: load.seconds };
    let traffic = simulate_in(window, &Rules::of(&load.mode), load.clients, load.term);
    if load.mode == "afs" { traffic.with_leases(load.clients, load.term) } else { traffic }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::results::Cost;

    /// What requests cost a server in truth, by kind.
    fn true_cost(kind: &str) -> f64 {
        match kind {
            "fetch" => 60e-6,
            "renew" => 15e-6,
            "breaks" => 40e-6,
            "store" => 90e-6,
            _ => 20e-6,
        }
    }

    /// A load as such a server would have it.
    fn load(mode: &str, clients: u64, writes: Writes, term: f64) -> Load {
        let cost = Cost::default();
        let mut load =
            Load { mode: mode.to_owned(), clients, writes, term, warm: 20.0, seconds: 30.0, deeds: clients * 30, cost };
        let traffic = measured_alike(&load);
        let requests: BTreeMap<String, u64> =
            traffic.requests.iter().map(|(kind, count)| ((*kind).to_owned(), (count * 30.0) as u64)).collect();
        let apart = by_themselves(traffic.requests.iter().map(|(kind, count)| (*kind, *count)));
        let cpu: f64 = requests.iter().map(|(kind, count)| true_cost(kind) * *count as f64).sum();
        let cpu = cpu + 80e-6 * 30.0 * alone(apart, 0.003);
        // As the clock has it.
        let server_cpu = ((cpu + 30.0 * 0.002) * 100.0).round() / 100.0;
        let wire = requests.values().sum::<u64>() * 500;
        load.cost = Cost { requests, server_cpu, wire, ..Cost::default() };
        load
    }

    fn loads() -> Vec<Load> {
        let mut loads = Vec::new();
        for mode in MODES {
            for clients in [10, 50, 100, 200, 500, 1000, 2000] {
                loads.push(load(mode, clients, Writes::USUAL, 10.0));
            }
            loads.push(load(mode, 150, Writes::SHARED, 10.0));
            loads.push(load(mode, 150, Writes::OWN, 10.0));
        }
        loads.push(load("afs", 150, Writes::USUAL, 1.0));
        loads
    }

    #[test]
    fn it_finds_what_requests_cost_and_predicts_what_it_has_not_seen() {
        let mut results = Results { loads: loads(), ..Results::default() };
        let numbers = [1_000, 10_000, 100_000];
        predict_for(&mut results, &numbers).unwrap();
        let quality = results.plot(QUESTION, "Predictions against measurements").unwrap();
        assert!(quality.note.contains("Of the 18 figures of more clients, 18 are within 20 %"), "{}", quality.note);
        let processors = results.plot(QUESTION, "Server's processors").unwrap();
        let at = |line: &str, clients: f64| processors.at(line, clients).unwrap();
        assert!(at("nfs", 1e5) > 50.0 * at("nfs", 1e3), "each client asks by itself");
        assert!(at("afs, leases of 60 s", 1e4) < at("afs, leases of 1 s", 1e4), "short leases are renewed more often");
        let fitted = results.loads.iter().filter(|load| FITTED.contains(&load.clients));
        let costs = Costs::fit(fitted).unwrap();
        for kind in ["getattr", "lookup", "fetch", "renew", "breaks", "store"] {
            let found = costs.cpu[kind];
            assert!((found / true_cost(kind) - 1.0).abs() < 0.35, "{kind}: {found} instead of {}", true_cost(kind));
        }
        let plots = results.plots.len();
        predict_for(&mut results, &numbers).unwrap();
        assert_eq!(results.plots.len(), plots, "it takes the place of what was predicted before");
    }

    #[test]
    fn what_a_machine_could_not_take_does_not_count() {
        let mut results = Results { loads: loads(), ..Results::default() };
        let load = results.loads.iter_mut().find(|load| load.clients == 2000).unwrap();
        load.deeds /= 2;
        load.cost.server_cpu /= 4.0;
        predict_for(&mut results, &[1000]).unwrap();
        let quality = results.plot(QUESTION, "Predictions against measurements").unwrap();
        assert!(quality.note.contains("Of the 15 figures"), "{}", quality.note);
        assert!(quality.note.contains("1 loads are left out"), "{}", quality.note);
    }

    #[test]
    fn too_few_loads_are_refused_and_what_is_not_validated_says_so() {
        let mut results = Results { loads: vec![load("nfs", 100, Writes::USUAL, 10.0)], ..Results::default() };
        assert!(predict(&mut results).unwrap_err().to_string().contains("too few"));
        assert!(verdict(&[], 0).contains("not validated"));
    }
}
