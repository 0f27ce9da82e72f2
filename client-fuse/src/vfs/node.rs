//! The objects that the kernel knows, by number.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use bytes::Bytes;
use larder_protocol::attr::{Attr, FileType};
use larder_protocol::ids::Fid;
use larder_protocol::service::callback::ObjectId;
use parking_lot::Mutex;

use super::file_state::FileState;
use super::local::copy::LocalCopy;
use crate::core::attr_cache::{AttrCache, Limits, Stamp};
use crate::core::dir_cache::DirCache;
use crate::core::page_cache::Pages;
use crate::core::promises::Promise;

/// The number of the mount's root.
pub const ROOT: u64 = 1;

/// The table is made smaller when less than this part of it is used.
const SHRINK_BELOW: usize = 4;
/// But not below this many entries.
const SHRINK_MIN: usize = 4096;

/// An object that the kernel knows or that is open. There may be millions, so what few of them need is boxed.
pub struct Node {
    /// Its number.
    pub number: u64,
    /// Its handle.
    pub fid: Fid,
    /// What it is.
    pub kind: FileType,
    /// The number of the directory where it was seen last; 0 if unknown.
    pub parent: AtomicU64,
    /// Lookups that the kernel has not taken back. Changed under the table's lock.
    nlookup: AtomicU64,
    /// Open handles. Changed under the table's lock.
    pins: AtomicU32,
    /// What changes.
    pub(super) state: Mutex<NodeState>,
}

/// As of which `change` the kernel was given an object's attributes. What it has in memory is of one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// It has none.
    Nothing,
    /// Of this one.
    Only(u64),
    /// Of several, or it may have made others of them: it knows itself what it writes.
    Several,
}

impl Shown {
    /// The kernel is given them as of this `change`.
    pub(super) fn give(&mut self, change: u64) {
        *self = match *self {
            Shown::Nothing => Shown::Only(change),
            Shown::Only(before) if before == change => *self,
            _ => Shown::Several,
        };
    }
}

/// What changes about an object.
pub(super) struct NodeState {
    /// Its attributes.
    pub attrs: AttrCache,
    /// What the kernel has of them.
    pub shown: Shown,
    /// The kernel's pages, once it was opened.
    pub pages: Option<Box<Pages>>,
    /// Data on its way, while it is open or has any.
    pub file: Option<Arc<FileState>>,
    /// Whether the server keeps it for this client although its last name is gone.
    pub kept: bool,
    /// The callback on it, in AFS mode.
    pub promise: Option<Promise>,
    /// Its names, if it is a directory, in AFS mode.
    pub dir: Option<Box<DirCache>>,
    /// Its target, if it is a symbolic link, in AFS mode.
    pub target: Option<Box<Bytes>>,
    /// The copy that it stands for while it is open, in AFS mode.
    pub copy: Option<Arc<LocalCopy>>,
}

impl Node {
    fn new(number: u64, attr: Attr, sent: Stamp, now: Stamp, limits: Limits) -> Arc<Node> {
        Arc::new(Node {
            number,
            fid: attr.fid,
            kind: attr.kind,
            parent: AtomicU64::new(0),
            nlookup: AtomicU64::new(0),
            pins: AtomicU32::new(0),
            state: Mutex::new(NodeState {
                attrs: AttrCache::new(attr, sent, now, limits),
                shown: Shown::Nothing,
                pages: None,
                file: None,
                kept: false,
                promise: None,
                dir: None,
                target: None,
                copy: None,
            }),
        })
    }

    /// The state of its data, if it is open or has data on its way.
    pub(super) fn file(&self) -> Option<Arc<FileState>> {
        self.state.lock().file.clone()
    }

    /// Whether it is open at another version than this, and has no changes of its own.
    fn stands_for_another(&self, version: u64) -> bool {
        let copy = if self.is_open() { self.state.lock().copy.clone() } else { None };
        copy.is_some_and(|copy| copy.is_another(version))
    }

    /// Whether it is open.
    pub(super) fn is_open(&self) -> bool {
        self.pins.load(Ordering::Relaxed) > 0
    }
}

