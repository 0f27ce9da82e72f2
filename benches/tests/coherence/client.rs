//! A machine with a mount and programs that use it, from one life to the next: the disk cache is what remains.

use std::path::Path;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use larder_client::vfs::{CacheOptions, Mode, MountOptions, Vfs};
use larder_protocol::faults::Weather;
use larder_protocol::runtime::{Clocks, Runtime, SharedRuntime, SimRuntime};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OnceCell, RwLock};
use tokio::task::JoinSet;

use crate::FILES;
use crate::gate::{Gate, Stoppable};
use crate::history::History;
use crate::machine::{Disk, Machine};
use crate::wire::{Cut, Dialer, Line};
use crate::worker::Program;
use crate::world::{Road, World};

/// Programs that use a mount at the same time.
const PROGRAMS: usize = 2;
/// Bytes of a disk cache: enough for all files, since what finds no room is not cached.
const CACHE: u64 = 256 << 20;

/// The end of a process, by force.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kill {
    /// How long until it is started again.
    pub(crate) down: Duration,
    /// The machine is gone with it: the server does not hear that connections were closed.
    pub(crate) machine: bool,
}

/// What a client has done in all its lives.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) hits: u64,
    pub(crate) fetches: u64,
    pub(crate) stores: u64,
    pub(crate) breaks: u64,
    pub(crate) voids: u64,
    pub(crate) restarts: u64,
    pub(crate) conflicts: u64,
    pub(crate) crashes: u64,
}

/// What all clients of a world share.
pub(crate) struct Plan {
    pub(crate) world: Arc<World>,
    pub(crate) history: Arc<History>,
    /// Operations that nobody has begun yet.
    pub(crate) left: AtomicI64,
    /// Requests that a kernel would have made of its client.
    pub(crate) requests: AtomicU64,
    /// Whether many files are large.
    pub(crate) large: bool,
    /// Operations that failed for a reason that says nothing.
    pub(crate) errors: Mutex<Vec<String>>,
    /// Operations that the kernel begins anew, because what a name led to was gone before it was opened.
    pub(crate) stale: AtomicU64,
}

/// A client's machine.
pub(crate) struct Host {
    pub(crate) number: usize,
    pub(crate) plan: Arc<Plan>,
    sim: Arc<SimRuntime>,
    road: Arc<Road>,
    pub(crate) line: Arc<Line>,
    pub(crate) gate: Arc<Gate>,
    /// The disk cache; removed with this.
    _cache: tempfile::TempDir,
    options: MountOptions,
    disk: Disk,
    /// A program that writes a file has it for itself on this machine; programs of other machines it meets.
    pub(crate) files: [RwLock<()>; FILES],
    random: Mutex<SmallRng>,
    kills: UnboundedSender<Kill>,
    totals: Mutex<Totals>,
}

/// How a client's line and disk are.
pub(crate) struct Setup {
    pub(crate) weather: Weather,
    pub(crate) timeo: Duration,
    pub(crate) disk: Disk,
    pub(crate) clocks: Clocks,
    pub(crate) strict: bool,
    pub(crate) lies: bool,
}

fn cache_options(dir: &Path) -> Option<CacheOptions> {
    Some(CacheOptions { dir: dir.to_owned(), size: CACHE, passthrough: None, keep_open: CacheOptions::KEEP_OPEN })
}

/// A place in memory, where there is one: no power is lost here, and disks are slow.
pub(crate) fn cache_dir() -> std::io::Result<tempfile::TempDir> {
    let builder = || tempfile::Builder::new().prefix("larder-coherence-").to_owned();
    let dir = builder().tempdir_in("/dev/shm").or_else(|_| builder().tempdir())?;
    // A cache that is begun makes 256 directories in here, and looks into each whenever it is opened. One that finds
    // this makes only those that it needs.
    std::fs::create_dir(dir.path().join("files"))?;
    Ok(dir)
}

impl Host {
    pub(crate) fn new(
        number: usize,
        plan: &Arc<Plan>,
        setup: &Setup,
        mut random: SmallRng,
    ) -> (Arc<Host>, UnboundedReceiver<Kill>) {
        let cache = cache_dir().unwrap();
        let options = MountOptions {
            mode: Mode::Afs,
            timeo: setup.timeo,
            strict: setup.strict,
            cache: cache_options(cache.path()),
            ..MountOptions::default()
        };
        let (kills, killed) = unbounded_channel();
        let host = Host {
            number,
            plan: plan.clone(),
            sim: Arc::new(SimRuntime::with_clocks(random.random(), setup.clocks)),
            road: Road::new(&plan.world, setup.weather, random.random()),
            line: Line::new(setup.lies),
            gate: Arc::default(),
            _cache: cache,
            options,
            disk: setup.disk,
            files: Default::default(),
            random: Mutex::new(random),
            kills,
            totals: Mutex::default(),
        };
        (Arc::new(host), killed)
    }

    /// Ends the process, if there is one.
    pub(crate) fn kill(&self, kill: Kill) {
        // A client whose work is done does not mind.
        let _ = self.kills.send(kill);
    }

