//! How much a test does, set for a whole run by the environment variable `LARDER_TEST_SIZE`.

/// How much to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// A smoke test: everything runs, briefly.
    Quick,
    /// What continuous integration can afford.
    Ci,
    /// The full figures of the release criteria.
    Full,
}

impl Size {
    /// What `LARDER_TEST_SIZE` says: `quick`, `ci` (also when it is not set) or `full`.
    ///
    /// # Panics
    /// With any other value, so that a misspelt one does not pass for a full run.
    pub fn get() -> Size {
        match std::env::var("LARDER_TEST_SIZE").as_deref() {
            Err(_) | Ok("" | "ci") => Size::Ci,
            Ok("quick") => Size::Quick,
            Ok("full") => Size::Full,
            Ok(other) => panic!("LARDER_TEST_SIZE={other}: not one of quick, ci, full"),
        }
    }

    /// The one of three numbers that belongs to this size.
    pub fn pick(self, quick: usize, ci: usize, full: usize) -> usize {
        match self {
            Size::Quick => quick,
            Size::Ci => ci,
            Size::Full => full,
        }
    }
}
