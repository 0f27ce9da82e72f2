//! Sending requests and repeating them until they are answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use larder_protocol::attr::Credential;
use larder_protocol::cell::ServerId;
use larder_protocol::error::ErrorCode;
use larder_protocol::handshake::Welcome;
use larder_protocol::ids::{Epoch, Fid, VolumeId};
use larder_protocol::limits::MAX_DEADLINE;
use larder_protocol::runtime::BootTime;
use larder_protocol::service::admin::{AdminError, AdminReply, AdminRequest, VolumeKey};
use larder_protocol::service::callback::{Breaks, LeaseId, Promised, Renew, Renewed};
use larder_protocol::service::file::{Committed, Mutated, Op, Query, QueryReply, StageRequest, WriteRequest, Written};
use larder_protocol::service::kind::Kind;
use larder_protocol::service::volume::{VolumeReply, VolumeRequest};
use larder_protocol::service::{LarderRequest, LarderResponse};

use super::channel::{Channel, Connection, Shared};
use super::routing::{self, PROMISES, Route, Routing};
use super::{Cause, ConnectError, Failure, Mutation};

/// The first wait before asking a server again that said it is not ready.
const NOT_READY_MIN: Duration = Duration::from_millis(10);
/// The longest.
const NOT_READY_MAX: Duration = Duration::from_millis(250);
/// How long to wait for the answer to a goodbye.
const GOODBYE: Duration = Duration::from_secs(2);

/// How long a request may take.
#[derive(Clone, Copy, Debug)]
pub enum Patience {
    /// For ever: the mount is `hard`.
    Hard,
    /// This long: the mount is `soft`.
    Soft(Duration),
}

/// A server, as requests see it.
pub struct Client {
    shared: Arc<Shared>,
    patience: Patience,
    channels: Vec<Arc<Channel>>,
    routing: Arc<Routing>,
    retries: AtomicU64,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
}

/// How often one request went out.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tries {
    pub(super) sent: u32,
    /// How many of these were not answered, so that each may have been executed; and the last one.
    pub(super) open: u32,
}

impl Client {
    /// Not connected yet.
    pub fn new(shared: Shared, patience: Patience) -> Arc<Client> {
        let shared = Arc::new(shared);
        let channels = (0..=PROMISES).map(|number| Channel::new(shared.clone(), number)).collect();
        Arc::new(Client {
            shared,
            patience,
            channels,
            routing: Arc::default(),
            retries: AtomicU64::new(0),
            bytes_read: AtomicU64::new(0),
            bytes_written: AtomicU64::new(0),
        })
    }

    /// Opens the control channel, trying once.
    ///
    /// # Errors
    /// Why it cannot be.
    pub async fn connect(&self) -> Result<Welcome, ConnectError> {
        self.channels[0].connect_first().await
    }

    /// What the channels share: counters, clock, the end of the mount.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Which of the client's servers this is.
    pub fn number(&self) -> u32 {
        self.shared.number()
    }

    /// How long requests may take.
    pub fn patience(&self) -> Patience {
        self.patience
    }

    /// Whether the control channel has a connection now.
    pub fn is_connected(&self) -> bool {
        self.channels[0].is_up()
    }

    /// Requests that were sent more than once.
    pub fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    /// Bytes of file data received.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }

    /// Bytes of file data that the server has taken.
    pub fn bytes_written(&self) -> u64 {
        self.bytes_written.load(Ordering::Relaxed)
    }

    /// Asks for something and changes nothing.
    ///
    /// # Errors
    /// The server's, or that there is no answer.
    pub async fn query(&self, cred: &Credential, query: Query) -> Result<QueryReply, Failure> {
        let channel = self.routing.of_query(&query, self.channels[0].in_flight());
        let kind = query.kind();
        let request = LarderRequest::Query { cred: cred.clone(), query };
        let reply = self.repeat(channel, kind, request).await?;
        let LarderResponse::Query(reply) = reply else { return Err(unexpected(kind)) };
        let reply = reply.map_err(Failure::Refused)?;
        if let QueryReply::Data { data, .. } = &reply {
            self.bytes_read.fetch_add(data.len() as u64, Ordering::Relaxed);
        }
        Ok(reply)
    }

