//! How much a volume may hold.
//!
//! - **Q1** An operation that would take the volume past its quota fails and leaves nothing (W2). One that takes nothing
//!   more is let through, however full the volume is: so can one that was given a smaller quota be emptied.
//! - **Q2** Writes in place are let in by what they may take at most, before anything is written, and beside all others
//!   that were let in and are not counted yet ([`Growth`]).
//! - **Q3** What counts is what the header counts, and what unstable writes have taken up since.

use std::collections::BTreeMap;

use larder_protocol::attr::{Timestamp, VolumeSpace};
use larder_protocol::cell::Quota;
use larder_protocol::error::ErrorCode;
use parking_lot::{Mutex, RwLock};

use super::data::unsettled::UnsettledMap;
use super::error::StoreResult;
use super::keys::{self, Table};
use super::meta::Snapshot;
use super::record::{HeaderRecord, Unsettled, VnodeRecord};
use super::view::{Records, Verified, View};

/// Bytes in a unit of what files occupy.
const UNIT: u64 = 512;
/// Bytes in which disks give room.
const BLOCK: u64 = 4096;

/// What a volume holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Bytes that its files occupy, in units of 512.
    pub bytes: u64,
    /// Files, directories and all else that has a number.
    pub files: u64,
    /// When it was made.
    pub created: Timestamp,
}

/// The figures of statfs(2): those of the quota where that is less than what the disk has.
pub(super) fn space(disk: VolumeSpace, quota: Quota, usage: &Usage) -> VolumeSpace {
    let mut space = disk;
    if let Some(most) = quota.bytes {
        let left = most.saturating_sub(usage.bytes);
        (space.free, space.available) = (space.free.min(left), space.available.min(left));
        // So that what is used is what the volume holds, also where the disk has less left than the quota.
        space.total = most.min(usage.bytes.saturating_add(space.free));
    }
    if let Some(most) = quota.files {
        space.files_free = space.files_free.min(most.saturating_sub(usage.files));
        space.files = usage.files + space.files_free;
    }
    space
}

/// The quota of an open volume.
#[derive(Debug, Default)]
pub(super) struct QuotaGauge {
    quota: RwLock<Quota>,
    /// Units that writes in place may take up that were let in and are not counted yet.
    pending: Mutex<u64>,
}

/// A write in place that was let in. Dropped once what it has taken up is counted, or nothing was.
#[derive(Debug)]
pub(super) struct Growth<'a> {
    gauge: &'a QuotaGauge,
    blocks: u64,
}

impl Drop for Growth<'_> {
    fn drop(&mut self) {
        if self.blocks > 0 {
            *self.gauge.pending.lock() -= self.blocks;
        }
    }
}

impl QuotaGauge {
    pub(super) fn new(quota: Quota) -> QuotaGauge {
        QuotaGauge { quota: RwLock::new(quota), pending: Mutex::default() }
    }

    /// What the volume may hold.
    pub(super) fn get(&self) -> Quota {
        *self.quota.read()
    }

    pub(super) fn set(&self, quota: Quota) {
        *self.quota.write() = quota;
    }

    /// Whether an operation may make of the one header the other, that takes up so many units more (Q1).
    pub(super) fn check(
        &self,
        before: &HeaderRecord,
        after: &HeaderRecord,
        taken: i64,
        view: &dyn View,
        unsettled: &UnsettledMap,
    ) -> Result<(), ErrorCode> {
        let quota = self.get();
        if after.vnodes > before.vnodes && quota.files.is_some_and(|most| after.vnodes > most) {
            return Err(ErrorCode::QuotaExceeded);
        }
        if taken > 0 { self.admit(after.blocks, view, unsettled) } else { Ok(()) }
    }

    /// Lets a write in place take up so many bytes more (Q2).
    pub(super) fn let_grow<'a>(
        &self,
        bytes: u64,
        unsettled: &UnsettledMap,
        snapshot: impl Fn() -> StoreResult<Box<dyn Snapshot + 'a>>,
    ) -> Result<Growth<'_>, ErrorCode> {
        let most = match self.get().bytes {
            Some(most) if bytes > 0 => most / UNIT,
            _ => return Ok(Growth { gauge: self, blocks: 0 }),
        };
        let blocks = bytes.div_ceil(UNIT);
        let mut pending = self.pending.lock();
        // What is ahead of the records is read before them: what is settled in between is then counted twice, and not left
        // out. All that such files occupy is the most that they can have taken up.
        let ahead = unsettled.blocks();
        let header = Verified(&*snapshot()?).header()?;
        if header.blocks + ahead + *pending + blocks > most {
            let ahead = unsettled.all();
            let snapshot = snapshot()?;
            let view = Verified(&*snapshot);
            if view.header()?.blocks + growth(&view, ahead)? + *pending + blocks > most {
                return Err(ErrorCode::QuotaExceeded);
            }
        }
        *pending += blocks;
        Ok(Growth { gauge: self, blocks })
    }

    /// Whether the records may say that so many units are taken up.
    fn admit(&self, blocks: u64, view: &dyn View, unsettled: &UnsettledMap) -> Result<(), ErrorCode> {
        let Some(most) = self.get().bytes.map(|bytes| bytes / UNIT) else { return Ok(()) };
        if blocks + unsettled.blocks() <= most || blocks + growth(view, unsettled.all())? <= most {
            return Ok(());
        }
        Err(ErrorCode::QuotaExceeded)
    }
}

