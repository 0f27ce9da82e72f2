//! Queries, and the order in which they read.

use std::cell::Cell;

use larder_protocol::attr::{Attr, Timestamp};
use larder_protocol::service::file::Op;

use super::*;
use crate::volume::apply::world::{Rows, VOLUME, World, name};

fn readdir(world: &World, dir: Fid, cookie: u64, max_bytes: u32, plus: bool) -> (Vec<DirEntry>, bool) {
    match world.query(Query::Readdir { dir, cookie, max_bytes, plus }).unwrap() {
        QueryReply::Listing { entries, end, .. } => (entries, end),
        other => panic!("{other:?}"),
    }
}

fn names(entries: &[DirEntry]) -> Vec<String> {
    entries.iter().map(|entry| entry.name.to_string()).collect()
}

/// Puts a file's contents into a content file, as far as the metadata knows.
fn materialize(world: &mut World, fid: Fid) {
    world
        .with(|cx| {
            let mut record = cx.resolve(fid)?;
            record.body = Body::Content { version: record.change };
            Ok(cx.update(fid.vnode, &record)?)
        })
        .unwrap();
}

/// What a write that made the file this long leaves over its record.
fn written(attr: &Attr, size: u64) -> Unsettled {
    let time = Timestamp { secs: 5000, nanos: 0 };
    let change = attr.change + size;
    Unsettled { size, blocks: 8, mtime: time, data_change: change, ctime: time, change }
}

#[test]
fn lookup_finds_and_misses_and_needs_search_permission() {
    let mut world = World::new();
    let root = world.root();
    let dir = world.mkdir(root, "d", 0o766).unwrap().fid;
    let file = world.create(dir, "f", 0o600).unwrap();
    assert_eq!(world.lookup(dir, "f"), Ok(Some(file.clone())));
    assert_eq!(world.lookup(dir, "g"), Ok(None));
    assert_eq!(world.lookup(file.fid, "g"), Err(ErrorCode::NotDirectory));
    world.become_user(10, 10);
    assert_eq!(world.lookup(dir, "f"), Err(ErrorCode::AccessDenied));
    assert_eq!(world.query(Query::Parent { dir }), Err(ErrorCode::AccessDenied));
    assert_eq!(world.getattr(file.fid), Ok(file));
}

#[test]
fn the_roots_parent_is_the_root() {
    let mut world = World::new();
    let root = world.root();
    let dir = world.mkdir(root, "d", 0o755).unwrap().fid;
    let root_attr = world.getattr(root).unwrap();
    for dir in [root, dir] {
        let attr = Some(root_attr.clone());
        let reply = QueryReply::Entry { attr, dir: world.getattr(dir).unwrap() };
        assert_eq!(world.query(Query::Parent { dir }), Ok(reply));
    }
}

#[test]
fn access_grants_the_part_that_is_allowed() {
    let mut world = World::new();
    let root = world.root();
    let file = world.create(root, "f", 0o641).unwrap();
    world.become_user(10, 0);
    let reply = world.query(Query::Access { fid: file.fid, mask: MAY_READ | MAY_WRITE });
    assert_eq!(reply, Ok(QueryReply::Access { granted: MAY_READ, attr: file }));
}

#[test]
fn only_symlinks_are_read_as_such() {
    let mut world = World::new();
    let dir = world.root();
    let target = Bytes::from_static(b"some/where");
    world.apply(Op::Symlink { dir, name: name("l"), target: target.clone() }).unwrap();
    let link = world.lookup(dir, "l").unwrap().unwrap().fid;
    world.become_user(10, 10);
    assert_eq!(world.query(Query::Readlink { fid: link }), Ok(QueryReply::Target(target)));
    assert_eq!(world.query(Query::Readlink { fid: dir }), Err(ErrorCode::Invalid));
}

#[test]
fn a_listing_in_pieces_is_the_whole_listing_whatever_the_size_of_the_pieces() {
    let mut world = World::new();
    let root = world.root();
    let made: Vec<String> = (0..PIECE + 3).map(|number| format!("file{number}")).collect();
    for name in &made {
        world.create(root, name, 0o644).unwrap();
    }
    for max_bytes in [0, 500, 5000, u32::MAX] {
        let (mut listed, mut cookie) = (Vec::new(), 0);
        loop {
            let (entries, end) = readdir(&world, root, cookie, max_bytes, false);
            assert!(!entries.is_empty());
            assert!(max_bytes > 0 || entries.len() == 1);
            cookie = entries.last().unwrap().cookie;
            listed.extend(names(&entries));
            if end {
                break;
            }
        }
        assert_eq!(listed, made, "{max_bytes}");
        assert_eq!(readdir(&world, root, cookie, max_bytes, false), (Vec::new(), true));
    }
}

