//! A server, the mounts of a round, and what is between and under them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use rustix::process::Signal;

use super::round::Plan;
use crate::lock;
use crate::medium::Medium;
use crate::mount::{Mode, Mount, Setup};
use crate::process::{binary, scratch};
use crate::proxy::{End, Link, Proxy};
use crate::server::Server;

/// The term of leases, in seconds: short, so that its end is often seen.
const LEASE: &str = "2";
/// MiB of the disk of a server, and of a client's cache, whose power can be cut.
const DISK_MIB: u64 = 512;
/// How long a second server or client may take to be refused.
const REFUSED_WITHIN: &str = "20";

/// One mount after the other, in the same place of the world.
pub struct Seat {
    mode: Mode,
    /// Raised before a mount is taken down.
    lives: AtomicU64,
    mount: Mutex<Option<Mount>>,
    mounted: Condvar,
    /// No mount comes any more.
    is_given_up: AtomicBool,
    cache: PathBuf,
    medium: Mutex<Option<Medium>>,
}

/// Everything.
pub struct World {
    /// The mounts.
    pub seats: Vec<Seat>,
    proxy: Proxy,
    server: Mutex<Server>,
    medium: Mutex<Option<Medium>>,
    /// Odd while the disk is full on purpose.
    fullness: AtomicU64,
    dir: tempfile::TempDir,
}

impl Seat {
    /// How it caches.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Its number of lives so far: it differs if the mount was taken down in between.
    pub fn lives(&self) -> u64 {
        self.lives.load(Ordering::SeqCst)
    }

    /// Waits until there is a mount; which life that is, and where. `None` if there will be none.
    pub fn wait_mounted(&self) -> Option<(u64, PathBuf)> {
        let comes = |mount: &mut Option<Mount>| mount.is_none() && !self.is_given_up.load(Ordering::SeqCst);
        let waiting = self.mounted.wait_while(lock(&self.mount), comes);
        let mount = waiting.unwrap_or_else(PoisonError::into_inner);
        mount.as_ref().map(|mount| (self.lives(), mount.path().to_owned()))
    }

    /// What the client has logged in this life.
    pub fn log(&self) -> String {
        lock(&self.mount).as_ref().map(Mount::log).unwrap_or_default()
    }
}

impl World {
    /// A world in which the plan's fault can happen, with a mount in each of its modes.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn new(plan: &Plan) -> Result<World> {
        let dir = scratch()?;
        let (of_server, of_clients) = plan.fault.needs_media();
        let medium = if of_server { Some(Medium::new(dir.path(), "server.disk", DISK_MIB)?) } else { None };
        let store = medium.as_ref().map_or(dir.path(), Medium::path).join("store");
        let durability = plan.durability.unwrap_or(if plan.fault.needs_power() { "power" } else { "process" });
        let server = Server::start_of(dir.path(), store, durability, &["--lease-term", LEASE])?;
        let proxy = Proxy::start(server.address())?;
        let mut seats = Vec::new();
        for (number, mode) in plan.modes.iter().enumerate() {
            let medium = match of_clients && *mode == Mode::Afs {
                true => Some(Medium::new(dir.path(), &format!("client{number}.disk"), DISK_MIB)?),
                false => None,
            };
            let cache = medium.as_ref().map_or(dir.path(), Medium::path).join(format!("cache{number}"));
            seats.push(Seat {
                mode: *mode,
                lives: AtomicU64::new(0),
                mount: Mutex::new(None),
                mounted: Condvar::new(),
                is_given_up: AtomicBool::new(false),
                cache,
                medium: Mutex::new(medium),
            });
        }
        let world = World {
            seats,
            proxy,
            server: Mutex::new(server),
            medium: Mutex::new(medium),
            fullness: AtomicU64::new(0),
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

    /// Odd while the disk is full on purpose; differs if it was in between.
    pub fn fullness(&self) -> u64 {
        self.fullness.load(Ordering::SeqCst)
    }

    /// Mounts that go to the server directly, and have seen nothing.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn judge(&self) -> Result<Mount> {
        Mount::new(self.dir.path(), "judge", &lock(&self.server), Mode::Direct, "")
    }

    fn mount(&self, number: usize) -> Result<()> {
        let seat = &self.seats[number];
        let name = format!("seat{number}-{}", seat.lives());
        let setup = Setup { cache: Some(&seat.cache), options: "hard", ..Setup::default() };
        let mount = Mount::set_up(self.dir.path(), &name, &self.proxy.address(), seat.mode, &setup)?;
        *lock(&seat.mount) = Some(mount);
        seat.mounted.notify_all();
        Ok(())
    }

    pub(super) fn kill_server(&self) -> Result<()> {
        lock(&self.server).kill()
    }

    pub(super) fn start_server(&self) -> Result<()> {
        lock(&self.server).restart()
    }

