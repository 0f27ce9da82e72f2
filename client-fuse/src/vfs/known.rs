//! What AFS mode knows without asking: names, objects that the kernel has forgotten, targets of symbolic links.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use larder_protocol::attr::{Attr, AttrChange, Credential};
use larder_protocol::ids::Fid;
use larder_protocol::name::Name;
use larder_protocol::service::callback::ObjectId;
use larder_protocol::service::file::{DirEntry, Query, QueryReply};
use lru::LruCache;

use super::asking::Asked;
use super::node::{Forgotten, Node};
use super::reply_gate::ReplyPass;
use super::{Entry, Error, LookupCache, LookupResult, Vfs, unexpected};
use crate::core::dir_cache::{Child, DirCache, Known, Listed};
use crate::mode::afs::{Afs, Status};

/// Names asked for one by one in a directory before all of them are asked for.
const LIST_AFTER: u32 = 2;
/// Names of the largest directory that is kept as a whole.
const MAX_WHOLE: usize = 65_536;
/// How often a listing that met a change begins again.
const LISTINGS: u32 = 3;
/// Bytes of listing asked for at a time.
const LISTING: u32 = 1 << 20;

impl Vfs {
    /// Held by a reply to the kernel until it is written, where that matters.
    pub(super) fn reply_pass(&self) -> Option<Arc<ReplyPass>> {
        self.afs.as_ref().map(|afs| Arc::new(afs.replies.enter()))
    }

    /// For how long the kernel may use a name.
    pub(super) fn name_ttl(&self, ttl: Duration) -> Duration {
        let Some(afs) = &self.afs else { return ttl };
        if ttl.is_zero() || self.options.lookupcache == LookupCache::None || !afs.names_expire.load(Ordering::Acquire) {
            return Duration::ZERO;
        }
        let until = self.runtime.boottime() + ttl;
        let mut last = afs.names_until.lock();
        *last = (*last).max(until);
        ttl
    }

    /// What is under a name, if that is known.
    pub(super) fn known_name(&self, dir: &Arc<Node>, name: &Name) -> Option<LookupResult> {
        self.afs.as_ref()?;
        let pass = self.reply_pass();
        let (known, change) = {
            let state = dir.state.lock();
            self.usable(dir, &state).ok()?;
            let names = state.dir.as_ref().filter(|names| names.change() == state.attrs.attr().change)?;
            (names.get(name), names.change())
        };
        match known {
            Known::Unknown => None,
            Known::Absent => {
                self.counters.hit();
                let ttl = self.name_ttl(self.policy.negative_ttl(self.dir_ttl(dir, change)));
                Some(LookupResult::Missing { ttl, pass })
            }
            Known::Present(child) => {
                let entry = self.known_object(child.fid, dir, change)?;
                self.counters.hit();
                Some(LookupResult::Found(entry))
            }
        }
    }

    /// An object that is known well enough to be shown in a directory at `change`. Counts a lookup.
    pub(super) fn known_object(&self, fid: Fid, dir: &Node, change: u64) -> Option<Entry> {
        let (node, usable) = self.known_node(fid)?;
        if !usable {
            self.forget(node.number, 1);
            return None;
        }
        node.parent.store(dir.number, Ordering::Relaxed);
        Some(self.entry_of(&node, dir, change))
    }

    /// The node of an object that is known, and whether it may be used. Counts a lookup.
    fn known_node(&self, fid: Fid) -> Option<(Arc<Node>, bool)> {
        let afs = self.afs.as_ref()?;
        // Until the node has it: see `Afs::statuses`.
        let mut statuses = afs.statuses.lock();
        let status = self.take_known(afs, &mut statuses, fid)?;
        let limits = self.policy.attr_limits(status.attr.kind);
        let now = self.stamp();
        let (node, new) = self.nodes.intern(&status.attr, now, now, limits);
        let mut state = node.state.lock();
        if new {
            state.promise = Some(status.promise);
            state.dir = status.dir;
            state.target = status.target.map(Box::new);
        }
        // Of several versions another may be the one that is known well.
        let usable = new || self.usable(&node, &state).is_ok();
        drop(state);
        Some((node, usable))
    }

