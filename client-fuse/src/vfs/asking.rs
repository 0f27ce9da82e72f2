//! Asking the server, so that what its answer promises can be told from what was overtaken meanwhile.

use std::convert::Infallible;
use std::sync::Arc;

use larder_protocol::attr::Credential;
use larder_protocol::error::ErrorCode;
use larder_protocol::event_log::Since;
use larder_protocol::ids::Fid;
use larder_protocol::name::Name;
use larder_protocol::service::callback::{Grants, ObjectId};
use larder_protocol::service::file::{Op, OpReply, Query, QueryReply};

use super::{Error, Vfs};
use crate::core::attr_cache::Stamp;
use crate::core::dir_cache::Known;
use crate::core::promises::Promise;
use crate::mode::afs::{Afs, Lease};
use crate::rpc::Client;

/// A request that was answered: when it was sent, and what its answer promises.
pub(super) struct Asked {
    /// When it was sent.
    pub(super) stamp: Stamp,
    promised: Option<Promised>,
}

/// With AFS mode alone.
struct Promised {
    afs: Arc<Afs>,
    /// Of the server that is asked.
    lease: Arc<Lease>,
    /// There until it is given back.
    since: Option<Since>,
    grants: Grants,
    changing: Vec<ObjectId>,
}

impl Asked {
    /// Of a request that promises nothing.
    pub(super) fn plain(stamp: Stamp) -> Asked {
        Asked { stamp, promised: None }
    }

    /// What is promised about an object that the answer shows (rule 6 of AFS mode).
    pub(super) fn promise(&self, object: ObjectId) -> Option<Promise> {
        let promised = self.promised.as_ref()?;
        promised.lease.promises.lock().promise(&promised.grants, promised.since.as_ref()?, object)
    }
}

impl Drop for Promised {
    fn drop(&mut self) {
        let mut promises = self.lease.promises.lock();
        promises.change_ends(&self.changing);
        if let Some(since) = self.since.take() {
            promises.end(since);
        }
    }
}

/// Calls are boxed here: most requests of the kernel need none, and what one keeps would be copied with each of them.
impl Vfs {
    /// A request goes to this server.
    async fn asking(&self, server: &Arc<Client>, changing: Vec<ObjectId>) -> Asked {
        let Some(afs) = &self.afs else { return Asked::plain(self.stamp()) };
        let lease = self.lease_with(afs, server).await;
        let since = {
            let mut promises = lease.promises.lock();
            promises.change_begins(&changing);
            promises.begin()
        };
        let promised = Promised { afs: afs.clone(), lease, since: Some(since), grants: Grants::default(), changing };
        Asked { stamp: self.stamp(), promised: Some(promised) }
    }

    /// Asks for something that changes nothing, with callbacks if the mode has them.
    pub(super) async fn ask(&self, cred: &Credential, query: Query) -> Result<(QueryReply, Asked), Error> {
        if self.afs.is_none() {
            let asked = Asked::plain(self.stamp());
            return Ok((Box::pin(self.servers.query(cred, query)).await?, asked));
        }
        let volume = query.fid().ok_or(ErrorCode::Invalid)?.volume;
        Box::pin(async {
            let mut way = self.servers.way(volume).await?;
            loop {
                let server = way.client();
                let mut asked = self.asking(&server, Vec::new()).await;
                if let Some(answer) = way.answer(server.promised(cred, query.clone())).await? {
                    if let Some(promised) = &mut asked.promised {
                        promised.grants = answer.grants;
                    }
                    return Ok((answer.reply, asked));
                }
            }
        })
        .await
    }

    /// Changes something. What it changes is not used here until the answer has been taken in, and the [`Asked`] is
    /// gone: the server may be in either state (rule 12 of AFS mode).
    pub(super) async fn change(&self, cred: &Credential, op: Op) -> Result<(OpReply, Asked), Error> {
        self.change_at_server(cred, op, false).await
    }

    /// Changes something on behalf of no program that runs. Those that do go by what they know, and no break comes for
    /// a client's own change (rule 12): what is known is given up before the server gets it.
    pub(super) async fn change_unasked(&self, cred: &Credential, op: Op) -> Result<(OpReply, Asked), Error> {
        self.change_at_server(cred, op, true).await
    }

