//! What a request costs that asks for nothing: tarpc as it comes, with its own transport, between two processes.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures::StreamExt;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tarpc::context::{self, Context};
use tarpc::serde_transport::Transport;
use tarpc::server::{BaseChannel, Channel};
use tarpc::tokio_serde::formats::Bincode;
use tarpc::tokio_util::codec::{Framed, LengthDelimitedCodec};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

use crate::process::Process;

/// The argument by which this program is the server.
pub const PING_SERVER: &str = "ping-server";

/// How long the server may take to start.
const PATIENCE: Duration = Duration::from_secs(30);

#[tarpc::service]
trait Ping {
    /// Says that it is there.
    async fn ping();
}

#[derive(Clone)]
struct Answering;

impl Ping for Answering {
    async fn ping(self, _: Context) {}
}

/// The transport that comes with tarpc.
fn transport<Got, Sent>(stream: TcpStream) -> Transport<TcpStream, Got, Sent, Bincode<Got, Sent>>
where
    Got: DeserializeOwned,
    Sent: Serialize,
{
    tarpc::serde_transport::new(Framed::new(stream, LengthDelimitedCodec::new()), Bincode::default())
}

/// Answers until the process is ended. Prints its address.
///
/// # Errors
/// If it cannot listen.
pub fn serve() -> Result<()> {
    let runtime = Runtime::new().context("starting tokio")?;
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("listening")?;
        println!("{}", listener.local_addr()?);
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let answers = BaseChannel::with_defaults(transport(stream)).execute(Answering.serve());
            tokio::spawn(answers.for_each(|answer| async {
                tokio::spawn(answer);
            }));
        }
    })
}

/// A client of a server that was started for it.
pub struct Pinger {
    runtime: Runtime,
    client: PingClient,
    _server: Process,
}

impl Pinger {
    /// Starts a server, with its log in `dir`, and connects to it.
    ///
    /// # Errors
    /// If either fails.
    pub fn start(dir: &Path) -> Result<Pinger> {
        let mut command = Command::new(std::env::current_exe().context("finding this program")?);
        let mut server = Process::spawn(command.arg(PING_SERVER), dir, PING_SERVER)?;
        let log = dir.join(format!("{PING_SERVER}.log"));
        let address: SocketAddr =
            server.wait_ready(PATIENCE, || std::fs::read_to_string(&log).ok()?.lines().next()?.parse().ok())?;
        let runtime = Runtime::new().context("starting tokio")?;
        let client = runtime.block_on(async {
            let stream = TcpStream::connect(address).await.with_context(|| format!("connecting to {address}"))?;
            stream.set_nodelay(true)?;
            anyhow::Ok(PingClient::new(tarpc::client::Config::default(), transport(stream)).spawn())
        })?;
        Ok(Pinger { runtime, client, _server: server })
    }

    /// How long each of so many pings took, one after the other.
    ///
    /// # Errors
    /// If one is not answered.
    pub fn ping(&self, count: usize) -> Result<Vec<Duration>> {
        self.runtime.block_on(async {
            let mut took = Vec::with_capacity(count);
            for _ in 0..count {
                let begin = Instant::now();
                self.client.ping(context::current()).await?;
                took.push(begin.elapsed());
            }
            Ok(took)
        })
    }
}
