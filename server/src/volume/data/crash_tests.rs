//! Power cuts at every step: an engine that remembers what each moment would have left.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::{ClientId, Epoch, Fid, OpId, VolumeId};
use larder_protocol::name::Name;
use larder_protocol::payload::Payload;
use larder_protocol::runtime::{SharedRuntime, SimRuntime};
use larder_protocol::service::file::{
    CreateHow, NewContents, Op, OpReply, Query, QueryReply, SeekWhat, StageRequest, WriteRequest,
};
use parking_lot::Mutex;

use super::store_tests::bytes;
use super::tests::{open, root};
use crate::volume::content::memory::MemoryContent;
use crate::volume::content::{Content, ContentId, ContentStat, Space};
use crate::volume::error::StoreResult;
use crate::volume::keys::Table;
use crate::volume::meta::memory::MemoryMetadata;
use crate::volume::meta::{Batch, Metadata, Snapshot};
use crate::volume::record::{BLOCK, Body};
use crate::volume::view::{Records, Verified};
use crate::volume::{Durability, Volume, open_on, prepare};

/// What a power cut would have left.
type Left = (MemoryMetadata, MemoryContent);

/// Both engines, with what a power cut before and after each change would have left.
struct Recorded {
    meta: MemoryMetadata,
    content: MemoryContent,
    left: Mutex<Option<Vec<Left>>>,
}

impl Recorded {
    fn around<T>(&self, work: impl FnOnce() -> T) -> T {
        self.remember();
        let done = work();
        self.remember();
        done
    }

    fn remember(&self) {
        if let Some(left) = &mut *self.left.lock() {
            let seed = left.len() as u64;
            left.push((self.meta.power_cut(0), self.content.power_cut((!seed.is_multiple_of(3)).then_some(seed))));
        }
    }
}

struct RecordedMeta(Arc<Recorded>);
struct RecordedContent(Arc<Recorded>);

impl Metadata for RecordedMeta {
    fn snapshot(&self) -> StoreResult<Box<dyn Snapshot + '_>> {
        self.0.meta.snapshot()
    }
    fn commit(&self, sequence: u64, batch: &Batch, durable: bool) -> StoreResult<()> {
        self.0.around(|| self.0.meta.commit(sequence, batch, durable))
    }
    fn is_in_doubt(&self) -> bool {
        self.0.meta.is_in_doubt()
    }
    fn durable_up_to(&self) -> u64 {
        self.0.meta.durable_up_to()
    }
    fn sync(&self) -> StoreResult<()> {
        self.0.around(|| self.0.meta.sync())
    }
    fn tidy(&self) -> StoreResult<()> {
        self.0.meta.tidy()
    }
}

impl Content for RecordedContent {
    fn create(&self, id: ContentId) -> io::Result<()> {
        self.0.around(|| self.0.content.create(id))
    }
    fn read_cached(&self, id: ContentId, offset: u64, len: usize) -> io::Result<Option<Bytes>> {
        self.0.content.read_cached(id, offset, len)
    }
    fn read(&self, id: ContentId, offset: u64, len: usize) -> io::Result<Bytes> {
        self.0.content.read(id, offset, len)
    }
    fn write(&self, id: ContentId, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.around(|| self.0.content.write(id, offset, data))
    }
    fn stat(&self, id: ContentId) -> io::Result<ContentStat> {
        self.0.content.stat(id)
    }
    fn truncate(&self, id: ContentId, size: u64) -> io::Result<()> {
        self.0.around(|| self.0.content.truncate(id, size))
    }
    fn punch(&self, id: ContentId, offset: u64, len: u64) -> io::Result<()> {
        self.0.around(|| self.0.content.punch(id, offset, len))
    }
    fn reserve(&self, id: ContentId, offset: u64, len: u64, keep_size: bool) -> io::Result<()> {
        self.0.around(|| self.0.content.reserve(id, offset, len, keep_size))
    }
    fn seek(&self, id: ContentId, offset: u64, what: SeekWhat) -> io::Result<Option<u64>> {
        self.0.content.seek(id, offset, what)
    }
    fn copy(&self, from: ContentId, from_offset: u64, to: ContentId, to_offset: u64, len: u64) -> io::Result<u64> {
        self.0.around(|| self.0.content.copy(from, from_offset, to, to_offset, len))
    }
    fn sync(&self, id: ContentId) -> io::Result<()> {
        self.0.around(|| self.0.content.sync(id))
    }
    fn distrust(&self, id: ContentId) -> io::Result<()> {
        self.0.content.distrust(id)
    }
    fn remove(&self, id: ContentId) -> io::Result<()> {
        self.0.around(|| self.0.content.remove(id))
    }
    fn sync_all(&self) -> io::Result<()> {
        self.0.around(|| self.0.content.sync_all())
    }
    fn sync_removals(&self) -> io::Result<()> {
        self.0.around(|| self.0.content.sync_removals())
    }
    fn list(&self, each: &mut dyn FnMut(ContentId), strange: &mut dyn FnMut(String)) -> io::Result<()> {
        self.0.content.list(each, strange)
    }
    fn space(&self) -> io::Result<Space> {
        self.0.content.space()
    }
}

async fn contents(volume: &Arc<Volume>, fid: Fid) -> Bytes {
    match volume.query(&root(), Query::Read { fid, offset: 0, len: 1 << 20, touch: false }).await.unwrap() {
        QueryReply::Data { data, .. } => data.0,
        other => panic!("{other:?}"),
    }
}

async fn op(volume: &Arc<Volume>, seq: u64, op: Op) -> Result<OpReply, ErrorCode> {
    let id = OpId { client: ClientId(1), incarnation: 1, slot: 0, seq };
    Ok(volume.mutate(&root(), id, op).await?.reply)
}

