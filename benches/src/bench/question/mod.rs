//! What depends on what, and how much: the questions that a table of workloads does not answer.
//!
//! Each starts servers and clients of its own, set up as it needs them, and leaves [plots](super::results::Plot).

mod attributes;
mod caching;
mod distance;
mod lease;
pub mod load;
mod path;
mod staleness;

use std::path::Path;

use anyhow::Result;
use clap::ValueEnum;

use super::inputs::Scale;
use super::progress::Progress;
use super::results::{LeftOut, Results};
use super::workload::{Task, together};
use crate::mount::Mode;

/// The questions by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Question {
    /// What share of the requests only asks whether attributes have changed, by how long they may be used
    Attributes,
    /// How long it takes until one client sees what another has closed
    Staleness,
    /// What clients cost the server, by how many there are (without mounts)
    Load,
    /// How long a change waits, by the term of leases, with all clients alive and with one dead
    Lease,
    /// Whole files against blocks, by the size of files and by the part that is read
    Caching,
    /// Work on a tree, small files and sqlite, by how far away the server is
    Distance,
    /// How long single requests take, beside what FUSE and tarpc take by themselves
    Path,
}

impl Question {
    /// Its name, as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Question::Attributes => "attributes",
            Question::Staleness => "staleness",
            Question::Load => "load",
            Question::Lease => "lease",
            Question::Caching => "caching",
            Question::Distance => "distance",
            Question::Path => "path",
        }
    }

    /// Finds the answer.
    ///
    /// # Errors
    /// If a server or a client fails.
    fn ask(self, asking: &mut Asking<'_>) -> Result<()> {
        match self {
            Question::Attributes => attributes::ask(asking),
            Question::Staleness => staleness::ask(asking),
            Question::Load => load::ask(asking),
            Question::Lease => lease::ask(asking),
            Question::Caching => caching::ask(asking),
            Question::Distance => distance::ask(asking),
            Question::Path => path::ask(asking),
        }
    }
}

/// What a question is asked with, and where its answer goes.
pub struct Asking<'a> {
    /// Where servers and clients have what is theirs.
    pub dir: &'a Path,
    /// How much is measured.
    pub scale: Scale,
    /// The modes it is asked of.
    pub modes: &'a [Mode],
    /// How often each thing is measured.
    pub rounds: usize,
    /// The answers.
    pub results: &'a mut Results,
}

/// Asks all of these. A question that fails is left out, with its reason; results are written after each.
///
/// # Errors
/// If results cannot be written.
pub fn ask(questions: &[Question], asking: &mut Asking<'_>, results: &Path) -> Result<()> {
    for question in questions {
        eprintln!("asking for {}", question.name());
        if let Err(error) = question.ask(asking) {
            let why = format!("{error:#}").split_whitespace().collect::<Vec<_>>().join(" ");
            eprintln!("note: {} is not answered: {why}", question.name());
            let (candidate, workload) = ("Larder".to_owned(), Some(question.name().to_owned()));
            asking.results.left_out.push(LeftOut { candidate, workload, why });
        }
        asking.results.write(results)?;
    }
    Ok(())
}

/// Does the same with each of these, one after the other.
fn each<T: Copy>(all: &[T], told: impl Fn(T) -> String, mut work: impl FnMut(T) -> Result<()>) -> Result<()> {
    let mut progress = Progress::new(all.len())?;
    for one in all {
        progress.begin(told(*one));
        work(*one)?;
        progress.done();
    }
    Ok(())
}

/// Does the same with each of these at once: where what is measured is not the machine.
fn at_once<T: Copy + Sync, R: Send>(all: &[T], work: impl Fn(T) -> Result<R> + Sync) -> Result<Vec<R>> {
    let work = &work;
    together(all.iter().map(|one| -> Task<'_, R> { Box::new(move || work(*one)) }).collect())
}
