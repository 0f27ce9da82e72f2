//! Opening and closing files.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use larder_protocol::attr::{Credential, FileType, MAY_READ, MAY_WRITE, MODE_MASK, SetAttr};
use larder_protocol::error::ErrorCode;
use larder_protocol::name::Name;
use larder_protocol::service::file::{CreateHow, Op};

use super::file_state::FileState;
use super::handle::FileHandle;
use super::local::copy::LocalCopy;
use super::local::open::Use;
use super::node::{Node, Shown, Unpinned};
use super::{Entry, Error, Opened, Vfs};
use crate::core::attr_cache::Miss;
use crate::core::page_cache::Pages;
use crate::core::write_behind::Config;
use crate::mode::direct::Direct;
use crate::mode::{CachePolicy, OpenPlan};

/// Which ways of access open(2) flags ask for.
fn access(flags: i32) -> (bool, bool) {
    match flags & libc::O_ACCMODE {
        libc::O_RDONLY => (true, false),
        libc::O_WRONLY => (false, true),
        _ => (true, true),
    }
}

impl Vfs {
    /// Opens a file.
    ///
    /// # Errors
    /// The server's, or that there is no answer.
    pub async fn open(&self, cred: &Credential, node: u64, flags: i32) -> Result<Opened, Error> {
        let node = self.node(node)?;
        let (_, writable) = access(flags);
        let truncate = flags & libc::O_TRUNC != 0;
        if writable || truncate {
            self.may_change()?;
            node.state.lock().shown = Shown::Several;
        }
        match node.kind {
            FileType::Regular => {}
            FileType::Directory => return Err(ErrorCode::IsDirectory.into()),
            _ => return Err(ErrorCode::Invalid.into()),
        }
        let plan = self.policy.open(flags);
        let mut opening = self.begin_open(&node, cred).await?;
        if self.afs.is_some() {
            let (_, write) = access(flags);
            opening.open_copy(Use { write, truncate }).await?;
            self.expect_another_version(&node, opening.copy.as_deref()).await;
        } else if truncate {
            let set = SetAttr { size: Some(0), ..SetAttr::default() };
            self.set_attributes(cred, &node, set, false).await?;
        } else {
            self.revalidate(cred, &node, &plan).await?;
        }
        let is_known = self.kernel_knows(&node, opening.copy.as_deref());
        let opened = opening.finish(flags, plan);
        if !opened.keep_cache && !is_known {
            // The kernel believes its size of the file as long as its attributes are valid, pages or no pages.
            self.notifier.expire_attrs(node.number);
        }
        Ok(opened)
    }

    /// Makes a file, or takes the one that is there, and opens it.
    ///
    /// # Errors
    /// The server's, or that there is no answer.
    pub async fn create(
        &self,
        cred: &Credential,
        parent: u64,
        name: &[u8],
        mode: u32,
        umask: u32,
        flags: i32,
    ) -> Result<(Entry, Opened), Error> {
        self.may_change()?;
        let (dir, name) = (self.node(parent)?, Name::new(name)?);
        let truncate = flags & libc::O_TRUNC != 0;
        let how = if flags & libc::O_EXCL != 0 {
            CreateHow::Exclusive
        } else {
            let (read, write) = access(flags);
            let access = if read { MAY_READ } else { 0 } | if write { MAY_WRITE } else { 0 };
            CreateHow::Open { access, truncate }
        };
        // Counts as open before it is sent, lest a removal that is sent later takes the file away.
        let counted = Counted::new(self).await?;
        // Writes that are on their way may reach the server after the truncation, and be answered before it is.
        let on_their_way = if truncate { self.unsent.files() } else { Vec::new() };
        let op = Op::Create { dir: dir.fid, name, mode: mode & MODE_MASK, umask, how };
        let (mut entry, created) = self.preparing(self.make(cred, &dir, op)).await?;
        if entry.attr.kind != FileType::Regular {
            self.forget(entry.node, 1);
            return Err(if entry.attr.kind == FileType::Directory {
                ErrorCode::IsDirectory
            } else {
                ErrorCode::Invalid
            }
            .into());
        }
        let node = self.node(entry.node)?;
        node.state.lock().shown = Shown::Several;
        let was_busy = on_their_way.contains(&(node.number, node.fid.generation));
        let again =
            self.afs.is_none() && truncate && !created && (was_busy || node.file().is_some_and(|file| !file.is_idle()));
        let mut opening = self.pin(&node, cred, counted);
        if self.afs.is_some() {
            let (_, write) = access(flags);
            // Nobody asks the server while a break waits for his reply.
            drop(entry.pass.take());
            // The server has emptied it already, if it was to; but programs here may have changes of their own.
            if let Err(error) = opening.open_copy(Use { write, truncate: truncate && !created }).await {
                self.forget(entry.node, 1);
                return Err(error);
            }
            let change = dir.state.lock().attrs.attr().change;
            entry = self.entry_of(&node, &dir, change);
        }
        if again {
            let set = SetAttr { size: Some(0), ..SetAttr::default() };
            if let Err(error) = self.set_attributes(cred, &node, set, true).await {
                self.forget(entry.node, 1);
                return Err(error);
            }
            let seen = self.view(&node);
            (entry.attr, entry.attr_ttl) = (seen.attr, seen.ttl);
        }
        Ok((entry, opening.finish(flags, self.policy.open(flags))))
    }

