//! What programs do while things break, and what must hold of it.
//!
//! Each workload has a directory of its own on the volume. [`Workload::step`] does a little work; if that fails because the
//! mount died, [`Workload::settle`] finds out what became of what was under way. [`Workload::check`] holds what is there
//! against what was acknowledged.

mod append;
mod fsx;
mod git;
mod names;
mod register;
mod replace;
mod sqlite;
mod untar;

use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

pub use register::Register;

use crate::source::Source;

/// A promise that was broken.
pub type Broken = String;

/// One worker's work. Directories are given anew each time: a mount that was taken down comes back elsewhere.
pub trait Workload: Send {
    /// Its name in reports.
    fn name(&self) -> &'static str;

    /// Does a little work in `dir`.
    ///
    /// # Errors
    /// Of the first operation that failed: what was under way may have happened or not.
    fn step(&mut self, dir: &Path, random: &mut SmallRng) -> io::Result<()>;

    /// After a step that failed: what was under way has happened or not, which is found out here, and work goes on from
    /// there. The outer result is that of the operations needed for it.
    ///
    /// # Errors
    /// The mount has died again; or, inside, a promise was broken.
    fn settle(&mut self, dir: &Path) -> io::Result<Result<(), Broken>> {
        self.check(dir)
    }

    /// Holds what is in `dir` against what was acknowledged. No step is under way.
    ///
    /// # Errors
    /// As with [`settle`](Workload::settle).
    fn check(&mut self, dir: &Path) -> io::Result<Result<(), Broken>>;

    /// Operations that were acknowledged so far.
    fn acknowledged(&self) -> u64;
}

/// The workloads of the seats of a world, of which the first writes the register that the others read.
///
/// Workloads keep files of their own in `dir`, outside the mounts.
pub fn of_seat(seat: usize, dir: &Path, register: &Arc<Register>, source: &Arc<Source>) -> Vec<Box<dyn Workload>> {
    let mut all: Vec<Box<dyn Workload>> = vec![
        Box::new(append::Append::default()),
        Box::new(replace::Replace::default()),
        Box::new(names::Names::default()),
        Box::new(register::RegisterUse::new(register.clone(), seat == 0)),
        Box::new(fsx::Fsx::new(&dir.join(format!("seat{seat}")))),
    ];
    match seat {
        0 => all.push(Box::new(sqlite::Sqlite::default())),
        1 => all.push(Box::new(git::Git::default())),
        _ => all.push(Box::new(untar::Untar::new(source.clone()))),
    }
    all
}

/// Bytes that a program may say. Some say the same for ever on a mount that is gone: to git a directory that cannot be
/// read has no end.
const SAID: u64 = 1 << 20;
/// How long it may take: longer than any step.
const LIMIT: Duration = Duration::from_secs(75);
/// Bytes of it in an error.
const TOLD: usize = 2000;

/// Runs a program to its end, which is soon if it says too much, and by a kill if it takes too long.
fn output(command: &mut Command) -> io::Result<Output> {
    fn heard(pipe: Option<impl Read>) -> io::Result<Vec<u8>> {
        let mut said = Vec::new();
        // Dropped then: who says more dies of SIGPIPE.
        pipe.map_or(Ok(0), |pipe| pipe.take(SAID).read_to_end(&mut said))?;
        Ok(said)
    }
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    thread::scope(|scope| {
        let (out, err) = (scope.spawn(|| heard(out)), scope.spawn(|| heard(err)));
        if !ends_within(&child, LIMIT)? {
            child.kill()?;
        }
        let status = child.wait()?;
        let defect = |_| io::Error::other("a reader met a defect");
        Ok(Output { status, stdout: out.join().map_err(defect)??, stderr: err.join().map_err(defect)?? })
    })
}

/// Waits for the end of a child, but not forever.
fn ends_within(child: &Child, limit: Duration) -> io::Result<bool> {
    let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let (began, mut ends) = (Instant::now(), [PollFd::new(&process, PollFlags::IN)]);
    loop {
        let left = Timespec::try_from(limit.saturating_sub(began.elapsed())).map_err(io::Error::other)?;
        match poll(&mut ends, Some(&left)) {
            Err(Errno::INTR) => continue,
            ended => return Ok(ended? > 0),
        }
    }
}

/// Runs a program with its output in its error.
fn run(command: &mut Command) -> io::Result<String> {
    let output = output(command)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = output.stderr.trim_ascii();
    let said = String::from_utf8_lossy(&said[said.len().saturating_sub(TOLD)..]);
    Err(io::Error::other(format!("{command:?}: {}: {said}", output.status)))
}

/// What a program has found wrong in `dir`: that is broken, unless the mount is gone, of which programs say the same.
fn broken_unless_gone(dir: &Path, error: &io::Error) -> io::Result<Result<(), Broken>> {
    // Of what the kernel knows by itself it would tell of a mount that is gone, too; this it has to ask for.
    rustix::fs::statfs(dir)?;
    Ok(Err(error.to_string()))
}

/// What a missing file has.
fn none_if_missing<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Bytes that tell of which number they are, wherever one looks.
fn pattern(number: u64, len: usize) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    bytes.extend_from_slice(&number.to_le_bytes());
    while bytes.len() < len {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len.max(8));
    bytes
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

    use super::*;

    #[test]
    fn a_program_that_never_ends_is_ended() {
        let said = run(&mut Command::new("yes")).unwrap_err().to_string();
        assert!(said.contains("SIGPIPE"), "{said}");
        let mut loud = Command::new("sh");
        let said = run(loud.args(["-c", "yes because >&2"])).unwrap_err().to_string();
        assert!(said.contains("because\nbecause") && said.len() < TOLD + 100, "{said}");
        let mut asleep = Command::new("sleep").arg("1000").spawn().unwrap();
        assert!(!ends_within(&asleep, Duration::from_millis(10)).unwrap());
        asleep.kill().unwrap();
        assert!(ends_within(&asleep, Duration::from_secs(100)).unwrap());
        asleep.wait().unwrap();
    }

    #[test]
    fn what_a_program_says_is_heard_whole() {
        let mut both = Command::new("sh");
        both.args(["-c", "echo out; echo err >&2; seq 20000"]);
        let output = output(&mut both).unwrap();
        assert!(output.status.success() && output.stderr == b"err\n" && output.stdout.ends_with(b"\n20000\n"));
    }
}
