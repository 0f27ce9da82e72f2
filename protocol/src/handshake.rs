//! `hello`: the first request on every connection.
//!
//! It agrees on a protocol version, makes the client known, and fences what an older life of the client or of this
//! channel left behind: when it returns, no request that was sent on an older generation of the channel will be
//! applied any more. See `docs/protocol.md`, "Connections".

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::{ClientId, Epoch};

/// The oldest protocol version this build speaks.
pub const MIN_VERSION: u32 = 1;
/// The newest protocol version this build speaks.
pub const MAX_VERSION: u32 = 1;

/// What a client says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Oldest protocol version the client speaks.
    pub min_version: u32,
    /// Newest protocol version the client speaks.
    pub max_version: u32,
    /// The client.
    pub client: ClientId,
    /// Its life: a higher one ends all lower ones.
    pub incarnation: u64,
    /// Which of the client's connections this is: 0 carries small requests, the others carry data.
    pub channel: u32,
    /// How often the client has opened this channel: a higher one fences all lower ones.
    pub generation: u64,
    /// Name and version of the client's software, for logs.
    pub software: String,
}

/// The server's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The protocol version both will speak.
    pub version: u32,
    /// The server process's life.
    pub epoch: Epoch,
    /// Name and version of the server's software.
    pub software: String,
    /// Replay slots the client may use in each volume.
    pub slots: u32,
    /// Bytes that one read may ask for.
    pub max_read: u32,
    /// Bytes that one write may carry.
    pub max_write: u32,
    /// How long promises of this server last.
    pub lease: LeaseTerms,
}

/// The length of a server's promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseTerms {
    /// The short lease over a volume, without which no callback in it counts.
    pub volume: Duration,
    /// A callback on one object.
    pub object: Duration,
}

impl Default for LeaseTerms {
    fn default() -> LeaseTerms {
        LeaseTerms { volume: Duration::from_secs(10), object: Duration::from_secs(3600) }
    }
}

/// Why a server turns a client away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// No version in common.
    #[error("the server speaks protocol versions {min} to {max}; upgrade the older side")]
    Version {
        /// Oldest version the server speaks.
        min: u32,
        /// Newest version the server speaks.
        max: u32,
    },
    /// A newer incarnation, or generation of the channel, was here before.
    #[error("a newer life of this client is already connected")]
    Fenced,
    /// An argument is out of its limits.
    #[error("the hello is malformed: {0}")]
    Malformed(String),
    /// The server is ending.
    #[error("the server is shutting down")]
    Unavailable,
}

/// Picks the newest version that both ranges hold.
///
/// # Errors
/// `Refusal::Version` with this build's range if there is none.
pub fn agree(min: u32, max: u32) -> Result<u32, Refusal> {
    let version = max.min(MAX_VERSION);
    if min <= max && version >= min.max(MIN_VERSION) {
        Ok(version)
    } else {
        Err(Refusal::Version { min: MIN_VERSION, max: MAX_VERSION })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_meet_or_are_refused() {
        assert_eq!(agree(MIN_VERSION, MAX_VERSION), Ok(MAX_VERSION));
        assert_eq!(agree(0, MAX_VERSION + 9), Ok(MAX_VERSION));
        for (min, max) in [(MAX_VERSION + 1, MAX_VERSION + 2), (0, 0), (2, 1)] {
            assert!(matches!(agree(min, max), Err(Refusal::Version { .. })), "{min}..{max}");
        }
    }
}
