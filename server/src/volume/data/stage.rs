//! Staging: the pieces of a file's next contents, which come in any order and more than once.
//!
//! They are collected in a scratch content file (D9), with the checksums of the blocks they cover, until a `store`
//! makes them the file's contents. The file itself and its readers notice nothing, and its gate is not needed.

use std::collections::BTreeMap;
use std::sync::Arc;

use larder_protocol::attr::Credential;
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::{ClientId, Fid};
use larder_protocol::limits::MAX_STAGES;
use larder_protocol::runtime::BootTime;
use larder_protocol::service::file::StageRequest;
use parking_lot::Mutex;

use super::Data;
use super::dirty::DirtyFile;
use super::reclaim::{By, Removals};
use super::scratch::{Leaving, Scratch};
use super::write::{complete_steps, end_of};
use crate::failpoint::Failpoint;
use crate::volume::record::DirtyRecord;
use crate::volume::{Volume, access};

/// Names staged contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct StageKey {
    pub(super) client: ClientId,
    pub(super) fid: Fid,
    pub(super) number: u64,
}

/// Staged contents. Locked by whoever writes, installs or removes them, for as long as that takes.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) state: tokio::sync::Mutex<State>,
    used: Mutex<BootTime>,
}

/// What has become of staged contents.
#[derive(Debug)]
pub(super) enum State {
    /// The first piece is on its way.
    New,
    /// Pieces have come, or can.
    Open(Staged),
    /// Stored, dropped, or never made.
    Gone,
}

/// The pieces that came.
#[derive(Debug)]
pub(super) struct Staged {
    pub(super) scratch: Scratch,
    /// The checksums of the blocks written.
    pub(super) file: Arc<DirtyFile>,
}

/// Everything that is staged in a volume.
#[derive(Debug, Default)]
pub(in crate::volume) struct Stages(Mutex<BTreeMap<StageKey, Arc<Stage>>>);

impl Stage {
    /// It counts as used now.
    pub(super) fn use_at(&self, now: BootTime) {
        *self.used.lock() = now;
    }
}

impl Stages {
    /// The contents of this name, which count as used.
    pub(super) fn find(&self, key: StageKey, now: BootTime) -> Option<Arc<Stage>> {
        let stages = self.0.lock();
        let stage = stages.get(&key)?;
        // While nobody can take it out for being unused.
        stage.use_at(now);
        Some(Arc::clone(stage))
    }

    /// As [`find`](Stages::find), or else new ones; and those that have to go for them.
    fn find_or_begin(
        &self,
        key: StageKey,
        now: BootTime,
        removals: &Arc<Removals>,
    ) -> (Arc<Stage>, Option<Leaving<Stage>>) {
        if let Some(stage) = self.find(key, now) {
            return (stage, None);
        }
        let mut stages = self.0.lock();
        let of_client = || stages.iter().filter(|(other, _)| other.client == key.client);
        let oldest = (of_client().count() >= MAX_STAGES)
            .then(|| of_client().min_by_key(|(_, stage)| *stage.used.lock()).map(|(key, _)| *key))
            .flatten();
        let dropped = oldest.and_then(|oldest| stages.remove(&oldest)).map(|stage| Leaving::new(stage, removals));
        let new = || Arc::new(Stage { state: tokio::sync::Mutex::new(State::New), used: Mutex::new(now) });
        (Arc::clone(stages.entry(key).or_insert_with(new)), dropped)
    }

    /// Takes these contents out, unless others have their name by now.
    pub(super) fn remove(&self, key: StageKey, stage: &Arc<Stage>) {
        let mut stages = self.0.lock();
        if stages.get(&key).is_some_and(|current| Arc::ptr_eq(current, stage)) {
            stages.remove(&key);
        }
    }

    fn take(&self, removals: &Arc<Removals>, which: impl Fn(&StageKey, &Stage) -> bool) -> Vec<Leaving<Stage>> {
        let mut stages = self.0.lock();
        let taken = stages.extract_if(.., |key, stage| which(key, stage));
        taken.map(|(_, stage)| Leaving::new(stage, removals)).collect()
    }

    /// Takes out what nobody uses, or used since `moment`.
    pub(super) fn take_unused(&self, moment: BootTime, removals: &Arc<Removals>) -> Vec<Leaving<Stage>> {
        self.take(removals, |_, stage| *stage.used.lock() <= moment && stage.state.try_lock().is_ok())
    }

