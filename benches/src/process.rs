//! Child processes: where the binaries are, where their output goes, and an end within a bounded time.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::IntoRawFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};

/// How often a condition is looked at while waiting for it.
const POLL: Duration = Duration::from_millis(5);

/// One of the project's binaries: in `LARDER_BIN_DIR`, or where cargo puts it beside the running test.
///
/// # Errors
/// If it is not there, with what to do.
pub fn binary(name: &str) -> Result<PathBuf> {
    let dir = match std::env::var_os("LARDER_BIN_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => {
            let me = std::env::current_exe().context("finding the running test")?;
            // target/PROFILE/deps/TEST or target/PROFILE/BINARY
            let dir = me.parent().context("the running test has no directory")?;
            if dir.ends_with("deps") { dir.parent().unwrap_or(dir).to_owned() } else { dir.to_owned() }
        }
    };
    let path = dir.join(name);
    if !path.exists() {
        bail!(
            "{} is missing; run `cargo build --workspace` for the same profile first, or set LARDER_BIN_DIR, or use \
             ./scripts/test, which does both",
            path.display()
        );
    }
    Ok(path)
}

/// A command that runs one of the project's binaries, in this network namespace of ip-netns(8) if one is named.
///
/// # Errors
/// If the binary is not there.
pub fn command(name: &str, namespace: Option<&str>) -> Result<Command> {
    Ok(within(&binary(name)?, namespace))
}

/// A command that runs a program, in this network namespace of ip-netns(8) if one is named.
pub fn within(program: &Path, namespace: Option<&str>) -> Command {
    let Some(namespace) = namespace else { return Command::new(program) };
    // Not `ip netns exec`, whose mounts nobody else sees.
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{namespace}")).arg("--").arg(program);
    command
}

/// Lets this process, and those that it starts, have as many files open as the system allows it, which must be so many.
///
/// # Errors
/// If it is allowed fewer.
pub fn raise_open_files(need: u64) -> Result<()> {
    let most = getrlimit(Resource::Nofile).maximum;
    ensure!(most.is_none_or(|most| most >= need), "{need} open files are needed; see `ulimit -Hn`");
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }).context("raising the limit of open files")
}

/// A directory for one test, removed with all it holds when dropped. `LARDER_TEST_TMP` says where.
///
/// # Errors
/// If it cannot be made.
pub fn scratch() -> Result<tempfile::TempDir> {
    let base = std::env::var_os("LARDER_TEST_TMP").map_or_else(std::env::temp_dir, PathBuf::from);
    let mut builder = tempfile::Builder::new();
    builder.prefix("larder-test-");
    builder.tempdir_in(&base).with_context(|| format!("making a directory in {}", base.display()))
}

/// A process that was started here, killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    what: String,
    log: PathBuf,
    pid_file: PathBuf,
}

impl Process {
    /// Starts `command` with its output in `DIR/NAME.log` and its process id in `DIR/NAME.pid`, where
    /// `scripts/test` finds it if this process dies before it can clean up.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(command: &mut Command, dir: &Path, name: &str) -> Result<Process> {
        let log = dir.join(format!("{name}.log"));
        let out = File::options().create(true).append(true).open(&log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("starting {command:?}"))?;
        let pid_file = dir.join(format!("{name}.pid"));
        fs::write(&pid_file, child.id().to_string())?;
        Ok(Process { child, what: format!("{command:?}"), log, pid_file })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until `ready` gives a value.
    ///
    /// # Errors
    /// If the process ends before, or `limit` passes; with its log.
    pub fn wait_ready<T>(&mut self, limit: Duration, mut ready: impl FnMut() -> Option<T>) -> Result<T> {
        let start = Instant::now();
        loop {
            if let Some(value) = ready() {
                return Ok(value);
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status} before it was ready:\n{}", self.what, self.log());
            }
            if start.elapsed() > limit {
                bail!("{} is not ready after {limit:?}:\n{}", self.what, self.log());
            }
            std::thread::sleep(POLL);
        }
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// If the process is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.child.id().try_into()?).context("a process id of 0")?;
        kill_process(pid, signal).with_context(|| format!("signalling {}", self.what))
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// If the system does not say.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Whether it was killed with SIGKILL.
    ///
    /// # Errors
    /// If it has ended in another way, with its log.
    pub fn was_killed(&mut self) -> Result<bool> {
        let Some(status) = self.ended()? else { return Ok(false) };
        ensure!(
            status.signal() == Some(Signal::KILL.as_raw()),
            "{} ended by itself with {status}:\n{}",
            self.what,
            self.log()
        );
        Ok(true)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// If it is still running after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if start.elapsed() > limit {
                bail!("{} is still running after {limit:?}:\n{}{}", self.what, self.log(), stacks(self.id()));
            }
            std::thread::sleep(POLL);
        }
    }
}

