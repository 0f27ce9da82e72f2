//! The server, the client and the program are killed at once, again and again, while sqlite3 commits transactions: what it
//! said it has committed is there, and the database is sound.
#![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use larder_benches::in_each_mode;
use larder_benches::mount::{Mode, Mount, Setup};
use larder_benches::process::{run, scratch};
use larder_benches::server::Server;
use larder_benches::size::Size;
use rand::Rng;
use rustix::process::Signal;

in_each_mode![what_sqlite_has_committed_survives_the_end_of_everything];

/// Transactions that a program may begin in one life: more than it comes to.
const TRANSACTIONS: u64 = 5_000;
/// How long a life lasts at most, once transactions are being committed.
const LIFE: Duration = Duration::from_millis(800);
/// How long until the first of them is.
const PATIENCE: Duration = Duration::from_secs(60);
/// The term of leases, in seconds: a client that is gone holds the next one up for so long at most.
const LEASE: &str = "1";

fn sql(database: &Path, text: &str) -> String {
    let output = run(Command::new("sqlite3").arg("-batch").arg(database).arg(text)).unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A program that commits transactions with the numbers after `last`, each of which changes two tables, and says each
/// number when it is committed.
fn committing(database: &Path, script: &Path, last: u64) -> Child {
    let mut file = File::create(script).unwrap();
    writeln!(file, "PRAGMA journal_mode=DELETE; PRAGMA synchronous=FULL;").unwrap();
    for number in last + 1..=last + TRANSACTIONS {
        let size = number * 37 % 3_000;
        writeln!(
            file,
            "BEGIN; INSERT INTO log VALUES({number}, hex(randomblob({size}))); \
             UPDATE sums SET count = count + 1, sum = sum + {number}; COMMIT; SELECT 'committed', {number};"
        )
        .unwrap();
    }
    drop(file);
    // It would keep what it says until there is much of it.
    let mut command = Command::new("stdbuf");
    command.args(["-oL", "sqlite3", "-batch"]).arg(database).stdin(File::open(script).unwrap());
    command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}

fn what_sqlite_has_committed_survives_the_end_of_everything(mode: Mode) {
    let kills = Size::get().pick(2, 6, 100);
    let dir = scratch().unwrap();
    let cache = dir.path().join("cache");
    let mut server =
        Server::start_of(dir.path(), dir.path().join("store"), "process", &["--lease-term", LEASE]).unwrap();
    let mount = |server: &Server, life: usize| {
        let setup = Setup { cache: Some(&cache), options: "hard", ..Setup::default() };
        Mount::set_up(dir.path(), &format!("mnt-{life}"), server.address(), mode, &setup).unwrap()
    };
    let mut mounted = mount(&server, 0);
    let tables = "CREATE TABLE log(number INTEGER PRIMARY KEY, data TEXT); \
                  CREATE TABLE sums(count INTEGER, sum INTEGER); INSERT INTO sums VALUES(0, 0);";
    sql(&mounted.at("database"), tables);
    let (mut last, mut random, mut hot) = (0, rand::rng(), 0);
    for life in 1..=kills {
        let mut program = committing(&mounted.at("database"), &dir.path().join("script"), last);
        let committed = AtomicU64::new(last);
        let said = BufReader::new(program.stdout.take().unwrap());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for line in said.lines().map_while(Result::ok) {
                    if let Some(number) = line.strip_prefix("committed|") {
                        committed.store(number.parse().unwrap(), Ordering::SeqCst);
                    }
                }
            });
            let begun = Instant::now();
            while committed.load(Ordering::SeqCst) == last {
                if begun.elapsed() > PATIENCE {
                    // Lest its reader waits for ever.
                    program.kill().unwrap();
                    panic!("nothing is committed");
                }
                sleep(Duration::from_millis(1));
            }
            sleep(LIFE.mul_f64(random.random()));
            program.kill().unwrap();
            mounted.signal(Signal::KILL).unwrap();
            server.kill().unwrap();
            program.wait().unwrap();
        });
        mounted.bury().unwrap();
        server.restart().unwrap();
        mounted = mount(&server, life);
        hot += u64::from(fs::exists(mounted.at("database-journal")).unwrap());
        let database = mounted.at("database");
        assert_eq!(sql(&database, "PRAGMA integrity_check"), "ok", "life {life}");
        let committed = committed.into_inner();
        let there: u64 = sql(&database, "SELECT max(number) FROM log").parse().unwrap();
        // The one that was under way may be there.
        assert!(
            (committed..=committed + 1).contains(&there),
            "life {life}: {committed} were committed, {there} are there"
        );
        let sums =
            sql(&database, "SELECT count, sum, (SELECT count(*) FROM log), (SELECT sum(number) FROM log) FROM sums");
        let sum = there * (there + 1) / 2;
        assert_eq!(sums, format!("{there}|{sum}|{there}|{sum}"), "life {life}");
        last = there;
    }
    println!("{}: {kills} kills, {last} transactions, {hot} times a journal was left", mode.name());
    assert!(last >= kills as u64);
    mounted.close(false).unwrap();
    server.check().unwrap();
}
