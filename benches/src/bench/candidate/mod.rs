//! What is measured: file systems that are mounted in directories of ours.

mod larder;
mod local;
mod pass_through;
mod peer;

use std::path::PathBuf;

use anyhow::Result;

pub use self::larder::{Larder, Setting, round_trip, version};
pub use self::local::{LOCAL, Local};
pub use self::pass_through::{KEPT, PASS_THROUGH, PassThrough};
pub use self::peer::Peer;
use super::meter::Reading;

/// A file system with one server and some clients on this machine, each of which shows the same tree.
pub trait Candidate {
    /// What it is called.
    fn name(&self) -> &str;

    /// Which version it is, if that can be told.
    fn version(&self) -> Option<String>;

    /// How it is set up, for who reads the report.
    fn settings(&self) -> Option<String> {
        None
    }

    /// Sees to it that there are this many clients at least.
    ///
    /// # Errors
    /// If there cannot be so many.
    fn need_clients(&mut self, count: usize) -> Result<()>;

    /// Where a client shows the tree.
    fn path(&self, client: usize) -> PathBuf;

    /// Gives a client empty caches: it is unmounted and mounted again. Where its files were stays the same.
    ///
    /// # Errors
    /// If it cannot be mounted again.
    fn forget(&mut self, client: usize) -> Result<()>;

    /// Whether [`forget`](Candidate::forget) does anything.
    fn can_forget(&self) -> bool;

    /// What it has used so far.
    ///
    /// # Errors
    /// If that cannot be told.
    fn reading(&self) -> Result<Reading>;

    /// Ends it, so that what is wrong then is not lost.
    ///
    /// # Errors
    /// If it does not end.
    fn end(&mut self) -> Result<()>;
}
