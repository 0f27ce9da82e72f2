//! A place in the world for one mount after the other.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;

use crate::lock;
use crate::medium::Medium;
use crate::mount::{Mode, Mount};

/// One mount after the other, in the same place of the world.
pub struct Seat {
    pub(super) mode: Mode,
    /// Raised before a mount is taken down.
    pub(super) lives: AtomicU64,
    /// A life in which the client dies by itself, if there is one.
    pub(super) doomed: AtomicU64,
    pub(super) mount: Mutex<Option<Mount>>,
    pub(super) mounted: Condvar,
    /// Power cuts so far.
    pub(super) cuts: AtomicU64,
    /// No mount comes any more.
    pub(super) is_given_up: AtomicBool,
    pub(super) cache: PathBuf,
    pub(super) medium: Mutex<Option<Medium>>,
}

impl Seat {
    pub(super) fn new(mode: Mode, cache: PathBuf, medium: Option<Medium>) -> Seat {
        Seat {
            mode,
            lives: AtomicU64::new(0),
            doomed: AtomicU64::new(u64::MAX),
            mount: Mutex::new(None),
            mounted: Condvar::new(),
            cuts: AtomicU64::new(0),
            is_given_up: AtomicBool::new(false),
            cache,
            medium: Mutex::new(medium),
        }
    }

    /// How it caches.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Its number of lives so far: it differs if the mount was taken down in between.
    pub fn lives(&self) -> u64 {
        self.lives.load(Ordering::SeqCst)
    }

    /// Whether that life is over. Waits for the end of one in which the client dies by itself.
    pub fn is_over(&self, life: u64) -> bool {
        while self.lives() == life && self.doomed.load(Ordering::SeqCst) == life {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.lives() != life
    }

    /// Waits until there is a mount; which life that is, and where. `None` if there will be none.
    pub fn wait_mounted(&self) -> Option<(u64, PathBuf)> {
        let comes = |mount: &mut Option<Mount>| mount.is_none() && !self.is_given_up.load(Ordering::SeqCst);
        let waiting = self.mounted.wait_while(lock(&self.mount), comes);
        let mount = waiting.unwrap_or_else(PoisonError::into_inner);
        mount.as_ref().map(|mount| (self.lives(), mount.path().to_owned()))
    }

    /// The life is over: the mount, to be taken down.
    pub(super) fn end_life(&self) -> Option<Mount> {
        let mount = lock(&self.mount).take();
        self.lives.fetch_add(1, Ordering::SeqCst);
        mount
    }

    /// Its user looks what the client has kept as conflicts, and has no use for it.
    pub(super) fn forget_conflicts(&self) -> Result<()> {
        let mount = lock(&self.mount);
        mount.as_ref().filter(|mount| mount.mode() == Mode::Afs).map_or(Ok(()), Mount::forget_conflicts)
    }

    /// What the client has logged in this life.
    pub fn log(&self) -> String {
        lock(&self.mount).as_ref().map(Mount::log).unwrap_or_default()
    }

    /// The client's process id, unless it is just being replaced.
    pub(super) fn id(&self) -> Option<u32> {
        self.mount.try_lock().ok()?.as_ref()?.id()
    }
}