    /// What is known of an object under a good promise, taken from where it is kept if the kernel does not know it.
    fn take_known(&self, afs: &Afs, statuses: &mut LruCache<u64, Status>, fid: Fid) -> Option<Status> {
        if let Some(node) = self.nodes.by_fid(fid) {
            let state = node.state.lock();
            self.usable(&node, &state).ok()?;
            return Some(Status {
                attr: state.attrs.attr().clone(),
                promise: state.promise?,
                dir: None,
                target: state.target.as_deref().cloned(),
            });
        }
        let object = ObjectId::from(fid);
        let known = statuses.peek(&object.0).filter(|status| status.attr.fid == fid)?;
        let now = self.runtime.boottime();
        // What is not usable now may be so again after a recheck.
        afs.usable(Some(known.promise), object, now).ok()?;
        statuses.pop(&object.0)
    }

    /// The kernel takes back lookups of a node. What is known of one that it has forgotten is kept for the next time.
    pub(super) fn forget_node(&self, number: u64, nlookup: u64) -> Forgotten {
        let Some(afs) = &self.afs else { return self.nodes.forget(number, nlookup) };
        // Before the node is gone: see `Afs::statuses`.
        let mut statuses = afs.statuses.lock();
        let forgotten = self.nodes.forget(number, nlookup);
        if let Some(node) = &forgotten.node {
            let mut state = node.state.lock();
            let attr = state.attrs.attr().clone();
            let unordered = state.attrs.is_unordered();
            let dir = state.dir.take();
            let target = state.target.take().map(|target| *target);
            if let Some(promise) = state.promise.take().filter(|_| !unordered) {
                statuses.put(ObjectId::from(node.fid).0, Status { attr, promise, dir, target });
            }
        }
        forgotten
    }

    /// What is known of an object is not used without asking any more, wherever it is; but for what `but` knows. Returns
    /// its nodes, without that.
    pub(super) fn forgo(&self, afs: &Afs, object: ObjectId, but: Option<&Node>) -> Vec<Arc<Node>> {
        let mut statuses = afs.statuses.lock();
        statuses.pop(&object.0);
        let mut nodes = self.nodes.all_of(object);
        nodes.retain(|node| but.is_none_or(|but| !std::ptr::eq(&**node, but)));
        nodes.iter().for_each(|node| node.state.lock().promise = None);
        nodes
    }

    /// There is a node for the object now.
    pub(super) fn forget_status(&self, fid: Fid) {
        if let Some(afs) = &self.afs {
            afs.statuses.lock().pop(&ObjectId::from(fid).0);
        }
    }

    /// Takes in what an answer shows of an object that need not have a node.
    pub(super) fn learn_shown(&self, attr: Attr, asked: &Asked, with: impl FnOnce(&Node)) {
        if let Some(node) = self.nodes.by_fid(attr.fid) {
            with(&node);
            self.learn(&node, attr, asked);
            return;
        }
        let Some(afs) = &self.afs else { return };
        let object = ObjectId::from(attr.fid);
        let mut statuses = afs.statuses.lock();
        match asked.promise(object) {
            Some(promise) => {
                let known = statuses.pop(&object.0).filter(|known| known.attr.fid == attr.fid);
                let (dir, target) = known.map_or((None, None), |known| (known.dir, known.target));
                statuses.put(object.0, Status { attr, promise, dir, target });
            }
            None => {
                statuses.pop(&object.0);
            }
        }
    }

    /// As [`learn_shown`](Vfs::learn_shown), of an object that this client has changed.
    pub(super) fn learn_changed(&self, attr: Attr, asked: &Asked, with: impl FnOnce(&Node)) {
        let fid = attr.fid;
        self.learn_shown(attr, asked, with);
        if let Some(node) = self.nodes.by_fid(fid) {
            self.others_ask(&node);
        }
    }

