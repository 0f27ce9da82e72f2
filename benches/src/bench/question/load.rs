//! What clients cost the server, by how many there are.
//!
//! Clients without mounts: the client's own code, with a program in the place of the kernel that does what
//! [`behaviour`] says. So there can be thousands of them on one machine.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use larder_client::rpc::TcpConnector;
use larder_client::vfs::{self, CacheOptions, Entry, LookupResult, MountOptions, Opened, ROOT, Vfs};
use larder_protocol::attr::Credential;
use larder_protocol::runtime::{BusyPoll, Runtime, SystemRuntime};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::task::JoinSet;

use super::{Asking, each};
use crate::bench::behaviour::{self, Deed, FILES, SIZE, Writes};
use crate::bench::candidate::{Candidate, Larder, Setting};
use crate::bench::meter::Usage;
use crate::bench::processors::Apart;
use crate::bench::results::{Axis, Load, Plot};
use crate::lock;
use crate::mount::Mode;
use crate::process::raise_open_files;

/// Numbers of clients.
const CLIENTS: [usize; 8] = [1, 10, 50, 100, 200, 500, 1000, 2000];
/// Clients in loads of which the model learns what requests cost: enough for clock ticks to tell.
const LEARNING: usize = 150;
/// The term of leases, in seconds, as servers have it.
pub(super) const TERM: f64 = 10.0;
/// Files that a client has open: its connections (4), those of its disk cache (3), and a copy or two.
const FILES_OF_ONE: u64 = 9;
/// Files that are open beside those of clients.
const OTHER_FILES: u64 = 200;
/// Clients that are set up at a time.
const AT_ONCE: usize = 16;
/// Threads on which clients run.
const THREADS: usize = 2;
/// Bytes of a client's disk cache: room for all that there is.
const CACHE: u64 = 1 << 30;

pub(super) fn ask(asking: &mut Asking<'_>) -> Result<()> {
    let counts = asking.scale.pick(&CLIENTS[1..2], &CLIENTS[..6], &CLIENTS[..]);
    raise_open_files(counts.iter().max().map_or(0, |most| *most as u64 * FILES_OF_ONE + OTHER_FILES))?;
    let [warm, length] = asking.scale.pick([1, 1], [20, 15], [40, 30]).map(Duration::from_secs);
    let note = format!(
        "{} The server has a processor to itself where there are several, and does not look out for requests (--busy-poll 0).",
        behaviour::told()
    );
    let x = || Axis::log("clients", "");
    let mut requests = Plot::new("load", "Requests of one client", &note, x(), Axis::linear("requests", "/s"));
    let mut cpu = Plot::new("load", "Server's processor for one client", &note, x(), Axis::log("busy", "ms/s"));
    let mut latency = Plot::new("load", "Opening and reading a file", &note, x(), Axis::log("99th percentile", "ms"));
    let mut settings: Vec<Setup> = Vec::new();
    for count in counts {
        settings.extend(asking.modes.iter().map(|mode| Setup::usual(*count, *mode)));
    }
    // Otherwise each kind of request would come as often beside each other kind in all loads, and what one of them costs
    // could not be told.
    let learning = asking.scale.pick(10, LEARNING, LEARNING);
    for mode in asking.modes {
        let usual = Setup::usual(learning, *mode);
        settings.push(Setup { writes: Writes::SHARED, ..usual });
        settings.push(Setup { writes: Writes::OWN, ..usual });
        if *mode == Mode::Afs {
            settings.push(Setup { term: 1.0, ..usual });
        }
    }
    let dir = asking.dir;
    let mut loads = Vec::new();
    let mut number = 0;
    each(
        &settings,
        |setup: Setup| format!("{} clients, {}", setup.clients, setup.mode.name()),
        |setup| {
            number += 1;
            let (count, mode) = (setup.clients, setup.mode);
            // Looking out takes processor time that depends on how requests happen to follow each other.
            let mut setting = Setting::named(format!("load-{}-{number}", mode.name()), mode).without_busy_poll();
            setting.server.extend(["--lease-term".to_owned(), setup.term.to_string()]);
            let mut larder = Larder::start(dir, setting)?;
            let (load, opens) = measure(&larder, dir, setup, warm, length)?;
            larder.end()?;
            if !setup.is_usual() {
                loads.push(load);
                return Ok(());
            }
            let of_one = |value: f64| value / load.seconds / count as f64;
            requests.note(mode.name(), count as f64, of_one(load.cost.requests.values().sum::<u64>() as f64));
            cpu.note(mode.name(), count as f64, of_one(load.cost.server_cpu * 1e3));
            if let Some(late) = crate::bench::statistics::quantile(&opens, 0.99) {
                latency.note(mode.name(), count as f64, late * 1e3);
            }
            loads.push(load);
            Ok(())
        },
    )?;
    asking.results.loads.extend(loads);
    [requests, cpu, latency].into_iter().for_each(|plot| asking.results.add_plot(plot));
    Ok(())
}

/// A load.
#[derive(Clone, Copy)]
pub(super) struct Setup {
    clients: usize,
    mode: Mode,
    writes: Writes,
    /// The term of leases, in seconds.
    term: f64,
}

