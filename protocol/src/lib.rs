//! What Larder's clients and servers say to each other.
//!
//! Identities ([`ids`], [`name`]), servers and where volumes are ([`cell`]), attributes ([`attr`]), errors and their errno table ([`error`]), every bound
//! ([`limits`]), the first request of a connection ([`handshake`]), the requests themselves ([`service`]), how they
//! travel ([`transport`], [`payload`]), what was overtaken while it was under way ([`event_log`]), the seam to the machine
//! that both ends run on ([`runtime`]), and where tests make things go wrong ([`failpoint`], [`faults`]).
//! `docs/protocol.md` explains the contract.

pub mod attr;
pub mod cell;
pub mod error;
pub mod event_log;
pub mod failpoint;
pub mod faults;
pub mod handshake;
pub mod ids;
pub mod limits;
pub mod name;
pub mod payload;
pub mod runtime;
pub mod service;
pub mod sparse;
pub mod stats;
pub mod transport;
