//! An open file's data on its way to the server, and who waits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use larder_protocol::attr::{Credential, Timestamp};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Error;
use crate::core::write_behind::{Action, Config, WriteBehind};

/// The data of one file.
pub(super) struct FileState {
    /// What changes.
    pub flow: Mutex<Flow>,
    /// Told when a request was answered or data was added.
    pub changed: Notify,
    /// Told when the sending task may have something new to send.
    pub work: Notify,
    /// Held by operations that need the file's data at the server and no write in flight.
    pub exclusive: tokio::sync::Mutex<()>,
    /// Handles to write it by, and opens that are going to be (AFS mode).
    writers: AtomicUsize,
}

/// What changes about a file's data.
pub(super) struct Flow {
    /// The data.
    pub data: WriteBehind,
    /// On whose behalf it is sent: the last writer's.
    pub cred: Arc<Credential>,
    /// Whether a task is sending.
    pub sending: bool,
    /// The part of the mount's budget that this file has been charged.
    pub charged: u64,
    /// Counts failed requests; a handle that has seen fewer has an error to report.
    pub failures: u64,
    /// The last failure.
    pub error: Option<Error>,
    /// When the data that is still here was last written to.
    pub touched: Option<Timestamp>,
}

impl FileState {
    /// No data yet.
    pub(super) fn new(config: Config, cred: Arc<Credential>) -> FileState {
        FileState {
            flow: Mutex::new(Flow {
                data: WriteBehind::new(config),
                cred,
                sending: false,
                charged: 0,
                failures: 0,
                error: None,
                touched: None,
            }),
            changed: Notify::new(),
            work: Notify::new(),
            exclusive: tokio::sync::Mutex::new(()),
            writers: AtomicUsize::new(0),
        }
    }

    /// One more is going to write it.
    pub(super) fn begin_writing(&self) {
        self.writers.fetch_add(1, Ordering::SeqCst);
    }

    /// One less writes it.
    pub(super) fn end_writing(&self) {
        self.writers.fetch_sub(1, Ordering::SeqCst);
    }

    /// Whether somebody can write it, or is about to.
    pub(super) fn is_being_written(&self) -> bool {
        self.writers.load(Ordering::SeqCst) > 0
    }

    /// Whether nothing is on its way.
    pub(super) fn is_idle(&self) -> bool {
        let flow = self.flow.lock();
        flow.data.is_idle() && !flow.sending
    }

    #[cfg(test)]
    pub(super) fn for_tests() -> FileState {
        FileState::new(Config::default(), Arc::new(Credential::root()))
    }
}

impl Flow {
    /// The next request to make, if any is due, and on whose behalf.
    pub(super) fn next(&mut self) -> Option<(Action, Arc<Credential>)> {
        let action = self.data.next_action()?;
        Some((action, self.cred.clone()))
    }

    /// Notes a failure for every handle to report.
    pub(super) fn fail(&mut self, error: Error) {
        self.failures += 1;
        self.error = Some(error);
    }
}
