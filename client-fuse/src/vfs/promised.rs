//! Keeping the lease, and giving up what is broken (rules 1, 6, 7 and 8 of AFS mode).

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use larder_protocol::attr::{Credential, FileType};
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
use crate::mode::afs::Afs;
use crate::rpc::{Cause, Failure};

/// The wait before asking again a server that did not answer.
const RETRY: Duration = Duration::from_millis(50);
/// How often the index of the disk cache is written, if it has changed.
const INDEX_FLUSH: Duration = Duration::from_secs(2);
/// Objects without a node that are rechecked after a lapse, the most recently used first.
const RECHECK_STATUSES: usize = 16_384;

/// Starts what keeps the lease. It ends with the mount.
pub(super) fn start(vfs: &Arc<Vfs>, afs: &Arc<Afs>) {
    let runtime = &vfs.runtime;
    runtime.spawn(Box::pin(keep_lease(Arc::downgrade(vfs), afs.clone())));
    runtime.spawn(Box::pin(take_breaks(Arc::downgrade(vfs), afs.clone())));
    runtime.spawn(Box::pin(keep_pinned(Arc::downgrade(vfs), afs.clone())));
    runtime.spawn(Box::pin(flush_index(Arc::downgrade(vfs), afs.clone())));
}

/// Renews the lease for as long as the mount is there.
async fn keep_lease(weak: Weak<Vfs>, afs: Arc<Afs>) {
    loop {
        let Some(vfs) = weak.upgrade() else { return };
        let aborted = vfs.client.shared().aborted.clone();
        let wait = tokio::select! {
            biased;
            wait = vfs.renew_lease(&afs) => wait,
            () = aborted.cancelled() => return,
        };
        let runtime = vfs.runtime.clone();
        drop(vfs);
        tokio::select! {
            biased;
            () = aborted.cancelled() => return,
            () = afs.lease_lost.notified() => {}
            () = runtime.sleep(wait) => {}
        }
    }
}

/// Asks for breaks, applies and acknowledges them.
async fn take_breaks(weak: Weak<Vfs>, afs: Arc<Afs>) {
    loop {
        let Some(vfs) = weak.upgrade() else { return };
        let (runtime, aborted) = (vfs.runtime.clone(), vfs.client.shared().aborted.clone());
        let client = vfs.client.clone();
        drop(vfs);
        let place = afs.promises.lock().place();
        let term = afs.promises.lock().terms().term;
        let Some((lease, acked)) = place else {
            tokio::select! {
                biased;
                () = aborted.cancelled() => return,
                () = afs.leased.notified() => {}
            }
            continue;
        };
        let answer = tokio::select! {
            biased;
            answer = client.breaks(term, lease, acked) => answer,
            () = aborted.cancelled() => return,
        };
        match answer {
            Ok(Breaks::Outstanding(breaks)) => {
                let Some(vfs) = weak.upgrade() else { return };
                vfs.apply_breaks(&afs, &breaks, lease).await;
            }
            Ok(Breaks::Lapsed) => {
                if afs.promises.lock().place().is_some_and(|(now, _)| now == lease) {
                    afs.lease_lost.notify_one();
                }
                runtime.sleep(RETRY).await;
            }
            Err(Failure::NotSent(Cause::Aborted) | Failure::MaybeExecuted(Cause::Aborted)) => return,
            Err(_) => {
                // Perhaps a new server process, to be told that what the old one promised is void.
                afs.lease_lost.notify_one();
                runtime.sleep(RETRY).await;
            }
        }
    }
}

/// Writes the index of the disk cache now and then.
async fn flush_index(weak: Weak<Vfs>, afs: Arc<Afs>) {
    loop {
        let Some(vfs) = weak.upgrade() else { return };
        let (runtime, aborted) = (vfs.runtime.clone(), vfs.client.shared().aborted.clone());
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
    /// Renews the lease once; how long to wait before the next time.
    pub(super) async fn renew_lease(&self, afs: &Arc<Afs>) -> Duration {
        let term = afs.promises.lock().terms().term;
        for _ in 0..16 {
            let another = self.client.shared().epoch().is_some_and(|epoch| afs.promises.lock().is_of_another(epoch));
            if another {
                self.give_up_everything(afs).await;
            }
            let (promises, shared) = (&afs.promises, self.client.shared());
            let answer = self.client.renew(term, |epoch| {
                let mut promises = promises.lock();
                // Rule 8: not before what the older process promised is void.
                (!promises.is_of_another(epoch)).then(|| promises.renewal(epoch))
            });
            let (sent, request, renewed) = match answer.await {
                Ok(answered) => answered,
                Err(_) => return RETRY,
            };
            if let Some(welcome) = shared.welcome() {
                afs.promises.lock().set_terms(welcome.lease);
            }
            let lease = request.lease;
            let renewal = afs.promises.lock().renewed(sent, &request, renewed);
            match renewal {
                Renewal::Runs => {
                    if lease.is_none() {
                        afs.leased.notify_one();
                        self.recheck_in_background();
                    }
                    return afs.promises.lock().renew_every();
                }
                Renewal::Apply(breaks) => {
                    let Some(lease) = lease else { return RETRY };
                    if breaks.is_empty() {
                        // Too many are outstanding: the lease is going to end.
                        return RETRY;
                    }
                    self.apply_breaks(afs, &breaks, lease).await;
                }
                Renewal::Void => self.give_up_everything(afs).await,
            }
        }
        RETRY
    }

    /// Applies breaks: when it returns, neither this client nor its kernel uses what it knew of the objects.
    async fn apply_breaks(&self, afs: &Afs, breaks: &[Break], lease: LeaseId) {
        let _turn = afs.applying.lock().await;
        let objects = afs.promises.lock().broken(breaks);
        self.give_up(afs, &objects).await;
        afs.promises.lock().applied(breaks, lease);
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

    /// Everything that was promised is void (rules 7 and 8).
    async fn give_up_everything(&self, afs: &Afs) {
        let _turn = afs.applying.lock().await;
        tracing::info!("the lease has lapsed, or the server was restarted: everything cached is asked about again");
        afs.promises.lock().void();
        let promised = |node: &Arc<Node>| node.state.lock().promise.is_some();
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
        let lapsed = |promise, object| afs.promises.lock().usable(Some(promise), object, now) == Err(Miss::Lapsed);
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
