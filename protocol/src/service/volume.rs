//! Requests about volumes.

use serde::{Deserialize, Serialize};

use super::admin::VolumeKey;
use crate::attr::Attr;
use crate::cell::ServerId;
use crate::ids::VolumeId;

/// Something to ask about volumes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumeRequest {
    /// Where to begin in the volume of this name.
    Attach {
        /// The volume's name; `root` is the one every cell starts with.
        name: String,
    },
    /// Where a volume is. Any server answers.
    Locate {
        /// The volume.
        volume: VolumeKey,
        /// A server that says that it has it not, though another answer said so: what is known may be old (L4 of the
        /// server's `location`).
        not_at: Option<ServerId>,
    },
}

/// The answer to a [`VolumeRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumeReply {
    /// To [`VolumeRequest::Attach`].
    Attached {
        /// The volume.
        volume: VolumeId,
        /// Its root directory.
        root: Attr,
    },
    /// To [`VolumeRequest::Locate`].
    Located {
        /// The volume.
        volume: VolumeId,
        /// The server that has it.
        server: ServerId,
        /// Where that is: `HOST:PORT`.
        address: String,
    },
}
