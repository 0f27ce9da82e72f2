//! A connection to a server for a command that asks it a little.

use std::io;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use larder_protocol::service::{LarderClient, LarderRequest, LarderResponse};
use larder_protocol::transport::ClientTransport;
use tarpc::context::Context;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

use super::spec::Server;

/// # Errors
/// Nobody answers there. How long that takes is up to the caller.
pub(super) async fn dial(server: &Server) -> io::Result<LarderClient> {
    let stream = TcpStream::connect((server.host.as_str(), server.port)).await?;
    stream.set_nodelay(true)?;
    let transport: ClientTransport<_, LarderRequest, LarderResponse> = ClientTransport::new(stream);
    Ok(LarderClient::new(tarpc::client::Config::default(), transport).spawn())
}

/// Of a request that is to be answered by then.
pub(super) fn within(time: Duration) -> Context {
    let mut context = tarpc::context::current();
    context.deadline = Instant::now() + time;
    context
}

/// What a command runs on that only waits for answers.
pub(super) fn runtime() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")
}