    /// As [`query`](Client::query), with callbacks on what the answer shows.
    ///
    /// # Errors
    /// The server's, or that there is no answer.
    pub async fn promised(&self, cred: &Credential, query: Query) -> Result<Promised, Failure> {
        let (channel, kind) = (self.routing.of_query(&query, self.channels[0].in_flight()), query.kind());
        let request = LarderRequest::Promised { cred: cred.clone(), query };
        let reply = self.repeat(channel, kind, request).await?;
        let LarderResponse::Promised(reply) = reply else { return Err(unexpected(kind)) };
        let reply = reply.map_err(Failure::Refused)?;
        if let QueryReply::Data { data, .. } = &reply.reply {
            self.bytes_read.fetch_add(data.len() as u64, Ordering::Relaxed);
        }
        Ok(reply)
    }

    /// Prolongs the lease, or begins one; `request` makes the request for the server process that it goes to, or says
    /// that it must not be sent there. Returns it with the time before it was sent, and the answer.
    ///
    /// # Errors
    /// Why there is no answer within `timeout`; the connection is then given up.
    pub async fn renew(
        &self,
        timeout: Duration,
        request: impl Fn(Epoch) -> Option<Renew>,
    ) -> Result<(BootTime, Renew, Renewed), Failure> {
        let started = self.shared.runtime.boottime();
        let result = async {
            let connection = self.promise_connection(timeout).await?;
            let epoch = connection.epoch().ok_or(Failure::NotSent(Cause::TimedOut))?;
            let request = request(epoch).ok_or(Failure::NotSent(Cause::TimedOut))?;
            let sent = self.shared.runtime.boottime();
            match connection.call(LarderRequest::Renew { request }, timeout).await {
                Ok(LarderResponse::Renew(Ok(renewed))) => Ok((sent, request, renewed)),
                Ok(LarderResponse::Renew(Err(code))) => {
                    connection.kill();
                    Err(Failure::Refused(code))
                }
                Ok(_) => Err(unexpected(Kind::Renew)),
                Err(_) => {
                    connection.kill();
                    Err(Failure::MaybeExecuted(Cause::TimedOut))
                }
            }
        };
        let result = result.await;
        self.record(Kind::Renew, started, result.is_ok());
        result
    }

    /// Acknowledges breaks and waits for others, however long that takes.
    ///
    /// # Errors
    /// Why there is no answer; the connection is then given up.
    pub async fn breaks(&self, timeout: Duration, lease: LeaseId, acked: u64) -> Result<Breaks, Failure> {
        let started = self.shared.runtime.boottime();
        let connection = self.promise_connection(timeout).await?;
        let answer = tokio::select! {
            biased;
            answer = connection.call(LarderRequest::Breaks { lease, acked }, MAX_DEADLINE) => answer,
            () = self.shared.aborted.cancelled() => return Err(Failure::MaybeExecuted(Cause::Aborted)),
        };
        let result = match answer {
            Ok(LarderResponse::Breaks(Ok(breaks))) => Ok(breaks),
            Ok(LarderResponse::Breaks(Err(code))) => {
                connection.kill();
                Err(Failure::Refused(code))
            }
            Ok(_) => Err(unexpected(Kind::Breaks)),
            Err(_) => {
                connection.kill();
                Err(Failure::MaybeExecuted(Cause::TimedOut))
            }
        };
        self.record(Kind::Breaks, started, result.is_ok());
        result
    }

