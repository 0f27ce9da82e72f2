//! Holding back a connection whose client has too much in flight, or whose server is ending.
//!
//! A connection with [`MAX_IN_FLIGHT`] requests under way is not read until one of them is done, so TCP holds the
//! client back; nothing is rejected. Answers are sent meanwhile.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use futures::task::AtomicWaker;
use futures::{Sink, Stream};
use larder_protocol::limits::MAX_IN_FLIGHT;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Counts a connection's requests in flight.
#[derive(Debug, Default)]
pub struct Gate {
    in_flight: AtomicUsize,
    waker: AtomicWaker,
}

/// One request in flight, until it is dropped.
#[derive(Debug)]
pub struct Ticket(Arc<Gate>);

impl Gate {
    /// A request begins.
    pub fn enter(self: &Arc<Gate>) -> Ticket {
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        Ticket(self.clone())
    }

    fn is_full(&self) -> bool {
        self.in_flight.load(Ordering::Acquire) >= MAX_IN_FLIGHT
    }

    fn poll_open(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.is_full() {
            return Poll::Ready(());
        }
        self.waker.register(cx.waker());
        // Looked at again, for a request that ended before the waker was in its place.
        if self.is_full() { Poll::Pending } else { Poll::Ready(()) }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.0.in_flight.fetch_sub(1, Ordering::AcqRel) == MAX_IN_FLIGHT {
            self.0.waker.wake();
        }
    }
}

/// A transport that is read only while its gate is open, and that ends when the server does.
pub struct Gated<T> {
    inner: Pin<Box<T>>,
    gate: Arc<Gate>,
    ending: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<T> Gated<T> {
    /// Puts a gate before a transport. Once `ending` is cancelled it reads as closed by its peer; sending goes on.
    pub fn new(inner: T, gate: Arc<Gate>, ending: CancellationToken) -> Gated<T> {
        Gated { inner: Box::pin(inner), gate, ending: Box::pin(ending.cancelled_owned()) }
    }
}

impl<T, In> Stream for Gated<T>
where
    T: Stream<Item = io::Result<In>>,
{
    type Item = io::Result<In>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<In>>> {
        if self.ending.as_mut().poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        match self.gate.poll_open(cx) {
            Poll::Ready(()) => self.inner.as_mut().poll_next(cx),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<T, Out> Sink<Out> for Gated<T>
where
    T: Sink<Out, Error = io::Error>,
{
    type Error = io::Error;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.as_mut().poll_ready(cx)
    }

    fn start_send(mut self: Pin<&mut Self>, message: Out) -> io::Result<()> {
        self.inner.as_mut().start_send(message)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.as_mut().poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.as_mut().poll_close(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::StreamExt;
    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_full_gate_stops_reading_and_opens_again() {
        let gate = Arc::new(Gate::default());
        let numbers = futures::stream::iter(0u64..).map(Ok::<u64, io::Error>);
        let mut gated = Gated::new(numbers, gate.clone(), CancellationToken::new());
        let mut tickets: Vec<Ticket> = Vec::new();
        for _ in 0..MAX_IN_FLIGHT {
            assert!(gated.next().await.is_some());
            tickets.push(gate.enter());
        }
        assert!(timeout(Duration::from_secs(60), gated.next()).await.is_err());
        let opening = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            tickets.pop();
        };
        let (next, ()) = tokio::join!(timeout(Duration::from_secs(2), gated.next()), opening);
        assert_eq!(next.unwrap().unwrap().unwrap(), MAX_IN_FLIGHT as u64);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_ends_reads_nothing_more() {
        let ending = CancellationToken::new();
        let numbers = futures::stream::pending::<io::Result<u64>>();
        let mut gated = Gated::new(numbers, Arc::new(Gate::default()), ending.clone());
        let cancelling = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            ending.cancel();
        };
        let (next, ()) = tokio::join!(timeout(Duration::from_secs(2), gated.next()), cancelling);
        assert!(next.unwrap().is_none());
    }
}
