//! Attributes: learning them from replies, showing them, setting them.

use std::sync::Arc;
use std::time::Duration;

use larder_protocol::attr::{Attr, AttrChange, Credential, FileType, SetAttr};
use larder_protocol::error::ErrorCode;
use larder_protocol::service::file::{Op, OpReply, Query, QueryReply};

use super::asking::Asked;
use super::local::copy::LocalCopy;
use super::node::{Node, NodeState, Shown};
use super::{Attributes, Entry, Error, Vfs, unexpected};
use crate::core::attr_cache::{Applied, Miss};

/// How often it is asked again when replies overtake each other.
const REVALIDATIONS: u32 = 4;

impl Vfs {
    /// Takes in attributes from a reply to a request that was sent at `sent` and changed nothing.
    pub(super) fn learn(&self, node: &Node, attr: Attr, asked: &Asked) -> Applied {
        let limits = self.policy.attr_limits(node.kind);
        let mut state = node.state.lock();
        let now = self.stamp();
        let (mtime, size) = (state.attrs.attr().mtime, state.attrs.attr().size);
        let unseen = attr.mtime == mtime && attr.size == size;
        let change = attr.change;
        let promise = asked.promise(node.fid.into());
        let applied = if promise.is_some() {
            state.attrs.apply_promised(attr, asked.stamp, now, limits)
        } else {
            state.attrs.apply(attr, asked.stamp, now, limits)
        };
        if promise.is_some() {
            state.promise = promise;
        } else if applied != Applied::Same {
            // Something newer or older than what was promised: there is no telling which.
            state.promise = None;
        }
        if applied == Applied::Newer {
            self.changed_elsewhere(node, &mut state, change, unseen);
        }
        applied
    }

    /// Rule 3: a change of the data that shows neither in the size nor in the time goes unnoticed by the kernel.
    fn changed_elsewhere(&self, node: &Node, state: &mut NodeState, change: u64, unseen: bool) {
        let sending = state.file.as_ref().is_some_and(|file| file.flow.lock().data.has_unsent());
        let open = state.file.is_some();
        let Some(pages) = state.pages.as_deref_mut() else { return };
        if pages.good_at(change) || sending {
            return;
        }
        self.counters.miss(Miss::Changed);
        if unseen && open {
            self.notifier.inval_data(node.number);
            pages.forget();
        }
    }

    /// Takes in the reply to this client's own change, sent at `sent`.
    pub(super) fn learn_own(&self, node: &Node, change: &AttrChange, asked: &Asked) {
        let limits = self.policy.attr_limits(node.kind);
        let mut state = node.state.lock();
        let now = self.stamp();
        let older = state.pages.as_deref().is_some_and(|pages| pages.superseded(change.attr.change));
        match asked.promise(node.fid.into()) {
            Some(promise) => {
                state.attrs.apply_promised(change.attr.clone(), asked.stamp, now, limits);
                state.promise = Some(promise);
            }
            None => {
                let follows = [change.before, change.attr.change].contains(&state.attrs.attr().change);
                state.attrs.apply_own(change, older, asked.stamp, now, limits);
                // Rule 12: the callback that this client had is not broken for its own change.
                state.promise = state.promise.filter(|_| follows);
            }
        }
        if let Some(pages) = state.pages.as_deref_mut() {
            pages.own_change(change.before, change.attr.change);
        }
        drop(state);
        self.others_ask(node);
    }

    /// This client has changed an object, and of its nodes this one has learnt what came of it. No break comes for that
    /// (rule 12 of AFS mode), so the others, which stand for other versions (rule 3), no longer go by the callback.
    pub(super) fn others_ask(&self, node: &Node) {
        let Some(afs) = &self.afs else { return };
        for other in self.forgo(afs, node.fid.into(), Some(node)) {
            self.notifier.expire_attrs(other.number);
        }
    }

    /// For how long what is known of a node may be used, by the mode's rules.
    ///
    /// # Errors
    /// The rule that says no.
    pub(super) fn usable(&self, node: &Node, state: &NodeState) -> Result<Duration, Miss> {
        let now = self.runtime.boottime();
        let by_age = self.policy.usable(&state.attrs, now)?;
        match &self.afs {
            None => Ok(by_age),
            Some(afs) => afs.usable(state.promise, node.fid.into(), now),
        }
    }

    /// The attributes as programs of this client should see them: with what they wrote and is not sent yet. And for how
    /// long, of `ttl`.
    fn show(&self, state: &mut NodeState, ttl: Duration) -> (Attr, Duration) {
        let (attr, ttl) = self.overlaid(state, ttl);
        let of_server = state.attrs.attr();
        if attr.size == of_server.size && attr.change == of_server.change {
            state.shown.give(attr.change);
        } else {
            state.shown = Shown::Several;
        }
        (attr, ttl)
    }

