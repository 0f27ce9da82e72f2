//! Replies to the kernel that are on their way.
//!
//! A reply says for how long it may be used, which was worked out a moment before it is written. A break that comes in
//! between is told to the kernel *after* the reply, or it would be told of something that it does not know yet (rule 6
//! of AFS mode). So every such reply holds a [`ReplyPass`] from before its validity is worked out until it is written,
//! and breaks wait for those that were there when they came. Nobody asks the server while he holds one.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Counts the replies on their way.
#[derive(Debug, Default)]
pub struct ReplyGate {
    inner: Mutex<Inner>,
    drained: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    phase: usize,
    counts: [usize; 2],
}

/// A reply that is on its way until this is dropped.
#[derive(Debug)]
pub struct ReplyPass {
    gate: Arc<ReplyGate>,
    phase: usize,
}

impl ReplyGate {
    /// A reply is being worked out.
    pub fn enter(self: &Arc<Self>) -> ReplyPass {
        let mut inner = self.inner.lock();
        let phase = inner.phase;
        inner.counts[phase] += 1;
        ReplyPass { gate: self.clone(), phase }
    }

    /// Waits until every reply that is on its way now is written. One at a time may wait.
    pub async fn drain(&self) {
        let before = {
            let mut inner = self.inner.lock();
            let before = inner.phase;
            inner.phase = 1 - before;
            before
        };
        loop {
            let drained = self.drained.notified();
            tokio::pin!(drained);
            drained.as_mut().enable();
            if self.inner.lock().counts[before] == 0 {
                return;
            }
            drained.await;
        }
    }
}

impl Drop for ReplyPass {
    fn drop(&mut self) {
        let empty = {
            let mut inner = self.gate.inner.lock();
            inner.counts[self.phase] -= 1;
            inner.counts[self.phase] == 0
        };
        if empty {
            self.gate.drained.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_break_waits_for_the_replies_before_it_and_for_no_others() {
        let gate = Arc::new(ReplyGate::default());
        assert!(gate.drain().now_or_never().is_some());
        let before = gate.enter();
        let mut draining = Box::pin(gate.drain());
        assert!(draining.as_mut().now_or_never().is_none());
        let _later = gate.enter();
        assert!(draining.as_mut().now_or_never().is_none());
        drop(before);
        assert!(draining.now_or_never().is_some());
    }
}