#[test]
fn cookies_stay_valid_while_names_come_and_go() {
    let mut world = World::new();
    let root = world.root();
    for name in ["a", "b", "c", "d"] {
        world.create(root, name, 0o644).unwrap();
    }
    let second = readdir(&world, root, 0, u32::MAX, false).0[1].cookie;
    world.remove(root, "b", false).unwrap();
    world.remove(root, "c", false).unwrap();
    world.create(root, "b", 0o644).unwrap();
    let (entries, end) = readdir(&world, root, second, u32::MAX, false);
    assert_eq!((names(&entries), end), (vec!["d".to_owned(), "b".to_owned()], true));
}

#[test]
fn a_listings_encoded_size_stays_below_what_was_asked() {
    let mut world = World::new();
    let root = world.root();
    for number in 0..100 {
        world.create(root, &format!("{number:0200}"), 0o644).unwrap();
    }
    let (entries, end) = readdir(&world, root, 0, 10_000, true);
    assert!(!end && entries.len() > 20);
    assert!(bincode::serialized_size(&entries).unwrap() < 10_000, "with every number at its longest");
}

#[test]
fn a_listing_needs_read_permission_and_search_for_attributes() {
    let mut world = World::new();
    let root = world.root();
    let dir = world.mkdir(root, "d", 0o700).unwrap().fid;
    let file = world.create(dir, "f", 0o600).unwrap();
    assert_eq!(readdir(&world, dir, 0, 1000, true).0[0].attr, Some(file.clone()));
    assert_eq!(readdir(&world, dir, 0, 1000, false).0[0].attr, None);
    world.chmod(dir, 0o704).unwrap();
    world.become_user(10, 10);
    let listed = readdir(&world, dir, 0, 1000, true).0;
    assert_eq!((listed[0].fid, listed[0].attr.clone()), (file.fid, None));
    world.become_root();
    world.chmod(dir, 0o701).unwrap();
    world.become_user(10, 10);
    let query = Query::Readdir { dir, cookie: 0, max_bytes: 1000, plus: false };
    assert_eq!(world.query(query), Err(ErrorCode::AccessDenied));
}

#[test]
fn what_is_damaged_is_listed_without_attributes_beside_what_is_not() {
    let mut world = World::new();
    let root = world.root();
    let (damaged, sound) = (world.create(root, "a", 0o644).unwrap(), world.create(root, "b", 0o644).unwrap());
    world
        .with(|cx| {
            cx.draft.put_bytes(Table::Vnodes, &keys::vnode(damaged.fid.vnode), b"no record".to_vec());
            Ok(())
        })
        .unwrap();
    assert_eq!(world.getattr(damaged.fid), Err(ErrorCode::Io));
    let (entries, end) = readdir(&world, root, 0, 10_000, true);
    let attrs: Vec<_> = entries.iter().map(|entry| (entry.fid, entry.attr.clone())).collect();
    assert_eq!((attrs, end), (vec![(damaged.fid, None), (sound.fid, Some(sound))], true));
}

#[test]
fn trusted_names_are_listed_for_root_only() {
    let mut world = World::new();
    let root = world.root();
    let all: Vec<Bytes> = (0..40).map(|number| Bytes::from(format!("trusted.{number:02}"))).collect();
    let how = larder_protocol::service::file::XattrHow::Set;
    let user = Bytes::from_static(b"user.a");
    for name in all.iter().chain([&user]) {
        world.apply(Op::Setxattr { fid: root, name: name.clone(), value: Bytes::new().into(), how }).unwrap();
    }
    let list = Query::Listxattr { fid: root };
    let both = all.into_iter().chain([user.clone()]).collect();
    assert_eq!(world.query(list.clone()), Ok(QueryReply::XattrNames(both)));
    world.become_user(10, 10);
    assert_eq!(world.query(list), Ok(QueryReply::XattrNames(vec![user])));
}

#[test]
fn what_unstable_writes_did_is_seen_by_handle_name_and_listing() {
    let mut world = World::new();
    let root = world.root();
    let attr = world.create(root, "f", 0o644).unwrap();
    materialize(&mut world, attr.fid);
    world.unsettled.set(attr.fid.vnode, written(&attr, 70_000));
    assert_eq!(world.getattr(attr.fid).unwrap().size, 70_000);
    assert_eq!(world.lookup(root, "f").unwrap().unwrap().size, 70_000);
    assert_eq!(readdir(&world, root, 0, 1000, true).0[0].attr.as_ref().unwrap().size, 70_000);
}

