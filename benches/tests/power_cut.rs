//! A power cut of the server right after programs on mounts of every mode were told that what they wrote is synced: it is
//! there, whatever the server's durability.
#![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use larder_benches::medium::Medium;
use larder_benches::mount::{Mode, Mount};
use larder_benches::process::scratch;
use larder_benches::server::Server;
use larder_benches::size::Size;

fn contents(mode: Mode, round: usize) -> Vec<u8> {
    // Those that stay in the metadata, and those that do not.
    let len = if round.is_multiple_of(2) { 700 } else { 300_000 };
    (0..len).map(|at| (at / 251 + at * 7 + round * 31 + mode as usize) as u8).collect()
}

/// Replaces a file as programs do that must not lose it: the new one is synced, renamed over the old one, and its directory
/// is synced.
fn replace(dir: &Path, mode: Mode, round: usize) {
    let (new, place) = (dir.join("new"), dir.join(format!("file-{}", round / 2)));
    let mut file = File::create(&new).unwrap();
    file.write_all(&contents(mode, round)).unwrap();
    file.sync_all().unwrap();
    drop(file);
    fs::rename(&new, &place).unwrap();
    File::open(dir).unwrap().sync_all().unwrap();
}

#[test]
fn what_a_program_has_synced_survives_a_power_cut_under_either_durability() {
    for durability in ["process", "power"] {
        let dir = scratch().unwrap();
        let mut disk = Medium::new(dir.path(), "disk", 128).unwrap();
        let mut server = Server::start_on(dir.path(), disk.path().join("store"), durability).unwrap();
        let mounts = Mode::ALL.map(|mode| Mount::new(dir.path(), mode.name(), &server, mode, "hard").unwrap());
        for mount in &mounts {
            fs::create_dir(mount.at(mount.mode().name())).unwrap();
        }
        for round in 0..Size::get().pick(3, 6, 40) {
            let last = &mounts[round % mounts.len()];
            for mount in mounts.iter().filter(|mount| mount.mode() != last.mode()).chain([last]) {
                replace(&mount.at(mount.mode().name()), mount.mode(), round);
            }
            // At once: what nobody asked for reaches the disk by itself a little later.
            let instant = disk.instant().unwrap();
            server.kill().unwrap();
            disk.go_back(instant).unwrap();
            server.restart().unwrap();
            let other = Mount::new(dir.path(), "other", &server, Mode::Direct, "").unwrap();
            for mode in Mode::ALL {
                let found = fs::read(other.at(mode.name()).join(format!("file-{}", round / 2)));
                let found =
                    found.unwrap_or_else(|error| panic!("{durability}, round {round}, {}: {error}", mode.name()));
                assert!(found == contents(mode, round), "{durability}, round {round}, {}", mode.name());
            }
            other.close(false).unwrap();
        }
        for mount in mounts {
            mount.close(false).unwrap();
        }
        server.check().unwrap();
    }
}
