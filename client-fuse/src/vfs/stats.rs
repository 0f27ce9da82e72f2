//! Counting what the client does. Answers without asking the server.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use larder_protocol::stats::KindStats;
use serde::{Deserialize, Serialize};

use super::{CacheStats, Vfs};
use crate::core::attr_cache::Miss;
use crate::rpc::Client;

/// What a client has done since it was mounted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClientStats {
    /// Version of the client's software.
    pub version: String,
    /// The server's address.
    pub server: String,
    /// Whether there is a connection now.
    pub connected: bool,
    /// The options of the mount.
    pub options: Vec<String>,
    /// Requests to the server by the names of their kinds. The times include retries.
    pub requests: BTreeMap<String, KindStats>,
    /// Times that something cached was used.
    pub hits: u64,
    /// Times that nothing cached could be used, by the rule that said no.
    pub misses: BTreeMap<String, u64>,
    /// Bytes of file contents received.
    pub bytes_read: u64,
    /// Bytes of file contents that the server has taken.
    pub bytes_written: u64,
    /// Requests sent more than once.
    pub retries: u64,
    /// Connections opened again.
    pub reconnects: u64,
    /// New server processes seen.
    pub server_restarts: u64,
    /// Bytes on their way to the server, not yet durable there.
    pub dirty_bytes: u64,
    /// Objects that the kernel knows.
    pub nodes: u64,
    /// Open files and directories.
    pub handles: u64,
    /// The disk cache and the lease, in AFS mode.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheStats>,
}

/// Cache hits and misses.
#[derive(Default)]
pub(super) struct Counters {
    hits: AtomicU64,
    misses: [AtomicU64; Miss::ALL.len()],
}

impl Counters {
    pub(super) fn hit(&self) {
        self.hits.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn miss(&self, miss: Miss) {
        self.misses[miss as usize].fetch_add(1, Ordering::Relaxed);
    }
}

impl Vfs {
    /// The counters now.
    pub fn stats(&self) -> ClientStats {
        let (home, all) = (self.servers.home(), self.servers.all());
        let shared = home.shared();
        let sum = |of: fn(&Client) -> u64| all.iter().map(|client| of(client)).sum::<u64>();
        let misses = Miss::ALL
            .iter()
            .map(|miss| (miss.name().to_owned(), self.counters.misses[*miss as usize].load(Ordering::Relaxed)))
            .collect();
        ClientStats {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            server: shared.connector().server(),
            connected: home.is_connected(),
            options: self.options.list(),
            requests: shared.recorder.snapshot(),
            hits: self.counters.hits.load(Ordering::Relaxed),
            misses,
            bytes_read: sum(Client::bytes_read),
            bytes_written: sum(Client::bytes_written),
            retries: sum(Client::retries),
            reconnects: sum(|client| client.shared().reconnects.load(Ordering::Relaxed)),
            server_restarts: sum(|client| client.shared().server_restarts.load(Ordering::Relaxed)),
            dirty_bytes: self.unsent.bytes(),
            nodes: self.nodes.len() as u64,
            handles: self.handles.len() as u64,
            cache: self.afs.as_ref().map(|afs| self.cache_stats(afs)),
        }
    }
}
