//! What the location service is kept in: few small records, changed together or not at all, by any server of the cell.
//!
//! The narrow trait behind which it is. Nothing above it may know which engine there is; there is the one in a
//! server's own store ([`embedded`](super::embedded)), and the same one seen from another server ([`remote`](super::remote)).
//!
//! **R1.** A transaction takes place whole, if each key that it names is at the version that it expects, or not at all.
//! **R2.** What a transaction changes, and not only prolongs, has its revision as version, and each revision is higher than those before it.
//! **R3.** What a read shows was there at some moment after it was asked for.

use std::sync::Arc;

use larder_protocol::runtime::BoxFuture;
pub use larder_protocol::service::registry::{Change, Entry, Expected, Listing, RegistryError, Transaction};

/// Records by key.
pub trait Registry: Send + Sync + 'static {
    /// What it is, and where, for whoever reads of it.
    fn name(&self) -> String;

    /// Whether this process keeps it, and may be asked for it by others.
    fn is_own(&self) -> bool {
        false
    }

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
