//! Fetching: one version in every reply, whatever comes in between.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use larder_protocol::attr::{Attr, Credential, SetAttr};
use larder_protocol::cell::Quota;
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::{ClientId, Epoch, Fid, OpId, VolumeId};
use larder_protocol::limits::{COPY_KEPT, MAX_COPIES, MAX_COPIES_OF_FILE};
use larder_protocol::name::Name;
use larder_protocol::payload::Payload;
use larder_protocol::runtime::{SharedRuntime, SystemRuntime};
use larder_protocol::service::file::{
    CreateHow, NewContents, Op, OpReply, Query, QueryReply, StageRequest, WriteRequest,
};
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::kept::COPY_IN_USE;
use super::store_tests::{bytes, scratch, store, whole};
use super::tests::{World, open, root};
use crate::volume::content::memory::MemoryContent;
use crate::volume::meta::memory::MemoryMetadata;
use crate::volume::record::{BLOCK, INLINE_MAX};
use crate::volume::{Durability, Volume, VolumeConfig, prepare};

async fn fetch(
    volume: &Arc<Volume>,
    cred: &Credential,
    fid: Fid,
    (offset, len): (u64, u32),
    change: Option<u64>,
    copy: bool,
) -> Result<(Bytes, Attr), ErrorCode> {
    match volume.query(cred, Query::Fetch { fid, offset, len, version: change, copy }).await? {
        QueryReply::Data { data, attr } => Ok((data.0, attr)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_fetch_gives_the_version_asked_for_or_nothing() {
    let mut world = World::new(1, Durability::Power).await;
    let fid = world.fids[0];
    for size in [0, 100, 3 * BLOCK + 5] {
        let data = bytes(size, size);
        let attr = store(&mut world, 0, whole(&data), None).await.unwrap();
        let get = async |at, change, copy| fetch(&world.volume, &root(), fid, at, change, copy).await.unwrap();
        for copy in [false, true] {
            assert_eq!(get((0, 1 << 20), None, copy).await, (data.clone(), attr.clone()));
            assert_eq!(get((0, 1 << 20), Some(attr.data_version), copy).await, (data.clone(), attr.clone()));
            assert_eq!(get((0, 1 << 20), Some(attr.data_version - 1), copy).await, (Bytes::new(), attr.clone()));
            let part = data.slice((BLOCK.min(size)) as usize..(2 * BLOCK).min(size) as usize);
            assert_eq!(get((BLOCK, BLOCK as u32), Some(attr.data_version), copy).await, (part, attr.clone()));
            assert_eq!(get((10 * BLOCK, 5), Some(attr.data_version), copy).await, (Bytes::new(), attr.clone()));
        }
        assert_eq!(world.attr(0).await, attr, "a fetch changes nothing");
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(world.attr(0).await.atime, attr.atime);
        assert_eq!(scratch(&world), [], "what one reply holds needs no copy");
    }
}

#[tokio::test(start_paused = true)]
async fn who_may_write_a_file_may_fetch_it() {
    let mut world = World::new(1, Durability::Power).await;
    let fid = world.fids[0];
    let user = Credential { uid: 1000, gid: 1000, groups: Vec::new() };
    for size in [5, 2 * BLOCK] {
        store(&mut world, 0, whole(&bytes(size, 1)), None).await.unwrap();
        for (mode, allowed) in [(0o604, true), (0o602, true), (0o600, false)] {
            let set = SetAttr { mode: Some(mode), ..SetAttr::default() };
            world.op(Op::Setattr { fid, set, open: false }).await.unwrap();
            for copy in [false, true] {
                let got = fetch(&world.volume, &user, fid, (0, 3), None, copy).await;
                assert_eq!(got.map(|(data, _)| data.len()), if allowed { Ok(3) } else { Err(ErrorCode::AccessDenied) });
            }
        }
    }
    // Nor does a copy that is there let anybody in.
    let change = world.attr(0).await.data_version;
    fetch(&world.volume, &root(), fid, (0, 3), None, true).await.unwrap();
    assert_eq!(fetch(&world.volume, &user, fid, (0, 3), Some(change), true).await, Err(ErrorCode::AccessDenied));
}

#[tokio::test(start_paused = true)]
async fn a_copy_stays_one_version_while_writes_go_on() {
    let mut world = World::new(1, Durability::Power).await;
    let fid = world.fids[0];
    let data = bytes(4 * BLOCK + 9, 1);
    // Written in place, not settled, and with a hole at the end.
    world.write(0, 0, data.clone(), false).await;
    let mut model = data.to_vec();
    model.resize(7 * BLOCK as usize, 0);
    let set = SetAttr { size: Some(7 * BLOCK), ..SetAttr::default() };
    world.op(Op::Setattr { fid, set, open: false }).await.unwrap();
    let attr = world.attr(0).await;
    let mut fetched = Vec::new();
    let mut change = None;
    for step in 0.. {
        let at = (fetched.len() as u64, 50_000);
        let (piece, of) = fetch(&world.volume, &root(), fid, at, change, true).await.unwrap();
        assert_eq!(of, attr);
        change = Some(of.data_version);
        if piece.is_empty() {
            break;
        }
        fetched.extend_from_slice(&piece);
        match step % 3 {
            0 => world.write(0, BLOCK / 2, bytes(2 * BLOCK, step), false).await,
            1 => drop(store(&mut world, 0, whole(&bytes(3 * BLOCK, step)), None).await.unwrap()),
            _ => tokio::time::sleep(Duration::from_secs(3)).await,
        }
    }
    assert!(fetched == model);
    // Without `copy` only the file counts.
    assert_eq!(fetch(&world.volume, &root(), fid, (0, 9), change, false).await.unwrap().0, Bytes::new());
    // Copies are verified as files are.
    let first = scratch(&world);
    assert_eq!(first.len(), 1);
    world.content.flip_bit(fid.vnode, 5);
    assert_eq!(fetch(&world.volume, &root(), fid, (0, 9), change, true).await, Err(ErrorCode::Io));
    world.content.flip_bit(fid.vnode, 5);
    // They go when nobody uses them, or with the volume.
    tokio::time::sleep(COPY_KEPT - Duration::from_secs(10)).await;
    assert_eq!(fetch(&world.volume, &root(), fid, (0, 9), change, true).await.unwrap().0, data.slice(..9));
    tokio::time::sleep(COPY_KEPT + Duration::from_secs(10)).await;
    assert_eq!(scratch(&world), []);
    assert_eq!(fetch(&world.volume, &root(), fid, (0, 9), change, true).await.unwrap().0, Bytes::new());
    fetch(&world.volume, &root(), fid, (0, 9), None, true).await.unwrap();
    assert_eq!(scratch(&world).len(), 1);
    world.volume.close().await.unwrap();
    assert_eq!(scratch(&world), []);
    world.crash(true, 1);
    fetch(&world.volume, &root(), fid, (0, 9), None, true).await.unwrap();
    world.crash(true, 2);
    assert_eq!(scratch(&world), []);
}

#[tokio::test(start_paused = true)]
async fn there_are_only_so_many_copies() {
    let mut world = World::new(1, Durability::Power).await;
    let fid = world.fids[0];
    let mut changes = Vec::new();
    // As many as all files together may have, of one that many fetch at the same time.
    for number in 0..MAX_COPIES as u64 + 3 {
        let attr = store(&mut world, 0, whole(&bytes(2 * BLOCK, number)), None).await.unwrap();
        for _ in 0..2 {
            let copied = fetch(&world.volume, &root(), fid, (BLOCK, 9), None, true).await.unwrap();
            assert_eq!(copied.1, attr);
        }
        changes.push(attr.data_version);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(scratch(&world).len(), MAX_COPIES);
    for (number, change) in changes.into_iter().enumerate() {
        let (data, _) = fetch(&world.volume, &root(), fid, (0, 9), Some(change), true).await.unwrap();
        assert_eq!(data, if number < 3 { Bytes::new() } else { bytes(2 * BLOCK, number as u64).slice(..9) });
    }
}

#[tokio::test(start_paused = true)]
async fn of_one_file_few_copies_are_kept_that_nobody_uses() {
    let mut world = World::new(1, Durability::Power).await;
    let fid = world.fids[0];
    let mut changes = Vec::new();
    for number in 0..MAX_COPIES_OF_FILE as u64 + 2 {
        if number == MAX_COPIES_OF_FILE as u64 {
            tokio::time::sleep(COPY_IN_USE).await;
            // The first one is used again.
            fetch(&world.volume, &root(), fid, (0, 9), changes.first().copied(), true).await.unwrap();
        }
        let attr = store(&mut world, 0, whole(&bytes(2 * BLOCK, number)), None).await.unwrap();
        fetch(&world.volume, &root(), fid, (BLOCK, 9), None, true).await.unwrap();
        changes.push(attr.data_version);
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(scratch(&world).len(), MAX_COPIES_OF_FILE);
    for (number, change) in changes.into_iter().enumerate() {
        let (data, _) = fetch(&world.volume, &root(), fid, (0, 9), Some(change), true).await.unwrap();
        let is_kept = !(1..3).contains(&number);
        assert_eq!(data, if is_kept { bytes(2 * BLOCK, number as u64).slice(..9) } else { Bytes::new() });
    }
}

/// What the racers share.
struct Race {
    volume: Arc<Volume>,
    fid: Fid,
    /// Which byte each version is full of.
    versions: Mutex<HashMap<u64, u8>>,
    size: u64,
    rounds: u64,
}

impl Race {
    fn full(&self, byte: u8) -> Payload {
        Payload(Bytes::from(vec![byte; self.size as usize]))
    }

    /// Notes what a version is full of; it is that for all who see it.
    fn saw(&self, change: u64, byte: u8) {
        let before = *self.versions.lock().entry(change).or_insert(byte);
        assert_eq!(before, byte, "one version has two contents");
    }

    async fn write_in_place(&self, seed: u64) {
        for round in 0..self.rounds {
            let byte = (seed * 100 + round % 100) as u8;
            let request = WriteRequest::one(self.fid, 0, self.full(byte), round % 7 == 0);
            let written = self.volume.write(&root(), request).await.unwrap();
            self.saw(written.attr.attr.data_version, byte);
            if round % 5 == 0 {
                self.volume.commit(&root(), self.fid).await.unwrap();
            }
        }
    }

    async fn store(&self, seed: u64) {
        for round in 1..=self.rounds {
            let byte = (seed * 100 + round % 100) as u8;
            let contents = if round % 2 == 0 {
                NewContents::Whole(self.full(byte))
            } else {
                for (offset, first) in [(0, true), (self.size / 2, false)] {
                    let data = Payload(self.full(byte).0.slice(offset as usize..));
                    let request = StageRequest { fid: self.fid, stage: round, first, offset, data };
                    self.volume.stage(&root(), ClientId(seed.into()), request).await.unwrap();
                }
                NewContents::Staged { stage: round, size: self.size }
            };
            let id = OpId { client: ClientId(seed.into()), incarnation: 1, slot: 0, seq: round };
            let op = Op::Store { fid: self.fid, contents, base: None };
            let OpReply::Attr(change) = self.volume.mutate(&root(), id, op).await.unwrap().reply else { panic!() };
            self.saw(change.attr.data_version, byte);
        }
    }

    /// Fetches as a client does: again when the version changed, and from a copy in the end. Says whether it was.
    async fn fetch_whole(&self, random: &mut SmallRng) -> bool {
        for attempt in 0.. {
            let copy = attempt >= 2;
            let (mut whole, mut change) = (Vec::new(), None);
            loop {
                let at = (whole.len() as u64, random.random_range(1000..200_000));
                let (piece, attr) = fetch(&self.volume, &root(), self.fid, at, change, copy).await.unwrap();
                let of = *change.get_or_insert(attr.data_version);
                if attr.data_version != of {
                    assert!(piece.is_empty());
                    break;
                }
                assert_eq!(attr.size, self.size);
                whole.extend_from_slice(&piece);
                if piece.is_empty() {
                    assert_eq!(whole.len() as u64, self.size);
                    assert!(whole.iter().all(|byte| *byte == whole[0]), "two versions in one");
                    self.saw(of, whole[0]);
                    return copy;
                }
            }
        }
        unreachable!()
    }

    async fn fetch(&self, seed: u64) -> usize {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut copies = 0;
        for _ in 0..self.rounds {
            copies += usize::from(self.fetch_whole(&mut random).await);
        }
        copies
    }
}

async fn race(volume: Arc<Volume>, rounds: u64, large: bool) {
    let name = Name::new(b"file").unwrap();
    let create = Op::Create { dir: volume.root(), name, mode: 0o644, umask: 0, how: CreateHow::Exclusive };
    let id = OpId { client: ClientId(9), incarnation: 1, slot: 0, seq: 1 };
    let OpReply::Entry { attr, .. } = volume.mutate(&root(), id, create).await.unwrap().reply else { panic!() };
    let size = if large { 5 * BLOCK + 77 } else { INLINE_MAX - 5 };
    let race = Arc::new(Race { volume, fid: attr.fid, versions: Mutex::default(), size, rounds });
    let request = WriteRequest::one(race.fid, 0, race.full(0), true);
    race.volume.write(&root(), request).await.unwrap();
    let mut racers = tokio::task::JoinSet::new();
    let copies = Arc::new(AtomicUsize::new(0));
    for seed in 1..=2 {
        let (writer, storer) = (Arc::clone(&race), Arc::clone(&race));
        racers.spawn(async move { writer.write_in_place(seed).await });
        racers.spawn(async move { storer.store(seed).await });
        for fetcher in [seed, seed + 2] {
            let (race, copies) = (Arc::clone(&race), Arc::clone(&copies));
            racers.spawn(async move {
                copies.fetch_add(race.fetch(fetcher).await, Ordering::Relaxed);
            });
        }
    }
    let all = async { while racers.join_next().await.map(Result::unwrap).is_some() {} };
    tokio::time::timeout(Duration::from_secs(60), all).await.expect("somebody waits for ever");
    assert!(!large || copies.load(Ordering::Relaxed) > 0, "nobody was in anybody's way");
    race.volume.close().await.unwrap();
}

fn executor() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap()
}

#[test]
fn fetches_beside_stores_and_writes_mix_no_versions() {
    let executor = executor();
    for (durability, large) in [(Durability::Power, true), (Durability::Process, true), (Durability::Power, false)] {
        let runtime: SharedRuntime = Arc::new(SystemRuntime::new(executor.handle().clone()));
        let meta = Arc::new(MemoryMetadata::new());
        prepare(&*meta, VolumeId(7), "test", runtime.wall()).unwrap();
        let content = Arc::new(MemoryContent::new());
        executor.block_on(async { race(open(&meta, &content, durability, 1, &runtime), 60, large).await });
    }
}

fn open_dir(dir: &Path, runtime: &SharedRuntime) -> Arc<Volume> {
    let (id, durability) = (VolumeId(7), Durability::Process);
    let config = VolumeConfig { id, dir: dir.to_owned(), durability, epoch: Epoch(1), runtime: Arc::clone(runtime) };
    crate::volume::open(config).unwrap()
}

#[test]
fn fetches_mix_no_versions_on_a_disk() {
    let executor = executor();
    let runtime: SharedRuntime = Arc::new(SystemRuntime::new(executor.handle().clone()));
    let dir = tempfile::tempdir().unwrap();
    crate::volume::create(dir.path(), VolumeId(7), "test", Quota::default()).unwrap();
    executor.block_on(async { race(open_dir(dir.path(), &runtime), 40, true).await });
    let findings = crate::volume::check::check_for_tests(dir.path());
    assert!(findings.is_empty(), "{findings:?}");
}

/// A process that ends with everything half done, on a disk.
#[test]
fn a_check_finds_nothing_wrong_with_what_stores_leave() {
    let executor = executor();
    let runtime: SharedRuntime = Arc::new(SystemRuntime::new(executor.handle().clone()));
    let dir = tempfile::tempdir().unwrap();
    crate::volume::create(dir.path(), VolumeId(7), "test", Quota::default()).unwrap();
    executor.block_on(async {
        let volume = open_dir(dir.path(), &runtime);
        let client = ClientId(1);
        let mut seq = 0;
        let mut op = async |op| {
            seq += 1;
            volume.mutate(&root(), OpId { client, incarnation: 1, slot: 0, seq }, op).await.unwrap().reply
        };
        for (number, size) in [0, 9, 3 * BLOCK, 5 * BLOCK + 7].into_iter().enumerate() {
            let name = Name::new(format!("{number}").as_bytes()).unwrap();
            let create = Op::Create { dir: volume.root(), name, mode: 0o644, umask: 0, how: CreateHow::Exclusive };
            let OpReply::Entry { attr, .. } = op(create).await else { panic!() };
            let fid = attr.fid;
            let data = Payload(bytes(2 * BLOCK, 1));
            for (stage, offset) in [(1, BLOCK / 2), (2, 0)] {
                let request = StageRequest { fid, stage, first: true, offset, data: data.clone() };
                volume.stage(&root(), client, request).await.unwrap();
            }
            op(Op::Store { fid, contents: whole(&bytes(4 * BLOCK, 3)), base: None }).await;
            fetch(&volume, &root(), fid, (0, 5), None, true).await.unwrap();
            op(Op::Store { fid, contents: NewContents::Staged { stage: 1, size }, base: None }).await;
        }
    });
    // The process ends: nothing is closed, nobody goes on.
    drop(executor);
    let findings = crate::volume::check::check_for_tests(dir.path());
    assert!(findings.is_empty(), "{findings:?}");
    let executor = self::executor();
    let runtime: SharedRuntime = Arc::new(SystemRuntime::new(executor.handle().clone()));
    executor.block_on(async { open_dir(dir.path(), &runtime).close().await.unwrap() });
    let findings = crate::volume::check::check_for_tests(dir.path());
    assert!(findings.is_empty(), "{findings:?}");
    // Two of the four files are too large for the metadata.
    let mut files = 0;
    let content = crate::volume::content::files::FileContent::open(&dir.path().join("content")).unwrap();
    let strange = &mut |path: String| panic!("{path}");
    crate::volume::content::Content::list(&content, &mut |_| files += 1, strange).unwrap();
    assert_eq!(files, 2);
}
