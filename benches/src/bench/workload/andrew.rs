//! The Andrew benchmark's five phases (Howard et al., "Scale and Performance in a Distributed File System", 1988,
//! section 3), on a C program of ours.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::Result;

use super::{Bench, Workload};
use crate::process::run;

pub(super) struct Andrew;

impl Workload for Andrew {
    fn round(&self, bench: &mut Bench<'_>) -> Result<()> {
        let place = bench.make_place()?;
        let inputs = bench.inputs;
        bench.time("make directories", || {
            for directory in &inputs.source_directories {
                fs::create_dir(place.join(directory))?;
            }
            Ok(())
        })?;
        let program = |name: &str| {
            let mut command = Command::new("timeout");
            command.args(["600", name]).stdin(Stdio::null());
            command
        };
        bench.time("copy", || {
            run(program("cp").args(["-r", "--no-preserve=all"]).arg(inputs.source.join(".")).arg(&place)).map(drop)
        })?;
        bench.time("scan", || {
            run(program("find").arg(&place).arg("-ls"))?;
            run(program("du").arg("-s").arg(&place)).map(drop)
        })?;
        bench.time("read", || {
            run(program("grep").args(["-r", "-c", "value"]).arg(&place))?;
            run(program("find").arg(&place).args(["-type", "f", "-exec", "wc", "{}", "+"])).map(drop)
        })?;
        bench.time("compile", || run(program("make").args(["-s", "-C"]).arg(&place)).map(drop))
    }
}
