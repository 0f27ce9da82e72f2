//! Making, linking and removing names.

use bytes::Bytes;
use larder_protocol::attr::{Attr, FileType, MAY_READ, MAY_WRITE};
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::{Fid, MAX_VNODE, VolumeId};
use larder_protocol::limits::{MAX_LINKS, MAX_SYMLINK};
use larder_protocol::service::file::{CreateHow, Op, OpReply};

use crate::volume::apply::world::{World, name};
use crate::volume::keys::Table;
use crate::volume::record::Body;

fn mknod(world: &mut World, dir: Fid, text: &str, kind: FileType) -> Result<Attr, ErrorCode> {
    match world.apply(Op::Mknod { dir, name: name(text), kind, mode: 0o666, umask: 0o022, rdev: 259 })? {
        OpReply::Entry { attr, created: true, .. } => Ok(attr),
        other => panic!("{other:?}"),
    }
}

fn symlink(world: &mut World, dir: Fid, text: &str, target: &[u8]) -> Result<Attr, ErrorCode> {
    match world.apply(Op::Symlink { dir, name: name(text), target: Bytes::copy_from_slice(target) })? {
        OpReply::Entry { attr, created: true, .. } => Ok(attr),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_new_file_is_the_callers_empty_and_of_now() {
    let mut world = World::new();
    world.become_user(10, 20);
    let how = CreateHow::Exclusive;
    let op = Op::Create { dir: world.root(), name: name("f"), mode: 0o7666, umask: 0o027, how };
    let OpReply::Entry { attr, dir, created: true } = world.apply(op).unwrap() else { panic!() };
    assert_eq!((attr.uid, attr.gid, attr.mode, attr.nlink), (10, 20, 0o7640, 1));
    assert_eq!((attr.kind, attr.size, attr.blocks, attr.has_xattr), (FileType::Regular, 0, 0, false));
    assert_eq!([attr.atime, attr.mtime, attr.ctime, attr.btime], [world.now(); 4]);
    assert_eq!(attr.fid.generation, world.header.incarnation);
    assert_eq!((dir.attr.mtime, dir.attr.ctime), (world.now(), world.now()));
    assert_eq!(dir.before, 1);
    assert_ne!(dir.attr.change, dir.before);
    assert_eq!(world.record(attr.fid).unwrap().body, Body::Inline);
}

#[test]
fn exclusive_create_fails_on_any_name_that_is_there() {
    let mut world = World::new();
    let root = world.root();
    world.create(root, "f", 0o644).unwrap();
    world.mkdir(root, "d", 0o755).unwrap();
    assert_eq!(world.create(root, "f", 0o644), Err(ErrorCode::Exists));
    assert_eq!(world.create(root, "d", 0o644), Err(ErrorCode::Exists));
}

#[test]
fn open_of_a_file_that_is_there_checks_permission_and_changes_nothing() {
    let mut world = World::new();
    let root = world.root();
    let file = world.create(root, "f", 0o604).unwrap();
    world.mkdir(root, "d", 0o755).unwrap();
    symlink(&mut world, root, "l", b"f").unwrap();
    let before = world.getattr(root).unwrap();
    world.become_user(10, 10);
    assert_eq!(world.open(root, "f", MAY_READ, false), Ok(file));
    assert_eq!(world.open(root, "f", MAY_READ | MAY_WRITE, false), Err(ErrorCode::AccessDenied));
    assert_eq!(world.open(root, "f", MAY_READ, true), Err(ErrorCode::AccessDenied), "truncating is writing");
    assert_eq!(world.open(root, "d", MAY_READ, false), Err(ErrorCode::IsDirectory));
    assert_eq!(world.open(root, "l", MAY_READ, false), Err(ErrorCode::Exists));
    assert_eq!(world.getattr(root).unwrap(), before);
}

#[test]
fn adding_a_name_needs_search_first_and_write_after_the_name_is_known_to_be_free() {
    let mut world = World::new();
    let root = world.root();
    let closed = world.mkdir(root, "closed", 0o666).unwrap().fid;
    let fixed = world.mkdir(root, "fixed", 0o555).unwrap().fid;
    world.create(fixed, "there", 0o644).unwrap();
    world.become_user(10, 10);
    assert_eq!(world.create(closed, "x", 0o644), Err(ErrorCode::AccessDenied));
    assert_eq!(world.mkdir(fixed, "there", 0o755), Err(ErrorCode::Exists));
    assert_eq!(world.mkdir(fixed, "x", 0o755), Err(ErrorCode::AccessDenied));
    assert_eq!(world.remove(fixed, "absent", false), Err(ErrorCode::NotFound));
    assert_eq!(world.remove(fixed, "there", false), Err(ErrorCode::AccessDenied));
}

#[test]
fn a_new_directory_counts_in_its_parent_and_has_no_setuid() {
    let mut world = World::new();
    let root = world.root();
    let dir = world.mkdir(root, "d", 0o7777).unwrap();
    assert_eq!((dir.nlink, dir.mode, dir.size, dir.blocks), (2, 0o1777, 4096, 8));
    assert_eq!(world.getattr(root).unwrap().nlink, 3);
    world.rmdir(root, "d").unwrap();
    assert_eq!(world.getattr(root).unwrap().nlink, 2);
    assert_eq!(world.header.blocks, 8, "the root's");
    assert_eq!(world.header.vnodes, 1);
}

#[test]
fn a_setgid_directory_hands_down_group_and_bit() {
    let mut world = World::new();
    let root = world.root();
    let dir = world.mkdir(root, "d", 0o777).unwrap().fid;
    world.chown(dir, Some(1), Some(33)).unwrap();
    world.chmod(dir, 0o2777).unwrap();
    world.become_user(10, 20);
    let sub = world.mkdir(dir, "sub", 0o755).unwrap();
    assert_eq!((sub.gid, sub.mode), (33, 0o2755));
    let file = world.create(dir, "f", 0o2755).unwrap();
    assert_eq!((file.gid, file.mode), (33, 0o755), "a program of a group the caller is not in");
    let link = symlink(&mut world, dir, "l", b"x").unwrap();
    assert_eq!((link.gid, link.mode), (33, 0o777));
}

#[test]
fn mknod_makes_what_it_is_told_and_devices_only_for_root() {
    let mut world = World::new();
    let root = world.root();
    let device = mknod(&mut world, root, "c", FileType::CharDevice).unwrap();
    assert_eq!((device.kind, device.rdev, device.mode), (FileType::CharDevice, 259, 0o644));
    for kind in [FileType::Directory, FileType::Symlink] {
        assert_eq!(mknod(&mut world, root, "x", kind), Err(ErrorCode::Invalid));
    }
    world.become_user(10, 10);
    for kind in [FileType::Fifo, FileType::Socket, FileType::Regular] {
        let made = mknod(&mut world, root, &format!("{kind:?}"), kind).unwrap();
        assert_eq!((made.kind, made.rdev), (kind, 0));
    }
    for kind in [FileType::CharDevice, FileType::BlockDevice] {
        assert_eq!(mknod(&mut world, root, "x", kind), Err(ErrorCode::NotPermitted));
    }
}

#[test]
fn a_symlinks_target_has_bounds() {
    let mut world = World::new();
    let root = world.root();
    assert_eq!(symlink(&mut world, root, "l", &[b'a'; MAX_SYMLINK]).unwrap().size, MAX_SYMLINK as u64);
    assert_eq!(symlink(&mut world, root, "m", &[b'a'; MAX_SYMLINK + 1]), Err(ErrorCode::NameTooLong));
    assert_eq!(symlink(&mut world, root, "m", b""), Err(ErrorCode::NotFound));
    assert_eq!(symlink(&mut world, root, "m", b"a\0b"), Err(ErrorCode::Invalid));
}

#[test]
fn a_link_counts_and_changes_ctime_only() {
    let mut world = World::new();
    let root = world.root();
    let file = world.create(root, "f", 0o644).unwrap();
    let linked = world.link(file.fid, root, "g").unwrap();
    assert_eq!((linked.fid, linked.nlink), (file.fid, 2));
    assert_eq!((linked.mtime, linked.ctime), (file.mtime, world.now()));
    assert_ne!(linked.change, file.change);
    let left = world.remove(root, "f", false).unwrap();
    assert_eq!((left.nlink, left.ctime), (1, world.now()));
    assert_eq!(world.lookup(root, "g").unwrap(), Some(left));
}

#[test]
fn links_have_their_refusals() {
    let mut world = World::new();
    let root = world.root();
    let dir = world.mkdir(root, "d", 0o755).unwrap().fid;
    let file = world.create(root, "f", 0o644).unwrap().fid;
    assert_eq!(world.link(dir, root, "e"), Err(ErrorCode::NotPermitted));
    assert_eq!(world.link(file, root, "d"), Err(ErrorCode::Exists));
    let elsewhere = Fid { volume: VolumeId(2), ..file };
    assert_eq!(world.link(elsewhere, root, "e"), Err(ErrorCode::CrossVolume));
    world
        .with(|cx| {
            let mut record = cx.resolve(file)?;
            record.nlink = MAX_LINKS;
            Ok(cx.update(file.vnode, &record)?)
        })
        .unwrap();
    assert_eq!(world.link(file, root, "e"), Err(ErrorCode::TooManyLinks));
}

#[test]
fn removal_tells_files_and_directories_apart() {
    let mut world = World::new();
    let root = world.root();
    let dir = world.mkdir(root, "d", 0o755).unwrap().fid;
    world.create(dir, "f", 0o644).unwrap();
    assert_eq!(world.remove(root, "d", true), Err(ErrorCode::IsDirectory));
    assert_eq!(world.rmdir(dir, "f"), Err(ErrorCode::NotDirectory));
    assert_eq!(world.rmdir(root, "d"), Err(ErrorCode::NotEmpty));
    assert_eq!(world.rmdir(root, "absent"), Err(ErrorCode::NotFound));
    world.remove(dir, "f", false).unwrap();
    let gone = world.rmdir(root, "d").unwrap();
    assert_eq!(gone.nlink, 0);
    assert_eq!(world.effects.freed, [dir.vnode]);
    assert_eq!(world.create(dir, "g", 0o644), Err(ErrorCode::Stale));
}

#[test]
fn a_removed_file_is_freed_with_all_it_had() {
    let mut world = World::new();
    let root = world.root();
    let file = world.create(root, "f", 0o644).unwrap();
    let (name, value) = (Bytes::from_static(b"user.a"), Bytes::from_static(b"1").into());
    let how = larder_protocol::service::file::XattrHow::Set;
    world.apply(Op::Setxattr { fid: file.fid, name, value, how }).unwrap();
    let gone = world.remove(root, "f", false).unwrap();
    assert_eq!((gone.nlink, gone.ctime), (0, world.now()));
    assert_ne!(gone.change, file.change);
    assert_eq!(world.record(file.fid), None);
    assert_eq!(world.rows_of(Table::Xattrs, file.fid.vnode), 0);
    assert_eq!(world.all(Table::Entries).len() + world.all(Table::Cookies).len(), 0);
    assert_eq!(world.getattr(file.fid), Err(ErrorCode::Stale));
}

#[test]
fn a_sticky_directory_lets_go_only_of_own_names() {
    let mut world = World::new();
    let root = world.root();
    let dir = world.mkdir(root, "d", 0o1777).unwrap().fid;
    world.become_user(10, 10);
    world.create(dir, "f", 0o666).unwrap();
    world.become_user(11, 11);
    assert_eq!(world.remove(dir, "f", false), Err(ErrorCode::NotPermitted));
    world.become_user(10, 10);
    world.remove(dir, "f", false).unwrap();
}

#[test]
fn handles_must_be_of_this_volume_and_life_and_of_the_right_kind() {
    let mut world = World::new();
    let root = world.root();
    let file = world.create(root, "f", 0o644).unwrap().fid;
    assert_eq!(world.create(file, "x", 0o644), Err(ErrorCode::NotDirectory));
    for forged in [
        Fid { volume: VolumeId(9), ..root },
        Fid { generation: root.generation + 1, ..root },
        Fid { vnode: 99, ..root },
        Fid { vnode: u64::MAX, ..root },
    ] {
        assert_eq!(world.create(forged, "x", 0o644), Err(ErrorCode::Stale));
        assert_eq!(world.getattr(forged), Err(ErrorCode::Stale));
    }
}

#[test]
fn without_room_names_go_but_none_come() {
    let mut world = World::new();
    let root = world.root();
    let file = world.create(root, "f", 0o644).unwrap().fid;
    world.has_room = false;
    assert_eq!(world.create(root, "g", 0o644), Err(ErrorCode::NoSpace));
    assert_eq!(world.mkdir(root, "g", 0o755), Err(ErrorCode::NoSpace));
    assert_eq!(world.link(file, root, "g"), Err(ErrorCode::NoSpace));
    assert_eq!(symlink(&mut world, root, "g", b"f"), Err(ErrorCode::NoSpace));
    world.open(root, "f", MAY_READ, false).unwrap();
    world.remove(root, "f", true).unwrap();
}

#[test]
fn the_last_vnode_number_is_given_out_once() {
    let mut world = World::new();
    let root = world.root();
    world.header.next_vnode = MAX_VNODE;
    assert_eq!(world.create(root, "f", 0o644).unwrap().fid.vnode, MAX_VNODE);
    world.remove(root, "f", false).unwrap();
    assert_eq!(world.create(root, "g", 0o644), Err(ErrorCode::NoSpace));
    assert_eq!(world.lookup(root, "g"), Ok(None));
}
