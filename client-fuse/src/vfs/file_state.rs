//! An open file's data on its way to the server, and who waits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use larder_protocol::attr::{Credential, Timestamp};
use larder_protocol::ids::Epoch;
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
    /// Who waits for the server's disk.
    syncs: Mutex<Syncs>,
    /// Handles to write it by, and opens that are going to be (AFS mode).
    writers: AtomicUsize,
}

/// Programs that sync a file whose server acknowledges sooner than its disk has it. They need not ask for more than that the
/// last request of their data carries this, if one is sent.
#[derive(Default)]
struct Syncs {
    /// How many there were.
    wanted: u64,
    /// The last of them for whom it is done.
    done: u64,
    /// What the server was for the first of those for whom it is not.
    since: Epoch,
}

/// The place of a program among those that sync a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SyncTicket(u64);

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
            syncs: Mutex::default(),
            writers: AtomicUsize::new(0),
        }
    }

    /// A program syncs the file; the server is this one.
    pub(super) fn want_sync(&self, server: Epoch) -> SyncTicket {
        let mut syncs = self.syncs.lock();
        if syncs.wanted == syncs.done {
            syncs.since = server;
        }
        syncs.wanted += 1;
        SyncTicket(syncs.wanted)
    }

    /// Those who wait for a sync, and since when.
    pub(super) fn wanted_sync(&self) -> Option<(SyncTicket, Epoch)> {
        let syncs = self.syncs.lock();
        (syncs.wanted > syncs.done).then_some((SyncTicket(syncs.wanted), syncs.since))
    }

    /// It is done for these, and all before.
    pub(super) fn synced(&self, ticket: SyncTicket) {
        let mut syncs = self.syncs.lock();
        syncs.done = syncs.done.max(ticket.0);
    }

    /// Whether it is done for this one.
    pub(super) fn is_synced(&self, ticket: SyncTicket) -> bool {
        self.syncs.lock().done >= ticket.0
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
