//! Setting attributes and extended attributes.

use bytes::Bytes;
use larder_protocol::attr::{Attr, FileType, SetAttr, SetTime, Timestamp};
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::Fid;
use larder_protocol::limits::{MAX_FILE_SIZE, MAX_XATTR_VALUE};
use larder_protocol::service::file::{Op, OpReply, Query, QueryReply, XattrHow};

use crate::volume::apply::setattr;
use crate::volume::apply::world::{World, name};

/// A file of user 10, group 20.
fn world_with_file(mode: u32) -> (World, Fid) {
    let mut world = World::new();
    world.become_user(10, 20);
    let root = world.root();
    let file = world.create(root, "f", 0o600).unwrap().fid;
    world.become_root();
    world.chmod(file, mode).unwrap();
    (world, file)
}

fn setxattr(world: &mut World, fid: Fid, name: &str, value: &[u8], how: XattrHow) -> Result<Attr, ErrorCode> {
    let (name, value) = (Bytes::copy_from_slice(name.as_bytes()), Bytes::copy_from_slice(value).into());
    match world.apply(Op::Setxattr { fid, name, value, how })? {
        OpReply::Attr(change) => Ok(change.attr),
        other => panic!("{other:?}"),
    }
}

fn times(atime: Option<SetTime>, mtime: Option<SetTime>) -> SetAttr {
    SetAttr { atime, mtime, ..SetAttr::default() }
}

#[test]
fn chmod_is_the_owners_and_changes_ctime() {
    let (mut world, file) = world_with_file(0o666);
    let before = world.getattr(file).unwrap();
    world.become_user(11, 20);
    assert_eq!(world.chmod(file, 0o600), Err(ErrorCode::NotPermitted));
    world.become_user(10, 99);
    let after = world.chmod(file, 0o100755).unwrap();
    assert_eq!((after.mode, after.ctime, after.mtime), (0o755, world.now(), before.mtime));
    assert_ne!(after.change, before.change);
}

#[test]
fn chmod_gives_setgid_only_for_own_groups() {
    let (mut world, file) = world_with_file(0o644);
    world.become_user(10, 99);
    assert_eq!(world.chmod(file, 0o2755).unwrap().mode, 0o755);
    world.become_user(10, 20);
    assert_eq!(world.chmod(file, 0o2755).unwrap().mode, 0o2755);
    world.become_root();
    assert_eq!(world.chmod(file, 0o6755).unwrap().mode, 0o6755);
}

#[test]
fn a_writer_may_clear_setuid_and_nothing_else() {
    let (mut world, file) = world_with_file(0o4777);
    world.become_user(11, 11);
    assert_eq!(world.chmod(file, 0o775), Err(ErrorCode::NotPermitted));
    assert_eq!(world.chmod(file, 0o777).unwrap().mode, 0o777);
    let (mut world, file) = world_with_file(0o4755);
    world.become_user(11, 11);
    assert_eq!(world.chmod(file, 0o755), Err(ErrorCode::NotPermitted), "without write permission");
}

#[test]
fn a_symlink_has_no_mode_to_set() {
    let mut world = World::new();
    let op = Op::Symlink { dir: world.root(), name: name("l"), target: Bytes::from_static(b"x") };
    let OpReply::Entry { attr, .. } = world.apply(op).unwrap() else { panic!() };
    assert_eq!(attr.kind, FileType::Symlink);
    assert_eq!(world.chmod(attr.fid, 0o600), Err(ErrorCode::NotSupported));
    assert_eq!(world.chown(attr.fid, Some(5), None).unwrap().uid, 5);
}

