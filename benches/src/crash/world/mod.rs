//! A server, the mounts of a round, and what is between and under them.

mod breaking;
mod disorder;
mod seat;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

pub use disorder::Disorder;
use disorder::Disorders;
pub use seat::Seat;

use super::fault::Fault;
use super::outcome::Plan;
use crate::lock;
use crate::medium::Medium;
use crate::mount::{Mode, Mount, Setup};
use crate::process::scratch;
use crate::proxy::Proxy;
use crate::server::{Kept, Server};

/// The term of leases, in seconds: short, so that its end is often seen.
const LEASE: &str = "2";
/// How long attributes may be used in nfs mode: short, too.
pub const ATTRIBUTES_FOR: Duration = Duration::from_secs(4);
/// MiB of the disk of a server, and of a client's cache, whose power can be cut.
const DISK_MIB: u64 = 512;
/// As many more MiB of the server's disk for each minute of the round: clients that die leave the files that they had removed
/// and open, and a server that is killed again and again keeps them for a day.
const MIB_A_MINUTE: u64 = 20;

/// What a report calls the server's store.
pub const STORE: &str = "store";

/// Everything.
pub struct World {
    /// The mounts.
    pub seats: Vec<Seat>,
    /// Each seat's way to the server.
    proxies: Vec<Proxy>,
    server: Mutex<Server>,
    medium: Mutex<Option<Medium>>,
    /// When the server's disk was out of order on purpose.
    disorders: Disorders,
    /// Files that faults have made so far.
    victims: AtomicU64,
    /// Calendars can be set.
    is_dated: bool,
    dir: tempfile::TempDir,
}

/// Where it says by how many seconds the calendar of a seat, or of the server, is wrong.
fn clock_file(dir: &Path, seat: Option<usize>) -> PathBuf {
    dir.join(seat.map_or("server.clock".to_owned(), |seat| format!("seat{seat}.clock")))
}

