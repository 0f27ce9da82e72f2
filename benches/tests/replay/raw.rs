//! One connection at a time, by hand: requests as they travel, held back in the network at will.

use std::sync::Arc;
use std::time::{Duration, Instant};

use larder_protocol::attr::Credential;
use larder_protocol::error::ErrorCode;
use larder_protocol::faults::Weather;
use larder_protocol::handshake::{Hello, MAX_VERSION, MIN_VERSION, Refusal, Welcome};
use larder_protocol::ids::{ClientId, Fid, OpId};
use larder_protocol::payload::Payload;
use larder_protocol::service::LarderClient;
use larder_protocol::service::file::{Committed, Mutated, Op, WriteRequest, Written};
use larder_protocol::transport::ClientTransport;
use tarpc::client::RpcError;
use tarpc::context::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

use crate::world::World;

/// The client that all connections belong to.
pub(crate) const CLIENT: ClientId = ClientId(7);

/// A connection whose requests can be held back.
pub(crate) struct Link {
    client: LarderClient,
    incarnation: u64,
    flowing: watch::Sender<bool>,
}

fn context() -> Context {
    let mut context = tarpc::context::current();
    context.deadline = Instant::now() + Duration::from_secs(500);
    context
}

/// The name of an operation in slot 0.
pub(crate) fn op_id(incarnation: u64, seq: u64) -> OpId {
    OpId { client: CLIENT, incarnation, slot: 0, seq }
}

impl Link {
    /// Connects, and does not say hello.
    pub(crate) fn new(world: &Arc<World>, incarnation: u64) -> Link {
        let far = world.dial(Weather::default(), 0).unwrap();
        let (near, middle) = tokio::io::duplex(1 << 20);
        let (flowing, mut may_flow) = watch::channel(true);
        let (mut requests, mut answers) = tokio::io::split(middle);
        let (mut from_server, mut to_server) = tokio::io::split(far);
        tokio::spawn(async move {
            let mut piece = vec![0; 64 << 10];
            // Ends with either side; what was held back is delivered even if its sender is gone.
            while let Ok(n @ 1..) = requests.read(&mut piece).await {
                if may_flow.wait_for(|flowing| *flowing).await.is_err()
                    || to_server.write_all(&piece[..n]).await.is_err()
                {
                    return;
                }
            }
            let _ = to_server.shutdown().await;
        });
        tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut answers).await });
        let client = LarderClient::new(tarpc::client::Config::default(), ClientTransport::new(near)).spawn();
        Link { client, incarnation, flowing }
    }

    /// Connects and says hello for the control channel.
    pub(crate) async fn greeted(world: &Arc<World>, incarnation: u64, generation: u64) -> Link {
        let link = Link::new(world, incarnation);
        link.hello(generation).await.unwrap();
        link
    }

    pub(crate) async fn hello(&self, generation: u64) -> Result<Welcome, Refusal> {
        let hello = Hello {
            prompt: false,
            min_version: MIN_VERSION,
            max_version: MAX_VERSION,
            client: CLIENT,
            incarnation: self.incarnation,
            channel: 0,
            generation,
            software: "test".to_owned(),
        };
        self.client.hello(context(), hello).await.unwrap()
    }

    /// Holds back all requests from now on, or lets them go.
    pub(crate) fn hold(&self, hold: bool) {
        self.flowing.send_replace(!hold);
    }

    /// Writes at the start of a file. The request is on its way when this returns; its answer is the task's.
    pub(crate) fn write(&self, fid: Fid, data: &[u8]) -> tokio::task::JoinHandle<Result<Written, Failed>> {
        let (client, data) = (self.client.clone(), Payload(data.to_vec().into()));
        tokio::spawn(async move {
            let request = WriteRequest::one(fid, 0, data, true);
            flat(client.write(context(), Credential::root(), request).await)
        })
    }

    pub(crate) async fn commit(&self, fid: Fid) -> Result<Committed, Failed> {
        flat(self.client.commit(context(), Credential::root(), fid).await)
    }

    /// Sends an operation; its answer is the task's.
    pub(crate) fn send(&self, seq: u64, op: &Op) -> tokio::task::JoinHandle<Result<Mutated, Failed>> {
        let (client, id, op) = (self.client.clone(), op_id(self.incarnation, seq), op.clone());
        tokio::spawn(async move { flat(client.mutate(context(), Credential::root(), id, op).await) })
    }

    pub(crate) async fn mutate(&self, seq: u64, op: &Op) -> Result<Mutated, Failed> {
        self.send(seq, op).await.unwrap()
    }

    pub(crate) async fn goodbye(&self) {
        self.client.goodbye(context()).await.unwrap().unwrap();
    }
}

/// Why there is no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failed {
    /// The connection ended without an answer.
    Unanswered,
    /// The server said no.
    Refused(ErrorCode),
}

fn flat<T>(answer: Result<Result<T, ErrorCode>, RpcError>) -> Result<T, Failed> {
    match answer {
        Ok(result) => result.map_err(Failed::Refused),
        Err(_) => Err(Failed::Unanswered),
    }
}
