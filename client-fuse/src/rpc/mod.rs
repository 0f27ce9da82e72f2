//! Requests to servers, over connections that come and go.
//!
//! [`servers`] knows which server has which volume, and [`way`] follows one that moves; the rest is there once for each of
//! them.
//! [`connector`] opens connections; [`channel`] keeps one of them open, generation after generation; `driver` moves
//! its bytes; [`slot_queue`] hands out replay slots, of each volume its own ([`volume_slots`]); `routing` chooses the channel of a request; [`client`] sends
//! requests and repeats them until they are answered; a [`mutation`] keeps its id wherever it goes.
//!
//! A request that was sent and not answered *may have been executed*. It is sent again only after the `hello` of a
//! newer generation of the same channel has been answered: then the server reads nothing more of the old generation
//! (fencing). Mutations carry an operation id, so that a repeated one is recognised.

pub mod channel;
pub mod client;
pub mod connector;
mod driver;
pub mod mutation;
mod ration;
mod routing;
pub mod servers;
pub mod slot_queue;
pub mod volume_slots;
pub mod way;

pub use client::{Client, Patience};
pub use connector::{BoxTransport, Connector, Link, TcpConnector};
pub use mutation::Mutation;
pub use routing::CHANNELS;
pub(crate) use routing::MUCH;
pub use servers::Servers;
pub use way::Way;

use larder_protocol::error::ErrorCode;

/// Why the client stopped waiting for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The time of a `soft` mount is over.
    TimedOut,
    /// The mount is being taken down.
    Aborted,
}

/// Why a request has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It never left this machine, so it was certainly not executed.
    NotSent(Cause),
    /// It was sent and not answered: it may have been executed, and may still be.
    MaybeExecuted(Cause),
    /// The server said no.
    Refused(ErrorCode),
}

/// Why a connection could not be made.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ConnectError {
    /// No connection, or no answer on it.
    #[error("{0}")]
    Network(String),
    /// The server answered and turned the client away.
    #[error("{0}")]
    Refused(larder_protocol::handshake::Refusal),
}
