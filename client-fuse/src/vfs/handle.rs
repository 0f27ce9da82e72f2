//! Open files and directories.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use larder_protocol::attr::Credential;
use larder_protocol::service::file::DirEntry;
use parking_lot::Mutex;

use super::Error;
use super::file_state::FileState;
use super::local::copy::LocalCopy;
use super::node::Node;
use crate::core::attr_cache::Stamp;
use crate::mode::OpenPlan;

/// An open file.
pub(super) struct FileHandle {
    /// The file.
    pub node: Arc<Node>,
    /// Its data.
    pub file: Arc<FileState>,
    /// The copy on this machine's disk that it reads and writes, in AFS mode.
    pub copy: Option<Arc<LocalCopy>>,
    /// Who opened it.
    pub cred: Arc<Credential>,
    /// How.
    pub plan: OpenPlan,
    /// Whether it may be read.
    pub readable: bool,
    /// Whether it may be written.
    pub writable: bool,
    /// How many of the file's failures it has reported, or need not.
    pub seen_failures: AtomicU64,
    /// What its first request says of the kernel's pages ([`Pages::dropped`](crate::core::page_cache::Pages::dropped)),
    /// plus one; 0 if that is said or there is nothing to say.
    pub dropping: AtomicU64,
}

/// An open directory.
pub(super) struct DirHandle {
    /// The directory.
    pub node: Arc<Node>,
    /// Who opened it.
    pub cred: Arc<Credential>,
    /// The part of the listing read last.
    pub listing: Mutex<Option<Arc<Listing>>>,
}

/// A part of a directory's entries.
pub(super) struct Listing {
    /// The cookie that they come behind.
    pub after: u64,
    /// The entries.
    pub entries: Vec<DirEntry>,
    /// Whether there are no more behind them.
    pub end: bool,
    /// When they were asked for.
    pub sent: Stamp,
    /// The directory's `change` that they belong to.
    pub change: u64,
    /// Whether they have attributes.
    pub plus: bool,
}

#[derive(Clone)]
enum Handle {
    File(Arc<FileHandle>),
    Dir(Arc<DirHandle>),
}

/// All open files and directories.
#[derive(Default)]
pub(super) struct HandleTable {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    last: u64,
    map: HashMap<u64, Handle>,
}

impl HandleTable {
    fn add(&self, handle: Handle) -> u64 {
        let mut inner = self.inner.lock();
        inner.last += 1;
        let number = inner.last;
        inner.map.insert(number, handle);
        number
    }

    /// Adds a file.
    pub(super) fn add_file(&self, handle: FileHandle) -> u64 {
        self.add(Handle::File(Arc::new(handle)))
    }

    /// Adds a directory.
    pub(super) fn add_dir(&self, handle: DirHandle) -> u64 {
        self.add(Handle::Dir(Arc::new(handle)))
    }

    /// The open file of this number.
    ///
    /// # Errors
    /// `BadHandle` if there is none.
    pub(super) fn file(&self, number: u64) -> Result<Arc<FileHandle>, Error> {
        match self.inner.lock().map.get(&number) {
            Some(Handle::File(handle)) => Ok(handle.clone()),
            _ => Err(Error::BadHandle),
        }
    }

    /// The open directory of this number.
    ///
    /// # Errors
    /// `BadHandle` if there is none.
    pub(super) fn dir(&self, number: u64) -> Result<Arc<DirHandle>, Error> {
        match self.inner.lock().map.get(&number) {
            Some(Handle::Dir(handle)) => Ok(handle.clone()),
            _ => Err(Error::BadHandle),
        }
    }

    /// Removes an open file.
    pub(super) fn remove_file(&self, number: u64) -> Option<Arc<FileHandle>> {
        let mut inner = self.inner.lock();
        match inner.map.get(&number) {
            Some(Handle::File(handle)) => {
                let handle = handle.clone();
                inner.map.remove(&number);
                Some(handle)
            }
            _ => None,
        }
    }

    /// Removes an open directory.
    pub(super) fn remove_dir(&self, number: u64) {
        let mut inner = self.inner.lock();
        if matches!(inner.map.get(&number), Some(Handle::Dir(_))) {
            inner.map.remove(&number);
        }
    }

    /// How many are open.
    pub(super) fn len(&self) -> usize {
        self.inner.lock().map.len()
    }
}
