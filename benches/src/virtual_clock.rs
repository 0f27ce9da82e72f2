//! The time that code sees which asks the system for it, while its thread runs a world in virtual time.
//!
//! Nearly all code gets its clocks from the runtime seam. What does not, above all the deadlines that tarpc computes
//! with, would bring the machine's time into a world, and with it whatever else the machine is busy with: no seed would
//! give the same world twice. A test target that runs worlds therefore replaces `clock_gettime`, which the standard
//! library calls, with the help of this.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// What the clock shows when a world begins, so that times before that can be computed with.
const START: Duration = Duration::from_secs(1_700_000_000);

thread_local! {
    /// Whether this thread runs a world.
    static IS_VIRTUAL: Cell<bool> = const { Cell::new(false) };
    /// When the world began.
    static BEGAN: Cell<Option<Instant>> = const { Cell::new(None) };
    /// The time that was seen last.
    static LAST: Cell<Duration> = const { Cell::new(START) };
    /// Whether tokio is being asked, which may ask the system in turn.
    static IS_ASKING: Cell<bool> = const { Cell::new(false) };
}

/// The time since an arbitrary start, if this thread runs a world. Every system clock of it shows this.
pub fn now() -> Option<Duration> {
    if !IS_VIRTUAL.get() {
        return None;
    }
    if let Some(began) = BEGAN.get()
        && !IS_ASKING.replace(true)
    {
        // Outside of its executor tokio asks the system, which is this: then the time is as it was.
        LAST.set(START + tokio::time::Instant::now().into_std().saturating_duration_since(began));
        IS_ASKING.set(false);
    }
    Some(LAST.get())
}

/// Makes the time of this thread virtual until this is dropped.
pub(crate) struct Virtual(());

impl Virtual {
    pub(crate) fn begin() -> Virtual {
        IS_VIRTUAL.set(true);
        LAST.set(START);
        // Where `clock_gettime` was not replaced this is the machine's, and nobody asks for more.
        BEGAN.set(Some(Instant::now()));
        Virtual(())
    }
}

impl Drop for Virtual {
    fn drop(&mut self) {
        IS_VIRTUAL.set(false);
        BEGAN.set(None);
    }
}
