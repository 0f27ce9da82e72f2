//! Requests about volumes.

use serde::{Deserialize, Serialize};

use crate::attr::Attr;
use crate::ids::VolumeId;

/// Something to ask about volumes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumeRequest {
    /// Where to begin in the volume of this name.
    Attach {
        /// The volume's name; `root` is the one every server starts with.
        name: String,
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
}