    fn overlaid(&self, state: &NodeState, ttl: Duration) -> (Attr, Duration) {
        let mut attr = state.attrs.attr().clone();
        if let Some(copy) = &state.copy {
            // An older version is for those who have it open, and no longer than they do.
            let ttl = if copy.overlay(&mut attr) { ttl } else { Duration::ZERO };
            return (attr, ttl);
        }
        if let Some(file) = &state.file {
            let mut flow = file.flow.lock();
            self.follow_server(state.attrs.attr().fid.volume, &mut flow);
            if let Some(end) = flow.data.end() {
                attr.size = attr.size.max(end);
                if let Some(touched) = flow.touched {
                    attr.mtime = touched;
                    attr.ctime = touched;
                }
            }
        }
        (attr, ttl)
    }

    /// Cached attributes, if the mode lets them be used, and for how long.
    pub(super) fn cached(&self, node: &Node) -> Result<Attributes, Miss> {
        let mut state = node.state.lock();
        let pass = self.reply_pass();
        let ttl = self.usable(node, &state)?;
        let (attr, ttl) = self.show(&mut state, ttl);
        Ok(Attributes { node: node.number, attr, ttl, pass })
    }

    /// The attributes last seen, and how long they may be used, which may be not at all.
    pub(super) fn view(&self, node: &Node) -> Attributes {
        let mut state = node.state.lock();
        let pass = self.reply_pass();
        let ttl = self.usable(node, &state).unwrap_or(Duration::ZERO);
        let (attr, ttl) = self.show(&mut state, ttl);
        Attributes { node: node.number, attr, ttl, pass }
    }

    /// How long names may be used that a reply has shown in a directory at `change`: not at all if the directory is
    /// known to be another by now, or may become another without a word.
    pub(super) fn dir_ttl(&self, dir: &Node, change: u64) -> Duration {
        if self.unsure.contains(dir.fid, || self.runtime.boottime()) {
            return Duration::ZERO;
        }
        let state = dir.state.lock();
        if state.attrs.attr().change != change {
            return Duration::ZERO;
        }
        self.usable(dir, &state).unwrap_or(Duration::ZERO)
    }

    /// Asks the server for attributes.
    pub(super) async fn fetch_attr(&self, cred: &Credential, node: &Node) -> Result<Applied, Error> {
        let (reply, asked) = self.ask(cred, Query::Getattr { fid: node.fid }).await?;
        match reply {
            QueryReply::Attr(attr) => Ok(self.learn(node, attr, &asked)),
            _ => Err(unexpected()),
        }
    }

    /// Asks the server for attributes that are no older than this call, and so asks again, a few times, where replies
    /// overtake each other.
    pub(super) async fn fetch_newest(&self, cred: &Credential, node: &Node) -> Result<(), Error> {
        let began = self.stamp();
        for _ in 0..REVALIDATIONS {
            let applied = self.fetch_attr(cred, node).await?;
            if applied != Applied::Unclear || node.state.lock().attrs.sent_after(began) {
                break;
            }
        }
        Ok(())
    }

    /// Attributes from the cache or the server.
    pub(super) async fn attributes(&self, cred: &Credential, node: &Node) -> Result<Attributes, Error> {
        match self.cached(node) {
            Ok(attributes) => {
                self.counters.hit();
                return Ok(attributes);
            }
            Err(miss) => self.counters.miss(miss),
        }
        match self.fetch_newest(cred, node).await {
            Ok(()) => Ok(self.view(node)),
            Err(Error::Refused(ErrorCode::Stale)) => self.removed(node),
            Err(error) => Err(error),
        }
    }

    /// An object that is gone at the server: whoever has it open in AFS mode has it still (rule 3).
    fn removed(&self, node: &Node) -> Result<Attributes, Error> {
        let copy = node.state.lock().copy.clone();
        if !copy.is_some_and(|copy| copy.version().is_some() || copy.is_dirty()) {
            return Err(ErrorCode::Stale.into());
        }
        let mut seen = self.view(node);
        (seen.attr.nlink, seen.ttl) = (0, Duration::ZERO);
        Ok(seen)
    }

    /// An object that a reply has shown under a name in a directory at `change`, as a lookup's result. Counts a lookup.
    pub(super) fn entry(&self, attr: Attr, dir: &Node, change: u64, asked: &Asked) -> Entry {
        let node = self.found(attr, dir, asked);
        self.entry_of(&node, dir, change)
    }

    /// The node of an object that a reply has shown in a directory. Counts a lookup.
    pub(super) fn found(&self, attr: Attr, dir: &Node, asked: &Asked) -> Arc<Node> {
        let limits = self.policy.attr_limits(attr.kind);
        let (node, _) = self.nodes.intern(&attr, asked.stamp, self.stamp(), limits);
        self.forget_status(attr.fid);
        self.learn(&node, attr, asked);
        node.parent.store(dir.number, std::sync::atomic::Ordering::Relaxed);
        node
    }

