//! The servers of a cell, and which of them has which volume.
//!
//! A client knows one server from the start, its *home*, and is told of the others when it comes to their volumes.
//!
//! - **S1** A server is who it says it is and not where it is: by its identity it has one [`Client`], with its own
//!   connections, lease and epoch. Replay slots and the client's own life are the same at all of them.
//! - **S2** What was told of a volume holds until the server that it names says that the volume is not there (`Moved`). Then
//!   it is asked for once more, and whoever answers is told which answer was wrong.
//! - **S3** Any server that answers can say where a volume is. One that is away holds up nobody who asks for the volume of
//!   another.
//! - **S4** Who waits for a server that is away asks the others now and then whether the volume is at another one by now, or the
//!   server at another address.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use larder_protocol::attr::Credential;
use larder_protocol::cell::ServerId;
use larder_protocol::error::ErrorCode;
use larder_protocol::handshake::Welcome;
use larder_protocol::ids::{Fid, VolumeId};
use larder_protocol::runtime::BootTime;
use larder_protocol::service::admin::{AdminError, AdminReply, AdminRequest, VolumeKey};
use larder_protocol::service::file::{Committed, Mutated, Op, Query, QueryReply, StageRequest, WriteRequest, Written};
use larder_protocol::service::volume::{VolumeReply, VolumeRequest};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::channel::Shared;
use super::{Cause, Client, Failure, Mutation, Patience};

/// How long one server may take to say where a volume is, before another is asked.
const LOCATE_WITHIN: Duration = Duration::from_secs(2);
/// The first pause before all are asked again, and the longest; it doubles.
const AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// How long a server must be away before the others are asked whether its volume is at one of them, and how often.
const AWAY: Duration = Duration::from_secs(2);

/// All servers that a client knows.
pub struct Servers {
    patience: Patience,
    table: Mutex<Table>,
    /// Of each volume that is being asked for, the turn to do so.
    turns: Mutex<BTreeMap<VolumeId, Arc<tokio::sync::Mutex<()>>>>,
}

struct Table {
    /// By their numbers; the first is the home.
    clients: Vec<Arc<Client>>,
    /// Which of them has which volume (S2).
    volumes: BTreeMap<VolumeId, u32>,
    /// When it was last asked where the volume of a server is that does not answer.
    asked: BTreeMap<VolumeId, BootTime>,
}

/// What a volume goes by.
type Located = (VolumeId, Arc<Client>);

impl Servers {
    /// With the server that is known from the start.
    pub fn new(home: Arc<Client>) -> Arc<Servers> {
        let patience = home.patience();
        let table = Mutex::new(Table { clients: vec![home], volumes: BTreeMap::new(), asked: BTreeMap::new() });
        Arc::new(Servers { patience, table, turns: Mutex::default() })
    }

    /// The server that was known from the start.
    pub fn home(&self) -> Arc<Client> {
        self.table.lock().clients[0].clone()
    }

    /// All of them, by their numbers.
    pub fn all(&self) -> Vec<Arc<Client>> {
        self.table.lock().clients.clone()
    }

    /// The server with this number.
    pub fn numbered(&self, number: u32) -> Option<Arc<Client>> {
        self.table.lock().clients.get(number as usize).cloned()
    }

    /// The end of the mount.
    pub fn aborted(&self) -> CancellationToken {
        self.home().shared().aborted.clone()
    }

    /// The server that has a volume, as far as is known.
    pub fn known(&self, volume: VolumeId) -> Option<Arc<Client>> {
        let table = self.table.lock();
        table.clients.get(*table.volumes.get(&volume)? as usize).cloned()
    }

    /// What the server that has a volume has said of itself last.
    pub fn welcome_of(&self, volume: VolumeId) -> Option<Welcome> {
        self.known(volume)?.shared().welcome()
    }

    /// The server that has a volume.
    ///
    /// # Errors
    /// There is no such volume, or nobody says where it is.
    pub async fn of(&self, volume: VolumeId) -> Result<Arc<Client>, Failure> {
        match self.known(volume) {
            Some(client) => Ok(client),
            None => self.ask_for(volume, None).await,
        }
    }