    async fn promise_connection(&self, timeout: Duration) -> Result<Arc<Connection>, Failure> {
        let limit = Some(self.shared.runtime.boottime() + timeout);
        match self.bounded(limit, self.channels[PROMISES as usize].connection()).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(cause)) | Err(cause) => Err(Failure::NotSent(cause)),
        }
    }

    /// Puts a piece of a file's next contents beside it.
    ///
    /// # Errors
    /// The server's, or that there is no answer.
    pub async fn stage(&self, cred: &Credential, request: StageRequest) -> Result<(), Failure> {
        let (channel, len) = (routing::of_file(request.fid), request.data.len() as u64);
        let request = LarderRequest::Stage { cred: cred.clone(), request };
        match self.repeat(channel, Kind::Stage, request).await? {
            LarderResponse::Stage(reply) => reply.map_err(Failure::Refused)?,
            _ => return Err(unexpected(Kind::Stage)),
        }
        self.bytes_written.fetch_add(len, Ordering::Relaxed);
        Ok(())
    }

    /// Writes in place. All writes of a file use one channel, so that a later write is sent only after the channel
    /// that may still carry an earlier one is fenced.
    ///
    /// # Errors
    /// The server's, or that there is no answer.
    pub async fn write(&self, cred: &Credential, request: WriteRequest) -> Result<Written, Failure> {
        let (channel, len) = (routing::of_file(request.fid), request.bytes() as u64);
        let request = LarderRequest::Write { cred: cred.clone(), request };
        let reply = self.repeat(channel, Kind::Write, request).await?;
        let LarderResponse::Write(reply) = reply else { return Err(unexpected(Kind::Write)) };
        let reply = reply.map_err(Failure::Refused)?;
        self.bytes_written.fetch_add(len, Ordering::Relaxed);
        Ok(reply)
    }

    /// Makes a file's unstable writes durable.
    ///
    /// # Errors
    /// The server's, or that there is no answer.
    pub async fn commit(&self, cred: &Credential, fid: Fid) -> Result<Committed, Failure> {
        let request = LarderRequest::Commit { cred: cred.clone(), fid };
        match self.repeat(routing::of_file(fid), Kind::Commit, request).await? {
            LarderResponse::Commit(reply) => reply.map_err(Failure::Refused),
            _ => Err(unexpected(Kind::Commit)),
        }
    }

    /// Has all that the server has acknowledged of a volume made durable, where it is not already. `since` is what the server
    /// was when the first of it was sent.
    ///
    /// # Errors
    /// The server's, or that there is no answer.
    pub async fn sync(&self, volume: VolumeId, since: &Welcome) -> Result<(), Failure> {
        // Where it was acknowledged, and where it is now.
        let is_durable = self.shared.welcome().is_some_and(|welcome| welcome.durable);
        if since.durable && is_durable {
            return Ok(());
        }
        match self.repeat(0, Kind::Sync, LarderRequest::Sync { volume, since: since.epoch }).await? {
            LarderResponse::Sync(reply) => reply.map_err(Failure::Refused),
            _ => Err(unexpected(Kind::Sync)),
        }
    }

    /// Asks about volumes.
    ///
    /// # Errors
    /// The server's, or that there is no answer.
    pub async fn volume(&self, cred: &Credential, request: VolumeRequest) -> Result<VolumeReply, Failure> {
        let request = LarderRequest::Volume { cred: cred.clone(), request };
        match self.repeat(0, Kind::Volume, request).await? {
            LarderResponse::Volume(reply) => reply.map_err(Failure::Refused),
            _ => Err(unexpected(Kind::Volume)),
        }
    }

    /// Asks where a volume is, and does not wait for long.
    ///
    /// # Errors
    /// The server's, or that there is no answer in time.
    pub async fn locate(
        &self,
        within: Duration,
        volume: VolumeKey,
        not_at: Option<ServerId>,
    ) -> Result<VolumeReply, Failure> {
        let started = self.shared.runtime.boottime();
        let request = VolumeRequest::Locate { volume, not_at };
        let request = LarderRequest::Volume { cred: Credential::root(), request };
        let limit = Some(started + within);
        let asking = async {
            let connection = self.channels[0].connection().await.map_err(Failure::NotSent)?;
            let Ok(reply) = connection.call(request, within).await else {
                return Err(Failure::NotSent(Cause::TimedOut));
            };
            match error_of(&reply) {
                // It cannot tell now.
                Some(ErrorCode::Unavailable) => Err(Failure::NotSent(Cause::TimedOut)),
                Some(ErrorCode::Fenced | ErrorCode::UnknownClient) => {
                    connection.kill();
                    Err(Failure::NotSent(Cause::TimedOut))
                }
                _ => Ok(reply),
            }
        };
        // Nothing comes of an answer that is late, and the connection has others to carry: it is not given up.
        let reply = self.bounded(limit, asking).await.unwrap_or_else(|cause| Err(Failure::NotSent(cause)));
        self.record(Kind::Locate, started, reply.as_ref().is_ok_and(|reply| error_of(reply).is_none()));
        match reply? {
            LarderResponse::Volume(reply) => reply.map_err(Failure::Refused),
            _ => Err(unexpected(Kind::Locate)),
        }
    }

    /// Administers the cell.
    ///
    /// # Errors
    /// That there is no answer; within, what the server says.
    pub async fn admin(
        &self,
        cred: &Credential,
        request: AdminRequest,
    ) -> Result<Result<AdminReply, AdminError>, Failure> {
        let request = LarderRequest::Admin { cred: cred.clone(), request };
        match self.repeat(0, Kind::Admin, request).await? {
            LarderResponse::Admin(reply) => Ok(reply),
            _ => Err(unexpected(Kind::Admin)),
        }
    }

    /// Changes something, exactly once.
    ///
    /// # Errors
    /// The server's, or that there is no answer. After `MaybeExecuted` the server may carry the operation out even now, as
    /// one that waits for leases; its slot is of no use until the server has said what became of it.
    pub async fn mutate(self: &Arc<Client>, cred: &Credential, op: Op) -> Result<Mutated, Failure> {
        Mutation::new(cred, op, None).at(self).await
    }

    /// So many bytes of file data were taken by the server.
    pub(super) fn has_written(&self, bytes: u64) {
        self.bytes_written.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The way of a mutation.
    pub(super) fn route(&self, op: &Op) -> Route {
        self.routing.of_op(op, self.channels[0].in_flight())
    }

    /// Gives up the connection of a channel, if there is one.
    pub(super) fn kill(&self, channel: u32) {
        self.channels[channel as usize].kill();
    }

    /// Gives up all connections.
    pub(super) fn kill_all(&self) {
        self.channels.iter().for_each(|channel| channel.kill());
    }

    /// Says goodbye: the server frees what it keeps for this client. Tries once.
    pub async fn goodbye(&self) {
        let started = self.shared.runtime.boottime();
        let limit = Some(started + GOODBYE);
        let mut tries = Tries::default();
        let reply = self.exchange(0, &LarderRequest::Goodbye {}, limit, &mut tries, None).await;
        self.record(Kind::Goodbye, started, reply.is_ok());
    }

    async fn repeat(&self, channel: u32, kind: Kind, request: LarderRequest) -> Result<LarderResponse, Failure> {
        let started = self.shared.runtime.boottime();
        let mut tries = Tries::default();
        let result = self.exchange(channel, &request, self.give_up_at(started), &mut tries, None).await;
        let ok = result.as_ref().is_ok_and(|reply| error_of(reply).is_none());
        self.record(kind, started, ok);
        result
    }

    /// Sends a request until it is answered. `of_life` names the incarnation that the request belongs to: once that is
    /// over, `Fenced` and `UnknownClient` are answers and no reason to try again.
    pub(super) async fn exchange(
        &self,
        channel: u32,
        request: &LarderRequest,
        limit: Option<BootTime>,
        tries: &mut Tries,
        of_life: Option<u64>,
    ) -> Result<LarderResponse, Failure> {
        let channel = &self.channels[channel as usize];
        let _counted = channel.begin();
        let mut not_ready = NOT_READY_MIN;
        let mut strange = 0;
        loop {
            let gave_up = |cause, tries: &Tries| {
                if tries.open == 0 { Failure::NotSent(cause) } else { Failure::MaybeExecuted(cause) }
            };
            let connection = match self.bounded(limit, channel.connection()).await {
                Ok(Ok(connection)) => connection,
                Ok(Err(cause)) | Err(cause) => return Err(gave_up(cause, tries)),
            };
            tries.sent += 1;
            tries.open += 1;
            if tries.sent > 1 {
                self.retries.fetch_add(1, Ordering::Relaxed);
            }
            let call = connection.call(request.clone(), self.shared.timeo);
            let reply = match self.bounded(limit, call).await {
                Ok(reply) => reply,
                Err(cause) => {
                    // Whatever the caller does next is fenced off from this, which must not be executed after it.
                    connection.kill();
                    return Err(gave_up(cause, tries));
                }
            };
            match reply {
                Ok(reply) => match error_of(&reply) {
                    Some(ErrorCode::Unavailable) => {
                        tries.open -= 1;
                        self.bounded(limit, self.shared.runtime.sleep(not_ready))
                            .await
                            .map_err(|cause| gave_up(cause, tries))?;
                        not_ready = (not_ready * 2).min(NOT_READY_MAX);
                    }
                    Some(ErrorCode::Fenced | ErrorCode::UnknownClient) => {
                        tries.open -= 1;
                        strange += 1;
                        let life_over = of_life.is_some_and(|life| life != self.shared.slots.incarnation());
                        // Once may be a connection whose `hello` the server lost with its memory.
                        if life_over || (of_life.is_some() && strange > 1) {
                            return Ok(reply);
                        }
                        connection.kill();
                        if strange > 1 {
                            self.bounded(limit, self.shared.runtime.sleep(not_ready))
                                .await
                                .map_err(|cause| gave_up(cause, tries))?;
                            not_ready = (not_ready * 2).min(NOT_READY_MAX);
                        }
                    }
                    _ => return Ok(reply),
                },
                Err(_) => connection.kill(),
            }
        }
    }

    pub(super) fn give_up_at(&self, started: BootTime) -> Option<BootTime> {
        match self.patience {
            Patience::Hard => None,
            Patience::Soft(time) => Some(started + time),
        }
    }

    /// Waits for `what` until the limit, or until the mount is taken down.
    pub(super) async fn bounded<T>(&self, limit: Option<BootTime>, what: impl Future<Output = T>) -> Result<T, Cause> {
        let time_over = async {
            match limit {
                Some(limit) => {
                    let left = limit.saturating_sub(self.shared.runtime.boottime());
                    self.shared.runtime.sleep(left).await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            result = what => Ok(result),
            () = self.shared.aborted.cancelled() => Err(Cause::Aborted),
            () = time_over => Err(Cause::TimedOut),
        }
    }

    pub(super) fn record(&self, kind: Kind, started: BootTime, ok: bool) {
        let took = self.shared.runtime.boottime().saturating_sub(started);
        self.shared.recorder.record(kind, took, ok);
    }
}

pub(super) fn unexpected(kind: Kind) -> Failure {
    tracing::error!("the server answered a {kind} request with something else; it may be of another version");
    Failure::Refused(ErrorCode::Io)
}

pub(super) fn error_of(reply: &LarderResponse) -> Option<ErrorCode> {
    match reply {
        LarderResponse::Query(reply) => reply.as_ref().err().copied(),
        LarderResponse::Promised(reply) => reply.as_ref().err().copied(),
        LarderResponse::Renew(reply) => reply.as_ref().err().copied(),
        LarderResponse::Breaks(reply) => reply.as_ref().err().copied(),
        LarderResponse::Mutate(reply) => reply.as_ref().err().copied(),
        LarderResponse::Stage(reply) => reply.as_ref().err().copied(),
        LarderResponse::Write(reply) => reply.as_ref().err().copied(),
        LarderResponse::Commit(reply) => reply.as_ref().err().copied(),
        LarderResponse::Sync(reply) => reply.as_ref().err().copied(),
        LarderResponse::Volume(reply) => reply.as_ref().err().copied(),
        LarderResponse::Goodbye(reply) => reply.as_ref().err().copied(),
        LarderResponse::Admin(reply) => reply.as_ref().err().map(|error| error.code),
        LarderResponse::Transfer(reply) => reply.as_ref().err().map(|error| error.code),
        LarderResponse::Hello(_) | LarderResponse::Stats(_) | LarderResponse::Registry(_) => None,
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
