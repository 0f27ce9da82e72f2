//! Answering requests: who may ask, which volume answers, and what must not be cut.

use std::sync::Arc;

use larder_protocol::attr::Credential;
use larder_protocol::cell::{ServerId, VolumeRecord, VolumeState};
use larder_protocol::error::ErrorCode;
use larder_protocol::handshake::{Hello, Refusal, Welcome, agree};
use larder_protocol::ids::{Epoch, Fid, OpId, VolumeId};
use larder_protocol::limits::{MAX_PAYLOAD, MAX_SLOTS, MAX_VOLUME_NAME};
use larder_protocol::runtime::{BoxFuture, RuntimeExt};
use larder_protocol::service::admin::{AdminError, VolumeKey};
use larder_protocol::service::callback::{Breaks, Grants, LeaseId, ObjectId, Promised, Renew, Renewed};
use larder_protocol::service::file::{
    Checked, Committed, Mutated, NewContents, Op, Query, QueryReply, StageRequest, WriteRequest, Written,
};
use larder_protocol::service::kind::Kind;
use larder_protocol::service::registry::{RegistryError, RegistryReply, RegistryRequest};
use larder_protocol::service::transfer::{TransferReply, TransferRequest};
use larder_protocol::service::volume::{VolumeReply, VolumeRequest};
use larder_protocol::service::{LarderRequest, LarderResponse};
use tracing::{debug, error, warn};

use super::{SOFTWARE, Server, check};
use crate::core::fence::Identity;
use crate::location::LocationError;
use crate::net::connection::{Call, Handler};
use crate::net::sessions::{Permit, Session};
use crate::volume::Volume;

/// Bytes of a client's name for itself.
const MAX_SOFTWARE: usize = 256;

impl Handler for Server {
    async fn handle(self: Arc<Self>, call: Call) -> LarderResponse {
        let Call { session, request, permit } = call;
        let session = &*session;
        match request {
            LarderRequest::Hello { hello } => {
                LarderResponse::Hello(self.timed(Kind::Hello, self.hello(session, hello, permit)).await)
            }
            LarderRequest::Query { cred, query } => {
                LarderResponse::Query(self.timed(query.kind(), self.query(session, cred, query)).await)
            }
            LarderRequest::Promised { cred, query } => {
                LarderResponse::Promised(self.timed(query.kind(), self.promised(session, cred, query)).await)
            }
            LarderRequest::Renew { request } => {
                LarderResponse::Renew(self.timed(Kind::Renew, self.renew(session, request)).await)
            }
            LarderRequest::Breaks { lease, acked } => {
                LarderResponse::Breaks(self.timed(Kind::Breaks, self.breaks(session, lease, acked, permit)).await)
            }
            LarderRequest::Stage { cred, request } => {
                LarderResponse::Stage(self.timed(Kind::Stage, self.stage(session, cred, request, permit)).await)
            }
            LarderRequest::Mutate { cred, id, op } => {
                LarderResponse::Mutate(self.timed(op.kind(), self.mutate(session, cred, id, op, permit)).await)
            }
            LarderRequest::Write { cred, request } => {
                LarderResponse::Write(self.timed(Kind::Write, self.write(session, cred, request, permit)).await)
            }
            LarderRequest::Commit { cred, fid } => {
                LarderResponse::Commit(self.timed(Kind::Commit, self.commit(session, cred, fid, permit)).await)
            }
            LarderRequest::Sync { volume, since } => {
                LarderResponse::Sync(self.timed(Kind::Sync, self.sync(session, volume, since, permit)).await)
            }
            LarderRequest::Volume { cred, request: request @ VolumeRequest::Locate { .. } } => {
                LarderResponse::Volume(self.timed(Kind::Locate, self.volume(session, cred, request)).await)
            }
            LarderRequest::Volume { cred, request } => {
                LarderResponse::Volume(self.timed(Kind::Volume, self.volume(session, cred, request)).await)
            }
            LarderRequest::Registry { request } => {
                LarderResponse::Registry(self.timed(Kind::Registry, self.registry(session, request)).await)
            }
            LarderRequest::Transfer { request } => {
                LarderResponse::Transfer(self.timed(Kind::Transfer, self.transfer(session, request)).await)
            }
            LarderRequest::Admin { cred, request } => {
                LarderResponse::Admin(self.timed(Kind::Admin, self.administer(session, cred, request)).await)
            }
            LarderRequest::Goodbye {} => {
                LarderResponse::Goodbye(self.timed(Kind::Goodbye, self.goodbye(session, permit)).await)
            }
            LarderRequest::Stats {} => LarderResponse::Stats(self.stats()),
        }
    }
}

