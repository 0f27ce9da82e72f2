//! No wait for ever: what takes too long is said, and released.
//!
//! The workers are waited for with patience, but what breaks things and judges uses mounts, too, and a call on a `hard`
//! mount ends when the server answers. Should that never be, the round would say nothing at all.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::mount::{UnmountFlags, unmount};

use crate::lock;
use crate::process::stacks;

/// What is being done.
#[derive(Default)]
struct Doing {
    since: Option<Instant>,
    /// It took too long; where threads were then.
    overdue: Option<String>,
    is_over: bool,
}

/// Watches one thing after the other.
pub(super) struct Watchdog {
    doing: Arc<(Mutex<Doing>, Condvar)>,
    thread: Option<JoinHandle<()>>,
    limit: Duration,
}

impl Watchdog {
    /// One that takes down all FUSE mounts below `dir` when something takes longer than `limit`.
    pub(super) fn new(dir: &Path, limit: Duration) -> Watchdog {
        let (dir, doing) = (dir.to_owned(), Arc::<(Mutex<Doing>, Condvar)>::default());
        let shared = doing.clone();
        let thread = thread::spawn(move || watch(&shared, &dir, limit));
        Watchdog { doing, thread: Some(thread), limit }
    }

    /// Does something. Tells what took too long, with where it was, beside what came of it.
    pub(super) fn watched<T>(&self, what: &str, act: impl FnOnce() -> T) -> (T, Option<String>) {
        let (doing, changed) = &*self.doing;
        lock(doing).since = Some(Instant::now());
        changed.notify_all();
        let done = act();
        let mut doing = lock(doing);
        doing.since = None;
        let overdue = doing.overdue.take();
        (done, overdue.map(|stacks| format!("{what} took longer than {:?}: {stacks}", self.limit)))
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        lock(&self.doing.0).is_over = true;
        self.doing.1.notify_all();
        // Its panic has been printed.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn watch((doing, changed): &(Mutex<Doing>, Condvar), dir: &Path, limit: Duration) {
    let mut guard = lock(doing);
    while !guard.is_over {
        let Some(since) = guard.since.filter(|_| guard.overdue.is_none()) else {
            guard = changed.wait(guard).unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        let left = limit.saturating_sub(since.elapsed());
        if !left.is_zero() {
            guard = changed.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0;
            continue;
        }
        let stacks = stacks(std::process::id());
        guard.overdue = Some(stacks.clone());
        drop(guard);
        // At once: should nothing help, it would never be told.
        eprintln!("crash: nothing has come back for {limit:?}; what waits: {stacks}");
        for mount in mounts(dir) {
            // What waits for it fails then, with ENOTCONN. That it is in use still is as good.
            let _ = unmount(&mount, UnmountFlags::FORCE | UnmountFlags::DETACH);
        }
        guard = lock(doing);
    }
}

/// FUSE mounts below a directory, from proc(5).
fn mounts(dir: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let fuse = table.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let (path, kind) = (fields.nth(1)?, fields.next()?);
        kind.starts_with("fuse").then(|| PathBuf::from(path))
    });
    fuse.filter(|path| path.starts_with(dir)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

    use std::io;

    use rustix::process::Signal;

    use super::*;
    use crate::mount::{Mode, Mount};
    use crate::process::scratch;
    use crate::server::Server;

    #[test]
    fn a_wait_for_a_server_that_does_not_answer_is_ended_and_told() {
        let dir = scratch().unwrap();
        let server = Server::start(dir.path(), "process").unwrap();
        let mount = Mount::new(dir.path(), "mnt", &server, Mode::Direct, "hard").unwrap();
        let watchdog = Watchdog::new(dir.path(), Duration::from_millis(500));
        let list = || fs::read_dir(mount.path())?.collect::<io::Result<Vec<_>>>().map(|entries| entries.len());
        let (listed, overdue) = watchdog.watched("a list", list);
        assert_eq!((listed.unwrap(), overdue), (0, None));
        server.signal(Signal::STOP).unwrap();
        let (listed, overdue) = watchdog.watched("another one", list);
        server.signal(Signal::CONT).unwrap();
        assert_eq!(listed.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
        let overdue = overdue.unwrap();
        assert!(overdue.starts_with("another one took longer than 500ms") && overdue.contains("fuse_"), "{overdue}");
        // And it goes on.
        assert_eq!(watchdog.watched("nothing", || 1), (1, None));
    }
}
