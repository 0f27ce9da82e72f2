//! The benchmark itself: it measures all that it says, and its report says what was measured.

use std::process::{Command, Output};

use larder_benches::bench::results::Results;
use larder_benches::process::{run, scratch};

fn bench(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_larder-bench"));
    command.args(arguments);
    command
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_run_measures_every_row_in_every_mode() {
    let dir = scratch().unwrap();
    let one = dir.path().join("one");
    run(bench(&["run", "--quick", "--rounds", "1", "--peers", "local,pass-through", "--out"]).arg(&one)).unwrap();
    let results = Results::read(&one).unwrap();
    assert_eq!(results.candidates, ["local", "pass-through", "direct", "nfs", "afs"]);
    assert_eq!(results.left_out, [], "nothing fails");
    assert_eq!(results.workloads(), ["andrew", "tree", "small", "io", "sqlite", "mail", "shared"]);
    for row in &results.rows {
        for candidate in &results.candidates {
            let name = format!("{} {} of {candidate}", row.workload, row.name);
            let values = row.values(candidate);
            // The local disk has no client whose caches could be emptied.
            if candidate == "local" && row.name.contains("cold") {
                assert!(values.is_empty(), "{name}: {values:?}");
            } else {
                assert!(values.len() == 1 && values.iter().all(|value| *value > 0.0), "{name}: {values:?}");
            }
        }
    }
    let requests = |workload: &str, name: &str, candidate: &str| -> u64 {
        results.row(workload, name).unwrap().of[candidate][0].cost.requests.values().sum()
    };
    for mode in ["direct", "nfs", "afs"] {
        assert!(requests("tree", "grep -r, cold", mode) >= 60, "{mode}: it was not cold");
    }
    assert_eq!(requests("tree", "grep -r, warm", "afs"), 0, "it was not warm");
    let unpacked = &results.row("tree", "unpack an archive").unwrap().of["afs"][0].cost;
    assert!(unpacked.requests["create"] >= 60 && unpacked.wire > 10_000, "{unpacked:?}");
    let page = std::fs::read_to_string(one.join("bench.html")).unwrap();
    assert!(results.rows.iter().all(|row| page.contains(&row.name)));

    let merged = dir.path().join("merged");
    run(bench(&["report"]).arg(&one).arg(&one).arg("--out").arg(&merged)).unwrap();
    let both = Results::read(&merged).unwrap();
    assert_eq!((both.runs.len(), both.row("sqlite", "queries").unwrap().values("nfs").len()), (2, 2));
    let same = bench(&["compare"]).arg(&merged).arg(&merged).output().unwrap();
    assert!(same.status.success() && text(&same).starts_with("Nothing has changed"), "{same:?}");
    let worse = dir.path().join("worse.json");
    let mut results = both.clone();
    results.rows.retain(|row| row.name != "queries");
    results.write(&worse).unwrap();
    let gone = bench(&["compare"]).arg(&merged).arg(&worse).output().unwrap();
    assert!(gone.status.code() == Some(1) && text(&gone).contains("gone"), "{gone:?}");
}

#[test]
fn every_question_is_answered_for_every_mode() {
    let dir = scratch().unwrap();
    let questions = "attributes,staleness,load,lease,caching,distance,path";
    run(bench(&["run", "--quick", "--rounds", "1", "--questions", questions, "--out"]).arg(dir.path())).unwrap();
    let results = Results::read(dir.path()).unwrap();
    assert_eq!(results.left_out, []);
    assert_eq!(results.workloads(), ["path"]);
    let parts = results.row("path", "getattr, of FUSE and tarpc together").unwrap();
    assert!(["direct", "nfs"].iter().all(|mode| parts.values(mode).len() == 1), "{parts:?}");
    let page = std::fs::read_to_string(dir.path().join("bench.html")).unwrap();
    for question in questions.split(',') {
        let of: Vec<_> = results.plots.iter().filter(|plot| plot.question == question).collect();
        assert!(!of.is_empty(), "{question} is not answered");
        for plot in of {
            let names = match question {
                "lease" => vec![""],
                "distance" if plot.name.contains("in afs mode") => vec!["afs"],
                "path" => vec!["direct", "nfs", "FUSE alone", "tarpc alone"],
                _ => vec!["direct", "nfs", "afs"],
            };
            for name in names {
                let line = plot.of.iter().find(|(line, _)| line.starts_with(name));
                let (_, points) = line.unwrap_or_else(|| panic!("{question}, {}: no line of {name}", plot.name));
                assert!(points.iter().all(|point| !point.values.is_empty()), "{question}, {}: {name}", plot.name);
            }
            assert!(page.contains(&plot.name), "{} is not shown", plot.name);
        }
    }
    let modes: Vec<(&str, u64)> = results.loads.iter().map(|load| (load.mode.as_str(), load.clients)).collect();
    // One as clients are, and those that tell what each kind of request costs.
    let of = |mode: &str| modes.iter().filter(|load| **load == (mode, 10)).count();
    assert_eq!([of("direct"), of("nfs"), of("afs")], [3, 3, 4]);
    assert!(results.loads.iter().all(|load| load.deeds > 0 && load.cost.requests.values().sum::<u64>() > 0));
    // What the modes are for: nobody sees what is old where callbacks are, and nothing is asked again.
    let median = |name: &str, line: &str| results.plot("attributes", name).unwrap().at(line, 0.0).unwrap();
    let [nfs, afs] = ["nfs", "afs"].map(|mode| median("Requests to the server", mode));
    assert!(afs * 10.0 < nfs, "nfs asks {nfs} times a second and afs {afs} times");
}

#[test]
fn what_is_wrong_is_said_before_anything_is_measured() {
    for (arguments, told) in [
        (&["run", "--rounds", "0"][..], "--rounds"),
        (&["run", "--workloads", "sleep"][..], "andrew"),
        (&["run", "--rtt", "-1"][..], "-1"),
        (&["run", "--clients", "1"][..], "--clients"),
        (&["run", "--rtt", "5", "--peers", "local,sshfs"][..], "sshfs"),
        (&["run", "--questions", "why"][..], "staleness"),
        (&["report", "/nowhere"][..], "/nowhere"),
        (&["compare", "/nowhere", "/nowhere"][..], "/nowhere"),
    ] {
        let output = bench(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && said.contains(told), "{arguments:?}: {said}");
    }
}
