//! One channel: a connection that is opened again, one generation higher, whenever it was lost.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::{Duration, Instant};

use larder_protocol::cell::ServerId;
use larder_protocol::handshake::{Hello, MAX_VERSION, MIN_VERSION, Refusal, Welcome};
use larder_protocol::ids::{ClientId, Epoch};
use larder_protocol::limits::MAX_DEADLINE;
use larder_protocol::runtime::SharedRuntime;
use larder_protocol::service::file::{NewContents, Op};
use larder_protocol::service::{LarderRequest, LarderResponse};
use larder_protocol::stats::Recorder;
use parking_lot::Mutex;
use tarpc::client::{Channel as Pipe, RpcError};
use tokio::sync::{Notify, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::connector::Connector;
use super::driver::Driver;
use super::ration::{Ration, Rationed};
use super::routing::{CHANNELS, MUCH};
use super::volume_slots::VolumeSlots;
use super::{Cause, ConnectError};

/// The first wait before trying to connect again; each further one is twice as long.
const BACKOFF_MIN: Duration = Duration::from_millis(10);
/// The longest: all clients are back within a second of the server's return.
const BACKOFF_MAX: Duration = Duration::from_millis(500);

/// What all channels to a server share.
pub struct Shared {
    /// Clock, randomness, tasks.
    pub runtime: SharedRuntime,
    /// Which of the client's servers this is; the first has 0.
    number: u32,
    /// Opens connections.
    connector: Mutex<Arc<dyn Connector>>,
    /// Who must be there; of the first server whoever is.
    expected: Option<ServerId>,
    /// This client's identity.
    pub client: ClientId,
    /// How long to wait for an answer.
    pub timeo: Duration,
    /// Replay slots; they know the incarnation too. The same for all servers, as all below up to the counters of one.
    pub slots: Arc<VolumeSlots>,
    /// Ends everything.
    pub aborted: CancellationToken,
    /// Counts requests.
    pub recorder: Arc<Recorder>,
    /// Told when a new process of any server was seen.
    pub new_epoch: Arc<Notify>,
    /// Connections opened after the first of each channel.
    pub reconnects: AtomicU64,
    /// Server processes seen after the first.
    pub server_restarts: AtomicU64,
    prompt: bool,
    link: Mutex<LinkState>,
    /// Whether the loss of the server was logged and its return not yet.
    lost: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct LinkState {
    welcome: Option<Welcome>,
}

impl Shared {
    /// For a client that has no connection yet.
    pub fn new(runtime: SharedRuntime, connector: Arc<dyn Connector>, timeo: Duration) -> Shared {
        let client = ClientId((u128::from(runtime.random()) << 64) | u128::from(runtime.random()));
        Shared::known_as(client, 1, runtime, connector, timeo)
    }

    /// For a client that was here before, in lives below `incarnation`.
    pub fn known_as(
        client: ClientId,
        incarnation: u64,
        runtime: SharedRuntime,
        connector: Arc<dyn Connector>,
        timeo: Duration,
    ) -> Shared {
        Shared {
            runtime,
            number: 0,
            connector: Mutex::new(connector),
            expected: None,
            client,
            timeo: timeo.clamp(Duration::from_millis(1), MAX_DEADLINE),
            slots: Arc::new(VolumeSlots::new(incarnation)),
            aborted: CancellationToken::new(),
            recorder: Arc::default(),
            new_epoch: Arc::default(),
            reconnects: AtomicU64::new(0),
            server_restarts: AtomicU64::new(0),
            prompt: false,
            link: Mutex::new(LinkState::default()),
            lost: watch::Sender::new(false),
        }
    }

    /// For the same client's connections to another server.
    pub(super) fn of_another(&self, number: u32, server: ServerId, address: &str) -> Shared {
        Shared {
            runtime: self.runtime.clone(),
            number,
            connector: Mutex::new(self.connector().to(address)),
            expected: Some(server),
            client: self.client,
            timeo: self.timeo,
            slots: self.slots.clone(),
            aborted: self.aborted.clone(),
            recorder: self.recorder.clone(),
            new_epoch: self.new_epoch.clone(),
            reconnects: AtomicU64::new(0),
            server_restarts: AtomicU64::new(0),
            prompt: self.prompt,
            link: Mutex::new(LinkState::default()),
            lost: watch::Sender::new(false),
        }
    }

    /// Which of the client's servers this is.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Opens connections.
    pub fn connector(&self) -> Arc<dyn Connector> {
        self.connector.lock().clone()
    }

    /// The server is there, from the next connection on.
    pub(super) fn is_at(&self, address: &str) {
        let mut connector = self.connector.lock();
        if connector.server() != address {
            tracing::info!("the server {} is at {address} now", connector.server());
            *connector = connector.to(address);
        }
    }

    /// Who the server is, as far as is known.
    pub fn server(&self) -> Option<ServerId> {
        self.expected.or_else(|| self.link.lock().welcome.as_ref().map(|welcome| welcome.server))
    }

    /// The client does not wait for others to give up what they have cached.
    pub fn prompt(mut self, prompt: bool) -> Shared {
        self.prompt = prompt;
        self
    }

    /// What the server said of itself last.
    pub fn welcome(&self) -> Option<Welcome> {
        self.link.lock().welcome.clone()
    }

    /// The server process that said `hello` last.
    pub fn epoch(&self) -> Option<Epoch> {
        self.link.lock().welcome.as_ref().map(|welcome| welcome.epoch)
    }

    /// Ends when the server does not answer, at once if that is so already.
    pub(super) async fn gone(&self) {
        // It cannot be that nobody tells any more.
        let _ = self.lost.subscribe().wait_for(|lost| *lost).await;
    }

    /// Whether the server does not answer.
    pub(super) fn is_gone(&self) -> bool {
        *self.lost.borrow()
    }

    /// Logs that the server is gone, once.
    fn lost(&self, why: &str) {
        let news = !self.lost.send_replace(true);
        if news && !self.aborted.is_cancelled() {
            tracing::warn!("the server {} does not answer ({why}); trying again", self.connector().server());
        }
    }

    fn welcomed(&self, welcome: &Welcome) {
        let (back, restarted) = {
            let mut link = self.link.lock();
            let restarted = link.welcome.as_ref().is_some_and(|old| old.epoch != welcome.epoch);
            link.welcome = Some(welcome.clone());
            (self.lost.send_replace(false), restarted)
        };
        self.slots.set_limit(welcome.slots);
        if back {
            tracing::info!("the server {} answers again", self.connector().server());
        }
        if restarted {
            tracing::info!("the server {} has been restarted", self.connector().server());
            self.server_restarts.fetch_add(1, Ordering::Relaxed);
            self.new_epoch.notify_one();
        }
    }
}

/// A connection on which `hello` was answered.
pub struct Connection {
    pipe: Pipe<LarderRequest, LarderResponse>,
    driver: Arc<Driver>,
    dead: CancellationToken,
    /// The server process at its other end, once that has said so.
    epoch: OnceLock<Epoch>,
}

impl Connection {
    /// Sends a request and waits for its answer at most for `timeout`.
    ///
    /// # Errors
    /// Why there is no answer; the connection is then to be given up with [`Connection::kill`].
    pub async fn call(&self, request: LarderRequest, timeout: Duration) -> Result<LarderResponse, RpcError> {
        if self.is_dead() {
            return Err(RpcError::Shutdown);
        }
        let mut context = tarpc::context::current();
        context.deadline = Instant::now() + timeout.min(MAX_DEADLINE);
        let data = payload_len(&request);
        let mut call = pin!(self.pipe.call(context, request));
        if data <= MUCH {
            let sent = poll_fn(|cx| Poll::Ready(self.driver.with(|| call.as_mut().poll(cx)))).await;
            if let Poll::Ready(reply) = sent {
                return reply;
            }
        }
        tokio::select! {
            biased;
            reply = call => reply,
            () = self.dead.cancelled() => Err(RpcError::Shutdown),
        }
    }

    /// The server process at the other end.
    pub fn epoch(&self) -> Option<Epoch> {
        self.epoch.get().copied()
    }

    /// Uses this connection no more.
    pub fn kill(&self) {
        self.driver.stop();
        self.dead.cancel();
    }

    /// Whether it is of no use any more.
    pub fn is_dead(&self) -> bool {
        self.dead.is_cancelled()
    }
}

enum State {
    Idle,
    Connecting,
    Up(Arc<Connection>),
}

/// One channel.
pub struct Channel {
    shared: Arc<Shared>,
    number: u32,
    generation: AtomicU64,
    state: Mutex<State>,
    changed: Notify,
    in_flight: AtomicU32,
}

/// A request that a channel carries, or is to.
pub(super) struct Counted<'a>(&'a Channel);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Channel {
    /// Not connected yet.
    pub fn new(shared: Arc<Shared>, number: u32) -> Arc<Channel> {
        let state = Mutex::new(State::Idle);
        Arc::new(Channel {
            shared,
            number,
            generation: AtomicU64::new(0),
            state,
            changed: Notify::new(),
            in_flight: AtomicU32::new(0),
        })
    }

    /// Where its bytes are moved, and what waits for them goes on.
    fn place(&self) -> usize {
        // Leases and breaks are few and small, and go where the small requests go.
        self.number as usize % CHANNELS
    }

    /// Counts a request until it is answered or given up.
    pub(super) fn begin(&self) -> Counted<'_> {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Counted(self)
    }

    /// Requests that it carries.
    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Whether there is a connection now.
    pub fn is_up(&self) -> bool {
        matches!(&*self.state.lock(), State::Up(connection) if !connection.is_dead())
    }

    /// Gives up the connection, if there is one.
    pub fn kill(&self) {
        if let State::Up(connection) = &*self.state.lock() {
            connection.kill();
        }
    }

    /// The connection, opening one if need be, for as long as it takes. The caller bounds the wait.
    ///
    /// # Errors
    /// `Aborted` when the mount is being taken down.
    pub async fn connection(self: &Arc<Channel>) -> Result<Arc<Connection>, Cause> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Registered before the state is read, so that no change is missed.
            changed.as_mut().enable();
            if self.shared.aborted.is_cancelled() {
                return Err(Cause::Aborted);
            }
            {
                let mut state = self.state.lock();
                match &*state {
                    State::Up(connection) if !connection.is_dead() => return Ok(connection.clone()),
                    State::Connecting => {}
                    State::Up(_) | State::Idle => {
                        *state = State::Connecting;
                        self.shared.runtime.spawn_at(self.place(), Box::pin(self.clone().reconnect()));
                    }
                }
            }
            tokio::select! {
                biased;
                () = changed => {}
                () = self.shared.aborted.cancelled() => return Err(Cause::Aborted),
            }
        }
    }

    /// Opens the first connection, trying once.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn connect_first(self: &Arc<Channel>) -> Result<Welcome, ConnectError> {
        let (done, result) = oneshot::channel();
        let channel = self.clone();
        let connecting = async move {
            let attempt = channel.connect_once().await;
            // If nobody waits any more the connection is dropped, and with it closed.
            let _ = done.send(attempt);
        };
        self.shared.runtime.spawn_at(self.place(), Box::pin(connecting));
        let attempt = result.await.map_err(|_| ConnectError::Network("the attempt met a defect".to_owned()))?;
        let (connection, welcome) = attempt?;
        self.up(connection);
        Ok(welcome)
    }

    /// This is the connection now.
    pub(super) fn up(self: &Arc<Channel>, connection: Arc<Connection>) {
        *self.state.lock() = State::Up(connection.clone());
        self.changed.notify_waiters();
        // If it died before, the task that watched it has not seen that it was this channel's.
        if connection.is_dead() && self.number == 0 && !self.shared.aborted.is_cancelled() {
            self.shared.lost("it closed the connection");
            let channel = self.clone();
            self.shared.runtime.spawn(Box::pin(async move {
                // Only to have it opened; whoever needs it waits for it too.
                let _ = channel.connection().await;
            }));
        }
    }

    async fn reconnect(self: Arc<Channel>) {
        let mut backoff = BACKOFF_MIN;
        loop {
            let attempt = tokio::select! {
                biased;
                () = self.shared.aborted.cancelled() => break,
                attempt = self.connect_once() => attempt,
            };
            match attempt {
                Ok((connection, _)) => {
                    self.up(connection);
                    return;
                }
                // A higher generation is all it takes; the next attempt has one.
                Err(ConnectError::Refused(Refusal::Fenced)) => {}
                Err(error) => self.shared.lost(&error.to_string()),
            }
            // Between half and all of the time, so that clients of a restarted server do not come all at once.
            let jitter = 500 + self.shared.runtime.random() % 501;
            let wait = backoff.mul_f64(jitter as f64 / 1000.0);
            tokio::select! {
                biased;
                () = self.shared.aborted.cancelled() => break,
                () = self.shared.runtime.sleep(wait) => {}
            }
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
        *self.state.lock() = State::Idle;
        self.changed.notify_waiters();
    }

    async fn connect_once(self: &Arc<Channel>) -> Result<(Arc<Connection>, Welcome), ConnectError> {
        let shared = &self.shared;
        let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        let transport = tokio::select! {
            biased;
            transport = shared.connector().connect(self.number) => {
                transport.map_err(|error| ConnectError::Network(error.to_string()))?
            }
            () = shared.runtime.sleep(shared.timeo) => {
                return Err(ConnectError::Network("no connection in time".to_owned()));
            }
        };
        let ration = Arc::new(Ration::default());
        let tarpc::client::NewClient { client: pipe, dispatch } =
            tarpc::client::new(tarpc::client::Config::default(), Rationed::new(transport, ration.clone()));
        let ended = async move {
            match dispatch.await {
                Ok(()) => "it closed the connection".to_owned(),
                Err(error) => chain(&error),
            }
        };
        let driver = Driver::new(Box::pin(ended), ration);
        let connection = Arc::new(Connection { pipe, driver, dead: CancellationToken::new(), epoch: OnceLock::new() });
        self.watch(connection.driver.clone(), connection.dead.clone());
        let hello = Hello {
            min_version: MIN_VERSION,
            max_version: MAX_VERSION,
            client: shared.client,
            incarnation: shared.slots.incarnation(),
            channel: self.number,
            generation,
            prompt: shared.prompt,
            software: concat!("larder ", env!("CARGO_PKG_VERSION")).to_owned(),
        };
        let sent = shared.runtime.boottime();
        let reply = connection.call(LarderRequest::Hello { hello }, shared.timeo).await;
        let took = shared.runtime.boottime().saturating_sub(sent);
        let ok = matches!(&reply, Ok(LarderResponse::Hello(Ok(_))));
        shared.recorder.record(larder_protocol::service::kind::Kind::Hello, took, ok);
        let refused = match reply {
            // An address may have passed to another server, which knows nothing of what this one has.
            Ok(LarderResponse::Hello(Ok(welcome)))
                if shared.expected.is_some_and(|server| server != welcome.server) =>
            {
                ConnectError::Network(format!("another server is there, {}", welcome.server))
            }
            Ok(LarderResponse::Hello(Ok(welcome))) => {
                if generation > 1 {
                    shared.reconnects.fetch_add(1, Ordering::Relaxed);
                }
                shared.welcomed(&welcome);
                connection.epoch.get_or_init(|| welcome.epoch);
                return Ok((connection, welcome));
            }
            Ok(LarderResponse::Hello(Err(refusal))) => ConnectError::Refused(refusal),
            Ok(_) => ConnectError::Network("the server answered something else than was asked".to_owned()),
            Err(error) => ConnectError::Network(chain(&error)),
        };
        connection.kill();
        Err(refused)
    }

    /// Runs a connection until it ends or is given up. The control channel is then opened again at once, so that a
    /// server that was restarted is noticed although nothing is asked of it.
    fn watch(self: &Arc<Channel>, driver: Arc<Driver>, dead: CancellationToken) {
        let channel = Arc::downgrade(self);
        let aborted = self.shared.aborted.clone();
        self.shared.runtime.spawn(Box::pin(async move {
            let why = tokio::select! {
                // The first that is true of a connection that ended for several reasons.
                biased;
                why = driver.run() => why,
                () = dead.cancelled() => "no answer in time".to_owned(),
                () = aborted.cancelled() => "the mount is shutting down".to_owned(),
            };
            dead.cancel();
            let Some(channel) = channel.upgrade() else { return };
            let was_up = matches!(&*channel.state.lock(), State::Up(up) if up.is_dead());
            if was_up && !aborted.is_cancelled() && channel.number == 0 {
                channel.shared.lost(&why);
                // Only to have it opened; whoever needs it waits for it too.
                let _ = channel.connection().await;
            }
        }));
    }
}

/// Bytes of file data in a request.
fn payload_len(request: &LarderRequest) -> usize {
    match request {
        LarderRequest::Write { request, .. } => request.bytes(),
        LarderRequest::Stage { request, .. } => request.data.len(),
        LarderRequest::Mutate { op: Op::Append { data, .. }, .. }
        | LarderRequest::Mutate { op: Op::Store { contents: NewContents::Whole(data), .. }, .. } => data.len(),
        _ => 0,
    }
}

/// An error with all its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
