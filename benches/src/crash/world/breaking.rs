//! What can be done to a world.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use super::disorder::Kind;
use super::{World, clock_file};
use crate::lock;
use crate::medium::{self, Failure};
use crate::mount::{Mode, Mount};
use crate::process::binary;
use crate::proxy::{End, Link};

/// How long a second server or client may take to be refused.
const REFUSED_WITHIN: &str = "20";

impl World {
    /// Kills the server, and starts it again once `meanwhile` is done.
    pub(in crate::crash) fn kill_server(&self, meanwhile: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let mut server = lock(&self.server);
        server.kill()?;
        let done = meanwhile(server.store());
        // In any case: the workers wait for it.
        server.restart()?;
        done
    }

    /// Kills the server, and starts it again to die at a failpoint, or after `within`; then it is started for good. Says
    /// whether it died at the failpoint.
    pub(in crate::crash) fn doom_server(&self, failpoints: &str, within: Duration) -> Result<bool> {
        let mut server = lock(&self.server);
        server.kill()?;
        let died = server.restart_to_die(failpoints, within)?;
        server.restart()?;
        Ok(died)
    }

    /// As [`doom_server`](World::doom_server), with a client.
    pub(in crate::crash) fn doom_client(&self, number: usize, failpoints: &str, within: Duration) -> Result<bool> {
        let seat = &self.seats[number];
        let taken = lock(&seat.mount).take();
        let Some(mount) = taken else { return Ok(false) };
        // The next life is over once it has ended, and not before: what it did until then counts.
        seat.doomed.store(seat.lives() + 1, Ordering::SeqCst);
        seat.lives.fetch_add(1, Ordering::SeqCst);
        mount.signal(Signal::KILL)?;
        mount.bury()?;
        let began = Instant::now();
        // It may die before it is mounted, and must not end in any other way.
        if let Err(error) = self.mount_to_die(number, Some(failpoints)) {
            ensure!(format!("{error:#}").contains("signal: 9"), "{error:#}");
        }
        let was_killed = || lock(&seat.mount).as_mut().map_or(Ok(true), Mount::was_killed);
        while !was_killed()? && began.elapsed() < within {
            thread::sleep(Duration::from_millis(5));
        }
        let died = was_killed()?;
        if let Some(mount) = seat.end_life() {
            if !died {
                mount.signal(Signal::KILL)?;
            }
            mount.bury()?;
        }
        self.mount(number)?;
        Ok(died)
    }

    /// Sets the calendar of the server, or of a client, by so many seconds wrong.
    pub(in crate::crash) fn set_clock(&self, seat: Option<usize>, seconds: i64) -> Result<()> {
        // At once: nobody must read half of it.
        let (file, new) = (clock_file(self.dir.path(), seat), self.dir.path().join("new.clock"));
        fs::write(&new, seconds.to_string())?;
        Ok(fs::rename(new, file)?)
    }

    pub(in crate::crash) fn cut_server_power(&self) -> Result<()> {
        let (mut server, mut medium) = (lock(&self.server), lock(&self.medium));
        let medium = medium.as_mut().context("the server's disk is none whose power can be cut")?;
        // Nobody hears of what is done after the instant.
        self.proxies
            .iter()
            .for_each(|proxy| proxy.set(Link { is_mute: true, is_cut: [true, true], ..Link::default() }));
        let instant = medium.instant()?;
        server.kill()?;
        medium.go_back(instant)?;
        server.restart()?;
        // Before, for what is held back must not get through; and after, for what was opened meanwhile is mute, too.
        self.proxies.iter().for_each(|proxy| proxy.end(End::Reset));
        self.proxies.iter().for_each(|proxy| proxy.set(Link::default()));
        self.proxies.iter().for_each(|proxy| proxy.end(End::Reset));
        Ok(())
    }

