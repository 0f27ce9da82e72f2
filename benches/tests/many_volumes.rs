//! Many volumes at a server: what they cost when nobody uses them.
//!
//! `LARDER_TEST_SIZE=full` makes 10,000 and holds the server to its targets; with smaller sizes figures are printed alone.
#![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use larder_benches::bench::meter::of_process;
use larder_benches::process::{binary, run, scratch};
use larder_benches::raw::Raw;
use larder_benches::server::Server;
use larder_benches::size::Size;
use larder_protocol::cell::Quota;
use larder_protocol::ids::{Fid, OpId, ROOT_VNODE, VolumeId};
use larder_protocol::name::Name;
use larder_protocol::service::admin::{AdminReply, AdminRequest};
use larder_protocol::service::file::{CreateHow, Op, Query, QueryReply};

/// Files in each.
const FILES: u64 = 3;
/// Volumes that a server keeps open (V3 of `server/src/service/volumes.rs`), and some that requests are at.
const OPEN: u64 = 256 + 32;
/// What a server may take from its start to its first answer (full size).
const START: Duration = Duration::from_secs(5);
/// What a list of all may take (full size).
const LIST: Duration = Duration::from_secs(1);
/// Bytes of memory that a volume may take which nobody uses (full size).
const MEMORY: u64 = 20 << 10;

fn root_of(volume: VolumeId) -> Fid {
    Fid { volume, vnode: ROOT_VNODE, generation: 0 }
}

async fn make(raw: &Raw, number: usize) -> Result<VolumeId> {
    let request = AdminRequest::Create { name: format!("volume-{number}"), quota: Quota::default() };
    let AdminReply::Volume(place) = raw.admin(request).await? else { bail!("another answer than was asked for") };
    let volume = place.volume.id;
    for file in 0..FILES {
        let id = OpId { seq: file + 1, ..raw.last_id() };
        let name = Name::new(file.to_string().as_bytes())?;
        let op = Op::Create { dir: root_of(volume), name, mode: 0o644, umask: 0, how: CreateHow::Exclusive };
        raw.repeat(id, op).await??;
    }
    Ok(volume)
}

fn memory(server: &Server) -> Result<u64> {
    Ok(of_process(server.id().context("the server is gone")?).context("the server is gone")?.memory)
}

#[tokio::test]
async fn volumes_that_nobody_uses_cost_next_to_nothing() {
    let volumes = Size::get().pick(20, 320, 10_000);
    let dir = scratch().unwrap();
    let mut server = Server::start(dir.path(), "process").unwrap();
    server.stop().unwrap();
    server.restart().unwrap();
    let alone = memory(&server).unwrap();
    let began = Instant::now();
    let raw = Raw::connect(server.address()).await.unwrap();
    let mut last = VolumeId::ROOT;
    for number in 0..volumes {
        last = make(&raw, number).await.unwrap();
    }
    println!("{volumes} volumes of {FILES} files made in {:.1?}", began.elapsed());
    let AdminReply::Status(status) = raw.admin(AdminRequest::Status).await.unwrap() else { panic!("no status") };
    assert_eq!(status.volumes, volumes as u64 + 1);
    assert!(status.open <= OPEN, "{} volumes are open", status.open);
    let open_files = fs::read_dir(format!("/proc/{}/fd", server.id().unwrap())).unwrap().count();
    println!("{} of them are open, with {open_files} files; {} MiB", status.open, memory(&server).unwrap() >> 20);
    drop(raw);

    let began = Instant::now();
    server.stop().unwrap();
    server.restart().unwrap();
    let raw = Raw::connect(server.address()).await.unwrap();
    let started = began.elapsed();
    let each = memory(&server).unwrap().saturating_sub(alone) / volumes as u64;
    let began = Instant::now();
    let mut list = Command::new(binary("larder").unwrap());
    let listed = run(list.args(["volume", "list", "--json", "--server", server.address()])).unwrap();
    let listing = began.elapsed();
    println!("start {started:.2?}, list {listing:.2?}, {each} bytes for each volume");
    let listed: Vec<serde_json::Value> = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(listed.len(), volumes + 1);
    // The last is found where it was left.
    let query = Query::Readdir { dir: root_of(last), cookie: 0, max_bytes: 4096, plus: false };
    let QueryReply::Listing { entries, .. } = raw.query(query).await.unwrap().unwrap() else { panic!("no listing") };
    assert_eq!(entries.len() as u64, FILES);
    if Size::get() == Size::Full {
        assert!(started < START && listing < LIST && each < MEMORY);
    }
    drop(raw);
    server.check().unwrap();
}