    /// A node as the result of a lookup in a directory at `change`.
    pub(super) fn entry_of(&self, node: &Node, dir: &Node, change: u64) -> Entry {
        let Attributes { attr, ttl, pass, .. } = self.view(node);
        let mut entry_ttl = self.name_ttl(self.policy.entry_ttl(self.dir_ttl(dir, change)));
        if self.afs.is_some() && attr.kind == FileType::Regular {
            // Which node a file's name leads to depends on the file's version too (rule 3 of AFS mode).
            entry_ttl = entry_ttl.min(ttl);
        }
        Entry { node: node.number, generation: node.fid.generation, attr, attr_ttl: ttl, entry_ttl, pass }
    }

    /// An object's attributes.
    ///
    /// # Errors
    /// The server's, or that there is no answer.
    pub async fn getattr(&self, cred: &Credential, node: u64, handle: Option<u64>) -> Result<Attributes, Error> {
        // A handle keeps its file even if the number has passed to another.
        let Some(handle) = handle.and_then(|handle| self.handles.file(handle).ok()) else {
            return self.attributes(cred, &*self.node(node)?).await;
        };
        // And in AFS mode its version, whatever becomes of the file (rule 3): the kernel asks before it reads.
        let keeps = handle.copy.as_ref().is_some_and(|copy| copy.version().is_some() || copy.is_dirty());
        match self.cached(&handle.node) {
            Err(_) if keeps => {
                let mut seen = self.view(&handle.node);
                seen.ttl = Duration::ZERO;
                Ok(seen)
            }
            _ => self.attributes(cred, &handle.node).await,
        }
    }

    /// Sets attributes. Data that is not sent yet is sent first, so that it cannot undo what is set.
    ///
    /// # Errors
    /// The server's, or that there is no answer.
    pub async fn setattr(
        &self,
        cred: &Credential,
        node: u64,
        handle: Option<u64>,
        set: SetAttr,
    ) -> Result<Attributes, Error> {
        self.may_change()?;
        let handle = handle.and_then(|handle| self.handles.file(handle).ok());
        let node = match &handle {
            Some(handle) => handle.node.clone(),
            None => self.node(node)?,
        };
        let open = handle.is_some();
        let only_size = set.mode.is_none() && set.uid.is_none() && set.gid.is_none();
        let cred = match &handle {
            Some(handle) if set.size.is_some() && only_size => &*handle.cred,
            _ => cred,
        };
        self.set_attributes(cred, &node, set, open).await?;
        Ok(self.view(&node))
    }

    pub(super) async fn set_attributes(
        &self,
        cred: &Credential,
        node: &Arc<Node>,
        set: SetAttr,
        open: bool,
    ) -> Result<(), Error> {
        let copy = node.state.lock().copy.clone();
        if let Some(copy) = &copy {
            if let (Some(size), true) = (set.size, copy.version().is_some() || copy.is_dirty()) {
                return self.resize_local(cred, node, copy, SetAttr { size: None, ..set }, size, open).await;
            }
            // What is stored later must not undo what is set now.
            self.store(node, copy, &Arc::new(cred.clone())).await?;
        }
        let file = if self.afs.is_some() { None } else { node.file() };
        let _exclusive = match &file {
            Some(file) => Some(self.exclusive(node, file).await?),
            None => None,
        };
        let same_contents = set.size.is_none();
        let known = node.state.lock().attrs.attr().clone();
        let (reply, asked) = self.change(cred, Op::Setattr { fid: node.fid, set, open }).await?;
        match reply {
            OpReply::Attr(change) => {
                self.learn_own(node, &change, &asked);
                if same_contents && change.before == known.change {
                    self.contents_follow(node, known.data_version, &change.attr);
                }
                Ok(())
            }
            _ => Err(unexpected()),
        }
    }

    /// Changes the size of an open copy; what else is to be set follows at the server.
    async fn resize_local(
        &self,
        cred: &Credential,
        node: &Arc<Node>,
        copy: &Arc<LocalCopy>,
        rest: SetAttr,
        size: u64,
        open: bool,
    ) -> Result<(), Error> {
        let writer = Arc::new(cred.clone());
        self.truncate_local(node, copy, &writer, size).await?;
        let more = rest != SetAttr::default();
        if !open || more {
            // Nobody who has it open for writing will close it, or the rest must not come first.
            self.store(node, copy, &writer).await?;
        }
        if more { Box::pin(self.set_attributes(cred, node, rest, open)).await } else { Ok(()) }
    }

    /// This client has given a file another data version without changing its contents, as by setting its `mtime`:
    /// its copies are those of the new version (rule 12).
    fn contents_follow(&self, node: &Node, from: u64, attr: &Attr) {
        let Some(afs) = self.afs.as_ref().filter(|_| attr.data_version != from) else { return };
        let copy = node.state.lock().copy.clone();
        if let Some(copy) = copy {
            copy.follow(from, attr);
        }
        if let Some(copy) = afs.recent.lock().peek(&node.fid) {
            copy.follow(from, attr);
        }
        afs.disk.rename_version(node.fid, from, attr.data_version);
    }
}
