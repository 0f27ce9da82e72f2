//! Waiting for a replay slot, first come, first served.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::core::slots::{Place, Slots};

/// The slots of one volume and who waits for them.
#[derive(Debug)]
pub struct SlotQueue {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    slots: Slots,
    waiting: VecDeque<oneshot::Sender<SlotGuard>>,
}

/// A slot, given back when dropped. Whoever drops it must have the operation's answer, or never have sent it.
#[derive(Debug)]
pub struct SlotGuard {
    queue: Arc<SlotQueue>,
    place: Place,
    sent: bool,
}

impl SlotGuard {
    /// The slot and the operation's number in it.
    pub fn place(&self) -> Place {
        self.place
    }

    /// The operation was sent, so that its number is used up.
    pub fn sent(&mut self) {
        self.sent = true;
    }
}

impl Drop for SlotGuard {
    fn drop(&mut self) {
        {
            let slots = &mut self.queue.inner.lock().slots;
            if self.sent { slots.free(self.place) } else { slots.give_back(self.place) }
        }
        SlotQueue::hand_out(&self.queue);
    }
}

impl SlotQueue {
    /// No slots until the server has said how many there are.
    pub fn new(incarnation: u64) -> Arc<SlotQueue> {
        Arc::new(SlotQueue { inner: Mutex::new(Inner { slots: Slots::new(incarnation), waiting: VecDeque::new() }) })
    }

    /// The server allows this many.
    pub fn set_limit(self: &Arc<SlotQueue>, limit: u32) {
        self.inner.lock().slots.set_limit(limit);
        SlotQueue::hand_out(self);
    }

    /// The client's life now.
    pub fn incarnation(&self) -> u64 {
        self.inner.lock().slots.incarnation()
    }

    /// Begins a new life, if the one that the caller has seen is still the current one. Returns whether it did.
    pub fn renew(self: &Arc<SlotQueue>, seen: u64) -> bool {
        let mut inner = self.inner.lock();
        let renewed = inner.slots.incarnation() == seen;
        if renewed {
            inner.slots.renew(seen + 1);
        }
        drop(inner);
        SlotQueue::hand_out(self);
        renewed
    }

    /// Waits for a slot. The caller bounds the wait.
    pub async fn acquire(self: &Arc<SlotQueue>) -> SlotGuard {
        loop {
            let turn = {
                let mut inner = self.inner.lock();
                if inner.waiting.is_empty()
                    && let Some(place) = inner.slots.take()
                {
                    return SlotGuard { queue: self.clone(), place, sent: false };
                }
                let (give, turn) = oneshot::channel();
                inner.waiting.push_back(give);
                turn
            };
            // The sender lives in the queue, which `self` keeps: an error cannot happen, and a new turn mends it.
            if let Ok(guard) = turn.await {
                return guard;
            }
        }
    }

    fn hand_out(queue: &Arc<SlotQueue>) {
        loop {
            let (give, guard) = {
                let mut inner = queue.inner.lock();
                inner.waiting.retain(|waiter| !waiter.is_closed());
                if inner.waiting.is_empty() {
                    return;
                }
                let Some(place) = inner.slots.take() else { return };
                let Some(give) = inner.waiting.pop_front() else { return };
                (give, SlotGuard { queue: queue.clone(), place, sent: false })
            };
            // A waiter that left meanwhile sends the guard back, and dropping it (without the lock) frees the slot
            // for the next.
            let returned = give.send(guard);
            drop(returned);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn slots_are_given_in_the_order_of_asking() {
        let queue = SlotQueue::new(1);
        queue.set_limit(1);
        let mut first = queue.acquire().await;
        first.sent();
        let mut second = Box::pin(queue.acquire());
        let mut third = Box::pin(queue.acquire());
        assert!((&mut second).now_or_never().is_none());
        assert!((&mut third).now_or_never().is_none());
        drop(first);
        assert!((&mut third).now_or_never().is_none());
        let mut guard = second.await;
        guard.sent();
        assert_eq!(guard.place().seq, 2);
        drop(guard);
        assert_eq!(third.await.place().seq, 3);
    }

    #[tokio::test]
    async fn a_waiter_that_leaves_takes_no_slot_with_it() {
        let queue = SlotQueue::new(1);
        queue.set_limit(1);
        let first = queue.acquire().await;
        let mut leaver = Box::pin(queue.acquire());
        assert!((&mut leaver).now_or_never().is_none());
        drop(first);
        // The slot was handed to the leaver, who never looks.
        drop(leaver);
        assert!(queue.acquire().now_or_never().is_some());
    }

    #[tokio::test]
    async fn waiters_start_when_the_limit_is_known() {
        let queue = SlotQueue::new(1);
        let mut early = Box::pin(queue.acquire());
        assert!((&mut early).now_or_never().is_none());
        queue.set_limit(4);
        assert_eq!(early.await.place().slot, 0);
    }

    #[tokio::test]
    async fn only_the_first_to_notice_begins_a_new_life() {
        let queue = SlotQueue::new(1);
        queue.set_limit(2);
        let old = queue.acquire().await;
        assert!(queue.renew(1));
        assert!(!queue.renew(1));
        drop(old);
        let new = queue.acquire().await.place();
        assert_eq!((new.incarnation, new.slot, new.seq), (2, 0, 1));
    }
}