#[test]
fn chown_is_roots_but_for_the_owners_groups() {
    let (mut world, file) = world_with_file(0o644);
    world.become_user(10, 20);
    assert_eq!(world.chown(file, Some(11), None), Err(ErrorCode::NotPermitted));
    assert_eq!(world.chown(file, Some(10), Some(30)), Err(ErrorCode::NotPermitted));
    world.cred.groups = vec![30];
    assert_eq!(world.chown(file, Some(10), Some(30)).unwrap().gid, 30);
    world.become_user(11, 30);
    assert_eq!(world.chown(file, None, Some(30)), Err(ErrorCode::NotPermitted), "not the owner");
    world.become_root();
    let changed = world.chown(file, Some(1), Some(2)).unwrap();
    assert_eq!((changed.uid, changed.gid, changed.ctime), (1, 2, world.now()));
    assert_eq!(world.chown(file, Some(u32::MAX), None), Err(ErrorCode::Invalid));
}

#[test]
fn chown_drops_setuid_and_setgid_of_files() {
    let (mut world, file) = world_with_file(0o6755);
    assert_eq!(world.chown(file, Some(1), None).unwrap().mode, 0o755);
    let (mut world, file) = world_with_file(0o6755);
    world.become_user(10, 20);
    assert_eq!(world.chown(file, None, Some(20)).unwrap().mode, 0o755, "also to what it was");
    let mut world = World::new();
    let root = world.root();
    let dir = world.mkdir(root, "d", 0o755).unwrap().fid;
    world.chmod(dir, 0o6755).unwrap();
    assert_eq!(world.chown(dir, Some(1), None).unwrap().mode, 0o6755);
}

#[test]
fn explicit_times_are_the_owners_and_now_is_any_writers() {
    let (mut world, file) = world_with_file(0o606);
    let at = SetTime::At(Timestamp { secs: -5, nanos: 999_999_999 });
    world.become_user(11, 11);
    for set in [times(Some(at), Some(at)), times(Some(SetTime::Now), None), times(None, Some(SetTime::Now))] {
        assert_eq!(world.set(file, set), Err(ErrorCode::NotPermitted));
    }
    let now = times(Some(SetTime::Now), Some(SetTime::Now));
    let touched = world.set(file, now.clone()).unwrap();
    assert_eq!((touched.atime, touched.mtime), (world.now(), world.now()));
    world.become_user(11, 20);
    assert_eq!(world.set(file, now), Err(ErrorCode::AccessDenied), "the group may not write");
    world.become_user(10, 20);
    let set = world.set(file, times(None, Some(at))).unwrap();
    assert_eq!(set.mtime, Timestamp { secs: -5, nanos: 999_999_999 });
    assert_eq!((set.atime, set.ctime), (touched.atime, world.now()));
    let record = world.record(file).unwrap();
    assert_eq!(record.data_change, record.change, "unstable writes do not cover the time set");
    let bad = SetTime::At(Timestamp { secs: 0, nanos: 1_000_000_000 });
    assert_eq!(world.set(file, times(Some(bad), None)), Err(ErrorCode::Invalid));
}

#[test]
fn setting_nothing_changes_nothing() {
    let (mut world, file) = world_with_file(0o644);
    let before = world.getattr(file).unwrap();
    world.become_user(11, 11);
    assert_eq!(world.set(file, SetAttr::default()), Ok(before.clone()));
    assert_eq!(world.getattr(file), Ok(before));
}

#[test]
fn a_change_of_size_needs_write_permission_or_an_open_file_of_the_owner() {
    let (mut world, file) = world_with_file(0o466);
    let record = world.record(file).unwrap();
    let size = |size| SetAttr { size: Some(size), mtime: Some(SetTime::Now), ..SetAttr::default() };
    world.become_user(10, 20);
    assert_eq!(setattr::check(&world.cred, &record, &size(1), false), Err(ErrorCode::AccessDenied));
    assert_eq!(setattr::check(&world.cred, &record, &size(1), true), Ok(()));
    world.become_user(11, 11);
    assert_eq!(setattr::check(&world.cred, &record, &size(1), false), Ok(()));
    let large = size(MAX_FILE_SIZE + 1);
    assert_eq!(setattr::check(&world.cred, &record, &large, false), Err(ErrorCode::FileTooLarge));
    let root = world.root();
    let dir = world.record(root).unwrap();
    assert_eq!(setattr::check(&world.cred, &dir, &size(1), false), Err(ErrorCode::IsDirectory));
}

