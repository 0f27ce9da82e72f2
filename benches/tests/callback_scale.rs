//! A thousand clients that each hold callbacks on a thousand files: what these cost the server in memory, how fast a
//! change of a file that all of them hold is answered, and what their renewals cost. Without mounts, over the protocol.
//!
//! `LARDER_TEST_SIZE=full` does all of it and holds it to its targets; with smaller sizes figures are printed alone.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures::stream::{self, StreamExt, TryStreamExt};
use larder_benches::bench::meter::{Usage, of_process};
use larder_benches::process::{raise_open_files, scratch};
use larder_benches::raw::Raw;
use larder_benches::server::Server;
use larder_benches::size::Size;
use larder_client::core::promises::Promises;
use larder_protocol::attr::{Credential, SetAttr};
use larder_protocol::handshake::{Hello, LeaseTerms, MAX_VERSION, MIN_VERSION};
use larder_protocol::ids::{ClientId, Epoch, Fid};
use larder_protocol::limits::MAX_READDIR;
use larder_protocol::service::LarderClient;
use larder_protocol::service::callback::{Break, Breaks, LeaseId, ObjectId, Renew, Renewed};
use larder_protocol::service::file::{Op, Query, QueryReply};
use larder_protocol::stats::PromiseStats;
use larder_protocol::transport::ClientTransport;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// Bytes of the server's memory that a callback may cost.
const BYTES_PER_PAIR: usize = 200;
/// What a change may take that all clients have to acknowledge (full size).
const CHANGE: Duration = Duration::from_millis(250);
/// Percent of a core that the renewals of all clients may cost the server (full size).
const RENEWALS: f64 = 2.0;
/// Clients that are set up at a time.
const AT_ONCE: usize = 8;
/// Files that are changed, one after the other.
const ROUNDS: usize = 5;

/// A client that holds callbacks and answers breaks at once.
struct Holder {
    rpc: LarderClient,
    epoch: Epoch,
    lease: LeaseId,
    acked: AtomicU64,
    /// How often each object was broken.
    broken: Mutex<BTreeMap<ObjectId, usize>>,
}

fn context() -> tarpc::context::Context {
    let mut context = tarpc::context::current();
    context.deadline = Instant::now() + Duration::from_secs(590);
    context
}

