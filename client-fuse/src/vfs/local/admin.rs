//! Looking after the disk cache on behalf of people: what is in it, what is to stay in it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use larder_protocol::error::ErrorCode;
use larder_protocol::ids::Fid;
use larder_protocol::runtime::RuntimeExt;
use larder_protocol::service::callback::ObjectId;
use serde::{Deserialize, Serialize};

use crate::mode::afs::Afs;
use crate::mode::afs::disk::{DiskCache, Evicted, Listed, Usage, Verified};
use crate::vfs::{Error, Vfs};

/// What the cache is doing, for statistics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheStats {
    /// Clean copies.
    pub files: u64,
    /// Bytes of all files in the cache.
    pub bytes: u64,
    /// Bytes that they may have together.
    pub limit: u64,
    /// Files with data that the server has not.
    pub dirty_files: u64,
    /// Files that the server did not take.
    pub conflicts: u64,
    /// Pinned files.
    pub pinned: u64,
    /// Those of which there is no copy at the moment that may be used without asking.
    pub pins_missing: u64,
    /// Copies evicted.
    pub evicted: u64,
    /// Copies that were not as they had been made, and were dropped.
    pub damaged: u64,
    /// Whole files fetched.
    pub fetches: u64,
    /// Whole files stored.
    pub stores: u64,
    /// Opens that the kernel serves itself (passthrough).
    pub passthrough_opens: u64,
    /// Whether the kernel refused to.
    pub passthrough_refused: bool,
    /// Opens that were served without the cache, which had no room.
    pub uncached_opens: u64,
    /// Objects known beside those that the kernel knows.
    pub statuses: u64,
    /// Whether the kernel can expire all names at once; if not, it asks for each name each time.
    pub names_expire: bool,
    /// Milliseconds for which the lease still counts; of several the one that ends first.
    pub lease_ms: u64,
    /// Renewals of the lease.
    pub renewals: u64,
    /// Breaks received.
    pub breaks: u64,
    /// Times that everything promised became void.
    pub voids: u64,
}

impl Vfs {
    pub(in crate::vfs) fn cache_stats(&self, afs: &Afs) -> CacheStats {
        let usage: Usage = afs.disk.usage();
        let now = self.runtime.boottime();
        let (mut renewals, mut breaks, mut voids, mut left) = (0, 0, 0, None::<Duration>);
        for lease in afs.leases() {
            let promises = lease.promises.lock();
            let (of_renewals, of_breaks, of_voids) = promises.counters();
            (renewals, breaks, voids) = (renewals + of_renewals, breaks + of_breaks, voids + of_voids);
            let remaining = promises.remaining(now).unwrap_or_default();
            left = Some(left.map_or(remaining, |left| left.min(remaining)));
        }
        CacheStats {
            files: usage.files,
            bytes: usage.bytes + usage.dirty_bytes + usage.conflict_bytes,
            limit: usage.limit,
            dirty_files: usage.dirty_files,
            conflicts: usage.conflicts,
            pinned: usage.pinned,
            pins_missing: self.pinned_without_copy(afs).len() as u64,
            evicted: usage.evicted,
            damaged: usage.damaged,
            fetches: afs.fetches.load(Ordering::Relaxed),
            stores: afs.stores.load(Ordering::Relaxed),
            passthrough_opens: afs.passthrough_opens.load(Ordering::Relaxed),
            passthrough_refused: afs.no_passthrough.load(Ordering::Relaxed),
            uncached_opens: afs.uncached_opens.load(Ordering::Relaxed),
            statuses: afs.statuses.lock().len() as u64,
            names_expire: afs.names_expire.load(Ordering::Relaxed),
            lease_ms: left.unwrap_or_default().as_millis() as u64,
            renewals,
            breaks,
            voids,
        }
    }

    /// The handle of the object that programs see under this inode number.
    pub(super) fn fid_of(&self, inode: u64) -> Option<Fid> {
        let nodes = self.nodes.all_of(ObjectId(inode));
        let node = nodes.into_iter().next().or_else(|| self.nodes.get(inode));
        let status = || self.afs.as_ref()?.statuses.lock().peek(&inode).map(|status| status.attr.fid);
        node.map(|node| node.fid).or_else(status)
    }

    pub(super) async fn with_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&DiskCache) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let Some(afs) = &self.afs else { return Err(ErrorCode::NotSupported.into()) };
        let disk = afs.disk.clone();
        self.runtime.blocking(move || work(&disk)).await.ok_or(Error::Refused(ErrorCode::Internal))
    }

    /// What is in the cache.
    ///
    /// # Errors
    /// `NotSupported` in a mode without one.
    pub async fn cache_list(&self) -> Result<Vec<Listed>, Error> {
        self.with_disk(DiskCache::list).await
    }

    /// Compares copies with what they were when they were made: one file's, or all. Damaged ones are dropped.
    ///
    /// # Errors
    /// `NotSupported` in a mode without a cache; `Stale` for an object that is not known.
    pub async fn cache_verify(&self, inode: Option<u64>) -> Result<Vec<Verified>, Error> {
        let fid = match inode {
            Some(inode) => Some(self.fid_of(inode).ok_or(ErrorCode::Stale)?),
            None => None,
        };
        self.afs.iter().for_each(|afs| afs.close_recent());
        self.with_disk(move |disk| disk.verify(fid)).await
    }

    /// Takes a copy out of the cache.
    ///
    /// # Errors
    /// As [`cache_verify`](Vfs::cache_verify).
    pub async fn cache_evict(&self, inode: u64) -> Result<Evicted, Error> {
        let fid = self.fid_of(inode).ok_or(ErrorCode::Stale)?;
        self.afs.iter().for_each(|afs| afs.close_recent());
        self.with_disk(move |disk| disk.evict(fid)).await
    }

    /// Lets go of what was kept as a conflict.
    ///
    /// # Errors
    /// `NotSupported` in a mode without a cache; `NotFound`.
    pub async fn cache_forget_conflict(&self, id: u64) -> Result<(), Error> {
        let done = self.with_disk(move |disk| disk.forget_conflict(id)).await?;
        done.map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => ErrorCode::NotFound.into(),
            _ => super::disk_error(&error, "remove a conflict from"),
        })
    }
}
