//! Why a cache directory could not be used.

use std::io;
use std::path::{Path, PathBuf};

/// Why a cache directory could not be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Another mount has it.
    #[error(
        "the cache directory {} is in use by another mount: unmount that one, or give each mount a cache directory of \
         its own",
        dir.display()
    )]
    InUse {
        /// The cache directory.
        dir: PathBuf,
    },
    /// It could not be made or written to.
    #[error(
        "the cache directory {} cannot be used: {cause}; name a directory that this user may write to",
        dir.display()
    )]
    NotWritable {
        /// The cache directory.
        dir: PathBuf,
        /// What the system says.
        cause: io::Error,
    },
    /// It is somebody's directory.
    #[error(
        "the directory {} is not empty and no cache of Larder's: name one that is new, or empty",
        dir.display()
    )]
    NotACache {
        /// The directory.
        dir: PathBuf,
    },
    /// It holds files that another volume has not got yet.
    #[error(
        "the cache directory {} belongs to {found} and holds {dirty} file(s) that may not be stored there yet: mount \
         {found} with it once more so that they are stored (and remove its conflicts once you have what you need of \
         them), or name another cache directory; `dirty` and `conflicts` in it have the data",
        dir.display()
    )]
    OtherVolume {
        /// The cache directory.
        dir: PathBuf,
        /// The volume that it belongs to.
        found: String,
        /// How many dirty files and conflicts it holds.
        dirty: usize,
    },
    /// Something in it failed.
    #[error(
        "cannot {what} {}: {cause}; if that is not due to the disk, name another cache directory",
        path.display()
    )]
    Io {
        /// What was being done.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system says.
        cause: io::Error,
    },
}

impl CacheError {
    /// For `map_err`: `what` failed on `path`.
    pub(super) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CacheError {
        move |cause| CacheError::Io { what, path: path.to_owned(), cause }
    }
}
