//! Real mounts, and a volume that moves from server to server under them: there is one order of all operations all the same.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use larder_benches::many_servers::{Directory, ManyServers};
use larder_benches::mount::{Mode, Mount};
use larder_benches::process::{SetAtEnd, have_own_files};
use larder_benches::size::Size;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::contents::Value;
use crate::history::History;
use crate::worker::file_name;
use crate::{CLIENTS, FILES};

/// The volume.
const VOLUME: &str = "moving";
/// Where a file's contents begin to be kept outside of the metadata, in bytes.
const LARGE: u32 = 16 << 10;

/// A program on one of the mounts.
fn work(history: &History, client: usize, dir: &Path, is_over: &AtomicBool) {
    let mut random = SmallRng::seed_from_u64(client as u64);
    while !is_over.load(Ordering::SeqCst) {
        let file = random.random_range(0..FILES);
        let path = dir.join(file_name(file));
        let began = history.now();
        match random.random_range(0..10) {
            0..3 => {
                let about = if random.random_bool(0.5) { 100 } else { 2 * LARGE };
                let value = Value::new(history.new_id(), history.new_size(file, about));
                let ticket = history.may_write(client, file, value);
                fs::write(&path, value.range(0, value.len())).unwrap();
                history.written(ticket);
            }
            3..6 => {
                let size = fs::metadata(&path).unwrap().len();
                history.size(client, file, began, u32::try_from(size).unwrap());
            }
            _ => {
                let bytes = fs::read(&path).unwrap();
                history.read(client, file, began, history.now(), Value::of(&bytes, &file_name(file)));
            }
        }
    }
}

#[test]
fn clients_see_one_order_of_everything_while_the_volume_moves() {
    let cell = ManyServers::new(2, Directory::Embedded);
    let mounts: Vec<Mount> =
        (0..CLIENTS).map(|client| cell.mount(&format!("client-{client}"), client % 2, Mode::Afs, "hard")).collect();
    cell.add(1, &mounts[0], VOLUME);
    let history = History::new(FILES, &[]);
    for file in 0..FILES {
        fs::write(mounts[0].at(VOLUME).join(file_name(file)), "").unwrap();
    }
    let (is_over, history) = (AtomicBool::new(false), &*history);
    let is_over = &is_over;
    thread::scope(|scope| {
        for (client, mount) in mounts.iter().enumerate() {
            scope.spawn(move || {
                // SAFETY: all that it opens it opens from here on.
                unsafe { have_own_files() }.unwrap();
                work(history, client, &mount.at(VOLUME), is_over);
            });
        }
        let _end = SetAtEnd(is_over);
        for turn in 0..Size::get().pick(4, 10, 40) {
            print!("{}", cell.larder(0, &["volume", "move", VOLUME, cell.servers[turn % 2].address()]));
        }
    });
    let counts = history.counts();
    assert!(counts.reads > 100 && counts.writes > 100 && counts.unknown == 0, "{counts:?}");
    history.check(std::time::Duration::ZERO).unwrap();
    println!("{counts:?}");
    mounts.into_iter().for_each(|mount| mount.close(false).unwrap());
    cell.end();
}