impl Server {
    async fn timed<T, E>(&self, kind: Kind, answer: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let start = self.runtime().boottime();
        let result = answer.await;
        self.counters.answered(kind, self.runtime().boottime().saturating_sub(start), result.is_ok());
        result
    }

    /// For whom the connection speaks.
    pub(super) fn admit(&self, session: &Session) -> Result<Identity, ErrorCode> {
        let refused = if session.is_fenced() { ErrorCode::Fenced } else { ErrorCode::UnknownClient };
        match session.identity() {
            Some(identity) if !session.is_fenced() => Ok(identity),
            _ => {
                self.counters.refused();
                Err(refused)
            }
        }
    }

    /// Carries out what must be done whole, whatever becomes of the request. Its connection does not count as at
    /// rest before.
    ///
    /// The work comes boxed: it is the bulk of what a request keeps, and would be copied by each that passes it on.
    async fn whole<T: Send + 'static>(
        &self,
        permit: Permit,
        work: BoxFuture<Result<T, ErrorCode>>,
    ) -> Result<T, ErrorCode> {
        let done = self.runtime().detached(async move {
            let result = work.await;
            drop(permit);
            result
        });
        done.await.unwrap_or_else(|| {
            error!("defect: a task that carried out a request panicked");
            Err(ErrorCode::Internal)
        })
    }

    /// A volume, for a request that came on a connection.
    async fn volume_for(&self, session: &Session, id: VolumeId) -> Result<Arc<Volume>, ErrorCode> {
        let volume = self.volumes.get(id).await?;
        // M6 of `moving`. Looked at last: whoever gets a volume finds that it has come.
        if self.volumes.has_arrived_since(id, session.arrived()) { Err(ErrorCode::Fenced) } else { Ok(volume) }
    }

    async fn hello(&self, session: &Session, hello: Hello, permit: Permit) -> Result<Welcome, Refusal> {
        if self.shared.ending.is_cancelled() {
            return Err(Refusal::Unavailable);
        }
        if hello.software.len() > MAX_SOFTWARE {
            return Err(Refusal::Malformed(format!("a software name of more than {MAX_SOFTWARE} bytes")));
        }
        let version = agree(hello.min_version, hello.max_version)?;
        session.greeted_after(self.volumes.arrived());
        let greeted = self.shared.sessions.hello(session, &hello).await?;
        let Identity { client, incarnation, channel, generation } = greeted.identity;
        debug!(peer = %session.peer(), %client, incarnation, channel, generation, software = hello.software, "hello");
        self.promises.set_prompt(client, hello.prompt);
        if greeted.unsettled {
            // The older life's daemon is gone, and with it whatever it promised its kernel.
            self.promises.gone(client, Some(incarnation));
            let (volumes, sessions) = (self.volumes.clone(), self.shared.sessions.clone());
            let settling = self.whole(
                permit,
                Box::pin(async move {
                    volumes.client_gone(client, Some(incarnation)).await?;
                    sessions.settled(greeted.identity);
                    Ok(())
                }),
            );
            if let Err(code) = settling.await {
                // They cost space, no more; the next connection tries again, and they expire.
                warn!(%client, "cannot free what older lives of the client left: {code}");
            }
        }
        Ok(Welcome {
            version,
            server: self.id,
            epoch: self.epoch,
            software: SOFTWARE.to_owned(),
            durable: self.volumes.is_durable(),
            slots: MAX_SLOTS,
            max_read: MAX_PAYLOAD as u32,
            max_write: MAX_PAYLOAD as u32,
            lease: self.settings.lease,
        })
    }

    async fn query(&self, session: &Session, cred: Credential, query: Query) -> Result<QueryReply, ErrorCode> {
        self.admit(session)?;
        Ok(self.answer(session, cred, query).await?.0)
    }

    /// Answers a query of a client that was admitted. As long as the volume is kept that comes with the answer, it is not
    /// withdrawn.
    async fn answer(
        &self,
        session: &Session,
        cred: Credential,
        query: Query,
    ) -> Result<(QueryReply, Arc<Volume>), ErrorCode> {
        let volume = self.volume_for(session, check::query(&query)?).await?;
        let cred = self.settings.root_squash.apply(session.peer(), cred);
        let reply = volume.query(&cred, query).await?;
        if let QueryReply::Data { data, .. } = &reply {
            self.counters.sent(data.len());
        }
        Ok((reply, volume))
    }

    async fn promised(&self, session: &Session, cred: Credential, query: Query) -> Result<Promised, ErrorCode> {
        let client = self.admit(session)?.client;
        let asked: Vec<ObjectId> = asked(&query);
        // A copy may be of a version that has been superseded long since.
        let from_copy = matches!(query, Query::Fetch { copy: true, .. });
        // Before anything is read (P4).
        let reading = self.promises.begin_read();
        let (reply, volume) = self.answer(session, cred, query).await?;
        let grants = if from_copy { Grants::default() } else { reading.grant(client, shown(asked, &reply)) };
        // What breaks the callbacks on a volume that is withdrawn must find this one.
        drop(volume);
        Ok(Promised { reply, grants })
    }

    async fn renew(&self, session: &Session, request: Renew) -> Result<Renewed, ErrorCode> {
        let Identity { client, incarnation, .. } = self.admit(session)?;
        self.promises.renew(client, incarnation, request).await
    }

    async fn breaks(&self, session: &Session, lease: LeaseId, acked: u64, permit: Permit) -> Result<Breaks, ErrorCode> {
        let client = self.admit(session)?.client;
        drop(permit);
        tokio::select! {
            biased;
            () = session.fenced() => Err(ErrorCode::Fenced),
            () = self.shared.ending.cancelled() => Err(ErrorCode::Unavailable),
            breaks = self.promises.breaks(client, lease, acked) => Ok(breaks),
        }
    }

    async fn stage(
        &self,
        session: &Session,
        cred: Credential,
        request: StageRequest,
        permit: Permit,
    ) -> Result<(), ErrorCode> {
        let client = self.admit(session)?.client;
        let volume = self.volume_for(session, check::stage(&request)?).await?;
        let cred = self.settings.root_squash.apply(session.peer(), cred);
        let len = request.data.len();
        self.whole(permit, Box::pin(async move { volume.stage(&cred, client, request).await })).await?;
        self.counters.received(len);
        Ok(())
    }

    async fn mutate(
        &self,
        session: &Session,
        cred: Credential,
        id: OpId,
        op: Op,
        permit: Permit,
    ) -> Result<Mutated, ErrorCode> {
        check::id(self.admit(session)?, id)?;
        let volume = self.volume_for(session, check::op(&op)?).await?;
        let cred = self.settings.root_squash.apply(session.peer(), cred);
        let carried = match &op {
            Op::Append { data, .. } | Op::Store { contents: NewContents::Whole(data), .. } => data.len(),
            _ => 0,
        };
        let mutated = self.whole(permit, Box::pin(async move { volume.mutate(&cred, id, op).await })).await?;
        self.counters.received(carried);
        Ok(mutated)
    }

    async fn write(
        &self,
        session: &Session,
        cred: Credential,
        request: WriteRequest,
        permit: Permit,
    ) -> Result<Written, ErrorCode> {
        self.admit(session)?;
        let volume = self.volume_for(session, check::write(&request)?).await?;
        let cred = self.settings.root_squash.apply(session.peer(), cred);
        let len = request.bytes();
        let written = self.whole(permit, Box::pin(async move { volume.write(&cred, request).await })).await?;
        self.counters.received(len);
        Ok(written)
    }

    async fn commit(
        &self,
        session: &Session,
        cred: Credential,
        fid: Fid,
        permit: Permit,
    ) -> Result<Committed, ErrorCode> {
        self.admit(session)?;
        let volume = self.volume_for(session, fid.volume).await?;
        let cred = self.settings.root_squash.apply(session.peer(), cred);
        self.whole(permit, Box::pin(async move { volume.commit(&cred, fid).await })).await
    }

    async fn sync(&self, session: &Session, volume: VolumeId, since: Epoch, permit: Permit) -> Result<(), ErrorCode> {
        self.admit(session)?;
        let volume = self.volume_for(session, volume).await?;
        // What other servers have acknowledged was made durable when it came.
        if self.lives.as_ref().is_some_and(|lives| !lives.contains(&since)) && !volume.vouched().contains(&since) {
            let volume = volume.id();
            warn!(%volume, "a client syncs what it wrote before this machine was started anew; some of it may be lost");
            return Err(ErrorCode::Io);
        }
        self.whole(permit, Box::pin(async move { volume.sync().await })).await
    }

    async fn volume(
        &self,
        session: &Session,
        cred: Credential,
        request: VolumeRequest,
    ) -> Result<VolumeReply, ErrorCode> {
        self.admit(session)?;
        let name = match request {
            VolumeRequest::Attach { name } => name,
            VolumeRequest::Locate { volume, not_at } => return self.locate(volume, not_at).await,
        };
        if name.len() > MAX_VOLUME_NAME {
            return Err(ErrorCode::NameTooLong);
        }
        let volume = self.volumes.named(&name).await?;
        let cred = self.settings.root_squash.apply(session.peer(), cred);
        match volume.query(&cred, Query::Getattr { fid: volume.root() }).await? {
            QueryReply::Attr(root) => Ok(VolumeReply::Attached { volume: volume.id(), root }),
            other => {
                error!("defect: a volume answered a getattr with {other:?}");
                Err(ErrorCode::Internal)
            }
        }
    }

    /// Whether another server of the cell may be at the other end.
    fn trusts(&self, session: &Session) -> bool {
        self.settings.root_squash.apply(session.peer(), Credential::root()).uid == 0
    }

    /// A volume that moves, for the server that is to have it.
    async fn transfer(&self, session: &Session, request: TransferRequest) -> Result<TransferReply, AdminError> {
        let no = |code, text: &str| AdminError { code, text: text.to_owned() };
        self.admit(session).map_err(|code| no(code, "the connection has not said hello"))?;
        if !self.trusts(session) {
            let text = "a volume moves to a server of another host only if that is trusted (`larderd serve --trust`)";
            return Err(no(ErrorCode::NotPermitted, text));
        }
        let this = self.this.upgrade().ok_or_else(|| no(ErrorCode::Unavailable, "the server is ending"))?;
        // Boxed, as whatever is large and rare: each request would carry it along.
        Box::pin(this.send(request)).await
    }

    /// The directory of the cell, for its other servers.
    async fn registry(&self, session: &Session, request: RegistryRequest) -> Result<RegistryReply, RegistryError> {
        let no = |cause: &str| RegistryError { service: "this server's".to_owned(), cause: cause.to_owned() };
        self.admit(session).map_err(|code| no(&code.to_string()))?;
        if !self.trusts(session) {
            return Err(no(
                "servers of another host belong to the cell only if it is trusted (`larderd serve --trust`)",
            ));
        }
        let registry = self.cell.as_ref().map(|cell| cell.registry().clone());
        let Some(registry) = registry.filter(|registry| registry.is_own()) else {
            return Err(no("it has none of its own; name the server that has"));
        };
        match request {
            RegistryRequest::Get { key } => Ok(RegistryReply::Entry(registry.get(key).await?)),
            RegistryRequest::List { prefix } => Ok(RegistryReply::Listing(registry.list(prefix).await?)),
            RegistryRequest::Transact(transaction) => {
                Ok(RegistryReply::Transacted(registry.transact(transaction).await?))
            }
            RegistryRequest::Changed { prefix, revision } => {
                let changed = tokio::select! {
                    biased;
                    () = self.shared.ending.cancelled() => return Err(no("it is ending")),
                    changed = registry.changed(prefix, revision) => changed?,
                };
                Ok(RegistryReply::Revision(changed))
            }
        }
    }

    /// Where a volume is. What is known is told, unless it says what the client has found to be wrong (L4).
    async fn locate(&self, key: VolumeKey, not_at: Option<ServerId>) -> Result<VolumeReply, ErrorCode> {
        let cell = self.cell.as_ref().ok_or(ErrorCode::NotSupported)?;
        let told = |record: VolumeRecord| {
            let server = cell.server(record.server).ok_or(ErrorCode::Unavailable)?;
            Ok::<_, ErrorCode>((record, server.address))
        };
        let known = match &key {
            VolumeKey::Id(id) => cell.known(*id),
            VolumeKey::Name(name) => cell.known_as(name),
        };
        let found = match known.map(told) {
            Some(Ok((record, address))) if not_at != Some(record.server) => (record, address),
            _ => {
                let now = match key {
                    VolumeKey::Id(id) => cell.volume(id).await,
                    VolumeKey::Name(name) => cell.volume_named(&name).await,
                };
                let record = now.map_err(|reason| match reason {
                    LocationError::NoSuchVolume(_) => ErrorCode::NoSuchVolume,
                    reason => {
                        warn!("cannot tell where a volume is: {reason}");
                        ErrorCode::NoLocation
                    }
                })?;
                told(record)?
            }
        };
        match found.0.state {
            VolumeState::Deleted { .. } => Err(ErrorCode::NoSuchVolume),
            VolumeState::Online | VolumeState::Offline => {
                Ok(VolumeReply::Located { volume: found.0.id, server: found.0.server, address: found.1 })
            }
        }
    }

    async fn goodbye(&self, session: &Session, permit: Permit) -> Result<(), ErrorCode> {
        let client = self.admit(session)?.client;
        self.shared.sessions.goodbye(session).await;
        self.promises.gone(client, None);
        let volumes = self.volumes.clone();
        self.whole(permit, Box::pin(async move { volumes.client_gone(client, None).await })).await
    }
}