    /// Kills a client, and mounts it again once `meanwhile` is done with its cache.
    pub(in crate::crash) fn kill_client(
        &self,
        number: usize,
        meanwhile: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        let seat = &self.seats[number];
        let Some(mount) = seat.end_life() else { return Ok(()) };
        mount.signal(Signal::KILL)?;
        mount.bury()?;
        let done = meanwhile(&seat.cache);
        self.mount(number)?;
        done
    }

    pub(in crate::crash) fn cut_client_power(&self, number: usize) -> Result<()> {
        let seat = &self.seats[number];
        let Some(mount) = seat.end_life() else { return Ok(()) };
        let mut medium = lock(&seat.medium);
        let medium = medium.as_mut().context("the client's disk is none whose power can be cut")?;
        // From the instant on it acknowledges nothing.
        mount.signal(Signal::STOP)?;
        let instant = medium.instant()?;
        mount.signal(Signal::KILL)?;
        mount.bury()?;
        medium.go_back(instant)?;
        seat.cuts.fetch_add(1, Ordering::SeqCst);
        self.mount(number)?;
        seat.forget_conflicts()
    }

    pub(in crate::crash) fn kill_all(&self) -> Result<()> {
        let mut mounts = Vec::new();
        for seat in &self.seats {
            mounts.extend(seat.end_life());
        }
        let mut server = lock(&self.server);
        mounts.iter().try_for_each(|mount| mount.signal(Signal::KILL))?;
        server.kill()?;
        mounts.into_iter().try_for_each(Mount::bury)?;
        server.restart()?;
        drop(server);
        (0..self.seats.len()).try_for_each(|seat| self.mount(seat))
    }

    pub(in crate::crash) fn stop_client(&self, number: usize, lasts: Duration) -> Result<()> {
        let signal = |signal| lock(&self.seats[number].mount).as_ref().map_or(Ok(()), |mount| mount.signal(signal));
        signal(Signal::STOP)?;
        // Not locked: programs go on to ask the kernel meanwhile, which may know an answer.
        thread::sleep(lasts);
        signal(Signal::CONT)
    }

    /// What the ways of these seats to the server are like for a while.
    pub(in crate::crash) fn link(&self, seats: &[usize], link: Link, lasts: Duration) {
        seats.iter().for_each(|seat| self.proxies[*seat].set(link));
        thread::sleep(lasts);
        seats.iter().for_each(|seat| self.proxies[*seat].set(Link::default()));
    }

    /// Ends the connections of these seats.
    pub(in crate::crash) fn end_connections(&self, seats: &[usize], how: End) {
        seats.iter().for_each(|seat| self.proxies[*seat].end(how));
    }

    pub(in crate::crash) fn fill_disk(&self, lasts: Duration) -> Result<()> {
        let path = lock(&self.medium).as_ref().context("the server's disk is none that can be full")?.path().to_owned();
        let hog = path.join("hog");
        self.disorders.begin(Kind::Full);
        medium::fill(&hog)?;
        thread::sleep(lasts);
        medium::release(&hog)?;
        self.disorders.end(Kind::Full);
        Ok(())
    }

    /// Lets the server's disk fail. Then the operator ends the server, mends the disk and starts the server again.
    pub(in crate::crash) fn fail_disk(&self, how: Failure, lasts: Duration) -> Result<()> {
        let (mut server, mut medium) = (lock(&self.server), lock(&self.medium));
        let medium = medium.as_mut().context("the server's disk is none that can fail")?;
        self.disorders.begin(Kind::Failing);
        medium.fail(how)?;
        thread::sleep(lasts);
        server.abandon()?;
        medium.mend()?;
        server.restart()?;
        self.disorders.end(Kind::Failing);
        Ok(())
    }

    /// Why a second server on the store, and a second client on the cache, were refused.
    pub(in crate::crash) fn start_twice(&self, number: usize) -> Result<String> {
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
            second.arg(&seat.cache).arg(self.proxies[number].address()).arg(&mountpoint);
            said = format!("{said}; {}", refusal(&mut second, &seat.cache.display().to_string())?);
        }
        Ok(said)
    }
}
