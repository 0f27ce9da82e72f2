//! Moving names.

use larder_protocol::attr::{Attr, AttrChange};
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::{Fid, VolumeId};
use larder_protocol::service::file::{Op, OpReply, Query, QueryReply, RenameHow};

use crate::volume::apply::world::{World, name};

struct Renamed {
    from_dir: AttrChange,
    to_dir: AttrChange,
    object: Attr,
    other: Option<Attr>,
}

fn rename_how(
    world: &mut World,
    from: (Fid, &str),
    to: (Fid, &str),
    how: RenameHow,
    keep: bool,
) -> Result<Renamed, ErrorCode> {
    let op = Op::Rename { from_dir: from.0, from_name: name(from.1), to_dir: to.0, to_name: name(to.1), how, keep };
    match world.apply(op)? {
        OpReply::Renamed { from_dir, to_dir, object, other } => Ok(Renamed { from_dir, to_dir, object, other }),
        other => panic!("{other:?}"),
    }
}

fn rename(world: &mut World, from: (Fid, &str), to: (Fid, &str)) -> Result<Renamed, ErrorCode> {
    rename_how(world, from, to, RenameHow::Replace, false)
}

fn exchange(world: &mut World, from: (Fid, &str), to: (Fid, &str)) -> Result<Renamed, ErrorCode> {
    rename_how(world, from, to, RenameHow::Exchange, false)
}

fn refused(result: Result<Renamed, ErrorCode>) -> ErrorCode {
    result.err().expect("must be refused")
}

fn parent(world: &World, dir: Fid) -> Fid {
    match world.query(Query::Parent { dir }).unwrap() {
        QueryReply::Entry { attr: Some(attr), .. } => attr.fid,
        other => panic!("{other:?}"),
    }
}

fn found(world: &World, dir: Fid, name: &str) -> Option<Fid> {
    world.lookup(dir, name).unwrap().map(|attr| attr.fid)
}

#[test]
fn a_name_moves_with_new_ctime_within_one_directory() {
    let mut world = World::new();
    let root = world.root();
    let file = world.create(root, "f", 0o644).unwrap();
    let done = rename(&mut world, (root, "f"), (root, "g")).unwrap();
    assert_eq!(done.from_dir, done.to_dir);
    assert_eq!((done.object.fid, done.object.ctime, done.object.mtime), (file.fid, world.now(), file.mtime));
    assert_eq!(done.other, None);
    assert_eq!((found(&world, root, "f"), found(&world, root, "g")), (None, Some(file.fid)));
}

#[test]
fn a_directory_takes_its_link_and_its_parent_along() {
    let mut world = World::new();
    let root = world.root();
    let (a, b) = (world.mkdir(root, "a", 0o755).unwrap().fid, world.mkdir(root, "b", 0o755).unwrap().fid);
    let moved = world.mkdir(a, "d", 0o755).unwrap().fid;
    let done = rename(&mut world, (a, "d"), (b, "e")).unwrap();
    assert_eq!((done.from_dir.attr.nlink, done.to_dir.attr.nlink), (2, 3));
    assert_eq!((done.from_dir.attr.fid, done.to_dir.attr.fid), (a, b));
    assert_eq!(parent(&world, moved), b);
}

#[test]
fn a_file_replaced_is_freed() {
    let mut world = World::new();
    let root = world.root();
    let file = world.create(root, "f", 0o644).unwrap().fid;
    let old = world.create(root, "g", 0o644).unwrap().fid;
    let other = rename(&mut world, (root, "f"), (root, "g")).unwrap().other.unwrap();
    assert_eq!((other.fid, other.nlink, other.ctime), (old, 0, world.now()));
    assert_eq!(found(&world, root, "g"), Some(file));
    assert_eq!(world.getattr(old), Err(ErrorCode::Stale));
    assert_eq!(world.effects.freed, [old.vnode]);
}

#[test]
fn a_file_replaced_keeps_its_other_names_and_stays_for_who_keeps_it() {
    let mut world = World::new();
    let root = world.root();
    let old = world.create(root, "g", 0o644).unwrap().fid;
    world.link(old, root, "h").unwrap();
    world.create(root, "f", 0o644).unwrap();
    let other = rename(&mut world, (root, "f"), (root, "g")).unwrap().other.unwrap();
    assert_eq!((other.nlink, other.ctime), (1, world.now()));
    let done = rename_how(&mut world, (root, "g"), (root, "h"), RenameHow::Replace, true).unwrap();
    assert_eq!(done.other.unwrap().nlink, 0);
    assert_eq!(world.getattr(old).unwrap().nlink, 0);
}

