//! What a client does all day, where many are measured or modelled: the same in both.

use std::sync::LazyLock;

use rand::Rng;
use rand::rngs::SmallRng;
use serde::{Deserialize, Serialize};

/// Files that all clients share.
pub const FILES: usize = 40;
/// Bytes of a file.
pub const SIZE: usize = 8192;
/// Seconds between two deeds, on average.
pub const PAUSE: f64 = 1.0;

/// How often clients write.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Writes {
    /// The share of deeds that write a shared file.
    pub shared: f64,
    /// The share of deeds that write the client's own file.
    pub own: f64,
}

impl Writes {
    /// What most clients do, and what predictions are of.
    pub const USUAL: Writes = Writes { shared: 0.000_2, own: 0.05 };
    /// What many are told of.
    pub const SHARED: Writes = Writes { shared: 0.004, ..Writes::USUAL };
    /// What nobody is told of.
    pub const OWN: Writes = Writes { own: 0.5, ..Writes::USUAL };
}

/// One thing that a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Opens a shared file, reads and closes it.
    Read(usize),
    /// Opens a shared file, writes and closes it.
    WriteShared(usize),
    /// Opens its own file, writes and closes it.
    WriteOwn,
}

/// The sums of the files' weights: the n-th is used an n-th as often as the first (Zipf's law).
static SUMS: LazyLock<Vec<f64>> = LazyLock::new(|| {
    let mut sum = 0.0;
    (1..=FILES)
        .map(|place| {
            sum += 1.0 / place as f64;
            sum
        })
        .collect()
});

/// A file, some more often than others.
fn file(random: &mut SmallRng) -> usize {
    let at = random.random_range(0.0..SUMS[FILES - 1]);
    SUMS.partition_point(|sum| *sum <= at).min(FILES - 1)
}

/// How often a client reads this file in a second.
pub fn read_rate(writes: Writes, file: usize) -> f64 {
    let reads = 1.0 - writes.own - writes.shared;
    reads / PAUSE / (file + 1) as f64 / SUMS[FILES - 1]
}

/// The next thing that is done.
pub fn deed(writes: Writes, random: &mut SmallRng) -> Deed {
    let which: f64 = random.random();
    if which < writes.shared {
        // Any of them: what many read is not what many write.
        Deed::WriteShared(random.random_range(0..FILES))
    } else if which < writes.shared + writes.own {
        Deed::WriteOwn
    } else {
        Deed::Read(file(random))
    }
}

/// What a client writes.
pub fn contents(random: &mut SmallRng) -> u8 {
    random.random()
}

/// How long until then, in seconds: deeds come by themselves, as calls to an exchange.
pub fn pause(random: &mut SmallRng) -> f64 {
    exponential(random, PAUSE)
}

/// How long until what happens by itself once in `mean` seconds.
pub fn exponential(random: &mut SmallRng, mean: f64) -> f64 {
    -mean * (1.0 - random.random::<f64>()).ln()
}

/// That in words.
pub fn told() -> String {
    format!(
        "Each client does something once in {PAUSE} s on average: it opens, reads and closes one of {FILES} shared files of {} \
         KiB, some more often than others (Zipf's law); {} % of the time it writes and closes a file of its own instead, and \
         {} % of the time a shared one.",
        SIZE >> 10,
        Writes::USUAL.own * 100.0,
        Writes::USUAL.shared * 100.0
    )
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn deeds_are_as_often_as_they_are_said_to_be() {
        let mut random = SmallRng::seed_from_u64(1);
        let deeds: Vec<Deed> = (0..400_000).map(|_| deed(Writes::USUAL, &mut random)).collect();
        let share = |which: &dyn Fn(&Deed) -> bool| deeds.iter().filter(|deed| which(deed)).count() as f64 / 400_000.0;
        let near = |is: f64, is_to_be: f64| assert!((is / is_to_be - 1.0).abs() < 0.1, "{is} instead of {is_to_be}");
        let Writes { shared: shared_writes, own } = Writes::USUAL;
        near(share(&|deed| *deed == Deed::WriteOwn), own);
        let shared = share(&|deed| matches!(deed, Deed::WriteShared(_)));
        assert!((shared / shared_writes - 1.0).abs() < 0.5, "{shared}");
        let reads = 1.0 - own - shared_writes;
        near(share(&|deed| *deed == Deed::Read(0)), reads / SUMS[FILES - 1]);
        near(share(&|deed| *deed == Deed::Read(9)), read_rate(Writes::USUAL, 9) * PAUSE);
        near((0..FILES).map(|file| read_rate(Writes::USUAL, file)).sum::<f64>() * PAUSE, reads);
        let pauses: f64 = (0..100_000).map(|_| pause(&mut random)).sum();
        near(pauses / 100_000.0, PAUSE);
    }
}