impl Setup {
    /// Clients that do what clients do.
    pub(super) fn usual(clients: usize, mode: Mode) -> Setup {
        Setup { clients, mode, writes: Writes::USUAL, term: TERM }
    }

    fn is_usual(self) -> bool {
        self.writes == Writes::USUAL && self.term == TERM
    }
}

/// What all clients of a run share.
struct Shared {
    /// What is done now counts.
    counts: AtomicBool,
    is_over: AtomicBool,
    deeds: AtomicU64,
    /// How long it took to open and read a file, in seconds.
    opens: Mutex<Vec<f64>>,
}

/// What a load costs, and how many seconds it took each time to open and read a file, sorted.
pub(super) fn measure(
    larder: &Larder,
    dir: &std::path::Path,
    setup: Setup,
    warm: Duration,
    length: Duration,
) -> Result<(Load, Vec<f64>)> {
    let Setup { clients: count, mode, writes, term } = setup;
    let caches = tempfile::Builder::new().prefix("caches-").tempdir_in(dir)?;
    let _apart = Apart::new(larder.server().id().context("the server does not run")?)?;
    let (runtime, executors) = SystemRuntime::start("headless", THREADS, BusyPoll::none())?;
    let runtime: Arc<dyn Runtime> = Arc::new(runtime);
    let main = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build()?;
    let measured = main.block_on(async {
        let shared = Arc::new(Shared {
            counts: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            deeds: AtomicU64::new(0),
            opens: Mutex::default(),
        });
        let direct = attach(&runtime, larder, Mode::Direct, None).await?;
        populate(&direct, count).await?;
        let mut clients: Vec<Option<Client>> = Vec::new();
        clients.resize_with(count, || None);
        let numbers: Vec<usize> = (0..count).collect();
        for some in numbers.chunks(AT_ONCE) {
            let coming = some.iter().map(|number| {
                let cache = caches.path().join(number.to_string());
                Client::start(&runtime, larder, setup, *number, cache)
            });
            for (number, client) in some.iter().zip(futures::future::join_all(coming).await) {
                clients[*number] = Some(client.with_context(|| format!("client {number}"))?);
            }
        }
        let mut work = JoinSet::new();
        let mut mounts = Vec::new();
        for client in clients.into_iter().flatten() {
            mounts.push(client.vfs.clone());
            work.spawn(client.work(Arc::clone(&shared)));
        }
        tokio::time::sleep(warm).await;
        shared.counts.store(true, Ordering::Relaxed);
        let ours = || Usage::of(&[std::process::id()]).cpu;
        let (begin, before, cpu) = (Instant::now(), larder.reading()?, ours());
        tokio::time::sleep(length).await;
        shared.counts.store(false, Ordering::Relaxed);
        let mut cost = larder.reading()?.since(&before);
        cost.client_cpu = ours() - cpu;
        let seconds = begin.elapsed().as_secs_f64();
        shared.is_over.store(true, Ordering::Relaxed);
        while let Some(ended) = work.join_next().await {
            ended.context("a client panicked")??;
        }
        for some in mounts.chunks(AT_ONCE) {
            futures::future::join_all(some.iter().map(|vfs| vfs.shutdown())).await;
        }
        let deeds = shared.deeds.load(Ordering::Relaxed);
        let mut opens = std::mem::take(&mut *lock(&shared.opens));
        opens.sort_by(f64::total_cmp);
        anyhow::Ok((
            Load {
                mode: mode.name().to_owned(),
                clients: count as u64,
                writes,
                term,
                warm: warm.as_secs_f64(),
                seconds,
                deeds,
                cost,
            },
            opens,
        ))
    });
    executors.stop(Duration::from_secs(1));
    main.shutdown_background();
    measured
}

async fn attach(
    runtime: &Arc<dyn Runtime>,
    larder: &Larder,
    mode: Mode,
    cache: Option<std::path::PathBuf>,
) -> Result<Arc<Vfs>> {
    let mode = match mode {
        Mode::Nfs => vfs::Mode::Nfs,
        Mode::Afs => vfs::Mode::Afs,
        Mode::Direct => vfs::Mode::Direct,
    };
    if let Some(cache) = &cache {
        // A cache that is begun makes 256 directories in here, and one that finds this makes those that it needs.
        std::fs::create_dir_all(cache.join("files"))?;
    }
    let cache = cache.map(|dir| CacheOptions { dir, size: CACHE, passthrough: None, keep_open: NonZeroUsize::MIN });
    let options = MountOptions { mode, cache, ..MountOptions::default() };
    let connector = Arc::new(TcpConnector::new(larder.address()));
    Ok(Vfs::attach(Arc::clone(runtime), connector, "root", options).await?)
}

async fn populate(vfs: &Vfs, clients: usize) -> Result<()> {
    let root = Credential::root();
    let dir = vfs.mkdir(&root, ROOT, b"shared", 0o755, 0).await?;
    for file in 0..FILES {
        make(vfs, dir.node, &format!("file-{file}")).await?;
    }
    let dir = vfs.mkdir(&root, ROOT, b"own", 0o755, 0).await?;
    for client in 0..clients {
        make(vfs, dir.node, &format!("of-{client}")).await?;
    }
    vfs.shutdown().await;
    Ok(())
}

