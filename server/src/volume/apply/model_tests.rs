//! Random mutations of the namespace against a model that could hardly be simpler, with the store's invariants checked
//! after each.

use std::collections::BTreeMap;

use larder_protocol::attr::FileType;
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::{Fid, ROOT_VNODE};
use larder_protocol::service::file::{CreateHow, Op, OpReply, Query, QueryReply, RenameHow};
use proptest::prelude::*;

use super::world::{VOLUME, World, name};
use crate::volume::codec;
use crate::volume::keys::{self, Table};
use crate::volume::record::{Body, CookieRecord, EntryRecord, VnodeRecord};

/// Objects by the order in which they were made, the root first.
struct Model {
    /// Of each directory its names; `None` for what is no directory.
    nodes: Vec<Option<BTreeMap<&'static str, usize>>>,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Create(usize, &'static str),
    Open(usize, &'static str),
    Mkdir(usize, &'static str),
    Mknod(usize, &'static str),
    Link(usize, usize, &'static str),
    Remove(usize, &'static str, bool),
    Rmdir(usize, &'static str),
    Rename(usize, &'static str, usize, &'static str, RenameHow, bool),
    Forget(usize),
}

impl Model {
    fn new() -> Model {
        Model { nodes: vec![Some(BTreeMap::new())] }
    }

    /// Every place where the object is.
    fn links(&self, node: usize) -> usize {
        self.nodes.iter().flatten().flat_map(BTreeMap::values).filter(|&&child| child == node).count()
    }

    /// Whether the object is there: reachable, or a file that is kept.
    fn lives(&self, node: usize, kept: &[usize]) -> bool {
        node == 0 || self.links(node) > 0 || kept.contains(&node)
    }

    fn dir(&self, node: usize) -> Result<&BTreeMap<&'static str, usize>, ErrorCode> {
        if node != 0 && self.nodes[node].is_some() && self.links(node) == 0 {
            return Err(ErrorCode::Stale);
        }
        self.nodes[node].as_ref().ok_or(ErrorCode::NotDirectory)
    }

    fn names(&mut self, node: usize) -> &mut BTreeMap<&'static str, usize> {
        self.nodes[node].as_mut().unwrap()
    }

    fn is_dir(&self, node: usize) -> bool {
        self.nodes[node].is_some()
    }

    fn is_empty(&self, node: usize) -> bool {
        self.nodes[node].as_ref().is_none_or(BTreeMap::is_empty)
    }

    /// Whether `node` is `above` or below it.
    fn is_within(&self, node: usize, above: usize) -> bool {
        node == above || self.nodes[above].iter().flat_map(BTreeMap::values).any(|&child| self.is_within(node, child))
    }

    fn add(&mut self, dir: usize, name: &'static str, node: Option<BTreeMap<&'static str, usize>>) {
        self.nodes.push(node);
        let number = self.nodes.len() - 1;
        self.names(dir).insert(name, number);
    }

    /// Does the step. Objects that lost their last name and are kept are added to `kept`.
    fn step(&mut self, step: Step, kept: &mut Vec<usize>) -> Result<(), ErrorCode> {
        let alive = |model: &Model, node: usize, kept: &[usize]| {
            if model.lives(node, kept) { Ok(()) } else { Err(ErrorCode::Stale) }
        };
        match step {
            Step::Create(dir, name) | Step::Mkdir(dir, name) | Step::Mknod(dir, name) => {
                alive(self, dir, kept)?;
                if self.dir(dir)?.contains_key(name) {
                    return Err(ErrorCode::Exists);
                }
                self.add(dir, name, matches!(step, Step::Mkdir(..)).then(BTreeMap::new));
            }
            Step::Open(dir, name) => {
                alive(self, dir, kept)?;
                match self.dir(dir)?.get(name) {
                    None => self.add(dir, name, None),
                    Some(&found) if self.is_dir(found) => return Err(ErrorCode::IsDirectory),
                    Some(_) => {}
                }
            }
            Step::Link(node, dir, name) => {
                alive(self, node, kept)?;
                alive(self, dir, kept)?;
                if self.dir(dir)?.contains_key(name) {
                    return Err(ErrorCode::Exists);
                }
                if self.is_dir(node) {
                    return Err(ErrorCode::NotPermitted);
                }
                if self.links(node) == 0 {
                    return Err(ErrorCode::NotFound);
                }
                self.names(dir).insert(name, node);
            }
            Step::Remove(dir, name, keep) => {
                alive(self, dir, kept)?;
                let node = *self.dir(dir)?.get(name).ok_or(ErrorCode::NotFound)?;
                if self.is_dir(node) {
                    return Err(ErrorCode::IsDirectory);
                }
                self.names(dir).remove(name);
                if keep && self.links(node) == 0 {
                    kept.push(node);
                }
            }
            Step::Rmdir(dir, name) => {
                alive(self, dir, kept)?;
                let node = *self.dir(dir)?.get(name).ok_or(ErrorCode::NotFound)?;
                if !self.is_dir(node) {
                    return Err(ErrorCode::NotDirectory);
                }
                if !self.is_empty(node) {
                    return Err(ErrorCode::NotEmpty);
                }
                self.names(dir).remove(name);
            }
            Step::Rename(from, from_name, to, to_name, how, keep) => {
                alive(self, from, kept)?;
                self.dir(from)?;
                alive(self, to, kept)?;
                let target = self.dir(to)?.get(to_name).copied();
                let node = *self.dir(from)?.get(from_name).ok_or(ErrorCode::NotFound)?;
                match (how, target) {
                    (RenameHow::NoReplace, Some(_)) => return Err(ErrorCode::Exists),
                    (RenameHow::Exchange, None) => return Err(ErrorCode::NotFound),
                    _ => {}
                }
                if self.is_dir(node) && self.is_within(to, node) {
                    return Err(ErrorCode::Invalid);
                }
                let exchange = how == RenameHow::Exchange;
                if let Some(target) = target {
                    if target == node {
                        return Ok(());
                    }
                    if self.is_dir(target) && self.is_within(from, target) {
                        return Err(if exchange { ErrorCode::Invalid } else { ErrorCode::NotEmpty });
                    }
                    match (self.is_dir(node), self.is_dir(target)) {
                        _ if exchange => {}
                        (true, false) => return Err(ErrorCode::NotDirectory),
                        (false, true) => return Err(ErrorCode::IsDirectory),
                        _ if !self.is_empty(target) => return Err(ErrorCode::NotEmpty),
                        _ => {}
                    }
                }
                self.names(from).remove(from_name);
                self.names(to).insert(to_name, node);
                match target {
                    Some(target) if exchange => {
                        self.names(from).insert(from_name, target);
                    }
                    Some(target) if keep && !self.is_dir(target) && self.links(target) == 0 => kept.push(target),
                    _ => {}
                }
            }
            Step::Forget(node) => kept.retain(|&other| other != node),
        }
        Ok(())
    }
}

fn op(step: Step, fids: &[Fid]) -> Op {
    let (mode, umask) = (0o755, 0);
    match step {
        Step::Create(dir, text) => {
            Op::Create { dir: fids[dir], name: name(text), mode, umask, how: CreateHow::Exclusive }
        }
        Step::Open(dir, text) => {
            let how = CreateHow::Open { access: 6, truncate: false };
            Op::Create { dir: fids[dir], name: name(text), mode, umask, how }
        }
        Step::Mkdir(dir, text) => Op::Mkdir { dir: fids[dir], name: name(text), mode, umask },
        Step::Mknod(dir, text) => {
            Op::Mknod { dir: fids[dir], name: name(text), kind: FileType::Regular, mode, umask, rdev: 0 }
        }
        Step::Link(node, dir, text) => Op::Link { fid: fids[node], dir: fids[dir], name: name(text) },
        Step::Remove(dir, text, keep) => Op::Remove { dir: fids[dir], name: name(text), keep },
        Step::Rmdir(dir, text) => Op::Rmdir { dir: fids[dir], name: name(text) },
        Step::Rename(from, from_name, to, to_name, how, keep) => Op::Rename {
            from_dir: fids[from],
            from_name: name(from_name),
            to_dir: fids[to],
            to_name: name(to_name),
            how,
            keep,
        },
        Step::Forget(node) => Op::Forget { fids: vec![fids[node]] },
    }
}

/// Compares every object and listing with the model's.
fn compare(world: &World, model: &Model, kept: &[usize], fids: &[Fid]) {
    let mut living = 0;
    for (node, &fid) in fids.iter().enumerate() {
        if !model.lives(node, kept) {
            assert_eq!(world.getattr(fid), Err(ErrorCode::Stale), "object {node}");
            continue;
        }
        living += 1;
        let attr = world.getattr(fid).unwrap();
        let Some(names) = &model.nodes[node] else {
            assert_eq!(attr.nlink as usize, model.links(node), "links of object {node}");
            continue;
        };
        let subdirectories = names.values().filter(|&&child| model.is_dir(child)).count();
        assert_eq!(attr.nlink as usize, 2 + subdirectories, "links of directory {node}");
        let query = Query::Readdir { dir: fid, cookie: 0, max_bytes: 1 << 20, plus: true };
        let QueryReply::Listing { entries, end: true, .. } = world.query(query).unwrap() else { panic!() };
        let listed: BTreeMap<String, Fid> = entries.iter().map(|entry| (entry.name.to_string(), entry.fid)).collect();
        let expected = names.iter().map(|(name, &child)| ((*name).to_owned(), fids[child])).collect();
        assert_eq!(listed, expected, "directory {node}");
        assert_eq!(entries.len(), names.len());
        for entry in entries {
            assert_eq!(entry.attr, Some(world.getattr(entry.fid).unwrap()));
        }
        for &child in names.values() {
            if model.is_dir(child) {
                let QueryReply::Entry { attr: Some(above), .. } =
                    world.query(Query::Parent { dir: fids[child] }).unwrap()
                else {
                    panic!()
                };
                assert_eq!(above.fid, fid, "parent of {child}");
            }
        }
    }
    assert_eq!(world.header.vnodes, living);
}

/// Checks what must hold between the tables, whatever the model says.
fn check_invariants(world: &World, kept: usize) {
    let entries: BTreeMap<Vec<u8>, EntryRecord> =
        world.all(Table::Entries).into_iter().map(|(key, row)| (key, codec::decode(&row).unwrap())).collect();
    let cookies = world.all(Table::Cookies);
    assert_eq!(entries.len(), cookies.len());
    let mut per_dir: BTreeMap<u64, u64> = BTreeMap::new();
    for (key, row) in cookies {
        let (dir, cookie) = (keys::number(&key[..8]).unwrap(), keys::number(&key[8..]).unwrap());
        let place: CookieRecord = codec::decode(&row).unwrap();
        let entry = &entries[&keys::entry(dir, &place.name)];
        let expected = EntryRecord { vnode: place.vnode, generation: place.generation, kind: place.kind, cookie };
        assert_eq!(*entry, expected);
        let fid = Fid { volume: VOLUME, vnode: place.vnode, generation: place.generation };
        assert_eq!(world.record(fid).unwrap().kind(), place.kind);
        let above = world.record(Fid { vnode: dir, ..fid }).unwrap();
        assert!(matches!(above.body, Body::Directory { next_cookie, .. } if cookie < next_cookie));
        *per_dir.entry(dir).or_default() += 1;
    }
    let vnodes = world.all(Table::Vnodes);
    assert_eq!(world.header.vnodes, vnodes.len() as u64);
    let mut blocks = 0;
    let mut orphans = 0;
    for (key, row) in vnodes {
        let vnode = keys::number(&key).unwrap();
        let record: VnodeRecord = codec::decode(&row).unwrap();
        blocks += record.blocks;
        if let Body::Directory { entries, .. } = record.body {
            assert_eq!(entries, per_dir.get(&vnode).copied().unwrap_or(0), "names in directory {vnode}");
            assert!(record.nlink >= 2);
        } else if record.nlink == 0 {
            orphans += 1;
            assert_eq!(world.rows_of(Table::Orphans, vnode), 1);
        }
        assert!(vnode < world.header.next_vnode && vnode >= ROOT_VNODE);
    }
    assert_eq!(world.header.blocks, blocks);
    assert_eq!((world.all(Table::Orphans).len(), orphans), (kept, kept));
}

fn step() -> impl Strategy<Value = Step> {
    let node = || 0usize..12;
    let text = || prop::sample::select(vec!["a", "b", "c"]);
    let how = prop::sample::select(vec![RenameHow::Replace, RenameHow::NoReplace, RenameHow::Exchange]);
    prop_oneof![
        2 => (node(), text()).prop_map(|(dir, name)| Step::Create(dir, name)),
        1 => (node(), text()).prop_map(|(dir, name)| Step::Open(dir, name)),
        4 => (node(), text()).prop_map(|(dir, name)| Step::Mkdir(dir, name)),
        1 => (node(), text()).prop_map(|(dir, name)| Step::Mknod(dir, name)),
        2 => (node(), node(), text()).prop_map(|(node, dir, name)| Step::Link(node, dir, name)),
        2 => (node(), text(), any::<bool>()).prop_map(|(dir, name, keep)| Step::Remove(dir, name, keep)),
        2 => (node(), text()).prop_map(|(dir, name)| Step::Rmdir(dir, name)),
        6 => (node(), text(), node(), text(), how, any::<bool>())
            .prop_map(|(from, from_name, to, to_name, how, keep)| {
                Step::Rename(from, from_name, to, to_name, how, keep)
            }),
        1 => node().prop_map(Step::Forget),
    ]
}

/// Turns the numbers of a step into those of objects that were made, dead ones among them.
fn among(step: Step, count: usize) -> Step {
    match step {
        Step::Create(dir, name) => Step::Create(dir % count, name),
        Step::Open(dir, name) => Step::Open(dir % count, name),
        Step::Mkdir(dir, name) => Step::Mkdir(dir % count, name),
        Step::Mknod(dir, name) => Step::Mknod(dir % count, name),
        Step::Link(node, dir, name) => Step::Link(node % count, dir % count, name),
        Step::Remove(dir, name, keep) => Step::Remove(dir % count, name, keep),
        Step::Rmdir(dir, name) => Step::Rmdir(dir % count, name),
        Step::Rename(from, from_name, to, to_name, how, keep) => {
            Step::Rename(from % count, from_name, to % count, to_name, how, keep)
        }
        Step::Forget(node) => Step::Forget(node % count),
    }
}

proptest! {
    #[test]
    fn the_namespace_behaves_like_the_model(steps in prop::collection::vec(step(), 1..60)) {
        let (mut world, mut model, mut kept) = (World::new(), Model::new(), Vec::new());
        let mut fids = vec![world.root()];
        for step in steps {
            let step = among(step, fids.len());
            let result = world.apply(op(step, &fids));
            let expected = model.step(step, &mut kept);
            prop_assert_eq!(result.as_ref().err().copied(), expected.err(), "{:?}", step);
            if let Ok(OpReply::Entry { attr, created: true, .. }) = &result {
                fids.push(attr.fid);
            }
            prop_assert_eq!(fids.len(), model.nodes.len(), "{:?}", step);
            compare(&world, &model, &kept, &fids);
            check_invariants(&world, kept.len());
        }
    }
}
