//! A file with holes, in memory, that knows what changed since it was last synced.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use larder_protocol::service::file::SeekWhat;

/// Bytes of a block: the least that is a hole or lost at once.
const BLOCK: u64 = 4096;

type Block = Arc<[u8; BLOCK as usize]>;

#[derive(Clone, Debug, Default)]
pub(super) struct Sparse {
    size: u64,
    /// Blocks that are no holes. Bytes behind `size` are zeros.
    blocks: BTreeMap<u64, Block>,
    /// Blocks changed since the last sync.
    changed: BTreeSet<u64>,
    size_changed: bool,
}

impl Sparse {
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Units of 512 bytes.
    pub(super) fn blocks(&self) -> u64 {
        self.blocks.len() as u64 * (BLOCK / 512)
    }

    pub(super) fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let end = offset.saturating_add(len as u64).min(self.size);
        if offset >= end {
            return Vec::new();
        }
        // At most `len`, which is a `usize`.
        let mut data = vec![0; (end - offset) as usize];
        for (number, block) in self.blocks.range(offset / BLOCK..end.div_ceil(BLOCK)) {
            let start = number * BLOCK;
            let (from, to) = (start.max(offset), (start + BLOCK).min(end));
            let piece = &block[(from - start) as usize..(to - start) as usize];
            data[(from - offset) as usize..(to - offset) as usize].copy_from_slice(piece);
        }
        data
    }

    /// The parts of a range that are no holes, and how far into it each starts.
    pub(super) fn data(&self, offset: u64, len: u64) -> Vec<(u64, Vec<u8>)> {
        let end = offset.saturating_add(len).min(self.size);
        let blocks = offset / BLOCK..end.div_ceil(BLOCK).max(offset / BLOCK);
        let part = |number: &u64| {
            let (from, to) = ((number * BLOCK).max(offset), ((number + 1) * BLOCK).min(end));
            // At most a block.
            (from - offset, self.read(from, to.saturating_sub(from) as usize))
        };
        self.blocks.range(blocks).map(|(number, _)| part(number)).collect()
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let inside = (at % BLOCK) as usize;
            let piece = (BLOCK as usize - inside).min(data.len() - done);
            self.block(at / BLOCK)[inside..inside + piece].copy_from_slice(&data[done..done + piece]);
            done += piece;
        }
        if !data.is_empty() {
            self.set_size(self.size.max(offset + data.len() as u64));
        }
    }

    pub(super) fn truncate(&mut self, size: u64) {
        if size < self.size {
            self.punch(size, self.size - size);
            // The last block of the file goes too where no byte of it is left.
            let gone: Vec<u64> = self.blocks.range(size.div_ceil(BLOCK)..).map(|(number, _)| *number).collect();
            for number in gone {
                self.drop_block(number);
            }
        }
        self.set_size(size);
    }

    pub(super) fn punch(&mut self, offset: u64, len: u64) {
        let end = offset.saturating_add(len);
        let touched: Vec<u64> = self.blocks.range(offset / BLOCK..end.div_ceil(BLOCK)).map(|(n, _)| *n).collect();
        for number in touched {
            let start = number * BLOCK;
            let (from, to) = (offset.max(start) - start, end.min(start + BLOCK) - start);
            if (from, to) == (0, BLOCK) {
                self.drop_block(number);
            } else {
                self.block(number)[from as usize..to as usize].fill(0);
            }
        }
    }

    pub(super) fn seek(&self, offset: u64, what: SeekWhat) -> Option<u64> {
        if offset >= self.size {
            return None;
        }
        match what {
            SeekWhat::Data => {
                let (number, _) = self.blocks.range(offset / BLOCK..).next()?;
                Some(offset.max(number * BLOCK)).filter(|found| *found < self.size)
            }
            SeekWhat::Hole => {
                let mut number = offset / BLOCK;
                while self.blocks.contains_key(&number) {
                    number += 1;
                }
                Some(offset.max(number * BLOCK).min(self.size))
            }
        }
    }

    /// Saves what changed since the last sync.
    pub(super) fn sync_to(&mut self, disk: &mut Sparse) {
        for number in &self.changed {
            disk.take_block(*number, self.blocks.get(number));
        }
        if self.size_changed {
            disk.truncate(self.size);
        }
        disk.forget_changes();
        self.forget_changes();
    }

    /// No sync will save what changed so far.
    pub(super) fn forget_changes(&mut self) {
        self.changed.clear();
        self.size_changed = false;
    }

    /// Becomes what is on the disk, but for changes that can still be saved.
    pub(super) fn fall_back_to(&mut self, disk: &Sparse) {
        let mut merged = disk.clone();
        for number in &self.changed {
            merged.take_block(*number, self.blocks.get(number));
        }
        if self.size_changed {
            merged.truncate(self.size);
        }
        (merged.changed, merged.size_changed) = (std::mem::take(&mut self.changed), self.size_changed);
        *self = merged;
    }

    /// What is left of this and what was on the disk, where `survives` says of each change whether it got there.
    pub(super) fn after_power_cut(&self, disk: &Sparse, survives: &mut dyn FnMut() -> bool) -> Sparse {
        let mut left = disk.clone();
        for number in &self.changed {
            if survives() {
                left.take_block(*number, self.blocks.get(number));
            }
        }
        let size = if self.size_changed && survives() { self.size } else { disk.size };
        left.size = left.size.max(left.end_of_blocks());
        left.truncate(size);
        left
    }

    fn end_of_blocks(&self) -> u64 {
        self.blocks.last_key_value().map_or(0, |(number, _)| (number + 1) * BLOCK)
    }

    fn block(&mut self, number: u64) -> &mut [u8; BLOCK as usize] {
        self.changed.insert(number);
        Arc::make_mut(self.blocks.entry(number).or_insert_with(|| Arc::new([0; BLOCK as usize])))
    }

    fn drop_block(&mut self, number: u64) {
        self.changed.insert(number);
        self.blocks.remove(&number);
    }

    fn take_block(&mut self, number: u64, block: Option<&Block>) {
        match block {
            Some(block) => self.blocks.insert(number, block.clone()),
            None => self.blocks.remove(&number),
        };
    }

    fn set_size(&mut self, size: u64) {
        if size != self.size {
            self.size = size;
            self.size_changed = true;
        }
    }
}
