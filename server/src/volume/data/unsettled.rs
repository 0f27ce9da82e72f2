//! Attributes of files whose contents are ahead of the metadata.

use std::collections::HashMap;

use parking_lot::RwLock;

use crate::volume::record::Unsettled;

/// For each file that unstable writes are under way in: its attributes after the last of them.
#[derive(Debug, Default)]
pub struct UnsettledMap(RwLock<HashMap<u64, Unsettled>>);

impl UnsettledMap {
    /// What lies over the vnode's record, if anything does.
    ///
    /// A reader asks this *before* it takes its snapshot: an entry that is missing here is then in the snapshot.
    pub fn get(&self, vnode: u64) -> Option<Unsettled> {
        self.0.read().get(&vnode).copied()
    }

    /// Lays new attributes over the record.
    pub fn set(&self, vnode: u64, unsettled: Unsettled) {
        self.0.write().insert(vnode, unsettled);
    }

    /// Takes them off, once a record that includes them is committed.
    pub fn remove(&self, vnode: u64) {
        self.0.write().remove(&vnode);
    }
}