/// The objects of a recheck, which its answer shows by their places alone.
fn asked(query: &Query) -> Vec<ObjectId> {
    match query {
        Query::Recheck { items } => items.iter().map(|(fid, _)| (*fid).into()).collect(),
        _ => Vec::new(),
    }
}

/// The objects whose attributes, names or contents an answer shows.
fn shown(asked: Vec<ObjectId>, reply: &QueryReply) -> Vec<ObjectId> {
    match reply {
        QueryReply::Entry { attr, dir } => attr.iter().chain([dir]).map(|attr| attr.fid.into()).collect(),
        QueryReply::Attr(attr) | QueryReply::Access { attr, .. } | QueryReply::Data { attr, .. } => {
            vec![attr.fid.into()]
        }
        QueryReply::Listing { entries, dir, .. } => {
            let entries = entries.iter().filter(|entry| entry.attr.is_some()).map(|entry| entry.fid.into());
            entries.chain([dir.fid.into()]).collect()
        }
        QueryReply::Rechecked(verdicts) => {
            let there = asked.into_iter().zip(verdicts).filter(|(_, verdict)| **verdict != Checked::Gone);
            there.map(|(object, _)| object).collect()
        }
        QueryReply::Target(_)
        | QueryReply::Space(_)
        | QueryReply::Xattr(_)
        | QueryReply::XattrNames(_)
        | QueryReply::Offset(_) => Vec::new(),
    }
}
