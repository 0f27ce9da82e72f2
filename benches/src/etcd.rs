//! An etcd of a test's own, on the loopback.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;

use crate::process::{Process, within};

/// How long it may take to begin, or to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// It is ended when this is dropped.
#[derive(Debug)]
pub struct Etcd {
    process: Option<Process>,
    dir: PathBuf,
    host: String,
    namespace: Option<String>,
    client: u16,
    peer: u16,
}

/// How often it has begun to serve, by its log.
fn lives(dir: &Path) -> usize {
    fs::read_to_string(dir.join("etcd.log")).map_or(0, |log| log.matches("ready to serve").count())
}

/// A port that nobody had a moment ago.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl Etcd {
    /// Starts it, with its data in `DIR/etcd`.
    ///
    /// # Errors
    /// If it is not installed (Debian: etcd-server), or does not start.
    pub fn start(dir: &Path) -> Result<Etcd> {
        Etcd::start_in(dir, "127.0.0.1", None)
    }

    /// As [`start`](Etcd::start), at an address in a network namespace of ip-netns(8).
    ///
    /// # Errors
    /// As [`start`](Etcd::start).
    pub fn start_in(dir: &Path, host: &str, namespace: Option<&str>) -> Result<Etcd> {
        let dir = dir.join("etcd");
        fs::create_dir(&dir)?;
        let (host, namespace) = (host.to_owned(), namespace.map(ToOwned::to_owned));
        let mut etcd = Etcd { process: None, dir, host, namespace, client: free_port()?, peer: free_port()? };
        etcd.restart()?;
        Ok(etcd)
    }

    /// Starts it again where it was.
    ///
    /// # Errors
    /// If it does not start.
    pub fn restart(&mut self) -> Result<()> {
        let (client, peer) = (format!("http://{}", self.address()), format!("http://{}:{}", self.host, self.peer));
        let mut command = within(Path::new("etcd"), self.namespace.as_deref());
        command.arg("--data-dir").arg(self.dir.join("data"));
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("default={peer}")]);
        let before = lives(&self.dir);
        let mut process =
            Process::spawn(&mut command, &self.dir, "etcd").context("etcd; Debian has it in etcd-server")?;
        // By what it logs: its network need not lead here.
        process.wait_ready(PATIENCE, || (lives(&self.dir) > before).then_some(()))?;
        self.process = Some(process);
        Ok(())
    }

    /// Ends it.
    ///
    /// # Errors
    /// If it does not end.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.signal(Signal::TERM)?;
            process.wait(PATIENCE)?;
        }
        Ok(())
    }

    /// `HOST:PORT`.
    pub fn address(&self) -> String {
        format!("{}:{}", self.host, self.client)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            // Not a panic: it would hide the one that may be under way.
            eprintln!("{error:#}");
        }
    }
}
