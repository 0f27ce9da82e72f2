//! Every open connection, and the fencing of those that a `hello` supersedes.
//!
//! [`core::fence`](crate::core::fence) decides; here is carried out what it decided. A connection that is superseded
//! is not read any more *first*; then its handlers that must not be cut are waited for; only then is the new `hello`
//! answered. So when a client has its answer, no request that it sent on an older connection will be applied later.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use larder_protocol::failpoint::Planted;
use larder_protocol::handshake::{Hello, Refusal};
use larder_protocol::ids::ClientId;
use larder_protocol::limits::{CLIENT_FORGOTTEN_AFTER, MAX_CHANNELS};
use larder_protocol::runtime::SharedRuntime;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::gate::{Gate, Ticket};
use crate::core::fence::{ConnectionId, Fence, Identity, Verdict};

/// Clients whose generations are remembered.
const MAX_CLIENTS: usize = 65_536;

/// Where a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A TCP connection from this address.
    Tcp(SocketAddr),
    /// The server's own process.
    Local,
}

impl Peer {
    /// Whether it is on the server's own machine.
    pub fn is_local(&self) -> bool {
        match self {
            Peer::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Peer::Local => true,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Tcp(address) => address.fmt(f),
            Peer::Local => f.write_str("this process"),
        }
    }
}

/// One connection.
pub struct Session {
    id: ConnectionId,
    peer: Peer,
    identity: Mutex<Option<Identity>>,
    greetings: AtomicUsize,
    /// How many volumes had come from other servers when its `hello` came in.
    arrived: AtomicU64,
    fenced: CancellationToken,
    work: TaskTracker,
    gate: Arc<Gate>,
}

/// Kept by everything that a connection's fencing has to wait for, and that counts as in flight.
///
/// Whoever carries out a mutation keeps one until it is done, even if nobody waits for its answer any more.
#[derive(Clone, Debug)]
pub struct Permit(#[expect(dead_code, reason = "held for its drop")] Arc<(TaskTrackerToken, Ticket)>);

impl Session {
    /// Where it comes from.
    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// For whom it speaks, once its `hello` was accepted.
    pub fn identity(&self) -> Option<Identity> {
        *self.identity.lock()
    }

    /// Whether a newer connection has taken over.
    pub fn is_fenced(&self) -> bool {
        self.fenced.is_cancelled()
    }

    /// Ends when a newer connection takes over.
    pub async fn fenced(&self) {
        self.fenced.cancelled().await;
    }

    /// How many volumes had come from other servers when its `hello` came in.
    pub fn arrived(&self) -> u64 {
        self.arrived.load(Ordering::Acquire)
    }

    /// So many had come. What is said again is as it was: older requests may be on their way.
    pub fn greeted_after(&self, arrived: u64) {
        if self.identity().is_none() {
            self.arrived.store(arrived, Ordering::Release);
        }
    }

    /// Whether the connection may be closed for want of a `hello`.
    pub(super) fn is_silent(&self) -> bool {
        self.greetings.load(Ordering::Acquire) == 0 && self.identity().is_none()
    }

    /// What bounds its requests in flight.
    pub(super) fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// A handler begins.
    pub(super) fn begin(&self) -> Permit {
        Permit(Arc::new((self.work.token(), self.gate.enter())))
    }

    /// Keeps the session from counting as drained while it is read.
    pub(super) fn reading(&self) -> TaskTrackerToken {
        self.work.token()
    }

    fn stop(&self) {
        self.fenced.cancel();
        self.work.close();
    }
}

/// Counts a `hello` that is being answered, also when its handler is dropped.
struct Greeting<'a>(&'a Session);