    pub(super) fn cut_server_power(&self) -> Result<()> {
        let (mut server, mut medium) = (lock(&self.server), lock(&self.medium));
        let medium = medium.as_mut().context("the server's disk is none whose power can be cut")?;
        // Nobody hears of what is done after the instant.
        self.proxy.set(Link { is_mute: true, is_cut: [true, true], ..Link::default() });
        let instant = medium.instant()?;
        server.kill()?;
        medium.go_back(instant)?;
        server.restart()?;
        // In this order: what was opened meanwhile is mute, too.
        self.proxy.set(Link::default());
        self.proxy.end(End::Reset);
        Ok(())
    }

    pub(super) fn kill_client(&self, number: usize, power: bool) -> Result<()> {
        let seat = &self.seats[number];
        let taken = lock(&seat.mount).take();
        let Some(mount) = taken else { return Ok(()) };
        seat.lives.fetch_add(1, Ordering::SeqCst);
        let mut medium = lock(&seat.medium);
        let medium = medium.as_mut().filter(|_| power);
        match medium {
            Some(medium) => {
                // From the instant on it acknowledges nothing.
                mount.signal(Signal::STOP)?;
                let instant = medium.instant()?;
                mount.signal(Signal::KILL)?;
                mount.bury()?;
                medium.go_back(instant)?;
            }
            None => {
                mount.signal(Signal::KILL)?;
                mount.bury()?;
            }
        }
        self.mount(number)
    }

    pub(super) fn kill_all(&self) -> Result<()> {
        let mut mounts = Vec::new();
        for seat in &self.seats {
            mounts.extend(lock(&seat.mount).take());
            seat.lives.fetch_add(1, Ordering::SeqCst);
        }
        let mut server = lock(&self.server);
        mounts.iter().try_for_each(|mount| mount.signal(Signal::KILL))?;
        server.kill()?;
        mounts.into_iter().try_for_each(Mount::bury)?;
        server.restart()?;
        drop(server);
        (0..self.seats.len()).try_for_each(|seat| self.mount(seat))
    }

    pub(super) fn stop_client(&self, number: usize, lasts: Duration) -> Result<()> {
        let mount = lock(&self.seats[number].mount);
        let Some(mount) = mount.as_ref() else { return Ok(()) };
        mount.signal(Signal::STOP)?;
        thread::sleep(lasts);
        mount.signal(Signal::CONT)
    }

    pub(super) fn link(&self, link: Link, lasts: Duration) {
        self.proxy.set(link);
        thread::sleep(lasts);
        self.proxy.set(Link::default());
    }

    pub(super) fn end_connections(&self, how: End) {
        self.proxy.end(how);
    }

    pub(super) fn fill_disk(&self, lasts: Duration) -> Result<()> {
        let path = lock(&self.medium).as_ref().context("the server's disk is none that can be full")?.path().to_owned();
        let hog = path.join("hog");
        self.fullness.fetch_add(1, Ordering::SeqCst);
        let file = File::create(&hog)?;
        let (mut at, mut piece) = (0, 16 << 20);
        while piece >= 4096 {
            match rustix::fs::fallocate(&file, FallocateFlags::empty(), at, piece) {
                Ok(()) => at += piece,
                Err(Errno::NOSPC) => piece /= 2,
                Err(error) => return Err(error.into()),
            }
        }
        thread::sleep(lasts);
        drop(file);
        fs::remove_file(hog)?;
        self.fullness.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    /// Why a second server on the store, and a second client on the cache, were refused.
    pub(super) fn start_twice(&self, number: usize) -> Result<String> {
        let refusal = |command: &mut Command, wanted: &str| {
            let output = command.output().with_context(|| format!("starting {command:?}"))?;
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            ensure!(
                !output.status.success() && output.status.code() != Some(124) && said.contains(wanted),
                "{command:?} ended with {} and said: {said}",
                output.status
            );
            Ok(said)
        };
        let store = lock(&self.server).store().to_owned();
        let mut second = Command::new("timeout");
        second.arg(REFUSED_WITHIN).arg(binary("larderd")?).args(["serve", "--listen", "127.0.0.1:0", "--store"]);
        let mut said = refusal(second.arg(&store), &store.display().to_string())?;
        let seat = &self.seats[number];
        if seat.mode == Mode::Afs {
            let mountpoint = self.dir.path().join("second");
            fs::create_dir_all(&mountpoint)?;
            let mut second = Command::new("timeout");
            second.arg(REFUSED_WITHIN).arg(binary("larder")?).args(["mount", "--mode", "afs", "--cache"]);
            second.arg(&seat.cache).arg(self.proxy.address()).arg(&mountpoint);
            said = format!("{said}; {}", refusal(&mut second, &seat.cache.display().to_string())?);
        }
        Ok(said)
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

    /// Takes all down in good order, and has the store checked.
    ///
    /// # Errors
    /// If something does not end well, or the store is not sound.
    pub fn end(self) -> Result<()> {
        for (number, seat) in self.seats.iter().enumerate() {
            if let Some(mount) = lock(&seat.mount).take() {
                mount.close(false).with_context(|| format!("unmounting seat {number}"))?;
            }
        }
        let mut server = lock(&self.server);
        server.check().context("larderd check")?;
        Ok(())
    }
}
