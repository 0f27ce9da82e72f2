//! Attributes of files whose contents are ahead of the metadata.

use std::collections::{BTreeMap, HashMap};

use parking_lot::RwLock;

use crate::volume::record::Unsettled;

/// For each file that unstable writes are under way in: its attributes after the last of them.
#[derive(Debug, Default)]
pub struct UnsettledMap(RwLock<Inner>);

#[derive(Debug, Default)]
struct Inner {
    map: HashMap<u64, Unsettled>,
    /// The sum of their `blocks`.
    blocks: u64,
}

impl UnsettledMap {
    /// What lies over the vnode's record, if anything does.
    ///
    /// A reader asks this *before* it takes its snapshot: an entry that is missing here is then in the snapshot.
    pub fn get(&self, vnode: u64) -> Option<Unsettled> {
        self.0.read().map.get(&vnode).copied()
    }

    /// Lays new attributes over the record.
    pub fn set(&self, vnode: u64, unsettled: Unsettled) {
        let mut inner = self.0.write();
        let before = inner.map.insert(vnode, unsettled).map_or(0, |before| before.blocks);
        inner.blocks = inner.blocks + unsettled.blocks - before;
    }

    /// Takes them off, once a record that includes them is committed.
    pub fn remove(&self, vnode: u64) {
        let mut inner = self.0.write();
        let before = inner.map.remove(&vnode).map_or(0, |before| before.blocks);
        inner.blocks -= before;
    }

    /// Units of 512 bytes that all such files occupy.
    pub fn blocks(&self) -> u64 {
        self.0.read().blocks
    }

    /// All of them, by vnode.
    pub fn all(&self) -> BTreeMap<u64, Unsettled> {
        self.0.read().map.iter().map(|(vnode, unsettled)| (*vnode, *unsettled)).collect()
    }
}
