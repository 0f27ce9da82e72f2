//! The names of one directory as a client knows them, at one `change` of the directory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use larder_protocol::attr::FileType;
use larder_protocol::ids::Fid;
use larder_protocol::name::Name;

/// Absent names that are remembered while the directory is not known as a whole.
const MAX_ABSENT: usize = 4096;

/// Names among which one is looked for by its object.
const MAX_SEARCHED: usize = 512;

/// An object under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Child {
    /// The object.
    pub fid: Fid,
    /// What it is.
    pub kind: FileType,
}

/// What is known of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It is there.
    Present(Child),
    /// It is not.
    Absent,
    /// Nothing.
    Unknown,
}

/// A whole directory for one who lists it, in the order of its names.
pub type Listed = Arc<Vec<(Name, Child)>>;

/// The names of a directory.
#[derive(Clone, Debug, Default)]
pub struct DirCache {
    change: u64,
    /// Whether `names` are all.
    whole: bool,
    names: BTreeMap<Name, Child>,
    absent: BTreeSet<Name>,
    listed: Option<Listed>,
    /// Names asked for one by one since it was begun.
    asked: u32,
}

impl DirCache {
    /// Nothing is known at this `change` yet.
    pub fn new(change: u64) -> DirCache {
        DirCache { change, ..DirCache::default() }
    }

    /// All names at this `change`.
    pub fn complete(change: u64, names: impl IntoIterator<Item = (Name, Child)>) -> DirCache {
        DirCache { change, whole: true, names: names.into_iter().collect(), ..DirCache::default() }
    }

    /// The directory's `change` that this is known at.
    pub fn change(&self) -> u64 {
        self.change
    }

    /// Whether all names are known.
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// What is known of a name.
    pub fn get(&self, name: &Name) -> Known {
        match self.names.get(name) {
            Some(child) => Known::Present(*child),
            None if self.whole || self.absent.contains(name) => Known::Absent,
            None => Known::Unknown,
        }
    }

    /// A reply at the same `change` has shown what is under a name. Says how many were asked for one by one.
    pub fn learn(&mut self, name: &Name, child: Option<Child>) -> u32 {
        self.asked += 1;
        match child {
            Some(child) => {
                self.absent.remove(name);
                self.names.insert(name.clone(), child);
            }
            None => {
                if self.absent.len() < MAX_ABSENT {
                    self.absent.insert(name.clone());
                }
            }
        }
        self.listed = None;
        self.asked
    }

    /// All names, if they are known.
    pub fn list(&mut self) -> Option<Listed> {
        if !self.whole {
            return None;
        }
        let names = &self.names;
        let list = || Arc::new(names.iter().map(|(name, child)| (name.clone(), *child)).collect());
        Some(self.listed.get_or_insert_with(list).clone())
    }

    /// This client's own change moved the directory from `before` to `after`; `patch` does to the names what it did
    /// (rule 12). False if somebody else came between: then what is known is of no use any more.
    pub fn patch(&mut self, before: u64, after: u64, patch: impl FnOnce(&mut DirCache)) -> bool {
        if self.change != before {
            // It may show the result already.
            return self.change == after;
        }
        self.change = after;
        self.listed = None;
        patch(self);
        true
    }

    /// Puts an object under a name.
    pub fn put(&mut self, name: &Name, child: Child) {
        self.absent.remove(name);
        self.names.insert(name.clone(), child);
    }

    /// Takes a name away, and returns what was under it.
    pub fn remove(&mut self, name: &Name) -> Option<Child> {
        if !self.whole && self.absent.len() < MAX_ABSENT {
            self.absent.insert(name.clone());
        }
        self.names.remove(name)
    }

    /// Names asked for one by one since it was begun.
    pub fn asked(&self) -> u32 {
        self.asked
    }

    /// There are too many names to keep all of them.
    pub fn too_large(&mut self) {
        self.asked = u32::MAX / 2;
    }

    /// A name of an object, unless there are so many names that looking for it takes long.
    pub fn name_of(&self, fid: Fid) -> Option<&Name> {
        if self.names.len() > MAX_SEARCHED {
            return None;
        }
        self.names.iter().find(|(_, child)| child.fid == fid).map(|(name, _)| name)
    }

    /// How many names are known to be there.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether no name is known to be there.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use larder_protocol::ids::VolumeId;

    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text.as_bytes()).unwrap()
    }

    fn child(vnode: u64) -> Child {
        Child { fid: Fid { volume: VolumeId::ROOT, vnode, generation: 1 }, kind: FileType::Regular }
    }

    #[test]
    fn what_was_not_asked_for_is_unknown_unless_all_is_known() {
        let mut dir = DirCache::new(5);
        assert_eq!(dir.get(&name("a")), Known::Unknown);
        assert_eq!(dir.learn(&name("a"), Some(child(1))), 1);
        assert_eq!(dir.learn(&name("b"), None), 2);
        assert_eq!(dir.get(&name("a")), Known::Present(child(1)));
        assert_eq!(dir.get(&name("b")), Known::Absent);
        assert_eq!(dir.get(&name("c")), Known::Unknown);
        assert!(dir.list().is_none());
        let mut whole = DirCache::complete(5, [(name("z"), child(2)), (name("a"), child(1))]);
        assert_eq!(whole.get(&name("c")), Known::Absent);
        assert_eq!(*whole.list().unwrap(), [(name("a"), child(1)), (name("z"), child(2))]);
    }

    #[test]
    fn own_changes_are_patched_in_and_others_are_noticed() {
        let mut dir = DirCache::complete(5, [(name("a"), child(1))]);
        let open = dir.list().unwrap();
        assert!(dir.patch(5, 6, |dir| dir.put(&name("b"), child(2))));
        assert_eq!((dir.change(), dir.len()), (6, 2));
        assert_eq!(open.len(), 1, "who lists it goes on with what it was");
        assert!(dir.patch(6, 7, |dir| assert_eq!(dir.remove(&name("a")), Some(child(1)))));
        assert_eq!(dir.get(&name("a")), Known::Absent);
        assert!(!dir.patch(9, 10, |_| panic!("somebody came between")));
        assert!(dir.patch(6, 7, |_| panic!("it is in already")));
        assert_eq!(dir.list().unwrap().len(), 1);
    }

    #[test]
    fn a_removed_name_is_known_to_be_absent_though_not_all_is_known() {
        let mut dir = DirCache::new(5);
        dir.learn(&name("a"), Some(child(1)));
        dir.patch(5, 6, |dir| {
            dir.remove(&name("a"));
        });
        assert_eq!(dir.get(&name("a")), Known::Absent);
        dir.patch(6, 7, |dir| dir.put(&name("a"), child(3)));
        assert_eq!(dir.get(&name("a")), Known::Present(child(3)));
    }
}
