//! What a mutation works with while the writer applies it.

use std::sync::atomic::{AtomicU64, Ordering};

use larder_protocol::attr::{Attr, AttrChange, Timestamp};
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::{Fid, MAX_VNODE};

use super::content::ContentId;
use super::data::unsettled::UnsettledMap;
use super::error::StoreResult;
use super::keys::{self, Table};
use super::record::{HeaderRecord, Intent, VnodeRecord};
use super::view::{Draft, Records, View};

/// Change attributes that one incarnation can give out: at a million in each second, twelve days' worth.
pub const CHANGES: u64 = 1 << 40;

/// The incarnation after `last`: the time, in nanoseconds since 1970. Changes come more slowly than nanoseconds, so it
/// is above every change attribute that the last incarnation gave out. Should the clock have gone back, it is `last`
/// and more than that can have been given out, and something from `random`.
///
/// A counter would not do. A volume's directory can be put back to an older copy while no server looks; counting on
/// from there would give out the numbers of the history that was undone a second time.
pub fn next_incarnation(last: u64, now: Timestamp, random: u64) -> u64 {
    let nanos = now.secs.saturating_mul(1_000_000_000).saturating_add(i64::from(now.nanos));
    match u64::try_from(nanos) {
        Ok(nanos) if nanos > last => nanos,
        _ => last.saturating_add(CHANGES + random % CHANGES),
    }
}

/// Gives out change attributes, counting up from the volume's incarnation. Incarnations are raised durably at each
/// open, so no value is given out twice, and none has to be stored.
#[derive(Debug)]
pub struct ChangeCounter(AtomicU64);

impl ChangeCounter {
    /// Begins the incarnation.
    pub fn new(incarnation: u64) -> ChangeCounter {
        ChangeCounter(AtomicU64::new(incarnation))
    }

    /// A value that no object of the volume ever had, higher than all before it.
    pub fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// What has to be done once the batch of a mutation is committed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// Vnodes that are no more.
    pub freed: Vec<u64>,
    /// Content files that are no more. Each has a [`Intent::Remove`] under this number.
    pub removed: Vec<(ContentId, u64)>,
}

/// The draft of a batch and what belongs to it. All ids, times and change attributes are decided here, in the writer,
/// after any waiting.
pub struct Context<'c, 'b> {
    /// The changes so far, those of earlier mutations of the same batch included.
    pub draft: &'c mut Draft<'b>,
    /// The time of this mutation.
    pub now: Timestamp,
    /// The volume's header; the writer stores it with the batch if it changed.
    pub header: &'c mut HeaderRecord,
    /// Units of 512 bytes that it takes up more than before, or fewer; what unstable writes have taken up counts as there.
    pub taken: i64,
    /// Whether the store has room for more than removals.
    pub has_room: bool,
    /// What is to be done after the commit.
    pub effects: Effects,
    /// Vnodes with a new change attribute, or none any more. New vnodes are not among them.
    pub changed: Vec<u64>,
    pub(super) changes: &'c ChangeCounter,
    pub(super) unsettled: &'c UnsettledMap,
}

impl Context<'_, '_> {
    /// A new change attribute.
    pub fn next_change(&self) -> u64 {
        self.changes.next()
    }

    /// Fails where a mutation that takes up room must not go on.
    ///
    /// # Errors
    /// `NoSpace` if the store has only its reserve left.
    pub fn need_room(&self) -> Result<(), ErrorCode> {
        if self.has_room { Ok(()) } else { Err(ErrorCode::NoSpace) }
    }

    /// A vnode number that was never given out.
    ///
    /// # Errors
    /// `NoSpace` if all are used up.
    pub fn new_vnode(&mut self) -> Result<u64, ErrorCode> {
        let vnode = self.header.next_vnode;
        if vnode > MAX_VNODE {
            return Err(ErrorCode::NoSpace);
        }
        self.header.next_vnode += 1;
        Ok(vnode)
    }

    /// The record of a vnode number, brought up to date with what unstable writes did.
    ///
    /// # Errors
    /// As [`Records::record`].
    pub fn vnode(&self, vnode: u64) -> StoreResult<Option<VnodeRecord>> {
        let unsettled = self.unsettled.get(vnode);
        let mut record = self.draft.vnode(vnode)?;
        if let (Some(record), Some(unsettled)) = (&mut record, unsettled) {
            unsettled.lay_over(record);
        }
        Ok(record)
    }

    /// The record that a file handle names, brought up to date.
    ///
    /// # Errors
    /// `Stale` if the object is gone or the number now belongs to another; `Io` as the store fails.
    pub fn resolve(&self, fid: Fid) -> Result<VnodeRecord, ErrorCode> {
        match self.vnode(fid.vnode)? {
            Some(record) if record.generation == fid.generation && fid.volume == self.header.id => Ok(record),
            _ => Err(ErrorCode::Stale),
        }
    }

    /// Adds a vnode's first record.
    ///
    /// # Errors
    /// As [`Draft::put_vnode`].
    pub fn insert(&mut self, vnode: u64, record: &VnodeRecord) -> StoreResult<()> {
        self.header.vnodes += 1;
        self.header.blocks += record.blocks;
        self.taken += record.blocks.cast_signed();
        self.draft.put_vnode(vnode, record)
    }

