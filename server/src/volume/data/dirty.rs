//! What is known of the blocks of a file whose checksums are not stored yet.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use larder_protocol::runtime::BootTime;
use parking_lot::Mutex;

use super::checksums;
use crate::volume::content::ContentId;
use crate::volume::record::{BLOCK, DirtyRecord};

/// Ranges of void blocks remembered one by one; past that the file is looked through as a whole.
const MAX_VOID: usize = 1024;

/// What a block of a dirty file must read as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expect {
    /// What this checksum says.
    Checksum(u32),
    /// All zeros.
    Zero,
    /// What the stored checksum says.
    Stored,
    /// Nothing is known.
    Unknown,
}

#[derive(Clone, Copy, Debug)]
struct Block {
    /// The write that touched it last.
    stamp: u64,
    /// Its checksum, if it is known.
    checksum: Option<u32>,
}

#[derive(Clone, Copy, Debug)]
struct PendingIntent {
    number: u64,
    /// Whether doing it again could undo a later write.
    cuts: bool,
    carried_out: bool,
}

#[derive(Clone, Debug)]
struct Inner {
    mode: DirtyRecord,
    /// Blocks written since checksums were last stored.
    blocks: BTreeMap<u64, Block>,
    /// Blocks whose stored checksums are void because they became holes, in order, not touching.
    void: Vec<Range<u64>>,
    /// No stored checksum counts, and `blocks` is not complete: after a crash.
    rescan: bool,
    /// Counts writes.
    stamp: u64,
    /// Counts holes made: what looking through the file found before one may describe what it removed.
    holes: u64,
    /// Intents whose rows are there.
    intents: Vec<PendingIntent>,
    /// Behind the end there may be what an append wrote that is in doubt.
    tail: bool,
    last_write: BootTime,
}

/// A file whose content file may be ahead of the metadata.
#[derive(Debug)]
pub(crate) struct DirtyFile {
    pub(crate) id: ContentId,
    inner: Mutex<Inner>,
}

/// What to do to the stored checksums so that they describe the file again.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Settlement {
    /// Forget all of them first.
    pub(crate) replace_all: bool,
    /// Then forget those of these blocks.
    pub(crate) void: Vec<Range<u64>>,
    /// Then set these.
    pub(crate) checksums: Vec<(u64, u32)>,
}

impl DirtyFile {
    pub(crate) fn new(id: ContentId, mode: DirtyRecord, now: BootTime) -> DirtyFile {
        let inner = Inner {
            mode,
            blocks: BTreeMap::new(),
            void: Vec::new(),
            rescan: false,
            stamp: 0,
            holes: 0,
            intents: Vec::new(),
            tail: false,
            last_write: now,
        };
        DirtyFile { id, inner: Mutex::new(inner) }
    }

    /// A file found dirty after a crash.
    pub(crate) fn recovered(id: ContentId, mode: DirtyRecord, now: BootTime) -> DirtyFile {
        let file = DirtyFile::new(id, mode, now);
        file.inner.lock().rescan = true;
        file
    }

    /// What is known now, for verifying a copy of the file as it is now.
    pub(crate) fn frozen(&self) -> DirtyFile {
        DirtyFile { id: self.id, inner: Mutex::new(self.inner.lock().clone()) }
    }

    pub(crate) fn mode(&self) -> DirtyRecord {
        self.inner.lock().mode
    }

    pub(crate) fn set_mode(&self, mode: DirtyRecord) {
        self.inner.lock().mode = mode;
    }

    /// Notes that an append is in doubt: what it wrote behind the end is to be cut off once it is not, and not before.
    pub(crate) fn note_tail(&self) {
        self.inner.lock().tail = true;
    }

    /// Whether there is such an append.
    pub(crate) fn has_tail(&self) -> bool {
        self.inner.lock().tail
    }

    /// What was behind the end is cut off.
    pub(crate) fn tail_is_cut(&self) {
        self.inner.lock().tail = false;
    }

    /// Notes an intent that a committed batch holds. `cuts` says that doing it again could undo a later write.
    pub(crate) fn note_intent(&self, number: u64, cuts: bool) {
        self.inner.lock().intents.push(PendingIntent { number, cuts, carried_out: false });
    }

    /// Notes that all intents so far were carried out. Under the gate.
    pub(crate) fn carried_out(&self) {
        self.inner.lock().intents.iter_mut().for_each(|intent| intent.carried_out = true);
    }

    /// The intents that must be gone before a later write counts as durable: all that were carried out, if doing one
    /// of them again could undo it. One that was not yet carried out must stay: the sync that comes now does not
    /// cover it.
    pub(crate) fn intents_to_clear(&self) -> Vec<u64> {
        let inner = self.inner.lock();
        let done = || inner.intents.iter().filter(|intent| intent.carried_out);
        if done().any(|intent| intent.cuts) { done().map(|intent| intent.number).collect() } else { Vec::new() }
    }

    /// Notes that these intents are gone.
    pub(crate) fn cleared(&self, numbers: &[u64]) {
        self.inner.lock().intents.retain(|intent| !numbers.contains(&intent.number));
    }

