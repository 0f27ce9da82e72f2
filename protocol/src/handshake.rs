//! `hello`: the first request on every connection.
//!
//! It agrees on a protocol version, makes the client known, and fences what an older life of the client or of this
//! channel left behind: when it returns, no request that was sent on an older generation of the channel will be
//! applied any more. See `docs/protocol.md`, "Connections".

use std::ops::RangeInclusive;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cell::ServerId;
use crate::ids::{ClientId, Epoch};

/// The oldest protocol version this build speaks.
pub const MIN_VERSION: u32 = 4;
/// The newest protocol version this build speaks.
pub const MAX_VERSION: u32 = 4;

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
    /// Whether its changes are to be answered at once, before other clients have acknowledged that they give up what
    /// they cached. What these show is then old for up to a lease's term.
    pub prompt: bool,
    /// Name and version of the client's software, for logs.
    pub software: String,
}

/// The server's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The protocol version both will speak.
    pub version: u32,
    /// Who the server is.
    pub server: ServerId,
    /// The server process's life.
    pub epoch: Epoch,
    /// Name and version of the server's software.
    pub software: String,
    /// Whether what is acknowledged is durable: it survives a power cut. If not, `sync` makes it so.
    pub durable: bool,
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
///
/// The two clocks may drift apart by the margin within a term: the server waits for `term + margin` from when a renewal
/// came in, the client counts `term - margin` from before it sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseTerms {
    /// How long a lease runs that is not renewed. No callback counts without it.
    pub term: Duration,
    /// What either side allows for the other's clock.
    pub margin: Duration,
}

impl LeaseTerms {
    /// The shortest and the longest term that a server may be given.
    pub const RANGE: RangeInclusive<Duration> = Duration::from_millis(500)..=Duration::from_secs(3600);

    /// With a margin that is a twentieth of the term.
    pub fn new(term: Duration) -> LeaseTerms {
        LeaseTerms { term, margin: term / 20 }
    }

    /// How long the server keeps a promise after a renewal came in.
    pub fn kept(&self) -> Duration {
        self.term + self.margin
    }

    /// How long a client counts on a promise after it asked for the renewal.
    pub fn counted(&self) -> Duration {
        self.term.saturating_sub(self.margin)
    }
}

impl Default for LeaseTerms {
    fn default() -> LeaseTerms {
        LeaseTerms::new(Duration::from_secs(10))
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
