//! A TCP proxy between a mount and its server that does what networks do.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::lock;

/// Bytes passed on at a time.
const PIECE: usize = 64 << 10;
/// Bytes on their way in one direction of a connection: what a network holds, so that who sends more has to wait.
const ON_THE_WAY: usize = 1 << 20;

/// A direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From clients to the server.
    Up,
    /// From the server to clients.
    Down,
}

/// What the network is like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Nothing arrives in this direction until that is over, and then all does: packets are lost, and sent again.
    pub is_cut: [bool; 2],
    /// What comes from the server is lost for good.
    pub is_mute: bool,
    /// How long everything takes, each way.
    pub delay: Duration,
    /// Bytes per second of all connections together, each way. 0: no limit.
    pub rate: u64,
}

/// How connections end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Both ends get a reset.
    Reset,
    /// After this many more bytes in this direction, wherever in a message that is.
    After(Way, u64),
    /// One direction is closed, and the other goes on.
    Half(Way),
}

struct State {
    server: SocketAddr,
    link: Mutex<Link>,
    changed: Condvar,
    /// Connections so far.
    connections: AtomicU64,
    open: Mutex<Vec<Arc<Connection>>>,
    /// When the link has passed on what it was given, each way.
    passed: [Mutex<Option<Instant>>; 2],
}

impl State {
    /// Takes its turn on a link of this many bytes per second, and waits until `len` bytes have passed.
    fn pass(&self, way: Way, len: usize, rate: u64) {
        let until = {
            let mut passed = lock(&self.passed[way as usize]);
            let now = Instant::now();
            let until =
                passed.map_or(now, |passed| passed.max(now)) + Duration::from_secs_f64(len as f64 / rate as f64);
            *passed = Some(until);
            until
        };
        thread::sleep(until.saturating_duration_since(Instant::now()));
    }
}

struct Connection {
    client: TcpStream,
    server: TcpStream,
    /// Bytes that still may pass in each direction.
    left: Mutex<[Option<u64>; 2]>,
    /// What the server says is lost since the link was mute at a time.
    is_mute: Mutex<bool>,
}

/// A proxy on a free port of the loopback, until it is dropped. Connections live as long as both ends want them to.
pub struct Proxy {
    state: Arc<State>,
    address: SocketAddr,
    accepting: Option<JoinHandle<()>>,
    ended: Arc<Mutex<bool>>,
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
            link: Mutex::default(),
            changed: Condvar::new(),
            connections: AtomicU64::new(0),
            open: Mutex::default(),
            passed: Default::default(),
        });
        let ended = Arc::new(Mutex::new(false));
        let (shared, over) = (Arc::clone(&state), Arc::clone(&ended));
        let accepting = thread::spawn(move || accept(&listener, &shared, &over));
        Ok(Proxy { state, address, accepting: Some(accepting), ended })
    }

    /// `HOST:PORT` for clients.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Connections that were opened so far.
    pub fn connections(&self) -> u64 {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// What the network is like from now on.
    pub fn set(&self, link: Link) {
        *lock(&self.state.link) = link;
        self.state.passed.iter().for_each(|passed| *lock(passed) = None);
        if link.is_mute {
            lock(&self.state.open).iter().for_each(|connection| *lock(&connection.is_mute) = true);
        }
        self.state.changed.notify_all();
    }

    /// From now on nothing that the server says on the connections there are reaches its client; what clients say
    /// still reaches the server.
    pub fn lose_replies(&self) {
        lock(&self.state.open).iter().for_each(|connection| *lock(&connection.is_mute) = true);
    }

    /// Ends all connections.
    pub fn end(&self, how: End) {
        let mut open = lock(&self.state.open);
        open.iter().for_each(|connection| connection.end(how));
        if matches!(how, End::Reset) {
            open.clear();
        }
        drop(open);
        self.state.changed.notify_all();
    }
}

impl Connection {
    fn end(&self, how: End) {
        // What cannot be closed is closed already.
        match how {
            End::Reset => {
                for end in [&self.client, &self.server] {
                    // The peer gets a RST at once, whatever is on its way.
                    let _ = rustix::net::connect_unspec(end);
                }
            }
            End::After(way, bytes) => lock(&self.left)[way as usize] = Some(bytes),
            End::Half(Way::Up) => {
                let _ = self.server.shutdown(Shutdown::Write);
            }
            End::Half(Way::Down) => {
                let _ = self.client.shutdown(Shutdown::Write);
            }
        }
    }

