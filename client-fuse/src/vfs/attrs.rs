//! Attributes: learning them from replies, showing them, setting them.

use std::sync::Arc;
use std::time::Duration;

use larder_protocol::attr::{Attr, AttrChange, Credential, SetAttr};
use larder_protocol::service::file::{Op, OpReply, Query, QueryReply};

use super::node::{Node, NodeState};
use super::{Attributes, Entry, Error, Vfs, unexpected};
use crate::core::attr_cache::{Applied, Miss, Stamp};

impl Vfs {
    /// Takes in attributes from a reply to a request that was sent at `sent` and changed nothing.
    pub(super) fn learn(&self, node: &Node, attr: Attr, sent: Stamp) -> Applied {
        let limits = self.policy.attr_limits(node.kind);
        let mut state = node.state.lock();
        let now = self.stamp();
        let (mtime, size) = (state.attrs.attr().mtime, state.attrs.attr().size);
        let unseen = attr.mtime == mtime && attr.size == size;
        let change = attr.change;
        let applied = state.attrs.apply(attr, sent, now, limits);
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
    pub(super) fn learn_own(&self, node: &Node, change: &AttrChange, sent: Stamp) {
        let limits = self.policy.attr_limits(node.kind);
        let mut state = node.state.lock();
        let now = self.stamp();
        let older = state.pages.as_deref().is_some_and(|pages| pages.superseded(change.attr.change));
        state.attrs.apply_own(change, older, sent, now, limits);
        if let Some(pages) = state.pages.as_deref_mut() {
            pages.own_change(change.before, change.attr.change);
        }
    }

    /// The attributes as programs of this client should see them: with what they wrote and is not sent yet.
    fn shown(&self, state: &NodeState) -> Attr {
        let mut attr = state.attrs.attr().clone();
        if let Some(file) = &state.file {
            let mut flow = file.flow.lock();
            self.follow_server(&mut flow);
            if let Some(end) = flow.data.end() {
                attr.size = attr.size.max(end);
                if let Some(touched) = flow.touched {
                    attr.mtime = touched;
                    attr.ctime = touched;
                }
            }
        }
        attr
    }

    /// Cached attributes, if the mode lets them be used, and for how long.
    pub(super) fn cached(&self, node: &Node) -> Result<Attributes, Miss> {
        let state = node.state.lock();
        let ttl = self.policy.usable(&state.attrs, self.runtime.boottime())?;
        Ok(Attributes { node: node.number, attr: self.shown(&state), ttl })
    }

    /// The attributes last seen, and how long they may be used, which may be not at all.
    pub(super) fn view(&self, node: &Node) -> Attributes {
        let state = node.state.lock();
        let ttl = self.policy.usable(&state.attrs, self.runtime.boottime()).unwrap_or(Duration::ZERO);
        Attributes { node: node.number, attr: self.shown(&state), ttl }
    }

    /// How long names may be used that a reply has shown in a directory at `change`: not at all if the directory is
    /// known to be another by now.
    pub(super) fn dir_ttl(&self, dir: &Node, change: u64) -> Duration {
        let state = dir.state.lock();
        if state.attrs.attr().change != change {
            return Duration::ZERO;
        }
        self.policy.usable(&state.attrs, self.runtime.boottime()).unwrap_or(Duration::ZERO)
    }

    /// Asks the server for attributes.
    pub(super) async fn fetch_attr(&self, cred: &Credential, node: &Node) -> Result<Applied, Error> {
        let sent = self.stamp();
        match self.client.query(cred, Query::Getattr { fid: node.fid }).await? {
            QueryReply::Attr(attr) => Ok(self.learn(node, attr, sent)),
            _ => Err(unexpected()),
        }
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
        self.fetch_attr(cred, node).await?;
        Ok(self.view(node))
    }

    /// An object that a reply has shown under a name in a directory at `change`, as a lookup's result. Counts a lookup.
    pub(super) fn entry(&self, attr: Attr, dir: &Node, change: u64, sent: Stamp) -> Entry {
        let limits = self.policy.attr_limits(attr.kind);
        let (node, new) = self.nodes.intern(&attr, sent, self.stamp(), limits);
        if !new {
            self.learn(&node, attr, sent);
        }
        node.parent.store(dir.number, std::sync::atomic::Ordering::Relaxed);
        let Attributes { attr, ttl, .. } = self.view(&node);
        Entry {
            node: node.number,
            generation: node.fid.generation,
            attr,
            attr_ttl: ttl,
            entry_ttl: self.policy.entry_ttl(self.dir_ttl(dir, change)),
        }
    }

    /// An object's attributes.
    ///
    /// # Errors
    /// The server's, or that there is no answer.
    pub async fn getattr(&self, cred: &Credential, node: u64, handle: Option<u64>) -> Result<Attributes, Error> {
        // A handle keeps its file even if the number has passed to another.
        let node = match handle.and_then(|handle| self.handles.file(handle).ok()) {
            Some(handle) => handle.node.clone(),
            None => self.node(node)?,
        };
        self.attributes(cred, &node).await
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
        let file = node.file();
        let _exclusive = match &file {
            Some(file) => Some(self.exclusive(node, file).await?),
            None => None,
        };
        let sent = self.stamp();
        match self.client.mutate(cred, Op::Setattr { fid: node.fid, set, open }).await?.reply {
            OpReply::Attr(change) => {
                self.learn_own(node, &change, sent);
                Ok(())
            }
            _ => Err(unexpected()),
        }
    }
}
