//! The disk that all stores and caches are on.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Candidate;
use crate::bench::meter::Reading;

/// What it is called.
pub const LOCAL: &str = "local";

/// A directory of the disk: what no network is paid for.
pub struct Local {
    directory: PathBuf,
}

impl Local {
    /// A directory in `dir`.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn new(dir: &Path) -> Result<Local> {
        let directory = dir.join(LOCAL);
        std::fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
        Ok(Local { directory })
    }
}

impl Candidate for Local {
    fn name(&self) -> &'static str {
        LOCAL
    }

    fn version(&self) -> Option<String> {
        None
    }

    fn need_clients(&mut self, _count: usize) -> Result<()> {
        Ok(())
    }

    fn path(&self, _client: usize) -> PathBuf {
        self.directory.clone()
    }

    fn forget(&mut self, _client: usize) -> Result<()> {
        Ok(())
    }

    fn can_forget(&self) -> bool {
        false
    }

    fn reading(&self) -> Result<Reading> {
        Ok(Reading::default())
    }

    fn end(&mut self) -> Result<()> {
        Ok(())
    }
}
