//! What programs do while things break, and what must hold of it.
//!
//! Each workload has a directory of its own on the volume. [`Workload::step`] does a little work; if that fails because the
//! mount died, [`Workload::settle`] finds out what became of what was under way. [`Workload::check`] holds what is there
//! against what was acknowledged.

mod append;
mod fsx;
mod git;
pub mod holding;
mod names;
mod poll;
mod register;
mod replace;
mod sqlite;
mod untar;

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use poll::{Poll, Polled};
use register::{Register, RegisterUse};

use super::world::ATTRIBUTES_FOR;
use crate::mount::Mode;
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

    /// Whether it heeds what close(2) says. Who does not may read back less than it wrote after the disk was bad.
    fn heeds_close(&self) -> bool {
        true
    }

    /// Whether a step is the whole run of a program, whose many operations take their time also when nothing is broken.
    fn is_program(&self) -> bool {
        false
    }

    /// Operations that were acknowledged so far.
    fn acknowledged(&self) -> u64;
}

/// The kernel counts how long it may use attributes from when the caller comes to run after the answer.
const LATE: Duration = Duration::from_millis(500);

/// What the workloads of a world share.
pub struct Common {
    /// For files of their own, outside the mounts.
    pub dir: PathBuf,
    /// What is unpacked.
    pub source: Arc<Source>,
    small: Arc<Register>,
    large: Arc<Register>,
    polled: Arc<Polled>,
}

impl Common {
    /// For workloads that keep files of their own in `dir`, outside the mounts.
    pub fn new(dir: &Path, source: Source) -> Common {
        let (small, large) = (Arc::new(Register::small()), Arc::new(Register::large()));
        Common { dir: dir.to_owned(), source: Arc::new(source), small, large, polled: Arc::default() }
    }
}

/// The workloads of a seat of a world whose seats have these modes. The first one writes the registers that the others read.
/// Programs that are at one seat only take `turn`s.
pub fn of_seat(seat: usize, modes: &[Mode], turn: usize, common: &Common) -> Vec<Box<dyn Workload>> {
    let of = |register: &Arc<Register>| match seat {
        0 => RegisterUse::writer(register.clone()),
        _ => RegisterUse::reader(register.clone(), modes[0] == Mode::Afs && modes[seat] == Mode::Afs),
    };
    let poll = match (seat, modes[seat]) {
        (0, _) => Poll::writer(common.polled.clone()),
        (_, Mode::Nfs) => Poll::reader(common.polled.clone(), ATTRIBUTES_FOR + LATE),
        (_, Mode::Afs | Mode::Direct) => Poll::reader(common.polled.clone(), Duration::ZERO),
    };
    let mut all: Vec<Box<dyn Workload>> = vec![
        Box::new(append::Append::default()),
        Box::new(replace::Replace::default()),
        Box::new(names::Names::default()),
        Box::new(of(&common.small)),
        Box::new(of(&common.large)),
        Box::new(poll),
        Box::new(fsx::Fsx::new(&common.dir.join(format!("seat{seat}")))),
        Box::new(holding::Holding::new(&common.dir.join(format!("seat{seat}")))),
    ];
    let programs: [Box<dyn Workload>; 3] = [
        Box::new(sqlite::Sqlite::default()),
        Box::new(git::Git::default()),
        Box::new(untar::Untar::new(common.source.clone())),
    ];
    let programs = programs.into_iter().enumerate();
    all.extend(programs.filter(|(place, _)| (place + turn) % modes.len() == seat).map(|(_, program)| program));
    all
}

/// Bytes that a program may say. Some say the same for ever on a mount that is gone: to git a directory that cannot be
/// read has no end.
const SAID: u64 = 1 << 20;
/// How long it may take. Its end is an error then as any other, which a disk that was in disorder may excuse: so this must
/// be less than what no step may take.
const LIMIT: Duration = Duration::from_secs(100);
const _: () = assert!(LIMIT.as_secs() < super::worker::STUCK.as_secs());
/// How often it is looked whether the mount is gone that it works on, and how often that must be so until it is killed:
/// some wait for ever then, such as fsx for what sendfile(2) did not send.
const LOOKS: (Duration, u32) = (Duration::from_secs(1), 5);
/// Bytes of it in an error.
const TOLD: usize = 2000;

/// What is mounted there. Differs when a mount is gone.
///
/// # Errors
/// What statfs(2) says, as of a mount whose client is dead.
pub fn kind_of_mount(dir: &Path) -> Result<i64, Errno> {
    rustix::fs::statfs(dir).map(|info| info.f_type)
}

