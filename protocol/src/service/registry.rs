//! What the location service of a cell keeps, and how one server asks another for it.
//!
//! Few small records, changed together or not at all. A cell whose directory is in the store of one server (`larderd serve
//! --location larder://HOST:PORT` at the others) asks for them with these requests.

use std::time::Duration;

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
    /// Names this moment, for [`RegistryRequest::Changed`].
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

/// What a server of the cell asks the one that keeps the directory for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RegistryRequest {
    /// A record.
    Get {
        /// Its key.
        key: String,
    },
    /// All records below a prefix.
    List {
        /// The prefix.
        prefix: String,
    },
    /// A transaction.
    Transact(Transaction),
    /// To be told when something below a prefix is other than at a revision, or after a while.
    Changed {
        /// The prefix.
        prefix: String,
        /// The revision.
        revision: u64,
    },
}

/// The answer, of the variant that belongs to the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RegistryReply {
    /// To [`RegistryRequest::Get`].
    Entry(Option<Entry>),
    /// To [`RegistryRequest::List`].
    Listing(Listing),
    /// To [`RegistryRequest::Transact`]: the revision that it made, if it took place.
    Transacted(Option<u64>),
    /// To [`RegistryRequest::Changed`].
    Revision(u64),
}
