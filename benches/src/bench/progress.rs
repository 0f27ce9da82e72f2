//! How far a run is, for who waits for it.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};

use crate::lock;

/// How often it is told where nobody looks at a terminal.
const TOLD: Duration = Duration::from_secs(15);

/// How long a step may take. A mount that does not answer would hold up everything for ever.
const PATIENCE: Duration = Duration::from_secs(30 * 60);

/// The step that is under way, and since when.
type Step = Arc<Mutex<Option<(Instant, String)>>>;

/// A bar on a terminal; elsewhere a line now and then. A step that takes too long ends the process: what was measured before
/// is in the file by then, and what was started ends with the namespace.
pub struct Progress {
    bar: ProgressBar,
    told: Instant,
    is_silent: bool,
    step: Step,
    /// Ends the thread that watches it.
    _watched: Sender<()>,
}

/// Watches the steps.
fn watch(step: &Step) -> Sender<()> {
    let (sender, ended) = mpsc::channel::<()>();
    let step = Arc::clone(step);
    std::thread::spawn(move || {
        while ended.recv_timeout(Duration::from_secs(5)) == Err(RecvTimeoutError::Timeout) {
            if let Some((since, what)) = &*lock(&step)
                && since.elapsed() > PATIENCE
            {
                eprintln!("bench: {what}: it is not done after {} minutes; giving up", PATIENCE.as_secs() / 60);
                std::process::exit(3);
            }
        }
    });
    sender
}

impl Progress {
    /// Of so many steps.
    ///
    /// # Errors
    /// If the bar's looks are none.
    pub fn new(steps: usize) -> Result<Progress> {
        let bar = ProgressBar::new(steps as u64);
        let looks = "{elapsed_precise} {bar:30} {pos}/{len} {msg}";
        bar.set_style(ProgressStyle::with_template(looks).context("the bar's template")?);
        Ok(Progress::of(bar, false))
    }

    /// Of what is a step of something else, which tells how far it is.
    pub fn silent() -> Progress {
        Progress::of(ProgressBar::hidden(), true)
    }

    fn of(bar: ProgressBar, is_silent: bool) -> Progress {
        let step = Step::default();
        let watched = watch(&step);
        Progress { bar, told: Instant::now(), is_silent, step, _watched: watched }
    }

    /// The next step begins.
    pub fn begin(&mut self, what: String) {
        if !self.is_silent && self.bar.is_hidden() && self.told.elapsed() > TOLD {
            eprintln!("{}/{} {what}", self.bar.position(), self.bar.length().unwrap_or_default());
            self.told = Instant::now();
        }
        *lock(&self.step) = Some((Instant::now(), what.clone()));
        self.bar.set_message(what);
    }

    /// It is done.
    pub fn done(&self) {
        *lock(&self.step) = None;
        self.bar.inc(1);
    }

    /// Something to be read besides.
    pub fn say(&self, what: &str) {
        self.bar.suspend(|| eprintln!("{what}"));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
