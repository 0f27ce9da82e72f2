//! Opening files of AFS mode: which copy a node stands for (rules 2 and 3).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use larder_protocol::attr::{Attr, Credential};
use larder_protocol::error::ErrorCode;
use larder_protocol::runtime::RuntimeExt;

use super::copy::{Backing, LocalCopy};
use super::fetch::disk_error;
use super::record_dirty;
use crate::core::attr_cache::Miss;
use crate::mode::afs::Afs;
use crate::mode::afs::disk::{CHECK_BLOCK, CacheFile, checksums_of};
use crate::vfs::file_state::FileState;
use crate::vfs::node::Node;
use crate::vfs::{Error, Vfs};

/// An open of a file up to this size returns when all of it is here: should another client replace it before, then this
/// open shows the newer version, and none that was stored after it returned. Its parts are asked for at once, so this
/// costs little.
pub(super) const WHOLE_AT_OPEN: u64 = 8 << 20;

/// How an open uses a file.
#[derive(Clone, Copy, Debug)]
pub(in crate::vfs) struct Use {
    /// It may be written.
    pub(in crate::vfs) write: bool,
    /// It is to be empty.
    pub(in crate::vfs) truncate: bool,
}

impl Vfs {
    /// The copy that a node stands for from now on, which its first open decides; `None` if the file is served without
    /// one, because the cache has no room for it.
    ///
    /// # Errors
    /// `Stale` if the node is open at another version: the name is to be looked up again, and shows another node.
    pub(in crate::vfs) async fn open_copy(
        &self,
        node: &Arc<Node>,
        file: &Arc<FileState>,
        cred: &Arc<Credential>,
        how: Use,
    ) -> Result<Option<Arc<LocalCopy>>, Error> {
        let Some(afs) = self.afs.clone() else { return Ok(None) };
        if how.write || how.truncate {
            // What is being stored since the last writer closed the file is to be stored as that one left it (rule 4).
            let copy = node.state.lock().copy.clone();
            if let Some(copy) = copy {
                drop(self.until_abort(copy.storing.lock()).await?);
            }
        }
        // One open of a file at a time, so that they agree on the copy.
        let _turn = self.until_abort(file.exclusive.lock()).await?;
        let existing = node.state.lock().copy.clone();
        // What could not be fetched is tried again by the next open.
        if let Some(copy) = existing.filter(|copy| !copy.has_failed()) {
            if self.is_current(node, &copy, cred).await? {
                self.ready_to_use(&afs, node, &copy, cred, how).await?;
                return Ok(Some(copy));
            }
            if self.nodes.is_shared(node) {
                return Err(ErrorCode::Stale.into());
            }
            node.state.lock().copy = None;
        }
        let mut opened = self.open_new_copy(&afs, node, cred, how).await;
        if matches!(opened, Err(Error::Refused(ErrorCode::NoSpace))) {
            let size = node.state.lock().attrs.attr().size;
            if self.give_way(&afs, size, size) {
                opened = self.open_new_copy(&afs, node, cred, how).await;
            }
        }
        match opened {
            Ok(Some(copy)) => return Ok(Some(copy)),
            Ok(None) => {}
            Err(error) if error == ErrorCode::FileTooLarge.into() => self.say_too_large(&afs, node),
            // On a full disk it can still be read from the server.
            Err(error) if error == ErrorCode::NoSpace.into() && !how.write && !how.truncate => {}
            Err(error) => return Err(error),
        }
        afs.uncached_opens.fetch_add(1, Ordering::Relaxed);
        Ok(None)
    }

    async fn open_new_copy(
        &self,
        afs: &Afs,
        node: &Arc<Node>,
        cred: &Arc<Credential>,
        how: Use,
    ) -> Result<Option<Arc<LocalCopy>>, Error> {
        let Some(copy) = self.new_copy(afs, node, cred, how).await? else { return Ok(None) };
        node.state.lock().copy = Some(copy.clone());
        let ready = self.ready_to_use(afs, node, &copy, cred, how).await;
        if let Err(error) = ready {
            node.state.lock().copy = None;
            afs.unstored.lock().remove(&copy.file().id());
            afs.disk.discard(copy.file());
            return Err(error);
        }
        Ok(Some(copy))
    }

    /// Whether a later open may share the copy that a node stands for (rule 3).
    async fn is_current(&self, node: &Arc<Node>, copy: &Arc<LocalCopy>, cred: &Credential) -> Result<bool, Error> {
        if copy.is_dirty() || copy.version().is_none() {
            return Ok(true);
        }
        self.ask_if_unknown(cred, node).await?;
        let current = node.state.lock().attrs.attr().data_version;
        Ok(!copy.is_another(current))
    }

    /// Sees to it that the attributes are good.
    async fn ask_if_unknown(&self, cred: &Credential, node: &Node) -> Result<(), Error> {
        let known = {
            let state = node.state.lock();
            self.usable(node, &state)
        };
        match known {
            Ok(_) => Ok(()),
            Err(miss) => {
                self.counters.miss(miss);
                self.fetch_newest(cred, node).await
            }
        }
    }

