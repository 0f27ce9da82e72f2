//! A transport that loses, repeats, delays and reorders messages, for tests in virtual time.
//!
//! It wraps the receiving half of any transport: what arrives is, by chance from a seed, dropped, given out twice, or
//! held back for a while so that later messages overtake it; and the whole connection may be cut. Delays use tokio's
//! clock.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{Sink, Stream};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tarpc::{ClientMessage, Request, Response};
use tokio::time::{Instant, Sleep};

/// How bad the network is: chances in 1,000 for each message.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    /// Dropped, which breaks the connection a little later, as a lost segment that is never acknowledged does.
    pub lose: u32,
    /// Delivered twice.
    pub repeat: u32,
    /// Held back for up to `max_delay`.
    pub delay: u32,
    /// The connection is cut at this message.
    pub cut: u32,
    /// The longest delay.
    pub max_delay: Duration,
}

/// Messages that can be delivered twice.
pub trait Repeat: Sized {
    /// Another of the same.
    fn again(&self) -> Self;
}

impl<T: Clone> Repeat for ClientMessage<T> {
    fn again(&self) -> Self {
        match self {
            ClientMessage::Request(request) => ClientMessage::Request(Request {
                context: request.context,
                id: request.id,
                message: request.message.clone(),
            }),
            ClientMessage::Cancel { trace_context, request_id } => {
                ClientMessage::Cancel { trace_context: *trace_context, request_id: *request_id }
            }
            _ => unreachable!("tarpc has no other messages"),
        }
    }
}

impl<T: Clone> Repeat for Response<T> {
    fn again(&self) -> Self {
        self.clone()
    }
}

struct Held<T> {
    due: Instant,
    order: u64,
    message: T,
}

impl<T> PartialEq for Held<T> {
    fn eq(&self, other: &Self) -> bool {
        (self.due, self.order) == (other.due, other.order)
    }
}

impl<T> Eq for Held<T> {}

impl<T> PartialOrd for Held<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Held<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.order).cmp(&(other.due, other.order))
    }
}

/// A transport in bad weather.
pub struct Faulty<T, M> {
    inner: Pin<Box<T>>,
    weather: Weather,
    random: SmallRng,
    held: BinaryHeap<Reverse<Held<M>>>,
    order: u64,
    alarm: Pin<Box<Sleep>>,
    break_at: Option<Instant>,
    ended: bool,
}

impl<T, M> Faulty<T, M> {
    /// Wraps a transport; everything that happens follows from `seed`.
    pub fn new(inner: T, weather: Weather, seed: u64) -> Faulty<T, M> {
        Faulty {
            inner: Box::pin(inner),
            weather,
            random: SmallRng::seed_from_u64(seed),
            held: BinaryHeap::new(),
            order: 0,
            alarm: Box::pin(tokio::time::sleep(Duration::ZERO)),
            break_at: None,
            ended: false,
        }
    }

    fn chance(&mut self, of_thousand: u32) -> bool {
        of_thousand > 0 && self.random.random_range(0..1000) < of_thousand
    }

    fn delay(&mut self) -> Duration {
        let max = self.weather.max_delay.as_micros() as u64;
        Duration::from_micros(self.random.random_range(0..=max))
    }

    fn hold(&mut self, due: Instant, message: M) {
        self.order += 1;
        self.held.push(Reverse(Held { due, order: self.order, message }));
    }
}

impl<T, M> Stream for Faulty<T, M>
where
    T: Stream<Item = io::Result<M>>,
    M: Repeat + Unpin,
{
    type Item = io::Result<M>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<M>>> {
        let this = &mut *self;
        while !this.ended {
            match this.inner.as_mut().poll_next(cx) {
                Poll::Ready(Some(Ok(message))) => {
                    let now = Instant::now();
                    if this.chance(this.weather.cut) {
                        return Poll::Ready(Some(Err(io::ErrorKind::ConnectionReset.into())));
                    }
                    if this.chance(this.weather.lose) {
                        let patience = this.delay();
                        this.break_at.get_or_insert(now + patience);
                        continue;
                    }
                    if this.chance(this.weather.repeat) {
                        let due = now + this.delay();
                        this.hold(due, message.again());
                    }
                    let due = if this.chance(this.weather.delay) { now + this.delay() } else { now };
                    this.hold(due, message);
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                Poll::Ready(None) => this.ended = true,
                Poll::Pending => break,
            }
        }
        loop {
            let now = Instant::now();
            if this.break_at.is_some_and(|at| at <= now) {
                return Poll::Ready(Some(Err(io::ErrorKind::ConnectionReset.into())));
            }
            let next = this.held.peek().map(|Reverse(held)| held.due);
            if next.is_some_and(|due| due <= now)
                && let Some(Reverse(held)) = this.held.pop()
            {
                return Poll::Ready(Some(Ok(held.message)));
            }
            match next.into_iter().chain(this.break_at).min() {
                Some(at) => {
                    this.alarm.as_mut().reset(at);
                    if this.alarm.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                }
                None if this.ended => return Poll::Ready(None),
                None => return Poll::Pending,
            }
        }
    }
}

impl<T, M, Out> Sink<Out> for Faulty<T, M>
where
    T: Sink<Out, Error = io::Error>,
    M: Unpin,
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
    use futures::StreamExt;

    use super::*;

    async fn run(weather: Weather, seed: u64) -> Vec<Option<u64>> {
        let messages = futures::stream::iter(0..200u64).map(|request_id| Ok(Response { request_id, message: Ok(()) }));
        Faulty::new(messages, weather, seed).map(|item| item.ok().map(|response| response.request_id)).collect().await
    }

    #[tokio::test(start_paused = true)]
    async fn one_seed_gives_one_history() {
        let weather = Weather { repeat: 100, delay: 300, max_delay: Duration::from_secs(1), ..Weather::default() };
        let first = run(weather, 7).await;
        assert_eq!(first, run(weather, 7).await);
        assert_ne!(first, run(weather, 8).await);
        let mut ids: Vec<u64> = first.iter().map(|id| id.expect("nothing is cut")).collect();
        assert!(ids.len() > 200, "some are repeated");
        assert!(!ids.is_sorted(), "some are overtaken");
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 200, "none is lost");
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_message_breaks_the_connection() {
        let weather = Weather { lose: 50, max_delay: Duration::from_millis(10), ..Weather::default() };
        let mut stream = Faulty::new(
            futures::stream::iter(0..200u64)
                .map(|request_id| Ok(Response { request_id, message: Ok(()) }))
                .chain(futures::stream::pending()),
            weather,
            1,
        );
        let mut failed = false;
        while let Some(item) = stream.next().await {
            if item.is_err() {
                failed = true;
                break;
            }
        }
        assert!(failed);
    }
}
