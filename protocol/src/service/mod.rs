//! What a client can ask of a server.
//!
//! The methods of [`Larder`] are sorted by how a request may be repeated, because that is what the two ends must
//! agree on: a *query* changes nothing, a *write* or *commit* has the same effect twice as once, and a *mutation* is
//! recognised by its [`OpId`] and runs once.

pub mod admin;
pub mod callback;
pub mod file;
pub mod kind;
pub mod registry;
pub mod transfer;
pub mod volume;

use crate::attr::Credential;
use crate::error::ErrorCode;
use crate::handshake::{Hello, Refusal, Welcome};
use crate::ids::{Epoch, Fid, OpId, VolumeId};
use crate::stats::ServerStats;
use admin::{AdminError, AdminReply, AdminRequest};
use callback::{Breaks, LeaseId, Promised, Renew, Renewed};
use file::{Committed, Mutated, Op, Query, QueryReply, StageRequest, WriteRequest, Written};
use registry::{RegistryError, RegistryReply, RegistryRequest};
use transfer::{TransferReply, TransferRequest};
use volume::{VolumeReply, VolumeRequest};

/// The service of a file server. `hello` must come first on each connection.
#[tarpc::service(derive = [Clone, serde::Serialize, serde::Deserialize])]
pub trait Larder {
    /// Opens the connection; see [`crate::handshake`].
    async fn hello(hello: Hello) -> Result<Welcome, Refusal>;

    /// Asks for something and changes nothing.
    async fn query(cred: Credential, query: Query) -> Result<QueryReply, ErrorCode>;

    /// As [`query`](Larder::query), with callbacks on the objects that the answer shows.
    async fn promised(cred: Credential, query: Query) -> Result<Promised, ErrorCode>;

    /// Prolongs the client's lease, or begins one. All callbacks of the client at this server stand under it.
    async fn renew(request: Renew) -> Result<Renewed, ErrorCode>;

    /// Acknowledges the breaks up to `acked`, and waits until there are others.
    async fn breaks(lease: LeaseId, acked: u64) -> Result<Breaks, ErrorCode>;

    /// Changes something, exactly once under any number of retries with the same id.
    async fn mutate(cred: Credential, id: OpId, op: Op) -> Result<Mutated, ErrorCode>;

    /// Writes file data in place. Idempotent, but a client never has two overlapping writes in flight.
    async fn write(cred: Credential, request: WriteRequest) -> Result<Written, ErrorCode>;

    /// Puts a piece of a file's next contents beside the file, for an [`Op::Store`] to install. Idempotent. What is
    /// staged is lost with the server process, when the client leaves, and some time after its last piece.
    async fn stage(cred: Credential, request: StageRequest) -> Result<(), ErrorCode>;

    /// Makes a file's unstable writes durable.
    async fn commit(cred: Credential, fid: Fid) -> Result<Committed, ErrorCode>;

    /// Makes durable all that was acknowledged of a volume before this was asked, for a program that syncs a file or a
    /// directory. Where `hello` said that everything acknowledged is durable there is nothing to ask for. `since` is the server
    /// process that acknowledged what is to be durable, or one before it: `Io` if there was a power cut in between.
    async fn sync(volume: VolumeId, since: Epoch) -> Result<(), ErrorCode>;

    /// Where volumes are, and where to begin in one.
    async fn volume(cred: Credential, request: VolumeRequest) -> Result<VolumeReply, ErrorCode>;

    /// Administers the cell. Only the superuser may.
    async fn admin(cred: Credential, request: AdminRequest) -> Result<AdminReply, AdminError>;

    /// The client leaves for good: its slots and orphans are freed.
    async fn goodbye() -> Result<(), ErrorCode>;

    /// Counters since the server's start. Answered before `hello` too.
    async fn stats() -> ServerStats;

    /// The directory of the cell, for its other servers, from hosts whose superuser is trusted.
    async fn registry(request: RegistryRequest) -> Result<RegistryReply, RegistryError>;

    /// A volume that moves, for the server that is to have it, from hosts whose superuser is trusted.
    async fn transfer(request: TransferRequest) -> Result<TransferReply, AdminError>;
}
