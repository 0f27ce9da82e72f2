//! The write-ahead log of SQLite, as its file format says (section 4): enough to find its end, and to tear it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rand::Rng;
use rand::rngs::SmallRng;

/// Bytes before the first frame.
const HEADER: usize = 32;
/// Bytes before the page of a frame.
const FRAME: usize = 24;
/// The first four bytes, but for the last bit, which is set where checksums are of big-endian words.
const MAGIC: u32 = 0x377f_0682;

/// How the end of a log is torn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tear {
    /// Half of a good frame.
    Half,
    /// Bytes that mean nothing.
    Garbage,
    /// The frame of a commit, whose checksum is wrong.
    BadChecksum,
    /// Good frames of a transaction that was not committed.
    Uncommitted,
}

impl Tear {
    /// Every kind.
    pub const ALL: [Tear; 4] = [Tear::Half, Tear::Garbage, Tear::BadChecksum, Tear::Uncommitted];
}

/// Where the last commit of a log ends, and what a frame behind it is to begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct End {
    at: u64,
    page_len: usize,
    salts: [u8; 8],
    sum: (u32, u32),
    is_big_endian: bool,
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..at + 4).and_then(|word| word.first_chunk().copied());
    word.map_or(0, u32::from_be_bytes)
}

/// The checksum goes over all that comes before, eight bytes at a time.
fn checksum(mut sum: (u32, u32), bytes: &[u8], is_big_endian: bool) -> (u32, u32) {
    let of = |bytes: [u8; 4]| if is_big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) };
    let (words, _) = bytes.as_chunks::<4>();
    for pair in words.chunks_exact(2) {
        sum.0 = sum.0.wrapping_add(of(pair[0])).wrapping_add(sum.1);
        sum.1 = sum.1.wrapping_add(of(pair[1])).wrapping_add(sum.0);
    }
    sum
}

/// The end of the last commit; `None` where the header is none, and so all of the log means nothing.
fn end(log: &[u8]) -> Option<End> {
    let header = log.get(..HEADER)?;
    let is_big_endian = word(header, 0) & 1 == 1;
    if word(header, 0) & !1 != MAGIC {
        return None;
    }
    let page_len = word(header, 8) as usize;
    let mut sum = checksum((0, 0), &header[..24], is_big_endian);
    if sum != (word(header, 24), word(header, 28)) || !page_len.is_power_of_two() || page_len < 512 {
        return None;
    }
    let salts = *header[16..24].first_chunk()?;
    let mut end = End { at: HEADER as u64, page_len, salts, sum, is_big_endian };
    for (number, frame) in log[HEADER..].chunks_exact(FRAME + page_len).enumerate() {
        sum = checksum(checksum(sum, &frame[..8], is_big_endian), &frame[FRAME..], is_big_endian);
        if frame[8..16] != salts || sum != (word(frame, 16), word(frame, 20)) {
            break;
        }
        // The frame of a commit says how many pages the database has.
        if word(frame, 4) != 0 {
            end = End { at: (HEADER + (number + 1) * (FRAME + page_len)) as u64, sum, ..end };
        }
    }
    Some(end)
}

impl End {
    /// A good frame behind this end.
    fn frame(&mut self, page: u32, pages: u32, contents: &[u8]) -> Vec<u8> {
        let mut frame = [page.to_be_bytes(), pages.to_be_bytes()].concat();
        self.sum = checksum(checksum(self.sum, &frame, self.is_big_endian), contents, self.is_big_endian);
        frame.extend_from_slice(&self.salts);
        frame.extend_from_slice(&self.sum.0.to_be_bytes());
        frame.extend_from_slice(&self.sum.1.to_be_bytes());
        frame.extend_from_slice(contents);
        frame
    }
}

/// Tears the log at `path`, of a database that nobody has open: what is behind its last commit is overwritten. `false` if
/// there is no log.
///
/// # Errors
/// If it cannot be read or written.
pub fn tear(path: &Path, how: Tear, random: &mut SmallRng) -> Result<bool> {
    let log = match std::fs::read(path) {
        Ok(log) => log,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    };
    let file = OpenOptions::new().write(true).open(path)?;
    let Some(mut end) = end(&log) else {
        // A log that has not begun. Its header is what can be torn.
        ensure!(log.is_empty(), "{} begins with no header of a log", path.display());
        write(&file, 0, &MAGIC.to_be_bytes(), how, random)?;
        return Ok(true);
    };
    let mut contents = vec![0; end.page_len];
    random.fill(&mut contents[..]);
    let bytes = match how {
        Tear::Half => {
            let mut frame = end.frame(1, 1, &contents);
            frame.truncate(random.random_range(1..frame.len()));
            frame
        }
        Tear::Garbage => {
            let mut garbage = vec![0; random.random_range(1..3 * (FRAME + end.page_len))];
            random.fill(&mut garbage[..]);
            garbage
        }
        Tear::BadChecksum => {
            let mut frame = end.frame(1, 1, &contents);
            let at = random.random_range(0..frame.len());
            // The salts are as good a place as any.
            frame[at] ^= 1 << random.random_range(0..8);
            frame
        }
        Tear::Uncommitted => {
            let frames = random.random_range(1..4);
            (1..=frames).flat_map(|page| end.frame(page, 0, &contents)).collect()
        }
    };
    write(&file, end.at, &bytes, how, random)?;
    Ok(true)
}

