//! Every fault, on mounts of all modes at once: what programs were told is there. `scripts/crash` does the same for longer.

#![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

use std::panic::resume_unwind;
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;
use std::{iter, thread};

use clap::ValueEnum;
use larder_benches::crash::round::run;
use larder_benches::crash::{Fault, Plan, report};
use larder_benches::mount::Mode;
use larder_benches::process::binary;
use larder_benches::seeds;
use larder_benches::size::Size;

/// Rounds of this fault, one after the other.
fn rounds(fault: Fault, modes: &[Mode], rounds: usize) {
    let base = seeds::first();
    for seed in (0..rounds as u64).map(|round| base.wrapping_add(round)) {
        let length = Duration::from_millis(Size::get().pick(500, 1000, 5000) as u64);
        let plan = Plan { modes: modes.to_vec(), faults: vec![fault], seed, length, durability: None, keep: None };
        let outcome = run(&plan, &mut |_| ()).unwrap_or_else(|error| panic!("{}: {error:#}", fault.name()));
        let acknowledged = outcome.acknowledged();
        println!(
            "{} {}: {} times, {acknowledged} operations, {} checks, longest wait {:.1?}",
            report::modes(&outcome),
            fault.name(),
            outcome.strikes.len(),
            outcome.checks,
            outcome.longest_wait(),
        );
        assert!(
            outcome.findings.is_empty(),
            "LARDER_SEED={seed}, {} in {}: {:#?}",
            fault.name(),
            report::modes(&outcome),
            outcome.findings
        );
        assert!(!outcome.strikes.is_empty() && acknowledged > 0 && outcome.checks > 10, "{outcome:?}");
    }
}

#[test]
fn what_was_acknowledged_is_there_whatever_breaks() {
    let each = |fault: Fault| {
        rounds(fault, &Mode::ALL, 1);
        // Fifty of each, for hours, are what scripts/crash is for.
        if Size::get() == Size::Full {
            for mode in Mode::ALL.into_iter().filter(|mode| fault.is_of(*mode)) {
                rounds(fault, &[mode; 3], 3);
            }
        }
    };
    // Two worlds beside each other: much of a round is waiting for leases.
    let left = Mutex::new(Fault::value_variants().iter());
    let next = || left.lock().unwrap().next().copied();
    thread::scope(|scope| {
        let worlds = [(); 2].map(|()| scope.spawn(|| iter::from_fn(next).for_each(each)));
        for world in worlds {
            world.join().unwrap_or_else(|panic| resume_unwind(panic));
        }
    });
}

#[test]
fn everything_that_breaks_in_one_world_breaks_no_promise() {
    let faults: Vec<Fault> = match Size::get() {
        Size::Full => Fault::value_variants().to_vec(),
        _ => vec![Fault::ServerPower, Fault::IoError, Fault::ClientKill, Fault::FlippedContent, Fault::Reset],
    };
    let seed = seeds::first();
    let plan = Plan { modes: Mode::ALL.to_vec(), faults, seed, length: Duration::ZERO, durability: None, keep: None };
    let outcome = run(&plan, &mut |_| ()).unwrap_or_else(|error| panic!("{error:#}"));
    assert!(outcome.findings.is_empty(), "LARDER_SEED={seed}: {:#?}", outcome.findings);
    let table = report::table(&[outcome]);
    assert_eq!(table.len(), plan.faults.len(), "each struck: {table:?}");
    assert!(table.values().all(|row| row.strikes == 1 && row.rounds == 1), "{table:?}");
}

#[test]
fn a_server_that_acknowledges_what_a_power_cut_takes_is_found() {
    // In `process` durability that is what it says it does.
    for mode in Mode::ALL {
        let found = (0..20).any(|seed| {
            let (modes, length) = (vec![mode; 2], Duration::from_secs(2));
            let plan =
                Plan { modes, faults: vec![Fault::ServerPower], seed, length, durability: Some("process"), keep: None };
            let outcome = run(&plan, &mut |_| ()).unwrap_or_else(|error| panic!("{error:#}"));
            let findings = outcome.findings;
            findings.iter().take(1).for_each(|finding| println!("{}: {}: {}", mode.name(), finding.who, finding.what));
            // By a workload; and the check may find what nobody owns any more, but no fault went wrong.
            let of_harness = ["the fault", "the round", "the judge"];
            assert!(!findings.iter().any(|finding| of_harness.contains(&&*finding.who)), "{findings:#?}");
            findings.iter().any(|finding| finding.who.starts_with("seat "))
        });
        assert!(found, "{} mode: twenty rounds of power cuts lose nothing", mode.name());
    }
}

#[test]
fn only_what_is_built_for_tests_can_die_at_a_failpoint() {
    let holds = |program: &str, name: &str| {
        let mut grep = Command::new("grep");
        let status = grep.args(["-q", "-a", "-F", "-e", name]).arg(binary(program).unwrap()).status().unwrap();
        matches!(status.code(), Some(0 | 1)).then_some(status.success()).expect("grep fails")
    };
    // The names of the variables that say where, what time it is, and to a client in which boot.
    let of_both = ["FAILPOINTS", "LARDER_WALL_CLOCK"];
    for (program, names) in [("larderd", &of_both[..]), ("larder", &[of_both[0], of_both[1], "LARDER_BOOT"])] {
        let of_tests = format!("{program}-failpoints");
        for name in names {
            assert!(!holds(program, name), "{program} heeds {name}");
            assert!(holds(&of_tests, name), "{of_tests} does not heed {name}");
        }
    }
}
