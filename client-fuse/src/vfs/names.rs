//! Names: looking them up, making and removing them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use larder_protocol::attr::{Attr, Credential, FileType, MODE_MASK};
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::Fid;
use larder_protocol::limits::MAX_SYMLINK;
use larder_protocol::name::Name;
use larder_protocol::service::file::{Op, OpReply, Query, QueryReply, RenameHow};
use parking_lot::Mutex;

use super::asking::Asked;
use super::node::Node;
use super::{Entry, Error, LookupResult, Vfs, unexpected};
use crate::core::dir_cache::{Child, DirCache};

/// Removing names of files that may be open here.
///
/// The server is asked to keep a file whose last name goes only if it is open on this client, but a request names
/// the name and not the file: so any open file counts. An open that begins while a removal that asked for nothing is
/// under way waits for it, lest it open a file that is then gone.
#[derive(Default)]
pub(super) struct Removals {
    /// Held shared by removals that keep nothing, and taken exclusively for a moment by opens.
    gate: tokio::sync::RwLock<()>,
    /// Files open or being opened.
    open: AtomicU64,
    /// Objects that the server need not keep any more.
    forgets: Mutex<Vec<Fid>>,
    /// Those of them that the server failed to forget.
    refused: Mutex<Vec<Fid>>,
    /// Held by whoever tells the server.
    pub(super) letting_go: Arc<tokio::sync::Mutex<()>>,
}

impl Removals {
    /// A file is being opened: counts it.
    pub(super) fn opening(&self) {
        self.open.fetch_add(1, Ordering::SeqCst);
    }

    /// Waits for removals that did not count it.
    pub(super) async fn let_pass(&self) {
        drop(self.gate.write().await);
    }

    /// A file was closed, or not opened after all.
    pub(super) fn closed(&self) {
        self.open.fetch_sub(1, Ordering::SeqCst);
    }

    /// What is to be told to the server, up to `max`.
    pub(super) fn take_forgets(&self, max: usize) -> Vec<Fid> {
        let mut forgets = self.forgets.lock();
        let n = forgets.len().min(max);
        forgets.drain(..n).collect()
    }

    /// The server failed to forget this.
    pub(super) fn refused(&self, fid: Fid) {
        self.refused.lock().push(fid);
    }

    /// Whether there is anything that the server failed to forget.
    pub(super) fn has_refused(&self) -> bool {
        !self.refused.lock().is_empty()
    }

    /// What the server failed to forget is told it again.
    pub(super) fn try_again(&self) {
        let refused = std::mem::take(&mut *self.refused.lock());
        self.forgets.lock().extend(refused);
    }

    /// Whether there is anything to tell.
    pub(super) fn has_forgets(&self) -> bool {
        !self.forgets.lock().is_empty()
    }
}

impl Vfs {
    /// Looks a name up.
    ///
    /// # Errors
    /// The server's, or that there is no answer. A name that is not there is no error.
    pub async fn lookup(&self, cred: &Credential, parent: u64, name: &[u8]) -> Result<LookupResult, Error> {
        let (dir, name) = (self.node(parent)?, Name::new(name)?);
        match self.found_under(cred, &dir, name).await? {
            LookupResult::Found(entry) if entry.attr.kind == FileType::MountPoint => {
                Ok(LookupResult::Found(self.cross(cred, &dir, entry).await?))
            }
            found => Ok(found),
        }
    }

    /// What a directory itself has under a name.
    async fn found_under(&self, cred: &Credential, dir: &Arc<Node>, name: Name) -> Result<LookupResult, Error> {
        if let Some(found) = self.known_name(dir, &name) {
            return Ok(found);
        }
        if self.wants_listing(dir) {
            // Many names of one directory are asked for: all of them at once cost no more than a few.
            self.list_whole(cred, dir).await?;
            if let Some(found) = self.known_name(dir, &name) {
                return Ok(found);
            }
        }
        let (reply, asked) = self.ask(cred, Query::Lookup { dir: dir.fid, name: name.clone() }).await?;
        match reply {
            QueryReply::Entry { attr, dir: dir_attr } => {
                let change = dir_attr.change;
                self.learn(dir, dir_attr, &asked);
                self.learn_name(dir, change, &name, attr.as_ref());
                let pass = self.reply_pass();
                Ok(match attr {
                    Some(attr) => LookupResult::Found(self.entry(attr, dir, change, &asked)),
                    None => {
                        let ttl = self.name_ttl(self.policy.negative_ttl(self.dir_ttl(dir, change)));
                        LookupResult::Missing { ttl, pass }
                    }
                })
            }
            _ => Err(unexpected()),
        }
    }

    /// The kernel takes back lookups of a node.
    pub fn forget(&self, node: u64, nlookup: u64) {
        let forgotten = self.forget_node(node, nlookup);
        if forgotten.shrunk {
            self.runtime.spawn_blocking(Box::new(give_back_memory));
        }
    }

