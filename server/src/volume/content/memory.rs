//! Contents in memory, for tests and simulations: they can lose what was not synced, and fail when told to.

mod sparse;

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};

use bytes::Bytes;
use larder_protocol::attr::Timestamp;
use larder_protocol::limits::MAX_FILE_SIZE;
use larder_protocol::service::file::SeekWhat;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rustix::io::Errno;

use self::sparse::Sparse;
use super::{Content, ContentId, ContentStat, Space};

/// Room there is unless a test says otherwise.
const ROOM: Space = Space { total: 1 << 40, free: 1 << 40, available: 1 << 40, files_free: u64::MAX };

#[derive(Debug)]
struct State {
    /// What reads see.
    live: BTreeMap<ContentId, Sparse>,
    /// What a power cut leaves at least.
    disk: BTreeMap<ContentId, Sparse>,
    space: Space,
    /// Bytes on the disk, if what is stored takes them up.
    disk_size: Option<u64>,
    fail_next_write: bool,
    fail_next_sync: bool,
}

/// Content files in memory.
#[derive(Debug)]
pub struct MemoryContent(Mutex<State>);

impl Default for MemoryContent {
    fn default() -> Self {
        MemoryContent::new()
    }
}

impl MemoryContent {
    /// No content files.
    pub fn new() -> MemoryContent {
        MemoryContent::starting_with(BTreeMap::new())
    }

    fn starting_with(files: BTreeMap<ContentId, Sparse>) -> MemoryContent {
        let (live, disk) = (files.clone(), files);
        let state = State { live, disk, space: ROOM, disk_size: None, fail_next_write: false, fail_next_sync: false };
        MemoryContent(Mutex::new(state))
    }

    /// What a power cut at this moment leaves. Without a seed, all that was not synced is lost, and files that were
    /// removed since are back. With a seed, each block, size, name and removal that was not synced is lost or not.
    pub fn power_cut(&self, seed: Option<u64>) -> MemoryContent {
        let state = self.0.lock();
        let mut random = seed.map(SmallRng::seed_from_u64);
        let mut survives = || random.as_mut().is_some_and(|random| random.random());
        let mut left = BTreeMap::new();
        for (id, disk) in &state.disk {
            match state.live.get(id) {
                Some(live) => left.insert(*id, live.after_power_cut(disk, &mut survives)),
                None if survives() => None,
                None => left.insert(*id, disk.clone()),
            };
        }
        for (id, live) in &state.live {
            if !state.disk.contains_key(id) && survives() {
                left.insert(*id, live.after_power_cut(&Sparse::default(), &mut survives));
            }
        }
        left.values_mut().for_each(Sparse::forget_changes);
        MemoryContent::starting_with(left)
    }

    /// Lets the next write, truncate or reserve fail for lack of space, without a change.
    pub fn fail_next_write(&self) {
        self.0.lock().fail_next_write = true;
    }

    /// Lets the next sync fail with an input/output error. As on Linux, what it should have synced is lost: it is
    /// still read, until [`Content::distrust`], but no later sync saves it.
    pub fn fail_next_sync(&self) {
        self.0.lock().fail_next_sync = true;
    }

    /// Sets the room there is.
    pub fn set_space(&self, space: Space) {
        self.0.lock().space = space;
    }

    /// Lets what is stored take up the room of a disk of so many bytes. Nothing fails for lack of it but by itself.
    pub fn set_disk_size(&self, bytes: u64) {
        self.0.lock().disk_size = Some(bytes);
    }

    /// Flips one bit of the byte at `offset` of a vnode's content files, as a failing disk does.
    pub fn flip_bit(&self, vnode: u64, offset: u64) {
        for (id, file) in &mut self.0.lock().live {
            if id.vnode == vnode {
                let flipped: Vec<u8> = file.read(offset, 1).into_iter().map(|byte| byte ^ 1).collect();
                file.write(offset, &flipped);
            }
        }
    }