    /// When it was last written.
    pub(crate) fn last_write(&self) -> BootTime {
        self.inner.lock().last_write
    }

    /// Notes a write. Blocks that `data` covers whole get their checksum from it, which spares reading them again.
    pub(crate) fn note_write(&self, offset: u64, data: &[u8], now: BootTime) {
        let mut inner = self.inner.lock();
        inner.touch(now);
        let end = offset + data.len() as u64;
        for block in blocks_of(offset, data.len() as u64) {
            let start = block * BLOCK;
            let checksum = (start >= offset && start + BLOCK <= end).then(|| {
                let from = (start - offset) as usize;
                checksums::of_block(&data[from..from + BLOCK as usize])
            });
            inner.set(block, checksum);
        }
    }

    /// Notes that the blocks of a range changed in a way that only reading them can tell.
    pub(crate) fn note_change(&self, offset: u64, len: u64, now: BootTime) {
        let mut inner = self.inner.lock();
        inner.touch(now);
        for block in blocks_of(offset, len) {
            inner.set(block, None);
        }
    }

    /// Notes that a range, up to `u64::MAX` for a truncation, became a hole.
    pub(crate) fn note_hole(&self, offset: u64, end: u64, now: BootTime) {
        let mut inner = self.inner.lock();
        inner.touch(now);
        inner.holes += 1;
        let first_whole = offset.div_ceil(BLOCK);
        let last_whole = if end == u64::MAX { u64::MAX } else { end / BLOCK };
        if !offset.is_multiple_of(BLOCK) {
            inner.set(offset / BLOCK, None);
        }
        if end != u64::MAX && !end.is_multiple_of(BLOCK) {
            inner.set(end / BLOCK, None);
        }
        if first_whole < last_whole {
            let covered: Vec<u64> = inner.blocks.range(first_whole..last_whole).map(|(block, _)| *block).collect();
            for block in covered {
                inner.blocks.remove(&block);
            }
            inner.add_void(first_whole..last_whole);
        }
    }

    /// What a block must read as.
    pub(crate) fn expect(&self, block: u64) -> Expect {
        let inner = self.inner.lock();
        match inner.blocks.get(&block) {
            Some(Block { checksum: Some(checksum), .. }) => Expect::Checksum(*checksum),
            Some(Block { checksum: None, .. }) => Expect::Unknown,
            None if inner.rescan => Expect::Unknown,
            None if inner.void.iter().any(|range| range.contains(&block)) => Expect::Zero,
            None => Expect::Stored,
        }
    }

    /// Blocks whose checksum is to be computed, with the stamp to give back, `limit` at most.
    pub(crate) fn unknown(&self, limit: usize) -> Vec<(u64, u64)> {
        let inner = self.inner.lock();
        let unknown = inner.blocks.iter().filter(|(_, block)| block.checksum.is_none());
        unknown.take(limit).map(|(number, block)| (*number, block.stamp)).collect()
    }

    /// Supplies a checksum that was computed from the file, unless the block was written since.
    pub(crate) fn supply(&self, number: u64, stamp: u64, checksum: u32) {
        let mut inner = self.inner.lock();
        if let Some(block) = inner.blocks.get_mut(&number)
            && block.stamp == stamp
        {
            block.checksum = Some(checksum);
        }
    }

    /// If the whole file has to be looked through: a token for what is found then. It is void when a hole is made.
    pub(crate) fn begin_rescan(&self) -> Option<u64> {
        let inner = self.inner.lock();
        inner.rescan.then_some(inner.holes)
    }

    /// Supplies what looking through the file found in a block that nobody wrote since. Writes that come while the
    /// file is looked through note their blocks themselves, and win.
    pub(crate) fn found(&self, token: u64, number: u64, checksum: u32) {
        let mut inner = self.inner.lock();
        if inner.holes == token {
            let stamp = inner.stamp;
            inner.blocks.entry(number).or_insert(Block { stamp, checksum: Some(checksum) });
        }
    }

    /// What is to be stored for a file of `size` bytes, if every changed block's checksum is known. `rescanned` is the token under which every
    /// block with data was looked at.
    pub(crate) fn settlement(&self, size: u64, rescanned: Option<u64>) -> Option<Settlement> {
        let inner = self.inner.lock();
        if inner.rescan && rescanned != Some(inner.holes) {
            return None;
        }
        // A failed write or a hole behind the end leaves blocks that the file does not have.
        let there = inner.blocks.range(..size.div_ceil(BLOCK));
        let known: Option<Vec<(u64, u32)>> = there.map(|(number, block)| Some((*number, block.checksum?))).collect();
        Some(Settlement { replace_all: inner.rescan, void: inner.void.clone(), checksums: known? })
    }
}

impl Inner {
    fn touch(&mut self, now: BootTime) {
        self.stamp += 1;
        self.last_write = now;
    }

    fn set(&mut self, number: u64, checksum: Option<u32>) {
        let stamp = self.stamp;
        self.blocks.insert(number, Block { stamp, checksum });
    }