    /// Takes out what is staged for a vnode.
    pub(super) fn take_of(&self, vnode: u64, removals: &Arc<Removals>) -> Vec<Leaving<Stage>> {
        self.take(removals, |key, _| key.fid.vnode == vnode)
    }

    /// Takes out everything.
    pub(super) fn take_all(&self, removals: &Arc<Removals>) -> Vec<Leaving<Stage>> {
        self.take(removals, |_, _| true)
    }
}

impl Volume {
    /// Adds a piece to a file's next contents. What comes again is written again.
    ///
    /// # Errors
    /// `NotStaged` for a piece that is not the first of contents that the server knows nothing of (any more);
    /// `AccessDenied`, `Stale`, `NoSpace`, `FileTooLarge`, `IsDirectory` or `Invalid` for what is no file, `Io`.
    pub async fn stage(
        self: &Arc<Self>,
        cred: &Credential,
        client: ClientId,
        request: StageRequest,
    ) -> Result<(), ErrorCode> {
        let bytes = request.data.len() as u64;
        self.data.with_room(By::Request, bytes, || self.data.stage(cred, client, request.clone())).await
    }
}

impl Data {
    async fn stage(
        self: &Arc<Self>,
        cred: &Credential,
        client: ClientId,
        request: StageRequest,
    ) -> Result<(), ErrorCode> {
        let StageRequest { fid, stage: number, first, offset, data } = request;
        let len = data.len() as u64;
        let end = end_of(offset, len)?;
        if !access::may_write_data(cred, &self.load_file(fid)?) {
            return Err(ErrorCode::AccessDenied);
        }
        if !self.room.has_room_for(len) {
            return Err(ErrorCode::NoSpace);
        }
        let (key, now) = (StageKey { client, fid, number }, self.runtime.boottime());
        let stage = if first {
            let (stage, dropped) = self.stages.find_or_begin(key, now, &self.removals);
            if let Some(dropped) = dropped {
                self.drop_stage_later(dropped);
            }
            stage
        } else {
            self.stages.find(key, now).ok_or(ErrorCode::NotStaged)?
        };
        let mut state = stage.state.lock().await;
        if first && matches!(*state, State::New) {
            match self.begin_scratch(fid.vnode).await {
                Ok(scratch) => {
                    let file = Arc::new(DirtyFile::new(scratch.id, DirtyRecord::InPlace, now));
                    *state = State::Open(Staged { scratch, file });
                }
                Err(code) => {
                    *state = State::Gone;
                    self.stages.remove(key, &stage);
                    return Err(code);
                }
            }
        }
        let State::Open(staged) = &*state else { return Err(ErrorCode::NotStaged) };
        let (id, bytes, steps) = (staged.scratch.id, data.0.clone(), complete_steps(offset, end));
        let written = self
            .blocking(move |content| {
                content.write(id, offset, &bytes)?;
                if let Some((offset, len)) = steps {
                    // What this cannot begin, the store does and reports.
                    let _ = content.begin_sync(id, offset, len);
                }
                Ok(())
            })
            .await;
        match written {
            Ok(()) => {
                Failpoint::Staged.pass();
                staged.file.note_write(offset, &data.0, now);
                Ok(())
            }
            Err(error) => {
                // Some of it may be there.
                staged.file.note_change(offset, len, now);
                Err(self.content_error(id, "write", &error))
            }
        }
    }

    /// Drops what a client has staged.
    pub(in crate::volume) async fn drop_stages_of(&self, client: ClientId) {
        for stage in self.stages.take(&self.removals, |key, _| key.client == client) {
            self.drop_stage(stage).await;
        }
    }

    /// Removes staged contents that were taken out, once nobody works on them.
    pub(super) async fn drop_stage(&self, stage: Leaving<Stage>) {
        let state = std::mem::replace(&mut *stage.what.state.lock().await, State::Gone);
        if let State::Open(staged) = state {
            self.discard(staged.scratch).await;
        }
    }

    /// As [`drop_stage`](Data::drop_stage), with nobody waiting for it.
    pub(super) fn drop_stage_later(self: &Arc<Self>, stage: Leaving<Stage>) {
        let data = Arc::clone(self);
        self.later(async move { data.drop_stage(stage).await });
    }
}
