//! Errors on the wire, and the one table that turns them into errno values.

use serde::{Deserialize, Serialize};

/// Why a server said no. The order is the encoding: add at the end, remove none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
pub enum ErrorCode {
    /// No such name.
    #[error("no such file or directory")]
    NotFound,
    /// The name is taken.
    #[error("the name exists already")]
    Exists,
    /// A directory is needed.
    #[error("not a directory")]
    NotDirectory,
    /// Not possible with a directory.
    #[error("is a directory")]
    IsDirectory,
    /// The directory has entries.
    #[error("the directory is not empty")]
    NotEmpty,
    /// The mode bits do not allow it.
    #[error("permission denied")]
    AccessDenied,
    /// Only the owner or the superuser may do it.
    #[error("operation not permitted")]
    NotPermitted,
    /// An argument is out of its range.
    #[error("invalid argument")]
    Invalid,
    /// A name or path is too long.
    #[error("the name is too long")]
    NameTooLong,
    /// Past the largest file.
    #[error("the file would be too large")]
    FileTooLarge,
    /// The store is full.
    #[error("no space left on the server")]
    NoSpace,
    /// The volume's quota is used up.
    #[error("the volume's quota is used up")]
    QuotaExceeded,
    /// The volume, or the mount, is read-only.
    #[error("read-only")]
    ReadOnly,
    /// Too many hard links.
    #[error("too many links")]
    TooManyLinks,
    /// Source and target are in different volumes.
    #[error("source and target are in different volumes")]
    CrossVolume,
    /// The file of this handle is gone.
    #[error("stale file handle")]
    Stale,
    /// The store could not read or write, or what it read does not match its checksum.
    #[error("input/output error in the server's store")]
    Io,
    /// The server, or this kind of file, does not do that.
    #[error("not supported")]
    NotSupported,
    /// No such extended attribute.
    #[error("no such extended attribute")]
    NoXattr,
    /// A result does not fit what the caller has room for.
    #[error("the result is too large")]
    Range,
    /// No data or hole at or after the offset (lseek(2), ENXIO).
    #[error("no data or hole beyond this offset")]
    NoSuchRange,
    /// The value or list is larger than the limit.
    #[error("too large")]
    TooBig,
    /// The operation id's `seq` lies behind what the slot has recorded.
    #[error("the operation's sequence number is out of order")]
    BadSequence,
    /// The server knows nothing of this client: no `hello` on this connection, or forgotten after long silence.
    #[error("the server does not know this client")]
    UnknownClient,
    /// A newer incarnation or channel generation of the client has taken over.
    #[error("a newer life of this client has taken over")]
    Fenced,
    /// The volume is not on this server.
    #[error("the volume is not on this server")]
    NoSuchVolume,
    /// No protocol version that both sides speak.
    #[error("client and server share no protocol version")]
    VersionMismatch,
    /// The server is ending or starting; try again.
    #[error("the server is not ready")]
    Unavailable,
    /// The target is busy, such as a volume's root directory.
    #[error("busy")]
    Busy,
    /// The server has a defect; its log says more.
    #[error("internal error of the server")]
    Internal,
    /// What was to be stored is not staged, or no longer: the server was restarted, or needed the room.
    #[error("the contents are not staged at the server")]
    NotStaged,
    /// The object is not in the state that the request was made for.
    #[error("the file was changed by another client")]
    Conflict,
    /// The volume is on another server.
    #[error("the volume is on another server")]
    Moved,
    /// The volume was taken away for a while.
    #[error("the volume is offline")]
    Offline,
    /// Nobody can tell where the volume is.
    #[error("the location service does not answer")]
    NoLocation,
}

