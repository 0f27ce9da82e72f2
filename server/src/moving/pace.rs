//! How fast a volume is copied.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use larder_protocol::runtime::{BootTime, SharedRuntime};
use tokio::sync::Mutex;

/// So many bytes in a second, or as many as go.
pub(super) struct Pace {
    runtime: SharedRuntime,
    /// 0 is as many as go.
    limit: AtomicU64,
    /// When the next may be asked for.
    next: Mutex<BootTime>,
}

impl Pace {
    /// This fast.
    pub(super) fn new(limit: Option<u64>, runtime: SharedRuntime) -> Pace {
        let next = Mutex::new(runtime.boottime());
        Pace { runtime, limit: AtomicU64::new(limit.unwrap_or(0)), next }
    }

    /// This fast from now on.
    pub(super) fn set(&self, limit: Option<u64>) {
        self.limit.store(limit.unwrap_or(0), Ordering::Relaxed);
    }

    /// So many bytes have come: waits as long as they should have taken.
    pub(super) async fn took(&self, bytes: u64) {
        let limit = self.limit.load(Ordering::Relaxed);
        if limit == 0 {
            return;
        }
        let until = {
            let mut next = self.next.lock().await;
            // What was not used before is not caught up with.
            *next = (*next).max(self.runtime.boottime()) + Duration::from_secs_f64(bytes as f64 / limit as f64);
            *next
        };
        self.runtime.sleep(until.saturating_sub(self.runtime.boottime())).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use larder_protocol::runtime::SimRuntime;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn so_many_bytes_take_so_long() {
        let runtime: SharedRuntime = Arc::new(SimRuntime::new(1));
        let pace = Pace::new(Some(1 << 20), runtime.clone());
        let start = runtime.boottime();
        for _ in 0..8 {
            pace.took(512 << 10).await;
        }
        let took = runtime.boottime().saturating_sub(start);
        assert!((3.9..4.1).contains(&took.as_secs_f64()), "{took:?}");
        pace.set(None);
        pace.took(1 << 40).await;
        assert_eq!(runtime.boottime().saturating_sub(start), took);
    }
}
