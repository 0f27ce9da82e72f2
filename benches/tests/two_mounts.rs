//! What two clients of one server may rely on between them, in each mode.
#![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::{Duration, Instant};

use larder_benches::in_each_mode;
use larder_benches::mount::{Mode, Mount, Pair, wait_until};
use larder_benches::race::race;
use larder_benches::size::Size;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

in_each_mode![
    what_one_writes_and_closes_the_other_sees_at_its_next_open,
    attributes_are_never_older_than_acregmax,
    a_file_that_grows_is_read_whole_at_the_next_open,
    a_file_that_was_looked_at_and_grew_is_read_whole,
    attributes_that_a_lookup_brought_are_not_asked_for_again,
    names_are_never_older_than_acdirmax,
    appends_of_two_clients_lose_and_tear_nothing,
    a_file_that_another_client_removed_is_stale_or_kept,
    one_mkdir_wins,
    one_link_wins,
    one_exclusive_create_wins,
    one_rename_of_a_name_wins,
    one_rename_noreplace_to_a_name_wins,
    one_unlink_wins,
];

fn what_one_writes_and_closes_the_other_sees_at_its_next_open(mode: Mode) {
    let pair = Pair::new(mode, "").unwrap();
    let rounds = Size::get().pick(50, 200, 1_000);
    for round in 0..rounds {
        let (writer, reader) = if round.is_multiple_of(2) { (&pair.a, &pair.b) } else { (&pair.b, &pair.a) };
        // The same length in most rounds, so that neither size nor a coarse time can give the change away.
        let text = format!("{round:06}{}", "x".repeat(if round.is_multiple_of(10) { round * 7 } else { 100 }));
        fs::write(writer.at("shared"), &text).unwrap();
        let seen = fs::read_to_string(reader.at("shared")).unwrap();
        assert!(seen == text, "round {round}: an old version was read: {:?}", seen.get(..6));
    }
}

/// The reader never writes, so its kernel's idea of the size comes from the last look alone.
fn a_file_that_grows_is_read_whole_at_the_next_open(mode: Mode) {
    let pair = Pair::new(mode, "").unwrap();
    let mut text = String::new();
    for round in 0..Size::get().pick(20, 150, 1_000) {
        text.push_str(&format!("{round:06}\n"));
        fs::write(pair.a.at("growing"), &text).unwrap();
        let file = fs::File::open(pair.b.at("growing")).unwrap();
        assert_eq!(file.metadata().unwrap().len(), text.len() as u64, "round {round}: an old size after open");
        assert!(std::io::read_to_string(&file).unwrap() == text, "round {round}: an old version was read");
        drop(file);
        assert_eq!(fs::metadata(pair.b.at("growing")).unwrap().len(), text.len() as u64);
    }
}

/// The reader's kernel has one idea of the size, and an old one.
fn a_file_that_was_looked_at_and_grew_is_read_whole(mode: Mode) {
    let pair = Pair::new(mode, "").unwrap();
    for round in 0..Size::get().pick(20, 100, 1_000) {
        let name = format!("file-{round}");
        fs::write(pair.a.at(&name), "short").unwrap();
        assert_eq!(fs::metadata(pair.b.at(&name)).unwrap().len(), 5);
        fs::write(pair.a.at(&name), "long enough to tell").unwrap();
        let mut text = [0; 100];
        let len = fs::File::open(pair.b.at(&name)).unwrap().read(&mut text).unwrap();
        assert_eq!(&text[..len], b"long enough to tell", "round {round}: an old size");
    }
}

