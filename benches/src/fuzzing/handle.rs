//! A server with a volume in memory, and requests on one connection to it, in virtual time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use larder_protocol::attr::Credential;
use larder_protocol::error::ErrorCode;
use larder_protocol::handshake::{Hello, MAX_VERSION, MIN_VERSION};
use larder_protocol::ids::{ClientId, Epoch, Fid, OpId, ROOT_VNODE, VolumeId};
use larder_protocol::runtime::{SharedRuntime, SimRuntime};
use larder_protocol::service::file::{Checked, Mutated, Op, OpReply, Query, QueryReply};
use larder_protocol::service::volume::{VolumeReply, VolumeRequest};
use larder_protocol::service::{LarderClient, LarderRequest};
use larder_protocol::transport::{ClientTransport, ServerTransport, decode_call};
use larder_server::net::sessions::Peer;
use larder_server::promises::holders::HolderMemory;
use larder_server::service::{Server, Settings};
use larder_server::volume::content::memory::MemoryContent;
use larder_server::volume::meta::memory::MemoryMetadata;
use larder_server::volume::{Durability, open_on, prepare};
use tarpc::ClientMessage;
use tarpc::client::RpcError;

use super::input::Input;

/// Requests in one run; more make a finding harder to read, not more likely.
const MAX_STEPS: usize = 200;
/// Enough for everything that is due to be done.
const AFTER_LEAP: Duration = Duration::from_secs(3);
/// Bytes in flight between the two ends.
const PIPE: usize = 1 << 20;

/// Carries out the requests that `bytes` make.
///
/// # Panics
/// If the server panics or does not answer, an answer does not belong to its request, a handle names two objects, a
/// removed object is still there, or the volume does not close in good order.
pub fn handle(bytes: &[u8]) {
    let executor = match tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build() {
        Ok(executor) => executor,
        Err(error) => panic!("no executor: {error}"),
    };
    executor.block_on(run(Input(bytes)));
}

async fn run(mut input: Input<'_>) {
    let runtime: SharedRuntime = Arc::new(SimRuntime::new(1));
    let server = memory_server(runtime);
    let (near, far) = tokio::io::duplex(PIPE);
    server.clone().serve_in_background(ServerTransport::new(far), Peer::Local);
    let client = LarderClient::new(tarpc::client::Config::default(), ClientTransport::new(near)).spawn();
    let mut world = World::attach(client).await;
    for _ in 0..MAX_STEPS {
        if input.is_empty() || world.is_gone {
            break;
        }
        world.step(&mut input).await;
    }
    world.removed_stay_removed().await;
    drop(world);
    if let Err(code) = server.shut_down(Duration::from_secs(60)).await {
        panic!("the volume does not close: {code}");
    }
}

/// A server with an empty volume `root` that lives in memory.
fn memory_server(runtime: SharedRuntime) -> Arc<Server> {
    let (meta, content, epoch) = (MemoryMetadata::new(), MemoryContent::new(), Epoch(1));
    let opened = prepare(&meta, VolumeId::ROOT, "root", runtime.wall())
        .and_then(|()| open_on(Arc::new(meta), Arc::new(content), Durability::Power, epoch, runtime.clone()));
    match opened {
        Ok(volume) => {
            Server::with_volumes(epoch, vec![volume], Arc::new(HolderMemory::default()), Settings::default(), runtime)
                .unwrap_or_else(|error| panic!("a record in memory: {error}"))
        }
        Err(error) => panic!("opening a volume in memory: {error}"),
    }
}

/// What the client knows.
struct World {
    client: LarderClient,
    id: ClientId,
    seq: u64,
    /// Every handle that was ever given out.
    known: Vec<Fid>,
    /// Those whose object must be gone.
    dead: BTreeSet<Fid>,
    /// Whether the client took its leave, or was fenced by a `hello` of its own.
    is_gone: bool,
}

