//! One connection from its first byte to its last.

use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;

use futures::{FutureExt, Sink, Stream, StreamExt};
use larder_protocol::error::ErrorCode;
use larder_protocol::limits::HELLO_TIMEOUT;
use larder_protocol::runtime::{SharedRuntime, request_came};
use larder_protocol::service::{LarderRequest, LarderResponse};
use tarpc::server::{BaseChannel, Channel, Config, serve};
use tarpc::{ClientMessage, Response};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use super::gate::Gated;
use super::sessions::{Peer, Permit, Session, Sessions};
use crate::service::method::Method;

/// Answers that wait to be sent before their handlers wait too.
const PENDING_ANSWERS: usize = 32;

/// One request with what it came by.
pub struct Call {
    /// Its connection.
    pub session: Arc<Session>,
    /// What is asked.
    pub request: LarderRequest,
    /// To be kept until what must not be cut is done.
    pub permit: Permit,
}

/// What answers requests.
pub trait Handler: Send + Sync + 'static {
    /// Answers one. The future may be dropped at any await: at the request's deadline, when its client cancels it, or
    /// when the connection ends.
    fn handle(self: Arc<Self>, call: Call) -> impl Future<Output = LarderResponse> + Send + 'static;
}

/// What all connections of a server share.
#[derive(Clone)]
pub struct Shared {
    /// All connections.
    pub sessions: Arc<Sessions>,
    /// Cancelled when the server ends: nothing more is read then, and what was read is answered.
    pub ending: CancellationToken,
    /// Where tasks run.
    pub runtime: SharedRuntime,
}

/// Serves a connection until its end, and waits for what it has begun.
pub async fn run<H, T>(handler: Arc<H>, shared: Shared, transport: T, peer: Peer)
where
    H: Handler,
    T: Stream<Item = io::Result<ClientMessage<LarderRequest>>> + Sink<Response<LarderResponse>, Error = io::Error>,
{
    let session = shared.sessions.open(peer);
    let reading = session.reading();
    debug!(%peer, "connection opened");
    let why = read(handler, &shared, &session, transport).await;
    drop(reading);
    debug!(%peer, "connection closed: {why}");
    shared.sessions.end(&session).await;
}

/// Takes requests and starts their handlers until there is a reason not to, which it returns.
async fn read<H, T>(handler: Arc<H>, shared: &Shared, session: &Arc<Session>, transport: T) -> String
where
    H: Handler,
    T: Stream<Item = io::Result<ClientMessage<LarderRequest>>> + Sink<Response<LarderResponse>, Error = io::Error>,
{
    let transport = Gated::new(transport, session.gate().clone(), shared.ending.clone());
    let config = Config { pending_response_buffer: PENDING_ANSWERS };
    let mut requests = pin!(BaseChannel::new(config, transport).requests());
    let mut hello_due = shared.runtime.sleep(HELLO_TIMEOUT);
    let mut known = false;
    loop {
        let next = tokio::select! {
            biased;
            () = session.fenced() => return "a newer one has taken over".to_owned(),
            () = &mut hello_due, if !known => {
                if session.is_silent() {
                    return format!("no hello within {HELLO_TIMEOUT:?}");
                }
                known = session.identity().is_some();
                hello_due = shared.runtime.sleep(HELLO_TIMEOUT);
                continue;
            }
            next = requests.next() => next,
        };
        match next {
            None => return "by its peer".to_owned(),
            // Malformed frames end here too: this connection is lost, and nothing else.
            Some(Err(error)) => return error_chain(&error),
            Some(Ok(request)) => {
                request_came();
                let (handler, session, permit) = (handler.clone(), session.clone(), session.begin());
                // Kept until the answer is handed over, so that answers nobody takes hold back what is read.
                let in_flight = permit.clone();
                let answer = serve(move |_, request| answer(handler, session, request, permit));
                // Here, as far as it need not wait: most requests take less than another task would.
                shared.runtime.start(Box::pin(async move {
                    request.execute(answer).await;
                    drop(in_flight);
                }));
            }
        }
    }
}

