//! Counting requests and timing them, the same way at both ends.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::service::kind::Kind;

/// Count and latency of one kind of request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KindStats {
    /// Requests answered.
    pub count: u64,
    /// Of these, with an error.
    pub errors: u64,
    /// Half were answered within this many microseconds.
    pub p50_us: u64,
    /// 99 of 100 were answered within this many microseconds.
    pub p99_us: u64,
    /// The slowest, in microseconds.
    pub max_us: u64,
}

/// What a server has done since its start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerStats {
    /// Version of the server's software.
    pub version: String,
    /// The server's epoch, in hexadecimal.
    pub epoch: String,
    /// Seconds since the start.
    pub uptime_secs: u64,
    /// Requests by the names of their kinds.
    pub requests: BTreeMap<String, KindStats>,
    /// Bytes of file contents sent to clients.
    pub bytes_read: u64,
    /// Bytes of file contents received from clients.
    pub bytes_written: u64,
    /// Mutations answered from a replay slot instead of being run again.
    pub replayed: u64,
    /// Requests that were turned away because their connection was fenced or unknown.
    pub refused: u64,
    /// Connections open now.
    pub connections: u64,
    /// Clients known now.
    pub clients: u64,
    /// Batches committed to the volumes' metadata.
    pub batches: u64,
    /// Mutations in these batches.
    pub mutations: u64,
    /// Leases and callbacks.
    pub promises: PromiseStats,
}

/// What a server has promised its clients.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromiseStats {
    /// Clients whose lease is running now.
    pub leases: u64,
    /// Callbacks held now, each on one object for one client.
    pub callbacks: u64,
    /// Bytes of memory that they take, about.
    pub callback_bytes: u64,
    /// Callbacks granted.
    pub granted: u64,
    /// Grants withheld because the object was being changed.
    pub withheld: u64,
    /// Callbacks broken because their object changed.
    pub broken: u64,
    /// Callbacks broken to make room for newer ones.
    pub broken_for_room: u64,
    /// Leases that ended without the client having asked for it.
    pub lapsed: u64,
    /// Mutations that had to wait for a break to be acknowledged, or for a lease to end.
    pub waited: u64,
    /// The longest of these waits, in microseconds.
    pub longest_wait_us: u64,
    /// Clients that held leases at an earlier server process and have not been heard of since.
    pub in_grace: u64,
}

/// Times requests by kind.
pub struct Recorder {
    kinds: Vec<Slot>,
}

struct Slot {
    errors: AtomicU64,
    latency: Mutex<Option<Histogram<u64>>>,
}

impl Default for Recorder {
    fn default() -> Recorder {
        Recorder {
            kinds: Kind::ALL.iter().map(|_| Slot { errors: AtomicU64::new(0), latency: Mutex::new(None) }).collect(),
        }
    }
}

impl Recorder {
    /// Counts one request.
    pub fn record(&self, kind: Kind, took: Duration, ok: bool) {
        let slot = &self.kinds[kind as usize];
        if !ok {
            slot.errors.fetch_add(1, Ordering::Relaxed);
        }
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let mut latency = slot.latency.lock();
        if latency.is_none() {
            // Two significant digits and automatic growth: a few KiB for each kind that is used at all.
            *latency = Histogram::new(2).ok().map(|mut histogram: Histogram<u64>| {
                histogram.auto(true);
                histogram
            });
        }
        if let Some(histogram) = latency.as_mut() {
            // It grows as needed; only a latency of centuries does not fit, and that one counts as the longest.
            if histogram.record(micros).is_err() {
                histogram.saturating_record(micros);
            }
        }
    }

    /// The counts so far of every kind that was seen.
    pub fn snapshot(&self) -> BTreeMap<String, KindStats> {
        let mut all = BTreeMap::new();
        for (kind, slot) in Kind::ALL.iter().zip(&self.kinds) {
            if let Some(histogram) = slot.latency.lock().as_ref() {
                all.insert(
                    kind.name().to_owned(),
                    KindStats {
                        count: histogram.len(),
                        errors: slot.errors.load(Ordering::Relaxed),
                        p50_us: histogram.value_at_quantile(0.5),
                        p99_us: histogram.value_at_quantile(0.99),
                        max_us: histogram.max(),
                    },
                );
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_follow_what_was_recorded() {
        let recorder = Recorder::default();
        for micros in 1..=100 {
            recorder.record(Kind::Lookup, Duration::from_micros(micros), micros != 7);
        }
        let stats = recorder.snapshot();
        let lookup = &stats["lookup"];
        assert_eq!((lookup.count, lookup.errors), (100, 1));
        assert!((49..=52).contains(&lookup.p50_us), "{lookup:?}");
        assert!((98..=100).contains(&lookup.p99_us), "{lookup:?}");
        assert!(!stats.contains_key("read"));
        recorder.record(Kind::Lookup, Duration::from_secs(7), true);
        let slow = recorder.snapshot()["lookup"].max_us;
        assert!((6_900_000..7_200_000).contains(&slow), "{slow}");
    }
}
