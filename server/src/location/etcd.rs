//! The location service in etcd: the cell's directory outside of its servers, for cells that must not depend on one of them.
//!
//! A record is a key below a prefix of the cell's; its version is etcd's `mod_revision`, which is all that the trait's R1 and
//! R2 ask for. Records that go by themselves hang on a lease of etcd's, one for each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, GetOptions, KeyValue, PutOptions, Txn, TxnOp, WatchOptions,
};
use larder_protocol::runtime::{BoxFuture, SharedRuntime};
use parking_lot::Mutex;

use super::registry::{Change, Entry, Listing, Registry, RegistryError, Transaction};

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(5);
/// How long [`Registry::changed`] waits at most.
const WAIT: Duration = Duration::from_secs(60);

/// The records.
pub struct EtcdRegistry {
    endpoints: Vec<String>,
    /// What all keys of the cell begin with.
    prefix: String,
    runtime: SharedRuntime,
    client: tokio::sync::Mutex<Option<Client>>,
    /// Records that go by themselves and were put by this process.
    passing: Mutex<BTreeMap<String, Passing>>,
}

#[derive(Clone)]
struct Passing {
    value: String,
    version: u64,
    lease: i64,
}

impl EtcdRegistry {
    /// At these, each a `HOST:PORT`, of which one that answers suffices. It is not asked yet.
    pub fn new(endpoints: Vec<String>, prefix: &str, runtime: SharedRuntime) -> Arc<EtcdRegistry> {
        let prefix = format!("{prefix}/");
        let (client, passing) = (tokio::sync::Mutex::default(), Mutex::default());
        Arc::new(EtcdRegistry { endpoints, prefix, runtime, client, passing })
    }

    fn error(&self, cause: impl ToString) -> RegistryError {
        RegistryError { service: self.name(), cause: cause.to_string() }
    }

    async fn client(&self) -> Result<Client, RegistryError> {
        let mut client = self.client.lock().await;
        if let Some(client) = &*client {
            return Ok(client.clone());
        }
        let options = ConnectOptions::new().with_connect_timeout(ANSWER).with_keep_alive(ANSWER, ANSWER);
        let connected = Client::connect(&self.endpoints, Some(options)).await.map_err(|error| self.error(error))?;
        *client = Some(connected.clone());
        Ok(connected)
    }

    /// Waits for an answer, and not for long.
    async fn bounded<T>(
        &self,
        answer: impl Future<Output = Result<T, etcd_client::Error>>,
    ) -> Result<T, RegistryError> {
        tokio::select! {
            biased;
            answer = answer => answer.map_err(|error| self.error(error)),
            () = self.runtime.sleep(ANSWER) => Err(self.error("no answer in time")),
        }
    }

    fn entry(&self, found: &KeyValue) -> Result<Entry, RegistryError> {
        let key = found.key_str().map_err(|error| self.error(error))?;
        let value = found.value_str().map_err(|error| self.error(error))?.to_owned();
        let key = key.strip_prefix(&self.prefix).unwrap_or(key).to_owned();
        Ok(Entry { key, value, version: found.mod_revision() as u64 })
    }

