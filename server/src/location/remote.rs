//! The location service in the store of another server of the cell.

use std::sync::Arc;
use std::time::Duration;

use larder_protocol::runtime::{BoxFuture, SharedRuntime};
use larder_protocol::service::registry::{RegistryReply, RegistryRequest};

use super::registry::{Entry, Listing, Registry, RegistryError, Transaction};
use crate::net::link::Link;

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(10);
/// How long the answer may take of who waits for a change: longer than the other end waits.
const CHANGE: Duration = Duration::from_secs(75);

/// The records.
pub struct RemoteRegistry {
    link: Link,
}

impl RemoteRegistry {
    /// That of the server at `address`, a `HOST:PORT`.
    pub fn new(address: String, runtime: SharedRuntime) -> Arc<RemoteRegistry> {
        Arc::new(RemoteRegistry { link: Link::new(address, runtime) })
    }

    fn error(&self, cause: impl ToString) -> RegistryError {
        RegistryError { service: self.name(), cause: cause.to_string() }
    }

    async fn ask(self: Arc<Self>, request: RegistryRequest, time: Duration) -> Result<RegistryReply, RegistryError> {
        let asked = self.link.ask(time, |client, context| async move { client.registry(context, request).await });
        asked.await.map_err(|error| self.error(error))?
    }

    fn strange(&self) -> RegistryError {
        self.error("it answered something else than was asked")
    }
}

impl Registry for RemoteRegistry {
    fn name(&self) -> String {
        format!("the server at {}", self.link.address())
    }

    fn get(self: Arc<Self>, key: String) -> BoxFuture<Result<Option<Entry>, RegistryError>> {
        Box::pin(async move {
            match self.clone().ask(RegistryRequest::Get { key }, ANSWER).await? {
                RegistryReply::Entry(entry) => Ok(entry),
                _ => Err(self.strange()),
            }
        })
    }

    fn list(self: Arc<Self>, prefix: String) -> BoxFuture<Result<Listing, RegistryError>> {
        Box::pin(async move {
            match self.clone().ask(RegistryRequest::List { prefix }, ANSWER).await? {
                RegistryReply::Listing(listing) => Ok(listing),
                _ => Err(self.strange()),
            }
        })
    }

    fn transact(self: Arc<Self>, transaction: Transaction) -> BoxFuture<Result<Option<u64>, RegistryError>> {
        Box::pin(async move {
            match self.clone().ask(RegistryRequest::Transact(transaction), ANSWER).await? {
                RegistryReply::Transacted(revision) => Ok(revision),
                _ => Err(self.strange()),
            }
        })
    }

    fn changed(self: Arc<Self>, prefix: String, revision: u64) -> BoxFuture<Result<u64, RegistryError>> {
        Box::pin(async move {
            match self.clone().ask(RegistryRequest::Changed { prefix, revision }, CHANGE).await? {
                RegistryReply::Revision(revision) => Ok(revision),
                _ => Err(self.strange()),
            }
        })
    }
}