/// All of them. Lock order: this table, then a node's state, then its file's flow.
pub(super) struct NodeTable {
    root: Fid,
    map: Mutex<HashMap<u64, Arc<Node>>>,
    /// Nodes beside the one of an object's own number: further versions of a file of which one is open (rule 3 of AFS
    /// mode). Locked after the map.
    versions: Mutex<Versions>,
}

#[derive(Default)]
struct Versions {
    last: u64,
    /// By the object's own number, oldest first.
    numbers: BTreeMap<u64, Vec<u64>>,
}

/// Numbers of versions have this bit, and those of objects have not (see [`MAX_VOLUME`](larder_protocol::ids::MAX_VOLUME)).
const VERSION_BIT: u64 = 1 << 62;

/// What [`NodeTable::forget`] did.
#[derive(Default)]
pub(super) struct Forgotten {
    /// The node that is not known to the kernel any more.
    pub node: Option<Arc<Node>>,
    /// Whether much of the table has become free.
    pub shrunk: bool,
}

/// What [`NodeTable::unpin`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unpinned {
    /// No handle is open any more.
    pub last: bool,
    /// The server keeps the object only for this client, which no longer needs it.
    pub orphan: bool,
}

impl NodeTable {
    /// With the root, which is never forgotten.
    pub(super) fn new(root: Attr, sent: Stamp, now: Stamp, limits: Limits) -> NodeTable {
        let fid = root.fid;
        let node = Node::new(ROOT, root, sent, now, limits);
        node.nlookup.store(1, Ordering::Relaxed);
        node.parent.store(ROOT, Ordering::Relaxed);
        NodeTable { root: fid, map: Mutex::new(HashMap::from([(ROOT, node)])), versions: Mutex::default() }
    }

    /// The number to show for an object.
    pub(super) fn number(&self, fid: Fid) -> u64 {
        if fid == self.root { ROOT } else { fid.inode_number() }
    }

    /// The object of this number.
    pub(super) fn get(&self, number: u64) -> Option<Arc<Node>> {
        self.map.lock().get(&number).cloned()
    }

    /// The node of this object, if it is known; of several versions the newest.
    pub(super) fn by_fid(&self, fid: Fid) -> Option<Arc<Node>> {
        let map = self.map.lock();
        let number = self.number(fid);
        let newest = self.versions.lock().numbers.get(&number).and_then(|numbers| numbers.last().copied());
        let found = newest.and_then(|newest| map.get(&newest)).or_else(|| map.get(&number));
        found.filter(|node| node.fid == fid).cloned()
    }

    /// Every node of the object with this number.
    pub(super) fn all_of(&self, object: ObjectId) -> Vec<Arc<Node>> {
        let number = if object == self.root.into() { ROOT } else { object.0 };
        let map = self.map.lock();
        let versions = self.versions.lock();
        let others = versions.numbers.get(&number).into_iter().flatten();
        others.chain([&number]).filter_map(|number| map.get(number).cloned()).collect()
    }

    /// All nodes.
    pub(super) fn all(&self) -> Vec<Arc<Node>> {
        let mut nodes: Vec<Arc<Node>> = self.map.lock().values().cloned().collect();
        nodes.sort_by_key(|node| node.number);
        nodes
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.map.lock().len()
    }

