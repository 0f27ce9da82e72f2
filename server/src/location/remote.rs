//! The location service in the store of another server of the cell.

use std::sync::Arc;
use std::time::{Duration, Instant};

use larder_protocol::handshake::{Hello, MAX_VERSION, MIN_VERSION};
use larder_protocol::ids::ClientId;
use larder_protocol::runtime::{BoxFuture, SharedRuntime};
use larder_protocol::service::registry::{RegistryReply, RegistryRequest};
use larder_protocol::service::{LarderClient, LarderRequest, LarderResponse};
use larder_protocol::transport::ClientTransport;
use tokio::net::TcpStream;

use super::registry::{Entry, Listing, Registry, RegistryError, Transaction};

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(10);
/// How long the answer may take of who waits for a change: longer than the other end waits.
const CHANGE: Duration = Duration::from_secs(75);

/// The records.
pub struct RemoteRegistry {
    address: String,
    runtime: SharedRuntime,
    client: ClientId,
    link: tokio::sync::Mutex<Link>,
}

#[derive(Default)]
struct Link {
    /// How many there were.
    generation: u64,
    client: Option<LarderClient>,
}

impl RemoteRegistry {
    /// That of the server at `address`, a `HOST:PORT` which is resolved anew each time.
    pub fn new(address: String, runtime: SharedRuntime) -> Arc<RemoteRegistry> {
        let client = ClientId((u128::from(runtime.random()) << 64) | u128::from(runtime.random()));
        Arc::new(RemoteRegistry { address, runtime, client, link: tokio::sync::Mutex::default() })
    }

    fn error(&self, cause: impl ToString) -> RegistryError {
        RegistryError { service: self.name(), cause: cause.to_string() }
    }

    async fn link(&self) -> Result<(LarderClient, u64), RegistryError> {
        let mut link = self.link.lock().await;
        if let Some(client) = &link.client {
            return Ok((client.clone(), link.generation));
        }
        link.generation += 1;
        let opening = self.open(link.generation);
        let client = tokio::select! {
            biased;
            opened = opening => opened?,
            () = self.runtime.sleep(CONNECT) => return Err(self.error("no connection in time")),
        };
        link.client = Some(client.clone());
        Ok((client, link.generation))
    }

    async fn open(&self, generation: u64) -> Result<LarderClient, RegistryError> {
        let stream = TcpStream::connect(&self.address).await.map_err(|error| self.error(error))?;
        stream.set_nodelay(true).map_err(|error| self.error(error))?;
        let transport: ClientTransport<_, LarderRequest, LarderResponse> = ClientTransport::new(stream);
        let tarpc::client::NewClient { client, dispatch } =
            LarderClient::new(tarpc::client::Config::default(), transport);
        self.runtime.spawn(Box::pin(async move {
            // Whoever asks is told of its end.
            let _ = dispatch.await;
        }));
        let hello = Hello {
            min_version: MIN_VERSION,
            max_version: MAX_VERSION,
            client: self.client,
            incarnation: 1,
            channel: 0,
            generation,
            prompt: false,
            software: concat!("larderd ", env!("CARGO_PKG_VERSION")).to_owned(),
        };
        client.hello(within(CONNECT), hello).await.map_err(|error| self.error(error))?.map_err(|no| self.error(no))?;
        Ok(client)
    }

    async fn ask(self: Arc<Self>, request: RegistryRequest, time: Duration) -> Result<RegistryReply, RegistryError> {
        let (client, generation) = self.link().await?;
        match client.registry(within(time), request).await {
            Ok(answer) => answer,
            Err(error) => {
                let mut link = self.link.lock().await;
                if link.generation == generation {
                    link.client = None;
                }
                Err(self.error(error))
            }
        }
    }

    fn strange(&self) -> RegistryError {
        self.error("it answered something else than was asked")
    }
}

fn within(time: Duration) -> tarpc::context::Context {
    let mut context = tarpc::context::current();
    context.deadline = Instant::now() + time;
    context
}

impl Registry for RemoteRegistry {
    fn name(&self) -> String {
        format!("the server at {}", self.address)
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
