//! A handle names one file for ever, also when the machine loses its power and with it files that were made: under
//! `process` durability those were acknowledged.

use std::collections::BTreeMap;
use std::time::Duration;

use larder_benches::digest::Digested;
use larder_benches::seeds::{self, Worlds};
use larder_protocol::attr::Credential;
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::{ClientId, Fid, OpId};
use larder_protocol::service::file::{CreateHow, Op, OpReply, Query, QueryReply};
use larder_server::volume::Durability;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::time::sleep;

use crate::machine::Disk;
use crate::world::{World, name};

/// Lives of the server.
const LIVES: u64 = 12;

/// Files that were lost, and files that are there.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    lost: usize,
    there: usize,
}

impl Digested for Summary {}

/// Makes files, each of an owner of its own, and cuts the power again and again.
pub(crate) async fn world_of(seed: u64) -> Summary {
    let mut random = SmallRng::seed_from_u64(seed);
    let world = World::new(random.random(), Durability::Process, Disk::Instant);
    let root = world.volume().root();
    let all = world.make(Op::Mkdir { dir: root, name: name("all"), mode: 0o777, umask: 0 }).await;
    // Longer than what is acknowledged may be lost.
    sleep(Duration::from_secs(1)).await;
    let mut owners: BTreeMap<Fid, u32> = BTreeMap::new();
    let mut changes: BTreeMap<u64, u32> = BTreeMap::new();
    let mut owner = 0;
    let mut summary = Summary::default();
    for life in 0..LIVES {
        for seq in 1..=random.random_range(1..20) {
            owner += 1;
            let id = OpId { client: ClientId(100 + u128::from(life)), incarnation: 1, slot: 0, seq };
            let cred = Credential { uid: owner, gid: owner, groups: Vec::new() };
            let op = Op::Create {
                dir: all,
                name: name(&format!("file-{owner}")),
                mode: 0o644,
                umask: 0,
                how: CreateHow::Exclusive,
            };
            let OpReply::Entry { attr, dir, .. } = world.volume().mutate(&cred, id, op).await.unwrap().reply else {
                panic!("not an entry");
            };
            let before = owners.insert(attr.fid, owner);
            assert_eq!(before, None, "{} is given out twice", attr.fid);
            let before = changes.insert(dir.attr.change, owner);
            assert_eq!(before, None, "the directory was at change {} before", dir.attr.change);
            if random.random_bool(0.2) {
                sleep(Duration::from_millis(random.random_range(0..100))).await;
            }
        }
        world.cut_power();
        world.start();
        (summary.lost, summary.there) = (0, 0);
        for (fid, owner) in &owners {
            match world.volume().query(&Credential::root(), Query::Getattr { fid: *fid }).await {
                Ok(QueryReply::Attr(attr)) => {
                    assert_eq!(attr.uid, *owner, "{fid} names another file than the one that it was given out for");
                    summary.there += 1;
                }
                Err(ErrorCode::Stale) => summary.lost += 1,
                other => panic!("{fid}: {other:?}"),
            }
        }
    }
    summary
}

#[test]
fn a_handle_names_one_file_though_power_cuts_take_files_away() {
    let test = "a_handle_names_one_file_though_power_cuts_take_files_away";
    let worlds = seeds::run(Worlds { target: "replay", test, count: 50, once_failed: &[] }, world_of).worlds;
    let (lost, there) = worlds.iter().fold((0, 0), |(lost, there), world| (lost + world.lost, there + world.there));
    println!("{lost} files were lost, {there} are there");
    if worlds.len() >= 10 {
        assert!(lost > 0 && there > 0);
    }
}