    fn with<T>(&self, id: ContentId, run: impl FnOnce(&Sparse) -> T) -> io::Result<T> {
        self.0.lock().live.get(&id).map(run).ok_or_else(not_found)
    }

    fn change(&self, id: ContentId, end: Option<u64>, run: impl FnOnce(&mut Sparse)) -> io::Result<()> {
        let mut state = self.0.lock();
        if end.is_none_or(|end| end > MAX_FILE_SIZE) {
            return Err(Errno::FBIG.into());
        }
        if std::mem::take(&mut state.fail_next_write) {
            return Err(Errno::NOSPC.into());
        }
        run(state.live.get_mut(&id).ok_or_else(not_found)?);
        Ok(())
    }
}

fn not_found() -> io::Error {
    ErrorKind::NotFound.into()
}

impl Content for MemoryContent {
    fn create(&self, id: ContentId) -> io::Result<()> {
        let mut state = self.0.lock();
        if !state.live.contains_key(&id) {
            // Another file than one of this name that was removed: what the disk has is not its own.
            state.disk.remove(&id);
            state.live.insert(id, Default::default());
        }
        Ok(())
    }

    fn read_cached(&self, id: ContentId, offset: u64, len: usize) -> io::Result<Option<Bytes>> {
        self.read(id, offset, len).map(Some)
    }

    fn read(&self, id: ContentId, offset: u64, len: usize) -> io::Result<Bytes> {
        self.with(id, |file| file.read(offset, len).into())
    }

    fn write(&self, id: ContentId, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(id, offset.checked_add(data.len() as u64), |file| file.write(offset, data))
    }

    fn stat(&self, id: ContentId) -> io::Result<ContentStat> {
        self.with(id, |file| ContentStat { size: file.size(), blocks: file.blocks(), modified: Timestamp::default() })
    }

    fn truncate(&self, id: ContentId, size: u64) -> io::Result<()> {
        self.change(id, Some(size), |file| file.truncate(size))
    }

    fn punch(&self, id: ContentId, offset: u64, len: u64) -> io::Result<()> {
        let mut state = self.0.lock();
        state.live.get_mut(&id).ok_or_else(not_found)?.punch(offset, len);
        Ok(())
    }

    fn reserve(&self, id: ContentId, offset: u64, len: u64, keep_size: bool) -> io::Result<()> {
        let end = offset.checked_add(len);
        self.change(id, end, |file| {
            let end = end.unwrap_or(0);
            if !keep_size && len > 0 && end > file.size() {
                file.truncate(end);
            }
        })
    }

    fn seek(&self, id: ContentId, offset: u64, what: SeekWhat) -> io::Result<Option<u64>> {
        self.with(id, |file| file.seek(offset, what))
    }

    fn copy(&self, from: ContentId, from_offset: u64, to: ContentId, to_offset: u64, len: u64) -> io::Result<u64> {
        let (len, data) = self.with(from, |source| {
            let len = source.size().saturating_sub(from_offset).min(len);
            (len, source.data(from_offset, len))
        })?;
        self.change(to, to_offset.checked_add(len), |target| {
            if len > 0 {
                target.punch(to_offset, len);
                target.truncate(target.size().max(to_offset + len));
            }
            for (place, bytes) in data {
                target.write(to_offset + place, &bytes);
            }
        })?;
        Ok(len)
    }

    fn sync(&self, id: ContentId) -> io::Result<()> {
        let mut state = self.0.lock();
        let State { live, disk, fail_next_sync, .. } = &mut *state;
        let file = live.get_mut(&id).ok_or_else(not_found)?;
        if std::mem::take(fail_next_sync) {
            file.forget_changes();
            return Err(Errno::IO.into());
        }
        file.sync_to(disk.entry(id).or_default());
        Ok(())
    }

    fn distrust(&self, id: ContentId) -> io::Result<()> {
        let mut state = self.0.lock();
        let State { live, disk, .. } = &mut *state;
        let file = live.get_mut(&id).ok_or_else(not_found)?;
        file.fall_back_to(disk.get(&id).unwrap_or(&Sparse::default()));
        Ok(())
    }

