//! What a world came to, as one number: two runs of a seed that differ anywhere differ in it.

use std::fmt::{self, Debug, Write};
use std::hash::{DefaultHasher, Hasher};

/// A digest that is being made.
#[derive(Debug, Default)]
pub struct Digest(DefaultHasher);

impl Digest {
    /// Takes in all that this shows of itself.
    ///
    /// What has no order of its own (a `HashMap`) must not be in it.
    pub fn note(&mut self, what: &impl Debug) {
        write!(self, "{what:?};").expect("a digest takes everything");
    }

    /// The digest of all that was noted.
    pub fn value(&self) -> u64 {
        self.0.finish()
    }
}

impl Write for Digest {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}

/// What has a digest.
pub trait Digested: Debug {
    /// The digest of all that happened: what this shows of itself, where it does not keep one made on the way.
    fn digest(&self) -> u64 {
        let mut digest = Digest::default();
        digest.note(&self);
        digest.value()
    }
}
