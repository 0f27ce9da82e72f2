//! Files that a program keeps open while things break: one without a name, and one that is mapped.
//!
//! The program is another process (`holder`): a worker itself must keep nothing open between two steps.

use std::fmt::{self, Display, Formatter};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rand::Rng;
use rand::rngs::SmallRng;

use super::{Broken, Workload, kept};
use crate::process::binary;

/// After how long the program ends if nobody asks it for anything.
pub const IDLE: Duration = Duration::from_secs(900);
/// How long it may take to listen.
const LISTENS_WITHIN: Duration = Duration::from_secs(20);

/// What the program is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Make files in a directory.
    Begin {
        /// The directory.
        dir: PathBuf,
        /// Part of their names.
        number: u64,
        /// Decides what they hold.
        seed: u64,
    },
    /// Hold what is in them against what was written.
    Look,
    /// The same, and change them.
    Use {
        /// Decides where.
        seed: u64,
    },
}

impl Request {
    /// One that was written as a line.
    pub fn parse(line: &str) -> Option<Request> {
        match line.split_once(' ') {
            None => (line == "look").then_some(Request::Look),
            Some(("use", seed)) => Some(Request::Use { seed: seed.parse().ok()? }),
            Some(("begin", rest)) => {
                let (number, rest) = rest.split_once(' ')?;
                let (seed, dir) = rest.split_once(' ')?;
                Some(Request::Begin { dir: dir.into(), number: number.parse().ok()?, seed: seed.parse().ok()? })
            }
            Some(_) => None,
        }
    }
}

impl Display for Request {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Request::Begin { dir, number, seed } => write!(out, "begin {number} {seed} {}", dir.display()),
            Request::Look => write!(out, "look"),
            Request::Use { seed } => write!(out, "use {seed}"),
        }
    }
}

/// What it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// All is as it was written.
    Ok,
    /// It is not.
    Broken(Broken),
    /// A call failed with this number, or with none.
    Failed(i32),
}

impl Answer {
    fn parse(line: &str) -> Option<Answer> {
        match line.split_once(' ') {
            None => (line == "ok").then_some(Answer::Ok),
            Some(("broken", what)) => Some(Answer::Broken(what.to_owned())),
            Some(("failed", number)) => Some(Answer::Failed(number.parse().ok()?)),
            Some(_) => None,
        }
    }
}

impl Display for Answer {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Answer::Ok => write!(out, "ok"),
            Answer::Broken(what) => write!(out, "broken {what}"),
            Answer::Failed(number) => write!(out, "failed {number}"),
        }
    }
}

/// A program that keeps files of a directory open.
struct Holder {
    dir: PathBuf,
    child: Child,
}

impl Drop for Holder {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What is kept open stays as it was written, whatever becomes of the server.
pub(super) struct Holding {
    socket: PathBuf,
    holder: Option<Holder>,
    begun: u64,
    done: u64,
}

impl Holding {
    /// With a place for its socket in `dir`, outside the mount.
    pub(super) fn new(dir: &Path) -> Holding {
        Holding { socket: dir.join("holder"), holder: None, begun: 0, done: 0 }
    }

    fn ask(&self, request: &Request) -> io::Result<Result<(), Broken>> {
        let asked = || {
            let mut connection = UnixStream::connect(&self.socket)?;
            writeln!(connection, "{request}")?;
            let mut line = String::new();
            BufReader::new(connection).read_line(&mut line)?;
            Answer::parse(line.trim_end()).ok_or(io::ErrorKind::UnexpectedEof.into())
        };
        // Of its own end the number says nothing: a page that cannot be read is one.
        match asked().map_err(|error: io::Error| io::Error::other(format!("the holder: {error}")))? {
            Answer::Ok => Ok(Ok(())),
            Answer::Broken(what) => Ok(Err(what)),
            Answer::Failed(0) => Err(io::Error::other("the holder: a call failed")),
            Answer::Failed(number) => Err(io::Error::from_raw_os_error(number)),
        }
    }

    /// Starts the program, and lets it make its files.
    fn begin(&mut self, dir: &Path, seed: u64) -> io::Result<()> {
        self.holder = None;
        if let Some(parent) = self.socket.parent() {
            std::fs::create_dir_all(parent)?;
        }
        super::none_if_missing(std::fs::remove_file(&self.socket))?;
        let program = binary("holder").map_err(io::Error::other)?;
        let mut command = Command::new(program);
        command.arg(&self.socket).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        self.holder = Some(Holder { dir: dir.to_owned(), child: command.spawn()? });
        let begun = Instant::now();
        while UnixStream::connect(&self.socket).is_err() {
            if begun.elapsed() > LISTENS_WITHIN {
                return Err(io::Error::other(format!("the holder does not listen after {LISTENS_WITHIN:?}")));
            }
            thread::sleep(Duration::from_millis(5));
        }
        self.begun += 1;
        kept(self.ask(&Request::Begin { dir: dir.to_owned(), number: self.begun, seed })?)
    }
}

impl Workload for Holding {
    fn name(&self) -> &'static str {
        "files kept open"
    }