    /// How many of these bytes may pass, and whether that is the end.
    fn allowance(&self, way: Way, len: usize) -> (usize, bool) {
        match &mut lock(&self.left)[way as usize] {
            None => (len, false),
            Some(left) => {
                let may = len.min(usize::try_from(*left).unwrap_or(len));
                *left -= may as u64;
                (may, *left == 0)
            }
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        *lock(&self.ended) = true;
        self.set(Link::default());
        self.end(End::Reset);
        // Wakes the thread that accepts.
        drop(TcpStream::connect(self.address));
        if let Some(accepting) = self.accepting.take() {
            // It cannot have panicked, and if it has, this is no place for another panic.
            let _ = accepting.join();
        }
    }
}

fn accept(listener: &TcpListener, state: &Arc<State>, ended: &Mutex<bool>) {
    while let Ok((client, _)) = listener.accept() {
        if *lock(ended) {
            return;
        }
        // A server that is down refuses, and so does the proxy by closing.
        let Ok(server) = TcpStream::connect(state.server) else { continue };
        state.connections.fetch_add(1, Ordering::SeqCst);
        if let Err(error) = join(client, server, state) {
            eprintln!("the proxy loses a connection: {error}");
        }
    }
}

fn join(client: TcpStream, server: TcpStream, state: &Arc<State>) -> io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let mut open = lock(&state.open);
    // While nobody can make the connections there are mute.
    let is_mute = Mutex::new(lock(&state.link).is_mute);
    let connection = Arc::new(Connection { client, server, left: Mutex::default(), is_mute });
    for way in [Way::Up, Way::Down] {
        let (from, to) = match way {
            Way::Up => (connection.client.try_clone()?, connection.server.try_clone()?),
            Way::Down => (connection.server.try_clone()?, connection.client.try_clone()?),
        };
        let pipe = Arc::new(Pipe::default());
        let (state, connection) = (Arc::clone(state), Arc::clone(&connection));
        let filling = Arc::clone(&pipe);
        thread::spawn(move || filling.fill(from));
        thread::spawn(move || pass_on(&pipe, to, way, &connection, &state));
    }
    // Those that nothing passes through any more.
    open.retain(|connection| Arc::strong_count(connection) > 1);
    open.push(connection);
    Ok(())
}

/// What is on its way in one direction, with the time at which it was sent.
#[derive(Default)]
struct Pipe {
    pieces: Mutex<Pieces>,
    changed: Condvar,
}

#[derive(Default)]
struct Pieces {
    queue: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
    /// Nothing more is put in, or nothing more is taken out.
    is_closed: bool,
}

impl Pipe {
    fn fill(&self, mut from: TcpStream) {
        let mut buffer = vec![0; PIECE];
        while let Ok(len @ 1..) = from.read(&mut buffer) {
            let full = |pieces: &mut Pieces| pieces.bytes > ON_THE_WAY && !pieces.is_closed;
            let waiting = self.changed.wait_while(lock(&self.pieces), full);
            let mut pieces = waiting.unwrap_or_else(PoisonError::into_inner);
            if pieces.is_closed {
                return;
            }
            pieces.bytes += len;
            pieces.queue.push_back((Instant::now(), buffer[..len].to_vec()));
            self.changed.notify_all();
        }
        self.close();
    }

    fn next(&self) -> Option<(Instant, Vec<u8>)> {
        let nothing = |pieces: &mut Pieces| pieces.queue.is_empty() && !pieces.is_closed;
        let waiting = self.changed.wait_while(lock(&self.pieces), nothing);
        let mut pieces = waiting.unwrap_or_else(PoisonError::into_inner);
        let next = pieces.queue.pop_front()?;
        pieces.bytes -= next.1.len();
        self.changed.notify_all();
        Some(next)
    }

    fn close(&self) {
        lock(&self.pieces).is_closed = true;
        self.changed.notify_all();
    }
}

