//! One client's line to the server, on top of the weather: it can be cut, in both directions or one, and it can lie.
//!
//! A line that is cut loses nothing by itself: what is sent waits, and comes late or, if connections are reset when the
//! line is mended, never. Nor does the far end learn that a connection was closed.
//!
//! A line that lies acknowledges breaks itself and tells the client nothing of them: this is how the test skips breaks
//! without a switch in the code that is tested.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use futures::{Sink, Stream};
use larder_client::rpc::{BoxTransport, Connector};
use larder_protocol::runtime::BoxFuture;
use larder_protocol::service::callback::{Break, Breaks, Renewed};
use larder_protocol::service::{LarderRequest, LarderResponse};
use tarpc::{ClientMessage, Request, Response, context};
use tokio::sync::Notify;

use crate::world::Road;

/// The directions in which a line is cut.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cut {
    Both,
    ToServer,
    FromServer,
}

/// The state of a line.
#[derive(Default)]
pub(crate) struct Line {
    no_way_out: AtomicBool,
    no_way_in: AtomicBool,
    /// How often all connections were reset.
    resets: AtomicU64,
    waiting: Mutex<Vec<Waker>>,
    mended: Notify,
    /// Connections that were closed here, of which the server has not heard.
    unheard: Mutex<Vec<BoxTransport>>,
    /// Acknowledgements forged.
    forged: AtomicU64,
    lies: bool,
}

impl Line {
    pub(crate) fn new(lies: bool) -> Arc<Line> {
        Arc::new(Line { lies, ..Line::default() })
    }

    pub(crate) fn cut(&self, how: Cut) {
        self.no_way_out.store(matches!(how, Cut::Both | Cut::ToServer), Ordering::Relaxed);
        self.no_way_in.store(matches!(how, Cut::Both | Cut::FromServer), Ordering::Relaxed);
    }

    pub(crate) fn mend(&self, reset: bool) {
        self.no_way_out.store(false, Ordering::Relaxed);
        self.no_way_in.store(false, Ordering::Relaxed);
        self.resets.fetch_add(u64::from(reset), Ordering::Relaxed);
        let unheard = std::mem::take(&mut *self.unheard.lock().unwrap());
        drop(unheard);
        self.mended.notify_waiters();
        self.waiting.lock().unwrap().drain(..).for_each(Waker::wake);
    }

    pub(crate) fn forged(&self) -> u64 {
        self.forged.load(Ordering::Relaxed)
    }

    fn is_cut(&self) -> bool {
        self.no_way_out.load(Ordering::Relaxed) || self.no_way_in.load(Ordering::Relaxed)
    }

    fn wait(&self, cx: &Context<'_>) {
        self.waiting.lock().unwrap().push(cx.waker().clone());
    }
}

/// Connects over a line.
pub(crate) struct Dialer {
    pub(crate) road: Arc<Road>,
    pub(crate) line: Arc<Line>,
}

impl Connector for Dialer {
    fn connect(&self, channel: u32) -> BoxFuture<io::Result<BoxTransport>> {
        let (road, line) = (self.road.clone(), self.line.clone());
        Box::pin(async move {
            while line.is_cut() {
                line.mended.notified().await;
            }
            let inner = road.connect(channel).await?;
            let since = line.resets.load(Ordering::Relaxed);
            Ok(Box::pin(Wired { inner: Some(inner), line, since, asked: HashMap::new() }) as BoxTransport)
        })
    }

    fn server(&self) -> String {
        self.road.server()
    }

    fn to(&self, _address: &str) -> Arc<dyn Connector> {
        unreachable!("the only server has all volumes")
    }
}

/// A connection over a line.
struct Wired {
    /// There until it is dropped.
    inner: Option<BoxTransport>,
    line: Arc<Line>,
    since: u64,
    /// Requests about breaks that are not answered, with a line that lies.
    asked: HashMap<u64, LarderRequest>,
}

impl Wired {
    fn inner(&mut self) -> Pin<&mut (dyn larder_client::rpc::Link + 'static)> {
        self.inner.as_mut().expect("it is not dropped").as_mut()
    }

    fn is_reset(&self) -> bool {
        self.since != self.line.resets.load(Ordering::Relaxed)
    }

    /// The answer to a lie: the breaks are acknowledged by asking for the next ones under the client's own request.
    fn lie(&mut self, response: &Response<LarderResponse>, cx: &mut Context<'_>) -> bool {
        let breaks: &[Break] = match &response.message {
            Ok(LarderResponse::Breaks(Ok(Breaks::Outstanding(breaks)))) => breaks,
            Ok(LarderResponse::Renew(Ok(Renewed::BreaksFirst(breaks)))) => breaks,
            _ => return false,
        };
        let (Some(last), Some(asked)) = (breaks.last(), self.asked.get(&response.request_id)) else { return false };
        let mut again = asked.clone();
        match &mut again {
            LarderRequest::Breaks { acked, .. } => *acked = last.serial,
            LarderRequest::Renew { request } => request.acked = last.serial,
            _ => return false,
        }
        self.line.forged.fetch_add(1, Ordering::Relaxed);
        let mut context = context::current();
        context.deadline = std::time::Instant::now() + std::time::Duration::from_secs(500);
        let message = ClientMessage::Request(Request { context, id: response.request_id, message: again });
        let ready = self.inner().poll_ready(cx).is_ready();
        assert!(ready, "there is room for a small request");
        let sent = self.inner().start_send(message).is_ok();
        // What cannot be sent is a connection that is lost.
        let _ = self.inner().poll_flush(cx);
        sent
    }
}

impl Stream for Wired {
    type Item = io::Result<Response<LarderResponse>>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.is_reset() {
            return Poll::Ready(Some(Err(io::ErrorKind::ConnectionReset.into())));
        }
        loop {
            if this.line.no_way_in.load(Ordering::Relaxed) {
                this.line.wait(cx);
                return Poll::Pending;
            }
            let next = this.inner().poll_next(cx);
            if let Poll::Ready(Some(Ok(response))) = &next
                && this.line.lies
            {
                if this.lie(response, cx) {
                    continue;
                }
                this.asked.remove(&response.request_id);
            }
            return next;
        }
    }
}

impl Sink<ClientMessage<LarderRequest>> for Wired {
    type Error = io::Error;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_reset() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if self.line.no_way_out.load(Ordering::Relaxed) {
            self.line.wait(cx);
            return Poll::Pending;
        }
        self.inner().poll_ready(cx)
    }

    fn start_send(mut self: Pin<&mut Self>, message: ClientMessage<LarderRequest>) -> io::Result<()> {
        if self.line.lies
            && let ClientMessage::Request(request) = &message
            && matches!(request.message, LarderRequest::Breaks { .. } | LarderRequest::Renew { .. })
        {
            self.asked.insert(request.id, request.message.clone());
        }
        self.inner().start_send(message)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_reset() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if self.line.no_way_out.load(Ordering::Relaxed) {
            self.line.wait(cx);
            return Poll::Pending;
        }
        self.inner().poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.line.is_cut() {
            return Poll::Ready(Ok(()));
        }
        self.inner().poll_close(cx)
    }
}

impl Drop for Wired {
    fn drop(&mut self) {
        if self.line.is_cut() {
            self.line.unheard.lock().unwrap().extend(self.inner.take());
        }
    }
}