#[test]
fn a_recheck_says_what_became_of_each_object() {
    let mut world = World::new();
    let root = world.root();
    let [same, changed, written_to, gone] = ["a", "b", "c", "d"].map(|name| world.create(root, name, 0o600).unwrap());
    let known = |attr: &Attr| (attr.fid, attr.change);
    let unknown = Fid { vnode: 999, ..same.fid };
    let again = Fid { generation: same.fid.generation + 1, ..same.fid };
    let mut items: Vec<(Fid, u64)> = [&same, &changed, &written_to, &gone].map(known).to_vec();
    items.extend([(unknown, 1), (again, same.change), known(&same)]);
    world.chmod(changed.fid, 0o644).unwrap();
    materialize(&mut world, written_to.fid);
    world.unsettled.set(written_to.fid.vnode, written(&world.getattr(written_to.fid).unwrap(), 70_000));
    world.remove(root, "d", false).unwrap();
    // Whoever holds a handle may ask.
    let now = [changed.fid, written_to.fid].map(|fid| world.getattr(fid).unwrap());
    world.become_user(10, 10);
    let [Checked::Changed(_), written_to] = now.map(Checked::Changed) else { panic!() };
    let checked = match world.query(Query::Recheck { items: items.clone() }) {
        Ok(QueryReply::Rechecked(checked)) => checked,
        other => panic!("{other:?}"),
    };
    let changed = Checked::Changed(world.getattr(changed.fid).unwrap());
    let (same, gone) = (Checked::Same, Checked::Gone);
    let expected = [same.clone(), changed, written_to, gone.clone(), gone.clone(), gone, same];
    assert_eq!(checked, expected);
    assert_eq!(world.query(Query::Recheck { items: Vec::new() }), Err(ErrorCode::Invalid));
    let elsewhere = Fid { volume: larder_protocol::ids::VolumeId(77), ..items[0].0 };
    items.push((elsewhere, 1));
    assert_eq!(world.query(Query::Recheck { items: items.clone() }), Err(ErrorCode::Invalid));
    items = vec![items[0]; MAX_RECHECK + 1];
    assert_eq!(world.query(Query::Recheck { items: items.clone() }), Err(ErrorCode::Invalid));
    items.pop();
    assert!(world.query(Query::Recheck { items }).is_ok());
}

/// Answers a query while `settle` says, at each snapshot, what else happens first.
fn query_beside(world: &World, rows: &dyn Fn() -> Rows, query: &Query) -> Result<QueryReply, ErrorCode> {
    let snapshot = || Ok(Box::new(rows()) as Box<dyn Snapshot>);
    Reader { snapshot: &snapshot, volume: VOLUME, unsettled: &world.unsettled }.query(&world.cred, query)
}

#[test]
fn a_file_settled_between_snapshot_and_map_is_not_shown_as_it_was() {
    let mut world = World::new();
    let root = world.root();
    let attr = world.create(root, "f", 0o644).unwrap();
    materialize(&mut world, attr.fid);
    world.unsettled.set(attr.fid.vnode, written(&attr, 70_000));
    let before = world.rows.clone();
    world
        .with(|cx| {
            let record = cx.resolve(attr.fid)?;
            Ok(cx.update(attr.fid.vnode, &record)?)
        })
        .unwrap();
    let queries = [
        Query::Lookup { dir: root, name: name("f") },
        Query::Readdir { dir: root, cookie: 0, max_bytes: 1000, plus: true },
    ];
    for query in queries {
        world.unsettled.set(attr.fid.vnode, written(&attr, 70_000));
        let taken = Cell::new(0);
        let rows = || {
            taken.set(taken.get() + 1);
            if taken.get() > 1 {
                return world.rows.clone();
            }
            // The record with the write is committed just after the first snapshot.
            world.unsettled.remove(attr.fid.vnode);
            before.clone()
        };
        let size = match query_beside(&world, &rows, &query).unwrap() {
            QueryReply::Entry { attr, .. } => attr.unwrap().size,
            QueryReply::Listing { entries, .. } => entries[0].attr.as_ref().unwrap().size,
            other => panic!("{other:?}"),
        };
        assert_eq!((size, taken.get()), (70_000, 2));
    }
}

#[test]
fn a_name_that_never_stands_still_is_given_up_and_a_listing_is_not() {
    let mut world = World::new();
    let root = world.root();
    let mut versions = Vec::new();
    for number in 0..PASSES + 1 {
        let file = world.create(root, "f", 0o644).unwrap().fid;
        materialize(&mut world, file);
        versions.push((world.rows.clone(), number));
        world.remove(root, "f", false).unwrap();
    }
    let taken = Cell::new(0);
    let rows = || {
        let (rows, number) = &versions[taken.get()];
        taken.set(number + 1);
        rows.clone()
    };
    let lookup = Query::Lookup { dir: root, name: name("f") };
    assert_eq!(query_beside(&world, &rows, &lookup), Err(ErrorCode::Unavailable));
    assert_eq!(taken.replace(0), PASSES);
    let listing = Query::Readdir { dir: root, cookie: 0, max_bytes: 1000, plus: true };
    match query_beside(&world, &rows, &listing).unwrap() {
        QueryReply::Listing { entries, .. } => assert_eq!((entries.len(), &entries[0].attr), (1, &None)),
        other => panic!("{other:?}"),
    }
}
