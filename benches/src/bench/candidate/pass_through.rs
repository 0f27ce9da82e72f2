//! The yardstick: the local disk behind a FUSE file system that does nothing else.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::mount::{UnmountFlags, unmount};

use super::Candidate;
use crate::bench::meter::{Reading, Usage};
use crate::mount::is_mounted;
use crate::process::Process;

/// How long a mount may take, or an unmounted process to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long the kernel keeps what it is told where nothing is to be asked twice.
pub const KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// What it is called.
pub const PASS_THROUGH: &str = "pass-through";

/// A directory of the disk through [`pass_through`](crate::pass_through). All clients are one mount: what the kernel keeps
/// is never asked for again, so that two would not see each other's changes.
pub struct PassThrough {
    dir: PathBuf,
    /// How long the kernel may keep names and attributes.
    validity: Duration,
    process: Option<Process>,
}

impl PassThrough {
    /// A mount of a directory in `DIR/pass-through`.
    ///
    /// # Errors
    /// If it cannot be mounted.
    pub fn start(dir: &Path, validity: Duration) -> Result<PassThrough> {
        let dir = dir.join(PASS_THROUGH);
        for name in ["source", "client-0"] {
            fs::create_dir_all(dir.join(name)).with_context(|| format!("making {}", dir.display()))?;
        }
        let mut one = PassThrough { dir, validity, process: None };
        one.mount()?;
        Ok(one)
    }

    fn mount(&mut self) -> Result<()> {
        let path = self.path(0);
        let mut command = Command::new(std::env::current_exe().context("finding this program")?);
        command.arg(PASS_THROUGH).arg(self.dir.join("source")).arg(&path);
        command.args(["--validity", &self.validity.as_secs().to_string()]);
        let mut process = Process::spawn(&mut command, &self.dir, "client-0")?;
        process.wait_ready(PATIENCE, || is_mounted(&path).then_some(()))?;
        self.process = Some(process);
        Ok(())
    }

    fn unmount(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        let path = self.path(0);
        if let Err(error) = unmount(&path, UnmountFlags::empty()) {
            // What the failure leaves must not stay behind.
            let _ = unmount(&path, UnmountFlags::DETACH);
            return Err(error).with_context(|| format!("unmounting {}", path.display()));
        }
        process.wait(PATIENCE).map(|_| ())
    }
}

impl Candidate for PassThrough {
    fn name(&self) -> &'static str {
        PASS_THROUGH
    }

    fn version(&self) -> Option<String> {
        None
    }

    fn need_clients(&mut self, _count: usize) -> Result<()> {
        Ok(())
    }

    fn path(&self, _client: usize) -> PathBuf {
        self.dir.join("client-0")
    }

    fn forget(&mut self, _client: usize) -> Result<()> {
        self.unmount()?;
        self.mount()
    }

    fn can_forget(&self) -> bool {
        true
    }

    fn reading(&self) -> Result<Reading> {
        let processes: Vec<u32> = self.process.iter().map(Process::id).collect();
        Ok(Reading { clients: Usage::of(&processes), ..Reading::default() })
    }

    fn end(&mut self) -> Result<()> {
        self.unmount()
    }
}

impl Drop for PassThrough {
    fn drop(&mut self) {
        if let Err(error) = self.unmount() {
            eprintln!("{PASS_THROUGH}: {error:#}");
        }
    }
}
