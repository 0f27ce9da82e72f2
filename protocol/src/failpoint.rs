//! Places at which tests let a process die, or make it do what it must not.
//!
//! Only a build with the feature `failpoints` has them; elsewhere all of this is nothing. There the environment variable
//! `FAILPOINTS` says which are on, in the language of the crate `fail`: `store::batch::committed=return`, or
//! `afs::store::piece=2*off->return` for the third time that it is passed. The places at which a server or a client can die
//! are listed by each with what must survive that; the bugs that can be planted are [`Planted`].

/// Reads `FAILPOINTS`. Before other threads begin.
pub fn set_up() {
    #[cfg(feature = "failpoints")]
    std::mem::forget(fail::FailScenario::setup());
}

/// The process is at this place, and dies as by `kill -9` if it is to.
#[cfg(feature = "failpoints")]
pub fn pass(name: &str) {
    fail::fail_point!(name, |_| {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        // Until it is delivered nothing more may happen.
        loop {
            std::thread::park();
        }
    });
}

/// Nothing: this build has no failpoints.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn pass(_name: &str) {}

/// By how many seconds the wall clock is wrong: what the file says that the environment variable `LARDER_WALL_CLOCK` names,
/// each time anew.
#[cfg(feature = "failpoints")]
pub fn wall_clock_is_off_by() -> i64 {
    let Some(file) = std::env::var_os("LARDER_WALL_CLOCK") else { return 0 };
    std::fs::read_to_string(file).ok().and_then(|said| said.trim().parse().ok()).unwrap_or(0)
}

/// By none: this build has no failpoints.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub const fn wall_clock_is_off_by() -> i64 {
    0
}

/// Which boot of the machine this is, if the environment variable `LARDER_BOOT` says so: for tests that cut the power of a
/// disk only.
#[cfg(feature = "failpoints")]
pub fn boot() -> Option<std::num::NonZeroU64> {
    std::env::var("LARDER_BOOT").ok()?.parse().ok()
}

/// What the machine says: this build has no failpoints.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub const fn boot() -> Option<std::num::NonZeroU64> {
    None
}

/// A bug that tests plant on purpose: whatever looks for such bugs must find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// The server answers before what it acknowledges is synced.
    AcknowledgeEarly,
    /// The server forgets what a mutation came to, so that its retry is carried out again.
    ForgetSlot,
    /// The server changes an object without breaking others' callbacks on it.
    SkipBreak,
    /// A server that was restarted does not wait for clients with leases of the process before.
    IgnoreGrace,
    /// A volume that is opened again does not raise its incarnation.
    ReuseGeneration,
    /// A client takes parts of different versions of a file for one.
    MixVersions,
    /// A client drops the error of a close or an fsync.
    DropFlushError,
    /// A client that was restarted takes what its cache has of a file for the newest version.
    TrustCache,
    /// The server carries out what comes on a connection that a newer one has taken over.
    ServeFenced,
    /// A client counts on a lease for a second longer than it may.
    LeaseOffByOne,
}

impl Planted {
    /// Its name in `FAILPOINTS`.
    pub const fn name(self) -> &'static str {
        match self {
            Planted::AcknowledgeEarly => "planted::acknowledge-early",
            Planted::ForgetSlot => "planted::forget-slot",
            Planted::SkipBreak => "planted::skip-break",
            Planted::IgnoreGrace => "planted::ignore-grace",
            Planted::ReuseGeneration => "planted::reuse-generation",
            Planted::MixVersions => "planted::mix-versions",
            Planted::DropFlushError => "planted::drop-flush-error",
            Planted::TrustCache => "planted::trust-cache",
            Planted::ServeFenced => "planted::serve-fenced",
            Planted::LeaseOffByOne => "planted::lease-off-by-one",
        }
    }

    /// Whether it is planted.
    #[cfg(feature = "failpoints")]
    pub fn is_on(self) -> bool {
        fail::fail_point!(self.name(), |_| true);
        false
    }

    /// Never: this build has no such bugs.
    #[cfg(not(feature = "failpoints"))]
    #[inline(always)]
    pub const fn is_on(self) -> bool {
        false
    }
}