    /// A symbolic link's target.
    ///
    /// # Errors
    /// The server's, or that there is no answer.
    pub async fn readlink(&self, cred: &Credential, node: u64) -> Result<Bytes, Error> {
        let node = self.node(node)?;
        if let Some(target) = self.known_target(&node) {
            return Ok(target);
        }
        let (reply, _) = self.ask(cred, Query::Readlink { fid: node.fid }).await?;
        match reply {
            QueryReply::Target(target) => {
                self.keep_target(&node, &target);
                Ok(target)
            }
            _ => Err(unexpected()),
        }
    }

    /// Makes a name and returns what it names.
    pub(super) async fn make(&self, cred: &Credential, dir: &Arc<Node>, op: Op) -> Result<(Entry, bool), Error> {
        let name = made_name(&op);
        let (reply, asked) = self.change(cred, op).await?;
        match reply {
            OpReply::Entry { attr, dir: dir_change, created } => {
                self.learn_own(dir, &dir_change, &asked);
                if let Some(name) = name {
                    let child = Child { fid: attr.fid, kind: attr.kind };
                    self.patch_dir(dir, &dir_change, |names| names.put(&name, child));
                    if !created {
                        self.learn_name(dir, dir_change.attr.change, &name, Some(&attr));
                    }
                }
                let node = self.found(attr, dir, &asked);
                // From here on what the answer says may be used.
                drop(asked);
                Ok((self.entry_of(&node, dir, dir_change.attr.change), created))
            }
            _ => Err(unexpected()),
        }
    }

