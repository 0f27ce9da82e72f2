//! Requests of who administers a cell.
//!
//! What concerns one volume goes to the server that has it; the rest to any. Each names what it wants in full and can be
//! repeated: a volume that is offline already is taken offline with success.

use serde::{Deserialize, Serialize};

use crate::cell::{MountedAt, Quota, ServerId, ServerRecord, VolumeRecord};
use crate::error::ErrorCode;
use crate::ids::VolumeId;
use crate::service::transfer::MoveStatus;

/// How a person names a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumeKey {
    /// By its number.
    Id(VolumeId),
    /// By its name.
    Name(String),
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AdminRequest {
    /// Which volume is meant, and where it is. Deleted ones are found by number alone, or by name if no other volume has
    /// that now.
    Find {
        /// The volume.
        volume: VolumeKey,
    },
    /// The volumes of the cell in the order of their numbers, as many as go into one answer.
    List {
        /// Those behind this one, or all from the first on.
        after: Option<VolumeId>,
    },
    /// All servers of the cell that are there.
    Servers,
    /// What this server has and does.
    Status,
    /// Makes a volume at this server.
    Create {
        /// Its name.
        name: String,
        /// How much it may hold.
        quota: Quota,
    },
    /// What a volume of this server holds.
    Show {
        /// The volume.
        volume: VolumeId,
    },
    /// Calls a volume otherwise.
    Rename {
        /// The volume.
        volume: VolumeId,
        /// Its name from now on.
        name: String,
    },
    /// Takes a volume away, to be brought back for seven days.
    Delete {
        /// The volume.
        volume: VolumeId,
    },
    /// Brings a volume back that was deleted.
    Restore {
        /// The volume.
        volume: VolumeId,
        /// Its name from now on, if it is not to be the one it had.
        name: Option<String>,
    },
    /// Sets how much a volume may hold.
    SetQuota {
        /// The volume.
        volume: VolumeId,
        /// That much.
        quota: Quota,
    },
    /// Says where in the tree a volume appears. Any server does it.
    SetMounted {
        /// The volume.
        volume: VolumeId,
        /// Where it must appear now.
        from: Option<MountedAt>,
        /// Where it appears from now on.
        to: Option<MountedAt>,
    },
    /// Lets programs use a volume, or keeps them from it.
    SetOnline {
        /// The volume.
        volume: VolumeId,
        /// Whether they may.
        online: bool,
    },
    /// Has this server fetch a volume from the one that has it, or goes on with that; it goes on when who asked is gone.
    Move {
        /// The volume.
        volume: VolumeId,
        /// Bytes in a second that it may take, but for the last ones.
        limit: Option<u64>,
    },
    /// How far the move of a volume to this server is.
    MoveStatus {
        /// The volume.
        volume: VolumeId,
    },
    /// Gives up the move of a volume of this server. Where it was to go forgets what it has of it.
    AbortMove {
        /// The volume.
        volume: VolumeId,
    },
}

/// The answer, of the variant that belongs to the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AdminReply {
    /// To [`AdminRequest::Find`], and to all that change a volume: as it is now.
    Volume(Place),
    /// To [`AdminRequest::List`].
    Volumes {
        /// At most [`MAX_LISTED`](crate::limits::MAX_LISTED).
        volumes: Vec<Place>,
        /// Whether there are no more.
        end: bool,
    },
    /// To [`AdminRequest::Servers`].
    Servers(Vec<ServerRecord>),
    /// To [`AdminRequest::Status`].
    Status(ServerStatus),
    /// To [`AdminRequest::Show`].
    Shown {
        /// Where it is.
        place: Place,
        /// What it holds.
        usage: VolumeUsage,
    },
    /// To [`AdminRequest::Move`] and [`AdminRequest::MoveStatus`].
    Moving(MoveStatus),
}

/// A volume, and where it is to be reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Its record.
    pub volume: VolumeRecord,
    /// Its server's address, if that server is there.
    pub address: Option<String>,
}

/// What a volume holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeUsage {
    /// How much it may hold.
    pub quota: Quota,
    /// Bytes that its files occupy, in units of 512, files without a name included.
    pub bytes: u64,
    /// Files, directories and all else that has a number.
    pub files: u64,
    /// Seconds since 1970 when it was made.
    pub created: i64,
    /// Its directory at the server.
    pub path: String,
}

/// What a server has and does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerStatus {
    /// Who it is.
    pub id: ServerId,
    /// Volumes that it has.
    pub volumes: u64,
    /// Those of them that are open.
    pub open: u64,
    /// Clients that are connected.
    pub clients: u64,
    /// Requests answered since it was started.
    pub requests: u64,
    /// Seconds since it was started.
    pub uptime: u64,
    /// Bytes of its disk.
    pub total: u64,
    /// Bytes of that which are free.
    pub free: u64,
    /// Processes that wanted to run in the last minute, on average, in thousandths (proc_loadavg(5)).
    pub load: u32,
    /// Where the location service is.
    pub location: String,
}

/// Why something is not done, for a person to read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{text}")]
pub struct AdminError {
    /// What kind of reason it is.
    pub code: ErrorCode,
    /// The thing, the cause, and what to do.
    pub text: String,
}
