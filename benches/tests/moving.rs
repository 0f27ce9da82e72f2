//! Volumes that move from one server to another while programs use them: nothing is lost, nothing is done twice, and nobody is
//! told an error, whoever dies on the way.
#![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use larder_benches::chores::{same, work};
use larder_benches::many_servers::{Directory, ManyServers};
use larder_benches::mount::{Mode, Mount};
use larder_benches::process::{SetAtEnd, have_own_files, run};
use larder_benches::size::Size;
use larder_benches::source::Source;
use larder_server::failpoint::Failpoint;

/// How long something may take that is waited for.
const WITHIN: Duration = Duration::from_secs(60);
/// The volume that moves.
const VOLUME: &str = "data";

/// Three servers, of which the first has the directory and the others, in turns, the volume; and a mount of each mode.
struct World {
    // In the order in which they end.
    mounts: Vec<Mount>,
    cell: ManyServers,
}

impl World {
    fn new(modes: &[Mode], directory: Directory) -> World {
        let cell = ManyServers::new(3, directory);
        let mount = |mode: &Mode| cell.mount(mode.name(), 0, *mode, "hard");
        let mounts: Vec<Mount> = modes.iter().map(mount).collect();
        cell.add(1, &mounts[0], VOLUME);
        World { mounts, cell }
    }

    fn move_to(&self, server: usize) -> String {
        self.cell.larder(0, &["volume", "move", VOLUME, self.cell.servers[server].address()])
    }

    fn end(self) {
        let World { cell, mounts } = self;
        mounts.into_iter().for_each(|mount| mount.close(false).unwrap());
        cell.end();
    }
}

/// Programs that work in the volume until they are told to stop.
fn with_programs(world: &mut World, meanwhile: impl FnOnce(&mut ManyServers)) {
    let is_over = AtomicBool::new(false);
    let (is_over, mounts) = (&is_over, &world.mounts);
    let mirrors: Vec<_> =
        mounts.iter().map(|mount| world.cell.dir.path().join(format!("{}-mirror", mount.mode().name()))).collect();
    for (mount, mirror) in mounts.iter().zip(&mirrors) {
        let dir = mount.at(VOLUME).join(mount.mode().name());
        if !mirror.exists() {
            fs::create_dir(&dir).unwrap();
            fs::create_dir(mirror).unwrap();
        }
    }
    let begin = mirrors.iter().map(|mirror| rounds_done(mirror)).collect::<Vec<_>>();
    let cell = &mut world.cell;
    thread::scope(|scope| {
        for ((mount, mirror), begin) in mounts.iter().zip(&mirrors).zip(begin) {
            scope.spawn(move || {
                // SAFETY: all that it opens it opens from here on. (Servers are started beside it.)
                unsafe { have_own_files() }.unwrap();
                let dir = mount.at(VOLUME).join(mount.mode().name());
                for round in begin.. {
                    work(&dir, round);
                    work(mirror, round);
                    fs::write(mirror.with_extension("round"), (round + 1).to_string()).unwrap();
                    if is_over.load(Ordering::SeqCst) {
                        return;
                    }
                }
            });
        }
        let _end = SetAtEnd(is_over);
        meanwhile(cell);
    });
    for (mount, mirror) in mounts.iter().zip(&mirrors) {
        // What one client has done all others see.
        for other in mounts {
            same(&other.at(VOLUME).join(mount.mode().name()), mirror);
        }
    }
}

fn rounds_done(mirror: &Path) -> usize {
    fs::read_to_string(mirror.with_extension("round")).map_or(0, |round| round.parse().unwrap())
}

/// Inode numbers by path.
fn numbers(dir: &Path) -> BTreeMap<String, u64> {
    let output = run(Command::new("find").arg(dir).args(["-printf", "%P %i\n"])).unwrap();
    let lines = String::from_utf8(output.stdout).unwrap();
    let pair = |line: &str| line.rsplit_once(' ').map(|(path, number)| (path.to_owned(), number.parse().unwrap()));
    lines.lines().filter_map(pair).collect()
}

