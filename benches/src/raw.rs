//! The protocol without a mount: one connection, one slot, what a test wants to say.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use larder_protocol::attr::{Attr, Credential};
use larder_protocol::error::ErrorCode;
use larder_protocol::handshake::{Hello, MAX_VERSION, MIN_VERSION, Welcome};
use larder_protocol::ids::{ClientId, Fid, OpId};
use larder_protocol::name::Name;
use larder_protocol::payload::Payload;
use larder_protocol::service::LarderClient;
use larder_protocol::service::admin::{AdminReply, AdminRequest};
use larder_protocol::service::file::{CreateHow, Mutated, Op, OpReply, Query, QueryReply};
use larder_protocol::service::volume::{VolumeReply, VolumeRequest};
use larder_protocol::transport::ClientTransport;

/// How long to wait for any answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A client that has said hello.
pub struct Raw {
    client: LarderClient,
    /// What the server answered to the hello.
    pub welcome: Welcome,
    /// The root of the volume `root`.
    pub root: Fid,
    id: ClientId,
    generation: u64,
    seq: u64,
}

impl Raw {
    /// Connects as a new client, says hello and attaches to the volume `root`.
    ///
    /// # Errors
    /// If any of these fails.
    pub async fn connect(address: &str) -> Result<Raw> {
        Raw::open(address, ClientId(rand::random()), 1).await
    }

    /// Connects again as the same client, as after the connection broke; the slots stay as they were.
    ///
    /// # Errors
    /// If any of these fails.
    pub async fn reconnect(&mut self, address: &str) -> Result<()> {
        let seq = self.seq;
        *self = Raw::open(address, self.id, self.generation + 1).await?;
        self.seq = seq;
        Ok(())
    }

    async fn open(address: &str, id: ClientId, generation: u64) -> Result<Raw> {
        let stream =
            tokio::net::TcpStream::connect(address).await.with_context(|| format!("connecting to {address}"))?;
        stream.set_nodelay(true)?;
        let transport = ClientTransport::new(stream);
        let client = LarderClient::new(tarpc::client::Config::default(), transport).spawn();
        let hello = Hello {
            prompt: false,
            min_version: MIN_VERSION,
            max_version: MAX_VERSION,
            client: id,
            incarnation: 1,
            channel: 0,
            generation,
            software: "larder-benches".to_owned(),
        };
        let welcome = client.hello(context(), hello).await?.context("the server refused the hello")?;
        let attach = VolumeRequest::Attach { name: "root".to_owned() };
        let root = match client.volume(context(), Credential::root(), attach).await? {
            Ok(VolumeReply::Attached { root, .. }) => root,
            other => anyhow::bail!("attaching to the volume root: {other:?}"),
        };
        Ok(Raw { client, welcome, root: root.fid, id, generation, seq: 0 })
    }

    /// Asks as the superuser.
    ///
    /// # Errors
    /// The outer one if no answer came, the inner one is the server's.
    pub async fn query(&self, query: Query) -> Result<Result<QueryReply, ErrorCode>> {
        Ok(self.client.query(context(), Credential::root(), query).await?)
    }

    /// Administers the cell as the superuser.
    ///
    /// # Errors
    /// If no answer came, or the server says no.
    pub async fn admin(&self, request: AdminRequest) -> Result<AdminReply> {
        Ok(self.client.admin(context(), Credential::root(), request).await??)
    }

    /// Changes something as the superuser.
    ///
    /// # Errors
    /// The outer one if no answer came, the inner one is the server's.
    pub async fn mutate(&mut self, op: Op) -> Result<Result<OpReply, ErrorCode>> {
        self.seq += 1;
        let id = OpId { client: self.id, incarnation: 1, slot: 0, seq: self.seq };
        Ok(self.repeat(id, op).await?.map(|mutated| mutated.reply))
    }

    /// Sends a mutation under an id of the caller's choice.
    ///
    /// # Errors
    /// The outer one if no answer came, the inner one is the server's.
    pub async fn repeat(&self, id: OpId, op: Op) -> Result<Result<Mutated, ErrorCode>> {
        Ok(self.client.mutate(context(), Credential::root(), id, op).await?)
    }

    /// The id that the last mutation had.
    pub fn last_id(&self) -> OpId {
        OpId { client: self.id, incarnation: 1, slot: 0, seq: self.seq }
    }

    /// Makes an empty file in the root.
    ///
    /// # Errors
    /// If the server does not.
    pub async fn create(&mut self, dir: Fid, name: &[u8]) -> Result<Attr> {
        let op = Op::Create { dir, name: Name::new(name)?, mode: 0o644, umask: 0, how: CreateHow::Exclusive };
        self.entry(op).await
    }

    /// Makes a directory in the root.
    ///
    /// # Errors
    /// If the server does not.
    pub async fn mkdir(&mut self, dir: Fid, name: &[u8]) -> Result<Attr> {
        let op = Op::Mkdir { dir, name: Name::new(name)?, mode: 0o755, umask: 0 };
        self.entry(op).await
    }

    async fn entry(&mut self, op: Op) -> Result<Attr> {
        match self.mutate(op).await? {
            Ok(OpReply::Entry { attr, .. }) => Ok(attr),
            other => bail!("an entry was asked for, and the answer is {other:?}"),
        }
    }

    /// Puts `data` at a file's end.
    ///
    /// # Errors
    /// If the server does not.
    pub async fn append(&mut self, fid: Fid, data: &[u8]) -> Result<()> {
        let data = Payload(Bytes::copy_from_slice(data));
        match self.mutate(Op::Append { fid, data }).await? {
            Ok(OpReply::Appended { .. }) => Ok(()),
            other => bail!("an append was asked for, and the answer is {other:?}"),
        }
    }

    /// Removes a name, keeping nothing.
    ///
    /// # Errors
    /// If the server does not.
    pub async fn remove(&mut self, dir: Fid, name: &[u8]) -> Result<()> {
        match self.mutate(Op::Remove { dir, name: Name::new(name)?, keep: false }).await? {
            Ok(OpReply::Removed { .. }) => Ok(()),
            other => bail!("a removal was asked for, and the answer is {other:?}"),
        }
    }
}

/// A call's context with [`PATIENCE`] to its deadline.
fn context() -> tarpc::context::Context {
    let mut context = tarpc::context::current();
    context.deadline = Instant::now() + PATIENCE;
    context
}
