//! A TCP proxy between a mount and its server that does what networks do.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};

/// Bytes passed on at a time.
const PIECE: usize = 64 << 10;

struct State {
    server: SocketAddr,
    /// Connections so far.
    connections: AtomicU64,
    /// Of connections with lower numbers, what the server says is lost.
    mute_below: AtomicU64,
    ended: AtomicBool,
}

/// A proxy on a free port of the loopback, until it is dropped. Connections live as long as both ends want them to.
pub struct Proxy {
    state: Arc<State>,
    address: SocketAddr,
    accepting: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Starts one before the server at `address`, which need not be there yet.
    ///
    /// # Errors
    /// If no port can be opened, or the address is none.
    pub fn start(address: &str) -> Result<Proxy> {
        let server = address.parse().with_context(|| format!("{address} is no address"))?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let state = Arc::new(State {
            server,
            connections: AtomicU64::new(0),
            mute_below: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        });
        let shared = Arc::clone(&state);
        let accepting = thread::spawn(move || accept(&listener, &shared));
        Ok(Proxy { state, address, accepting: Some(accepting) })
    }

    /// `HOST:PORT` for clients.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// From now on nothing that the server says on the connections there are reaches its client; what clients say
    /// still reaches the server.
    pub fn lose_replies(&self) {
        self.state.mute_below.store(self.state.connections.load(Ordering::SeqCst), Ordering::SeqCst);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        drop(TcpStream::connect(self.address));
        if let Some(accepting) = self.accepting.take() {
            // It cannot have panicked, and if it has, this is no place for another panic.
            let _ = accepting.join();
        }
    }
}

fn accept(listener: &TcpListener, state: &Arc<State>) {
    while let Ok((client, _)) = listener.accept() {
        if state.ended.load(Ordering::SeqCst) {
            return;
        }
        // A server that is down refuses, and so does the proxy by closing.
        let Ok(server) = TcpStream::connect(state.server) else { continue };
        let number = state.connections.fetch_add(1, Ordering::SeqCst);
        if let Err(error) = join(client, server, number, state) {
            eprintln!("the proxy loses a connection: {error}");
        }
    }
}

fn join(client: TcpStream, server: TcpStream, number: u64, state: &Arc<State>) -> io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_server) = (client.try_clone()?, server.try_clone()?);
    thread::spawn(move || pass_on(from_client, to_server, || true));
    let state = Arc::clone(state);
    thread::spawn(move || pass_on(server, client, || number >= state.mute_below.load(Ordering::SeqCst)));
    Ok(())
}

/// Passes on what comes and may, until one end closes; then both are closed.
fn pass_on(mut from: TcpStream, mut to: TcpStream, may_pass: impl Fn() -> bool) {
    let mut buffer = vec![0; PIECE];
    while let Ok(len @ 1..) = from.read(&mut buffer) {
        if may_pass() && to.write_all(&buffer[..len]).is_err() {
            break;
        }
    }
    // Whatever cannot be closed is closed already.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_passes_on_and_loses_replies() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Proxy::start(&listener.local_addr().unwrap().to_string()).unwrap();
        let mut client = TcpStream::connect(proxy.address()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let mut byte = [0];
        client.write_all(b"a").unwrap();
        server.read_exact(&mut byte).unwrap();
        server.write_all(b"b").unwrap();
        client.read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"b");

        proxy.lose_replies();
        client.write_all(b"c").unwrap();
        server.read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"c");
        server.write_all(b"d").unwrap();
        drop(server);
        assert_eq!(client.read(&mut byte).unwrap(), 0, "the end without the reply");
    }
}
