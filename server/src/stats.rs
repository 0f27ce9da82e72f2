//! What the server counts besides what its volumes count themselves.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use larder_protocol::service::kind::Kind;
use larder_protocol::stats::{KindStats, Recorder};

/// Counters of a server, from its start.
#[derive(Default)]
pub struct Counters {
    requests: Recorder,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
    refused: AtomicU64,
}

impl Counters {
    /// A request was answered.
    pub fn answered(&self, kind: Kind, took: Duration, ok: bool) {
        self.requests.record(kind, took, ok);
    }

    /// Contents went to a client.
    pub fn sent(&self, bytes: usize) {
        self.bytes_read.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Contents came from a client and were written.
    pub fn received(&self, bytes: usize) {
        self.bytes_written.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A request was turned away because its connection is fenced or speaks for nobody.
    pub fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Requests by kind.
    pub fn by_kind(&self) -> std::collections::BTreeMap<String, KindStats> {
        self.requests.snapshot()
    }

    /// Bytes sent, bytes received, requests refused.
    pub fn totals(&self) -> (u64, u64, u64) {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (get(&self.bytes_read), get(&self.bytes_written), get(&self.refused))
    }
}
