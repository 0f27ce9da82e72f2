//! How a volume gets from one server to another while programs use it.
//!
//! The server that is to have it (the *destination*) asks the one that has it (the *source*) for all rows and contents, then
//! again and again for what has changed since, until little is left; then has it give up its callbacks and freeze, fetches the
//! rest, and enters itself in the cell's directory, by which the volume is moved. Requests name the number that
//! [`TransferReply::Begun`] gave: whoever begins anew, at either end, has another one, and the old one is refused.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::admin::AdminError;
use crate::cell::ServerId;
use crate::ids::{Epoch, VolumeId};
use crate::payload::Payload;

/// Something that the destination asks the source for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TransferRequest {
    /// Begins to note what changes.
    Begin {
        /// The volume.
        volume: VolumeId,
        /// Names the move ([`Moving`](crate::cell::Moving)).
        token: u64,
    },
    /// Rows of a table.
    Rows {
        /// The number.
        number: u64,
        /// The table, as the store's format numbers them.
        table: u8,
        /// Those behind this key, or from the first on.
        after: Option<Bytes>,
    },
    /// A piece of a content file.
    Content {
        /// The number.
        number: u64,
        /// Which.
        content: ContentName,
        /// From where on.
        offset: u64,
        /// Up to where; less may come.
        end: u64,
    },
    /// Some of what has changed since this was asked before.
    Changes {
        /// The number.
        number: u64,
    },
    /// To make ready for being frozen: nobody has callbacks on the volume any more when this is answered, and little is
    /// left to be written to disk.
    Prepare {
        /// The number.
        number: u64,
    },
    /// To serve the volume no more, until it is moved, or [`Thaw`](TransferRequest::Thaw), or too much time has gone.
    Freeze {
        /// The number.
        number: u64,
    },
    /// To go on serving it: the destination cannot take it now.
    Thaw {
        /// The number.
        number: u64,
    },
    /// The volume is moved, says the directory, and the source can remove what it has.
    Moved {
        /// The volume.
        volume: VolumeId,
    },
}

/// Names a content file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ContentName {
    /// The vnode.
    pub vnode: u64,
    /// The version.
    pub version: u64,
}

/// A row as it is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowNow {
    /// The table.
    pub table: u8,
    /// The key.
    pub key: Bytes,
    /// The value, if there is such a row.
    pub value: Option<Payload>,
}

/// What has changed of a content file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContentChange {
    /// Which.
    pub content: ContentName,
    /// Ranges, as offsets; one without an end goes as far as the file.
    pub ranges: Vec<(u64, Option<u64>)>,
}

/// The answer, of the variant that belongs to the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TransferReply {
    /// To [`TransferRequest::Begin`].
    Begun {
        /// For the requests that follow.
        number: u64,
        /// The format of the rows.
        format: u32,
        /// Bytes that the volume's files occupy.
        bytes: u64,
        /// The source's lives whose acknowledged changes are in what it sends, also if they are not durable there.
        lives: Vec<Epoch>,
    },
    /// To [`TransferRequest::Rows`].
    Rows {
        /// In the order of their keys.
        rows: Vec<RowNow>,
        /// Whether there are no more behind them.
        end: bool,
    },
    /// To [`TransferRequest::Content`], if there is such a content file.
    Content(Option<ContentPiece>),
    /// To [`TransferRequest::Changes`].
    Changes {
        /// Rows.
        rows: Vec<RowNow>,
        /// Content files; they come behind all rows.
        contents: Vec<ContentChange>,
        /// How much has changed that is not told yet: rows and parts of files.
        left: u64,
        /// Whether that was all for now.
        end: bool,
    },
    /// To all that have nothing to say but that it is done.
    Done,
}

/// A piece of a content file. What is between its data is a hole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContentPiece {
    /// Offsets, and the bytes there.
    pub data: Vec<(u64, Payload)>,
    /// How far it goes.
    pub end: u64,
    /// The size of the whole file.
    pub size: u64,
    /// Whether the file has changed since [`TransferRequest::Begin`].
    pub has_changed: bool,
}

/// What a move is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MovePhase {
    /// Everything is copied, while programs go on.
    Copying,
    /// What has changed meanwhile is copied, while programs go on.
    CatchingUp,
    /// Clients give up their callbacks.
    Preparing,
    /// Programs wait while the rest is copied.
    Switching,
    /// It is over.
    Ended,
}

/// How far a move is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveStatus {
    /// The volume.
    pub volume: VolumeId,
    /// Where it is to be.
    pub to: ServerId,
    /// What it is at.
    pub phase: MovePhase,
    /// Bytes that were copied.
    pub copied: u64,
    /// About how many there are.
    pub total: u64,
    /// For how many milliseconds nobody served the volume.
    pub frozen_for: Option<u64>,
    /// Why it does not get on just now; it is tried again.
    pub problem: Option<String>,
    /// How it ended.
    pub result: Option<Result<(), AdminError>>,
}
