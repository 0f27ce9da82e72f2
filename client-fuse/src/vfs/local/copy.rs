//! The copy of a file that an open node stands for: one version, or what programs of this machine made of it.

use std::any::Any;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::{Bytes, BytesMut};
use larder_protocol::attr::{Attr, Credential, Timestamp};
use larder_protocol::sparse::data_ranges;
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use super::open::WHOLE_AT_OPEN;
use crate::mode::afs::disk::{CHECK_BLOCK, CacheFile, checksums_of};
use crate::vfs::Error;

/// A copy in the disk cache.
pub struct LocalCopy {
    file: Arc<CacheFile>,
    state: Mutex<State>,
    /// Told when a part has come, or none will.
    changed: Notify,
    /// Held while the copy is stored: who comes later finds it stored.
    pub(super) storing: tokio::sync::Mutex<()>,
    /// Counts the fetches that were begun. Held shared while a part of one is written, so that what is cut off by a
    /// truncation does not come back.
    fetch: RwLock<u64>,
    /// What keeps the kernel's own way to the file, once it was tried; there is nothing in it if there is no such way.
    backing: OnceLock<Option<Box<dyn Any + Send + Sync>>>,
    /// Whether it was opened for writing by way of the kernel, which tells nobody of writes.
    unseen_writes: AtomicBool,
    /// Held from the decision to record whether the copy is dirty until that is done, here and on the disk.
    pub(super) recording: Mutex<()>,
}

struct State {
    phase: Phase,
    /// The file as it was at the server at this version; of no meaning before the first part has come.
    attr: Attr,
    /// Whether programs know of the version while it is being fetched.
    served: bool,
    /// Whether it has changes that are not stored.
    dirty: bool,
    /// Counts the changes, from their beginning.
    writes: u64,
    /// Changes that have begun and not ended.
    under_way: u32,
    /// Whoever changed it last.
    writer: Option<Arc<Credential>>,
    /// Size and modification time when there were no changes that nobody was told of.
    clean: Option<(u64, i64, i64)>,
    /// The checksums of what is stored, where writes are not seen.
    sums: Vec<u32>,
}

impl State {
    /// The file as it was at the server, if the version is known.
    fn known(&self) -> Option<&Attr> {
        matches!(self.phase, Phase::Complete | Phase::Fetching { begun: true, .. }).then_some(&self.attr)
    }
}

/// A change of a copy, until it is made.
#[must_use = "the change ends when this is dropped"]
pub(super) struct Change(Arc<LocalCopy>);

impl Drop for Change {
    fn drop(&mut self) {
        self.0.state.lock().under_way -= 1;
    }
}

/// What a store begins with.
pub(super) struct Unstored {
    /// How many changes there were.
    pub(super) writes: u64,
    /// Whether they were all made, so that all of them are going to be stored.
    pub(super) all_made: bool,
    /// Who made the last.
    pub(super) writer: Arc<Credential>,
}

enum Phase {
    /// Nothing of it is here, and nobody has asked for it.
    Absent,
    /// It is on its way. Once `begun`, the version is known; `have` says which parts are here.
    Fetching { begun: bool, have: Vec<bool> },
    /// All of it is here.
    Complete,
    /// It could not be fetched.
    Failed(Error),
}

/// The file on disk that an opened copy may be served from by the kernel itself.
#[derive(Clone)]
pub struct Backing(pub(super) Arc<LocalCopy>);

impl std::fmt::Debug for Backing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Backing").field(&self.0.file.id()).finish()
    }
}

impl Backing {
    /// The kernel's way to the file, made by `make` the first time; `None` if there is none, which then stays so for
    /// as long as this copy is open.
    pub fn way(
        &self,
        make: impl FnOnce(&File) -> Option<Box<dyn Any + Send + Sync>>,
    ) -> Option<&(dyn Any + Send + Sync)> {
        self.0.backing.get_or_init(|| make(self.0.file.file())).as_deref()
    }
}

fn stamp(file: &File) -> io::Result<(u64, i64, i64)> {
    let meta = file.metadata()?;
    Ok((meta.len(), meta.mtime(), meta.mtime_nsec()))
}

impl LocalCopy {
    fn with_phase(file: Arc<CacheFile>, attr: Attr, phase: Phase) -> Arc<LocalCopy> {
        Arc::new(LocalCopy {
            file,
            state: Mutex::new(State {
                phase,
                attr,
                served: false,
                dirty: false,
                writes: 0,
                under_way: 0,
                writer: None,
                clean: None,
                sums: Vec::new(),
            }),
            changed: Notify::new(),
            storing: tokio::sync::Mutex::new(()),
            fetch: RwLock::new(0),
            backing: OnceLock::new(),
            unseen_writes: AtomicBool::new(false),
            recording: Mutex::new(()),
        })
    }