#[test]
fn only_an_empty_directory_is_replaced_and_only_by_a_directory() {
    let mut world = World::new();
    let root = world.root();
    let dir = world.mkdir(root, "d", 0o755).unwrap().fid;
    let full = world.mkdir(root, "full", 0o755).unwrap().fid;
    world.create(full, "x", 0o644).unwrap();
    world.create(root, "f", 0o644).unwrap();
    assert_eq!(refused(rename(&mut world, (root, "d"), (root, "full"))), ErrorCode::NotEmpty);
    assert_eq!(refused(rename(&mut world, (root, "f"), (root, "d"))), ErrorCode::IsDirectory);
    assert_eq!(refused(rename(&mut world, (root, "d"), (root, "f"))), ErrorCode::NotDirectory);
    let done = rename(&mut world, (root, "full"), (root, "d")).unwrap();
    assert_eq!((done.to_dir.attr.nlink, done.other.unwrap().nlink), (3, 0));
    assert_eq!(world.record(dir), None);
}

#[test]
fn a_directory_moved_over_an_empty_one_elsewhere_leaves_the_counts_right() {
    let mut world = World::new();
    let root = world.root();
    let (a, b) = (world.mkdir(root, "a", 0o755).unwrap().fid, world.mkdir(root, "b", 0o755).unwrap().fid);
    let moved = world.mkdir(a, "d", 0o755).unwrap().fid;
    world.mkdir(b, "e", 0o755).unwrap();
    let done = rename(&mut world, (a, "d"), (b, "e")).unwrap();
    assert_eq!((done.from_dir.attr.nlink, done.to_dir.attr.nlink), (2, 3));
    assert_eq!(parent(&world, moved), b);
}

#[test]
fn no_directory_goes_into_itself_or_over_what_holds_it() {
    let mut world = World::new();
    let root = world.root();
    let a = world.mkdir(root, "a", 0o755).unwrap().fid;
    let b = world.mkdir(a, "b", 0o755).unwrap().fid;
    let c = world.mkdir(b, "c", 0o755).unwrap().fid;
    assert_eq!(refused(rename(&mut world, (root, "a"), (a, "x"))), ErrorCode::Invalid);
    assert_eq!(refused(rename(&mut world, (root, "a"), (c, "x"))), ErrorCode::Invalid);
    assert_eq!(refused(rename(&mut world, (b, "c"), (root, "a"))), ErrorCode::NotEmpty);
    assert_eq!(refused(exchange(&mut world, (b, "c"), (root, "a"))), ErrorCode::Invalid);
    assert_eq!(refused(exchange(&mut world, (root, "a"), (b, "c"))), ErrorCode::Invalid);
}

#[test]
fn two_names_of_one_file_stay_both() {
    let mut world = World::new();
    let root = world.root();
    let file = world.create(root, "f", 0o644).unwrap().fid;
    world.link(file, root, "g").unwrap();
    let before = (world.getattr(root).unwrap(), world.getattr(file).unwrap());
    let done = rename(&mut world, (root, "f"), (root, "g")).unwrap();
    assert_eq!((done.from_dir.before, done.object.clone()), (before.0.change, before.1.clone()));
    assert_eq!((world.getattr(root).unwrap(), world.getattr(file).unwrap()), before);
    rename(&mut world, (root, "f"), (root, "f")).unwrap();
    assert_eq!((found(&world, root, "f"), found(&world, root, "g")), (Some(file), Some(file)));
}

#[test]
fn no_replace_and_exchange_say_what_they_expect() {
    let mut world = World::new();
    let root = world.root();
    let file = world.create(root, "f", 0o644).unwrap().fid;
    world.create(root, "g", 0o644).unwrap();
    let no_replace = RenameHow::NoReplace;
    assert_eq!(refused(rename_how(&mut world, (root, "f"), (root, "g"), no_replace, false)), ErrorCode::Exists);
    assert_eq!(refused(exchange(&mut world, (root, "f"), (root, "x"))), ErrorCode::NotFound);
    assert_eq!(refused(rename(&mut world, (root, "x"), (root, "g"))), ErrorCode::NotFound);
    rename_how(&mut world, (root, "f"), (root, "x"), no_replace, false).unwrap();
    assert_eq!(found(&world, root, "x"), Some(file));
}