/// A file that is opened for the first time has the size that the lookup has shown: the kernel has no reason to ask again.
fn attributes_that_a_lookup_brought_are_not_asked_for_again(mode: Mode) {
    if mode == Mode::Direct {
        return;
    }
    let pair = Pair::new(mode, "").unwrap();
    let files = 50;
    let names: Vec<String> = (0..files).map(|file| format!("file-{file}")).collect();
    for name in &names {
        fs::write(pair.a.at(name), name).unwrap();
    }
    // What is asked for beside that: the directory.
    fs::metadata(pair.b.path()).unwrap();
    let hits = || pair.b.stats().unwrap()["hits"].as_u64().unwrap();
    let before = hits();
    for name in &names {
        assert_eq!(&fs::read_to_string(pair.b.at(name)).unwrap(), name);
    }
    // The copy that is opened and read is a hit, too.
    let of_copies = if mode == Mode::Afs { 2 * files } else { 0 };
    let asked = (hits() - before).saturating_sub(of_copies);
    assert!(asked < files / 2, "{asked} times for {files} files");
}

/// Asks `look` from before until after the bound; every answer asked for later than `bound` after the change must
/// be the new one.
fn fresh_after(bound: Duration, changed: Instant, what: &str, mut look: impl FnMut() -> bool) {
    let mut fresh_at = None;
    loop {
        let asked = Instant::now();
        let fresh = look();
        if fresh {
            fresh_at.get_or_insert(asked - changed);
        } else {
            assert!(asked - changed <= bound, "{what}: still old {:?} after the change", asked - changed);
            assert!(fresh_at.is_none(), "{what}: old again after it was seen {fresh_at:?} after the change");
        }
        if asked - changed > bound + Duration::from_millis(200) {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn attributes_are_never_older_than_acregmax(mode: Mode) {
    let pair = Pair::new(mode, "acregmin=1,acregmax=2").unwrap();
    let bound = if mode == Mode::Nfs { Duration::from_secs(2) } else { Duration::ZERO };
    fs::write(pair.a.at("file"), "").unwrap();
    for round in 0..Size::get().pick(1, 3, 10) as u32 {
        let bits = 0o600 + round % 8;
        let look = || fs::metadata(pair.b.at("file")).unwrap().mode() & 0o777 == bits;
        assert!(!look(), "not changed yet");
        fs::set_permissions(pair.a.at("file"), Permissions::from_mode(0o100_000 | bits)).unwrap();
        fresh_after(bound, Instant::now(), "a mode", look);
    }
}

fn names_are_never_older_than_acdirmax(mode: Mode) {
    let pair = Pair::new(mode, "acdirmin=1,acdirmax=2").unwrap();
    let bound = if mode == Mode::Nfs { Duration::from_secs(2) } else { Duration::ZERO };
    for round in 0..Size::get().pick(1, 3, 10) {
        let name = format!("name-{round}");
        assert!(!pair.b.at(&name).exists(), "its absence is remembered from here on");
        File::create_new(pair.a.at(&name)).unwrap();
        fresh_after(bound, Instant::now(), "a new name", || pair.b.at(&name).exists());
        fs::remove_file(pair.a.at(&name)).unwrap();
        fresh_after(bound, Instant::now(), "a removed name", || !pair.b.at(&name).exists());
    }
}

fn appends_of_two_clients_lose_and_tear_nothing(mode: Mode) {
    let pair = Pair::new(mode, "").unwrap();
    let lines = Size::get().pick(500, 2_000, 10_000);
    fs::write(pair.a.at("log"), "").unwrap();
    let line = |who: char, i: usize| {
        // Some lines are longer than a page, so that a torn one would show.
        let len = if i.is_multiple_of(50) { 9_000 } else { i % 200 };
        format!("{who} {i} {}\n", who.to_string().repeat(len))
    };
    std::thread::scope(|scope| {
        for (who, mount) in [('A', &pair.a), ('B', &pair.b)] {
            scope.spawn(move || {
                let mut log = OpenOptions::new().append(true).open(mount.at("log")).unwrap();
                for i in 0..lines {
                    // One write(2) for each line.
                    assert_eq!(log.write(line(who, i).as_bytes()).unwrap(), line(who, i).len());
                }
            });
        }
    });
    for mount in [&pair.a, &pair.b] {
        let mut next = BTreeMap::from([('A', 0), ('B', 0)]);
        for found in fs::read_to_string(mount.at("log")).unwrap().split_inclusive('\n') {
            let who = found.chars().next().unwrap();
            let i = next.get_mut(&who).unwrap_or_else(|| panic!("a torn line: {found:.40}"));
            assert!(found == line(who, *i), "line {i} of {who} is lost, out of order or torn: {found:.40}");
            *i += 1;
        }
        let whole = |who| next[&who] == lines;
        if mode == Mode::Afs {
            // The last to close wins. Whoever opened after the other had closed has the other's lines too.
            let none = |who| next[&who] == 0;
            assert!(whole('A') && (whole('B') || none('B')) || whole('B') && none('A'), "{next:?}");
        } else {
            assert!(whole('A') && whole('B'), "{next:?}");
        }
    }
    let seen = [&pair.a, &pair.b].map(|mount| fs::read(mount.at("log")).unwrap());
    assert!(seen[0] == seen[1], "the two see different files");
}

fn a_file_that_another_client_removed_is_stale_or_kept(mode: Mode) {
    let pair = Pair::new(mode, "").unwrap();
    fs::write(pair.a.at("file"), "x".repeat(100_000)).unwrap();
    let mut open = File::open(pair.b.at("file")).unwrap();
    // Of a client that has files open, the server keeps what it removes for a second or so; and the kernel closes by the way.
    wait_until("what was closed is not open", || pair.a.stats().unwrap()["handles"] == 0);
    fs::remove_file(pair.a.at("file")).unwrap();
    let mut buffer = Vec::new();
    if mode == Mode::Afs {
        // It keeps the version that it had at open.
        assert_eq!(open.metadata().unwrap().nlink(), 0);
        assert_eq!(open.read_to_end(&mut buffer).unwrap(), 100_000);
        assert!(buffer.iter().all(|byte| *byte == b'x'));
        drop(open);
        assert_eq!(File::open(pair.b.at("file")).unwrap_err().kind(), ErrorKind::NotFound);
        return;
    }
    let error = open.read_to_end(&mut buffer).expect_err("the file is gone");
    assert_eq!(error.raw_os_error(), Some(Errno::STALE.raw_os_error()));
    assert_eq!(File::open(pair.b.at("file")).unwrap_err().kind(), ErrorKind::NotFound);
}

/// Lets the two mounts race, and requires that exactly one succeeds and the other fails with `loser`.
fn one_wins(
    pair: &Pair,
    loser: Errno,
    mut prepare: impl FnMut(usize),
    act: impl Fn(&Mount, char, usize) -> std::io::Result<()> + Sync,
    mut inspect: impl FnMut(usize, char),
) {
    let rounds = Size::get().pick(100, 400, 10_000);
    let mut wins = [0, 0];
    race(
        rounds,
        &mut prepare,
        |round| act(&pair.a, 'a', round),
        |round| act(&pair.b, 'b', round),
        |round, a, b| {
            let (winner, lost) = match (a, b) {
                (Ok(()), Err(error)) => ('a', error),
                (Err(error), Ok(())) => ('b', error),
                other => panic!("round {round}: {other:?}: not exactly one won"),
            };
            assert_eq!(lost.raw_os_error(), Some(loser.raw_os_error()), "round {round}: {lost}");
            wins[usize::from(winner == 'b')] += 1;
            inspect(round, winner);
        },
    );
    println!("a won {} and b won {} of {rounds} rounds", wins[0], wins[1]);
}

fn one_mkdir_wins(mode: Mode) {
    let pair = Pair::new(mode, "").unwrap();
    let act = |mount: &Mount, _, round: usize| fs::create_dir(mount.at(format!("dir-{round}")));
    one_wins(&pair, Errno::EXIST, |_| (), act, |_, _| ());
}

fn one_link_wins(mode: Mode) {
    let pair = Pair::new(mode, "").unwrap();
    fs::write(pair.a.at("from-a"), "a").unwrap();
    fs::write(pair.a.at("from-b"), "b").unwrap();
    let act = |mount: &Mount, who, round: usize| {
        fs::hard_link(mount.at(format!("from-{who}")), mount.at(format!("link-{round}")))
    };
    let inspect = |round: usize, winner: char| {
        assert_eq!(fs::read_to_string(pair.a.at(format!("link-{round}"))).unwrap(), winner.to_string());
    };
    one_wins(&pair, Errno::EXIST, |_| (), act, inspect);
}

fn one_exclusive_create_wins(mode: Mode) {
    let pair = Pair::new(mode, "").unwrap();
    let act = |mount: &Mount, who: char, round: usize| {
        File::create_new(mount.at(format!("file-{round}")))?.write_all(who.to_string().as_bytes())
    };
    let inspect = |round: usize, winner: char| {
        assert_eq!(fs::read_to_string(pair.a.at(format!("file-{round}"))).unwrap(), winner.to_string());
    };
    one_wins(&pair, Errno::EXIST, |_| (), act, inspect);
}

fn one_rename_of_a_name_wins(mode: Mode) {
    let pair = Pair::new(mode, "").unwrap();
    let prepare = |round: usize| fs::write(pair.a.at(format!("from-{round}")), "moved").unwrap();
    let act = |mount: &Mount, who, round: usize| {
        fs::rename(mount.at(format!("from-{round}")), mount.at(format!("{who}-{round}")))
    };
    let inspect = |round: usize, winner: char| {
        assert_eq!(fs::read_to_string(pair.a.at(format!("{winner}-{round}"))).unwrap(), "moved");
    };
    one_wins(&pair, Errno::NOENT, prepare, act, inspect);
}

fn one_rename_noreplace_to_a_name_wins(mode: Mode) {
    let pair = Pair::new(mode, "").unwrap();
    let prepare = |round: usize| {
        fs::write(pair.a.at(format!("a-{round}")), "a").unwrap();
        fs::write(pair.b.at(format!("b-{round}")), "b").unwrap();
    };
    let act = |mount: &Mount, who, round: usize| {
        let (from, to) = (mount.at(format!("{who}-{round}")), mount.at(format!("to-{round}")));
        Ok(renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?)
    };
    let inspect = |round: usize, winner: char| {
        assert_eq!(fs::read_to_string(pair.a.at(format!("to-{round}"))).unwrap(), winner.to_string());
    };
    one_wins(&pair, Errno::EXIST, prepare, act, inspect);
}

fn one_unlink_wins(mode: Mode) {
    let pair = Pair::new(mode, "").unwrap();
    let prepare = |round: usize| fs::write(pair.a.at(format!("file-{round}")), "").unwrap();
    let act = |mount: &Mount, _, round: usize| fs::remove_file(mount.at(format!("file-{round}")));
    one_wins(&pair, Errno::NOENT, prepare, act, |_, _| ());
}

/// Whoever waits for data to be sent may look just when it was refused; and whoever starts another program has that close
/// what it inherits, with no eye for the result.
#[test]
fn what_the_server_refuses_is_told_by_fsync_whoever_closes_before() {
    let pair = Pair::new(Mode::Nfs, "").unwrap();
    let rounds = Size::get().pick(10, 60, 1_000);
    let refuse = |program: usize| {
        for round in 0..rounds {
            let name = format!("removed-{program}-{round}");
            let mut file = File::create(pair.a.at(&name)).unwrap();
            fs::remove_file(pair.b.at(&name)).unwrap();
            file.write_all(&vec![1; 2 << 20]).unwrap();
            if round % 2 == 0 {
                drop(file.try_clone().unwrap());
            }
            assert!(file.sync_all().is_err(), "round {round}: nothing of it is there, and fsync says that it is");
        }
    };
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..4).map(|program| scope.spawn(move || refuse(program))).collect();
        running.into_iter().for_each(|one| one.join().unwrap());
    });
}
