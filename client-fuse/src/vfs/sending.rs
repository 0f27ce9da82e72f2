//! Carrying data to the server: what [`WriteBehind`](crate::core::write_behind) decides is done here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use larder_protocol::attr::Credential;
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::VolumeId;
use larder_protocol::payload::Payload;
use larder_protocol::service::file::{WritePart, WriteRequest};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::asking::Asked;
use super::file_state::{FileState, Flow};
use super::node::Node;
use super::{Error, Vfs};
use crate::core::write_behind::Action;

/// Bytes that programs may have written in all files and that are not yet durable; then they wait.
const BUDGET: u64 = 64 << 20;
/// Data is sent when it is this old (rule 4).
const MAX_AGE: Duration = Duration::from_secs(30);

/// What becomes of a failure.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Failing {
    /// It is on the file's record, for whoever asks for its data next.
    Records,
    /// Whoever waits for the request is told.
    Returns,
}

impl Failing {
    /// Under the lock under which the data went: whoever waits for it and finds it gone must find out why.
    fn note(self, flow: &mut Flow, error: Error) -> Result<(), Error> {
        if self == Failing::Records {
            flow.fail(error);
        }
        Err(error)
    }
}

/// A file, with the state of its data.
type OpenFile = (Arc<Node>, Arc<FileState>);

/// The files with data on its way, by number and generation.
#[derive(Default)]
pub(super) struct Unsent {
    files: Mutex<BTreeMap<(u64, u64), OpenFile>>,
    bytes: AtomicU64,
    freed: Notify,
}

impl Unsent {
    /// Bytes on their way in all files, about.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The files that have data on their way: their nodes' numbers and generations.
    pub(super) fn files(&self) -> Vec<(u64, u64)> {
        self.files.lock().keys().copied().collect()
    }

    /// Whether any file has data on its way.
    pub(super) fn any(&self) -> bool {
        !self.files.lock().is_empty()
    }

    /// All files with data on its way.
    pub(super) fn all(&self) -> Vec<OpenFile> {
        self.files.lock().values().cloned().collect()
    }
}

impl Vfs {
    /// Brings the books up to date after a file's data has changed: the budget, the list of files with data, and what
    /// can be freed. Wakes whoever waits for the file.
    pub(super) fn settle(&self, node: &Arc<Node>, file: &Arc<FileState>) {
        let idle = {
            let mut flow = file.flow.lock();
            let (weight, idle) = (flow.data.weight(), flow.data.is_idle());
            let before = std::mem::replace(&mut flow.charged, weight);
            // The lists follow the data under its lock, so that they cannot end up the wrong way round.
            if weight > before {
                self.unsent.bytes.fetch_add(weight - before, Ordering::Relaxed);
            } else {
                self.unsent.bytes.fetch_sub(before - weight, Ordering::Relaxed);
            }
            let key = (node.number, node.fid.generation);
            let mut files = self.unsent.files.lock();
            if idle {
                files.remove(&key);
            } else {
                if files.is_empty() {
                    self.wake.notify_one();
                }
                files.entry(key).or_insert_with(|| (node.clone(), file.clone()));
            }
            if !flow.data.has_unsent() {
                flow.touched = None;
            }
            idle
        };
        file.changed.notify_waiters();
        self.unsent.freed.notify_waiters();
        if idle && !node.is_open() {
            self.nodes.tidy(node);
        }
    }

    /// Starts sending what is due, if nobody is at it.
    pub(super) fn kick(&self, node: &Arc<Node>, file: &Arc<FileState>) {
        let first = {
            let mut flow = file.flow.lock();
            if flow.sending {
                None
            } else {
                let next = flow.next();
                flow.sending = next.is_some();
                next
            }
        };
        match (first, self.weak.upgrade()) {
            (Some(first), Some(vfs)) => {
                let (node, file) = (node.clone(), file.clone());
                self.runtime.start(Box::pin(async move { vfs.send(node, file, first).await }));
            }
            _ => file.work.notify_one(),
        }
    }

    /// Sends what is due until nothing is.
    async fn send(self: Arc<Vfs>, node: Arc<Node>, file: Arc<FileState>, first: (Action, Arc<Credential>)) {
        let mut under_way = FuturesUnordered::new();
        under_way.push(self.carry_out(&node, &file, first, Failing::Records));
        loop {
            loop {
                let next = {
                    let mut flow = file.flow.lock();
                    let next = flow.next();
                    flow.sending = next.is_some() || !under_way.is_empty();
                    next
                };
                match next {
                    Some(next) => under_way.push(self.carry_out(&node, &file, next, Failing::Records)),
                    None => break,
                }
            }
            if under_way.is_empty() {
                break;
            }
            tokio::select! {
                // Either way all work that there is gets looked for before the next answer is.
                biased;
                Some(result) = under_way.next() => {
                    if let Err(error) = result {
                        tracing::warn!("data written to {} was lost: {error}", node.fid);
                    }
                }
                () = file.work.notified() => {}
            }
        }
        self.settle(&node, &file);
    }