#[test]
fn a_volume_moves_back_and_forth_under_programs() {
    let mut world = World::new(&Mode::ALL, Directory::Embedded);
    let still = world.mounts[0].at(VOLUME).join("still");
    fs::create_dir(&still).unwrap();
    for number in 0..Size::get().pick(50, 200, 2000) {
        fs::write(still.join(format!("file-{number}")), "x".repeat(number * 97)).unwrap();
    }
    // Most of it is a hole, and so large that nobody must go through it byte by byte.
    let sparse = File::create(still.join("sparse")).unwrap();
    sparse.write_all_at(&[1; 200_000], 0).unwrap();
    sparse.write_all_at(&[2; 200_000], 1 << 41).unwrap();
    sparse.set_len(1 << 42).unwrap();
    drop(sparse);
    let before = numbers(&still);
    with_programs(&mut world, |cell| {
        for turn in 0..Size::get().pick(4, 8, 40) {
            let to = 1 + (turn + 1) % 2;
            let told = cell.larder(0, &["volume", "move", VOLUME, cell.servers[to].address()]);
            assert!(told.contains("is at"), "{told}");
            print!("{told}");
            assert_eq!((cell.place_of(VOLUME), cell.copies_of(VOLUME)), (to, vec![to]));
        }
    });
    for mount in &world.mounts {
        let still = mount.at(VOLUME).join("still");
        assert_eq!(numbers(&still), before, "{}", mount.mode().name());
        let sparse = fs::metadata(still.join("sparse")).unwrap();
        assert!(sparse.len() == 1 << 42 && sparse.blocks() < 4096, "{} blocks", sparse.blocks());
        if mount.mode() != Mode::Afs {
            let (sparse, mut bytes) = (File::open(still.join("sparse")).unwrap(), [0; 3]);
            for (at, expected) in [(100, [1; 3]), ((1 << 41) + 199_998, [2, 2, 0]), (1 << 40, [0; 3])] {
                sparse.read_exact_at(&mut bytes, at).unwrap();
                assert_eq!(bytes, expected);
            }
        }
    }
    world.end();
}

#[test]
fn open_files_removed_ones_and_what_is_not_written_back_survive_a_move() {
    let world = World::new(&Mode::ALL, Directory::Embedded);
    for mount in &world.mounts {
        let dir = mount.at(VOLUME).join(mount.mode().name());
        fs::create_dir(&dir).unwrap();
        let open = |name: &str| {
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(dir.join(name)).unwrap()
        };
        let (mut kept, mut removed, mut locked) = (open("kept"), open("removed"), open("log"));
        kept.write_all(&[7; 300_000]).unwrap();
        removed.write_all(b"no name any more").unwrap();
        locked.write_all(b"one ").unwrap();
        fs::remove_file(dir.join("removed")).unwrap();
        let number = kept.metadata().unwrap().ino();
        for to in [2, 1] {
            world.move_to(to);
            // What was written before is there, whether it had come to the server or not.
            let mut read = Vec::new();
            kept.seek(SeekFrom::Start(0)).unwrap();
            kept.read_to_end(&mut read).unwrap();
            assert!(read.len() == 300_000 && read.iter().all(|byte| *byte == 7), "{}", mount.mode().name());
            kept.write_all_at(&[7; 10], 200_000).unwrap();
            let mut text = String::new();
            removed.seek(SeekFrom::Start(0)).unwrap();
            removed.read_to_string(&mut text).unwrap();
            assert_eq!(text, "no name any more");
            locked.write_all(b"two ").unwrap();
            assert_eq!(kept.metadata().unwrap().ino(), number);
        }
        kept.sync_all().unwrap();
        drop((kept, removed, locked));
        assert_eq!(fs::read_to_string(dir.join("log")).unwrap(), "one two two ");
        assert_eq!(fs::metadata(dir.join("kept")).unwrap().ino(), number);
    }
    world.end();
}