/// Where the threads of a process are in the kernel that cannot be interrupted there, or wait for a FUSE mount.
pub(crate) fn stacks(process: u32) -> String {
    let read = |path: PathBuf, what: &str| fs::read_to_string(path.join(what)).unwrap_or_default();
    let tasks = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten().map(|task| task.path());
    let stacks = tasks.map(|task| (read(task.clone(), "stat"), read(task.clone(), "comm"), read(task, "stack")));
    let stuck = stacks.filter(|(stat, _, stack)| stat.contains(") D ") || stack.contains("fuse_"));
    stuck.map(|(_, comm, stack)| format!("{comm}{stack}")).collect()
}

impl Drop for Process {
    fn drop(&mut self) {
        // Already gone is as good.
        let _ = self.child.kill();
        // A process that waits for a mount that does not answer cannot be reaped until that mount is gone; whoever
        // owns both unmounts first.
        let _ = self.wait(Duration::from_secs(10));
        let _ = fs::remove_file(&self.pid_file);
    }
}

/// Writes a file whole and closes it, with what closing it says, which `fs::write` does not heed.
///
/// # Errors
/// What the system says.
pub fn store(path: impl AsRef<Path>, data: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(data)?;
    close(file)
}

/// Closes a file, with what that says, which dropping it does not heed.
///
/// # Errors
/// What the system says.
pub fn close(file: File) -> io::Result<()> {
    // SAFETY: the descriptor was this file's alone, and has no owner any more.
    Ok(unsafe { rustix::io::try_close(file.into_raw_fd()) }?)
}

/// Runs a program to its end and returns its output.
///
/// # Errors
/// If it cannot be started or does not succeed; with its output.
pub fn run(command: &mut Command) -> Result<Output> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("starting {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?}: {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(output)
}

/// From now on this thread has a table of open files of its own, with standard input, output and error only. A process that
/// is started has a copy of all files that the starting thread can see, until it has closed them; and closing one of a
/// mount waits for the server, which is what is being started. Nor may this thread keep a copy of a pipe by which another
/// one just starts a process: who reads it would wait for its end for as long as this thread lives.
///
/// # Errors
/// What the system says.
///
/// # Safety
/// From here on this thread neither uses nor closes what was opened before.
pub unsafe fn have_own_files() -> io::Result<()> {
    let first = libc::STDERR_FILENO as libc::c_uint + 1;
    // SAFETY: other threads keep what is open; this one does not use it any more, which the caller answers for.
    let done = unsafe { libc::close_range(first, libc::c_uint::MAX, libc::CLOSE_RANGE_UNSHARE as libc::c_int) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets a flag when it is dropped, also when a test fails: threads that go by it end, and do not keep it from failing.
#[derive(Debug)]
pub struct SetAtEnd<'a>(pub &'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

    use std::io::Read;
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn a_thread_with_files_of_its_own_keeps_no_pipe_of_another_thread_open() {
        let (mut reader, writer) = io::pipe().unwrap();
        let ((own, has_own), (end, has_ended)) = (mpsc::channel(), mpsc::channel::<()>());
        let worker = thread::spawn(move || {
            // SAFETY: it uses channels alone.
            own.send(unsafe { have_own_files() }.is_ok()).unwrap();
            has_ended.recv().unwrap_err();
        });
        assert!(has_own.recv().unwrap());
        drop(writer);
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        let begin = Instant::now();
        // Another test's child has a copy, too, until it execs.
        while let Err(error) = reader.read(&mut [0]).map(|len| assert_eq!(len, 0)) {
            assert!(begin.elapsed() < Duration::from_secs(10), "not the end: {error}");
            thread::sleep(Duration::from_millis(5));
        }
        drop(end);
        worker.join().unwrap();
    }
}