    /// A server has said that it has a volume not. Returns the one that has it.
    ///
    /// # Errors
    /// As [`of`](Servers::of).
    pub async fn moved(&self, volume: VolumeId, from: &Arc<Client>) -> Result<Arc<Client>, Failure> {
        self.ask_for(volume, Some(from)).await
    }

    async fn ask_for(&self, volume: VolumeId, not_at: Option<&Arc<Client>>) -> Result<Arc<Client>, Failure> {
        let turn = self.turns.lock().entry(volume).or_default().clone();
        let found = {
            let _turn = turn.lock().await;
            match self.known(volume) {
                // Somebody else has asked meanwhile.
                Some(client) if not_at.is_none_or(|not_at| !Arc::ptr_eq(not_at, &client)) => Ok(client),
                _ => self.locate(&VolumeKey::Id(volume), not_at).await.map(|(_, client)| client),
            }
        };
        let mut turns = self.turns.lock();
        // Nobody else waits for it.
        if Arc::strong_count(&turn) <= 2 {
            turns.remove(&volume);
        }
        found
    }

    /// Asks where a volume is, for as long as a request may take.
    async fn locate(&self, key: &VolumeKey, not_at: Option<&Arc<Client>>) -> Result<Located, Failure> {
        let home = self.home();
        let shared = home.shared();
        let limit = match self.patience {
            Patience::Hard => None,
            Patience::Soft(time) => Some(shared.runtime.boottime() + time),
        };
        let not_at = not_at.and_then(|client| Some(client.shared().welcome()?.server));
        let mut pause = AGAIN.0;
        loop {
            let mut refused = None;
            for client in self.askable() {
                let within = match limit {
                    Some(limit) => limit.saturating_sub(shared.runtime.boottime()).min(LOCATE_WITHIN),
                    None => LOCATE_WITHIN,
                };
                match client.locate(within, key.clone(), not_at).await {
                    Ok(VolumeReply::Located { volume, server, address }) => {
                        return Ok((volume, self.enter(volume, server, &address)));
                    }
                    Ok(VolumeReply::Attached { .. }) => refused = Some(ErrorCode::Io),
                    // A server that belongs to no cell has all that there is.
                    Err(Failure::Refused(ErrorCode::NotSupported)) => {
                        if let VolumeKey::Id(volume) = key {
                            self.table.lock().volumes.insert(*volume, client.number());
                            return Ok((*volume, client));
                        }
                        refused = Some(ErrorCode::NoSuchVolume);
                    }
                    Err(Failure::Refused(code)) => refused = Some(code),
                    Err(Failure::NotSent(Cause::Aborted) | Failure::MaybeExecuted(Cause::Aborted)) => {
                        return Err(Failure::NotSent(Cause::Aborted));
                    }
                    // Whatever became of it, it has changed nothing.
                    Err(Failure::NotSent(_) | Failure::MaybeExecuted(_)) => continue,
                }
                // Who answers speaks for the cell, but for one that cannot tell.
                if refused.is_some_and(|code| code != ErrorCode::NoLocation) {
                    break;
                }
            }
            if let Some(code) = refused {
                return Err(Failure::Refused(code));
            }
            if limit.is_some_and(|limit| shared.runtime.boottime() + pause >= limit) {
                return Err(Failure::NotSent(Cause::TimedOut));
            }
            tokio::select! {
                biased;
                () = shared.aborted.cancelled() => return Err(Failure::NotSent(Cause::Aborted)),
                () = shared.runtime.sleep(pause) => {}
            }
            pause = (pause * 2).min(AGAIN.1);
        }
    }

    /// Those to ask, the ones that answer first (S3).
    fn askable(&self) -> Vec<Arc<Client>> {
        let mut clients = self.all();
        clients.sort_by_key(|client| !client.is_connected());
        clients
    }

    /// This server has a volume, and is there.
    fn enter(&self, volume: VolumeId, server: ServerId, address: &str) -> Arc<Client> {
        let client = self.at_address(server, address);
        self.table.lock().volumes.insert(volume, client.number());
        client
    }

