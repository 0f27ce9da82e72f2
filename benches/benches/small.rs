//! What the small parts of a request cost by themselves, without a mount and mostly without a system call:
//! `scripts/bench small`.
#![allow(missing_docs, reason = "criterion's macros make public functions")]
#![allow(clippy::unwrap_used, reason = "a failed call ends the measurement")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use futures::{SinkExt, StreamExt};
use larder_client::core::attr_cache::{AttrCache, Limits, Stamp};
use larder_protocol::attr::{Attr, Credential};
use larder_protocol::cell::Quota;
use larder_protocol::ids::{ClientId, Epoch, Fid, OpId, VolumeId};
use larder_protocol::name::Name;
use larder_protocol::payload::Payload;
use larder_protocol::runtime::{SharedRuntime, SystemRuntime};
use larder_protocol::service::file::{CreateHow, Op, Query, QueryReply};
use larder_protocol::service::{LarderRequest, LarderResponse};
use larder_protocol::transport::{ClientTransport, ServerTransport, decode_call, encode_call};
use larder_server::core::callbacks::{Callbacks, Holder};
use larder_server::core::replay::{Admission, Replay};
use larder_server::volume::{self, Durability, Volume, VolumeConfig};
use tarpc::Response;
use tokio::runtime::Runtime;

/// Objects in a table of callbacks, each with two holders.
const OBJECTS: u64 = 100_000;
/// Files in a directory.
const FILES: u64 = 10_000;
/// The longest that attributes are used.
const ACREGMAX: Duration = Duration::from_secs(60);

fn request(fid: Fid) -> LarderRequest {
    LarderRequest::Query { cred: Credential::root(), query: Query::Getattr { fid } }
}

/// A volume of this machine's disk, with files in its root.
struct Stored {
    volume: Arc<Volume>,
    runtime: Runtime,
    _dir: tempfile::TempDir,
    next: u64,
}

impl Stored {
    fn new() -> Stored {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("volume");
        std::fs::create_dir(&place).unwrap();
        volume::create(&place, VolumeId::ROOT, "root", Quota::default()).unwrap();
        let tokio = Runtime::new().unwrap();
        let runtime: SharedRuntime = Arc::new(SystemRuntime::new(tokio.handle().clone()));
        let config =
            VolumeConfig { id: VolumeId::ROOT, dir: place, durability: Durability::Process, epoch: Epoch(1), runtime };
        let volume = {
            let _inside = tokio.enter();
            volume::open(config).unwrap()
        };
        let mut stored = Stored { volume, runtime: tokio, _dir: dir, next: 0 };
        (0..FILES).for_each(|_| stored.create());
        stored
    }

    fn name(number: u64) -> Name {
        Name::new(format!("file-{number}").as_bytes()).unwrap()
    }

    fn create(&mut self) {
        let id = OpId { client: ClientId(1), incarnation: 1, slot: 0, seq: self.next + 1 };
        let (dir, name) = (self.volume.root(), Stored::name(self.next));
        self.next += 1;
        let op = Op::Create { dir, name, mode: 0o644, umask: 0, how: CreateHow::Exclusive };
        self.runtime.block_on(self.volume.mutate(&Credential::root(), id, op)).unwrap();
    }

    fn query(&self, query: Query) -> QueryReply {
        self.runtime.block_on(self.volume.query(&Credential::root(), query)).unwrap()
    }

    fn attr(&self, number: u64) -> Attr {
        let query = Query::Lookup { dir: self.volume.root(), name: Stored::name(number) };
        let QueryReply::Entry { attr: Some(attr), .. } = self.query(query) else { panic!("no such file") };
        attr
    }
}

fn store(criterion: &mut Criterion) {
    let mut stored = Stored::new();
    let mut group = criterion.benchmark_group("store");
    let fid = stored.attr(FILES / 2).fid;
    group.bench_function("getattr", |bencher| bencher.iter(|| stored.query(Query::Getattr { fid })));
    let mut number = 0;
    group.bench_function("lookup", |bencher| {
        bencher.iter(|| {
            number = (number + 7919) % FILES;
            stored.attr(number)
        });
    });
    group.bench_function("create", |bencher| bencher.iter(|| stored.create()));
    group.finish();
    stored.runtime.block_on(stored.volume.close()).unwrap();
}

