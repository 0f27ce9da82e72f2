//! What the location service is kept in: few small records, changed together or not at all, by any server of the cell.
//!
//! The narrow trait behind which it is. Nothing above it may know which engine there is; so far there is the one in a
//! server's own store ([`embedded`](super::embedded)).
//!
//! **R1.** A transaction takes place whole, if each key that it names is at the version that it expects, or not at all.
//! **R2.** What a transaction changes, and not only prolongs, has its revision as version, and each revision is higher than those before it.
//! **R3.** What a read shows was there at some moment after it was asked for.

use std::sync::Arc;
use std::time::Duration;

use larder_protocol::runtime::BoxFuture;
use serde::{Deserialize, Serialize};

/// A record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its key.
    pub key: String,
    /// What it says.
    pub value: String,
    /// The revision of its last change (R2).
    pub version: u64,
}

/// What must be true of a key for a transaction to take place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expected {
    /// The key.
    pub key: String,
    /// Its version; 0 if there must be no such record.
    pub version: u64,
}

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The key.
    pub key: String,
    /// What it is to say; nothing removes it.
    pub value: Option<String>,
    /// After how long it goes by itself, unless it was put again.
    pub ttl: Option<Duration>,
}

impl Change {
    /// Puts a record that stays.
    pub fn put(key: impl Into<String>, value: impl Into<String>) -> Change {
        Change { key: key.into(), value: Some(value.into()), ttl: None }
    }

    /// Removes a record.
    pub fn remove(key: impl Into<String>) -> Change {
        Change { key: key.into(), value: None, ttl: None }
    }
}

/// A transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transaction {
    /// What must be true for it.
    pub expected: Vec<Expected>,
    /// What it changes.
    pub changes: Vec<Change>,
}

/// The records below a prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// In the order of their keys.
    pub entries: Vec<Entry>,
    /// Names this moment, for [`Registry::changed`].
    pub revision: u64,
}

/// The location service does not answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("the location service, {service}, does not answer: {cause}")]
pub struct RegistryError {
    /// Which, and where: `etcd at HOST:PORT`.
    pub service: String,
    /// Why.
    pub cause: String,
}

/// Records by key.
pub trait Registry: Send + Sync + 'static {
    /// What it is, and where, for whoever reads of it.
    fn name(&self) -> String;

    /// A record, if it is there.
    ///
    /// # Errors
    /// It does not answer.
    fn get(self: Arc<Self>, key: String) -> BoxFuture<Result<Option<Entry>, RegistryError>>;

    /// All records below a prefix.
    ///
    /// # Errors
    /// It does not answer.
    fn list(self: Arc<Self>, prefix: String) -> BoxFuture<Result<Listing, RegistryError>>;

    /// Runs a transaction, and says which revision it made; nothing if it did not take place.
    ///
    /// # Errors
    /// It does not answer, and the transaction may have taken place or not.
    fn transact(self: Arc<Self>, transaction: Transaction) -> BoxFuture<Result<Option<u64>, RegistryError>>;

    /// Waits until something below a prefix is other than at `revision`, or for a while; the revision by then.
    ///
    /// # Errors
    /// It does not answer.
    fn changed(self: Arc<Self>, prefix: String, revision: u64) -> BoxFuture<Result<u64, RegistryError>>;
}