/// Behind what is written there may be what was there before, or nothing.
fn write(file: &File, at: u64, bytes: &[u8], how: Tear, random: &mut SmallRng) -> Result<()> {
    if how == Tear::Half || random.random_bool(0.5) {
        file.set_len(at)?;
    }
    file.write_all_at(bytes, at)?;
    file.sync_all()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

    use std::path::PathBuf;

    use rand::SeedableRng;
    use rusqlite::Connection;

    use super::*;
    use crate::process::scratch;

    /// A database with rows in its log as a process leaves it that is killed, in `dir`.
    fn killed(dir: &Path, rows: u32) -> (PathBuf, PathBuf) {
        let path = dir.join("live");
        let connection = Connection::open(&path).unwrap();
        connection.pragma_update(None, "journal_mode", "WAL").unwrap();
        connection.pragma_update(None, "wal_autocheckpoint", 0).unwrap();
        connection.execute("CREATE TABLE t (x INTEGER, y BLOB)", []).unwrap();
        for row in 0..rows {
            connection.execute("INSERT INTO t VALUES (?1, zeroblob(3000))", [row]).unwrap();
        }
        let (database, log) = (dir.join("dead"), dir.join("dead-wal"));
        std::fs::copy(&path, &database).unwrap();
        std::fs::copy(dir.join("live-wal"), &log).unwrap();
        drop(connection);
        for name in ["live", "live-wal", "live-shm"] {
            let _ = std::fs::remove_file(dir.join(name));
        }
        (database, log)
    }

    fn rows(database: &Path) -> u32 {
        let connection = Connection::open(database).unwrap();
        let sound: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(sound, "ok");
        connection.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn the_end_is_where_sqlite_has_it() {
        let dir = scratch().unwrap();
        let (database, log) = killed(dir.path(), 20);
        let bytes = std::fs::read(&log).unwrap();
        let found = end(&bytes).unwrap();
        assert_eq!(found.at, bytes.len() as u64, "all of it is committed");
        let cut = found.at as usize - 1;
        let before = end(&bytes[..cut]).unwrap();
        assert!(before.at < found.at);
        std::fs::write(&log, &bytes[..cut]).unwrap();
        assert_eq!(rows(&database), 19, "the last commit is not whole");
        assert_eq!(end(&bytes[..10]), None);
        assert_eq!(end(&[0; 100]), None);
    }

    #[test]
    fn a_frame_that_is_made_here_is_good_for_sqlite() {
        let dir = scratch().unwrap();
        let (database, log) = killed(dir.path(), 20);
        let bytes = std::fs::read(&log).unwrap();
        let mut found = end(&bytes).unwrap();
        // The last page once more, as a commit: nothing changes.
        let last = &bytes[bytes.len() - FRAME - found.page_len..];
        let (page, pages) = (word(last, 0), word(last, 4));
        let mut damaged = last[FRAME..].to_vec();
        let frame = found.frame(page, pages, &damaged);
        std::fs::write(&log, [&bytes[..], &frame].concat()).unwrap();
        assert_eq!(end(&std::fs::read(&log).unwrap()).unwrap().at, (bytes.len() + frame.len()) as u64);
        assert_eq!(rows(&database), 20);
        // And as one that damages: SQLite believes it.
        damaged.fill(0xff);
        let (database, log) = killed(dir.path(), 20);
        let frame = end(&bytes_of(&log)).unwrap().frame(page, pages, &damaged);
        std::fs::write(&log, [&bytes_of(&log)[..], &frame].concat()).unwrap();
        let connection = Connection::open(&database).unwrap();
        let sound = connection.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0));
        assert_ne!(sound.unwrap_or_default(), "ok");
    }

    fn bytes_of(path: &Path) -> Vec<u8> {
        std::fs::read(path).unwrap()
    }

    #[test]
    fn whatever_is_torn_costs_nothing_that_was_committed() {
        let (dir, mut random) = (scratch().unwrap(), SmallRng::seed_from_u64(1));
        for round in 0..24 {
            let how = Tear::ALL[round % Tear::ALL.len()];
            let (database, log) = killed(dir.path(), 10);
            let before = bytes_of(&log);
            assert!(tear(&log, how, &mut random).unwrap());
            let after = bytes_of(&log);
            assert!(after.len() > before.len() && after[..before.len()] == before, "{how:?} comes behind the end");
            assert_eq!(rows(&database), 10, "{how:?}");
        }
        assert!(!tear(&dir.path().join("none-wal"), Tear::Half, &mut random).unwrap());
    }
}