    fn step(&mut self, dir: &Path, random: &mut SmallRng) -> io::Result<()> {
        // Not the same ones for ever, and none of a mount that is gone.
        if self.holder.as_ref().is_none_or(|holder| holder.dir != dir) || random.random_bool(0.02) {
            self.begin(dir, random.random())?;
            let before = self.begun.saturating_sub(1);
            super::none_if_missing(std::fs::remove_file(dir.join(format!("mapped-{before}"))))?;
        }
        kept(self.ask(&Request::Use { seed: random.random() })?)?;
        self.done += 2;
        thread::sleep(Duration::from_millis(random.random_range(0..50)));
        Ok(())
    }

    fn settle(&mut self, _dir: &Path) -> io::Result<Result<(), Broken>> {
        // What it was changing may be there or not, and who cares is gone with it.
        self.holder = None;
        Ok(Ok(()))
    }

    fn check(&mut self, dir: &Path) -> io::Result<Result<(), Broken>> {
        if self.holder.as_ref().is_none_or(|holder| holder.dir != dir) {
            return Ok(Ok(()));
        }
        self.ask(&Request::Look)
    }

    fn acknowledged(&self) -> u64 {
        self.done
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

    use std::fs;

    use rand::SeedableRng;
    use rustix::mount::{UnmountFlags, unmount};

    use super::*;
    use crate::disk::Disk;
    use crate::process::scratch;

    #[test]
    fn requests_and_answers_are_read_as_they_were_written() {
        let dir = PathBuf::from("/a directory/x");
        for request in [Request::Begin { dir, number: 7, seed: u64::MAX }, Request::Look, Request::Use { seed: 3 }] {
            assert_eq!(Request::parse(&request.to_string()), Some(request));
        }
        for answer in [Answer::Ok, Answer::Broken("at 3 of 4".to_owned()), Answer::Failed(5)] {
            assert_eq!(Answer::parse(&answer.to_string()), Some(answer));
        }
        assert!(Request::parse("begin 1").is_none() && Answer::parse("").is_none());
    }

    #[test]
    fn what_is_not_as_it_was_written_is_noticed() {
        let (outside, root) = (scratch().unwrap(), scratch().unwrap());
        let (mut holding, mut random) = (Holding::new(outside.path()), SmallRng::seed_from_u64(1));
        for _ in 0..5 {
            holding.step(root.path(), &mut random).unwrap();
            assert_eq!(holding.check(root.path()).unwrap(), Ok(()));
        }
        let mapped = root.path().join(format!("mapped-{}", holding.begun));
        let good = fs::read(&mapped).unwrap();
        let mut bad = good.clone();
        bad[77_777] ^= 1;
        fs::write(&mapped, bad).unwrap();
        assert!(holding.check(root.path()).unwrap().unwrap_err().contains("at 77777"));
        assert!(holding.step(root.path(), &mut random).is_err());
        // One that has ended, as by a page that cannot be read.
        let holder = holding.holder.as_mut().unwrap();
        holder.child.kill().unwrap();
        holder.child.wait().unwrap();
        assert_eq!(holding.check(root.path()).unwrap_err().raw_os_error(), None);
        assert_eq!(holding.settle(root.path()).unwrap(), Ok(()));
        holding.step(root.path(), &mut random).unwrap();
        assert_eq!(holding.check(root.path()).unwrap(), Ok(()));
    }

    #[test]
    fn the_program_ends_when_its_mount_is_gone() {
        let (outside, root) = (scratch().unwrap(), scratch().unwrap());
        let disk = Disk::memory(root.path(), 8).unwrap();
        let (mut holding, mut random) = (Holding::new(outside.path()), SmallRng::seed_from_u64(1));
        holding.step(disk.path(), &mut random).unwrap();
        let child = &mut holding.holder.as_mut().unwrap().child;
        assert_eq!(child.try_wait().unwrap(), None);
        // It has files open there.
        unmount(disk.path(), UnmountFlags::DETACH).unwrap();
        let began = Instant::now();
        while child.try_wait().unwrap().is_none() {
            assert!(began.elapsed() < Duration::from_secs(60), "it goes on");
            thread::sleep(Duration::from_millis(20));
        }
        disk.unmount().unwrap_err();
    }
}