    fn remove(&self, id: ContentId) -> io::Result<()> {
        self.0.lock().live.remove(&id);
        Ok(())
    }

    fn sync_all(&self) -> io::Result<()> {
        let ids: Vec<ContentId> = self.0.lock().live.keys().copied().collect();
        ids.into_iter().try_for_each(|id| self.sync(id))?;
        self.sync_removals()
    }

    fn sync_removals(&self) -> io::Result<()> {
        let mut state = self.0.lock();
        let State { live, disk, .. } = &mut *state;
        disk.retain(|id, _| live.contains_key(id));
        Ok(())
    }

    fn list(&self, each: &mut dyn FnMut(ContentId), _strange: &mut dyn FnMut(String)) -> io::Result<()> {
        let ids: Vec<ContentId> = self.0.lock().live.keys().copied().collect();
        ids.into_iter().for_each(each);
        Ok(())
    }

    fn space(&self) -> io::Result<Space> {
        let state = self.0.lock();
        let Some(total) = state.disk_size else { return Ok(state.space) };
        let used: u64 = state.live.values().map(|file| file.blocks() * 512).sum();
        let free = total.saturating_sub(used);
        Ok(Space { total, free, available: free, files_free: u64::MAX })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: ContentId = ContentId { vnode: 7, version: 1 };

    fn text(content: &MemoryContent) -> Option<Bytes> {
        content.read(ID, 0, 100).ok()
    }

    #[test]
    fn a_power_cut_leaves_what_was_synced() {
        let content = MemoryContent::new();
        content.create(ID).unwrap();
        content.write(ID, 0, b"one").unwrap();
        assert_eq!(text(&content.power_cut(None)), None);
        content.sync(ID).unwrap();
        content.write(ID, 0, b"two and more").unwrap();
        assert_eq!(text(&content.power_cut(None)), Some("one".into()));
        content.remove(ID).unwrap();
        assert_eq!(text(&content.power_cut(None)), Some("one".into()));
        let left: Vec<_> = (0..64).map(|seed| text(&content.power_cut(Some(seed)))).collect();
        assert!(left.contains(&None) && left.contains(&Some("one".into())));
        content.sync_removals().unwrap();
        assert_eq!(text(&content.power_cut(None)), None);
    }

    #[test]
    fn with_a_seed_anything_between_old_and_new_is_left() {
        let content = MemoryContent::new();
        content.create(ID).unwrap();
        content.write(ID, 0, &[1; 8192]).unwrap();
        content.sync(ID).unwrap();
        content.write(ID, 0, &[2; 8192]).unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..64 {
            let data = content.power_cut(Some(seed)).read(ID, 0, 8192).unwrap();
            seen.insert((data[0], data[8191]));
            assert_eq!(text(&content.power_cut(Some(seed))), Some(data.slice(..100)));
        }
        assert_eq!(seen.len(), 4);
    }

    #[test]
    fn a_failed_sync_loses_what_it_should_have_saved() {
        let content = MemoryContent::new();
        content.create(ID).unwrap();
        content.write(ID, 0, b"old").unwrap();
        content.sync(ID).unwrap();
        content.write(ID, 0, b"new").unwrap();
        content.fail_next_sync();
        assert_eq!(content.sync(ID).unwrap_err().raw_os_error(), Some(Errno::IO.raw_os_error()));
        assert_eq!(text(&content), Some("new".into()));
        content.sync(ID).unwrap();
        assert_eq!(text(&content.power_cut(None)), Some("old".into()));
        content.distrust(ID).unwrap();
        assert_eq!(text(&content), Some("old".into()));
    }

    #[test]
    fn a_failed_write_changes_nothing() {
        let content = MemoryContent::new();
        content.create(ID).unwrap();
        content.fail_next_write();
        let error = content.write(ID, 0, b"x").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::NOSPC.raw_os_error()));
        assert_eq!(text(&content), Some("".into()));
        content.write(ID, 0, b"x").unwrap();
        assert_eq!(text(&content), Some("x".into()));
    }
}
