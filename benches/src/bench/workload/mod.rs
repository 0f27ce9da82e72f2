//! What candidates are made to do.
//!
//! **Nothing is removed before the last phase.** ext4 passes over the inodes of files that were removed in the last minutes
//! one by one (`recently_deleted` in `fs/ext4/ialloc.c`), so that whoever makes files would pay for whoever removed some.
//! What removes therefore runs after all rounds of everything else.

mod andrew;
mod io;
mod mail;
mod shared;
mod small;
mod sqlite;
mod tree;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::ValueEnum;

use super::candidate::Candidate;
use super::inputs::Inputs;
use super::results::{LeftOut, Results, Sample, Unit};

/// The workloads by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Kind {
    /// The Andrew benchmark's phases on a C program: make directories, copy, scan, read, compile
    Andrew,
    /// Unpack an archive, git status, grep -r with cold and warm caches, rm -r
    Tree,
    /// Make, stat, read, rename and remove small files, with one thread and with four
    Small,
    /// Large and small reads and writes, buffered and direct (fio)
    Io,
    /// Transactions of sqlite with a rollback journal
    Sqlite,
    /// Mail that two clients deliver and one reads
    Mail,
    /// Files that several clients share
    Shared,
}

impl Kind {
    /// Its name, as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Andrew => "andrew",
            Kind::Tree => "tree",
            Kind::Small => "small",
            Kind::Io => "io",
            Kind::Sqlite => "sqlite",
            Kind::Mail => "mail",
            Kind::Shared => "shared",
        }
    }

    /// The workload itself, where several clients are at work with so many of them.
    pub fn workload(self, clients: usize) -> Box<dyn Workload> {
        match self {
            Kind::Andrew => Box::new(andrew::Andrew),
            Kind::Tree => Box::new(tree::Tree),
            Kind::Small => Box::new(small::Small),
            Kind::Io => Box::new(io::Io),
            Kind::Sqlite => Box::new(sqlite::Sqlite),
            Kind::Mail => Box::new(mail::Mail { clients }),
            Kind::Shared => Box::new(shared::Shared { clients }),
        }
    }
}

/// One of them.
pub trait Workload {
    /// Clients that it needs.
    fn clients(&self) -> usize {
        1
    }

    /// Brings to a candidate what all rounds need, in [`Bench::base`].
    ///
    /// # Errors
    /// If the candidate fails; it is left out then.
    fn prepare(&self, _bench: &mut Bench<'_>) -> Result<()> {
        Ok(())
    }

    /// One round on one candidate.
    ///
    /// # Errors
    /// If the candidate fails.
    fn round(&self, bench: &mut Bench<'_>) -> Result<()>;

    /// What removes, one round after the other, after all other rounds of all workloads.
    ///
    /// # Errors
    /// If the candidate fails.
    fn remove(&self, _bench: &mut Bench<'_>) -> Result<()> {
        Ok(())
    }
}

/// One round of one workload on one candidate: where it is done, and where its figures go.
pub struct Bench<'a> {
    /// The workload.
    pub kind: Kind,
    /// What is measured.
    pub candidate: &'a mut dyn Candidate,
    /// What is worked on.
    pub inputs: &'a Inputs,
    /// The round, from 0 on.
    pub round: usize,
    /// Where figures go.
    pub results: &'a mut Results,
}

impl Bench<'_> {
    /// The workload's directory, as a client sees it.
    pub fn base(&self, client: usize) -> PathBuf {
        self.candidate.path(client).join(self.kind.name())
    }

    /// This round's directory, as a client sees it.
    pub fn place(&self, client: usize) -> PathBuf {
        self.base(client).join(format!("round-{}", self.round))
    }

    /// Makes this round's directory.
    ///
    /// # Errors
    /// If that fails.
    pub fn make_place(&self) -> Result<PathBuf> {
        let place = self.place(0);
        std::fs::create_dir(&place).with_context(|| format!("making {}", place.display()))?;
        Ok(place)
    }

    /// Gives the first client empty caches, if the candidate can: what removes finds the same whatever ran before.
    ///
    /// # Errors
    /// If it cannot be mounted again.
    pub fn forget(&mut self) -> Result<()> {
        if self.candidate.can_forget() { self.candidate.forget(0) } else { Ok(()) }
    }

    /// Does something and notes how long it took.
    ///
    /// # Errors
    /// Those of the work.
    pub fn time(&mut self, name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        self.figure(name, Unit::Seconds, || {
            let begin = Instant::now();
            work()?;
            Ok(begin.elapsed().as_secs_f64())
        })
    }

    /// Does something and notes how much of it was done in a second; the work says how much that is.
    ///
    /// # Errors
    /// Those of the work.
    pub fn rate(&mut self, name: &str, unit: Unit, work: impl FnOnce() -> Result<f64>) -> Result<()> {
        self.figure(name, unit, || {
            let begin = Instant::now();
            let amount = work()?;
            Ok(amount / begin.elapsed().as_secs_f64().max(1e-9))
        })
    }

    /// Does something that finds its figure itself, and notes that.
    ///
    /// # Errors
    /// Those of the work.
    pub fn figure(&mut self, name: &str, unit: Unit, work: impl FnOnce() -> Result<f64>) -> Result<()> {
        let before = self.candidate.reading()?;
        let value = work()?;
        let cost = self.candidate.reading()?.since(&before);
        self.results.note(self.kind.name(), name, unit, self.candidate.name(), Sample { value, cost });
        Ok(())
    }

    /// Goes on without a row that this candidate cannot have.
    pub fn leave_out(&mut self, name: &str, result: Result<()>) {
        let Err(error) = result else { return };
        let left_out = LeftOut {
            candidate: self.candidate.name().to_owned(),
            workload: Some(format!("{}: {name}", self.kind.name())),
            why: format!("{error:#}").lines().last().unwrap_or_default().to_owned(),
        };
        if !self.results.left_out.contains(&left_out) {
            self.results.left_out.push(left_out);
        }
    }
}

/// Does something again and again for this long at least; how often it was done in a second.
///
/// # Errors
/// Those of the work.
fn repeat(for_at_least: Duration, mut work: impl FnMut() -> Result<usize>) -> Result<f64> {
    let begin = Instant::now();
    let mut done = 0;
    while begin.elapsed() < for_at_least {
        done += work()?;
    }
    Ok(done as f64 / begin.elapsed().as_secs_f64())
}

/// What a thread is to do.
pub(super) type Task<'a, T> = Box<dyn FnOnce() -> Result<T> + Send + 'a>;

/// Runs each of these in a thread of its own; what they give, in their order.
///
/// # Errors
/// The first one's that fails.
pub(super) fn together<T: Send>(work: Vec<Task<'_, T>>) -> Result<Vec<T>> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = work.into_iter().map(|work| scope.spawn(work)).collect();
        // All are waited for before any failure is told.
        let ended: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
        ended.into_iter().map(|end| end.unwrap_or_else(|_| anyhow::bail!("a thread panicked"))).collect()
    })
}

/// Reads a file whole.
fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("reading {}", path.display()))
}
