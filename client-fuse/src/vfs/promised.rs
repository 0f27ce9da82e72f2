//! Keeping the lease, and giving up what is broken (rules 1, 6, 7 and 8 of AFS mode).

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use larder_protocol::attr::{Credential, FileType};
use larder_protocol::handshake::LeaseTerms;
use larder_protocol::ids::{Fid, VolumeId};
use larder_protocol::limits::MAX_RECHECK;
use larder_protocol::runtime::RuntimeExt;
use larder_protocol::service::callback::{Break, Breaks, LeaseId, ObjectId};
use larder_protocol::service::file::{Checked, Query, QueryReply};

use super::local::pins::keep_pinned;
use super::node::Node;
use super::{Error, Vfs, unexpected};
use crate::core::attr_cache::Miss;
use crate::core::promises::Renewal;
use crate::mode::afs::{Afs, Lease};
use crate::rpc::{Cause, Client, Failure};

/// How long the first request to a server waits for the lease.
const FIRST_LEASE: Duration = Duration::from_secs(1);
/// The wait before asking again a server that did not answer.
const RETRY: Duration = Duration::from_millis(50);
/// How often the index of the disk cache is written, if it has changed.
const INDEX_FLUSH: Duration = Duration::from_secs(2);
/// Objects without a node that are rechecked after a lapse, the most recently used first.
const RECHECK_STATUSES: usize = 16_384;

/// Starts what keeps the disk cache. It ends with the mount.
pub(super) fn start(vfs: &Arc<Vfs>, afs: &Arc<Afs>) {
    let runtime = &vfs.runtime;
    runtime.spawn(Box::pin(keep_pinned(Arc::downgrade(vfs), afs.clone())));
    runtime.spawn(Box::pin(flush_index(Arc::downgrade(vfs), afs.clone())));
}

/// Renews a lease for as long as the mount is there.
async fn keep_lease(weak: Weak<Vfs>, afs: Arc<Afs>, lease: Arc<Lease>) {
    let aborted = lease.server.shared().aborted.clone();
    loop {
        let Some(vfs) = weak.upgrade() else { return };
        let wait = tokio::select! {
            biased;
            wait = vfs.renew_lease(&afs, &lease) => wait,
            () = aborted.cancelled() => return,
        };
        let runtime = vfs.runtime.clone();
        drop(vfs);
        tokio::select! {
            biased;
            () = aborted.cancelled() => return,
            () = lease.lost.notified() => {}
            () = runtime.sleep(wait) => {}
        }
    }
}

/// Asks a server for breaks, applies and acknowledges them.
async fn take_breaks(weak: Weak<Vfs>, afs: Arc<Afs>, lease: Arc<Lease>) {
    let (server, aborted) = (lease.server.clone(), lease.server.shared().aborted.clone());
    loop {
        let Some(runtime) = weak.upgrade().map(|vfs| vfs.runtime.clone()) else { return };
        let place = lease.promises.lock().place();
        let term = lease.promises.lock().terms().term;
        let Some((id, acked)) = place else {
            tokio::select! {
                biased;
                () = aborted.cancelled() => return,
                () = lease.granted.notified() => {}
            }
            continue;
        };
        let answer = tokio::select! {
            biased;
            answer = server.breaks(term, id, acked) => answer,
            () = aborted.cancelled() => return,
        };
        match answer {
            Ok(Breaks::Outstanding(breaks)) => {
                let Some(vfs) = weak.upgrade() else { return };
                vfs.apply_breaks(&afs, &lease, &breaks, id).await;
            }
            Ok(Breaks::Lapsed) => {
                if lease.promises.lock().place().is_some_and(|(now, _)| now == id) {
                    lease.lost.notify_one();
                }
                runtime.sleep(RETRY).await;
            }
            Err(Failure::NotSent(Cause::Aborted) | Failure::MaybeExecuted(Cause::Aborted)) => return,
            Err(_) => {
                // Perhaps a new server process, to be told that what the old one promised is void.
                lease.lost.notify_one();
                runtime.sleep(RETRY).await;
            }
        }
    }
}

/// Writes the index of the disk cache now and then.
async fn flush_index(weak: Weak<Vfs>, afs: Arc<Afs>) {
    loop {
        let Some(vfs) = weak.upgrade() else { return };
        let (runtime, aborted) = (vfs.runtime.clone(), vfs.servers.aborted());
        drop(vfs);
        tokio::select! {
            biased;
            () = aborted.cancelled() => return,
            () = runtime.sleep(INDEX_FLUSH) => {}
        }
        let disk = afs.disk.clone();
        if let Some(Err(error)) = runtime.blocking(move || disk.flush()).await {
            tracing::warn!("the index of the cache cannot be written: {error}; trying again");
        }
    }
}