    async fn new_copy(
        &self,
        afs: &Afs,
        node: &Arc<Node>,
        cred: &Arc<Credential>,
        how: Use,
    ) -> Result<Option<Arc<LocalCopy>>, Error> {
        let fid = node.fid;
        let known = |node: &Node| {
            let state = node.state.lock();
            self.usable(node, &state).map(|_| state.attrs.attr().clone())
        };
        let attr = match known(node) {
            Ok(attr) => Some(attr),
            Err(miss) => {
                self.counters.miss(miss);
                let last = node.state.lock().attrs.attr().data_version;
                if afs.disk.has(fid, last) && !how.truncate {
                    // One question may save the fetch.
                    self.fetch_attr(cred, node).await?;
                    known(node).ok()
                } else {
                    None
                }
            }
        };
        if !how.truncate
            && let Some(attr) = &attr
        {
            let recent = afs
                .recent
                .lock()
                .pop(&fid)
                .filter(|copy| copy.version() == Some(attr.data_version) && !copy.file().is_gone());
            if let Some(copy) = recent.filter(|copy| copy.is_untouched()) {
                self.counters.hit();
                return Ok(Some(copy));
            }
            if let Some(file) = self.find_copy(afs, attr).await {
                self.counters.hit();
                return Ok(Some(LocalCopy::complete(file, attr.clone())));
            }
            if attr.size > afs.disk.limit() {
                self.say_too_large(afs, node);
                return Ok(None);
            }
        }
        let file = afs.disk.create(fid).map_err(|error| disk_error(&error, "make a file in"))?;
        let last = attr.clone().unwrap_or_else(|| node.state.lock().attrs.attr().clone());
        if attr.is_some_and(|attr| attr.size == 0) {
            return Ok(Some(LocalCopy::complete(file, last)));
        }
        if !how.truncate {
            self.counters.miss(Miss::NoCopy);
        }
        Ok(Some(LocalCopy::absent(file, last)))
    }

    /// The clean copy of this version. All of a copy may have to be read first.
    async fn find_copy(&self, afs: &Afs, attr: &Attr) -> Option<Arc<CacheFile>> {
        let (fid, version) = (attr.fid, attr.data_version);
        if attr.size <= CHECK_BLOCK as u64 {
            return afs.disk.find(fid, version);
        }
        let disk = afs.disk.clone();
        self.runtime.blocking(move || disk.find(fid, version)).await.flatten()
    }

    /// Waits for what an open promises: a version, and if the file is to be written, all of it.
    async fn ready_to_use(
        &self,
        afs: &Afs,
        node: &Arc<Node>,
        copy: &Arc<LocalCopy>,
        cred: &Arc<Credential>,
        how: Use,
    ) -> Result<(), Error> {
        if how.truncate {
            self.truncate_local(node, copy, cred, 0).await?;
            if !how.write {
                // No descriptor will be closed that it was written by.
                self.store(node, copy, cred).await?;
            }
        } else {
            self.fetch_in_background(node, copy, cred);
            self.until_abort(copy.wait_version()).await??;
            if how.write || copy.size() <= WHOLE_AT_OPEN {
                self.until_abort(copy.wait_whole()).await??;
            }
        }
        if how.write && !copy.without_way() {
            self.expect_unseen_writes(afs, copy, cred).await?;
        }
        Ok(())
    }

    /// The kernel serves those who read a copy, and so must serve this writer, of whose writes nobody will be told: the
    /// copy counts as dirty, and what it holds is compared with what is stored when it is closed.
    async fn expect_unseen_writes(&self, afs: &Afs, copy: &Arc<LocalCopy>, writer: &Credential) -> Result<(), Error> {
        if copy.expects_unseen() {
            return Ok(());
        }
        let (disk, writer, known) = (afs.disk.clone(), writer.clone(), copy.clone());
        let expect = move || {
            let sums = checksums_of(known.file().file())?;
            record_dirty(&disk, &known, &writer)?;
            known.expect_unseen(sums);
            Ok(())
        };
        self.on_disk(expect).await.map_err(|error| disk_error(&error, "record a change in"))
    }

    /// What the kernel may serve an open of this copy from.
    pub(in crate::vfs) fn backing(&self, copy: &Arc<LocalCopy>, shared: bool) -> Option<Backing> {
        if copy.has_way() || (!shared && copy.may_have_way() && self.may_pass_through(copy)) {
            return Some(Backing(copy.clone()));
        }
        // Rule 3: the first open decides for all that follow.
        copy.without_way();
        None
    }

    /// The kernel took the way to a copy that it was offered, or refused it.
    pub fn passed_through(&self, took: bool) {
        let Some(afs) = &self.afs else { return };
        if took {
            afs.passthrough_opens.fetch_add(1, Ordering::Relaxed);
        } else {
            afs.no_passthrough.store(true, Ordering::Relaxed);
        }
    }

    fn say_too_large(&self, afs: &Afs, node: &Node) {
        if !afs.said_too_large.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "file {} does not fit into the cache of {} bytes and is read from the server each time, as others of \
                 its size will be; mount with a larger --cache-size to cache it",
                node.fid,
                afs.disk.limit()
            );
        }
    }
}