#[test]
fn a_change_of_size_drops_setuid_but_not_for_root() {
    let (mut world, file) = world_with_file(0o6777);
    let record = world.record(file).unwrap();
    let set = SetAttr { size: Some(1), ..SetAttr::default() };
    let changed = |world: &mut World| {
        let (cred, mut record) = (world.cred.clone(), record.clone());
        world
            .with(|cx| {
                setattr::change(cx, &cred, &mut record, &set);
                Ok(record)
            })
            .unwrap()
    };
    assert_eq!(changed(&mut world).mode, 0o6777);
    world.become_user(11, 11);
    let changed = changed(&mut world);
    assert_eq!((changed.mode, changed.size), (0o777, 0));
}

#[test]
fn xattrs_are_set_counted_and_removed() {
    let (mut world, file) = world_with_file(0o644);
    let before = world.getattr(file).unwrap();
    let set = setxattr(&mut world, file, "user.a", b"1", XattrHow::Create).unwrap();
    assert!(set.has_xattr);
    assert_eq!((set.ctime, set.mtime), (world.now(), before.mtime));
    assert_eq!(setxattr(&mut world, file, "user.a", b"2", XattrHow::Create), Err(ErrorCode::Exists));
    assert_eq!(setxattr(&mut world, file, "user.b", b"2", XattrHow::Replace), Err(ErrorCode::NoXattr));
    setxattr(&mut world, file, "user.a", b"", XattrHow::Replace).unwrap();
    assert_eq!(world.record(file).unwrap().xattrs, 1);
    let get = |world: &World| world.query(Query::Getxattr { fid: file, name: Bytes::from_static(b"user.a") });
    assert_eq!(get(&world), Ok(QueryReply::Xattr(Bytes::new().into())));
    let remove = Op::Removexattr { fid: file, name: Bytes::from_static(b"user.a") };
    let OpReply::Attr(change) = world.apply(remove.clone()).unwrap() else { panic!() };
    assert!(!change.attr.has_xattr);
    assert_eq!(world.apply(remove), Err(ErrorCode::NoXattr));
    assert_eq!(get(&world), Err(ErrorCode::NoXattr));
}

#[test]
fn xattrs_have_bounds_and_permissions() {
    let (mut world, file) = world_with_file(0o644);
    let large = vec![0; MAX_XATTR_VALUE + 1];
    assert_eq!(setxattr(&mut world, file, "user.a", &large, XattrHow::Set), Err(ErrorCode::TooBig));
    setxattr(&mut world, file, "user.a", &large[1..], XattrHow::Set).unwrap();
    for number in 1..256 {
        setxattr(&mut world, file, &format!("user.{number}"), b"", XattrHow::Set).unwrap();
    }
    assert_eq!(setxattr(&mut world, file, "user.more", b"", XattrHow::Set), Err(ErrorCode::NoSpace));
    setxattr(&mut world, file, "user.1", b"x", XattrHow::Set).unwrap();
    world.has_room = false;
    assert_eq!(setxattr(&mut world, file, "user.1", b"y", XattrHow::Set), Err(ErrorCode::NoSpace));
    world.become_user(11, 11);
    assert_eq!(setxattr(&mut world, file, "user.1", b"y", XattrHow::Set), Err(ErrorCode::AccessDenied));
    let remove = Op::Removexattr { fid: file, name: Bytes::from_static(b"user.1") };
    assert_eq!(world.apply(remove), Err(ErrorCode::AccessDenied));
    let acl = "system.posix_acl_access";
    assert_eq!(setxattr(&mut world, file, acl, b"", XattrHow::Set), Err(ErrorCode::NotSupported));
}
