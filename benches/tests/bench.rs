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
    run(bench(&["run", "--quick", "--rounds", "1", "--peers", "local", "--out"]).arg(&one)).unwrap();
    let results = Results::read(&one).unwrap();
    assert_eq!(results.candidates, ["local", "direct", "nfs", "afs"]);
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
}

#[test]
fn what_is_wrong_is_said_before_anything_is_measured() {
    for (arguments, told) in [
        (&["run", "--rounds", "0"][..], "--rounds"),
        (&["run", "--workloads", "sleep"][..], "andrew"),
        (&["run", "--rtt", "-1"][..], "-1"),
        (&["report", "/nowhere"][..], "/nowhere"),
        (&["compare", "/nowhere", "/nowhere"][..], "/nowhere"),
    ] {
        let output = bench(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && said.contains(told), "{arguments:?}: {said}");
    }
}
