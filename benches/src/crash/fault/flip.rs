//! Bits that flip on a disk: of a file's contents, of its record, and of a copy in a client's cache.
//!
//! What is damaged is a file that is made for it, so that all others must stay as they are. Whoever reads it gets an I/O
//! error, or what was written, and nothing else.

use std::fs::{self, File, FileTimes, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use larder_protocol::ids::{MAX_VNODE, ROOT_VNODE};
use rand::Rng;
use rand::rngs::SmallRng;
use rusqlite::{Connection, OpenFlags, OptionalExtension};
use rustix::io::Errno;
use serde_json::Value;

use crate::crash::world::World;
use crate::mount::Mode;
use crate::process::{binary, run, store};

/// Bytes of a victim: more than fit into the metadata, so that there is a content file.
const LEN: (usize, usize) = (20_000, 300_000);
/// Bytes of one that fits.
const SMALL: (usize, usize) = (1, 16_384);
/// How long a server may take to settle a file that nobody writes any more.
const SETTLED_WITHIN: Duration = Duration::from_secs(20);

/// A row of a file's metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Row {
    /// Its record.
    Record,
    /// Its contents, if they are small.
    Contents,
    /// The checksums of its contents, if these are in a file.
    Checksums,
}

impl Row {
    const ALL: [Row; 3] = [Row::Record, Row::Contents, Row::Checksums];

    fn table(self) -> &'static str {
        match self {
            Row::Record => "vnodes",
            Row::Contents => "inline",
            Row::Checksums => "checksums",
        }
    }

    fn what(self) -> &'static str {
        match self {
            Row::Record => "the record",
            Row::Contents => "the contents in the metadata",
            Row::Checksums => "the checksums",
        }
    }
}

/// A file that is to be damaged.
struct Victim {
    name: String,
    vnode: u64,
    contents: Vec<u8>,
}

fn volume(store: &Path) -> PathBuf {
    store.join("volumes/1-root")
}

fn database(store: &Path, flags: OpenFlags) -> Result<Connection> {
    let path = volume(store).join("meta.sqlite");
    let connection = Connection::open_with_flags(&path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(SETTLED_WITHIN)?;
    Ok(connection)
}

/// The first row of a table that belongs to a vnode: its key and value.
fn row(connection: &Connection, table: &str, vnode: u64) -> Result<Option<(rusqlite::types::Value, Vec<u8>)>> {
    // Keys are numbers where there is one row for a vnode, and begin with its number elsewhere.
    let sql =
        format!("SELECT k, v FROM {table} WHERE k = ?1 OR (typeof(k) = 'blob' AND substr(k, 1, 8) = ?2) ORDER BY k");
    let key = rusqlite::params![vnode as i64, vnode.to_be_bytes().to_vec()];
    Ok(connection.query_row(&sql, key, |row| Ok((row.get(0)?, row.get(1)?))).optional()?)
}

/// Makes a file with contents of their own, or with small ones, and waits until the server knows what these are to be.
fn victim(world: &World, mode: Mode, is_small: bool, random: &mut SmallRng) -> Result<Victim> {
    let len = if is_small { SMALL } else { LEN };
    let mut contents = vec![0; random.random_range(len.0..len.1)];
    random.fill(&mut contents[..]);
    let name = world.victim_name();
    let mount = world.stranger("victim", mode)?;
    let path = mount.at(&name);
    store(&path, &contents)?;
    let file = File::open(&path)?;
    file.sync_all()?;
    let vnode = file.metadata()?.ino() & MAX_VNODE;
    drop(file);
    mount.close(false)?;
    let connection = database(&world.store(), OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let known = if is_small { Row::Contents } else { Row::Checksums };
    let begin = Instant::now();
    while row(&connection, "dirty", vnode)?.is_some() || row(&connection, known.table(), vnode)?.is_none() {
        ensure!(begin.elapsed() < SETTLED_WITHIN, "{name} is not settled after {SETTLED_WITHIN:?}");
        thread::sleep(Duration::from_millis(100));
    }
    Ok(Victim { name, vnode, contents })
}

/// Flips a bit of a file.
fn flip_file(path: &Path, at: u64, bit: u32) -> Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    byte[0] ^= 1 << bit;
    file.write_all_at(&byte, at)?;
    file.sync_all()?;
    Ok(())
}

/// Flips a bit of a row's value.
fn flip_row(store: &Path, which: Row, vnode: u64, random: &mut SmallRng) -> Result<()> {
    let (connection, table) = (database(store, OpenFlags::SQLITE_OPEN_READ_WRITE)?, which.table());
    let found = row(&connection, table, vnode)?;
    let (key, mut value) = found.with_context(|| format!("vnode {vnode} has no row in {table}"))?;
    let at = random.random_range(0..value.len());
    value[at] ^= 1 << random.random_range(0..8);
    connection.execute(&format!("UPDATE {table} SET v = ?2 WHERE k = ?1"), rusqlite::params![key, value])?;
    Ok(())
}

/// The files below a directory, at any depth.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() { found.extend(files(&path)?) } else { found.push(path) }
    }
    Ok(found)
}