    /// A file that is open at a version that may be overtaken without a word, because there is no callback on it, or
    /// has been already: names that lead to it are looked up again, and lead to another node then (rule 3 of AFS mode).
    /// Callbacks that are broken from now on find it open.
    async fn expect_another_version(&self, node: &Node, copy: Option<&LocalCopy>) {
        let Some(afs) = &self.afs else { return };
        let certain = {
            let state = node.state.lock();
            let current = copy.is_none_or(|copy| !copy.is_another(state.attrs.attr().data_version));
            current && self.usable(node, &state).is_ok()
        };
        if !certain {
            // As breaks are applied: one at a time.
            let _turn = afs.applying.lock().await;
            self.expire_names(afs).await;
        }
    }

    async fn begin_open<'a>(&'a self, node: &Arc<Node>, cred: &Credential) -> Result<Opening<'a>, Error> {
        let counted = Counted::new(self).await?;
        Ok(self.pin(node, cred, counted))
    }

    fn pin<'a>(&'a self, node: &Arc<Node>, cred: &Credential, counted: Counted<'a>) -> Opening<'a> {
        let cred = Arc::new(cred.clone());
        let config = Config { max_write: self.max_write as usize, ..Config::default() };
        let file = self.nodes.pin(node, || FileState::new(config, cred.clone()));
        // From here on the handle to be counts, and `close` gives it back.
        std::mem::forget(counted);
        Opening { vfs: self, node: node.clone(), file, cred, copy: None, writes: false, opened: false }
    }

    /// Rule 2: the attributes that an open goes by were asked for after it began.
    async fn revalidate(&self, cred: &Credential, node: &Node, plan: &OpenPlan) -> Result<(), Error> {
        if !plan.revalidate {
            match self.cached(node) {
                Ok(_) => {
                    self.counters.hit();
                    return Ok(());
                }
                Err(miss) => self.counters.miss(miss),
            }
        } else {
            self.counters.miss(Miss::Opened);
        }
        self.fetch_newest(cred, node).await
    }

    /// Whether all that the kernel has of a file's attributes is of the version that is being opened.
    fn kernel_knows(&self, node: &Node, copy: Option<&LocalCopy>) -> bool {
        let state = node.state.lock();
        let now = state.attrs.attr().change;
        let is_this = copy.is_none_or(|copy| copy.change() == Some(now));
        is_this && state.shown == Shown::Only(now) && !state.attrs.is_unordered()
    }

    /// Whether the kernel's pages are still good, or else what they will be good at from now on, as the handle's
    /// `dropping`.
    fn keep_pages(&self, node: &Node, copy: Option<&LocalCopy>, passed: bool) -> (bool, u64) {
        let mut state = node.state.lock();
        // Pages are filled from the copy; of the file there may be another version by now.
        let change = match copy {
            Some(copy) => copy.change(),
            None => Some(state.attrs.attr().change),
        };
        let unordered = copy.is_none() && state.attrs.is_unordered();
        let pages = state.pages.get_or_insert_with(|| Box::new(Pages::default()));
        // What the kernel writes by its own way does not reach these pages.
        let Some(change) = change.filter(|_| !passed) else {
            pages.forget();
            return (false, 0);
        };
        let (good, known) = (pages.may_keep(change), pages.known());
        if unordered {
            // What is known may not be the newest, so neither these pages nor those read now can be told from old ones.
            pages.forget();
            return (false, 0);
        }
        if good {
            self.counters.hit();
            return (true, 0);
        }
        if known {
            self.counters.miss(Miss::Changed);
        }
        (false, u64::from(pages.filled(change)) + 1)
    }

    /// A request through this handle: the kernel has received the reply to its open.
    pub(super) fn in_use(&self, handle: &FileHandle) {
        if handle.dropping.load(Ordering::Relaxed) == 0 {
            return;
        }
        if let Some(round) = handle.dropping.swap(0, Ordering::Relaxed).checked_sub(1)
            && let Some(pages) = handle.node.state.lock().pages.as_deref_mut()
        {
            pages.dropped(round as u32);
        }
    }

    /// Closes a file. What is still unsent goes on in the background.
    pub async fn release(&self, handle: u64) {
        let Some(handle) = self.handles.remove_file(handle) else { return };
        self.in_use(&handle);
        if self.afs.is_some() && handle.writable {
            handle.file.end_writing();
        }
        self.leave(&handle.node, &handle.file, handle.copy.as_ref(), &handle.cred, handle.writable).await;
    }

    /// Nobody uses a file any more by a handle that has one, or was going to have one.
    async fn leave(
        &self,
        node: &Arc<Node>,
        file: &Arc<FileState>,
        copy: Option<&Arc<LocalCopy>>,
        cred: &Arc<Credential>,
        writable: bool,
    ) {
        if let Some(copy) = copy {
            self.release_local(node, file, copy, cred, writable).await;
        }
        let unpinned = self.close(node, file);
        if let Some(copy) = copy.filter(|_| unpinned.last) {
            self.put_away(node, copy, unpinned.orphan);
        }
    }

    fn close(&self, node: &Arc<Node>, file: &Arc<FileState>) -> Unpinned {
        self.removals.closed();
        let unpinned = self.nodes.unpin(node);
        if unpinned.orphan {
            // Nobody can read it any more.
            file.flow.lock().data.discard();
            self.forget_orphan(node.fid);
        } else {
            let mut flow = file.flow.lock();
            if flow.data.has_unsent() {
                flow.data.flush(true);
            } else if flow.data.has_uncommitted() {
                flow.data.commit_soon();
            }
        }
        self.settle(node, file);
        self.kick(node, file);
        unpinned
    }
}