    /// All of this version is in the file.
    pub(super) fn complete(file: Arc<CacheFile>, attr: Attr) -> Arc<LocalCopy> {
        LocalCopy::with_phase(file, attr, Phase::Complete)
    }

    /// Nothing of it is there yet.
    pub(super) fn absent(file: Arc<CacheFile>, attr: Attr) -> Arc<LocalCopy> {
        LocalCopy::with_phase(file, attr, Phase::Absent)
    }

    /// The file in the cache.
    pub fn file(&self) -> &Arc<CacheFile> {
        &self.file
    }

    /// The data version, if it is known.
    pub(in crate::vfs) fn version(&self) -> Option<u64> {
        self.state.lock().known().map(|attr| attr.data_version)
    }

    /// The `change` of the file at this version, if it is known.
    pub(in crate::vfs) fn change(&self) -> Option<u64> {
        self.state.lock().known().map(|attr| attr.change)
    }

    /// Whether it is certainly of another version than this, and has no changes of this machine.
    pub(in crate::vfs) fn is_another(&self, current: u64) -> bool {
        self.version().is_some_and(|version| version != current) && !self.is_dirty()
    }

    /// Whether it has changes that are not stored.
    pub(in crate::vfs) fn is_dirty(&self) -> bool {
        let state = self.state.lock();
        state.dirty || self.has_unseen(&state)
    }

    /// Whether the kernel has written by its own way.
    fn has_unseen(&self, state: &State) -> bool {
        self.unseen_writes.load(Ordering::Acquire)
            && state.clean.is_some_and(|clean| stamp(self.file.file()).is_ok_and(|now| now != clean))
    }

    /// From now on it may be written without anybody being told. `sums` are the checksums of what is stored.
    pub(super) fn expect_unseen(&self, sums: Vec<u32>) {
        let mut state = self.state.lock();
        state.clean = stamp(self.file.file()).ok();
        state.sums = sums;
        self.unseen_writes.store(true, Ordering::Release);
    }

    /// Whether it has other contents than what is stored, where writes are not seen. Reads all of it.
    pub(super) fn differs_unseen(&self) -> io::Result<bool> {
        // Pages that are mapped are not marked as changed again before they were written back.
        self.file.file().sync_data()?;
        let sums = checksums_of(self.file.file())?;
        Ok(sums != self.state.lock().sums)
    }

    /// Somebody has written without anybody having been told.
    pub(super) fn found_changed(&self) {
        let mut state = self.state.lock();
        state.dirty = true;
        state.writes += 1;
    }

    /// Whether the kernel has its own way to the file.
    pub(super) fn has_way(&self) -> bool {
        self.backing.get().is_some_and(Option::is_some)
    }

    /// Whether it may get one.
    pub(super) fn may_have_way(&self) -> bool {
        self.backing.get().is_none_or(Option::is_some)
    }

    /// There is no way for the kernel, and will not be while it is open, unless there is one already: then it is false.
    pub(super) fn without_way(&self) -> bool {
        self.backing.get_or_init(|| None).is_none()
    }

    /// Whether it could not be fetched, and holds nothing of anybody's.
    pub(super) fn has_failed(&self) -> bool {
        let state = self.state.lock();
        matches!(state.phase, Phase::Failed(_)) && !state.dirty
    }

    /// Whether this fetch is the one that the copy comes from.
    pub(super) fn is_from(&self, fetch: u64) -> bool {
        *self.fetch.read() == fetch
    }

    /// The attributes that programs see while this copy is open. False if these are of another version than those that
    /// were given.
    pub(in crate::vfs) fn overlay(&self, attr: &mut Attr) -> bool {
        let state = self.state.lock();
        if state.dirty || self.has_unseen(&state) {
            if let Ok(meta) = self.file.file().metadata() {
                let time = Timestamp { secs: meta.mtime(), nanos: meta.mtime_nsec() as u32 };
                (attr.size, attr.blocks, attr.mtime, attr.ctime) = (meta.len(), meta.blocks(), time, time);
            }
        } else if let Some(own) = state.known().filter(|own| own.data_version != attr.data_version) {
            (attr.size, attr.blocks, attr.mtime, attr.ctime) = (own.size, own.blocks, own.mtime, own.ctime);
            (attr.change, attr.data_version) = (own.change, own.data_version);
            return false;
        }
        true
    }

