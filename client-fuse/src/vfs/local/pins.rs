//! Pinned files: in the cache at their newest version, whether anybody asks for them or not.
//!
//! A break comes before the change that it is for, and what is fetched in between is still the old version, without a
//! callback. So a pinned file is looked after until there is a copy of it under a good callback.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use larder_protocol::attr::{Credential, FileType};
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::Fid;
use larder_protocol::service::callback::ObjectId;
use larder_protocol::service::file::{Query, QueryReply};

use crate::mode::afs::Afs;
use crate::vfs::{Error, Vfs, unexpected};

/// The wait before pinned files are looked at again that were not good. It doubles each time.
const FIRST_WAIT: Duration = Duration::from_millis(50);
/// How often they are looked at before they are left alone until something else happens: about an hour.
const LOOKS: u32 = 16;

/// Looks after the pinned files whenever something may have happened to them. It ends with the mount.
pub(in crate::vfs) async fn keep_pinned(weak: Weak<Vfs>, afs: Arc<Afs>) {
    loop {
        let Some(vfs) = weak.upgrade() else { return };
        let aborted = vfs.servers.aborted();
        drop(vfs);
        tokio::select! {
            biased;
            () = aborted.cancelled() => return,
            () = afs.pins_touched.notified() => {}
        }
        let (mut wait, mut looks) = (FIRST_WAIT, 0);
        while looks < LOOKS {
            let Some(vfs) = weak.upgrade() else { return };
            let missing = vfs.pinned_without_copy(&afs);
            if missing.is_empty() {
                break;
            }
            for fid in missing {
                match vfs.fetch_fid(fid).await {
                    Ok(()) => {}
                    Err(Error::Aborted) => return,
                    Err(error) => tracing::debug!("the pinned file {fid} cannot be fetched now: {error}"),
                }
            }
            let runtime = vfs.runtime.clone();
            drop(vfs);
            tokio::select! {
                biased;
                () = aborted.cancelled() => return,
                // Perhaps another one, which is not to wait for those that cannot be had.
                () = afs.pins_touched.notified() => (wait, looks) = (FIRST_WAIT, 0),
                () = runtime.sleep(wait) => (wait, looks) = (wait * 2, looks + 1),
            }
        }
    }
}

impl Vfs {
    /// Sees to it that a file is in the cache from now on and stays there, also when it changes; or that it need not.
    ///
    /// # Errors
    /// As [`cache_verify`](Vfs::cache_verify); what keeps the file from being fetched, which then is not pinned;
    /// `FileTooLarge` if the cache has no room for it.
    pub async fn cache_pin(&self, inode: u64, pinned: bool) -> Result<(), Error> {
        let fid = self.fid_of(inode).ok_or(ErrorCode::Stale)?;
        let new = self.with_disk(move |disk| disk.pin(fid, pinned)).await?;
        if !pinned {
            return Ok(());
        }
        let fetched = self.fetch_fid(fid).await;
        if fetched.is_err() && new {
            self.with_disk(move |disk| disk.pin(fid, false)).await?;
        }
        fetched
    }

    /// Pinned files of which there is no copy that may be used without asking.
    pub(super) fn pinned_without_copy(&self, afs: &Afs) -> Vec<Fid> {
        let mut pinned = afs.disk.pinned();
        pinned.retain(|fid| !self.has_good_copy(afs, *fid));
        pinned
    }

    fn has_good_copy(&self, afs: &Afs, fid: Fid) -> bool {
        let version = match self.nodes.by_fid(fid) {
            Some(node) => {
                let state = node.state.lock();
                if state.copy.as_ref().is_some_and(|copy| copy.is_dirty()) {
                    return true;
                }
                self.usable(&node, &state).ok().map(|_| state.attrs.attr().data_version)
            }
            None => {
                let object = ObjectId::from(fid);
                let known =
                    afs.statuses.lock().peek(&object.0).map(|status| (status.promise, status.attr.data_version));
                let now = self.runtime.boottime();
                known.filter(|(promise, _)| afs.usable(Some(*promise), object, now).is_ok()).map(|(_, version)| version)
            }
        };
        version.is_some_and(|version| afs.disk.has(fid, version))
    }

    /// Fetches a file as opening it would. One that is gone is not pinned any more.
    async fn fetch_fid(&self, fid: Fid) -> Result<(), Error> {
        let cred = Credential::root();
        let (reply, asked) = match self.ask(&cred, Query::Getattr { fid }).await {
            Err(error @ Error::Refused(ErrorCode::Stale)) => {
                self.with_disk(move |disk| disk.pin(fid, false)).await?;
                return Err(error);
            }
            answer => answer?,
        };
        let QueryReply::Attr(attr) = reply else { return Err(unexpected()) };
        if attr.kind != FileType::Regular {
            return Err(ErrorCode::Invalid.into());
        }
        let root = self.node(crate::vfs::ROOT)?;
        let known = self.nodes.by_fid(fid).map(|node| node.parent.load(Ordering::Relaxed));
        let node = self.found(attr, &root, &asked);
        // It was not looked up in any directory.
        node.parent.store(known.unwrap_or(0), Ordering::Relaxed);
        drop(asked);
        let opened = self.open(&cred, node.number, libc::O_RDONLY).await;
        let fetched = match opened {
            Ok(opened) => {
                let handle = self.handles.file(opened.handle)?;
                let whole = match &handle.copy {
                    Some(copy) => self.until_abort(copy.wait_whole()).await.and_then(|done| done),
                    None => Err(ErrorCode::FileTooLarge.into()),
                };
                drop(handle);
                self.release(opened.handle).await;
                whole
            }
            Err(error) => Err(error),
        };
        self.forget(node.number, 1);
        fetched
    }
}