async fn make(vfs: &Vfs, dir: u64, name: &str) -> Result<()> {
    let (_, opened) = vfs.create(&Credential::root(), dir, name.as_bytes(), 0o644, 0, libc::O_RDWR).await?;
    vfs.write(opened.handle, 0, Bytes::from(vec![0; SIZE])).await?;
    vfs.flush(opened.handle).await?;
    vfs.release(opened.handle).await;
    Ok(())
}

/// A client, and the program on it.
struct Client {
    vfs: Arc<Vfs>,
    shared: u64,
    own: u64,
    number: usize,
    writes: Writes,
    random: SmallRng,
    /// What the kernel would know: numbers of files, and until when their names may be used.
    names: Vec<Option<(u64, Instant)>>,
    /// Whether the kernel would have the file's pages.
    pages: Vec<bool>,
}

impl Client {
    async fn start(
        runtime: &Arc<dyn Runtime>,
        larder: &Larder,
        Setup { mode, writes, .. }: Setup,
        number: usize,
        cache: std::path::PathBuf,
    ) -> Result<Client> {
        let vfs = attach(runtime, larder, mode, (mode == Mode::Afs).then_some(cache)).await?;
        let random = SmallRng::seed_from_u64(number as u64);
        let (names, pages) = (vec![None; FILES + 1], vec![false; FILES]);
        let mut client = Client { vfs, shared: 0, own: 0, number, writes, random, names, pages };
        client.shared = client.look_up(ROOT, "shared").await?.node;
        client.own = client.look_up(ROOT, "own").await?.node;
        // Whoever has worked for a while has read everything once.
        for file in 0..FILES {
            client.act(Deed::Read(file)).await?;
        }
        client.act(Deed::WriteOwn).await?;
        Ok(client)
    }

    async fn look_up(&self, dir: u64, name: &str) -> Result<Entry> {
        match self.vfs.lookup(&Credential::root(), dir, name.as_bytes()).await? {
            LookupResult::Found(entry) => Ok(entry),
            LookupResult::Missing { .. } => anyhow::bail!("{name} is not there"),
        }
    }

    /// The number of a shared file, or of the client's own (the last one).
    async fn node(&mut self, file: usize) -> Result<u64> {
        if let Some((node, until)) = self.names[file]
            && Instant::now() < until
        {
            return Ok(node);
        }
        let entry = if file == FILES {
            self.look_up(self.own, &format!("of-{}", self.number)).await?
        } else {
            self.look_up(self.shared, &format!("file-{file}")).await?
        };
        let until = Instant::now() + entry.entry_ttl.min(Duration::from_secs(3600));
        self.names[file] = Some((entry.node, until));
        Ok(entry.node)
    }

    async fn work(mut self, shared: Arc<Shared>) -> Result<()> {
        loop {
            let pause = behaviour::pause(&mut self.random);
            tokio::time::sleep(Duration::from_secs_f64(pause)).await;
            if shared.is_over.load(Ordering::Relaxed) {
                return Ok(());
            }
            let deed = behaviour::deed(self.writes, &mut self.random);
            let begin = Instant::now();
            self.act(deed).await.with_context(|| format!("client {}: {deed:?}", self.number))?;
            if shared.counts.load(Ordering::Relaxed) {
                shared.deeds.fetch_add(1, Ordering::Relaxed);
                if let Deed::Read(_) = deed {
                    lock(&shared.opens).push(begin.elapsed().as_secs_f64());
                }
            }
        }
    }

    async fn act(&mut self, deed: Deed) -> Result<()> {
        match deed {
            Deed::Read(file) => {
                let opened = self.open(file, libc::O_RDONLY).await?;
                if !(opened.keep_cache && self.pages[file]) {
                    let data = self.vfs.read(opened.handle, 0, SIZE as u32).await?;
                    ensure!(data.len() == SIZE, "a file has {} bytes", data.len());
                    self.pages[file] = !opened.direct_io;
                }
                self.close(opened.handle).await
            }
            Deed::WriteShared(file) => self.write(file).await,
            Deed::WriteOwn => self.write(FILES).await,
        }
    }

    async fn write(&mut self, file: usize) -> Result<()> {
        let handle = self.open(file, libc::O_WRONLY).await?.handle;
        let data = Bytes::from(vec![behaviour::contents(&mut self.random); SIZE]);
        self.vfs.write(handle, 0, data).await?;
        self.close(handle).await
    }

    async fn open(&mut self, file: usize, flags: i32) -> Result<Opened> {
        let node = self.node(file).await?;
        Ok(self.vfs.open(&Credential::root(), node, flags).await?)
    }

    async fn close(&self, handle: u64) -> Result<()> {
        let flushed = self.vfs.flush(handle).await;
        self.vfs.release(handle).await;
        Ok(flushed?)
    }
}
