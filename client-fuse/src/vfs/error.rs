//! What an operation can fail with, and its errno.

use larder_protocol::error::ErrorCode;

use crate::rpc::{Cause, Failure};

/// Why an operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The server said no, or this client knows that it would.
    #[error("{0}")]
    Refused(ErrorCode),
    /// A `soft` mount got no answer in its time. `executed` says whether the request may have been carried out.
    #[error("no answer from the server in time")]
    TimedOut {
        /// Whether the request left this machine.
        executed: bool,
    },
    /// The mount is being taken down.
    #[error("the mount is shutting down")]
    Aborted,
    /// There is no such handle, or it was not opened for this.
    #[error("bad file handle")]
    BadHandle,
}

impl Error {
    /// Whether the server has no room for it, or is to give it no more.
    pub(super) fn is_full(self) -> bool {
        matches!(self, Error::Refused(ErrorCode::NoSpace | ErrorCode::QuotaExceeded))
    }

    /// The errno value that programs see.
    pub fn errno(self) -> i32 {
        use rustix::io::Errno;
        match self {
            Error::Refused(code) => code.errno(),
            Error::TimedOut { .. } => Errno::TIMEDOUT.raw_os_error(),
            Error::Aborted => Errno::IO.raw_os_error(),
            Error::BadHandle => Errno::BADF.raw_os_error(),
        }
    }
}

impl From<ErrorCode> for Error {
    fn from(code: ErrorCode) -> Error {
        Error::Refused(code)
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Error {
        match failure {
            Failure::Refused(code) => Error::Refused(code),
            Failure::NotSent(Cause::TimedOut) => Error::TimedOut { executed: false },
            Failure::MaybeExecuted(Cause::TimedOut) => Error::TimedOut { executed: true },
            Failure::NotSent(Cause::Aborted) | Failure::MaybeExecuted(Cause::Aborted) => Error::Aborted,
        }
    }
}

/// Why a volume could not be attached. The texts are for users.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// No connection, or none that answered.
    #[error(
        "cannot reach the server at {server}: {cause}; check that larderd runs there and that the address is right"
    )]
    Unreachable {
        /// The server's address as given.
        server: String,
        /// What went wrong.
        cause: String,
    },
    /// The server turned the client away.
    #[error("the server at {server} refuses this client: {cause}")]
    Refused {
        /// The server's address as given.
        server: String,
        /// Why.
        cause: String,
    },
    /// AFS mode without a place for its cache.
    #[error("afs mode needs a directory for its cache")]
    NoCache,
    /// The disk cache cannot be used.
    #[error("{0}")]
    Cache(String),
    /// There is no such volume.
    #[error("the server at {server} has no volume \"{volume}\"; check the part after the last / of the address")]
    NoSuchVolume {
        /// The server's address as given.
        server: String,
        /// The volume asked for.
        volume: String,
    },
    /// The server has the volume and does not give it.
    #[error("cannot attach volume \"{volume}\" of {server}: {cause}")]
    Failed {
        /// The server's address as given.
        server: String,
        /// The volume asked for.
        volume: String,
        /// Why.
        cause: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_and_aborts_have_errnos_of_their_own() {
        assert_eq!(Error::from(Failure::NotSent(Cause::TimedOut)), Error::TimedOut { executed: false });
        assert_eq!(Error::from(Failure::MaybeExecuted(Cause::TimedOut)).errno(), 110);
        assert_eq!(Error::from(Failure::NotSent(Cause::Aborted)).errno(), 5);
        assert_eq!(Error::from(Failure::Refused(ErrorCode::Stale)).errno(), 116);
        assert_eq!(Error::BadHandle.errno(), 9);
    }
}
