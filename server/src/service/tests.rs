//! The server as a client sees it, over connections in memory and a store on disk.

use std::time::{Duration, Instant};

use larder_protocol::attr::{Attr, Credential};
use larder_protocol::faults::{Faulty, Weather};
use larder_protocol::handshake::{Hello, MAX_VERSION, MIN_VERSION, Refusal};
use larder_protocol::ids::{ClientId, Fid, OpId};
use larder_protocol::name::Name;
use larder_protocol::payload::Payload;
use larder_protocol::runtime::SystemRuntime;
use larder_protocol::service::LarderClient;
use larder_protocol::service::file::{CreateHow, Op, OpReply, Query, QueryReply, WriteRequest};
use larder_protocol::service::volume::{VolumeReply, VolumeRequest};
use larder_protocol::transport::{ClientTransport, ServerTransport};
use tarpc::context::Context;

use super::*;

const CLIENT: ClientId = ClientId(1);

fn far() -> Peer {
    Peer::Tcp("10.0.0.9:1000".parse().unwrap())
}

async fn server(dir: &tempfile::TempDir) -> Arc<Server> {
    let runtime: SharedRuntime = Arc::new(SystemRuntime::new(tokio::runtime::Handle::current()));
    let store = dir.path().join("store");
    let address = "127.0.0.1:1".to_owned();
    let config =
        ServerConfig { store, durability: Durability::Process, address, location: None, settings: Settings::default() };
    Server::new(config, runtime).await.unwrap()
}

fn dial(server: &Arc<Server>, peer: Peer) -> LarderClient {
    let (near, far) = tokio::io::duplex(1 << 20);
    server.clone().serve_in_background(ServerTransport::new(far), peer);
    LarderClient::new(tarpc::client::Config::default(), ClientTransport::new(near)).spawn()
}

fn context() -> Context {
    let mut context = tarpc::context::current();
    context.deadline = Instant::now() + Duration::from_secs(60);
    context
}

fn hello(incarnation: u64, generation: u64) -> Hello {
    Hello {
        min_version: MIN_VERSION,
        max_version: MAX_VERSION,
        prompt: false,
        client: CLIENT,
        incarnation,
        channel: 0,
        generation,
        software: "test".to_owned(),
    }
}

fn op_id(incarnation: u64, seq: u64) -> OpId {
    OpId { client: CLIENT, incarnation, slot: 0, seq }
}

fn create(dir: Fid, name: &str) -> Op {
    let name = Name::new(name.as_bytes()).unwrap();
    Op::Create { dir, name, mode: 0o644, umask: 0, how: CreateHow::Exclusive }
}

async fn attach(client: &LarderClient) -> Attr {
    let request = VolumeRequest::Attach { name: "root".to_owned() };
    match client.volume(context(), Credential::root(), request).await.unwrap().unwrap() {
        VolumeReply::Attached { root, .. } => root,
        other => panic!("{other:?}"),
    }
}

async fn mutate(client: &LarderClient, id: OpId, op: Op) -> Result<OpReply, ErrorCode> {
    client.mutate(context(), Credential::root(), id, op).await.unwrap().map(|mutated| mutated.reply)
}

#[tokio::test]
async fn what_another_boot_acknowledged_is_not_vouched_for() {
    let dir = tempfile::tempdir().unwrap();
    let first = server(&dir).await;
    let before = first.epoch();
    first.shut_down(Duration::from_secs(10)).await.unwrap();
    drop(first);
    let second = server(&dir).await;
    let client = dial(&second, far());
    let welcome = client.hello(context(), hello(1, 1)).await.unwrap().unwrap();
    assert!(!welcome.durable, "under `process` durability it has to be asked for");
    let volume = attach(&client).await.fid.volume;
    for known in [before, second.epoch()] {
        assert_eq!(client.sync(context(), volume, known).await.unwrap(), Ok(()));
    }
    assert_eq!(client.sync(context(), volume, Epoch(1)).await.unwrap(), Err(ErrorCode::Io));
}

#[tokio::test]
async fn before_hello_nothing_but_stats_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(&dir).await;
    let client = dial(&server, Peer::Local);
    let root = server.volumes.get(VolumeId::ROOT).await.unwrap().root();
    let query = client.query(context(), Credential::root(), Query::Getattr { fid: root }).await.unwrap();
    assert_eq!(query, Err(ErrorCode::UnknownClient));
    assert_eq!(mutate(&client, op_id(1, 1), create(root, "a")).await, Err(ErrorCode::UnknownClient));
    assert_eq!(client.goodbye(context()).await.unwrap(), Err(ErrorCode::UnknownClient));
    let mut future = hello(1, 1);
    (future.min_version, future.max_version) = (99, 100);
    assert!(matches!(client.hello(context(), future).await.unwrap(), Err(Refusal::Version { .. })));
    let stats = client.stats(context()).await.unwrap();
    assert_eq!((stats.refused, stats.connections, stats.clients), (3, 1, 0));
    server.shut_down(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test]
async fn a_retry_on_another_connection_gets_the_first_result() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(&dir).await;
    let first = dial(&server, Peer::Local);
    let welcome = first.hello(context(), hello(1, 1)).await.unwrap().unwrap();
    assert_eq!(welcome.epoch, server.epoch());
    let root = attach(&first).await.fid;
    let made = mutate(&first, op_id(1, 1), create(root, "a")).await.unwrap();
    let second = dial(&server, Peer::Local);
    second.hello(context(), hello(1, 2)).await.unwrap().unwrap();
    assert_eq!(mutate(&second, op_id(1, 1), create(root, "a")).await.unwrap(), made);
    assert_eq!(mutate(&second, op_id(1, 2), create(root, "a")).await, Err(ErrorCode::Exists));
    assert_eq!(mutate(&second, op_id(1, 1), create(root, "a")).await, Err(ErrorCode::BadSequence));
    assert!(first.stats(context()).await.is_err(), "the older connection is closed");
    assert_eq!(server.stats().replayed, 1);
    server.shut_down(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test]