impl World {
    /// A world in which all of the plan's faults can happen, with a mount in each of its modes.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn new(plan: &Plan) -> Result<World> {
        let dir = scratch()?;
        let of_server = plan.faults.iter().any(|fault| fault.needs_medium_of_server());
        let of_clients = plan.faults.iter().any(|fault| fault.needs_medium_of_client());
        let power = plan.faults.iter().any(|fault| fault.needs_power());
        let mib = DISK_MIB + plan.length.as_secs() / 60 * MIB_A_MINUTE;
        let medium = if of_server { Some(Medium::new(dir.path(), "server.disk", mib)?) } else { None };
        let store = medium.as_ref().map_or(dir.path(), Medium::path).join("store");
        let durability = plan.durability.unwrap_or(if power { "power" } else { "process" });
        let is_dated = plan.faults.contains(&Fault::WallClock);
        let server = if is_dated {
            let clock = clock_file(dir.path(), None);
            Server::start_with_clock(dir.path(), store, durability, &["--lease-term", LEASE], &clock)?
        } else {
            Server::start_of(dir.path(), store, durability, &["--lease-term", LEASE])?
        };
        let (mut seats, mut proxies) = (Vec::new(), Vec::new());
        for (number, mode) in plan.modes.iter().enumerate() {
            let medium = match of_clients && *mode == Mode::Afs {
                true => Some(Medium::new(dir.path(), &format!("client{number}.disk"), DISK_MIB)?),
                false => None,
            };
            let cache = medium.as_ref().map_or(dir.path(), Medium::path).join(format!("cache{number}"));
            seats.push(Seat::new(*mode, cache, medium));
            proxies.push(Proxy::start(server.address())?);
        }
        let world = World {
            seats,
            proxies,
            server: Mutex::new(server),
            medium: Mutex::new(medium),
            disorders: Disorders::default(),
            victims: AtomicU64::new(0),
            is_dated,
            dir,
        };
        (0..world.seats.len()).try_for_each(|seat| world.mount(seat))?;
        Ok(world)
    }

    /// A directory beside the mounts.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// How long a client may go by what it was promised.
    pub fn lease(&self) -> Duration {
        Duration::from_secs(LEASE.parse().unwrap_or(2))
    }

    /// The server's store.
    pub(super) fn store(&self) -> PathBuf {
        lock(&self.server).store().to_owned()
    }

    /// A name in the volume's root that nobody else has.
    pub(super) fn victim_name(&self) -> String {
        format!("victim-{}", self.victims.fetch_add(1, Ordering::SeqCst))
    }

    /// How the server's disk is out of order on purpose.
    pub fn disorder(&self) -> Disorder {
        self.disorders.now()
    }

    /// The processes there are, with what they are called. One that is being replaced is left out.
    pub fn processes(&self) -> Vec<(String, u32)> {
        let server = self.server.try_lock().ok().and_then(|server| server.id());
        let clients = self.seats.iter().enumerate();
        let clients =
            clients.filter_map(|(number, seat)| Some((format!("seat {number} ({})", seat.mode().name()), seat.id()?)));
        server.map(|id| ("server".to_owned(), id)).into_iter().chain(clients).collect()
    }

    /// Where contents are kept, by whom: the server's store, and the clients' caches.
    pub fn depots(&self) -> Vec<(String, PathBuf)> {
        let store = lock(&self.server).store().to_owned();
        let seats = self.seats.iter().enumerate().filter(|(_, seat)| seat.mode() == Mode::Afs);
        let caches = seats.map(|(number, seat)| (format!("cache of seat {number}"), seat.cache.clone()));
        std::iter::once((STORE.to_owned(), store)).chain(caches).collect()
    }

    /// Removes all files: what was made by way of a mount by way of that one, and then the rest.
    ///
    /// # Errors
    /// What the user who does that is told.
    pub fn remove_everything(&self) -> Result<()> {
        self.seats.iter().try_for_each(Seat::forget_conflicts)?;
        let seats = self.seats.iter().enumerate();
        for (seat, of) in
            seats.map(|(number, seat)| (seat, format!("seat{number}-"))).chain([(&self.seats[0], String::new())])
        {
            let (_, mount) = seat.wait_mounted().context("there is no mount any more")?;
            for entry in fs::read_dir(mount)? {
                let entry = entry?;
                if !entry.file_name().to_string_lossy().starts_with(&of) {
                    continue;
                }
                let path = entry.path();
                if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }
                    .with_context(|| format!("removing {}", path.display()))?;
            }
        }
        Ok(())
    }

    /// A mount in `direct` mode that goes to the server directly, and has seen nothing.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn judge(&self) -> Result<Mount> {
        self.stranger("judge", Mode::Direct)
    }

    /// A mount in this mode that goes to the server directly, and has seen nothing.
    pub(super) fn stranger(&self, name: &str, mode: Mode) -> Result<Mount> {
        Mount::new(self.dir.path(), name, &lock(&self.server), mode, "")
    }

    fn mount(&self, number: usize) -> Result<()> {
        self.mount_to_die(number, None)
    }

    /// Mounts, with a client that dies as `failpoint` says.
    fn mount_to_die(&self, number: usize, failpoint: Option<&str>) -> Result<()> {
        self.wait_for_the_dead()?;
        let seat = &self.seats[number];
        let name = format!("seat{number}-{}", seat.lives());
        let clock = self.is_dated.then(|| clock_file(self.dir.path(), Some(number)));
        let clock = clock.as_deref();
        let options = match seat.mode {
            Mode::Nfs => format!("hard,acregmax={0},acdirmax={0}", ATTRIBUTES_FOR.as_secs()),
            Mode::Afs | Mode::Direct => "hard".to_owned(),
        };
        // The machine goes on; its client is to know better.
        let boot = Some(seat.cuts.load(Ordering::SeqCst)).filter(|cuts| *cuts > 0);
        let setup = Setup { cache: Some(&seat.cache), options: &options, failpoint, clock, boot, ..Setup::default() };
        let mount = Mount::set_up(self.dir.path(), &name, &self.proxies[number].address(), seat.mode, &setup)?;
        *lock(&seat.mount) = Some(mount);
        seat.mounted.notify_all();
        Ok(())
    }

    /// Waits until what clients sent before they died is carried out. In nfs and direct mode the next client is another one
    /// for the server, and does not end the requests of the one before, which may still wait for leases: it must not come
    /// behind the back of who looks what became of it.
    fn wait_for_the_dead(&self) -> Result<()> {
        let began = Instant::now();
        loop {
            let living = self.seats.iter().filter(|seat| lock(&seat.mount).is_some()).count() as u64;
            if lock(&self.server).stats()?.clients <= living {
                return Ok(());
            }
            if began.elapsed() > self.lease() * 2 + self.lease() / 2 {
                // Longer than two leases nothing waits: once because the server was restarted, and once for a holder. A
                // connection was cut so that the server does not see its end; nothing comes by it any more, either.
                return Ok(());
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Takes down all mounts, whatever waits for them.
    pub(super) fn give_up(&self) {
        for seat in &self.seats {
            seat.lives.fetch_add(1, Ordering::SeqCst);
            seat.is_given_up.store(true, Ordering::SeqCst);
            let taken = lock(&seat.mount).take();
            seat.mounted.notify_all();
            // By force.
            drop(taken);
        }
    }

    /// Ends the server, where nobody uses it for ever.
    pub(super) fn leave(&self) {
        if let Ok(mut server) = self.server.try_lock() {
            // One that has ended by itself is gone, too.
            let _ = server.kill();
        }
    }

    /// Takes all down in good order, and has the store checked. Says what it keeps for clients that died.
    ///
    /// # Errors
    /// If something does not end well, or the store is not sound.
    pub fn end(self) -> Result<Kept> {
        for (number, seat) in self.seats.iter().enumerate() {
            if let Some(mount) = lock(&seat.mount).take() {
                mount.close(false).with_context(|| format!("unmounting seat {number}"))?;
            }
        }
        let mut server = lock(&self.server);
        let checked = server.check().context("larderd check")?;
        // Of all processes, in all their lives.
        for entry in fs::read_dir(self.dir.path())? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "log") {
                let log = fs::read_to_string(&path)?;
                let panics: Vec<&str> = log.lines().filter(|line| line.contains("panicked")).collect();
                ensure!(panics.is_empty(), "a defect, says {}: {panics:?}", path.display());
            }
        }
        Ok(checked.kept)
    }
}
