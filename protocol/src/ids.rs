//! Identities: volumes, file handles, clients, operations, epochs.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Bits of an inode number that hold the vnode number; the bits above hold the volume's index.
pub const VNODE_BITS: u32 = 40;

/// The largest vnode number a volume may give out.
pub const MAX_VNODE: u64 = (1 << VNODE_BITS) - 1;

/// The largest volume id. Of the 24 upper bits of an inode number the first two are 0: what begins with another is a number
/// that a client gives for purposes of its own.
pub const MAX_VOLUME: u32 = (1 << 22) - 1;

/// A volume's number, unique in its cell for ever. The volume `root` is 1; 0 is never given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VolumeId(pub u32);

impl VolumeId {
    /// The volume that every cell starts with.
    pub const ROOT: VolumeId = VolumeId(1);
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A file handle. Opaque to clients, which compare, store and send it back, nothing else.
///
/// `vnode` is the inode number inside the volume and is not reused. `generation` is the volume's incarnation when
/// the vnode was made: a volume put back to an older copy may give a vnode number out a second time, but never with
/// the same generation, so a handle names one file for ever. A handle whose file is gone is `Stale`
/// (RFC 1813 section 2.5 calls it `NFS3ERR_STALE`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Fid {
    /// The volume.
    pub volume: VolumeId,
    /// The inode number in the volume.
    pub vnode: u64,
    /// The volume's incarnation when the vnode was created.
    pub generation: u64,
}

impl Fid {
    /// The number programs see as `st_ino`: the volume's index above [`VNODE_BITS`], the vnode below. Unique over
    /// all volumes of a mount. The root of the volume `root` gets 1.
    pub fn inode_number(&self) -> u64 {
        (u64::from(self.volume.0.wrapping_sub(1) & MAX_VOLUME) << VNODE_BITS) | (self.vnode & MAX_VNODE)
    }
}

impl fmt::Display for Fid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.volume.0, self.vnode, self.generation)
    }
}

impl fmt::Debug for Fid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fid({self})")
    }
}

/// The vnode number of every volume's root directory.
pub const ROOT_VNODE: u64 = 1;

/// A client's durable identity: random, 128 bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClientId(pub u128);

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientId({self})")
    }
}

/// Names one mutation, so that a retry of it is recognised: the client, its life, and a place in one of its slots.
///
/// Slots are per (client, volume). A client has at most one operation outstanding in a slot and counts `seq` up from
/// 1 with each new one; see `docs/protocol.md`, "Exactly once".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OpId {
    /// Who asks.
    pub client: ClientId,
    /// Which life of the client.
    pub incarnation: u64,
    /// The slot, below the number agreed in `hello`.
    pub slot: u32,
    /// The operation's number in its slot, from 1.
    pub seq: u64,
}

/// A server process's life: random, new at each start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch(pub u64);

/// Changes whenever uncommitted writes may have been lost (RFC 1813 section 3.3.7, `writeverf3`).
///
/// A client that gets another verifier from `commit` than from its writes sends those writes again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Verifier {
    /// The server's epoch.
    pub epoch: Epoch,
    /// The volume's incarnation, and how often trust in the page cache ended in this epoch.
    pub volume: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_of_the_root_volume_is_inode_one() {
        let root = Fid { volume: VolumeId::ROOT, vnode: ROOT_VNODE, generation: 7 };
        assert_eq!(root.inode_number(), 1);
    }

    #[test]
    fn inode_numbers_keep_volumes_apart() {
        let a = Fid { volume: VolumeId(2), vnode: 5, generation: 1 };
        let b = Fid { volume: VolumeId(3), vnode: 5, generation: 1 };
        assert_ne!(a.inode_number(), b.inode_number());
        assert_eq!(a.inode_number() & MAX_VNODE, 5);
    }
}