/// What unstable writes have taken up beyond the records (Q3).
pub(super) fn growth(view: &dyn View, ahead: BTreeMap<u64, Unsettled>) -> StoreResult<u64> {
    let mut growth = 0u64;
    for (vnode, unsettled) in ahead {
        if let Some(stored) = view.vnode(vnode)?
            && unsettled.data_change > stored.data_change
        {
            growth += unsettled.blocks.saturating_sub(stored.blocks);
        }
    }
    Ok(growth)
}

/// Bytes that a write of these ranges, each an offset and a length, may take up at most: all blocks that they have a part of,
/// but for those of what the file has already. In a file with holes, each may be one.
pub(super) fn growth_of_write(record: &VnodeRecord, ranges: impl IntoIterator<Item = (u64, u64)>) -> u64 {
    let has_holes = record.blocks.saturating_mul(UNIT) < record.size;
    let first_new = if has_holes { 0 } else { record.size };
    let new = |(offset, len): (u64, u64)| {
        let (from, to) = (offset.max(first_new), offset.saturating_add(len));
        (from < to).then(|| (from / BLOCK, to.div_ceil(BLOCK)))
    };
    let mut blocks: Vec<(u64, u64)> = ranges.into_iter().filter_map(new).collect();
    blocks.sort_unstable();
    let (mut count, mut counted) = (0u64, 0);
    for (from, to) in blocks {
        count += to.saturating_sub(from.max(counted));
        counted = counted.max(to);
    }
    count.saturating_mul(BLOCK)
}

/// The quota in a volume's metadata; volumes that were made before there were quotas have none.
pub(super) fn load(view: &dyn View) -> StoreResult<Quota> {
    Ok(view.record(Table::Header, keys::QUOTA)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::record::Body;

    fn file(size: u64, blocks: u64) -> VnodeRecord {
        VnodeRecord { size, blocks, ..VnodeRecord::empty(Body::Inline) }
    }

    #[test]
    fn df_tells_of_the_quota_and_of_the_disk_where_that_has_less() {
        let disk = VolumeSpace { total: 1000, free: 500, available: 400, files: 90, files_free: 50 };
        let usage = Usage { bytes: 100, files: 40, created: Timestamp::default() };
        assert_eq!(space(disk.clone(), Quota::default(), &usage), disk);
        let quota = Quota { bytes: Some(300), files: Some(60) };
        let shown = VolumeSpace { total: 300, free: 200, available: 200, files: 60, files_free: 20 };
        assert_eq!(space(disk.clone(), quota, &usage), shown);
        let large = space(disk.clone(), Quota { bytes: Some(1 << 40), files: None }, &usage);
        assert_eq!((large.total, large.free, large.available), (600, 500, 400));
        let full = space(disk, Quota { bytes: Some(50), files: Some(10) }, &usage);
        assert_eq!((full.total, full.free, full.available, full.files_free), (50, 0, 0, 0));
    }

    #[test]
    fn what_is_there_can_be_written_over() {
        let growth = |size, blocks, offset, len| growth_of_write(&file(size, blocks), [(offset, len)]);
        assert_eq!(growth(8192, 16, 0, 8192), 0);
        assert_eq!(growth(8192, 16, 4096, 8192), 4096);
        assert_eq!(growth(8192, 16, 1 << 30, 10), 4096, "a hole takes nothing");
        assert_eq!(growth(8192, 16, (1 << 30) - 5, 10), 8192, "a part of two blocks");
        assert_eq!(growth(1 << 30, 16, 0, 8192), 8192, "it may be a hole that is filled");
        assert_eq!(growth(0, 0, 0, u64::MAX), u64::MAX, "more than there is");
    }

    #[test]
    fn blocks_of_several_ranges_count_once() {
        let ranges = [(5000, 10), (4096, 4096), (9000, 10), (20_000, 1), (100, 0), (0, 1)];
        assert_eq!(growth_of_write(&file(0, 0), ranges), 4 * 4096);
        assert_eq!(growth_of_write(&file(8192, 16), ranges), 2 * 4096);
    }
}
