//! How much whoever drives a connection may move.
//!
//! tarpc's dispatch goes on for as long as the socket gives and takes. That is bounded where a task of tokio polls it;
//! a caller that only wants its own request sent must not be held by the traffic of others.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use futures::{Sink, Stream};
use larder_protocol::service::{LarderRequest, LarderResponse};
use tarpc::{ClientMessage, Response};

use super::connector::BoxTransport;

/// Messages that may still be moved, each way.
#[derive(Debug)]
pub(super) struct Ration {
    received: AtomicUsize,
    sent: AtomicUsize,
}

impl Default for Ration {
    /// No bound.
    fn default() -> Ration {
        Ration { received: AtomicUsize::new(usize::MAX), sent: AtomicUsize::new(usize::MAX) }
    }
}

impl Ration {
    /// Allows for `share` messages each way.
    pub(super) fn set(&self, share: usize) {
        self.received.store(share, Ordering::Relaxed);
        self.sent.store(share, Ordering::Relaxed);
    }

    /// Whether nothing more may be moved one way.
    pub(super) fn is_used_up(&self) -> bool {
        self.received.load(Ordering::Relaxed) == 0 || self.sent.load(Ordering::Relaxed) == 0
    }

    /// Takes one message to be received, or has the poll come again.
    pub(super) fn take_received(&self, cx: &Context<'_>) -> bool {
        take(&self.received, cx)
    }
}

/// One thread polls at a time, so what is read here does not change before it is written.
fn take(left: &AtomicUsize, cx: &Context<'_>) -> bool {
    match left.load(Ordering::Relaxed) {
        0 => {
            cx.waker().wake_by_ref();
            false
        }
        usize::MAX => true,
        some => {
            left.store(some - 1, Ordering::Relaxed);
            true
        }
    }
}

/// A transport that keeps to a ration.
pub(super) struct Rationed {
    inner: BoxTransport,
    ration: Arc<Ration>,
}

impl Rationed {
    pub(super) fn new(inner: BoxTransport, ration: Arc<Ration>) -> Rationed {
        Rationed { inner, ration }
    }
}

impl Stream for Rationed {
    type Item = io::Result<Response<LarderResponse>>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ration.received.load(Ordering::Relaxed) == 0 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let received = self.inner.as_mut().poll_next(cx);
        if received.is_ready() {
            self.ration.take_received(cx);
        }
        received
    }
}

impl Sink<ClientMessage<LarderRequest>> for Rationed {
    type Error = io::Error;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.ration.sent.load(Ordering::Relaxed) == 0 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.inner.as_mut().poll_ready(cx)
    }

    fn start_send(mut self: Pin<&mut Self>, message: ClientMessage<LarderRequest>) -> io::Result<()> {
        let left = self.ration.sent.load(Ordering::Relaxed);
        if left != usize::MAX {
            self.ration.sent.store(left.saturating_sub(1), Ordering::Relaxed);
        }
        self.inner.as_mut().start_send(message)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = self.inner.as_mut().poll_flush(cx);
        if flushed.is_ready() && self.ration.sent.load(Ordering::Relaxed) == 0 {
            // tarpc flushes until there is room for more: it must not be told that there is nothing to flush.
            cx.waker().wake_by_ref();
            return match flushed {
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                _ => Poll::Pending,
            };
        }
        flushed
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.as_mut().poll_close(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use larder_protocol::service::LarderRequest;
    use larder_protocol::transport::{ClientTransport, ServerTransport};
    use tarpc::ClientMessage;
    use tokio::sync::mpsc;

    use super::*;
    use crate::rpc::driver::Driver;

    /// tarpc's own loops with a ration that is used up in their middle.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_caller_that_finds_many_requests_waiting_gets_away_and_the_task_sends_them() {
        const REQUESTS: usize = 9;
        let (near, far) = tokio::io::duplex(1 << 20);
        let ration = Arc::new(Ration::default());
        let transport: ClientTransport<_, LarderRequest, LarderResponse> = ClientTransport::new(near);
        let transport = Rationed::new(Box::pin(transport), ration.clone());
        let tarpc::client::NewClient { client, dispatch } =
            tarpc::client::new(tarpc::client::Config::default(), transport);
        let driver = Driver::new(Box::pin(async move { format!("{:?}", dispatch.await.err()) }), ration);

        let (caller, (away, mut is_away)) = (Arc::clone(&driver), mpsc::channel(1));
        let mut calls: Vec<_> = (0..REQUESTS)
            .map(|_| {
                let client = client.clone();
                Box::pin(async move { client.call(tarpc::context::current(), LarderRequest::Stats {}).await })
            })
            .collect();
        std::thread::spawn(move || {
            let mut context = Context::from_waker(std::task::Waker::noop());
            caller.with(|| {
                for call in &mut calls {
                    assert!(call.as_mut().poll(&mut context).is_pending());
                }
            });
            away.blocking_send(calls).unwrap();
        });
        let bound = Duration::from_secs(10);
        let _calls = tokio::time::timeout(bound, is_away.recv()).await.expect("the caller is held");
        let task = tokio::spawn(driver.run());
        let mut server: ServerTransport<_, LarderRequest, LarderResponse> = ServerTransport::new(far);
        for n in 0..REQUESTS {
            let message = tokio::time::timeout(bound, futures::StreamExt::next(&mut server)).await;
            assert!(matches!(message, Ok(Some(Ok(ClientMessage::Request(_))))), "request {n}: {message:?}");
        }
        task.abort();
    }
}
