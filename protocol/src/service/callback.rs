//! Callbacks and the leases under which they count: how a server keeps its promise to tell a client before an object
//! changes.
//!
//! A client that caches holds one lease at a server and renews it with one small message. Under the lease it holds
//! *callbacks*: with the answer to a promised request comes the server's word that it will break the callback on an
//! object, and wait for the acknowledgement, before the object changes. The client keeps one `breaks` request
//! waiting at the server; breaks come as its answer, and the next request acknowledges them. So everything is asked by
//! the client, which works through address translation, and a break is as fast as a message in either direction.

use serde::{Deserialize, Serialize};

use super::file::QueryReply;
use crate::ids::{Epoch, Fid, VNODE_BITS, VolumeId};

/// An object by the number that programs see ([`Fid::inode_number`]): volume and vnode. Two objects that had a vnode
/// number at different times share one, which costs at most a break too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectId(pub u64);

impl ObjectId {
    /// The volume that it is in.
    pub fn volume(self) -> VolumeId {
        VolumeId((self.0 >> VNODE_BITS) as u32 + 1)
    }
}

impl From<Fid> for ObjectId {
    fn from(fid: Fid) -> ObjectId {
        ObjectId(fid.inode_number())
    }
}

/// Names one lease of a client at a server process. Once it has lapsed no renewal revives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LeaseId(pub u64);

/// Asks for a lease, or to prolong one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renew {
    /// The server process that the client takes its peer for.
    pub epoch: Epoch,
    /// The lease to prolong; `None` asks for a new one, and gives up what an older one held.
    pub lease: Option<LeaseId>,
    /// All breaks up to this serial are applied. Without a lease: how often this life of the client has asked for one,
    /// counted from 1, so that a request that comes late or twice does not end the lease of a later one (0: it does).
    pub acked: u64,
}

/// The answer to a [`Renew`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Renewed {
    /// The lease runs for the agreed term, counted from before the request was sent.
    Granted {
        /// The lease.
        lease: LeaseId,
    },
    /// There are breaks that must be acknowledged first; the lease runs on as it did.
    BreaksFirst(Vec<Break>),
    /// The lease is over, and every callback under it void.
    Lapsed,
}

/// The callback on an object is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Break {
    /// Counts the breaks under one lease, from 1.
    pub serial: u64,
    /// The object.
    pub object: ObjectId,
}

/// The answer to `breaks`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Breaks {
    /// Everything that is not acknowledged yet, in the order of serials. Empty when the request had waited for long.
    Outstanding(Vec<Break>),
    /// As [`Renewed::Lapsed`].
    Lapsed,
}

/// On which of the objects that an answer shows the client holds a callback now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grants {
    /// The lease that they count under; `None` if the client has none that is running, and so no callbacks.
    pub lease: Option<LeaseId>,
    /// Objects without a callback: they are being changed, or were while the answer was worked out.
    pub withheld: Vec<ObjectId>,
}

impl Grants {
    /// Whether there is a callback on an object that the answer shows, for a client that holds this lease.
    pub fn include(&self, lease: LeaseId, object: ObjectId) -> bool {
        self.lease == Some(lease) && !self.withheld.contains(&object)
    }
}

/// The answer to a promised query.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promised {
    /// The answer.
    pub reply: QueryReply,
    /// What is promised with it.
    pub grants: Grants,
}