impl Vfs {
    /// What there is with a server. With one that was asked for nothing before, a lease is begun, and waited for a moment:
    /// what is learnt without it is not kept.
    pub(super) async fn lease_with(&self, afs: &Arc<Afs>, server: &Arc<Client>) -> Arc<Lease> {
        self.lease_within(afs, server, FIRST_LEASE).await
    }

    /// As [`lease_with`](Vfs::lease_with), which waits for so long.
    pub(super) async fn lease_within(&self, afs: &Arc<Afs>, server: &Arc<Client>, within: Duration) -> Arc<Lease> {
        if let Some(lease) = afs.lease(server.number()) {
            return lease;
        }
        let terms = self.servers.home().shared().welcome().map_or_else(LeaseTerms::default, |welcome| welcome.lease);
        let (lease, is_new) = afs.lease_with(server, terms);
        if is_new {
            let begun = Box::pin(self.renew_lease(afs, &lease));
            tokio::select! {
                biased;
                _ = begun => {}
                () = self.runtime.sleep(within) => {}
            }
            self.runtime.spawn(Box::pin(keep_lease(self.weak.clone(), afs.clone(), lease.clone())));
            self.runtime.spawn(Box::pin(take_breaks(self.weak.clone(), afs.clone(), lease.clone())));
        }
        lease
    }

    /// Renews a lease once; how long to wait before the next time.
    async fn renew_lease(&self, afs: &Arc<Afs>, lease: &Arc<Lease>) -> Duration {
        let (server, promises) = (&lease.server, &lease.promises);
        let term = promises.lock().terms().term;
        for _ in 0..16 {
            let another = server.shared().epoch().is_some_and(|epoch| promises.lock().is_of_another(epoch));
            if another {
                self.give_up_everything(afs, lease).await;
            }
            let answer = server.renew(term, |epoch| {
                let mut promises = promises.lock();
                // Rule 8: not before what the older process promised is void.
                (!promises.is_of_another(epoch)).then(|| promises.renewal(epoch))
            });
            let (sent, request, renewed) = match answer.await {
                Ok(answered) => answered,
                Err(_) => return RETRY,
            };
            if let Some(welcome) = server.shared().welcome() {
                promises.lock().set_terms(welcome.lease);
            }
            let id = request.lease;
            let renewal = promises.lock().renewed(sent, &request, renewed);
            match renewal {
                Renewal::Runs => {
                    if id.is_none() {
                        lease.granted.notify_one();
                        self.recheck_in_background();
                    }
                    return promises.lock().renew_every();
                }
                Renewal::Apply(breaks) => {
                    let Some(id) = id else { return RETRY };
                    if breaks.is_empty() {
                        // Too many are outstanding: the lease is going to end.
                        return RETRY;
                    }
                    self.apply_breaks(afs, lease, &breaks, id).await;
                }
                Renewal::Void => self.give_up_everything(afs, lease).await,
            }
        }
        RETRY
    }

    /// Applies breaks: when it returns, neither this client nor its kernel uses what it knew of the objects.
    async fn apply_breaks(&self, afs: &Afs, lease: &Lease, breaks: &[Break], id: LeaseId) {
        let _turn = afs.applying.lock().await;
        let objects = lease.promises.lock().broken(breaks);
        self.give_up(afs, &objects).await;
        lease.promises.lock().applied(breaks, id);
        if afs.disk.pinned().iter().any(|fid| objects.contains(&ObjectId::from(*fid))) {
            afs.pins_touched.notify_one();
        }
    }

    /// When it returns, neither this client nor its kernel uses what it knew of the objects. The caller holds `applying`.
    pub(super) async fn give_up(&self, afs: &Afs, objects: &[ObjectId]) {
        let mut nodes = Vec::new();
        let mut names = false;
        for object in objects {
            for node in self.forgo(afs, *object, None) {
                names |= Vfs::names_matter(&node);
                nodes.push(node.number);
            }
        }
        self.tell_kernel(afs, &nodes, names).await;
    }

    /// Whether programs must look names up again when this object has changed: those in a directory, and those of an
    /// open file, which may get another node (rule 3).
    fn names_matter(node: &Node) -> bool {
        match node.kind {
            FileType::Directory => true,
            FileType::Regular => node.is_open(),
            _ => false,
        }
    }

    async fn tell_kernel(&self, afs: &Afs, nodes: &[u64], names: bool) {
        // Rule 6: what is on its way is written first, and expired after that.
        afs.replies.drain().await;
        let mut names = names;
        for node in nodes {
            // A reply that the kernel has got and not used yet may be the first that it hears of a node, whose
            // attributes cannot be expired before that. But the name can that leads to it.
            names |= !self.notifier.expire_attrs(*node);
        }
        if names {
            self.expire_names(afs).await;
        }
    }