/// Runs a program that works in `dir` to its end, which is soon if it says too much, and by a kill if it takes too long or
/// its mount is gone.
fn output(dir: &Path, command: &mut Command) -> io::Result<Output> {
    fn heard(pipe: Option<impl Read>) -> io::Result<Vec<u8>> {
        let mut said = Vec::new();
        // Dropped then: who says more dies of SIGPIPE.
        pipe.map_or(Ok(0), |pipe| pipe.take(SAID).read_to_end(&mut said))?;
        Ok(said)
    }
    let (mounted, began) = (kind_of_mount(dir), Instant::now());
    let mut child =
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    thread::scope(|scope| {
        let (out, err) = (scope.spawn(|| heard(out)), scope.spawn(|| heard(err)));
        let mut gone = 0;
        let mut why = None;
        while !ends_within(&child, LOOKS.0)? {
            gone = if kind_of_mount(dir) == mounted { 0 } else { gone + 1 };
            why = if gone >= LOOKS.1 {
                Some("killed, for its mount was gone".to_owned())
            } else {
                (began.elapsed() > LIMIT).then(|| format!("killed after {LIMIT:?}"))
            };
            if why.is_some() {
                // With all that it has started, which may have its pipes.
                kill_process_group(Pid::from_child(&child), Signal::KILL)?;
                break;
            }
        }
        let status = child.wait()?;
        let defect = |_| io::Error::other("a reader met a defect");
        let (stdout, mut stderr) = (out.join().map_err(defect)??, err.join().map_err(defect)??);
        stderr.extend(why.unwrap_or_default().bytes());
        Ok(Output { status, stdout, stderr })
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
fn run(dir: &Path, command: &mut Command) -> io::Result<String> {
    let output = output(dir, command)?;
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

/// A file of the volume's root, which all workers share, to be written. Not truncated: a reader would be right to see that.
fn open_shared(dir: &Path, name: &str) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(false).open(dir.join("..").join(name))
}

/// A promise that was broken as the error of a step.
fn kept(promise: Result<(), Broken>) -> io::Result<()> {
    promise.map_err(|broken| io::Error::new(io::ErrorKind::InvalidData, broken))
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
    use crate::process::scratch;

    #[test]
    fn a_program_that_never_ends_is_ended() {
        let dir = scratch().unwrap();
        let said = run(dir.path(), &mut Command::new("yes")).unwrap_err().to_string();
        assert!(said.contains("SIGPIPE"), "{said}");
        let mut loud = Command::new("sh");
        let said = run(dir.path(), loud.args(["-c", "yes because >&2"])).unwrap_err().to_string();
        assert!(said.contains("because\nbecause") && said.len() < TOLD + 100, "{said}");
        let mut asleep = Command::new("sleep").arg("1000").spawn().unwrap();
        assert!(!ends_within(&asleep, Duration::from_millis(10)).unwrap());
        asleep.kill().unwrap();
        assert!(ends_within(&asleep, Duration::from_secs(100)).unwrap());
        asleep.wait().unwrap();
    }

    #[test]
    fn a_program_whose_mount_is_gone_is_ended() {
        let dir = scratch().unwrap();
        let place = dir.path().join("mount");
        std::fs::create_dir(&place).unwrap();
        let (at, started) = (place.clone(), dir.path().join("started"));
        let program = format!("touch {}; sleep 1000; true", started.display());
        let end = thread::spawn(move || run(&at, Command::new("sh").args(["-c", &program])).unwrap_err().to_string());
        while !started.exists() {
            thread::sleep(Duration::from_millis(5));
        }
        std::fs::remove_dir(place).unwrap();
        assert!(end.join().unwrap().contains("killed, for its mount was gone"));
    }

    #[test]
    fn every_workload_is_in_every_world_and_each_mode_has_its_turn() {
        let dir = scratch().unwrap();
        let common = Common::new(dir.path(), Source::new(dir.path(), 3).unwrap());
        for modes in [&[Mode::Nfs][..], &[Mode::Afs; 2], &Mode::ALL] {
            let of = |turn: usize| -> Vec<Vec<&str>> {
                let of_seat = |seat| of_seat(seat, modes, turn, &common).iter().map(|one| one.name()).collect();
                (0..modes.len()).map(of_seat).collect()
            };
            for program in ["sqlite", "git", "untar"] {
                let seats = |turn| -> Vec<usize> {
                    let has = |seat: &usize| of(turn)[*seat].contains(&program);
                    (0..modes.len()).filter(has).collect()
                };
                let turns: std::collections::BTreeSet<usize> = (0..3).flat_map(seats).collect();
                assert_eq!(turns.len(), modes.len(), "{program} is everywhere once");
                assert!((0..3).all(|turn| seats(turn).len() == 1));
            }
            assert!(of(0)[0].contains(&"large register writer"));
        }
    }

    #[test]
    fn what_a_program_says_is_heard_whole() {
        let mut both = Command::new("sh");
        both.args(["-c", "echo out; echo err >&2; seq 20000"]);
        let output = output(Path::new("/"), &mut both).unwrap();
        assert!(output.status.success() && output.stderr == b"err\n" && output.stdout.ends_with(b"\n20000\n"));
    }
}