    /// The node of an object that a reply has shown, and whether it is new (then it has the attributes already). Counts
    /// one lookup. A number that another object had before now names this one; handles keep the other.
    pub(super) fn intern(&self, attr: &Attr, sent: Stamp, now: Stamp, limits: Limits) -> (Arc<Node>, bool) {
        let number = self.number(attr.fid);
        let mut map = self.map.lock();
        let mut old = map.get(&number);
        if let Some(node) = old
            && node.fid == attr.fid
        {
            // Rule 3 of AFS mode: one that is open at another version stays so, and one that is open at this is shared.
            let mut versions = self.versions.lock();
            let newer = versions.numbers.get(&number).into_iter().flatten().rev().filter_map(|number| map.get(number));
            let fits = |node: &&Arc<Node>| !node.stands_for_another(attr.data_version);
            let mut fitting = std::iter::once(node).chain(newer).filter(fits);
            let first = fitting.next();
            let shared =
                first.filter(|first| first.is_open()).or_else(|| fitting.find(|node| node.is_open())).or(first);
            if let Some(node) = shared {
                node.nlookup.fetch_add(1, Ordering::Relaxed);
                return (node.clone(), false);
            }
            versions.last += 1;
            let another = VERSION_BIT | versions.last;
            versions.numbers.entry(number).or_default().push(another);
            drop(versions);
            let node = Node::new(another, attr.clone(), sent, now, limits);
            node.nlookup.store(1, Ordering::Relaxed);
            map.insert(another, node.clone());
            return (node, true);
        }
        old = map.get(&number);
        // The kernel gives back the lookups of both under the one number.
        let lookups = old.map_or(0, |node| node.nlookup.load(Ordering::Relaxed));
        let node = Node::new(number, attr.clone(), sent, now, limits);
        node.nlookup.store(lookups + 1, Ordering::Relaxed);
        map.insert(number, node.clone());
        (node, true)
    }

    /// The kernel takes back lookups.
    pub(super) fn forget(&self, number: u64, nlookup: u64) -> Forgotten {
        let mut map = self.map.lock();
        let Some(node) = map.get(&number) else { return Forgotten::default() };
        let left = node.nlookup.load(Ordering::Relaxed).saturating_sub(nlookup);
        node.nlookup.store(if number == ROOT { left.max(1) } else { left }, Ordering::Relaxed);
        if left > 0 {
            return Forgotten::default();
        }
        let (node, before) = (node.clone(), map.capacity());
        self.tidy_locked(&mut map, &node);
        Forgotten { node: Some(node), shrunk: map.capacity() < before }
    }

    /// One more open handle. `make` gives the state of the file's data if there is none.
    pub(super) fn pin(&self, node: &Node, make: impl FnOnce() -> FileState) -> Arc<FileState> {
        let _map = self.map.lock();
        node.pins.fetch_add(1, Ordering::Relaxed);
        node.state.lock().file.get_or_insert_with(|| Arc::new(make())).clone()
    }

    /// One open handle less.
    pub(super) fn unpin(&self, node: &Arc<Node>) -> Unpinned {
        let mut map = self.map.lock();
        let last = node.pins.fetch_sub(1, Ordering::Relaxed) == 1;
        let orphan = last && {
            let mut state = node.state.lock();
            state.copy = None;
            std::mem::take(&mut state.kept)
        };
        self.tidy_locked(&mut map, node);
        Unpinned { last, orphan }
    }

    /// Whether it has more than one handle.
    pub(super) fn is_shared(&self, node: &Node) -> bool {
        node.pins.load(Ordering::Relaxed) > 1
    }

    /// Whether it has just one handle.
    pub(super) fn is_last(&self, node: &Node) -> bool {
        node.pins.load(Ordering::Relaxed) == 1
    }

    /// Whether the server keeps it only for this client.
    pub(super) fn is_orphan(&self, node: &Node) -> bool {
        node.state.lock().kept
    }

    /// The server keeps this object for this client. Returns whether it is open here; if not, the server need not.
    pub(super) fn keep(&self, fid: Fid) -> bool {
        let map = self.map.lock();
        let number = self.number(fid);
        let versions = self.versions.lock();
        let numbers = versions.numbers.get(&number).into_iter().flatten().chain([&number]);
        // One of several versions speaks for all; the others live on their copies.
        let node = numbers.filter_map(|number| map.get(number)).find(|node| node.fid == fid && node.is_open());
        if let Some(node) = node {
            node.state.lock().kept = true;
        }
        node.is_some()
    }

    /// Frees what is not needed any more, after a file's data has arrived.
    pub(super) fn tidy(&self, node: &Arc<Node>) {
        self.tidy_locked(&mut self.map.lock(), node);
    }