/// Passes on what comes and may, until one end closes; then the other end is told.
fn pass_on(pipe: &Pipe, mut to: TcpStream, way: Way, connection: &Connection, state: &State) {
    let mut was_cut_off = false;
    while let Some((sent, piece)) = pipe.next() {
        let link = {
            let cut = |link: &mut Link| link.is_cut[way as usize];
            let waiting = state.changed.wait_while(lock(&state.link), cut);
            *waiting.unwrap_or_else(PoisonError::into_inner)
        };
        thread::sleep((sent + link.delay).saturating_duration_since(Instant::now()));
        if link.rate > 0 {
            state.pass(way, piece.len(), link.rate);
        }
        if way == Way::Down && *lock(&connection.is_mute) {
            continue;
        }
        let (may, is_end) = connection.allowance(way, piece.len());
        if to.write_all(&piece[..may]).is_err() || is_end {
            was_cut_off = true;
            break;
        }
    }
    pipe.close();
    // Whatever cannot be closed is closed already.
    if was_cut_off {
        let _ = connection.client.shutdown(Shutdown::Both);
        let _ = connection.server.shutdown(Shutdown::Both);
    } else {
        let _ = to.shutdown(Shutdown::Write);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

    use super::*;

    struct Pair {
        proxy: Proxy,
        client: TcpStream,
        server: TcpStream,
    }

    fn pair() -> Pair {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Proxy::start(&listener.local_addr().unwrap().to_string()).unwrap();
        let (client, server) = connection(&proxy, &listener);
        Pair { proxy, client, server }
    }

    fn connection(proxy: &Proxy, listener: &TcpListener) -> (TcpStream, TcpStream) {
        let mut client = TcpStream::connect(proxy.address()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        for end in [&client, &server] {
            end.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        }
        // Until both directions are there.
        let mut byte = [0];
        client.write_all(b"a").unwrap();
        server.read_exact(&mut byte).unwrap();
        server.write_all(&byte).unwrap();
        client.read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"a");
        (client, server)
    }

    #[test]
    fn connections_share_a_slow_link() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Proxy::start(&listener.local_addr().unwrap().to_string()).unwrap();
        let mut connections = [(); 3].map(|()| connection(&proxy, &listener));
        proxy.set(Link { rate: 300_000, ..Link::default() });
        let begin = Instant::now();
        for (client, server) in &mut connections {
            client.write_all(&[7; 30_000]).unwrap();
            server.write_all(&[7; 30_000]).unwrap();
        }
        let mut got = vec![0; 30_000];
        for (client, server) in &mut connections {
            client.read_exact(&mut got).unwrap();
            server.read_exact(&mut got).unwrap();
        }
        // Both directions beside each other.
        assert!(begin.elapsed() >= Duration::from_millis(300), "{:?}", begin.elapsed());
    }

    #[test]
    fn it_passes_on_and_loses_replies() {
        let Pair { proxy, mut client, mut server } = pair();
        proxy.lose_replies();
        let mut byte = [0];
        client.write_all(b"c").unwrap();
        server.read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"c");
        server.write_all(b"d").unwrap();
        drop(server);
        assert_eq!(client.read(&mut byte).unwrap(), 0, "the end without the reply");
    }

    #[test]
    fn what_is_held_up_arrives_later() {
        let Pair { proxy, mut client, mut server } = pair();
        proxy.set(Link { is_cut: [true, false], ..Link::default() });
        client.write_all(b"up").unwrap();
        server.write_all(b"down").unwrap();
        let mut down = [0; 4];
        client.read_exact(&mut down).unwrap();
        server.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let mut up = [0; 2];
        assert!(server.read_exact(&mut up).is_err(), "this direction is cut");
        server.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let (delay, begin) = (Duration::from_millis(80), Instant::now());
        proxy.set(Link { delay, ..Link::default() });
        server.read_exact(&mut up).unwrap();
        assert_eq!(up, *b"up");
        server.write_all(b"late").unwrap();
        client.read_exact(&mut down).unwrap();
        assert!(begin.elapsed() >= delay);
    }

    #[test]
    fn connections_end_in_each_way() {
        let Pair { proxy, mut client, mut server } = pair();
        proxy.end(End::After(Way::Up, 3));
        client.write_all(b"12345").unwrap();
        let mut got = Vec::new();
        server.read_to_end(&mut got).unwrap();
        assert_eq!(got, b"123");

        let Pair { proxy, mut client, mut server } = pair();
        proxy.end(End::Half(Way::Up));
        got.clear();
        server.read_to_end(&mut got).unwrap();
        assert!(got.is_empty(), "one direction is closed");
        server.write_all(b"still").unwrap();
        let mut still = [0; 5];
        client.read_exact(&mut still).unwrap();

        let Pair { proxy, mut client, server } = pair();
        proxy.end(End::Reset);
        assert_eq!(client.read(&mut still).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        drop(server);
    }
}
