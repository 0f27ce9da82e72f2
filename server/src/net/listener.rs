//! Where connections come from.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use larder_protocol::transport::ServerTransport;
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream};
use tracing::{debug, warn};

use super::sessions::Peer;
use crate::service::{Server, serve_connection};

/// Connections of all clients together.
const MAX_CONNECTIONS: usize = 8192;
/// How long a silent peer is believed to be there before it is asked, and between questions.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Questions that a peer may leave unanswered.
const KEEPALIVE_PROBES: u32 = 4;
/// How long sent data may stay unacknowledged, or a peer refuse to take any.
const SEND_TIMEOUT: Duration = Duration::from_secs(120);
/// Rest after the system refused a connection, as it does when out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Opens the addresses to listen on.
///
/// # Errors
/// An address that other hosts can reach, without `insecure`; one that cannot be bound.
pub async fn bind(addresses: &[SocketAddr], insecure: bool) -> anyhow::Result<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    for address in addresses {
        if !insecure && !address.ip().to_canonical().is_loopback() {
            bail!(
                "refusing to listen on {address}: connections are neither encrypted nor authenticated yet, so \
                 whoever reaches that address could act as any user. Listen on a loopback address such as \
                 127.0.0.1, or give --insecure if the network is trusted"
            );
        }
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address}; is another server running there?"))?;
        listeners.push(listener);
    }
    Ok(listeners)
}

/// Takes connections until the server ends.
pub async fn accept(server: Arc<Server>, listener: TcpListener) {
    for place in 0.. {
        let accepted = tokio::select! {
            biased;
            () = server.ending() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, address)) if server.connections() < MAX_CONNECTIONS => {
                let peer = Peer::Tcp(address);
                match prepare(&stream).and_then(|()| stream.into_std()) {
                    Ok(stream) => serve(&server, place, stream, peer),
                    Err(error) => debug!(%peer, "connection lost before it began: {error}"),
                }
            }
            Ok((_, address)) => warn!(peer = %address, "connection refused: {MAX_CONNECTIONS} are open"),
            Err(error) => {
                warn!("cannot accept connections: {error}; trying again");
                server.runtime().sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves a connection at a place of its own.
fn serve(server: &Arc<Server>, place: usize, stream: std::net::TcpStream, peer: Peer) {
    let serving = {
        let server = server.clone();
        async move {
            // Here, so that it is this place that its bytes wake up.
            match TcpStream::from_std(stream) {
                Ok(stream) => serve_connection(server, ServerTransport::new(stream), peer).await,
                Err(error) => warn!(%peer, "connection lost before it began: {error}"),
            }
        }
    };
    server.runtime().spawn_at(place, Box::pin(server.tracked(serving)));
}

fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    // Requests and answers are small and waited for: Nagle's delay would be most of their time.
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVE_PROBES)?;
    sockopt::set_tcp_user_timeout(stream, SEND_TIMEOUT.as_millis() as u32)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn addresses_that_others_can_reach_need_consent() {
        let any: SocketAddr = "0.0.0.0:0".parse().unwrap();
        let error = bind(&[any], false).await.unwrap_err().to_string();
        assert!(error.contains("0.0.0.0:0") && error.contains("--insecure"), "{error}");
        assert_eq!(bind(&[any], true).await.unwrap().len(), 1);
        let mapped: SocketAddr = "[::ffff:10.0.0.1]:0".parse().unwrap();
        assert!(bind(&[mapped], false).await.unwrap_err().to_string().contains("--insecure"));
    }

    #[tokio::test]
    async fn a_taken_address_is_named() {
        let first = bind(&["127.0.0.1:0".parse().unwrap()], false).await.unwrap();
        let address = first[0].local_addr().unwrap();
        let error = format!("{:#}", bind(&[address], false).await.unwrap_err());
        assert!(error.contains(&address.to_string()), "{error}");
    }
}