impl Holder {
    /// Connects and gets a lease; with the term of that.
    async fn connect(address: &str) -> Result<(Arc<Holder>, LeaseTerms)> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("connecting to {address}"))?;
        stream.set_nodelay(true)?;
        let rpc = LarderClient::new(tarpc::client::Config::default(), ClientTransport::new(stream)).spawn();
        let hello = Hello {
            min_version: MIN_VERSION,
            max_version: MAX_VERSION,
            client: ClientId(rand::random()),
            incarnation: 1,
            channel: 0,
            generation: 1,
            prompt: false,
            software: "larder-benches".to_owned(),
        };
        let welcome = rpc.hello(context(), hello).await?.context("the server refused the hello")?;
        let request = Renew { epoch: welcome.epoch, lease: None, acked: 0 };
        let Ok(Renewed::Granted { lease }) = rpc.renew(context(), request).await? else { bail!("no lease") };
        let (acked, broken) = (AtomicU64::new(0), BTreeMap::new().into());
        Ok((Arc::new(Holder { rpc, epoch: welcome.epoch, lease, acked, broken }), welcome.lease))
    }

    /// Lists a directory with attributes; how many objects it has callbacks on by that.
    async fn list(&self, dir: Fid, promised: bool) -> Result<usize> {
        let (mut cookie, mut held) = (0, 0);
        loop {
            let query = Query::Readdir { dir, cookie, max_bytes: MAX_READDIR, plus: true };
            let (reply, grants) = if promised {
                let answer = self.rpc.promised(context(), Credential::root(), query).await?;
                let answer = answer.map_err(|code| anyhow::anyhow!("listing: {code}"))?;
                (answer.reply, Some(answer.grants))
            } else {
                let answer = self.rpc.query(context(), Credential::root(), query).await?;
                (answer.map_err(|code| anyhow::anyhow!("listing: {code}"))?, None)
            };
            let QueryReply::Listing { entries, end, .. } = reply else { bail!("no listing") };
            if let Some(grants) = grants {
                held += entries.iter().filter(|entry| grants.include(self.lease, entry.fid.into())).count();
                held += usize::from(end && grants.include(self.lease, dir.into()));
            }
            if end {
                return Ok(held);
            }
            cookie = entries.last().context("an empty piece of a listing")?.cookie;
        }
    }

    fn apply(&self, breaks: &[Break]) {
        let mut broken = self.broken.lock().expect("nobody panics under it");
        for one in breaks {
            if one.serial > self.acked.load(Ordering::Relaxed) {
                *broken.entry(one.object).or_default() += 1;
                self.acked.store(one.serial, Ordering::Relaxed);
            }
        }
    }

    /// Takes breaks and acknowledges them, for ever.
    async fn answer_breaks(self: Arc<Self>) -> Result<()> {
        loop {
            let acked = self.acked.load(Ordering::Relaxed);
            match self.rpc.breaks(context(), self.lease, acked).await? {
                Ok(Breaks::Outstanding(breaks)) => self.apply(&breaks),
                other => bail!("breaks: {other:?}"),
            }
        }
    }

    /// Renews the lease as often as mounts do, for ever.
    async fn keep_lease(self: Arc<Self>, terms: LeaseTerms) -> Result<()> {
        let period = Promises::new(0, terms).renew_every();
        tokio::time::sleep(period.mul_f64(rand::random())).await;
        let mut ticks = tokio::time::interval(period);
        loop {
            ticks.tick().await;
            loop {
                let acked = self.acked.load(Ordering::Relaxed);
                let request = Renew { epoch: self.epoch, lease: Some(self.lease), acked };
                match self.rpc.renew(context(), request).await? {
                    Ok(Renewed::Granted { .. }) => break,
                    Ok(Renewed::BreaksFirst(breaks)) => self.apply(&breaks),
                    other => bail!("renewal: {other:?}"),
                }
            }
        }
    }
}

/// What the server uses.
fn used(pid: u32) -> Result<Usage> {
    of_process(pid).with_context(|| format!("process {pid} is gone"))
}

/// KiB of memory that a process has.
fn resident(pid: u32) -> Result<usize> {
    Ok((used(pid)?.memory / 1024) as usize)
}

/// How much of a core a process uses for a while, in percent.
async fn cpu_share(pid: u32, during: Duration) -> Result<f64> {
    let (start, before) = (Instant::now(), used(pid)?);
    tokio::time::sleep(during).await;
    Ok((used(pid)?.cpu - before.cpu) / start.elapsed().as_secs_f64() * 100.0)
}

async fn stats(rpc: &LarderClient) -> Result<PromiseStats> {
    Ok(rpc.stats(context()).await?.promises)
}

#[test]
fn callbacks_of_a_thousand_clients_are_cheap_and_fast_to_break() {
    let size = Size::get();
    let (clients, files) = (size.pick(100, 200, 1000), size.pick(100, 500, 1000));
    let idle = Duration::from_secs(size.pick(3, 6, 20) as u64);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    // Each client takes one here and one at the server, which inherits the limit.
    raise_open_files(clients as u64 + 200).unwrap();
    let dir = scratch().unwrap();
    let mut server = Server::start(dir.path(), "process").unwrap();
    runtime.block_on(scale(&server, clients, files, idle, size == Size::Full)).unwrap();
    runtime.shutdown_background();
    server.check().unwrap();
}

