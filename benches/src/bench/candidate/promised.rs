//! A mode of Larder with a server for each promise that is asked of it.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{Candidate, Larder, Setting, Survives};
use crate::bench::meter::Reading;
use crate::mount::Mode;
use crate::proxy::Link;

/// A mode with two servers, the second one from when it is asked for on: what peers promise depends on what programs ask of
/// them, and what Larder does on its server's `--durability`.
pub struct Promised {
    dir: PathBuf,
    mode: Mode,
    link: Link,
    /// By what must be survived.
    each: [Option<Larder>; 2],
    now: usize,
}

impl Promised {
    /// Starts a server in `DIR/MODE`.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start(dir: &Path, mode: Mode, link: Link) -> Result<Promised> {
        let mut one = Promised { dir: dir.to_owned(), mode, link, each: [None, None], now: 0 };
        one.promise(Survives::Crash)?;
        Ok(one)
    }

    fn larder(&self) -> Result<&Larder> {
        self.each[self.now].as_ref().ok_or_else(|| anyhow::anyhow!("it was ended"))
    }

    fn larder_mut(&mut self) -> Result<&mut Larder> {
        self.each[self.now].as_mut().ok_or_else(|| anyhow::anyhow!("it was ended"))
    }
}

impl Candidate for Promised {
    fn name(&self) -> &str {
        self.mode.name()
    }

    fn version(&self) -> Option<String> {
        self.larder().ok()?.version()
    }

    fn settings(&self) -> Option<String> {
        Some("as it comes, but --durability process where nothing that is measured ends with fsync(2)".to_owned())
    }

    fn promise(&mut self, survives: Survives) -> Result<()> {
        let (now, durability, name) = match survives {
            Survives::Crash => (0, "process", self.mode.name().to_owned()),
            Survives::PowerCut => (1, "power", format!("{}-power", self.mode.name())),
        };
        if self.each[now].is_none() {
            let setting = Setting { durability, link: self.link, ..Setting::named(name, self.mode) };
            self.each[now] = Some(Larder::start(&self.dir, setting)?);
        }
        self.now = now;
        Ok(())
    }

    fn need_clients(&mut self, count: usize) -> Result<()> {
        self.larder_mut()?.need_clients(count)
    }

    fn path(&self, client: usize) -> PathBuf {
        self.larder().map_or_else(|_| self.dir.clone(), |larder| larder.path(client))
    }

    fn forget(&mut self, client: usize) -> Result<()> {
        self.larder_mut()?.forget(client)
    }

    fn can_forget(&self) -> bool {
        true
    }

    fn reading(&self) -> Result<Reading> {
        self.larder()?.reading()
    }

    fn end(&mut self) -> Result<()> {
        self.each.iter_mut().filter_map(Option::take).try_for_each(|mut larder| larder.end())
    }
}