/// Whether what was read is what may be: an error that says it is damaged, or what was written.
fn verdict(read: io::Result<Vec<u8>>, expected: &[u8], may_be_cached: bool) -> Result<()> {
    match read {
        Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => Ok(()),
        Err(error) => bail!("reading what is damaged fails with {error}"),
        Ok(bytes) if bytes != expected => bail!("{} bytes were read that nobody wrote", bytes.len()),
        Ok(_) => {
            ensure!(may_be_cached, "what is damaged was read without an error, and without a cache");
            Ok(())
        }
    }
}

/// Whether a check has found this vnode and no other. Of a record that is lost the directory above and the counters of
/// the volume know, too.
fn names_only(report: &Value, vnode: u64, is_lost: bool) -> Result<()> {
    let findings = report["findings"].as_array().context("a check has no findings")?;
    let of = |finding: &Value| finding["vnode"].as_u64();
    ensure!(findings.iter().any(|finding| of(finding) == Some(vnode)), "larderd check does not find vnode {vnode}");
    let follows = |finding: &Value| is_lost && of(finding).is_none_or(|of| of == ROOT_VNODE);
    let strange: Vec<_> = findings.iter().filter(|finding| of(finding) != Some(vnode) && !follows(finding)).collect();
    ensure!(strange.is_empty(), "larderd check finds more than vnode {vnode}: {strange:?}");
    Ok(())
}

/// What `larderd check` says of a store that is not sound.
fn check(store: &Path, repair: bool) -> Result<Value> {
    let mut command = Command::new(binary("larderd")?);
    command.args(["check", "--json", "--store"]).arg(store).args(repair.then_some("--repair"));
    let output = command.output()?;
    ensure!(output.status.code() == Some(1), "{command:?} ends with {}", output.status);
    serde_json::from_slice(&output.stdout).context("reading what larderd check says")
}

/// By way of all mounts there are, and of fresh ones: nobody reads what was not written.
fn read_everywhere(world: &World, victim: &Victim) -> Result<()> {
    for (number, seat) in world.seats.iter().enumerate() {
        let (_, mount) = seat.wait_mounted().context("a mount is gone")?;
        let mode = seat.mode();
        let by = |whose: &str| format!("{}, by {whose} mount of seat {number} ({})", victim.name, mode.name());
        verdict(fs::read(mount.join(&victim.name)), &victim.contents, mode != Mode::Direct)
            .with_context(|| by("the"))?;
        let stranger = world.stranger("reader", mode)?;
        verdict(fs::read(stranger.at(&victim.name)), &victim.contents, false).with_context(|| by("a fresh"))?;
        stranger.close(false)?;
    }
    Ok(())
}

/// A bit of a file's contents flips while the server is down. The file is removed then.
pub(super) fn contents(world: &World, seat: usize, random: &mut SmallRng) -> Result<String> {
    let victim = victim(world, world.seats[seat].mode(), false, random)?;
    let (at, bit) = (random.random_range(0..victim.contents.len() as u64), random.random_range(0..8));
    world.kill_server(|store| {
        let prefix = format!("{:x}.", victim.vnode);
        let is_of_it =
            |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix));
        let file = files(&volume(store).join("content"))?.into_iter().find(is_of_it);
        flip_file(&file.with_context(|| format!("{} has no content file", victim.name))?, at, bit)?;
        names_only(&check(store, false)?, victim.vnode, false)
    })?;
    read_everywhere(world, &victim)?;
    remove(world, &victim)?;
    Ok(format!("bit {bit} of byte {at} of {} flipped", victim.name))
}

fn remove(world: &World, victim: &Victim) -> Result<()> {
    let mount = world.stranger("remover", Mode::Direct)?;
    fs::remove_file(mount.at(&victim.name)).context("removing what is damaged")?;
    mount.close(false)
}

