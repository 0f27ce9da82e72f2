//! Other file systems, started and mounted by `scripts/bench.d/peer`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::Candidate;
use crate::bench::meter::{Reading, Usage, loopback_bytes};

/// Seconds that a server may take to start, or a client to mount or unmount.
const PATIENCE: &str = "150";

/// Another file system.
pub struct Peer {
    name: String,
    script: PathBuf,
    dir: PathBuf,
    clients: usize,
}

impl Peer {
    /// Starts a peer's servers in `DIR/NAME`. `script` is `scripts/bench.d/peer`.
    ///
    /// # Errors
    /// Why it cannot run here.
    pub fn start(script: &Path, dir: &Path, name: &str) -> Result<Peer> {
        let dir = dir.join(name);
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        let peer = Peer { name: name.to_owned(), script: script.to_owned(), dir, clients: 0 };
        peer.run(&["start"])?;
        Ok(peer)
    }

    fn run(&self, arguments: &[&str]) -> Result<String> {
        let log = self.dir.join("log");
        let (verb, rest) = arguments.split_first().context("no verb")?;
        let status = Command::new("timeout")
            .args(["--kill-after=5", PATIENCE])
            .arg(&self.script)
            .args([self.name.as_str(), verb])
            .arg(&self.dir)
            .args(rest)
            // A file: what is started must not keep a pipe of ours open.
            .stdout(fs::File::create(&log)?)
            .stderr(fs::File::options().append(true).open(&log)?)
            .stdin(std::process::Stdio::null())
            .status()
            .with_context(|| format!("running {}", self.script.display()))?;
        let said = fs::read_to_string(&log)?;
        if !status.success() {
            let last = said.lines().last().unwrap_or("it says nothing").to_owned();
            bail!("{verb}: {last}");
        }
        Ok(said)
    }

    /// Ids that the script has noted in a file.
    fn processes(&self, file: &str) -> Vec<u32> {
        let noted = fs::read_to_string(self.dir.join(file)).unwrap_or_default();
        noted.split_whitespace().filter_map(|id| id.parse().ok()).collect()
    }

    fn of_client(&self, verb: &str, client: usize) -> Result<()> {
        let path = self.path(client);
        let path = path.to_str().context("the path is not UTF-8")?;
        self.run(&[verb, &client.to_string(), path]).map(|_| ())
    }
}

impl Candidate for Peer {
    fn name(&self) -> &str {
        &self.name
    }

    fn version(&self) -> Option<String> {
        Some(self.run(&["version"]).ok()?.trim().to_owned()).filter(|version| !version.is_empty())
    }

    fn settings(&self) -> Option<String> {
        // What its own file begins with.
        let file = self.script.parent()?.join("peers").join(format!("{}.sh", self.name));
        let text = fs::read_to_string(file).ok()?;
        let told =
            text.lines().map_while(|line| line.strip_prefix("# ")).filter(|line| !line.starts_with("shellcheck"));
        Some(told.collect::<Vec<_>>().join(" "))
    }

    fn need_clients(&mut self, count: usize) -> Result<()> {
        while self.clients < count {
            fs::create_dir_all(self.path(self.clients))?;
            self.of_client("mount", self.clients)?;
            self.clients += 1;
        }
        Ok(())
    }

    fn path(&self, client: usize) -> PathBuf {
        self.dir.join(format!("client-{client}"))
    }

    fn forget(&mut self, client: usize) -> Result<()> {
        ensure!(client < self.clients, "there is no client {client}");
        self.of_client("unmount", client)?;
        self.of_client("mount", client)
    }

    fn can_forget(&self) -> bool {
        true
    }

    fn reading(&self) -> Result<Reading> {
        let clients: Vec<u32> =
            (0..self.clients).flat_map(|client| self.processes(&format!("client-{client}.pids"))).collect();
        Ok(Reading {
            requests: Default::default(),
            wire: loopback_bytes()?,
            servers: Usage::of_trees(&self.processes("servers.pids")),
            clients: Usage::of_trees(&clients),
        })
    }

    fn end(&mut self) -> Result<()> {
        while self.clients > 0 {
            self.clients -= 1;
            self.of_client("unmount", self.clients)?;
        }
        self.run(&["stop"]).map(|_| ())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("{}: {error:#}", self.name);
        }
    }
}
