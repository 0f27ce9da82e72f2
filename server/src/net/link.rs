//! A connection to another server of the cell, opened when it is needed, and again when it was lost.

use std::time::{Duration, Instant};

use larder_protocol::handshake::{Hello, MAX_VERSION, MIN_VERSION};
use larder_protocol::ids::ClientId;
use larder_protocol::runtime::SharedRuntime;
use larder_protocol::service::{LarderClient, LarderRequest, LarderResponse};
use larder_protocol::transport::ClientTransport;
use tarpc::client::{Config, NewClient, RpcError};
use tarpc::context::Context;
use tokio::net::TcpStream;
use tokio::sync::Mutex;

use crate::service::SOFTWARE;

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);

/// The other server was not reached, or has not answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LinkError(String);

impl LinkError {
    fn new(cause: impl ToString) -> LinkError {
        LinkError(cause.to_string())
    }
}

/// The way to a server.
pub struct Link {
    address: String,
    runtime: SharedRuntime,
    /// As which client this one speaks there.
    client: ClientId,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// How many connections there were.
    generation: u64,
    client: Option<LarderClient>,
}

impl Link {
    /// To the server at `address`, a `HOST:PORT` which is resolved anew for each connection.
    pub fn new(address: String, runtime: SharedRuntime) -> Link {
        let client = ClientId((u128::from(runtime.random()) << 64) | u128::from(runtime.random()));
        Link { address, runtime, client, state: Mutex::default() }
    }

    /// Where it leads.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Asks for something that is to be answered within `time`.
    ///
    /// # Errors
    /// There is no answer; what was asked for may have been done.
    pub async fn ask<T, Answer: Future<Output = Result<T, RpcError>>>(
        &self,
        time: Duration,
        ask: impl FnOnce(LarderClient, Context) -> Answer,
    ) -> Result<T, LinkError> {
        let (client, generation) = self.connection().await?;
        match ask(client, within(time)).await {
            Ok(answer) => Ok(answer),
            Err(error) => {
                let mut state = self.state.lock().await;
                if state.generation == generation {
                    state.client = None;
                }
                Err(LinkError::new(error))
            }
        }
    }

    /// Leaves: the other server need not remember who this was.
    pub async fn close(&self) {
        let client = self.state.lock().await.client.take();
        if let Some(client) = client {
            // It forgets by itself, too, only later.
            let _ = client.goodbye(within(CONNECT)).await;
        }
    }

    async fn connection(&self) -> Result<(LarderClient, u64), LinkError> {
        let mut state = self.state.lock().await;
        if let Some(client) = &state.client {
            return Ok((client.clone(), state.generation));
        }
        state.generation += 1;
        let generation = state.generation;
        let client = tokio::select! {
            biased;
            opened = self.open(generation) => opened?,
            () = self.runtime.sleep(CONNECT) => return Err(LinkError::new("no connection in time")),
        };
        state.client = Some(client.clone());
        Ok((client, generation))
    }

    async fn open(&self, generation: u64) -> Result<LarderClient, LinkError> {
        let stream = TcpStream::connect(&self.address).await.map_err(LinkError::new)?;
        stream.set_nodelay(true).map_err(LinkError::new)?;
        let transport: ClientTransport<_, LarderRequest, LarderResponse> = ClientTransport::new(stream);
        let NewClient { client, dispatch } = LarderClient::new(Config::default(), transport);
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
            software: SOFTWARE.to_owned(),
        };
        client.hello(within(CONNECT), hello).await.map_err(LinkError::new)?.map_err(LinkError::new)?;
        Ok(client)
    }
}

fn within(time: Duration) -> Context {
    let mut context = tarpc::context::current();
    context.deadline = Instant::now() + time;
    context
}