    fn tidy_locked(&self, map: &mut HashMap<u64, Arc<Node>>, node: &Arc<Node>) {
        if node.is_open() {
            return;
        }
        {
            let mut state = node.state.lock();
            if state.file.as_ref().is_some_and(|file| !file.is_idle()) {
                return;
            }
            state.file = None;
        }
        let current = map.get(&node.number).is_some_and(|known| Arc::ptr_eq(known, node));
        if current && node.nlookup.load(Ordering::Relaxed) == 0 {
            map.remove(&node.number);
            if node.number & VERSION_BIT != 0 {
                let mut versions = self.versions.lock();
                let own = node.fid.inode_number();
                if let Some(numbers) = versions.numbers.get_mut(&own) {
                    numbers.retain(|number| *number != node.number);
                    if numbers.is_empty() {
                        versions.numbers.remove(&own);
                    }
                }
            }
            if map.capacity() > SHRINK_MIN && map.len() < map.capacity() / SHRINK_BELOW {
                map.shrink_to_fit();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use larder_protocol::attr::Timestamp;
    use larder_protocol::ids::VolumeId;

    use super::*;

    const LIMITS: Limits = Limits { min: Duration::from_secs(1), max: Duration::from_secs(2) };

    fn attr(volume: u32, vnode: u64, generation: u64) -> Attr {
        let time = Timestamp::default();
        Attr {
            fid: Fid { volume: VolumeId(volume), vnode, generation },
            kind: FileType::Regular,
            mode: 0,
            nlink: 1,
            uid: 0,
            gid: 0,
            size: 0,
            blocks: 0,
            rdev: 0,
            atime: time,
            mtime: time,
            ctime: time,
            btime: time,
            change: 1,
            data_version: 1,
            has_xattr: false,
        }
    }

    fn intern(table: &NodeTable, attr: &Attr) -> Arc<Node> {
        table.intern(attr, Stamp::default(), Stamp::default(), LIMITS).0
    }

    fn table(volume: u32) -> NodeTable {
        NodeTable::new(attr(volume, 1, 1), Stamp::default(), Stamp::default(), LIMITS)
    }

    #[test]
    fn the_root_is_number_one_in_every_volume() {
        let table = table(5);
        assert_eq!(table.get(ROOT).unwrap().fid, attr(5, 1, 1).fid);
        assert_eq!(intern(&table, &attr(5, 1, 1)).number, ROOT);
        table.forget(ROOT, 100);
        assert!(table.get(ROOT).is_some());
    }

    #[test]
    fn a_node_lives_until_it_is_forgotten_and_closed() {
        let table = table(1);
        let node = intern(&table, &attr(1, 9, 1));
        intern(&table, &attr(1, 9, 1));
        table.pin(&node, FileState::for_tests);
        table.forget(9, 1);
        assert!(table.get(9).is_some());
        table.forget(9, 1);
        assert!(table.get(9).is_some(), "it is open");
        assert_eq!(table.unpin(&node), Unpinned { last: true, orphan: false });
        assert!(table.get(9).is_none());
    }

    #[test]
    fn another_generation_takes_the_number_over() {
        let table = table(1);
        let old = intern(&table, &attr(1, 9, 1));
        table.pin(&old, FileState::for_tests);
        let new = intern(&table, &attr(1, 9, 2));
        assert!(Arc::ptr_eq(&table.get(9).unwrap(), &new));
        assert!(table.by_fid(old.fid).is_none());
        table.unpin(&old);
        assert!(table.get(9).is_some(), "the old one's end does not touch the new one");
        table.forget(9, 2);
        assert!(table.get(9).is_none());
    }

    #[test]
    fn an_orphan_is_let_go_by_its_last_handle() {
        let table = table(1);
        let node = intern(&table, &attr(1, 9, 1));
        assert!(!table.keep(node.fid), "not open");
        table.pin(&node, FileState::for_tests);
        table.pin(&node, FileState::for_tests);
        assert!(table.keep(node.fid));
        assert_eq!(table.unpin(&node), Unpinned { last: false, orphan: false });
        assert_eq!(table.unpin(&node), Unpinned { last: true, orphan: true });
    }

    #[test]
    fn nodes_stay_compact() {
        assert!(size_of::<Node>() <= 320, "{} bytes", size_of::<Node>());
    }
}