    /// Returns when the kernel uses no name any more that it was given before.
    pub(super) async fn expire_names(&self, afs: &Afs) {
        let expired = self.notifier.expire_names();
        if afs.names_expire.swap(expired, Ordering::AcqRel) != expired {
            tracing::info!(
                "{}",
                if expired { "the kernel keeps names" } else { "the kernel is given no names to keep" }
            );
        }
        if expired {
            return;
        }
        // Something was mounted inside a while ago. What the kernel was given before that ends by itself, once; nobody
        // can be given more when the replies on their way are written.
        afs.replies.drain().await;
        let until = *afs.names_until.lock();
        let left = until.saturating_sub(self.runtime.boottime());
        if !left.is_zero() {
            self.runtime.sleep(left).await;
        }
    }

    /// Everything that a server has promised is void (rules 7 and 8).
    async fn give_up_everything(&self, afs: &Afs, lease: &Lease) {
        let _turn = afs.applying.lock().await;
        tracing::info!(
            "the lease of the server {} has lapsed, or it was restarted: all that is cached of its volumes is asked about again",
            lease.server.shared().connector().server()
        );
        lease.promises.lock().void();
        let number = lease.server.number();
        let promised = |node: &Arc<Node>| node.state.lock().promise.is_some_and(|promise| promise.server() == number);
        let nodes: Vec<u64> = self.nodes.all().iter().filter(|node| promised(node)).map(|node| node.number).collect();
        self.tell_kernel(afs, &nodes, !nodes.is_empty()).await;
    }

    fn recheck_in_background(&self) {
        let Some(vfs) = self.weak.upgrade() else { return };
        self.runtime.spawn(Box::pin(async move {
            if let Err(error) = vfs.recheck().await {
                tracing::debug!("what is cached could not be rechecked in bulk: {error}; it is asked about one by one");
            }
            if let Some(afs) = &vfs.afs {
                afs.pins_touched.notify_one();
            }
        }));
    }

    /// Asks in bulk about everything that was promised under an older lease (rule 7).
    async fn recheck(&self) -> Result<(), Error> {
        let Some(afs) = &self.afs else { return Ok(()) };
        let now = self.runtime.boottime();
        let lapsed = |promise, object| afs.usable(Some(promise), object, now) == Err(Miss::Lapsed);
        let mut items: BTreeMap<VolumeId, Vec<(Fid, u64)>> = BTreeMap::new();
        let mut add = |fid: Fid, change: u64| items.entry(fid.volume).or_default().push((fid, change));
        for node in self.nodes.all() {
            let state = node.state.lock();
            if state.promise.is_some_and(|promise| lapsed(promise, node.fid.into())) {
                add(node.fid, state.attrs.attr().change);
            }
        }
        {
            let statuses = afs.statuses.lock();
            let recent = statuses.iter().take(RECHECK_STATUSES);
            for (object, status) in recent.filter(|(object, status)| lapsed(status.promise, ObjectId(**object))) {
                debug_assert_eq!(*object, ObjectId::from(status.attr.fid).0);
                add(status.attr.fid, status.attr.change);
            }
        }
        let mut rechecked = Ok(());
        for items in items.into_values() {
            for batch in items.chunks(MAX_RECHECK) {
                let done = self.recheck_batch(batch).await;
                let gone = done.is_err();
                rechecked = rechecked.and(done);
                if gone {
                    // One volume that cannot be used must not keep the others.
                    break;
                }
            }
        }
        rechecked
    }

    async fn recheck_batch(&self, items: &[(Fid, u64)]) -> Result<(), Error> {
        let query = Query::Recheck { items: items.to_vec() };
        let (reply, asked) = self.ask(&Credential::root(), query).await?;
        let QueryReply::Rechecked(verdicts) = reply else { return Err(unexpected()) };
        for ((fid, change), verdict) in items.iter().zip(verdicts) {
            let object = ObjectId::from(*fid);
            match verdict {
                Checked::Changed(attr) => self.learn_shown(attr, &asked, |_| {}),
                Checked::Same => {
                    let nodes = self.nodes.all_of(object);
                    for node in nodes.iter().filter(|node| node.fid == *fid) {
                        let mut state = node.state.lock();
                        if state.attrs.attr().change == *change
                            && let Some(promise) = asked.promise(object)
                        {
                            state.promise = Some(promise);
                        }
                    }
                    if let Some(afs) = &self.afs {
                        let mut statuses = afs.statuses.lock();
                        if let Some(status) = statuses.peek_mut(&object.0)
                            && status.attr.fid == *fid
                            && status.attr.change == *change
                            && let Some(promise) = asked.promise(object)
                        {
                            status.promise = promise;
                        }
                    }
                }
                Checked::Gone => {}
            }
        }
        Ok(())
    }
}