    /// Its size as programs see it.
    pub(super) fn size(&self) -> u64 {
        let state = self.state.lock();
        if matches!(state.phase, Phase::Complete) {
            return self.file.file().metadata().map_or(state.attr.size, |meta| meta.len());
        }
        state.attr.size
    }

    /// Begins to fetch, if nobody has; the number of the fetch.
    pub(super) fn begin_fetch(&self) -> Option<u64> {
        let mut state = self.state.lock();
        if !matches!(state.phase, Phase::Absent) {
            return None;
        }
        state.phase = Phase::Fetching { begun: false, have: Vec::new() };
        drop(state);
        let mut fetch = self.fetch.write();
        *fetch += 1;
        Some(*fetch)
    }

    /// The first part says which version it is going to be. False if it is not wanted any more.
    pub(super) fn fetch_is(&self, fetch: u64, attr: &Attr) -> io::Result<bool> {
        let current = self.fetch.read();
        if *current != fetch {
            return Ok(false);
        }
        self.file.file().set_len(0)?;
        self.file.file().set_len(attr.size)?;
        let mut state = self.state.lock();
        let parts = attr.size.div_ceil(CHECK_BLOCK as u64) as usize;
        state.attr = attr.clone();
        state.phase = Phase::Fetching { begun: true, have: vec![false; parts] };
        Ok(true)
    }

    /// A part has come. False if it is not wanted any more.
    pub(super) fn fetched(&self, fetch: u64, part: usize, data: &[u8]) -> io::Result<bool> {
        let current = self.fetch.read();
        if *current != fetch {
            return Ok(false);
        }
        // Holes stay holes.
        for range in data_ranges(data) {
            self.file.file().write_all_at(&data[range.clone()], (part * CHECK_BLOCK + range.start) as u64)?;
        }
        if let Phase::Fetching { have, .. } = &mut self.state.lock().phase
            && let Some(place) = have.get_mut(part)
        {
            *place = true;
        }
        self.changed.notify_waiters();
        Ok(true)
    }

    /// Every part has come, or none will.
    pub(super) fn fetch_ended(&self, fetch: u64, result: Result<(), Error>) {
        let current = self.fetch.read();
        if *current == fetch {
            self.state.lock().phase = match result {
                Ok(()) => Phase::Complete,
                Err(error) => Phase::Failed(error),
            };
        }
        self.changed.notify_waiters();
    }

    /// The file has changed while it was being fetched, and another version is going to be. False if a program knows of
    /// this one already, so that no other can take its place.
    pub(super) fn begin_again(&self, fetch: u64) -> bool {
        let current = self.fetch.read();
        let mut state = self.state.lock();
        if state.served {
            return false;
        }
        if *current == fetch {
            // Nobody is to read what there is of the old one before the new one begins.
            state.phase = Phase::Fetching { begun: false, have: Vec::new() };
        }
        true
    }

    /// Whether a range can be read now; `None` if it is not here yet.
    fn ready(&self, range: Option<(u64, u64)>) -> Option<Result<(), Error>> {
        let mut state = self.state.lock();
        match &state.phase {
            Phase::Complete => Some(Ok(())),
            Phase::Failed(error) => Some(Err(*error)),
            Phase::Absent => None,
            Phase::Fetching { begun, have } => {
                let (offset, end) = range.filter(|_| *begun)?;
                let end = end.min(state.attr.size);
                let parts = offset / CHECK_BLOCK as u64..end.div_ceil(CHECK_BLOCK as u64);
                let here = parts.into_iter().all(|part| have.get(part as usize).copied().unwrap_or(true));
                if here {
                    state.served = true;
                }
                here.then_some(Ok(()))
            }
        }
    }

