//! Opening connections.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Sink, Stream};
use larder_protocol::runtime::BoxFuture;
use larder_protocol::service::{LarderRequest, LarderResponse};
use larder_protocol::transport::ClientTransport;
use tarpc::{ClientMessage, Response};
use tokio::net::TcpStream;

/// What tarpc needs of a connection.
pub trait Link:
    Stream<Item = io::Result<Response<LarderResponse>>> + Sink<ClientMessage<LarderRequest>, Error = io::Error> + Send
{
}

impl<T> Link for T where
    T: Stream<Item = io::Result<Response<LarderResponse>>>
        + Sink<ClientMessage<LarderRequest>, Error = io::Error>
        + Send
{
}

/// Any connection.
pub type BoxTransport = Pin<Box<dyn Link>>;

/// Opens connections to one server.
pub trait Connector: Send + Sync + 'static {
    /// Opens one for this channel. The caller bounds the time.
    fn connect(&self, channel: u32) -> BoxFuture<io::Result<BoxTransport>>;

    /// The server's name in messages to the user.
    fn server(&self) -> String;

    /// Opens connections to the server at another address, in the same way.
    fn to(&self, address: &str) -> Arc<dyn Connector>;
}

/// After this long without a word from an idle server the system asks whether it is still there.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);

/// Connects by TCP.
#[derive(Clone, Debug)]
pub struct TcpConnector {
    addr: String,
}

impl TcpConnector {
    /// Connects to `addr`, a `HOST:PORT` that is resolved anew each time.
    pub fn new(addr: impl Into<String>) -> TcpConnector {
        TcpConnector { addr: addr.into() }
    }
}

impl Connector for TcpConnector {
    fn connect(&self, _channel: u32) -> BoxFuture<io::Result<BoxTransport>> {
        let addr = self.addr.clone();
        Box::pin(async move {
            let stream = TcpStream::connect(addr).await?;
            stream.set_nodelay(true)?;
            rustix::net::sockopt::set_socket_keepalive(&stream, true)?;
            rustix::net::sockopt::set_tcp_keepidle(&stream, KEEPALIVE_IDLE)?;
            let transport: ClientTransport<_, LarderRequest, LarderResponse> = ClientTransport::new(stream);
            Ok(Box::pin(transport) as BoxTransport)
        })
    }

    fn server(&self) -> String {
        self.addr.clone()
    }

    fn to(&self, address: &str) -> Arc<dyn Connector> {
        Arc::new(TcpConnector::new(address))
    }
}
