//! Contents against a model: random operations, ends of the process and power cuts, with printed seeds.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use larder_protocol::attr::{Attr, Credential, SetAttr};
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::{ClientId, Epoch, Fid, OpId, Verifier, VolumeId};
use larder_protocol::name::Name;
use larder_protocol::payload::Payload;
use larder_protocol::runtime::{SharedRuntime, SimRuntime};
use larder_protocol::service::file::{
    AllocateHow, CreateHow, NewContents, Op, OpReply, Query, QueryReply, SeekWhat, StageRequest, WritePart,
    WriteRequest,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::volume::content::memory::MemoryContent;
use crate::volume::meta::Metadata;
use crate::volume::meta::memory::MemoryMetadata;
use crate::volume::record::{BLOCK, INLINE_MAX};
use crate::volume::{Durability, Volume, open_on, prepare};

const FILES: usize = 3;
const MAX: u64 = 5 * BLOCK;

/// A volume on engines that can lose power, a client's view of what it wrote, and what the files must hold.
pub(super) struct World {
    pub(super) meta: Arc<MemoryMetadata>,
    pub(super) content: Arc<MemoryContent>,
    durability: Durability,
    runtime: SharedRuntime,
    pub(super) volume: Arc<Volume>,
    epoch: u64,
    seq: u64,
    pub(super) fids: Vec<Fid>,
    pub(super) model: Vec<Vec<u8>>,
    /// Unstable writes since the last commit, with the verifiers they were answered with.
    uncommitted: Vec<Vec<(u64, Bytes, Verifier)>>,
}

pub(super) fn root() -> Credential {
    Credential::root()
}

fn file_name(file: usize) -> Name {
    Name::new(format!("file{file}").as_bytes()).unwrap()
}

impl World {
    pub(super) async fn new(seed: u64, durability: Durability) -> World {
        let runtime: SharedRuntime = Arc::new(SimRuntime::new(seed));
        let meta = Arc::new(MemoryMetadata::new());
        prepare(&*meta, VolumeId(7), "test", runtime.wall()).unwrap();
        let content = Arc::new(MemoryContent::new());
        let volume = open(&meta, &content, durability, 1, &runtime);
        let mut world = World {
            meta,
            content,
            durability,
            runtime,
            volume,
            epoch: 1,
            seq: 0,
            fids: Vec::new(),
            model: Vec::new(),
            uncommitted: Vec::new(),
        };
        world.make_files(FILES).await;
        world
    }

    /// Makes files until there are so many.
    pub(super) async fn make_files(&mut self, count: usize) {
        for file in self.fids.len()..count {
            let (dir, name) = (self.volume.root(), file_name(file));
            let op = Op::Create { dir, name, mode: 0o644, umask: 0, how: CreateHow::Exclusive };
            let OpReply::Entry { attr, .. } = self.op(op).await.unwrap() else { panic!("not an entry") };
            self.fids.push(attr.fid);
            self.model.push(Vec::new());
            self.uncommitted.push(Vec::new());
        }
    }

    pub(super) async fn remove(&mut self, file: usize) {
        let (dir, name) = (self.volume.root(), file_name(file));
        self.op(Op::Remove { dir, name, keep: false }).await.unwrap();
    }

    pub(super) async fn op(&mut self, op: Op) -> Result<OpReply, ErrorCode> {
        self.seq += 1;
        let id = OpId { client: ClientId(1), incarnation: 1, slot: 0, seq: self.seq };
        Ok(self.volume.mutate(&root(), id, op).await?.reply)
    }

    pub(super) async fn write(&mut self, file: usize, offset: u64, data: Bytes, stable: bool) {
        self.scatter(file, vec![(offset, data)], stable).await;
    }

    /// Writes several ranges at once.
    pub(super) async fn scatter(&mut self, file: usize, ranges: Vec<(u64, Bytes)>, stable: bool) {
        let part = |(offset, data): &(u64, Bytes)| WritePart { offset: *offset, data: Payload(data.clone()) };
        let request = WriteRequest { fid: self.fids[file], parts: ranges.iter().map(part).collect(), stable };
        let written = self.volume.write(&root(), request).await.unwrap();
        assert!(written.stable || !stable);
        // What is sent again must end with the newest bytes, so a stable write behind unstable ones is kept too.
        if !written.stable || !self.uncommitted[file].is_empty() {
            let again = ranges.into_iter().map(|(offset, data)| (offset, data, written.verifier));
            self.uncommitted[file].extend(again);
        }
    }

    /// Commits, and sends again what a crash may have lost, as a client does.
    pub(super) async fn commit(&mut self, file: usize) {
        loop {
            let committed = self.volume.commit(&root(), self.fids[file]).await.unwrap();
            let lost: Vec<_> = std::mem::take(&mut self.uncommitted[file]);
            if lost.iter().all(|(_, _, verifier)| *verifier == committed.verifier) {
                return;
            }
            for (offset, data, _) in lost {
                self.write(file, offset, data, false).await;
            }
        }
    }

    pub(super) async fn attr(&self, file: usize) -> Attr {
        match self.volume.query(&root(), Query::Getattr { fid: self.fids[file] }).await.unwrap() {
            QueryReply::Attr(attr) => attr,
            other => panic!("{other:?}"),
        }
    }

    pub(super) async fn read(&self, file: usize, offset: u64, len: u32) -> Result<Bytes, ErrorCode> {
        let query = Query::Read { fid: self.fids[file], offset, len, touch: true };
        match self.volume.query(&root(), query).await? {
            QueryReply::Data { data, .. } => Ok(data.0),
            other => panic!("{other:?}"),
        }
    }

    pub(super) async fn stage(
        &self,
        file: usize,
        stage: u64,
        first: bool,
        offset: u64,
        data: Bytes,
    ) -> Result<(), ErrorCode> {
        let request = StageRequest { fid: self.fids[file], stage, first, offset, data: Payload(data) };
        self.volume.stage(&root(), ClientId(1), request).await
    }

    pub(super) async fn check(&self, file: usize, when: &str) {
        let attr = self.attr(file).await;
        assert_eq!(attr.size, self.model[file].len() as u64, "size of {file} {when}");
        let data = self.read(file, 0, 1 << 20).await.unwrap_or_else(|error| panic!("{when}: {error}"));
        assert!(data == self.model[file], "contents of {file} {when}");
    }

    pub(super) fn put(&mut self, file: usize, offset: u64, data: &[u8]) {
        super::splice(&mut self.model[file], offset, data);
    }

    /// The process ends, or power does, and the volume is opened again.
    pub(super) fn crash(&mut self, power: bool, seed: u64) {
        if power {
            self.meta = Arc::new(self.meta.power_cut(0));
            self.content = Arc::new(self.content.power_cut(Some(seed)));
        }
        self.reopen();
    }

    /// The process ends and the volume is opened again; what is in doubt is in effect then, or is not.
    pub(super) fn restart(&mut self, in_effect: bool) {
        self.meta = Arc::new(self.meta.power_cut(if in_effect { u64::MAX } else { self.meta.durable_up_to() }));
        self.reopen();
    }

    fn reopen(&mut self) {
        self.epoch += 1;
        self.volume = open(&self.meta, &self.content, self.durability, self.epoch, &self.runtime);
    }

    pub(super) async fn step(&mut self, random: &mut SmallRng) {
        let file = random.random_range(0..FILES);
        // Small and large, so that files live on both sides of the border and move across it.
        let scale = if random.random_bool(0.5) { INLINE_MAX } else { MAX };
        let offset = random.random_range(0..scale);
        let len = random.random_range(1..=(scale / 2).min(MAX - offset)).max(1);
        let bytes: Bytes = (0..len).map(|_| random.random::<u8>()).collect();
        let kind = random.random_range(0..16);
        if !matches!(kind, 0..=3 | 9..=13) {
            // A client drains its writes before anything that depends on their order.
            self.commit(file).await;
        }
        let fid = self.fids[file];
        match kind {
            0..=3 => {
                let mut ranges = vec![(offset, bytes.clone())];
                for _ in 0..random.random_range(0..4) {
                    // They may overlap, or write nothing.
                    let data = bytes.slice(..random.random_range(0..bytes.len().min(100)));
                    ranges.push((random.random_range(0..scale - 100), data));
                }
                ranges.iter().filter(|(_, data)| !data.is_empty()).for_each(|(at, data)| self.put(file, *at, data));
                self.scatter(file, ranges, random.random_bool(0.2)).await;
            }
            4 => {
                let size = if random.random_bool(0.2) { 0 } else { offset };
                let set = SetAttr { size: Some(size), ..SetAttr::default() };
                self.op(Op::Setattr { fid, set, open: false }).await.unwrap();
                self.model[file].resize(size as usize, 0);
            }
            5 => {
                let data = bytes.slice(..bytes.len().min(9000));
                if self.model[file].len() as u64 + data.len() as u64 <= 2 * MAX {
                    let OpReply::Appended { offset, .. } =
                        self.op(Op::Append { fid, data: Payload(data.clone()) }).await.unwrap()
                    else {
                        panic!("not an append")
                    };
                    assert_eq!(offset, self.model[file].len() as u64);
                    self.model[file].extend_from_slice(&data);
                }
            }
            6 | 7 => {
                let how = [
                    AllocateHow::Reserve,
                    AllocateHow::ReserveKeepSize,
                    AllocateHow::Punch,
                    AllocateHow::Zero,
                    AllocateHow::ZeroKeepSize,
                ][random.random_range(0..5)];
                self.op(Op::Allocate { fid, offset, len, how }).await.unwrap();
                let model = &mut self.model[file];
                let end = (offset + len) as usize;
                if matches!(how, AllocateHow::Reserve | AllocateHow::Zero) && model.len() < end {
                    model.resize(end, 0);
                }
                if !matches!(how, AllocateHow::Reserve | AllocateHow::ReserveKeepSize) {
                    let (from, to) = ((offset as usize).min(model.len()), end.min(model.len()));
                    model[from..to].fill(0);
                }
            }
            8 => {
                let source = (file + 1) % FILES;
                self.commit(source).await;
                let to_offset = random.random_range(0..MAX);
                let op = Op::CopyRange { from: self.fids[source], from_offset: offset, to: fid, to_offset, len };
                let OpReply::Copied { len: copied, .. } = self.op(op).await.unwrap() else { panic!("not a copy") };
                let from = (offset as usize).min(self.model[source].len());
                let to = (offset + len).min(self.model[source].len() as u64) as usize;
                let part = self.model[source][from..to.max(from)].to_vec();
                assert_eq!(copied, part.len() as u64);
                if !part.is_empty() {
                    self.put(file, to_offset, &part);
                }
            }
            9 => self.commit(file).await,
            10 => {
                let part = self.read(file, offset, len as u32).await.unwrap();
                let from = (offset as usize).min(self.model[file].len());
                let to = (from + len as usize).min(self.model[file].len());
                assert!(part == self.model[file][from..to], "a read of {len} at {offset}");
            }
            11 => {
                // What others wrote and did not commit is superseded.
                self.uncommitted[file].clear();
                let contents = NewContents::Whole(Payload(bytes.clone()));
                let base = random.random_bool(0.5).then_some(self.attr(file).await.data_version);
                self.op(Op::Store { fid, contents, base }).await.unwrap();
                self.model[file] = bytes.to_vec();
            }
            12 => {
                self.uncommitted[file].clear();
                let mut staged = vec![0; random.random_range(0..scale) as usize];
                for piece in 0..random.random_range(1..5) {
                    let offset = random.random_range(0..scale);
                    let len = random.random_range(1..=2 * BLOCK).min(bytes.len() as u64);
                    let data = bytes.slice(..len as usize);
                    if (offset + len) as usize <= staged.len() {
                        super::splice(&mut staged, offset, &data);
                    } else if offset < staged.len() as u64 {
                        // What lies behind the size is cut.
                        let fits = staged.len() - offset as usize;
                        super::splice(&mut staged, offset, &data[..fits]);
                    }
                    self.stage(file, self.seq, piece == 0, offset, data).await.unwrap();
                }
                let contents = NewContents::Staged { stage: self.seq, size: staged.len() as u64 };
                self.op(Op::Store { fid, contents, base: None }).await.unwrap();
                self.model[file] = staged;
            }
            13 => {
                let copy = random.random_bool(0.5);
                let query = Query::Fetch { fid, offset, len: len as u32, version: None, copy };
                let reply = self.volume.query(&root(), query).await.unwrap();
                let QueryReply::Data { data, attr } = reply else { panic!("not data") };
                let from = (offset as usize).min(self.model[file].len());
                let to = (from + len as usize).min(self.model[file].len());
                assert!(data.0 == self.model[file][from..to], "a fetch of {len} at {offset}");
                assert_eq!(attr.size, self.model[file].len() as u64);
            }
            _ => tokio::time::sleep(Duration::from_millis(random.random_range(0..2500))).await,
        }
        self.check(file, "after a step").await;
    }
}

pub(super) fn open(
    meta: &Arc<MemoryMetadata>,
    content: &Arc<MemoryContent>,
    durability: Durability,
    epoch: u64,
    runtime: &SharedRuntime,
) -> Arc<Volume> {
    let (meta, content) = (Arc::clone(meta), Arc::clone(content));
    open_on(meta, content, durability, Epoch(epoch), Arc::clone(runtime)).unwrap()
}

async fn history(seed: u64) {
    let mut random = SmallRng::seed_from_u64(seed);
    let durability = if random.random_bool(0.5) { Durability::Power } else { Durability::Process };
    let mut world = World::new(seed, durability).await;
    for _ in 0..40 {
        world.step(&mut random).await;
        if random.random_bool(0.1) {
            let changes: Vec<u64> = {
                let mut all = Vec::new();
                for file in 0..FILES {
                    all.push(world.attr(file).await.change);
                }
                all
            };
            let power = random.random_bool(0.5);
            if power && durability == Durability::Process {
                // What is synced survives a power cut, whatever the durability.
                for file in 0..FILES {
                    world.commit(file).await;
                }
                world.volume.sync().await.unwrap();
            }
            let dirty: Vec<bool> =
                world.fids.iter().map(|fid| world.volume.data.dirty.get(fid.vnode).is_some()).collect();
            world.crash(power, random.random());
            for file in 0..FILES {
                if dirty[file] {
                    assert_ne!(world.attr(file).await.change, changes[file], "a crash shows in `change`");
                }
                world.commit(file).await;
                world.check(file, if power { "after a power cut" } else { "after a crash" }).await;
            }
        }
    }
    for file in 0..FILES {
        world.commit(file).await;
    }
    world.volume.close().await.unwrap();
    world.crash(durability == Durability::Power, 0);
    for file in 0..FILES {
        world.check(file, "after a clean end").await;
        assert!(world.volume.data.dirty.get(world.fids[file].vnode).is_none(), "settled at the end");
    }
}

#[test]
fn contents_follow_the_model_through_crashes_and_power_cuts() {
    for seed in 0..150 {
        let run = std::panic::catch_unwind(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
            runtime.unwrap().block_on(history(seed));
        });
        if let Err(panic) = run {
            eprintln!("seed {seed} fails");
            std::panic::resume_unwind(panic);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_of_several_ranges_makes_no_file_longer_than_they_reach() {
    let mut world = World::new(1, Durability::Power).await;
    let word = |text: &'static [u8]| Bytes::from_static(text);
    for (file, far) in [(0, 100), (1, 3 * BLOCK)] {
        let before = world.attr(file).await;
        world.scatter(file, vec![(far, word(b"far")), (0, word(b"near")), (4 * BLOCK, word(b""))], true).await;
        let after = world.attr(file).await;
        assert_eq!(after.size, far + 3);
        assert_ne!(after.change, before.change);
        let far = far as usize;
        world.model[file] = vec![0; far + 3];
        world.put(file, 0, b"near");
        world.put(file, far as u64, b"far");
        world.check(file, "after the write").await;
    }
    // In a content file some of a failed write may be there, and is noticed.
    world.content.fail_next_write();
    let part = |offset, data: &'static [u8]| WritePart { offset, data: Payload(Bytes::from_static(data)) };
    let request =
        WriteRequest { fid: world.fids[1], parts: vec![part(5, b"lost"), part(9, b"lost too")], stable: true };
    assert_eq!(world.volume.write(&root(), request).await, Err(ErrorCode::NoSpace));
    tokio::time::sleep(Duration::from_secs(5)).await;
    world.check(1, "after a failed write").await;
    world.crash(true, 1);
    world.check(0, "after a power cut").await;
    world.check(1, "after a power cut").await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_append_leaves_nothing_behind() {
    let mut world = World::new(1, Durability::Power).await;
    let big = Bytes::from(vec![3; 2 * INLINE_MAX as usize]);
    world.op(Op::Append { fid: world.fids[0], data: Payload(big.clone()) }).await.unwrap();
    world.model[0] = big.to_vec();
    world.content.fail_next_write();
    let fid = world.fids[0];
    let failed = world.op(Op::Append { fid, data: Payload(Bytes::from_static(b"lost")) }).await;
    assert_eq!(failed, Err(ErrorCode::NoSpace));
    world.content.fail_next_sync();
    let failed = world.op(Op::Append { fid, data: Payload(Bytes::from_static(b"lost too")) }).await;
    assert_eq!(failed, Err(ErrorCode::Io));
    world.check(0, "after failed appends").await;
    world.op(Op::Append { fid, data: Payload(Bytes::from_static(b"kept")) }).await.unwrap();
    world.model[0].extend_from_slice(b"kept");
    world.crash(true, 1);
    world.check(0, "after a power cut").await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_sync_changes_the_verifier() {
    let mut world = World::new(1, Durability::Power).await;
    let data = Bytes::from(vec![9; 2 * INLINE_MAX as usize]);
    world.write(0, 0, data.clone(), false).await;
    world.content.fail_next_sync();
    assert_eq!(world.volume.commit(&root(), world.fids[0]).await, Err(ErrorCode::Io));
    // The client does not know what became of its write; the next commit tells it to send it again.
    world.commit(0).await;
    world.model[0] = data.to_vec();
    world.crash(true, 3);
    world.check(0, "after a failed sync and a power cut").await;
}

#[tokio::test(start_paused = true)]
async fn a_flipped_bit_is_an_error_and_never_data() {
    let mut world = World::new(1, Durability::Power).await;
    let data = Bytes::from(vec![9; 3 * BLOCK as usize]);
    world.write(0, 0, data.clone(), true).await;
    world.model[0] = data.to_vec();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let file = world.fids[0].vnode;
    assert!(world.volume.data.dirty.get(file).is_none(), "settled");
    world.check(0, "before").await;
    world.content.flip_bit(file, BLOCK + 5);
    assert!(world.read(0, 0, 10).await.is_ok(), "another block");
    assert_eq!(world.read(0, BLOCK, 10).await, Err(ErrorCode::Io));
    assert_eq!(world.read(0, 0, 1 << 20).await, Err(ErrorCode::Io));
}

#[tokio::test(start_paused = true)]
async fn holes_are_kept_and_found() {
    let mut world = World::new(1, Durability::Power).await;
    world.write(0, 10 * BLOCK, Bytes::from_static(b"end"), true).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let fid = world.fids[0];
    let seek = async |what, offset| world.volume.query(&root(), Query::Seek { fid, offset, what }).await;
    assert_eq!(seek(SeekWhat::Hole, 0).await, Ok(QueryReply::Offset(0)));
    let Ok(QueryReply::Offset(data)) = seek(SeekWhat::Data, 0).await else { panic!("no data") };
    assert!(data > 9 * BLOCK && data <= 10 * BLOCK, "{data}");
    assert_eq!(seek(SeekWhat::Data, 10 * BLOCK + 3).await, Err(ErrorCode::NoSuchRange));
    assert_eq!(world.read(0, 5 * BLOCK, 100).await.unwrap(), vec![0; 100]);
}