#[test]
fn exchange_swaps_a_file_with_a_full_directory() {
    let mut world = World::new();
    let root = world.root();
    let (a, b) = (world.mkdir(root, "a", 0o755).unwrap().fid, world.mkdir(root, "b", 0o755).unwrap().fid);
    let dir = world.mkdir(a, "d", 0o755).unwrap().fid;
    world.create(dir, "x", 0o644).unwrap();
    let file = world.create(b, "f", 0o644).unwrap().fid;
    let done = exchange(&mut world, (a, "d"), (b, "f")).unwrap();
    assert_eq!((done.from_dir.attr.nlink, done.to_dir.attr.nlink), (2, 3));
    let other = done.other.unwrap();
    assert_eq!((other.fid, other.nlink, other.ctime), (file, 1, world.now()));
    assert_eq!((found(&world, a, "d"), found(&world, b, "f")), (Some(file), Some(dir)));
    assert_eq!(parent(&world, dir), b);
    exchange(&mut world, (a, "d"), (b, "f")).unwrap();
    assert_eq!((parent(&world, dir), world.getattr(a).unwrap().nlink), (a, 3));
}

#[test]
fn volumes_do_not_mix() {
    let mut world = World::new();
    let root = world.root();
    world.create(root, "f", 0o644).unwrap();
    let elsewhere = Fid { volume: VolumeId(2), ..root };
    assert_eq!(refused(rename(&mut world, (root, "f"), (elsewhere, "g"))), ErrorCode::CrossVolume);
}

#[test]
fn both_directories_must_be_writable_and_a_moved_directory_too() {
    let mut world = World::new();
    let root = world.root();
    let open = world.mkdir(root, "open", 0o777).unwrap().fid;
    let fixed = world.mkdir(root, "fixed", 0o755).unwrap().fid;
    world.create(fixed, "f", 0o644).unwrap();
    world.mkdir(root, "other", 0o755).unwrap();
    world.become_user(10, 10);
    world.create(open, "g", 0o644).unwrap();
    assert_eq!(refused(rename(&mut world, (fixed, "f"), (open, "f"))), ErrorCode::AccessDenied);
    assert_eq!(refused(rename(&mut world, (open, "g"), (fixed, "g"))), ErrorCode::AccessDenied);
    assert_eq!(refused(rename(&mut world, (root, "other"), (open, "other"))), ErrorCode::AccessDenied);
    assert_eq!(refused(exchange(&mut world, (open, "g"), (root, "other"))), ErrorCode::AccessDenied);
    rename(&mut world, (root, "other"), (root, "another")).unwrap();
    rename(&mut world, (open, "g"), (root, "g")).unwrap();
}

#[test]
fn sticky_counts_at_both_ends() {
    let mut world = World::new();
    let root = world.root();
    let sticky = world.mkdir(root, "sticky", 0o1777).unwrap().fid;
    world.become_user(10, 10);
    world.create(sticky, "f", 0o666).unwrap();
    world.become_user(11, 11);
    world.create(root, "g", 0o666).unwrap();
    assert_eq!(refused(rename(&mut world, (sticky, "f"), (root, "x"))), ErrorCode::NotPermitted);
    assert_eq!(refused(rename(&mut world, (root, "g"), (sticky, "f"))), ErrorCode::NotPermitted);
    rename(&mut world, (root, "g"), (sticky, "x")).unwrap();
}

#[test]
fn without_room_a_rename_may_replace_but_not_add() {
    let mut world = World::new();
    let root = world.root();
    world.create(root, "f", 0o644).unwrap();
    world.create(root, "g", 0o644).unwrap();
    world.has_room = false;
    assert_eq!(refused(rename(&mut world, (root, "f"), (root, "longer"))), ErrorCode::NoSpace);
    rename(&mut world, (root, "f"), (root, "g")).unwrap();
}
