//! A server with a store of its own, as a child process.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use larder_protocol::stats::ServerStats;
use rustix::process::Signal;
use serde::Deserialize;

use crate::mount::Counts;
use crate::process::{Process, binary, command, run};

/// How long a server may take to listen, or to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running (or killed) server.
#[derive(Debug)]
pub struct Server {
    process: Option<Process>,
    dir: PathBuf,
    store: PathBuf,
    durability: &'static str,
    address: String,
    arguments: Vec<String>,
    namespace: Option<String>,
    /// Says by how many seconds its calendar is wrong.
    clock: Option<PathBuf>,
}

impl Server {
    /// Starts a server on a free port of the loopback, with its store in `DIR/store`. `durability` is `power` or
    /// `process`.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start(dir: &Path, durability: &'static str) -> Result<Server> {
        Server::start_on(dir, dir.join("store"), durability)
    }

    /// As [`start`](Server::start), with the store elsewhere.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start_on(dir: &Path, store: PathBuf, durability: &'static str) -> Result<Server> {
        Server::start_of(dir, store, durability, &[])
    }

    /// As [`start_on`](Server::start_on), with more arguments.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start_of(dir: &Path, store: PathBuf, durability: &'static str, arguments: &[&str]) -> Result<Server> {
        Server::begin(dir, store, durability, "127.0.0.1:0", arguments, None, None)
    }

    /// As [`start_of`](Server::start_of), with a calendar that is wrong by as many seconds as the file `clock` says at any
    /// time.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start_with_clock(
        dir: &Path,
        store: PathBuf,
        durability: &'static str,
        arguments: &[&str],
        clock: &Path,
    ) -> Result<Server> {
        Server::begin(dir, store, durability, "127.0.0.1:0", arguments, None, Some(clock))
    }

    /// As [`start`](Server::start), in `process` durability, with more arguments.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start_with(dir: &Path, arguments: &[&str]) -> Result<Server> {
        Server::start_in(dir, "127.0.0.1:0", arguments, None)
    }

    /// As [`start_with`](Server::start_with), listening on `address` in a network namespace of ip-netns(8).
    ///
    /// # Errors
    /// If it does not start.
    pub fn start_in(dir: &Path, address: &str, arguments: &[&str], namespace: Option<&str>) -> Result<Server> {
        Server::begin(dir, dir.join("store"), "process", address, arguments, namespace, None)
    }

    fn begin(
        dir: &Path,
        store: PathBuf,
        durability: &'static str,
        address: &str,
        arguments: &[&str],
        namespace: Option<&str>,
        clock: Option<&Path>,
    ) -> Result<Server> {
        let mut server = Server {
            process: None,
            dir: dir.to_owned(),
            store,
            durability,
            address: address.to_owned(),
            arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
            namespace: namespace.map(ToOwned::to_owned),
            clock: clock.map(Path::to_owned),
        };
        server.restart()?;
        Ok(server)
    }

    /// Starts it again where it was, on the same port.
    ///
    /// # Errors
    /// If it does not start.
    pub fn restart(&mut self) -> Result<()> {
        let command = match &self.clock {
            None => command("larderd", self.namespace.as_deref())?,
            Some(clock) => {
                let mut command = Command::new(binary("larderd-failpoints")?);
                command.env("LARDER_WALL_CLOCK", clock);
                command
            }
        };
        let (mut process, port_file) = self.spawn(command)?;
        // One address in each line; without its end, the line is still being written.
        let address = || Some(fs::read_to_string(&port_file).ok()?.split_once('\n')?.0.to_owned());
        self.address = process.wait_ready(PATIENCE, address)?;
        self.process = Some(process);
        Ok(())
    }

    /// Starts it again where it was, to die as `FAILPOINTS` says; after `within` it is killed. Says whether it died by
    /// itself.
    ///
    /// # Errors
    /// If it cannot be started, or ends in another way.
    pub fn restart_to_die(&mut self, failpoints: &str, within: Duration) -> Result<bool> {
        let mut command = Command::new(binary("larderd-failpoints")?);
        command.env("FAILPOINTS", failpoints);
        command.envs(self.clock.as_ref().map(|clock| ("LARDER_WALL_CLOCK", clock)));
        let (mut process, _) = self.spawn(command)?;
        let began = Instant::now();
        while !process.was_killed()? {
            if began.elapsed() > within {
                process.signal(Signal::KILL)?;
                process.wait(PATIENCE)?;
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(true)
    }

    fn spawn(&self, mut command: Command) -> Result<(Process, PathBuf)> {
        let port_file = self.dir.join("address");
        if let Err(error) = fs::remove_file(&port_file) {
            ensure!(error.kind() == std::io::ErrorKind::NotFound, "removing {}: {error}", port_file.display());
        }
        command.arg("serve").arg("--store").arg(&self.store).args(&self.arguments);
        command.arg("--listen").arg(&self.address);
        command.arg("--durability").arg(self.durability).arg("--port-file").arg(&port_file);
        Ok((Process::spawn(&mut command, &self.dir, "larderd")?, port_file))
    }

    /// Kills it at once, as a crash does. Does nothing if it is not running.
    ///
    /// # Errors
    /// If it has ended by itself before, or does not end.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            ensure!(process.ended()?.is_none(), "larderd has ended by itself:\n{}", process.log());
            process.signal(Signal::KILL)?;
            process.wait(PATIENCE)?;
        }
        Ok(())
    }

    /// Ends it in good order. Does nothing if it is not running.
    ///
    /// # Errors
    /// If it does not end, or not well.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.signal(Signal::TERM)?;
            let status = process.wait(PATIENCE)?;
            ensure!(status.success(), "larderd ended with {status} on SIGTERM:\n{}", process.log());
        }
        Ok(())
    }

    /// Ends it as [`stop`](Server::stop) does, where it may have nothing to keep its work on: whether it succeeds is not
    /// asked, but it must end, and not by a defect.
    ///
    /// # Errors
    /// If it has ended before, does not end now, or was ended by a signal or a panic.
    pub fn abandon(&mut self) -> Result<()> {
        let mut process = self.process.take().context("the server does not run")?;
        if let Some(status) = process.ended()? {
            bail!("larderd ended by itself with {status}:\n{}", process.log());
        }
        process.signal(Signal::TERM)?;
        let status = process.wait(PATIENCE)?;
        ensure!(matches!(status.code(), Some(0 | 1)), "larderd ended with {status} on SIGTERM:\n{}", process.log());
        Ok(())
    }

    /// What it has logged, in all its lives.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("larderd.log")).unwrap_or_default()
    }

    /// `HOST:PORT`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The store's directory.
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// The server's process id, if it runs.
    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// The server's counters.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn stats(&self) -> Result<ServerStats> {
        let mut command = command("larder", self.namespace.as_deref())?;
        let output = run(command.arg("stats").arg(self.address()).arg("--json"))?;
        serde_json::from_slice(&output.stdout).context("reading the server's stats")
    }

    /// How often it has answered requests of each kind.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn counts(&self) -> Result<Counts> {
        Ok(Counts(self.stats()?.requests.into_iter().map(|(kind, stats)| (kind, stats.count)).collect()))
    }

    /// Sends it a signal. Does nothing if it is not running.
    ///
    /// # Errors
    /// If that fails.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.as_ref().map_or(Ok(()), |process| process.signal(signal))
    }

    /// Ends the server and runs `larderd check` on the store.
    ///
    /// # Errors
    /// If the check has anything to complain about.
    pub fn check(&mut self) -> Result<Checked> {
        self.stop()?;
        let output = run(Command::new(binary("larderd")?).args(["check", "--json", "--store"]).arg(&self.store))?;
        serde_json::from_slice(&output.stdout).context("reading what larderd check says")
    }
}

/// What `larderd check` says of a store that is sound.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Checked {
    /// Removed files that clients had open, and may come back for.
    pub kept: Kept,
}

/// Files without a name.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Kept {
    /// How many.
    pub files: u64,
    /// Bytes that they occupy.
    pub bytes: u64,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            // Not a panic: it would hide the one that may be under way.
            eprintln!("{error:#}");
        }
    }
}