fn wire(criterion: &mut Criterion) {
    let stored = Stored::new();
    let attr = stored.attr(1);
    let fid = attr.fid;
    let mut group = criterion.benchmark_group("wire");
    group.bench_function("encode a getattr", |bencher| {
        bencher.iter(|| encode_call(7, request(black_box(fid))).unwrap())
    });
    let encoded = encode_call(7, request(fid)).unwrap();
    group.bench_function("decode a getattr", |bencher| {
        bencher.iter(|| decode_call::<LarderRequest>(black_box(&encoded)).unwrap());
    });
    let tokio = Runtime::new().unwrap();
    for size in [4096, 1 << 20] {
        let data = Payload(bytes::Bytes::from(vec![7; size]));
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(format!("a read's answer of {size} bytes through a pipe in memory"), |bencher| {
            let (near, far) = tokio::io::duplex(4 << 20);
            let mut client: ClientTransport<_, LarderRequest, LarderResponse> = ClientTransport::new(near);
            let mut server: ServerTransport<_, LarderRequest, LarderResponse> = ServerTransport::new(far);
            bencher.iter(|| {
                let reply = QueryReply::Data { data: data.clone(), attr: attr.clone() };
                let message = Ok(LarderResponse::Query(Ok(reply)));
                tokio.block_on(async {
                    server.send(Response { request_id: 7, message }).await.unwrap();
                    client.next().await.unwrap().unwrap()
                })
            });
        });
    }
    group.finish();
    stored.runtime.block_on(stored.volume.close()).unwrap();
}

fn replay(criterion: &mut Criterion) {
    let mut replay: Replay<u64> = Replay::default();
    let client = ClientId(1);
    replay.load_client(client, 1);
    let mut done = 0;
    criterion.bench_function("replay: admit and finish a mutation", |bencher| {
        bencher.iter(|| {
            let id = OpId { client, incarnation: 1, slot: (done % 64) as u32, seq: 1 + done / 64 };
            assert_eq!(replay.admit(id), Admission::Run);
            done += 1;
            replay.finish(id, Ok(done))
        });
    });
}

fn callbacks(criterion: &mut Criterion) {
    let full = || {
        let mut table = Callbacks::default();
        for object in 0..OBJECTS {
            table.grant(object, Holder { client: (object % 100) as u32, life: 1 });
            table.grant(object, Holder { client: 100 + (object % 100) as u32, life: 1 });
        }
        table
    };
    let mut group = criterion.benchmark_group("callbacks");
    group.bench_function("grant one that is held", |bencher| {
        let mut table = full();
        let mut object = 0;
        bencher.iter(|| {
            object = (object + 7919) % OBJECTS;
            table.grant(object, Holder { client: (object % 100) as u32, life: 1 })
        });
    });
    group.bench_function("break those of an object, and grant them again", |bencher| {
        let mut table = full();
        let mut object = 0;
        bencher.iter(|| {
            object = (object + 7919) % OBJECTS;
            let holders = table.take(object, None);
            for holder in &holders {
                table.grant(object, *holder);
            }
            holders.len()
        });
    });
    group.bench_function("sweep up those of a lease that ended", |bencher| {
        bencher.iter_batched(
            full,
            |mut table| {
                table.sweep(|holder| holder.client != 3);
                table
            },
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

fn attributes(criterion: &mut Criterion) {
    let stored = Stored::new();
    let attr = stored.attr(1);
    stored.runtime.block_on(stored.volume.close()).unwrap();
    let limits = Limits { min: Duration::from_secs(3), max: ACREGMAX };
    let stamp = |at: u64| Stamp { at: Duration::from_secs(at), tick: at };
    let mut cache = AttrCache::new(attr.clone(), stamp(1), stamp(1), limits);
    let mut group = criterion.benchmark_group("attribute cache");
    group.bench_function("look", |bencher| bencher.iter(|| cache.remaining(black_box(Duration::from_secs(2)))));
    let mut now = 1;
    group.bench_function("apply a reply", |bencher| {
        bencher.iter(|| {
            now += 1;
            cache.apply(attr.clone(), stamp(now), stamp(now), limits)
        });
    });
    group.finish();
}

criterion_group!(small, wire, replay, callbacks, attributes, store);
criterion_main!(small);