fn git(dir: &Path, arguments: &[&str]) {
    let mut command = Command::new("git");
    command.args(["-c", "user.name=Larder", "-c", "user.email=larder@localhost", "-c", "safe.directory=*"]);
    command.args(["-c", "gc.auto=0", "-C"]).arg(dir).args(arguments);
    run(&mut command).unwrap();
}

/// Works in a directory until it is told to stop, and says how often.
type Chore = fn(&Path, &Path, &AtomicBool) -> usize;

const CHORES: [(&str, Chore); 3] = [
    ("fsx", |dir, given, is_over| {
        let mut runs = 0;
        while !is_over.load(Ordering::SeqCst) {
            runs += 1;
            let (file, artifacts) = (dir.join("file"), given.join(format!("artifacts-{}", runs)));
            fs::create_dir_all(&artifacts).unwrap();
            let mut fsx = Command::new("fsx");
            fsx.arg("-f").arg(given.join("fsx.toml")).args(["-S", &runs.to_string(), "-N", "500", "-P"]);
            run(fsx.arg(&artifacts).arg(&file)).unwrap();
            fs::remove_file(&file).unwrap();
            fs::remove_dir_all(&artifacts).unwrap();
        }
        runs
    }),
    ("untar", |dir, given, is_over| {
        let mut runs = 0;
        while !is_over.load(Ordering::SeqCst) {
            runs += 1;
            run(Command::new("tar").arg("xf").arg(given.join("tree.tar")).arg("-C").arg(dir)).unwrap();
            run(Command::new("diff").arg("-r").arg(given.join("tree")).arg(dir.join("tree"))).unwrap();
            fs::remove_dir_all(dir.join("tree")).unwrap();
        }
        runs
    }),
    ("git gc", |dir, given, is_over| {
        git(dir, &["init", "-q"]);
        let mut runs = 0;
        while !is_over.load(Ordering::SeqCst) {
            runs += 1;
            let file = runs % 100;
            let from = given.join(format!("tree/dir-{}/file-{file}", file % 37));
            fs::copy(from, dir.join(format!("file-{}", file % 7))).unwrap();
            git(dir, &["add", "-A"]);
            git(dir, &["commit", "-q", "--allow-empty", "-m", &runs.to_string()]);
            git(dir, &["gc", "-q", "--prune=now"]);
            git(dir, &["fsck", "--full"]);
        }
        runs
    }),
];

/// Does small things all the time, and says how long the longest took.
fn probe(dir: &Path, is_over: &AtomicBool) -> Duration {
    let mut longest = Duration::ZERO;
    let file = dir.join("probe");
    for round in 0_u32.. {
        let began = Instant::now();
        match round % 3 {
            0 => fs::write(&file, round.to_string()).unwrap(),
            1 => assert_eq!(fs::read_to_string(&file).unwrap(), (round - 1).to_string()),
            _ => {
                fs::rename(&file, dir.join("other")).unwrap();
                fs::rename(dir.join("other"), &file).unwrap();
            }
        }
        longest = longest.max(began.elapsed());
        if is_over.load(Ordering::SeqCst) {
            return longest;
        }
        thread::sleep(Duration::from_millis(5));
    }
    longest
}