    /// This server is there.
    fn at_address(&self, server: ServerId, address: &str) -> Arc<Client> {
        let mut table = self.table.lock();
        let is_it = |client: &&Arc<Client>| client.shared().server() == Some(server);
        let client = match table.clients.iter().find(is_it) {
            Some(client) => client.clone(),
            None => {
                let number = table.clients.len() as u32;
                let shared = table.clients[0].shared().of_another(number, server, address);
                let client = Client::new(shared, self.patience);
                tracing::info!("the server {address} belongs to the cell");
                table.clients.push(client.clone());
                client
            }
        };
        if client.number() > 0 {
            client.shared().is_at(address);
        }
        client
    }

    /// Where to begin in the volume of this name, and the server that has it.
    ///
    /// # Errors
    /// There is no such volume; what servers say, or that there is no answer.
    pub async fn attach(&self, cred: &Credential, name: &str) -> Result<(VolumeReply, Arc<Client>), Failure> {
        let request = || VolumeRequest::Attach { name: name.to_owned() };
        let home = self.home();
        let (reply, client) = match home.volume(cred, request()).await {
            Err(Failure::Refused(ErrorCode::Moved)) => {
                let (_, client) = self.locate(&VolumeKey::Name(name.to_owned()), Some(&home)).await?;
                (client.volume(cred, request()).await?, client)
            }
            answer => (answer?, home),
        };
        if let VolumeReply::Attached { volume, .. } = &reply {
            self.table.lock().volumes.insert(*volume, client.number());
        }
        self.meet(cred, &client).await;
        Ok((reply, client))
    }

    /// Learns which other servers there are, to be asked should this one go away (S3). One that does not say so belongs to no
    /// cell, or will be asked for its volumes all the same.
    async fn meet(&self, cred: &Credential, client: &Arc<Client>) {
        if let Ok(Ok(AdminReply::Servers(servers))) = client.admin(cred, AdminRequest::Servers).await {
            let home = client.shared().server();
            servers
                .iter()
                .filter(|server| Some(server.id) != home)
                .for_each(|server| drop(self.at_address(server.id, &server.address)));
        }
    }

    /// Asks the server that has a volume, wherever that goes meanwhile (S2, S4).
    async fn at<T, F>(self: &Arc<Self>, volume: VolumeId, ask: impl Fn(Arc<Client>) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let mut way = self.way(volume).await?;
        loop {
            // Boxed: a request is large, and would be copied by each that passes it on.
            if let Some(answer) = way.answer(Box::pin(ask(way.client()))).await? {
                return Ok(answer);
            }
        }
    }

    /// Waits for an answer of a server that had a volume; or returns the one that has it now, should the first be away (S4).
    pub(super) async fn or_elsewhere<T>(
        &self,
        volume: VolumeId,
        client: &Arc<Client>,
        answer: impl Future<Output = T>,
    ) -> Result<T, Arc<Client>> {
        if self.table.lock().clients.len() == 1 {
            // There is nobody else to ask.
            return Ok(answer.await);
        }
        tokio::select! {
            biased;
            answer = answer => Ok(answer),
            // Boxed: hardly anybody needs it, and whoever waits would carry it along.
            other = Box::pin(self.elsewhere(volume, client)) => Err(other),
        }
    }

    /// Ends when a server does not answer, and another one has its volume.
    async fn elsewhere(&self, volume: VolumeId, client: &Arc<Client>) -> Arc<Client> {
        loop {
            client.shared().gone().await;
            client.shared().runtime.sleep(AWAY).await;
            if !client.shared().is_gone() {
                continue;
            }
            if let Some(now) = self.known(volume).filter(|now| !Arc::ptr_eq(now, client)) {
                // Somebody else who waits has asked.
                return now;
            }
            let now = client.shared().runtime.boottime();
            {
                let asked = &mut self.table.lock().asked;
                if asked.get(&volume).is_some_and(|last| now.saturating_sub(*last) < AWAY) {
                    continue;
                }
                asked.insert(volume, now);
            }
            for other in self.askable().into_iter().filter(|other| !Arc::ptr_eq(other, client)) {
                let answer = other.locate(LOCATE_WITHIN, VolumeKey::Id(volume), client.shared().server()).await;
                let Ok(VolumeReply::Located { volume, server, address }) = answer else { continue };
                let now = self.enter(volume, server, &address);
                if !Arc::ptr_eq(&now, client) {
                    tracing::info!("volume {volume} has moved to the server {address}");
                    return now;
                }
                break;
            }
        }
    }