/// Does `change` to a file with these contents, made durable in place or not, and looks at what a power cut at each of
/// its steps leaves: the old contents or the new, and after recovery nothing else.
async fn cut_at_each_step(
    durability: Durability,
    old: &Bytes,
    in_place: bool,
    new: &Bytes,
    change: impl AsyncFn(&Arc<Volume>, Fid),
) {
    let runtime: SharedRuntime = Arc::new(SimRuntime::new(1));
    let meta = MemoryMetadata::new();
    prepare(&meta, VolumeId(7), "test", runtime.wall()).unwrap();
    let recorded = Arc::new(Recorded { meta, content: MemoryContent::new(), left: Mutex::new(None) });
    let engines = (Arc::new(RecordedMeta(recorded.clone())), Arc::new(RecordedContent(recorded.clone())));
    let volume = open_on(engines.0, engines.1, durability, Epoch(1), runtime.clone()).unwrap();
    let name = Name::new(b"file").unwrap();
    let create = Op::Create { dir: volume.root(), name, mode: 0o644, umask: 0, how: CreateHow::Exclusive };
    let Ok(OpReply::Entry { attr, .. }) = op(&volume, 1, create).await else { panic!("no file") };
    let fid = attr.fid;
    if in_place {
        let request = WriteRequest::one(fid, 0, Payload(old.clone()), true);
        volume.write(&root(), request).await.unwrap();
    } else {
        let contents = NewContents::Whole(Payload(old.clone()));
        op(&volume, 2, Op::Store { fid, contents, base: None }).await.unwrap();
    }
    if durability == Durability::Process {
        // What was acknowledged a while ago is durable in either case.
        tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    }
    *recorded.left.lock() = Some(Vec::new());
    change(&volume, fid).await;
    let answered = recorded.left.lock().as_ref().unwrap().len();
    // What follows the answer is cut too.
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    let left = recorded.left.lock().take().unwrap();
    assert_eq!(contents(&volume, fid).await, *new);
    let (mut saw_old, mut saw_new) = (false, false);
    let cuts = left.len();
    for (cut, (meta, content)) in left.into_iter().enumerate() {
        let (meta, content) = (Arc::new(meta), Arc::new(content));
        let volume = open(&meta, &content, durability, 2, &runtime);
        let found = contents(&volume, fid).await;
        assert!(found == *old || found == *new, "neither old nor new at {cut} of {cuts}");
        let lost = durability == Durability::Power && cut >= answered && found != *new;
        assert!(!lost, "an answered store is lost at {cut} of {cuts}");
        saw_old |= found == *old;
        saw_new |= found == *new;
        tokio::time::sleep(std::time::Duration::from_secs(5)).await;
        if durability == Durability::Process {
            // A content file may have survived whose intent did not: `larderd check` finds it.
            continue;
        }
        let snapshot = meta.snapshot().unwrap();
        let view = Verified(&*snapshot);
        let body = view.vnode(fid.vnode).unwrap().unwrap().body;
        let each = |id: ContentId| assert_eq!(body, Body::Content { version: id.version }, "scratch left at {cut}");
        content.list(&mut { each }, &mut |strange| panic!("{strange}")).unwrap();
        for table in [Table::Intents, Table::Dirty] {
            assert!(view.with_prefix(table, &[], 1).unwrap().is_empty(), "{table:?} left at {cut} of {cuts}");
        }
        assert_eq!(contents(&volume, fid).await, found, "it stays so");
    }
    assert!((saw_old || old == new) && saw_new);
}

#[tokio::test(start_paused = true)]
async fn a_power_cut_in_a_store_leaves_the_old_contents_or_the_new() {
    let sizes = [0, 9, BLOCK, 3 * BLOCK + 5];
    for (old_size, in_place) in sizes.into_iter().flat_map(|size| [(size, false), (size, true)]) {
        for new_size in sizes {
            let (old, new) = (bytes(old_size, 1), bytes(new_size, 2));
            let whole = async |volume: &Arc<Volume>, fid| {
                let contents = NewContents::Whole(Payload(new.clone()));
                op(volume, 3, Op::Store { fid, contents, base: None }).await.unwrap();
            };
            for durability in [Durability::Power, Durability::Process] {
                cut_at_each_step(durability, &old, in_place, &new, whole).await;
            }
            let staged = async |volume: &Arc<Volume>, fid| {
                for (first, offset) in [(true, 0), (false, BLOCK)] {
                    let data = new.slice((offset as usize).min(new.len())..);
                    let request = StageRequest { fid, stage: 1, first, offset, data: Payload(data) };
                    volume.stage(&root(), ClientId(1), request).await.unwrap();
                }
                let contents = NewContents::Staged { stage: 1, size: new_size };
                op(volume, 3, Op::Store { fid, contents, base: None }).await.unwrap();
            };
            for durability in [Durability::Power, Durability::Process] {
                cut_at_each_step(durability, &old, in_place, &new, staged).await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_power_cut_while_a_copy_is_kept_leaves_nothing_of_it() {
    let (old, new) = (bytes(3 * BLOCK + 5, 1), bytes(3 * BLOCK + 5, 2));
    let change = async |volume: &Arc<Volume>, fid| {
        let query = Query::Fetch { fid, offset: 0, len: 10, version: None, copy: true };
        volume.query(&root(), query).await.unwrap();
        let contents = NewContents::Whole(Payload(new.clone()));
        op(volume, 3, Op::Store { fid, contents, base: None }).await.unwrap();
    };
    cut_at_each_step(Durability::Power, &old, false, &new, change).await;
}
