//! How far a run is, for who waits for it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};

/// How often it is told where nobody looks at a terminal.
const TOLD: Duration = Duration::from_secs(15);

/// A bar on a terminal; elsewhere a line now and then.
pub struct Progress {
    bar: ProgressBar,
    told: Instant,
    is_silent: bool,
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
        Ok(Progress { bar, told: Instant::now(), is_silent: false })
    }

    /// Of what is a step of something else, which tells how far it is.
    pub fn silent() -> Progress {
        Progress { bar: ProgressBar::hidden(), told: Instant::now(), is_silent: true }
    }

    /// The next step begins.
    pub fn begin(&mut self, what: String) {
        if !self.is_silent && self.bar.is_hidden() && self.told.elapsed() > TOLD {
            eprintln!("{}/{} {what}", self.bar.position(), self.bar.length().unwrap_or_default());
            self.told = Instant::now();
        }
        self.bar.set_message(what);
    }

    /// It is done.
    pub fn done(&self) {
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