/// A bit of a file's metadata flips while the server is down. Where that is its record the store is repaired then, and
/// elsewhere the file is removed.
pub(super) fn metadata(world: &World, seat: usize, random: &mut SmallRng) -> Result<String> {
    let which = Row::ALL[random.random_range(0..Row::ALL.len())];
    let victim = victim(world, world.seats[seat].mode(), which == Row::Contents, random)?;
    let what = format!("a bit of {} of {} flipped", which.what(), victim.name);
    world.kill_server(|store| {
        flip_row(store, which, victim.vnode, random)?;
        names_only(&check(store, false)?, victim.vnode, which == Row::Record).with_context(|| what.clone())
    })?;
    read_everywhere(world, &victim).with_context(|| what.clone())?;
    if which != Row::Record {
        remove(world, &victim).with_context(|| what.clone())?;
        return Ok(what);
    }
    world.kill_server(|store| {
        check(store, true)?;
        run(Command::new(binary("larderd")?).args(["check", "--store"]).arg(store)).context("after the repair")?;
        Ok(())
    })?;
    let mount = world.stranger("finder", Mode::Direct)?;
    let found = mount.at(&victim.name).try_exists();
    mount.close(false)?;
    ensure!(!found?, "{} is still there after the repair", victim.name);
    Ok(what)
}

/// A bit of a copy in a client's cache flips while the client is dead. The next one does not serve it.
pub(super) fn cache(world: &World, seat: usize, random: &mut SmallRng) -> Result<String> {
    let mut contents = vec![0; random.random_range(LEN.0..LEN.1)];
    random.fill(&mut contents[..]);
    let name = world.victim_name();
    let mounted = || world.seats[seat].wait_mounted().map(|(_, mount)| mount.join(&name)).context("the mount is gone");
    store(mounted()?, &contents)?;
    let (at, bit) = (random.random_range(0..contents.len() as u64), random.random_range(0..8));
    let keeps_time = random.random_bool(0.5);
    world.kill_client(seat, |cache| {
        let is_copy = |path: &PathBuf| fs::read(path).is_ok_and(|bytes| bytes == contents);
        let copy = files(&cache.join("files"))?.into_iter().find(is_copy);
        let copy = copy.ok_or_else(|| anyhow!("{name} is not in the cache"))?;
        let modified = fs::metadata(&copy)?.modified()?;
        flip_file(&copy, at, bit)?;
        if keeps_time {
            // As a disk does it that returns something else than was written.
            File::options().write(true).open(&copy)?.set_times(FileTimes::new().set_modified(modified))?;
        }
        Ok(())
    })?;
    let found = fs::read(mounted()?).context("reading what is damaged in the cache alone")?;
    ensure!(found == contents, "{name}: the cache's damage was read");
    fs::remove_file(mounted()?)?;
    Ok(format!("bit {bit} of byte {at} of the copy of {name} at seat {seat} flipped"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

    use serde_json::json;

    use super::*;
    use crate::process::scratch;

    #[test]
    fn only_an_io_error_or_what_was_written_may_be_read() {
        let error = |errno: Errno| Err(io::Error::from(errno));
        assert!(verdict(error(Errno::IO), b"right", false).is_ok());
        assert!(verdict(Ok(b"right".to_vec()), b"right", true).is_ok());
        assert!(verdict(Ok(b"right".to_vec()), b"right", false).is_err(), "nobody can know it");
        for wrong in [&b"wrong"[..], b"", b"righ", b"rights"] {
            assert!(verdict(Ok(wrong.to_vec()), b"right", true).is_err());
        }
        assert!(verdict(error(Errno::NOENT), b"right", true).is_err());
    }

    #[test]
    fn a_check_must_find_the_victim_and_nothing_else() {
        let report = |vnodes: &[Option<u64>]| {
            let findings: Vec<_> = vnodes.iter().map(|vnode| json!({"vnode": vnode, "what": "damaged"})).collect();
            json!({"findings": findings})
        };
        for is_lost in [false, true] {
            assert!(names_only(&report(&[Some(7), Some(7)]), 7, is_lost).is_ok());
            assert!(names_only(&report(&[]), 7, is_lost).is_err());
            assert!(names_only(&report(&[Some(7), Some(8)]), 7, is_lost).is_err());
            assert!(names_only(&report(&[Some(1), None]), 7, is_lost).is_err());
            assert_eq!(names_only(&report(&[Some(1), None, Some(7)]), 7, is_lost).is_ok(), is_lost);
        }
        assert!(names_only(&json!({}), 7, true).is_err());
    }

    #[test]
    fn one_bit_flips() {
        let dir = scratch().unwrap();
        let path = dir.path().join("a/b/file");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, [0; 10]).unwrap();
        assert_eq!(files(dir.path()).unwrap(), std::slice::from_ref(&path));
        flip_file(&path, 3, 5).unwrap();
        assert_eq!(fs::read(&path).unwrap(), [0, 0, 0, 32, 0, 0, 0, 0, 0, 0]);
    }
}