    async fn change_at_server(&self, cred: &Credential, op: Op, is_unasked: bool) -> Result<(OpReply, Asked), Error> {
        let volume = op.fid().ok_or(ErrorCode::Invalid)?.volume;
        let changing = if self.afs.is_some() { self.changed_by(&op) } else { Vec::new() };
        Box::pin(async {
            let mut way = self.servers.way(volume).await?;
            let mut mutation = self.servers.mutation(cred, op.clone());
            let mut has_freed = false;
            loop {
                let server = way.client();
                let mut asked = self.asking(&server, changing.clone()).await;
                if let (true, Some(afs)) = (is_unasked, &self.afs) {
                    let _turn = afs.applying.lock().await;
                    self.give_up(afs, &changing).await;
                }
                let error = match way.answer(Box::pin(mutation.at(&server))).await.map_err(Error::from) {
                    Ok(Some(mutated)) => {
                        if let Some(promised) = &mut asked.promised {
                            promised.grants = mutated.grants;
                        }
                        return Ok((mutated.reply, asked));
                    }
                    // At another server, under the same id.
                    Ok(None) => continue,
                    Err(error) => error,
                };
                if error.is_full() && !has_freed && self.free_removed().await {
                    has_freed = true;
                    mutation = self.servers.mutation(cred, op.clone());
                    continue;
                }
                self.renamed_perhaps(&names_of(&op), error);
                self.changed_perhaps(asked, error);
                return Err(error);
            }
        })
        .await
    }

    /// A change of names has failed, or nobody knows whether it has. The kernel takes them to be as they were: it would go
    /// on to use a file that a name does not lead to any more, for as long as it was told that it may.
    fn renamed_perhaps(&self, names: &[(Fid, Name)], error: Error) {
        // The server's disk failed somewhere on the way, or there was no answer.
        let is_unsure =
            matches!(error, Error::Refused(ErrorCode::Io | ErrorCode::Internal) | Error::TimedOut { executed: true });
        if !is_unsure || names.is_empty() {
            return;
        }
        // What got no answer is decided before the next name is looked up: the way that it went is fenced.
        if self.afs.is_none() && !matches!(error, Error::TimedOut { .. }) {
            // Before the names expire: none that comes now is kept.
            names.iter().for_each(|(dir, _)| self.unsure.insert(*dir));
        }
        let expired = self.notifier.expire_names();
        for (dir, name) in names {
            let Some(dir) = self.nodes.by_fid(*dir) else { continue };
            if self.afs.is_none() {
                dir.state.lock().attrs.drop_validity();
            }
            self.notifier.expire_attrs(dir.number);
            if !expired {
                self.notifier.inval_name(dir.number, name);
            }
        }
    }

    /// A change has failed, or nobody knows whether it has. No break comes for one's own.
    fn changed_perhaps(&self, mut asked: Asked, error: Error) {
        let Some(promised) = &mut asked.promised else { return };
        match error {
            // The server's disk failed somewhere on the way.
            Error::Refused(ErrorCode::Io | ErrorCode::Internal) => {
                for object in &promised.changing {
                    for node in self.forgo(&promised.afs, *object, None) {
                        self.notifier.expire_attrs(node.number);
                    }
                }
            }
            Error::Refused(_) | Error::TimedOut { executed: false } => {}
            // It may still be carried out, any time: these are never again used without asking.
            _ => promised.changing.clear(),
        }
    }

    /// The objects that an operation changes, as far as is known here.
    fn changed_by(&self, op: &Op) -> Vec<ObjectId> {
        if matches!(op, Op::Forget { .. }) {
            // Nobody sees those any more.
            return Vec::new();
        }
        let named = |dir: &Fid, name: &Name| -> Option<ObjectId> {
            let dir = self.nodes.by_fid(*dir)?;
            let state = dir.state.lock();
            match state.dir.as_ref()?.get(name) {
                Known::Present(child) => Some(child.fid.into()),
                Known::Absent | Known::Unknown => None,
            }
        };
        let Ok(objects) = op.may_change(|dir, name| Ok::<_, Infallible>(named(dir, name)));
        objects
    }
}

/// The names that an operation makes, takes away or moves.
fn names_of(op: &Op) -> Vec<(Fid, Name)> {
    match op {
        Op::Create { dir, name, .. }
        | Op::Mkdir { dir, name, .. }
        | Op::Mknod { dir, name, .. }
        | Op::Symlink { dir, name, .. }
        | Op::Graft { dir, name, .. }
        | Op::Ungraft { dir, name }
        | Op::Link { dir, name, .. }
        | Op::Remove { dir, name, .. }
        | Op::Rmdir { dir, name } => vec![(*dir, name.clone())],
        Op::Rename { from_dir, from_name, to_dir, to_name, .. } => {
            vec![(*from_dir, from_name.clone()), (*to_dir, to_name.clone())]
        }
        _ => Vec::new(),
    }
}