    fn add_void(&mut self, mut range: Range<u64>) {
        self.void.retain(|other| {
            let touches = other.start <= range.end && range.start <= other.end;
            if touches {
                range = range.start.min(other.start)..range.end.max(other.end);
            }
            !touches
        });
        let at = self.void.partition_point(|other| other.start < range.start);
        self.void.insert(at, range);
        if self.void.len() > MAX_VOID {
            self.void.clear();
            self.rescan = true;
        }
    }
}

/// The blocks that a range of bytes touches.
pub(crate) fn blocks_of(offset: u64, len: u64) -> Range<u64> {
    if len == 0 {
        return 0..0;
    }
    offset / BLOCK..(offset.saturating_add(len) - 1) / BLOCK + 1
}

/// The dirty files of a volume.
#[derive(Debug, Default)]
pub(crate) struct DirtyFiles(Mutex<BTreeMap<u64, Arc<DirtyFile>>>);

impl DirtyFiles {
    pub(crate) fn get(&self, vnode: u64) -> Option<Arc<DirtyFile>> {
        self.0.lock().get(&vnode).cloned()
    }

    pub(crate) fn insert(&self, file: DirtyFile) -> Arc<DirtyFile> {
        let file = Arc::new(file);
        self.0.lock().insert(file.id.vnode, Arc::clone(&file));
        file
    }

    pub(crate) fn remove(&self, vnode: u64) {
        self.0.lock().remove(&vnode);
    }

    /// Those not written since `moment`, in the order of their vnodes, `limit` at most.
    pub(crate) fn idle_since(&self, moment: BootTime, limit: usize) -> Vec<u64> {
        let files = self.0.lock();
        files.values().filter(|file| file.last_write() <= moment).take(limit).map(|file| file.id.vnode).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::volume::content::ContentId;

    const NOW: BootTime = Duration::ZERO;

    fn file() -> DirtyFile {
        DirtyFile::new(ContentId { vnode: 1, version: 1 }, DirtyRecord::InPlace, NOW)
    }

    #[test]
    fn whole_blocks_are_known_and_partial_ones_are_not() {
        let file = file();
        file.note_write(BLOCK - 1, &vec![7; BLOCK as usize + 2], NOW);
        assert_eq!(file.expect(0), Expect::Unknown);
        assert_eq!(file.expect(1), Expect::Checksum(checksums::of_block(&vec![7; BLOCK as usize])));
        assert_eq!(file.expect(2), Expect::Unknown);
        assert_eq!(file.expect(3), Expect::Stored);
        assert!(file.settlement(u64::MAX, None).is_none());
        for (block, stamp) in file.unknown(10) {
            file.supply(block, stamp, 9);
        }
        let settlement = file.settlement(u64::MAX, None).expect("all is known");
        assert_eq!(settlement.checksums.iter().map(|(block, _)| *block).collect::<Vec<_>>(), [0, 1, 2]);
    }

    #[test]
    fn a_checksum_computed_before_a_write_is_not_taken() {
        let file = file();
        file.note_write(0, b"a", NOW);
        let before = file.unknown(1);
        file.note_write(0, b"b", NOW);
        file.supply(before[0].0, before[0].1, 1);
        assert_eq!(file.expect(0), Expect::Unknown);
    }

    #[test]
    fn holes_void_what_was_stored_and_known() {
        let file = file();
        file.note_write(0, &vec![1; 4 * BLOCK as usize], NOW);
        file.note_hole(BLOCK / 2, u64::MAX, NOW);
        assert_eq!(file.expect(0), Expect::Unknown);
        assert_eq!((file.expect(1), file.expect(1 << 40)), (Expect::Zero, Expect::Zero));
        file.note_write(2 * BLOCK, &vec![2; BLOCK as usize], NOW);
        assert!(matches!(file.expect(2), Expect::Checksum(_)));
        file.note_hole(BLOCK, 2 * BLOCK, NOW);
        let void = |file: &DirtyFile| file.inner.lock().void.clone();
        assert_eq!(void(&file).as_slice(), std::slice::from_ref(&(1..u64::MAX)));
    }

    #[test]
    fn after_a_crash_nothing_is_known_until_all_was_looked_at() {
        let file = DirtyFile::recovered(ContentId { vnode: 1, version: 1 }, DirtyRecord::InPlace, NOW);
        assert_eq!(file.expect(0), Expect::Unknown);
        file.note_write(0, &vec![1; BLOCK as usize], NOW);
        let written = file.expect(0);
        let token = file.begin_rescan().expect("it was recovered");
        file.found(token, 0, 42);
        file.found(token, 1, 43);
        assert_eq!(file.expect(0), written, "a write wins");
        assert!(file.settlement(u64::MAX, None).is_none());
        let settlement = file.settlement(u64::MAX, Some(token)).expect("all is known");
        assert!(settlement.replace_all);
        assert_eq!(settlement.checksums.len(), 2);
        file.note_hole(0, 10 * BLOCK, NOW);
        file.found(token, 1, 43);
        assert!(file.settlement(u64::MAX, Some(token)).is_none(), "what was seen before the hole does not count");
    }
}