impl World {
    async fn attach(client: LarderClient) -> World {
        let id = ClientId(1);
        let hello = Hello {
            prompt: false,
            min_version: MIN_VERSION,
            max_version: MAX_VERSION,
            client: id,
            incarnation: 1,
            channel: 0,
            generation: 1,
            software: String::new(),
        };
        answered(client.hello(tarpc::context::current(), hello).await).unwrap_or_else(|refusal| panic!("{refusal}"));
        let attach = VolumeRequest::Attach { name: "root".to_owned() };
        let cred = Credential::root();
        let root = match answered(client.volume(tarpc::context::current(), cred, attach).await) {
            Ok(VolumeReply::Attached { root, .. }) => root,
            other => panic!("attaching: {other:?}"),
        };
        assert_eq!(root.fid.vnode, ROOT_VNODE);
        let mut world = World { client, id, seq: 1, known: vec![root.fid], dead: BTreeSet::new(), is_gone: false };
        // A client's first operation must come through, or the server does not know it; and a second directory helps.
        let op = Op::Mkdir { dir: root.fid, name: Input(&[]).name(), mode: 0o777, umask: 0 };
        let id = OpId { client: id, incarnation: 1, slot: 0, seq: 1 };
        let reply = answered(world.client.mutate(tarpc::context::current(), Credential::root(), id, op.clone()).await);
        assert!(reply.is_ok(), "{op:?}: {reply:?}");
        world.learn(&op, reply);
        world
    }

    async fn step(&mut self, input: &mut Input<'_>) {
        let context = tarpc::context::current();
        match input.byte() % 16 {
            0..5 => {
                let (cred, query) = (input.credential(), input.query(&self.known));
                let reply = answered(self.client.query(context, cred, query.clone()).await);
                self.check_query(&query, reply);
            }
            5..11 => {
                let (cred, op) = (input.credential(), input.op(&self.known));
                self.seq += 1;
                let id = OpId { client: self.id, incarnation: 1, slot: 0, seq: self.seq };
                let reply = answered(self.client.mutate(context, cred.clone(), id, op.clone()).await);
                if input.byte() >= 192 {
                    let again = answered(self.client.mutate(tarpc::context::current(), cred, id, op.clone()).await);
                    let result = |of: &Result<Mutated, ErrorCode>| of.clone().map(|mutated| mutated.reply);
                    assert_eq!(result(&again), result(&reply), "{op:?} repeated is answered from its slot");
                }
                self.learn(&op, reply);
            }
            11..13 => {
                let (cred, request) = (input.credential(), input.write(&self.known));
                let fid = request.fid;
                if let Ok(written) = answered(self.client.write(context, cred, request).await) {
                    assert_eq!(written.attr.attr.fid, fid);
                }
            }
            13 => {
                let (cred, fid) = (input.credential(), input.fid(&self.known));
                if let Ok(committed) = answered(self.client.commit(context, cred, fid).await) {
                    assert_eq!(committed.attr.fid, fid);
                }
            }
            14 => {
                // In one leap: a day passes without the thousands of times that the upkeep would look in.
                tokio::time::advance(Duration::from_secs(input.number() % 100_000)).await;
                tokio::time::sleep(AFTER_LEAP).await;
            }
            // The rest as it comes: any request that decodes, with fields that no client would send.
            _ => {
                let rest = std::mem::take(&mut input.0);
                if let Ok(ClientMessage::Request(request)) = decode_call::<LarderRequest>(rest) {
                    self.send(request.message).await;
                }
            }
        }
    }

    /// Sends a request that was not made here; all that counts is that an answer comes.
    async fn send(&mut self, request: LarderRequest) {
        let (client, context) = (&self.client, tarpc::context::current());
        match request {
            LarderRequest::Hello { hello } => {
                // It may fence the connection it comes by.
                self.is_gone = true;
                let _ = client.hello(context, hello).await;
            }
            LarderRequest::Goodbye {} => {
                self.is_gone = true;
                let _ = client.goodbye(context).await;
            }
            LarderRequest::Query { cred, query } => {
                let reply = answered(client.query(context, cred, query.clone()).await);
                self.check_query(&query, reply);
            }
            LarderRequest::Mutate { cred, id, op } => {
                let reply = answered(client.mutate(context, cred, id, op.clone()).await);
                self.seq = self.seq.max(if id.slot == 0 && reply.is_ok() { id.seq } else { 0 });
                self.learn(&op, reply);
            }
            LarderRequest::Promised { cred, query } => {
                let reply = answered(client.promised(context, cred, query.clone()).await);
                self.check_query(&query, reply.map(|promised| promised.reply));
            }
            LarderRequest::Renew { request } => drop(answered(client.renew(context, request).await)),
            // It may wait for longer than anybody does here.
            LarderRequest::Breaks { lease, acked } => drop(client.breaks(context, lease, acked).await),
            LarderRequest::Stage { cred, request } => drop(answered(client.stage(context, cred, request).await)),
            LarderRequest::Write { cred, request } => drop(answered(client.write(context, cred, request).await)),
            LarderRequest::Commit { cred, fid } => drop(answered(client.commit(context, cred, fid).await)),
            LarderRequest::Sync { volume, since } => drop(answered(client.sync(context, volume, since).await)),
            LarderRequest::Volume { cred, request } => drop(answered(client.volume(context, cred, request).await)),
            LarderRequest::Registry { request } => drop(answered(client.registry(context, request).await)),
            LarderRequest::Transfer { request } => drop(answered(client.transfer(context, request).await)),
            LarderRequest::Admin { cred, request } => drop(answered(client.admin(context, cred, request).await)),
            LarderRequest::Stats {} => drop(answered(client.stats(context).await)),
        }
    }