async fn a_retry_after_a_restart_gets_the_first_result() {
    let dir = tempfile::tempdir().unwrap();
    let made = {
        let server = server(&dir).await;
        let client = dial(&server, Peer::Local);
        client.hello(context(), hello(1, 1)).await.unwrap().unwrap();
        let root = attach(&client).await.fid;
        let made = mutate(&client, op_id(1, 1), create(root, "a")).await.unwrap();
        drop(client);
        server.shut_down(Duration::from_secs(10)).await.unwrap();
        made
    };
    let server = server(&dir).await;
    let client = dial(&server, Peer::Local);
    client.hello(context(), hello(1, 2)).await.unwrap().unwrap();
    let root = attach(&client).await.fid;
    assert_eq!(mutate(&client, op_id(1, 1), create(root, "a")).await.unwrap(), made);
    server.shut_down(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test]
async fn ids_of_others_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(&dir).await;
    let client = dial(&server, Peer::Local);
    client.hello(context(), hello(5, 1)).await.unwrap().unwrap();
    let root = attach(&client).await.fid;
    assert_eq!(mutate(&client, op_id(4, 1), create(root, "a")).await, Err(ErrorCode::Fenced));
    let other = OpId { client: ClientId(2), ..op_id(5, 1) };
    assert_eq!(mutate(&client, other, create(root, "a")).await, Err(ErrorCode::Invalid));
    let nowhere = Fid { volume: VolumeId(9), ..root };
    assert_eq!(mutate(&client, op_id(5, 1), create(nowhere, "a")).await, Err(ErrorCode::NoSuchVolume));
    let request = VolumeRequest::Attach { name: "nowhere".to_owned() };
    let attached = client.volume(context(), Credential::root(), request).await.unwrap();
    assert_eq!(attached, Err(ErrorCode::NoSuchVolume));
    server.shut_down(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test]
async fn the_superuser_of_another_host_may_not_write_to_the_root_directory() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(&dir).await;
    let client = dial(&server, far());
    client.hello(context(), hello(1, 1)).await.unwrap().unwrap();
    let root = attach(&client).await.fid;
    assert_eq!(mutate(&client, op_id(1, 1), create(root, "a")).await, Err(ErrorCode::AccessDenied));
    server.shut_down(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test]
async fn contents_are_counted_and_survive_a_clean_end() {
    let dir = tempfile::tempdir().unwrap();
    let data = Payload(vec![7; 300_000].into());
    let fid = {
        let server = server(&dir).await;
        let client = dial(&server, Peer::Local);
        client.hello(context(), hello(1, 1)).await.unwrap().unwrap();
        let root = attach(&client).await.fid;
        let OpReply::Entry { attr, .. } = mutate(&client, op_id(1, 1), create(root, "a")).await.unwrap() else {
            panic!("not an entry")
        };
        let request = WriteRequest::one(attr.fid, 0, data.clone(), false);
        client.write(context(), Credential::root(), request).await.unwrap().unwrap();
        client.commit(context(), Credential::root(), attr.fid).await.unwrap().unwrap();
        let stats = client.stats(context()).await.unwrap();
        assert_eq!(stats.bytes_written, 300_000);
        let counts = ["hello", "volume", "create", "write", "commit"].map(|kind| stats.requests[kind].count);
        assert_eq!(counts, [1; 5]);
        client.goodbye(context()).await.unwrap().unwrap();
        drop(client);
        server.shut_down(Duration::from_secs(10)).await.unwrap();
        attr.fid
    };
    let server = server(&dir).await;
    let client = dial(&server, Peer::Local);
    client.hello(context(), hello(2, 1)).await.unwrap().unwrap();
    let read = Query::Read { fid, offset: 0, len: 1 << 20, touch: true };
    let QueryReply::Data { data: got, .. } = client.query(context(), Credential::root(), read).await.unwrap().unwrap()
    else {
        panic!("not data")
    };
    assert!(got == data);
    assert_eq!(server.stats().bytes_read, 300_000);
    server.shut_down(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test]
async fn messages_that_come_twice_run_once() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(&dir).await;
    let (near, far) = tokio::io::duplex(1 << 20);
    let weather = Weather { repeat: 1000, max_delay: Duration::from_millis(5), ..Weather::default() };
    server.clone().serve_in_background(Faulty::new(ServerTransport::new(far), weather, 3), Peer::Local);
    let client = LarderClient::new(tarpc::client::Config::default(), ClientTransport::new(near)).spawn();
    client.hello(context(), hello(1, 1)).await.unwrap().unwrap();
    let root = attach(&client).await.fid;
    for seq in 1..=50 {
        let name = format!("file-{seq}");
        let made = mutate(&client, op_id(1, seq), create(root, &name)).await;
        assert!(made.is_ok(), "{name}: {made:?}");
        if seq % 5 == 0 {
            // Whether a copy comes late enough to be a retry is up to the weather; this one does.
            let again = mutate(&client, op_id(1, seq), create(root, &name)).await;
            assert_eq!(again, made);
        }
    }
    assert!(server.stats().replayed >= 10, "{} copies were retries", server.stats().replayed);
    assert_eq!(server.stats().mutations, 50);
    server.shut_down(Duration::from_secs(10)).await.unwrap();
}