async fn scale(server: &Server, clients: usize, files: usize, idle: Duration, full: bool) -> Result<()> {
    let pid = server.id().context("the server runs")?;
    let mut other = Raw::connect(server.address()).await?;
    let dir = other.mkdir(other.root, b"dir").await?.fid;
    let mut fids = Vec::new();
    for file in 0..files {
        fids.push(other.create(dir, format!("file-{file:04}").as_bytes()).await?.fid);
    }
    let empty = resident(pid)?;
    let alone = cpu_share(pid, idle).await?;

    // What connections and long answers cost is no part of what callbacks do.
    let mut tasks: Vec<JoinHandle<Result<()>>> = Vec::new();
    let mut holders = Vec::new();
    let mut connecting = stream::iter(0..clients)
        .map(|_| async {
            let (holder, terms) = Holder::connect(server.address()).await?;
            holder.list(dir, false).await?;
            anyhow::Ok((holder, terms))
        })
        .buffer_unordered(AT_ONCE);
    while let Some((holder, terms)) = connecting.try_next().await? {
        tasks.push(tokio::spawn(holder.clone().answer_breaks()));
        tasks.push(tokio::spawn(holder.clone().keep_lease(terms)));
        holders.push(holder);
    }
    let first = &holders[0].rpc;
    let before = resident(pid)?;
    let start = Instant::now();
    let listing = stream::iter(holders.iter().map(Ok)).try_for_each_concurrent(AT_ONCE, |holder| async move {
        let held = holder.list(dir, true).await?;
        ensure!(held == files + 1, "{held} callbacks on {files} files and their directory");
        Ok(())
    });
    listing.await?;
    let took = start.elapsed();
    let after = resident(pid)?;
    let pairs = clients * (files + 1);
    let counted = stats(first).await?;
    ensure!((counted.callbacks, counted.leases) == (pairs as u64, clients as u64), "{counted:?}");
    let (by_count, by_growth) = (counted.callback_bytes as usize / pairs, (after.saturating_sub(before) << 10) / pairs);
    println!("{pairs} callbacks of {clients} clients on {files} files, granted in {took:?}");
    println!("memory of the server: {empty} KiB, with the connections {before} KiB, with the callbacks {after} KiB");
    println!("bytes per callback: {by_count} as counted, {by_growth} by growth");
    ensure!(by_count <= BYTES_PER_PAIR, "{by_count} bytes per callback");
    ensure!(!full || by_growth <= BYTES_PER_PAIR, "{by_growth} bytes per callback");

    let mut times = Vec::new();
    for file in &fids[..ROUNDS] {
        let set = SetAttr { mode: Some(0o600), ..SetAttr::default() };
        let start = Instant::now();
        let changed = other.mutate(Op::Setattr { fid: *file, set, open: false }).await?;
        times.push(start.elapsed());
        ensure!(changed.is_ok(), "{changed:?}");
        // All of them knew before it was answered.
        for holder in &holders {
            let count = holder.broken.lock().expect("nobody panics under it").get(&(*file).into()).copied();
            ensure!(count == Some(1), "{file} was broken {count:?} times");
        }
    }
    println!("a change of a file that {clients} clients hold is answered after {times:?}");
    for holder in &holders {
        let broken = holder.broken.lock().expect("nobody panics under it");
        ensure!(broken.len() == ROUNDS && broken.values().all(|count| *count == 1), "{broken:?}");
    }
    let counted = stats(first).await?;
    let left = (pairs - ROUNDS * clients) as u64;
    ensure!((counted.callbacks, counted.broken, counted.lapsed) == (left, (ROUNDS * clients) as u64, 0), "{counted:?}");
    let median = median(&mut times);
    ensure!(!full || median < CHANGE, "a change takes {median:?}");

    let share = cpu_share(pid, idle).await? - alone;
    println!("renewals of {clients} clients cost the server {share:.2} % of a core, beside {alone:.2} % without any");
    let counted = stats(first).await?;
    ensure!((counted.callbacks, counted.leases, counted.lapsed) == (left, clients as u64, 0), "{counted:?}");
    ensure!(!full || share < RENEWALS, "renewals cost {share:.2} % of a core");
    for task in &tasks {
        ensure!(!task.is_finished(), "a client has ended");
    }
    tasks.iter().for_each(JoinHandle::abort);
    Ok(())
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
