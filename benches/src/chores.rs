//! What programs do all day, for tests that break things meanwhile.
#![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use crate::process::run;

fn bytes(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 253 + at * 7 + seed * 31) as u8).collect()
}

/// Files that are changed in turns, so that each is left alone until its checksums are stored.
const SETTLED: usize = 10;

/// Does all that programs do to files, each operation in a way that fails when it is done twice.
///
/// # Panics
/// If something fails.
pub fn work(dir: &Path, round: usize) {
    let at = |name: &str| dir.join(format!("{name}-{round}"));
    if round == 0 {
        (0..SETTLED)
            .for_each(|number| fs::write(dir.join(format!("settled-{number}")), bytes(50_000, number)).unwrap());
    }
    let settled = OpenOptions::new().write(true).open(dir.join(format!("settled-{}", round % SETTLED))).unwrap();
    settled.write_all_at(&bytes(300, round), 20_000 + round as u64).unwrap();
    settled.sync_all().unwrap();
    drop(settled);
    fs::create_dir(at("directory")).unwrap();
    let small = at("directory").join("small");
    let mut file = File::create_new(&small).unwrap();
    file.write_all(&bytes(300, round)).unwrap();
    drop(file);
    // Contents that move out of the metadata.
    let file = OpenOptions::new().write(true).open(&small).unwrap();
    file.write_all_at(&bytes(40_000, round + 1), 200).unwrap();
    file.sync_all().unwrap();
    file.set_len(1_000 + round as u64).unwrap();
    drop(file);
    for piece in 0..3 {
        let mut log = OpenOptions::new().append(true).create(true).open(at("log")).unwrap();
        log.write_all(format!("{round} {piece}\n").as_bytes()).unwrap();
    }
    // More than a piece of a store.
    fs::write(at("large"), bytes((2 << 20) + 17, round)).unwrap();
    fs::hard_link(at("large"), at("linked")).unwrap();
    fs::rename(at("log"), at("renamed")).unwrap();
    if round > 0 {
        // Replaced, and removed with contents of their own.
        let before = |name: &str| dir.join(format!("{name}-{}", round - 1));
        fs::rename(before("large"), before("linked")).unwrap();
        fs::write(before("linked"), bytes(70_000, round)).unwrap();
        fs::remove_file(before("renamed")).unwrap();
    }
    if round > 1 {
        fs::remove_file(dir.join(format!("linked-{}", round - 2))).unwrap();
        fs::remove_dir_all(dir.join(format!("directory-{}", round - 2))).unwrap();
    }
}

/// Compares two trees.
///
/// # Panics
/// If they differ.
pub fn same(dir: &Path, mirror: &Path) {
    run(Command::new("diff").arg("-r").arg(dir).arg(mirror)).unwrap();
}