    /// As [`Client::query`].
    ///
    /// # Errors
    /// The server's, or that there is no answer.
    pub async fn query(self: &Arc<Self>, cred: &Credential, query: Query) -> Result<QueryReply, Failure> {
        let volume = volume_of(query.fid())?;
        self.at(volume, |client| {
            let query = query.clone();
            async move { client.query(cred, query).await }
        })
        .await
    }

    /// As [`Client::stage`].
    ///
    /// # Errors
    /// The server's, or that there is no answer.
    pub async fn stage(self: &Arc<Self>, cred: &Credential, request: StageRequest) -> Result<(), Failure> {
        self.at(request.fid.volume, |client| {
            let request = request.clone();
            async move { client.stage(cred, request).await }
        })
        .await
    }

    /// As [`Client::write`].
    ///
    /// # Errors
    /// The server's, or that there is no answer.
    pub async fn write(self: &Arc<Self>, cred: &Credential, request: WriteRequest) -> Result<Written, Failure> {
        self.at(request.fid.volume, |client| {
            let request = request.clone();
            async move { client.write(cred, request).await }
        })
        .await
    }

    /// As [`Client::commit`].
    ///
    /// # Errors
    /// The server's, or that there is no answer.
    pub async fn commit(self: &Arc<Self>, cred: &Credential, fid: Fid) -> Result<Committed, Failure> {
        self.at(fid.volume, |client| async move { client.commit(cred, fid).await }).await
    }

    /// As [`Client::sync`].
    ///
    /// # Errors
    /// The server's, or that there is no answer.
    pub async fn sync(self: &Arc<Self>, volume: VolumeId, since: &Welcome) -> Result<(), Failure> {
        self.at(volume, |client| async move { client.sync(volume, since).await }).await
    }

    /// As [`Client::mutate`].
    ///
    /// # Errors
    /// The server's, or that there is no answer.
    pub async fn mutate(self: &Arc<Self>, cred: &Credential, op: Op) -> Result<Mutated, Failure> {
        let mut way = self.way(volume_of(op.fid())?).await?;
        let mut mutation = self.mutation(cred, op);
        loop {
            let client = way.client();
            if let Some(mutated) = way.answer(Box::pin(mutation.at(&client))).await? {
                return Ok(mutated);
            }
        }
    }

    /// Something to be changed, exactly once, wherever its volume goes meanwhile.
    pub fn mutation(self: &Arc<Self>, cred: &Credential, op: Op) -> Mutation {
        Mutation::new(cred, op, Some(self.clone()))
    }

    /// As [`Client::admin`], of any server.
    ///
    /// # Errors
    /// That there is no answer; within, what the server says.
    pub async fn admin(
        &self,
        cred: &Credential,
        request: AdminRequest,
    ) -> Result<Result<AdminReply, AdminError>, Failure> {
        // The one that answers, if there is one.
        let client = self.askable().swap_remove(0);
        client.admin(cred, request).await
    }

    /// Leaves all of them for good.
    pub async fn goodbye(&self) {
        let clients = self.all();
        // One that was never reached has nothing of this client's.
        let known = clients.iter().filter(|client| client.shared().welcome().is_some());
        futures::future::join_all(known.map(|client| client.goodbye())).await;
    }

    /// What all have in common.
    pub fn with_shared<T>(&self, what: impl FnOnce(&Shared) -> T) -> T {
        what(self.home().shared())
    }
}

/// The volume that a request goes to.
fn volume_of(fid: Option<Fid>) -> Result<VolumeId, Failure> {
    Ok(fid.ok_or(Failure::Refused(ErrorCode::Invalid))?.volume)
}