#[test]
fn fsx_untar_and_git_gc_go_on_while_their_volume_moves() {
    let world = World::new(&[Mode::Nfs, Mode::Afs], Directory::Embedded);
    let given = world.cell.dir.path().join("given");
    let source = Source::new(&given, 500).unwrap();
    assert!(source.tree.ends_with("given/tree") && source.archive.ends_with("given/tree.tar"));
    // Without posix_fallocate: fsx 0.3 asks for an allocation of no bytes at times, and takes the error for the end.
    fs::write(given.join("fsx.toml"), "[weights]\nposix_fallocate = 0.0\npunch_hole = 1.0\ncopy_file_range = 1.0\n")
        .unwrap();
    let filled = world.mounts[0].at(VOLUME).join("filled");
    fs::create_dir(&filled).unwrap();
    let mib = Size::get().pick(16, 64, 1024);
    for number in 0..mib / 8 {
        fs::write(filled.join(number.to_string()), vec![number as u8; 8 << 20]).unwrap();
    }
    let is_over = AtomicBool::new(false);
    let (cell, is_over) = (&world.cell, &is_over);
    thread::scope(|scope| {
        let mut doing = Vec::new();
        let mut probing = Vec::new();
        for mount in &world.mounts {
            let name = mount.mode().name();
            for (chore, work) in CHORES {
                let (dir, given) =
                    (mount.at(VOLUME).join(format!("{name} {chore}")), given.join(format!("{name} {chore}")));
                fs::create_dir(&dir).unwrap();
                fs::create_dir(&given).unwrap();
                for what in ["tree", "tree.tar", "fsx.toml"] {
                    std::os::unix::fs::symlink(given.with_file_name(what), given.join(what)).unwrap();
                }
                doing.push((format!("{name} {chore}"), scope.spawn(move || work(&dir, &given, is_over))));
            }
            let dir = mount.at(VOLUME).join(name);
            fs::create_dir(&dir).unwrap();
            probing.push((name, scope.spawn(move || probe(&dir, is_over))));
        }
        {
            let _end = SetAtEnd(is_over);
            for turn in 0..Size::get().pick(2, 4, 20) {
                let to = 1 + (turn + 1) % 2;
                print!("{}", cell.larder(0, &["volume", "move", VOLUME, cell.servers[to].address()]));
                assert_eq!((cell.place_of(VOLUME), cell.copies_of(VOLUME)), (to, vec![to]));
            }
        }
        for (name, chore) in doing {
            let runs = chore.join().unwrap();
            assert!(runs > 0);
            println!("{name}: {runs} times");
        }
        for (name, probe) in probing {
            println!("{name}: the longest operation took {:?}", probe.join().unwrap());
        }
    });
    for number in 0..mib / 8 {
        let bytes = fs::read(filled.join(number.to_string())).unwrap();
        assert!(bytes.len() == 8 << 20 && bytes.iter().all(|byte| *byte == number as u8), "{number}");
    }
    world.end();
}

/// Moves the volume from 1 to 2 while one of them is to die at a place; then has it moved until it is there.
fn moves_although_one_dies(world: &mut World, point: Failpoint, dies: usize) {
    let to = 2;
    with_programs(world, |cell| {
        let mut command = cell.command(0, &["volume", "move", VOLUME, cell.servers[to].address()]);
        cell.servers[dies].kill().unwrap();
        let died = thread::scope(|scope| {
            let moving = scope.spawn(move || {
                // The servers are not all there at first, and it may be told that the move is cut off.
                let began = Instant::now();
                loop {
                    let output = command.output().unwrap();
                    let told = String::from_utf8_lossy(&output.stderr).into_owned();
                    if output.status.success() {
                        return;
                    }
                    assert!(began.elapsed() < WITHIN * 2, "{told}");
                    thread::sleep(Duration::from_millis(50));
                }
            });
            let died = cell.servers[dies].restart_to_die(&format!("{}=return", point.name()), WITHIN);
            // Whatever went wrong: programs wait for it.
            cell.servers[dies].restart().unwrap();
            moving.join().unwrap();
            died.unwrap()
        });
        assert!(died, "{}: it was not passed", point.name());
        assert_eq!(cell.place_of(VOLUME), to, "{}", point.name());
        // The copy that is left goes soon.
        let began = Instant::now();
        while cell.copies_of(VOLUME) != [to] {
            assert!(began.elapsed() < WITHIN, "{}: {:?}", point.name(), cell.copies_of(VOLUME));
            thread::sleep(Duration::from_millis(50));
        }
        cell.larder(0, &["volume", "move", VOLUME, cell.servers[1].address()]);
        assert_eq!((cell.place_of(VOLUME), cell.copies_of(VOLUME)), (1, vec![1]));
    });
}

