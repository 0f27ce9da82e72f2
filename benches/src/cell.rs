//! A cell of one server and a mount of its root volume, with volumes as an administrator makes them.

use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::mount::{Mode, Mount};
use crate::process::{binary, run, scratch};
use crate::server::Server;

/// Both are ended with it.
pub struct Cell {
    // In the order in which they end.
    /// A mount of its root volume.
    pub mount: Mount,
    /// The server.
    pub server: Server,
    /// Where all of it is.
    pub dir: TempDir,
}

impl Cell {
    /// A new server and a mount in this mode.
    ///
    /// # Errors
    /// If they do not start.
    pub fn new(mode: Mode) -> Result<Cell> {
        let dir = scratch()?;
        let server = Server::start(dir.path(), "process")?;
        let mount = Mount::new(dir.path(), "mnt", &server, mode, "")?;
        Ok(Cell { mount, server, dir })
    }

    /// `larder` with these arguments, for this cell.
    ///
    /// # Errors
    /// If it has not been built.
    pub fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(binary("larder")?);
        command.args(arguments).env("LARDER_SERVER", self.server.address());
        Ok(command)
    }

    /// Runs `larder`, and returns what it prints.
    ///
    /// # Errors
    /// If it fails.
    pub fn larder(&self, arguments: &[&str]) -> Result<String> {
        Ok(String::from_utf8(run(&mut self.command(arguments)?)?.stdout)?)
    }

    /// Runs `larder`, which must fail, and returns what it says.
    ///
    /// # Errors
    /// If it does not.
    pub fn refused(&self, arguments: &[&str]) -> Result<String> {
        let Output { status, stderr, .. } = self.command(arguments)?.output()?;
        ensure!(!status.success(), "larder {arguments:?} did not fail");
        Ok(String::from_utf8(stderr)?)
    }

    /// What a volume is and holds.
    ///
    /// # Errors
    /// If there is none.
    pub fn show(&self, volume: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.larder(&["volume", "show", volume, "--json"])?)?)
    }

    /// Makes a volume and lets it appear under its name in the root directory.
    ///
    /// # Errors
    /// If either fails.
    pub fn add(&self, name: &str, options: &[&str]) -> Result<()> {
        self.larder(&[&["volume", "create", name][..], options].concat())?;
        let at = self.mount.at(name);
        self.larder(&["mountpoint", "add", at.to_str().context("a path that is no text")?, name])?;
        Ok(())
    }

    /// Ends both, and has the store checked.
    ///
    /// # Errors
    /// If either does not end well, or the check finds something.
    pub fn end(mut self) -> Result<()> {
        self.mount.close(false)?;
        self.server.check()?;
        Ok(())
    }
}
