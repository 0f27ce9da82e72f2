//! What can go wrong below the operations: in the metadata engine or in the content files.

use std::io;

use larder_protocol::error::ErrorCode;

/// A failure of the store itself, as opposed to an operation's ordinary "no".
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk under the store is full.
    #[error("the disk under the store is full")]
    Full,
    /// Something stored does not match its checksum, or does not make sense.
    #[error("damaged: {0}")]
    Corrupt(String),
    /// The operating system could not read or write.
    #[error("input/output error: {0}")]
    Io(#[from] io::Error),
    /// The metadata engine failed.
    #[error("metadata engine: {0}")]
    Engine(String),
}

impl StoreError {
    /// What a client is told. The caller has logged the error: clients learn less than the log.
    pub fn code(&self) -> ErrorCode {
        match self {
            StoreError::Full => ErrorCode::NoSpace,
            StoreError::Io(error) => io_code(error),
            StoreError::Corrupt(_) | StoreError::Engine(_) => ErrorCode::Io,
        }
    }
}

/// The wire error for a failure of a content file's system call.
pub fn io_code(error: &io::Error) -> ErrorCode {
    match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
        Some(rustix::io::Errno::NOSPC) => ErrorCode::NoSpace,
        Some(rustix::io::Errno::DQUOT) => ErrorCode::QuotaExceeded,
        Some(rustix::io::Errno::FBIG) => ErrorCode::FileTooLarge,
        Some(rustix::io::Errno::OPNOTSUPP) => ErrorCode::NotSupported,
        _ => ErrorCode::Io,
    }
}

impl From<StoreError> for ErrorCode {
    fn from(error: StoreError) -> ErrorCode {
        let code = error.code();
        if code != ErrorCode::NoSpace {
            tracing::error!("store: {error}");
        }
        code
    }
}

/// Result of a store's inner operation.
pub type StoreResult<T> = Result<T, StoreError>;