    async fn wait_until(&self, ready: impl Fn() -> Option<Result<(), Error>>) -> Result<(), Error> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(result) = ready() {
                return result;
            }
            changed.await;
        }
    }

    /// Waits until a range is here. The caller bounds the wait.
    pub(super) async fn wait_for(&self, offset: u64, end: u64) -> Result<(), Error> {
        self.wait_until(|| self.ready(Some((offset, end)))).await
    }

    /// Waits until all of it is here.
    pub(super) async fn wait_whole(&self) -> Result<(), Error> {
        self.wait_until(|| self.ready(None)).await
    }

    /// Waits until its version is known; that of a large file stays the same from then on.
    pub(super) async fn wait_version(&self) -> Result<(), Error> {
        let has_version = || {
            let mut state = self.state.lock();
            match &state.phase {
                Phase::Complete => Some(Ok(())),
                Phase::Fetching { begun: true, have } if have.first().copied().unwrap_or(true) => {
                    state.served |= state.attr.size > WHOLE_AT_OPEN;
                    Some(Ok(()))
                }
                Phase::Failed(error) => Some(Err(*error)),
                _ => None,
            }
        };
        self.wait_until(has_version).await
    }

    /// Reads a range that is here.
    pub(super) fn read(&self, offset: u64, size: usize) -> io::Result<Bytes> {
        let file = self.file.file();
        let mut data = BytesMut::zeroed(size);
        let mut done = 0;
        while done < size {
            match file.read_at(&mut data[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        data.truncate(done);
        Ok(data.freeze())
    }

    /// Whether nothing was changed since it was stored, so that a change must be recorded first.
    pub(super) fn needs_record(&self) -> bool {
        !self.state.lock().dirty
    }

    /// A change is going to be made, which is recorded.
    pub(super) fn change_begins(self: &Arc<Self>, writer: &Arc<Credential>) -> Change {
        let mut state = self.state.lock();
        state.dirty = true;
        state.writes += 1;
        state.under_way += 1;
        state.writer = Some(writer.clone());
        Change(self.clone())
    }

    /// Nothing of what the server has is wanted: the file is empty here.
    pub(super) fn cut_to_nothing(&self) -> io::Result<()> {
        let mut fetch = self.fetch.write();
        *fetch += 1;
        self.file.file().set_len(0)?;
        self.state.lock().phase = Phase::Complete;
        drop(fetch);
        self.changed.notify_waiters();
        Ok(())
    }

    /// The version that its changes are based on.
    pub(super) fn base(&self) -> u64 {
        self.state.lock().attr.data_version
    }

    /// How many changes there were, and who made the last, if there are any that are not stored.
    pub(super) fn unstored(&self, writer: &Arc<Credential>) -> Option<Unstored> {
        let state = self.state.lock();
        let unseen = self.has_unseen(&state);
        let writer = state.writer.clone().unwrap_or_else(|| writer.clone());
        let all_made = state.under_way == 0;
        (state.dirty || unseen).then_some(Unstored { writes: state.writes, all_made, writer })
    }

    /// It was stored as it was after so many changes, and is this version then. Whether there were none since.
    /// Where writes are not seen that says little: what is stored is compared at the end.
    pub(super) fn stored(&self, was: &Unstored, attr: &Attr, sums: &[u32]) -> bool {
        let mut state = self.state.lock();
        state.attr = attr.clone();
        let clean = was.all_made && state.writes == was.writes;
        if clean {
            state.dirty = false;
        }
        if self.expects_unseen() {
            state.sums = sums.to_vec();
        }
        clean
    }

    /// Before what is here is stored: writes that nobody is told of count as later from now on.
    pub(super) fn restamp(&self) -> io::Result<()> {
        // Pages that are mapped are marked as changed again only after they were written back.
        self.file.file().sync_data()?;
        self.state.lock().clean = stamp(self.file.file()).ok();
        Ok(())
    }

    /// The contents of this data version are those of a later one too.
    pub(in crate::vfs) fn follow(&self, from: u64, attr: &Attr) {
        let mut state = self.state.lock();
        if state.attr.data_version == from && matches!(state.phase, Phase::Complete) {
            state.attr = attr.clone();
        }
    }

    /// Whether all of it is here and there are no changes, so that it can be used again.
    pub(super) fn is_reusable(&self) -> bool {
        matches!(self.state.lock().phase, Phase::Complete) && !self.is_dirty()
    }

    /// Whether nobody has touched the file in the cache since it was kept.
    pub(super) fn is_untouched(&self) -> bool {
        let state = self.state.lock();
        state.clean.is_none_or(|clean| stamp(self.file.file()).is_ok_and(|now| now == clean))
    }

    /// Whether it may have been written without a word.
    pub(in crate::vfs) fn expects_unseen(&self) -> bool {
        self.unseen_writes.load(Ordering::Acquire)
    }

    /// A copy without the history of this one: as good as opened anew.
    pub(super) fn renewed(&self) -> Arc<LocalCopy> {
        let copy = LocalCopy::complete(self.file.clone(), self.state.lock().attr.clone());
        copy.state.lock().clean = stamp(self.file.file()).ok();
        copy
    }
}
