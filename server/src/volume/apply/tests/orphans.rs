//! Objects without names.

use larder_protocol::error::ErrorCode;
use larder_protocol::ids::{ClientId, Fid, VolumeId};
use larder_protocol::limits::MAX_FORGET;
use larder_protocol::service::file::{Op, OpReply};

use crate::volume::apply::orphans::{keep, release_client};
use crate::volume::apply::world::{CLIENT, World};
use crate::volume::keys::Table;

const OTHER: ClientId = ClientId(8);

fn forget(world: &mut World, client: ClientId, fids: &[Fid]) {
    world.client = client;
    assert_eq!(world.apply(Op::Forget { fids: fids.to_vec() }), Ok(OpReply::Forgotten));
}

fn orphan(world: &mut World, name: &str) -> Fid {
    let root = world.root();
    world.create(root, name, 0o644).unwrap();
    let attr = world.remove(root, name, true).unwrap();
    assert_eq!(attr.nlink, 0);
    attr.fid
}

#[test]
fn a_kept_file_stays_until_its_client_forgets_it() {
    let mut world = World::new();
    let file = orphan(&mut world, "f");
    assert_eq!(world.getattr(file).unwrap().nlink, 0);
    assert_eq!(world.header.vnodes, 2, "it counts");
    let root = world.root();
    assert_eq!(world.link(file, root, "g"), Err(ErrorCode::NotFound));
    world.chmod(file, 0o600).unwrap();
    forget(&mut world, OTHER, &[file]);
    world.getattr(file).unwrap();
    forget(&mut world, CLIENT, &[file]);
    assert_eq!(world.effects.freed, [file.vnode]);
    assert_eq!(world.getattr(file), Err(ErrorCode::Stale));
    assert_eq!(world.header.vnodes, 1);
    assert!(world.all(Table::Orphans).is_empty());
    forget(&mut world, CLIENT, &[file]);
}

#[test]
fn a_file_kept_by_two_goes_with_the_second() {
    let mut world = World::new();
    let file = orphan(&mut world, "f");
    world.with(|cx| Ok(keep(cx, file.vnode, OTHER)?)).unwrap();
    forget(&mut world, CLIENT, &[file]);
    world.getattr(file).unwrap();
    forget(&mut world, OTHER, &[file]);
    assert_eq!(world.getattr(file), Err(ErrorCode::Stale));
}

#[test]
fn forget_touches_nothing_that_was_not_kept() {
    let mut world = World::new();
    let root = world.root();
    let file = world.create(root, "f", 0o644).unwrap().fid;
    let gone = orphan(&mut world, "g");
    let wrong = [
        file,
        root,
        Fid { generation: gone.generation + 1, ..gone },
        Fid { volume: VolumeId(5), ..gone },
        Fid { vnode: 1 << 50, ..gone },
    ];
    forget(&mut world, CLIENT, &wrong);
    for fid in [file, root, gone] {
        world.getattr(fid).unwrap();
    }
    let many = vec![file; MAX_FORGET + 1];
    assert_eq!(world.apply(Op::Forget { fids: many }), Err(ErrorCode::Invalid));
}

#[test]
fn what_has_a_name_outlives_every_claim() {
    let mut world = World::new();
    let root = world.root();
    let file = world.create(root, "f", 0o644).unwrap().fid;
    world.with(|cx| Ok(keep(cx, file.vnode, CLIENT)?)).unwrap();
    forget(&mut world, CLIENT, &[file]);
    assert!(world.all(Table::Orphans).is_empty());
    world.getattr(file).unwrap();
}

#[test]
fn what_has_other_names_is_not_kept() {
    let mut world = World::new();
    let root = world.root();
    let file = world.create(root, "f", 0o644).unwrap().fid;
    world.link(file, root, "g").unwrap();
    assert_eq!(world.remove(root, "f", true).unwrap().nlink, 1);
    assert!(world.all(Table::Orphans).is_empty());
}

#[test]
fn a_client_that_is_gone_loses_its_orphans_bit_by_bit_and_nobody_elses() {
    let mut world = World::new();
    let mine: Vec<Fid> = (0..600).map(|number| orphan(&mut world, &format!("f{number}"))).collect();
    world.client = OTHER;
    let theirs = orphan(&mut world, "g");
    let mut calls = 1;
    while world.with(|cx| Ok(release_client(cx, CLIENT)?)).unwrap() {
        assert_eq!(world.effects.freed.len(), 256);
        calls += 1;
    }
    assert_eq!(calls, 3);
    assert!(mine.iter().all(|&fid| world.getattr(fid) == Err(ErrorCode::Stale)));
    world.getattr(theirs).unwrap();
    assert_eq!(world.all(Table::Orphans).len(), 1);
}