impl ErrorCode {
    /// Every code, in the order of the encoding.
    pub const ALL: &'static [ErrorCode] = &[
        ErrorCode::NotFound,
        ErrorCode::Exists,
        ErrorCode::NotDirectory,
        ErrorCode::IsDirectory,
        ErrorCode::NotEmpty,
        ErrorCode::AccessDenied,
        ErrorCode::NotPermitted,
        ErrorCode::Invalid,
        ErrorCode::NameTooLong,
        ErrorCode::FileTooLarge,
        ErrorCode::NoSpace,
        ErrorCode::QuotaExceeded,
        ErrorCode::ReadOnly,
        ErrorCode::TooManyLinks,
        ErrorCode::CrossVolume,
        ErrorCode::Stale,
        ErrorCode::Io,
        ErrorCode::NotSupported,
        ErrorCode::NoXattr,
        ErrorCode::Range,
        ErrorCode::NoSuchRange,
        ErrorCode::TooBig,
        ErrorCode::BadSequence,
        ErrorCode::UnknownClient,
        ErrorCode::Fenced,
        ErrorCode::NoSuchVolume,
        ErrorCode::VersionMismatch,
        ErrorCode::Unavailable,
        ErrorCode::Busy,
        ErrorCode::Internal,
        ErrorCode::NotStaged,
        ErrorCode::Conflict,
        ErrorCode::Moved,
        ErrorCode::Offline,
        ErrorCode::NoLocation,
    ];

    /// The errno value that programs see (Linux, `asm-generic/errno.h`). The only such table in Larder.
    pub fn errno(self) -> i32 {
        use rustix::io::Errno;
        let errno = match self {
            ErrorCode::NotFound => Errno::NOENT,
            ErrorCode::Exists => Errno::EXIST,
            ErrorCode::NotDirectory => Errno::NOTDIR,
            ErrorCode::IsDirectory => Errno::ISDIR,
            ErrorCode::NotEmpty => Errno::NOTEMPTY,
            ErrorCode::AccessDenied => Errno::ACCESS,
            ErrorCode::NotPermitted => Errno::PERM,
            ErrorCode::Invalid => Errno::INVAL,
            ErrorCode::NameTooLong => Errno::NAMETOOLONG,
            ErrorCode::FileTooLarge => Errno::FBIG,
            ErrorCode::NoSpace => Errno::NOSPC,
            ErrorCode::QuotaExceeded => Errno::DQUOT,
            ErrorCode::ReadOnly => Errno::ROFS,
            ErrorCode::TooManyLinks => Errno::MLINK,
            ErrorCode::CrossVolume => Errno::XDEV,
            ErrorCode::Stale => Errno::STALE,
            ErrorCode::NotSupported => Errno::OPNOTSUPP,
            ErrorCode::NoXattr => Errno::NODATA,
            ErrorCode::Range => Errno::RANGE,
            ErrorCode::NoSuchRange => Errno::NXIO,
            ErrorCode::TooBig => Errno::TOOBIG,
            ErrorCode::Busy => Errno::BUSY,
            ErrorCode::NoSuchVolume => Errno::NODEV,
            ErrorCode::Offline => Errno::NOMEDIUM,
            ErrorCode::VersionMismatch => Errno::PROTO,
            ErrorCode::Io
            | ErrorCode::BadSequence
            | ErrorCode::UnknownClient
            | ErrorCode::Fenced
            | ErrorCode::Unavailable
            | ErrorCode::NotStaged
            | ErrorCode::Conflict
            | ErrorCode::Moved
            | ErrorCode::NoLocation
            | ErrorCode::Internal => Errno::IO,
        };
        errno.raw_os_error()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_encoding_of_each_code_is_its_place() {
        for (place, code) in ErrorCode::ALL.iter().enumerate() {
            let bytes = bincode::serialize(code).unwrap();
            assert_eq!(bytes, (place as u32).to_le_bytes(), "{code:?}");
        }
        let past = (ErrorCode::ALL.len() as u32).to_le_bytes();
        assert!(bincode::deserialize::<ErrorCode>(&past).is_err(), "ALL must list every code");
    }

    #[test]
    fn each_code_has_an_errno_and_a_text() {
        for code in ErrorCode::ALL {
            assert!(code.errno() > 0, "{code:?}");
            assert!(!code.to_string().is_empty());
        }
        assert_eq!(ErrorCode::Stale.errno(), 116);
        assert_eq!(ErrorCode::QuotaExceeded.errno(), 122);
        assert_eq!(ErrorCode::NotSupported.errno(), 95);
    }
}