    /// Makes a fifo, socket, device or empty file. `mode` has the type.
    ///
    /// # Errors
    /// The server's, or that there is no answer.
    pub async fn mknod(
        &self,
        cred: &Credential,
        parent: u64,
        name: &[u8],
        mode: u32,
        umask: u32,
        rdev: u32,
    ) -> Result<Entry, Error> {
        self.may_change()?;
        let dir = self.node(parent)?;
        // A mode without a type means a regular file, as in mknod(2).
        let kind = if mode & !MODE_MASK == 0 { Some(FileType::Regular) } else { FileType::from_mode(mode) };
        let kind = kind.ok_or(ErrorCode::Invalid)?;
        let rdev = if matches!(kind, FileType::CharDevice | FileType::BlockDevice) { rdev } else { 0 };
        let op = Op::Mknod { dir: dir.fid, name: Name::new(name)?, kind, mode: mode & MODE_MASK, umask, rdev };
        Ok(self.make(cred, &dir, op).await?.0)
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// The server's, or that there is no answer.
    pub async fn mkdir(
        &self,
        cred: &Credential,
        parent: u64,
        name: &[u8],
        mode: u32,
        umask: u32,
    ) -> Result<Entry, Error> {
        self.may_change()?;
        let dir = self.node(parent)?;
        let op = Op::Mkdir { dir: dir.fid, name: Name::new(name)?, mode: mode & MODE_MASK, umask };
        Ok(self.make(cred, &dir, op).await?.0)
    }

    /// Makes a symbolic link.
    ///
    /// # Errors
    /// The server's, or that there is no answer.
    pub async fn symlink(&self, cred: &Credential, parent: u64, name: &[u8], target: &[u8]) -> Result<Entry, Error> {
        self.may_change()?;
        if target.len() > MAX_SYMLINK {
            return Err(ErrorCode::NameTooLong.into());
        }
        let dir = self.node(parent)?;
        let op = Op::Symlink { dir: dir.fid, name: Name::new(name)?, target: Bytes::copy_from_slice(target) };
        Ok(self.make(cred, &dir, op).await?.0)
    }

    /// Gives an object another name.
    ///
    /// # Errors
    /// The server's, or that there is no answer.
    pub async fn link(&self, cred: &Credential, node: u64, parent: u64, name: &[u8]) -> Result<Entry, Error> {
        self.may_change()?;
        let (node, dir) = (self.node(node)?, self.node(parent)?);
        if node.fid.volume != dir.fid.volume {
            return Err(ErrorCode::CrossVolume.into());
        }
        let op = Op::Link { fid: node.fid, dir: dir.fid, name: Name::new(name)? };
        Ok(self.make(cred, &dir, op).await?.0)
    }

    /// Removes a name that is not a directory's. A file that is open here stays readable and writable.
    ///
    /// # Errors
    /// The server's, or that there is no answer.
    pub async fn unlink(&self, cred: &Credential, parent: u64, name: &[u8]) -> Result<(), Error> {
        self.may_change()?;
        let (dir, name) = (self.node(parent)?, Name::new(name)?);
        let (_gate, keep) = self.removing().await?;
        self.remove(cred, &dir, Op::Remove { dir: dir.fid, name, keep }, keep).await
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// The server's, or that there is no answer.
    pub async fn rmdir(&self, cred: &Credential, parent: u64, name: &[u8]) -> Result<(), Error> {
        self.may_change()?;
        let dir = self.node(parent)?;
        let op = Op::Rmdir { dir: dir.fid, name: Name::new(name)? };
        self.remove(cred, &dir, op, false).await
    }

    async fn remove(&self, cred: &Credential, dir: &Arc<Node>, op: Op, keep: bool) -> Result<(), Error> {
        let name = removed_name(&op);
        let (reply, asked) = self.change(cred, op).await?;
        match reply {
            OpReply::Removed { dir: change, object } => {
                self.learn_own(dir, &change, &asked);
                if let Some(name) = name {
                    self.patch_dir(dir, &change, |names| {
                        names.remove(&name);
                    });
                }
                self.lost_a_name(object, &asked, keep);
                Ok(())
            }
            _ => Err(unexpected()),
        }
    }

    /// Moves a name.
    ///
    /// # Errors
    /// The server's, or that there is no answer.
    pub async fn rename(
        &self,
        cred: &Credential,
        parent: u64,
        name: &[u8],
        new_parent: u64,
        new_name: &[u8],
        how: RenameHow,
    ) -> Result<(), Error> {
        self.may_change()?;
        let (from, to) = (self.node(parent)?, self.node(new_parent)?);
        if from.fid.volume != to.fid.volume {
            return Err(ErrorCode::CrossVolume.into());
        }
        let (from_name, to_name) = (Name::new(name)?, Name::new(new_name)?);
        let (_gate, keep) = match how {
            RenameHow::Replace => self.removing().await?,
            RenameHow::NoReplace | RenameHow::Exchange => (None, false),
        };
        let (old, new) = (from_name.clone(), to_name.clone());
        let op = Op::Rename { from_dir: from.fid, from_name, to_dir: to.fid, to_name, how, keep };
        let (reply, asked) = self.change(cred, op).await?;
        match reply {
            OpReply::Renamed { from_dir, to_dir, object, other } => {
                let moved = Child { fid: object.fid, kind: object.kind };
                let back = other
                    .as_ref()
                    .filter(|_| how == RenameHow::Exchange)
                    .map(|other| Child { fid: other.fid, kind: other.kind });
                self.learn_own(&from, &from_dir, &asked);
                let leave = |names: &mut DirCache| match back {
                    Some(child) => names.put(&old, child),
                    None => {
                        names.remove(&old);
                    }
                };
                if Arc::ptr_eq(&from, &to) {
                    self.patch_dir(&from, &from_dir, |names| {
                        leave(names);
                        names.put(&new, moved);
                    });
                } else {
                    self.learn_own(&to, &to_dir, &asked);
                    self.patch_dir(&from, &from_dir, leave);
                    self.patch_dir(&to, &to_dir, |names| names.put(&new, moved));
                }
                self.learn_changed(object, &asked, |node| node.parent.store(to.number, Ordering::Relaxed));
                if let Some(other) = other {
                    self.lost_a_name(other, &asked, keep);
                }
                Ok(())
            }
            _ => Err(unexpected()),
        }
    }

    /// Whether a removal asks the server to keep the file, and what it holds while it is under way.
    async fn removing(&self) -> Result<(Option<tokio::sync::RwLockReadGuard<'_, ()>>, bool), Error> {
        let gate = self.until_abort(self.removals.gate.read()).await?;
        let keep = self.removals.open.load(Ordering::SeqCst) > 0 || self.unsent.any();
        Ok((if keep { None } else { Some(gate) }, keep))
    }

    /// A name of this object is gone; these are its attributes after that.
    fn lost_a_name(&self, object: Attr, asked: &Asked, keep: bool) {
        let (fid, gone, kind) = (object.fid, object.nlink == 0, object.kind);
        self.learn_changed(object, asked, |_| {});
        if keep && gone && kind != FileType::Directory && !self.nodes.keep(fid) {
            self.forget_orphan(fid);
        }
        if gone && kind == FileType::Regular {
            self.drop_copy(fid);
        }
    }

    /// The server need not keep this object any more. It is told a little later, with others.
    pub(super) fn forget_orphan(&self, fid: Fid) {
        self.removals.forgets.lock().push(fid);
        self.wake.notify_one();
    }
}

/// The name that an operation makes, if it is new.
fn made_name(op: &Op) -> Option<Name> {
    match op {
        Op::Create { name, .. }
        | Op::Mkdir { name, .. }
        | Op::Mknod { name, .. }
        | Op::Symlink { name, .. }
        | Op::Graft { name, .. }
        | Op::Link { name, .. } => Some(name.clone()),
        _ => None,
    }
}

/// The name that an operation takes away.
fn removed_name(op: &Op) -> Option<Name> {
    match op {
        Op::Remove { name, .. } | Op::Rmdir { name, .. } | Op::Ungraft { name, .. } => Some(name.clone()),
        _ => None,
    }
}

/// Returns freed memory to the system, which the allocator does by itself only at the end of its heap.
fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) takes no pointers and may be called at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