impl<'a> Greeting<'a> {
    fn new(session: &'a Session) -> Greeting<'a> {
        session.greetings.fetch_add(1, Ordering::AcqRel);
        Greeting(session)
    }
}

impl Drop for Greeting<'_> {
    fn drop(&mut self) {
        self.0.greetings.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A `hello` that was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Greeted {
    /// For whom the connection speaks.
    pub identity: Identity,
    /// Whether what older incarnations left in the volumes has to be freed; see [`Sessions::settled`].
    pub unsettled: bool,
}

/// All connections of a server.
pub struct Sessions {
    inner: Mutex<Inner>,
    runtime: SharedRuntime,
}

struct Inner {
    fence: Fence,
    open: BTreeMap<ConnectionId, Arc<Session>>,
    next: u64,
}

impl Sessions {
    /// No connections yet.
    pub fn new(runtime: SharedRuntime) -> Sessions {
        let inner = Inner { fence: Fence::new(MAX_CLIENTS), open: BTreeMap::new(), next: 1 };
        Sessions { inner: Mutex::new(inner), runtime }
    }

    /// A connection begins.
    pub fn open(&self, peer: Peer) -> Arc<Session> {
        let mut inner = self.inner.lock();
        let id = ConnectionId(inner.next);
        inner.next += 1;
        let session = Arc::new(Session {
            id,
            peer,
            identity: Mutex::new(None),
            greetings: AtomicUsize::new(0),
            arrived: AtomicU64::new(0),
            fenced: CancellationToken::new(),
            work: TaskTracker::new(),
            gate: Arc::new(Gate::default()),
        });
        inner.open.insert(id, session.clone());
        session
    }

    /// A connection is not read any more: waits for its handlers, and forgets it.
    pub async fn end(&self, session: &Session) {
        session.stop();
        session.work.wait().await;
        let mut inner = self.inner.lock();
        inner.open.remove(&session.id);
        inner.fence.ended(session.id, self.runtime.boottime());
    }

    /// Makes the connection speak for a client. Returns once everything that this supersedes has come to rest, which
    /// takes as long as their handlers do; dropping the future leaves nothing half done.
    ///
    /// # Errors
    /// `Fenced` if a newer one was here before or comes while this one waits; `Malformed` for a channel number past
    /// the limit, or a second and different `hello` on the connection; `Unavailable` if there are too many clients.
    pub async fn hello(&self, session: &Session, hello: &Hello) -> Result<Greeted, Refusal> {
        if hello.channel >= MAX_CHANNELS {
            return Err(Refusal::Malformed(format!("channel {} of at most {MAX_CHANNELS}", hello.channel)));
        }
        let identity = Identity {
            client: hello.client,
            incarnation: hello.incarnation,
            channel: hello.channel,
            generation: hello.generation,
        };
        let _greeting = Greeting::new(session);
        let (superseded, unsettled) = {
            let mut inner = self.inner.lock();
            match inner.fence.hello(session.id, identity, self.runtime.boottime()) {
                Verdict::Accept { supersedes, unsettled } => (inner.find(&supersedes), unsettled),
                Verdict::Fenced => return Err(Refusal::Fenced),
                Verdict::Mismatch => {
                    return Err(Refusal::Malformed("the connection speaks for another client or channel".to_owned()));
                }
                Verdict::Full => return Err(Refusal::Unavailable),
            }
        };
        drain(&superseded).await;
        if session.is_fenced() {
            return Err(Refusal::Fenced);
        }
        *session.identity.lock() = Some(identity);
        Ok(Greeted { identity, unsettled })
    }

    /// What incarnations below this one left is freed; later connections of it need not do so.
    pub fn settled(&self, identity: Identity) {
        self.inner.lock().fence.settled(identity);
    }

    /// The session's client leaves: ends its other connections, and makes this one speak for nobody.
    pub async fn goodbye(&self, session: &Session) {
        let others = {
            let inner = self.inner.lock();
            inner.find(&inner.fence.goodbye(session.id))
        };
        drain(&others).await;
        *session.identity.lock() = None;
    }

    /// Ends every connection without waiting for its handlers.
    pub fn stop_all(&self) {
        for session in self.inner.lock().open.values() {
            session.stop();
        }
    }

    /// Number of open connections.
    pub fn connections(&self) -> usize {
        self.inner.lock().open.len()
    }

    /// The clients that have connections.
    pub fn connected(&self) -> BTreeSet<ClientId> {
        let inner = self.inner.lock();
        inner.open.values().filter_map(|session| session.identity.lock().map(|identity| identity.client)).collect()
    }

    /// The clients that this process has heard of in the last day, by a clock that cannot be set. Forgets the others.
    pub fn heard_of(&self) -> BTreeSet<ClientId> {
        let mut inner = self.inner.lock();
        if let Some(before) = self.runtime.boottime().checked_sub(CLIENT_FORGOTTEN_AFTER) {
            inner.fence.expire(before);
        }
        inner.fence.known().collect()
    }

    /// The lives of the clients that this process has heard of.
    pub fn incarnations(&self) -> Vec<(ClientId, u64)> {
        self.inner.lock().fence.incarnations().collect()
    }

    /// Whether this process has heard of a client in the last `time`, by a clock that cannot be set.
    pub fn is_heard_within(&self, client: ClientId, time: Duration) -> bool {
        let since = self.runtime.boottime().saturating_sub(time);
        self.inner.lock().fence.is_heard_since(client, since)
    }

    /// Number of clients that have connections.
    pub fn clients(&self) -> usize {
        self.inner.lock().fence.connected()
    }
}

impl Inner {
    fn find(&self, ids: &[ConnectionId]) -> Vec<Arc<Session>> {
        ids.iter().filter_map(|id| self.open.get(id).cloned()).collect()
    }
}

async fn drain(sessions: &[Arc<Session>]) {
    if Planted::ServeFenced.is_on() {
        return;
    }
    // All are stopped before any is waited for: a client that reconnects often must not wait for them in turn.
    for session in sessions {
        session.stop();
    }
    for session in sessions {
        session.work.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use larder_protocol::handshake::{MAX_VERSION, MIN_VERSION};
    use larder_protocol::runtime::SimRuntime;
    use tokio::time::{Instant, sleep, timeout};

    use super::*;

    fn hello(incarnation: u64, channel: u32, generation: u64) -> Hello {
        Hello {
            min_version: MIN_VERSION,
            max_version: MAX_VERSION,
            prompt: false,
            client: ClientId(1),
            incarnation,
            channel,
            generation,
            software: "test".to_owned(),
        }
    }

    fn sessions() -> Arc<Sessions> {
        Arc::new(Sessions::new(Arc::new(SimRuntime::new(1))))
    }

    /// A connection whose loop stops a while after it was told to, with a handler that runs for `work`.
    fn busy(sessions: &Arc<Sessions>, work: Duration) -> Arc<Session> {
        let session = sessions.open(Peer::Local);
        let permit = session.begin();
        tokio::spawn(async move {
            sleep(work).await;
            drop(permit);
        });
        let (reading, sessions, reader) = (session.reading(), sessions.clone(), session.clone());
        tokio::spawn(async move {
            reader.fenced().await;
            sleep(Duration::from_millis(100)).await;
            drop(reading);
            sessions.end(&reader).await;
        });
        session
    }

    #[tokio::test(start_paused = true)]
    async fn a_newer_generation_waits_until_the_older_one_is_at_rest() {
        let sessions = sessions();
        let old = busy(&sessions, Duration::from_secs(5));
        sessions.hello(&old, &hello(1, 0, 1)).await.unwrap();
        assert!(old.identity().is_some());
        let start = Instant::now();
        let new = sessions.open(Peer::Local);
        sessions.hello(&new, &hello(1, 0, 2)).await.unwrap();
        assert_eq!(start.elapsed().as_secs(), 5);
        assert!(old.is_fenced() && !new.is_fenced());
        assert_eq!(sessions.hello(&old, &hello(1, 0, 1)).await, Err(Refusal::Fenced));
    }

    #[tokio::test(start_paused = true)]
    async fn reading_stops_before_handlers_are_waited_for() {
        let sessions = sessions();
        let old = busy(&sessions, Duration::from_secs(5));
        sessions.hello(&old, &hello(1, 0, 1)).await.unwrap();
        let new = sessions.open(Peer::Local);
        let waiting = timeout(Duration::from_secs(1), sessions.hello(&new, &hello(1, 0, 2))).await;
        assert!(waiting.is_err(), "the handler runs");
        assert!(old.is_fenced());
    }

    #[tokio::test(start_paused = true)]
    async fn another_channel_is_left_alone_but_not_by_a_new_incarnation() {
        let sessions = sessions();
        let control = busy(&sessions, Duration::from_secs(3));
        let data = busy(&sessions, Duration::from_secs(5));
        sessions.hello(&control, &hello(1, 0, 1)).await.unwrap();
        let start = Instant::now();
        sessions.hello(&data, &hello(1, 1, 1)).await.unwrap();
        assert!(!control.is_fenced());
        let restarted = sessions.open(Peer::Local);
        sessions.hello(&restarted, &hello(2, 0, 1)).await.unwrap();
        assert!(control.is_fenced() && data.is_fenced());
        assert_eq!(start.elapsed().as_secs(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_hello_that_is_overtaken_while_it_waits_is_fenced() {
        let sessions = sessions();
        let first = busy(&sessions, Duration::from_secs(5));
        sessions.hello(&first, &hello(1, 0, 1)).await.unwrap();
        let (second, third) = (sessions.open(Peer::Local), sessions.open(Peer::Local));
        let (hello2, hello3) = (hello(1, 0, 2), hello(1, 0, 3));
        let overtaking = async {
            sleep(Duration::from_secs(1)).await;
            sessions.hello(&third, &hello3).await
        };
        let (overtaken, newest) = tokio::join!(sessions.hello(&second, &hello2), overtaking);
        assert_eq!(overtaken, Err(Refusal::Fenced));
        assert!(newest.is_ok());
        assert_eq!(second.identity(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_hello_leaves_the_next_one_to_wait_for_the_same() {
        let sessions = sessions();
        let old = busy(&sessions, Duration::from_secs(5));
        sessions.hello(&old, &hello(1, 0, 1)).await.unwrap();
        let start = Instant::now();
        let cut = sessions.open(Peer::Local);
        assert!(timeout(Duration::from_secs(1), sessions.hello(&cut, &hello(1, 0, 2))).await.is_err());
        assert!(cut.is_silent(), "no greeting is left counted");
        sessions.end(&cut).await;
        let new = sessions.open(Peer::Local);
        sessions.hello(&new, &hello(1, 0, 3)).await.unwrap();
        assert_eq!(start.elapsed().as_secs(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn goodbye_ends_the_clients_other_connections() {
        let sessions = sessions();
        let data = busy(&sessions, Duration::from_secs(2));
        let control = sessions.open(Peer::Local);
        sessions.hello(&data, &hello(1, 1, 1)).await.unwrap();
        sessions.hello(&control, &hello(1, 0, 1)).await.unwrap();
        assert_eq!((sessions.connections(), sessions.clients()), (2, 1));
        sessions.goodbye(&control).await;
        assert!(data.is_fenced());
        assert_eq!(control.identity(), None);
        sessions.end(&data).await;
        sessions.end(&control).await;
        assert_eq!((sessions.connections(), sessions.clients()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_channel_past_the_limit_is_malformed() {
        let sessions = sessions();
        let session = sessions.open(Peer::Local);
        let refused = sessions.hello(&session, &hello(1, MAX_CHANNELS, 1)).await;
        assert!(matches!(refused, Err(Refusal::Malformed(_))), "{refused:?}");
    }
}