/// A place in the count of open files, given back when dropped.
struct Counted<'a>(&'a Vfs);

impl<'a> Counted<'a> {
    /// Counts a file that is going to be opened, and waits for removals that did not know of it.
    async fn new(vfs: &'a Vfs) -> Result<Counted<'a>, Error> {
        vfs.removals.opening();
        let counted = Counted(vfs);
        vfs.until_abort(vfs.removals.let_pass()).await?;
        Ok(counted)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.removals.closed();
    }
}

/// A file that is being opened; closed again if it comes to nothing.
struct Opening<'a> {
    vfs: &'a Vfs,
    node: Arc<Node>,
    file: Arc<FileState>,
    cred: Arc<Credential>,
    copy: Option<Arc<LocalCopy>>,
    /// Whether it counts as a writer of the file.
    writes: bool,
    opened: bool,
}

impl Opening<'_> {
    /// Decides on the copy that is read and written (AFS mode).
    async fn open_copy(&mut self, how: Use) -> Result<(), Error> {
        if how.write || how.truncate {
            self.file.begin_writing();
            self.writes = true;
        }
        self.copy = self.vfs.open_copy(&self.node, &self.file, &self.cred, how).await?;
        Ok(())
    }

    fn finish(mut self, flags: i32, plan: OpenPlan) -> Opened {
        self.opened = true;
        let plan = match (&self.vfs.afs, &self.copy) {
            // Too large for the cache: as in direct mode.
            (Some(_), None) => Direct.open(flags),
            _ => plan,
        };
        let (readable, writable) = access(flags);
        if self.writes && !writable {
            // It was to be emptied, and is.
            self.file.end_writing();
        }
        let shared = self.vfs.nodes.is_shared(&self.node);
        let backing = self.copy.as_ref().and_then(|copy| self.vfs.backing(copy, shared));
        let (keep_cache, dropping) = self.vfs.keep_pages(&self.node, self.copy.as_deref(), backing.is_some());
        let handle = self.vfs.handles.add_file(FileHandle {
            node: self.node.clone(),
            file: self.file.clone(),
            copy: self.copy.clone(),
            cred: self.cred.clone(),
            plan,
            readable,
            writable,
            seen_failures: AtomicU64::new(self.file.flow.lock().failures),
            dropping: AtomicU64::new(dropping),
        });
        Opened { handle, keep_cache, direct_io: plan.direct_io, noflush: !writable, backing }
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        if self.opened {
            return;
        }
        if self.writes {
            self.file.end_writing();
            // Whoever closed the file meanwhile may have left it to this open to store what is not.
            let left = self.node.state.lock().copy.clone().filter(|copy| copy.is_dirty() || copy.expects_unseen());
            if let (Some(copy), Some(vfs)) = (left, self.vfs.weak.upgrade()) {
                let (node, file, cred) = (self.node.clone(), self.file.clone(), self.cred.clone());
                self.vfs.runtime.start(Box::pin(async move {
                    vfs.leave(&node, &file, Some(&copy), &cred, true).await;
                }));
                return;
            }
        }
        self.vfs.close(&self.node, &self.file);
    }
}

impl FileHandle {
    /// The failure that this handle has not reported yet, which it now has.
    ///
    /// # Errors
    /// That failure.
    pub(super) fn report(&self) -> Result<(), Error> {
        let Some((failures, error)) = self.unreported() else { return Ok(()) };
        self.seen_failures.store(failures, Ordering::Relaxed);
        Err(error)
    }

    /// As [`report`](FileHandle::report), but it is reported again: by a flush. Whenever a program starts another one, that
    /// closes what it has inherited, and nobody looks at the result (as `nfs_file_flush` in `fs/nfs/file.c`).
    ///
    /// # Errors
    /// That failure.
    pub(super) fn tell(&self) -> Result<(), Error> {
        self.unreported().map_or(Ok(()), |(_, error)| Err(error))
    }

    /// The last failure, if there is one that was not reported, and how many there have been.
    fn unreported(&self) -> Option<(u64, Error)> {
        let flow = self.file.flow.lock();
        let is_new = self.seen_failures.load(Ordering::Relaxed) < flow.failures;
        flow.error.filter(|_| is_new).map(|error| (flow.failures, error))
    }
}