    fn full(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// Whoever put it says that it is still there, and nothing else: that makes no revision.
    async fn prolong(&self, client: &mut Client, transaction: &Transaction) -> Option<u64> {
        let [Change { key, value: Some(value), ttl: Some(_) }] = &transaction.changes[..] else { return None };
        let passing = self.passing.lock().get(key).cloned()?;
        let is_expected =
            transaction.expected.iter().all(|expected| expected.key == *key && expected.version == passing.version);
        if passing.value != *value || !is_expected {
            return None;
        }
        let prolonged = async {
            let (mut keeper, mut answers) = client.lease_keep_alive(passing.lease).await?;
            keeper.keep_alive().await?;
            answers.message().await
        };
        // A lease that has run out is answered with no time left.
        let is_there = self.bounded(prolonged).await.ok()??.ttl() > 0;
        is_there.then_some(passing.version)
    }

    async fn run(&self, transaction: Transaction) -> Result<Option<u64>, RegistryError> {
        let mut client = self.client().await?;
        if let Some(version) = self.prolong(&mut client, &transaction).await {
            return Ok(Some(version));
        }
        let compares: Vec<Compare> = transaction
            .expected
            .iter()
            .map(|expected| Compare::mod_revision(self.full(&expected.key), CompareOp::Equal, expected.version as i64))
            .collect();
        let (mut operations, mut leases) = (Vec::new(), Vec::new());
        for Change { key, value, ttl } in &transaction.changes {
            operations.push(match (value, ttl) {
                (None, _) => TxnOp::delete(self.full(key), None),
                (Some(value), None) => TxnOp::put(self.full(key), value.as_str(), None),
                (Some(value), Some(ttl)) => {
                    let lease = self.bounded(client.lease_grant(ttl.as_secs() as i64, None)).await?.id();
                    leases.push((key.clone(), value.clone(), lease));
                    TxnOp::put(self.full(key), value.as_str(), Some(PutOptions::new().with_lease(lease)))
                }
            });
        }
        let done = self.bounded(client.txn(Txn::new().when(compares).and_then(operations))).await?;
        let revision = done.header().map_or(0, |header| header.revision()) as u64;
        if !done.succeeded() {
            for (_, _, lease) in leases {
                // It runs out by itself, too.
                let _ = self.bounded(client.lease_revoke(lease)).await;
            }
            return Ok(None);
        }
        let mut passing = self.passing.lock();
        transaction.changes.iter().for_each(|change| drop(passing.remove(&change.key)));
        for (key, value, lease) in leases {
            passing.insert(key, Passing { value, version: revision, lease });
        }
        Ok(Some(revision))
    }

    /// Waits for something below a prefix to change after a revision.
    async fn wait(&self, prefix: &str, revision: u64) -> Result<u64, RegistryError> {
        let mut client = self.client().await?;
        let options = WatchOptions::new().with_prefix().with_start_revision(revision as i64 + 1);
        let mut changes = self.bounded(client.watch(self.full(prefix), Some(options))).await?;
        let over = self.runtime.sleep(WAIT);
        tokio::pin!(over);
        loop {
            let next = tokio::select! {
                biased;
                next = changes.message() => next.map_err(|error| self.error(error))?,
                () = &mut over => return Ok(revision),
            };
            let Some(next) = next else { return Err(self.error("the watch has ended")) };
            // What was compacted away can be listed, but not be waited for.
            if next.canceled() || !next.events().is_empty() {
                return Ok(next.header().map_or(revision, |header| header.revision() as u64).max(revision + 1));
            }
        }
    }
}

impl Registry for EtcdRegistry {
    fn name(&self) -> String {
        format!("etcd at {}", self.endpoints.join(", "))
    }

    fn get(self: Arc<Self>, key: String) -> BoxFuture<Result<Option<Entry>, RegistryError>> {
        Box::pin(async move {
            let mut client = self.client().await?;
            let found = self.bounded(client.get(self.full(&key), None)).await?;
            found.kvs().first().map(|found| self.entry(found)).transpose()
        })
    }

    fn list(self: Arc<Self>, prefix: String) -> BoxFuture<Result<Listing, RegistryError>> {
        Box::pin(async move {
            let mut client = self.client().await?;
            let found = self.bounded(client.get(self.full(&prefix), Some(GetOptions::new().with_prefix()))).await?;
            let entries = found.kvs().iter().map(|found| self.entry(found)).collect::<Result<Vec<_>, _>>()?;
            let revision = found.header().map_or(0, |header| header.revision()) as u64;
            Ok(Listing { entries, revision })
        })
    }

    fn transact(self: Arc<Self>, transaction: Transaction) -> BoxFuture<Result<Option<u64>, RegistryError>> {
        Box::pin(async move { self.run(transaction).await })
    }

    fn changed(self: Arc<Self>, prefix: String, revision: u64) -> BoxFuture<Result<u64, RegistryError>> {
        Box::pin(async move { self.wait(&prefix, revision).await })
    }
}