    /// Makes one request, on behalf of whoever it was given with, and takes in its answer.
    ///
    /// # Errors
    /// The server's, or that there is no answer; the data of the request is given up.
    pub(super) async fn carry_out(
        &self,
        node: &Arc<Node>,
        file: &Arc<FileState>,
        (action, cred): (Action, Arc<Credential>),
        failing: Failing,
    ) -> Result<(), Error> {
        let asked = Asked::plain(self.stamp());
        let result = match action {
            Action::Write { id, parts, stable } => {
                let part = |(offset, data)| WritePart { offset, data: Payload(data) };
                let parts = parts.into_iter().map(part).collect();
                let request = WriteRequest { fid: node.fid, parts, stable };
                match self.with_room(|| self.servers.write(&cred, request.clone())).await {
                    Ok(written) => {
                        // First the attributes, then the data: in between nobody may see the file shrink.
                        self.learn_own(node, &written.attr, &asked);
                        file.flow.lock().data.wrote(id, Some((written.stable, written.verifier)));
                        Ok(())
                    }
                    Err(error) => {
                        let mut flow = file.flow.lock();
                        flow.data.wrote(id, None);
                        failing.note(&mut flow, error)
                    }
                }
            }
            Action::Commit { id } => match self.servers.commit(&cred, node.fid).await {
                Ok(committed) => {
                    self.learn(node, committed.attr, &asked);
                    file.flow.lock().data.committed(id, Some(committed.verifier));
                    Ok(())
                }
                Err(failure) => {
                    let mut flow = file.flow.lock();
                    flow.data.committed(id, None);
                    failing.note(&mut flow, failure.into())
                }
            },
        };
        if result.is_err() {
            // What the kernel has in its pages never got to the server.
            let mut state = node.state.lock();
            state.attrs.drop_validity();
            if let Some(pages) = state.pages.as_deref_mut() {
                pages.forget();
            }
        }
        self.settle(node, file);
        result
    }

    /// Waits until a file's data is as `until` wants it.
    ///
    /// # Errors
    /// `Aborted` at the end of the mount.
    pub(super) async fn wait_for(&self, file: &FileState, until: impl Fn(&Flow) -> bool) -> Result<(), Error> {
        loop {
            let changed = file.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if until(&file.flow.lock()) {
                return Ok(());
            }
            self.until_abort(changed).await?;
        }
    }

    /// Sends what has been written to a file so far, and commits it if `durable`. Failures are on the file's record.
    ///
    /// # Errors
    /// `Aborted` at the end of the mount.
    pub(super) async fn flush_data(&self, node: &Arc<Node>, file: &Arc<FileState>, durable: bool) -> Result<(), Error> {
        let epoch = {
            let mut flow = file.flow.lock();
            if flow.data.is_idle() || !(durable || flow.data.has_unsent()) {
                return Ok(());
            }
            flow.data.flush(durable)
        };
        self.kick(node, file);
        self.wait_for(file, |flow| flow.data.reached(epoch, durable)).await
    }

    /// Sends and commits a file's data and lets no write be in flight until the result is dropped: for operations that
    /// have an order with writes.
    ///
    /// # Errors
    /// `Aborted` at the end of the mount.
    pub(super) async fn exclusive<'a>(
        &'a self,
        node: &'a Arc<Node>,
        file: &'a Arc<FileState>,
    ) -> Result<Exclusive<'a>, Error> {
        let turn = self.until_abort(file.exclusive.lock()).await?;
        let epoch = file.flow.lock().data.hold();
        let exclusive = Exclusive { vfs: self, node, file, _turn: turn };
        self.kick(node, file);
        self.wait_for(file, |flow| flow.data.reached(epoch, true) && flow.data.is_quiet()).await?;
        Ok(exclusive)
    }

    /// Waits until there is room for more data, sending what there is.
    ///
    /// # Errors
    /// `Aborted` at the end of the mount.
    pub(super) async fn wait_for_room(&self) -> Result<(), Error> {
        loop {
            let freed = self.unsent.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if self.unsent.bytes() <= BUDGET {
                return Ok(());
            }
            for (node, file) in self.unsent.all() {
                file.flow.lock().data.relieve();
                self.kick(&node, &file);
            }
            self.until_abort(freed).await?;
        }
    }

    /// Sends what is old (rule 4).
    pub(super) fn send_old(&self) {
        let now = self.runtime.boottime();
        for (node, file) in self.unsent.all() {
            let old = {
                let mut flow = file.flow.lock();
                let old = flow.data.has_older(now, MAX_AGE);
                if old {
                    flow.data.flush(true);
                }
                old
            };
            if old {
                self.kick(&node, &file);
            }
        }
    }

    /// The server was restarted: what the process before had not committed is sent again.
    pub(super) fn check_sent(&self) {
        for (node, file) in self.unsent.all() {
            {
                let mut flow = file.flow.lock();
                self.follow_server(node.fid.volume, &mut flow);
                flow.data.commit_soon();
            }
            self.kick(&node, &file);
        }
    }

    /// Lets a file's data know which server process answers. The background sends what that makes dirty.
    pub(super) fn follow_server(&self, volume: VolumeId, flow: &mut Flow) {
        if let Some(welcome) = self.servers.welcome_of(volume) {
            flow.data.served_by(welcome.epoch);
        }
    }

    /// # Errors
    /// `FileTooLarge` if the range goes past the largest file.
    pub(super) fn end_of(offset: u64, len: u64) -> Result<u64, Error> {
        match offset.checked_add(len) {
            Some(end) if end <= larder_protocol::limits::MAX_FILE_SIZE => Ok(end),
            _ => Err(ErrorCode::FileTooLarge.into()),
        }
    }
}

/// All that was written to the file is committed, and no write of it is in flight while this lives.
pub(super) struct Exclusive<'a> {
    vfs: &'a Vfs,
    node: &'a Arc<Node>,
    file: &'a Arc<FileState>,
    _turn: tokio::sync::MutexGuard<'a, ()>,
}

impl Drop for Exclusive<'_> {
    fn drop(&mut self) {
        self.file.flow.lock().data.release();
        self.file.changed.notify_waiters();
        self.vfs.kick(self.node, self.file);
    }
}