    /// Replaces a vnode's record and keeps the volume's count of blocks.
    ///
    /// # Errors
    /// As [`Draft::put_vnode`].
    pub fn update(&mut self, vnode: u64, record: &VnodeRecord) -> StoreResult<()> {
        // The header counts what is in the records, so compare with the record, not with what lies over it.
        let before = self.draft.vnode(vnode)?.map_or(0, |stored| stored.blocks);
        self.header.blocks = (self.header.blocks + record.blocks).saturating_sub(before);
        // What unstable writes have taken was let in before, and is not taken by what notes it.
        let there = self.vnode(vnode)?.map_or(0, |record| record.blocks);
        self.taken += record.blocks.cast_signed() - there.cast_signed();
        self.draft.put_vnode(vnode, record)
    }

    /// Removes a vnode and all that belongs to it.
    ///
    /// # Errors
    /// As the store fails.
    pub fn free(&mut self, vnode: u64) -> StoreResult<()> {
        let Some(stored) = self.draft.vnode(vnode)? else { return Ok(()) };
        self.header.vnodes = self.header.vnodes.saturating_sub(1);
        self.header.blocks = self.header.blocks.saturating_sub(stored.blocks);
        self.taken -= self.vnode(vnode)?.map_or(0, |record| record.blocks).cast_signed();
        let key = keys::vnode(vnode);
        if stored.xattrs > 0 {
            self.draft.delete_prefix(Table::Xattrs, &key)?;
        }
        self.drop_contents(vnode, &stored)?;
        self.draft.delete(Table::Vnodes, &key);
        self.effects.freed.push(vnode);
        self.changed.push(vnode);
        Ok(())
    }

    /// Removes a regular file's contents, wherever they are; the caller stores or deletes the record.
    ///
    /// # Errors
    /// As the store fails.
    pub fn drop_contents(&mut self, vnode: u64, stored: &VnodeRecord) -> StoreResult<()> {
        let key = keys::vnode(vnode);
        match stored.body {
            super::record::Body::Inline => self.draft.delete(Table::Inline, &key),
            super::record::Body::Content { version } => {
                self.draft.delete(Table::Dirty, &key);
                self.draft.delete_prefix(Table::Checksums, &key)?;
                self.drop_intents(vnode)?;
                let number = self.add_intent(vnode, &Intent::Remove { version })?;
                self.effects.removed.push((ContentId { vnode, version }, number));
            }
            _ => {}
        }
        Ok(())
    }

    /// Deletes the intents of a file whose contents are settled or gone, but for those to remove old contents.
    ///
    /// # Errors
    /// As the store fails.
    pub fn drop_intents(&mut self, vnode: u64) -> StoreResult<()> {
        for (key, value) in self.draft.with_prefix(Table::Intents, &keys::vnode(vnode), usize::MAX)? {
            if !matches!(super::codec::decode(&value)?, Intent::Remove { .. }) {
                self.draft.delete(Table::Intents, &key);
            }
        }
        Ok(())
    }

    /// Adds an intent behind those the vnode has, and says under which number.
    ///
    /// # Errors
    /// As the store fails.
    pub fn add_intent(&mut self, vnode: u64, intent: &Intent) -> StoreResult<u64> {
        // Change attributes grow, so they order intents as well as any counter.
        let number = self.next_change();
        self.draft.put(Table::Intents, &keys::intent(vnode, number), intent)?;
        Ok(number)
    }

    /// A vnode's attributes as a client sees them.
    pub fn attr(&self, vnode: u64, record: &VnodeRecord) -> Attr {
        record.attr(self.header.id, vnode)
    }

    /// Marks `record` as changed now (`ctime`, `change`), stores it, and says how it changed.
    ///
    /// # Errors
    /// As [`Context::update`].
    pub fn touch(&mut self, vnode: u64, record: &mut VnodeRecord) -> StoreResult<AttrChange> {
        self.changed.push(vnode);
        let before = record.change;
        record.change = self.next_change();
        record.ctime = self.now;
        self.update(vnode, record)?;
        Ok(AttrChange { before, attr: self.attr(vnode, record) })
    }

    /// As [`Context::touch`], for a change of a directory's entries or of a file's data (`mtime` too).
    ///
    /// # Errors
    /// As [`Context::update`].
    pub fn touch_data(&mut self, vnode: u64, record: &mut VnodeRecord) -> StoreResult<AttrChange> {
        self.changed.push(vnode);
        let before = record.change;
        record.change = self.next_change();
        record.data_change = record.change;
        record.mtime = self.now;
        record.ctime = self.now;
        self.update(vnode, record)?;
        Ok(AttrChange { before, attr: self.attr(vnode, record) })
    }

    /// A row, as the draft has it.
    ///
    /// # Errors
    /// As [`View::get`].
    pub fn get(&self, table: Table, key: &[u8]) -> StoreResult<Option<Vec<u8>>> {
        self.draft.get(table, key)
    }
}