    /// A reply has shown what is under a name of a directory at `change`.
    pub(super) fn learn_name(&self, dir: &Node, change: u64, name: &Name, attr: Option<&Attr>) {
        if self.afs.is_none() {
            return;
        }
        let mut state = dir.state.lock();
        if state.attrs.attr().change != change {
            return;
        }
        let names = state.dir.get_or_insert_with(|| Box::new(DirCache::new(change)));
        if names.change() != change {
            **names = DirCache::new(change);
        }
        names.learn(name, attr.map(|attr| Child { fid: attr.fid, kind: attr.kind }));
    }

    /// This client's own change of a directory: does to the known names what it did (rule 12). If they are of no use, those
    /// that it touched are known now.
    pub(super) fn patch_dir(&self, dir: &Node, change: &AttrChange, patch: impl Fn(&mut DirCache)) {
        let (before, after) = (change.before, change.attr.change);
        // What changed nothing has done nothing to the names: a rename of one name of a file over another.
        if self.afs.is_none() || before == after {
            return;
        }
        let mut state = dir.state.lock();
        if state.dir.as_mut().is_some_and(|names| names.patch(before, after, &patch)) {
            return;
        }
        let is_newest = state.attrs.attr().change == after;
        state.dir = is_newest.then(|| {
            let mut names = DirCache::new(after);
            patch(&mut names);
            Box::new(names)
        });
    }

    /// Whether it is time to ask for all names of a directory.
    pub(super) fn wants_listing(&self, dir: &Node) -> bool {
        self.afs.is_some() && dir.state.lock().dir.as_ref().is_some_and(|names| names.asked() == LIST_AFTER)
    }

    /// All names of a directory, if they are known.
    pub(super) fn known_list(&self, dir: &Node) -> Option<(Listed, u64)> {
        self.afs.as_ref()?;
        let mut state = dir.state.lock();
        self.usable(dir, &state).ok()?;
        let change = state.attrs.attr().change;
        let names = state.dir.as_mut().filter(|names| names.change() == change)?;
        Some((names.list()?, change))
    }

    /// Asks for all names of a directory with the attributes of their objects. Nothing comes of it if there are too
    /// many, or if they change all the time.
    ///
    /// # Errors
    /// The server's, or that there is no answer.
    pub(super) async fn list_whole(&self, cred: &Credential, dir: &Arc<Node>) -> Result<(), Error> {
        for _ in 0..LISTINGS {
            let mut names: Vec<(Name, Child)> = Vec::new();
            let (mut cookie, mut change) = (0, None);
            loop {
                let query = Query::Readdir { dir: dir.fid, cookie, max_bytes: LISTING, plus: true };
                let (reply, asked) = self.ask(cred, query).await?;
                let QueryReply::Listing { entries, end, dir: attr } = reply else { return Err(unexpected()) };
                let now = attr.change;
                self.learn(dir, attr, &asked);
                if *change.get_or_insert(now) != now {
                    break;
                }
                cookie = entries.last().map_or(cookie, |entry| entry.cookie);
                for DirEntry { name, fid, kind, attr, .. } in entries {
                    names.push((name, Child { fid, kind }));
                    if let Some(attr) = attr {
                        self.learn_shown(attr, &asked, |_| {});
                    }
                }
                if names.len() > MAX_WHOLE {
                    let mut state = dir.state.lock();
                    let names = state.dir.get_or_insert_with(|| Box::new(DirCache::new(now)));
                    names.too_large();
                    return Ok(());
                }
                if end {
                    let mut state = dir.state.lock();
                    if state.attrs.attr().change == now {
                        state.dir = Some(Box::new(DirCache::complete(now, names)));
                    }
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// A symbolic link's target, which never changes.
    pub(super) fn known_target(&self, node: &Node) -> Option<Bytes> {
        self.afs.as_ref()?;
        let target = node.state.lock().target.as_deref().cloned()?;
        self.counters.hit();
        Some(target)
    }

    /// Remembers a symbolic link's target.
    pub(super) fn keep_target(&self, node: &Node, target: &Bytes) {
        if self.afs.is_some() {
            // A slice of the reply's buffer would keep all of it.
            node.state.lock().target = Some(Box::new(Bytes::copy_from_slice(target)));
        }
    }
}
