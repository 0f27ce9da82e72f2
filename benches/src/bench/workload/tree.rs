//! A tree of text files: archives, git, grep, rm.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use super::{Bench, Workload};
use crate::bench::inputs::{LAST_LINE, unpack};
use crate::bench::results::Unit;
use crate::process::run;

/// How often what is cached is done, for one figure.
const AGAIN: usize = 5;

pub(super) struct Tree;

impl Workload for Tree {
    fn prepare(&self, bench: &mut Bench<'_>) -> Result<()> {
        let base = bench.base(0);
        unpack(&bench.inputs.tree, &base)?;
        unpack(&bench.inputs.repository, &base)
    }

    fn round(&self, bench: &mut Bench<'_>) -> Result<()> {
        let place = bench.make_place()?;
        let inputs = bench.inputs;
        let files = inputs.tree_files as f64;
        bench.rate("unpack an archive", Unit::PerSecond, || unpack(&inputs.tree, &place).map(|()| files))?;
        let repository = bench.base(0).join("repository");
        // What the index says of the files may be another mount's, or another machine's.
        run(inputs.git(&repository).args(["update-index", "-q", "--refresh"]))?;
        let status = || {
            let status = run(inputs.git(&repository).args(["status", "--porcelain"]))?;
            ensure!(status.stdout.is_empty(), "git says that files have changed");
            Ok(())
        };
        status()?;
        bench.rate("git status", Unit::PerSecond, || {
            (0..AGAIN).try_for_each(|_| status())?;
            Ok(AGAIN as f64)
        })?;
        let tree = bench.base(0).join("tree");
        if bench.candidate.can_forget() {
            bench.candidate.forget(0)?;
            bench.rate("grep -r, cold", Unit::PerSecond, || grep(&tree, inputs.tree_files).map(|()| files))?;
        } else {
            grep(&tree, inputs.tree_files)?;
        }
        bench.rate("grep -r, warm", Unit::PerSecond, || {
            (0..AGAIN).try_for_each(|_| grep(&tree, inputs.tree_files))?;
            Ok(files * AGAIN as f64)
        })
    }

    fn remove(&self, bench: &mut Bench<'_>) -> Result<()> {
        let tree = bench.place(0).join("tree");
        let files = bench.inputs.tree_files as f64;
        bench.forget()?;
        fs::symlink_metadata(&tree)?;
        bench.rate("rm -r", Unit::PerSecond, || {
            run(Command::new("timeout").args(["600", "rm", "-r"]).arg(&tree)).map(|_| files)
        })
    }
}

/// Finds a line in each of so many files.
fn grep(tree: &Path, files: usize) -> Result<()> {
    let found = run(Command::new("timeout").args(["600", "grep", "-r", "-h", "-x", LAST_LINE]).arg(tree))?;
    let lines = found.stdout.iter().filter(|byte| **byte == b'\n').count();
    ensure!(lines == files, "grep finds {lines} lines in {files} files");
    Ok(())
}
