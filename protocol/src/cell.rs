//! A cell: servers whose volumes form one tree, and what they know of each other.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::attr::Timestamp;
use crate::ids::{Epoch, VolumeId};

/// A server's durable identity: random, made with its store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ServerId(pub u64);

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServerId({self})")
    }
}

impl From<ServerId> for String {
    fn from(id: ServerId) -> String {
        id.to_string()
    }
}

/// A server's id is 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a server's id has 16 hexadecimal digits")]
pub struct NoServerId;

impl std::str::FromStr for ServerId {
    type Err = NoServerId;

    fn from_str(text: &str) -> Result<ServerId, NoServerId> {
        let is_hex = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_hex {
            return Err(NoServerId);
        }
        u64::from_str_radix(text, 16).map(ServerId).map_err(|_| NoServerId)
    }
}

impl TryFrom<String> for ServerId {
    type Error = NoServerId;

    fn try_from(text: String) -> Result<ServerId, NoServerId> {
        text.parse()
    }
}

/// A server of the cell, as it announces itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerRecord {
    /// Who it is.
    pub id: ServerId,
    /// Where clients and other servers reach it: `HOST:PORT`.
    pub address: String,
    /// Name and version of its software.
    pub software: String,
    /// Its process's life.
    pub epoch: Epoch,
}

/// What may be done with a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeState {
    /// Everything.
    Online,
    /// Nothing: an administrator has taken it away for a while.
    Offline,
    /// Nothing but to bring it back, for [`DELETED_KEPT`](crate::limits::DELETED_KEPT).
    Deleted {
        /// Since when.
        since: Timestamp,
    },
}

/// Where a volume is: the location service's record of it, and the only truth about who serves it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// Its number.
    pub id: VolumeId,
    /// Its name, which no other volume has that is not deleted.
    pub name: String,
    /// The server that has it.
    pub server: ServerId,
    /// What may be done with it.
    pub state: VolumeState,
    /// The directory in whose tree it appears, if it has a mount point.
    #[serde(default)]
    pub mounted: Option<MountedAt>,
    /// The move to another server that is under way.
    #[serde(default)]
    pub moving: Option<Moving>,
}

/// A volume's move. Until it is over the server in the record has the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moving {
    /// The server that is to have it.
    pub to: ServerId,
    /// Names this move, so that none is taken for another one: random.
    pub token: u64,
    /// Whether nobody serves it just now, while the last changes are copied.
    #[serde(default)]
    pub frozen: bool,
}

/// A mount point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountedAt {
    /// The volume that it is in.
    pub volume: VolumeId,
    /// Its vnode there.
    pub vnode: u64,
}

/// How much a volume may hold; `None` is as much as its server has room for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// Bytes that its files occupy, in units of 512.
    pub bytes: Option<u64>,
    /// Files, directories and all else that has a number.
    pub files: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_known_by_sixteen_digits() {
        let id = ServerId(0xab);
        assert_eq!(id.to_string(), "00000000000000ab");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(serde_json::to_string(&id).unwrap(), "\"00000000000000ab\"");
        for bad in ["", "ab", "+0000000000000ab", "00000000000000abc", "00000000000000xy"] {
            assert_eq!(bad.parse::<ServerId>(), Err(NoServerId), "{bad}");
        }
    }
}