async fn answer<H: Handler>(
    handler: Arc<H>,
    session: Arc<Session>,
    request: LarderRequest,
    permit: Permit,
) -> Result<LarderResponse, tarpc::ServerError> {
    let method = Method::of(&request);
    let peer = session.peer();
    // Boxed: what a handler keeps would be copied by each that passes the request on.
    let handling = Box::pin(async move { handler.handle(Call { session, request, permit }).await });
    match AssertUnwindSafe(handling).catch_unwind().await {
        Ok(response) => Ok(response),
        Err(panic) => {
            error!(%peer, "defect: the handler of a {method:?} request panicked: {}", panic_text(&*panic));
            method.failed(ErrorCode::Internal)
        }
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, Instant as StdInstant};

    use larder_protocol::attr::Credential;
    use larder_protocol::cell::ServerId;
    use larder_protocol::handshake::{Hello, LeaseTerms, MAX_VERSION, MIN_VERSION, Welcome};
    use larder_protocol::ids::{ClientId, Epoch, Fid, OpId, VolumeId};
    use larder_protocol::limits::MAX_IN_FLIGHT;
    use larder_protocol::runtime::{RuntimeExt, SimRuntime};
    use larder_protocol::service::LarderClient;
    use larder_protocol::service::file::{Op, Query, QueryReply};
    use larder_protocol::stats::ServerStats;
    use larder_protocol::transport::{ClientTransport, ServerTransport};
    use tarpc::context::Context;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::time::{Instant, sleep, timeout};

    use super::*;

    const FID: Fid = Fid { volume: VolumeId::ROOT, vnode: 1, generation: 1 };
    const SLOW: Duration = Duration::from_secs(5);

    /// Takes its time for mutations and reads of access times, and counts both; breaks at a statfs.
    struct Fake {
        shared: Shared,
        started: AtomicUsize,
        finished: AtomicUsize,
    }

    impl Handler for Fake {
        async fn handle(self: Arc<Self>, call: Call) -> LarderResponse {
            let Call { session, request, permit } = call;
            match request {
                LarderRequest::Hello { hello } => {
                    LarderResponse::Hello(self.shared.sessions.hello(&session, &hello).await.map(|_| Welcome {
                        version: 1,
                        server: ServerId(1),
                        epoch: Epoch(1),
                        software: String::new(),
                        durable: true,
                        slots: 1,
                        max_read: 1,
                        max_write: 1,
                        lease: LeaseTerms::default(),
                    }))
                }
                LarderRequest::Mutate { .. } => {
                    self.started.fetch_add(1, Ordering::SeqCst);
                    let this = self.clone();
                    let work = self.shared.runtime.detached(async move {
                        this.shared.runtime.sleep(SLOW).await;
                        this.finished.fetch_add(1, Ordering::SeqCst);
                        drop(permit);
                    });
                    work.await;
                    LarderResponse::Mutate(Err(ErrorCode::NotSupported))
                }
                LarderRequest::Query { query: Query::Statfs { .. }, .. } => panic!("a defect for the test"),
                LarderRequest::Query { .. } => {
                    self.started.fetch_add(1, Ordering::SeqCst);
                    self.shared.runtime.sleep(SLOW).await;
                    LarderResponse::Query(Ok(QueryReply::Offset(7)))
                }
                LarderRequest::Stats {} => LarderResponse::Stats(ServerStats::default()),
                other => panic!("not in these tests: {other:?}"),
            }
        }
    }

    fn fake() -> Arc<Fake> {
        let runtime: SharedRuntime = Arc::new(SimRuntime::new(1));
        let sessions = Arc::new(Sessions::new(runtime.clone()));
        let shared = Shared { sessions, ending: CancellationToken::new(), runtime };
        Arc::new(Fake { shared, started: AtomicUsize::new(0), finished: AtomicUsize::new(0) })
    }

    fn dial(server: &Arc<Fake>) -> DuplexStream {
        let (near, far) = tokio::io::duplex(64 << 10);
        tokio::spawn(run(server.clone(), server.shared.clone(), ServerTransport::new(far), Peer::Local));
        near
    }

    fn connect(server: &Arc<Fake>) -> LarderClient {
        LarderClient::new(tarpc::client::Config::default(), ClientTransport::new(dial(server))).spawn()
    }

    fn context() -> Context {
        let mut context = tarpc::context::current();
        context.deadline = StdInstant::now() + Duration::from_secs(100);
        context
    }

    fn hello(generation: u64) -> Hello {
        Hello {
            min_version: MIN_VERSION,
            max_version: MAX_VERSION,
            prompt: false,
            client: ClientId(1),
            incarnation: 1,
            channel: 0,
            generation,
            software: "test".to_owned(),
        }
    }

    fn mutate(client: &LarderClient, seq: u64) -> impl Future<Output = bool> + Send + use<> {
        let client = client.clone();
        let id = OpId { client: ClientId(1), incarnation: 1, slot: 0, seq };
        async move { client.mutate(context(), Credential::root(), id, Op::Forget { fids: vec![] }).await.is_ok() }
    }

    async fn query(client: &LarderClient, query: Query) -> Option<Result<QueryReply, ErrorCode>> {
        client.query(context(), Credential::root(), query).await.ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_stays_silent_is_closed_but_may_ask_for_stats() {
        let server = fake();
        let silent = connect(&server);
        let known = connect(&server);
        known.hello(context(), hello(1)).await.unwrap().unwrap();
        assert!(silent.stats(context()).await.is_ok());
        assert_eq!(server.shared.sessions.connections(), 2);
        sleep(HELLO_TIMEOUT + Duration::from_secs(1)).await;
        assert!(silent.stats(context()).await.is_err());
        sleep(HELLO_TIMEOUT * 5).await;
        assert!(known.stats(context()).await.is_ok());
        assert_eq!(server.shared.sessions.connections(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_handler_that_panics_gives_an_internal_error_and_no_more() {
        let server = fake();
        let client = connect(&server);
        assert_eq!(query(&client, Query::Statfs { fid: FID }).await, Some(Err(ErrorCode::Internal)));
        assert_eq!(query(&client, Query::Getattr { fid: FID }).await, Some(Ok(QueryReply::Offset(7))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_malformed_frame_closes_its_connection_and_nothing_else() {
        let server = fake();
        let good = connect(&server);
        assert!(good.stats(context()).await.is_ok());
        let mut bad = dial(&server);
        bad.write_all(&[0xff; 64]).await.unwrap();
        let mut rest = Vec::new();
        timeout(Duration::from_secs(1), bad.read_to_end(&mut rest)).await.unwrap().unwrap();
        assert!(rest.is_empty());
        assert!(good.stats(context()).await.is_ok());
        assert_eq!(server.shared.sessions.connections(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_hello_waits_for_the_mutations_of_the_connection_that_it_supersedes() {
        let server = fake();
        let old = connect(&server);
        old.hello(context(), hello(1)).await.unwrap().unwrap();
        let in_flight = tokio::spawn(mutate(&old, 1));
        sleep(Duration::from_secs(1)).await;
        let new = connect(&server);
        let start = Instant::now();
        new.hello(context(), hello(2)).await.unwrap().unwrap();
        assert_eq!(start.elapsed(), SLOW - Duration::from_secs(1));
        assert_eq!(server.finished.load(Ordering::SeqCst), 1, "it was not cut");
        assert!(!in_flight.await.unwrap(), "nobody answers on the old connection");
        assert!(!mutate(&old, 2).await);
        assert_eq!(server.started.load(Ordering::SeqCst), 1, "nor reads it");
    }

    #[tokio::test(start_paused = true)]
    async fn a_mutation_outlives_its_connection() {
        let server = fake();
        let client = connect(&server);
        client.hello(context(), hello(1)).await.unwrap().unwrap();
        let in_flight = tokio::spawn(mutate(&client, 1));
        sleep(Duration::from_secs(1)).await;
        in_flight.abort();
        drop(client);
        sleep(SLOW * 2).await;
        assert_eq!(server.finished.load(Ordering::SeqCst), 1);
        assert_eq!(server.shared.sessions.connections(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_past_the_limit_wait_and_are_answered() {
        let server = fake();
        let client = connect(&server);
        client.hello(context(), hello(1)).await.unwrap().unwrap();
        let many: Vec<_> = (0..MAX_IN_FLIGHT + 50)
            .map(|_| {
                let client = client.clone();
                tokio::spawn(async move { query(&client, Query::Getattr { fid: FID }).await })
            })
            .collect();
        sleep(Duration::from_secs(1)).await;
        assert_eq!(server.started.load(Ordering::SeqCst), MAX_IN_FLIGHT);
        for answer in many {
            assert_eq!(answer.await.unwrap(), Some(Ok(QueryReply::Offset(7))));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_ends_answers_what_it_has_read() {
        let server = fake();
        let client = connect(&server);
        client.hello(context(), hello(1)).await.unwrap().unwrap();
        let in_flight = tokio::spawn(mutate(&client, 1));
        sleep(Duration::from_secs(1)).await;
        server.shared.ending.cancel();
        assert!(in_flight.await.unwrap());
        assert!(!mutate(&client, 2).await);
        assert_eq!(server.shared.sessions.connections(), 0);
    }
}