    fn check_query(&self, query: &Query, reply: Result<QueryReply, ErrorCode>) {
        if let (Query::Recheck { items }, Ok(QueryReply::Rechecked(verdicts))) = (query, &reply) {
            assert_eq!(items.len(), verdicts.len());
            for ((fid, _), verdict) in items.iter().zip(verdicts) {
                assert_eq!(*verdict == Checked::Gone, !self.known.contains(fid) || self.dead.contains(fid), "{fid}");
            }
            return;
        }
        let (Some(asked), Ok(reply)) = (query.fid(), reply) else { return };
        assert!(!self.dead.contains(&asked), "{query:?} of a removed object: {reply:?}");
        assert!(self.known.contains(&asked), "{query:?} of a forged handle: {reply:?}");
        let about = match (query, reply) {
            (Query::Lookup { .. } | Query::Parent { .. }, QueryReply::Entry { attr, dir }) => {
                if let Some(attr) = attr {
                    assert!(self.known.contains(&attr.fid) && !self.dead.contains(&attr.fid), "{query:?}: {attr:?}");
                }
                dir.fid
            }
            (Query::Getattr { .. }, QueryReply::Attr(attr))
            | (Query::Access { .. }, QueryReply::Access { attr, .. }) => attr.fid,
            (Query::Read { len, .. } | Query::Fetch { len, .. }, QueryReply::Data { data, attr }) => {
                assert!(data.len() <= *len as usize, "{query:?}: {} bytes", data.len());
                attr.fid
            }
            (Query::Readdir { .. }, QueryReply::Listing { dir, .. }) => dir.fid,
            (Query::Readlink { .. }, QueryReply::Target(_))
            | (Query::Statfs { .. }, QueryReply::Space(_))
            | (Query::Getxattr { .. }, QueryReply::Xattr(_))
            | (Query::Listxattr { .. }, QueryReply::XattrNames(_))
            | (Query::Seek { .. }, QueryReply::Offset(_)) => asked,
            (query, reply) => panic!("{query:?} was answered with {reply:?}"),
        };
        assert_eq!(about, asked, "{query:?}");
    }

    fn learn(&mut self, op: &Op, reply: Result<Mutated, ErrorCode>) {
        let Ok(mutated) = reply else { return };
        let gone = match (op, mutated.reply) {
            (_, OpReply::Entry { attr, created, .. }) => {
                let is_new = !self.known.contains(&attr.fid);
                assert_eq!(created && !matches!(op, Op::Link { .. }), is_new, "{op:?}: {attr:?}");
                if is_new {
                    self.known.push(attr.fid);
                }
                None
            }
            // A kept object stays until it is forgotten, which a forget may or may not have done by now.
            (Op::Remove { keep: false, .. } | Op::Rmdir { .. }, OpReply::Removed { object, .. }) => Some(object),
            (Op::Rename { keep: false, .. }, OpReply::Renamed { other, .. }) => other,
            _ => None,
        };
        if let Some(object) = gone.filter(|object| object.nlink == 0) {
            self.dead.insert(object.fid);
        }
    }

    async fn removed_stay_removed(&self) {
        if self.is_gone {
            return;
        }
        for fid in &self.dead {
            let cred = Credential::root();
            let reply =
                answered(self.client.query(tarpc::context::current(), cred, Query::Getattr { fid: *fid }).await);
            assert_eq!(reply, Err(ErrorCode::Stale), "{fid} was removed");
        }
    }
}

/// The answer. There must be one: time is virtual, and passes a deadline only when nothing else is left to do.
fn answered<T>(reply: Result<T, RpcError>) -> T {
    reply.unwrap_or_else(|error| panic!("no answer: {error}"))
}