/// Has a server die at each of these places, each time in a world of its own.
fn each_dies(points: &[Failpoint], dies: usize) {
    for point in points {
        let mut world = World::new(&Mode::ALL, Directory::Embedded);
        moves_although_one_dies(&mut world, *point, dies);
        world.end();
        println!("{}", point.name());
    }
}

#[test]
fn a_source_that_dies_on_the_way_has_the_volume_or_the_destination_has() {
    each_dies(&Failpoint::OF_SOURCES, 1);
}

#[test]
fn a_destination_that_dies_on_the_way_has_the_volume_or_the_source_has() {
    each_dies(&Failpoint::OF_DESTINATIONS, 2);
}

#[test]
fn a_move_goes_on_when_its_command_or_the_directory_is_killed() {
    let mut world = World::new(&Mode::ALL, Directory::Embedded);
    let large = world.mounts[0].at(VOLUME).join("large");
    let mut file = File::create(&large).unwrap();
    (0..64_u8).for_each(|number| file.write_all(&[number; 1 << 20]).unwrap());
    drop(file);
    with_programs(&mut world, |cell| {
        let slowly = ["volume", "move", VOLUME, cell.servers[2].address(), "--limit", "16M"];
        let mut moving = cell.command(0, &slowly).spawn().unwrap();
        thread::sleep(Duration::from_secs(1));
        moving.kill().unwrap();
        moving.wait().unwrap();
        cell.servers[0].kill().unwrap();
        thread::sleep(Duration::from_secs(1));
        cell.servers[0].restart().unwrap();
        // The directory has forgotten which servers are there; they tell it at once.
        let began = Instant::now();
        while cell.larder(0, &["server", "list"]).lines().count() < 4 {
            assert!(began.elapsed() < WITHIN);
        }
        let told = cell.larder(0, &["volume", "list"]);
        assert!(told.contains("moving"), "{told}");
        // Faster from now on.
        cell.larder(0, &["volume", "move", VOLUME, cell.servers[2].address()]);
        assert_eq!((cell.place_of(VOLUME), cell.copies_of(VOLUME)), (2, vec![2]));
    });
    world.end();
}

#[test]
fn a_move_can_be_given_up_and_what_was_copied_goes() {
    let world = World::new(&[Mode::Nfs], Directory::Etcd);
    let large = world.mounts[0].at(VOLUME).join("large");
    fs::write(&large, vec![1; 32 << 20]).unwrap();
    let [there, other] = [2, 0].map(|number: usize| world.cell.servers[number].address().to_owned());
    let mut moving = world.cell.command(0, &["volume", "move", VOLUME, &there, "--limit", "4M"]).spawn().unwrap();
    let began = Instant::now();
    while !world.cell.larder(0, &["volume", "list"]).contains("moving") {
        assert!(began.elapsed() < WITHIN);
    }
    let told = world.cell.refused(0, &["volume", "move", VOLUME, &other]);
    assert!(told.contains("--abort"), "{told}");
    let told = world.cell.refused(0, &["volume", "offline", VOLUME]);
    assert!(told.contains("moving"), "{told}");
    world.cell.larder(0, &["volume", "move", VOLUME, "--abort"]);
    assert!(!moving.wait().unwrap().success());
    assert_eq!((world.cell.place_of(VOLUME), world.cell.copies_of(VOLUME)), (1, vec![1]));
    let volumes = world.cell.servers[2].store().join("volumes");
    let left = || fs::read_dir(&volumes).unwrap().any(|entry| entry.unwrap().file_name() == ".arriving-2");
    let began = Instant::now();
    while left() {
        assert!(began.elapsed() < WITHIN, "what was copied is there still");
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(fs::read(&large).unwrap().len(), 32 << 20);
    let told = world.cell.refused(0, &["volume", "move", VOLUME, "--abort"]);
    assert!(told.contains("not moving"), "{told}");
    let told = world.cell.refused(0, &["volume", "move", VOLUME, "nowhere:1"]);
    assert!(told.contains("no server of this cell"), "{told}");
    world.move_to(2);
    world.end();
}