    pub(crate) fn totals(&self) -> Totals {
        *self.totals.lock().unwrap()
    }

    /// A number that depends on how many random numbers were drawn here, and so on all that happened.
    pub(crate) fn trace(&self) -> (u64, u64) {
        (self.sim.random(), self.random.lock().unwrap().random())
    }

    fn branch(&self) -> SmallRng {
        SmallRng::seed_from_u64(self.random.lock().unwrap().random())
    }

    /// Adds what a mount did, at its end.
    fn count(&self, vfs: &Vfs) {
        let stats = vfs.stats();
        let cache = stats.cache.unwrap_or_default();
        let mut totals = self.totals.lock().unwrap();
        totals.hits += stats.hits;
        totals.fetches += cache.fetches;
        totals.stores += cache.stores;
        totals.breaks += cache.breaks;
        totals.voids += cache.voids;
        totals.restarts += stats.server_restarts;
        // These stay in the cache.
        totals.conflicts = cache.conflicts;
        assert_eq!(cache.uncached_opens, 0, "the cache has room for everything");
    }

    async fn mount(&self, runtime: &SharedRuntime) -> Arc<Vfs> {
        for _ in 0..10_000 {
            // A mount is tried once; who wants more tries again.
            let dialer = Arc::new(Dialer { road: self.road.clone(), line: self.line.clone() });
            if let Ok(vfs) = Vfs::attach(runtime.clone(), dialer, "root", self.options.clone()).await {
                return vfs;
            }
            runtime.sleep(Duration::from_millis(100)).await;
        }
        panic!("no mount in 10,000 attempts");
    }

    /// One life: a mount, and programs until there is nothing left to do.
    async fn one_life(self: Arc<Host>, runtime: SharedRuntime, mounted: Arc<OnceCell<Arc<Vfs>>>) {
        let vfs = mounted.get_or_init(|| self.mount(&runtime)).await;
        let mut programs = JoinSet::new();
        for _ in 0..PROGRAMS {
            let program = Program::new(vfs.clone(), self.clone(), self.branch());
            programs.spawn(self.gate.task(program.work()));
        }
        all(programs).await;
    }

    /// All lives, to the end of the work; the last mount.
    pub(crate) async fn live(self: Arc<Host>, mut killed: UnboundedReceiver<Kill>) -> Arc<Vfs> {
        loop {
            let machine = Machine::new(self.sim.clone(), self.disk);
            let runtime: SharedRuntime = Arc::new(Stoppable { machine: machine.clone(), gate: self.gate.clone() });
            let mounted = Arc::new(OnceCell::new());
            let mut life = JoinSet::new();
            life.spawn(self.gate.task(self.clone().one_life(runtime, mounted.clone())));
            let kill = tokio::select! {
                ended = life.join_next() => {
                    if let Some(Err(error)) = ended {
                        std::panic::resume_unwind(error.into_panic());
                    }
                    return mounted.get().expect("it was mounted").clone();
                }
                Some(kill) = killed.recv() => kill,
            };
            self.crash(&machine, life, mounted, kill).await;
        }
    }

    async fn crash(&self, machine: &Machine, mut life: JoinSet<()>, mounted: Arc<OnceCell<Arc<Vfs>>>, kill: Kill) {
        if kill.machine {
            self.line.cut(Cut::Both);
        }
        // A program that is still to run must not see what goes under it: it would tell of errors that nobody had.
        self.gate.stop();
        life.abort_all();
        machine.kill();
        while let Some(ended) = life.join_next().await {
            if let Err(error) = ended
                && error.is_panic()
            {
                std::panic::resume_unwind(error.into_panic());
            }
        }
        if let Some(vfs) = mounted.get() {
            self.count(vfs);
            let rest = Arc::downgrade(vfs);
            drop(mounted);
            // What is left of its tasks goes.
            for _ in 0..1000 {
                if rest.strong_count() == 0 {
                    break;
                }
                tokio::task::yield_now().await;
            }
            assert_eq!(rest.strong_count(), 0, "nothing outlives the process");
        }
        self.totals.lock().unwrap().crashes += 1;
        tokio::time::sleep(kill.down).await;
        self.gate.go_on();
        if kill.machine {
            self.line.mend(true);
        }
    }

    /// Looks at everything once more, when all is quiet, and ends the last life.
    pub(crate) async fn finish(self: &Arc<Host>, vfs: Arc<Vfs>) {
        Program::new(vfs.clone(), self.clone(), self.branch()).look_around().await;
        vfs.shutdown().await;
        self.count(&vfs);
        assert_eq!(self.gate.panics(), 0, "a task of the client met a defect (above)");
    }
}

/// Waits for all tasks; a panic of one is the caller's.
pub(crate) async fn all<T: 'static>(mut tasks: JoinSet<T>) -> Vec<T> {
    let mut results = Vec::new();
    while let Some(result) = tasks.join_next().await {
        results.push(result.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())));
    }
    results
}
