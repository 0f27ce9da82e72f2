//! What a client does all day, where many are measured or modelled: the same in both.

use std::sync::LazyLock;

use rand::Rng;
use rand::rngs::SmallRng;

/// Files that all clients share.
pub const FILES: usize = 40;
/// Bytes of a file.
pub const SIZE: usize = 8192;
/// Seconds between two deeds, on average.
pub const PAUSE: f64 = 1.0;
/// The share of deeds that write a shared file.
pub const SHARED_WRITES: f64 = 0.000_2;
/// The share of deeds that write the client's own file.
pub const OWN_WRITES: f64 = 0.05;

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
pub fn read_rate(file: usize) -> f64 {
    let reads = 1.0 - OWN_WRITES - SHARED_WRITES;
    reads / PAUSE / (file + 1) as f64 / SUMS[FILES - 1]
}

/// The next thing that is done.
pub fn deed(random: &mut SmallRng) -> Deed {
    let which: f64 = random.random();
    if which < SHARED_WRITES {
        // Any of them: what many read is not what many write.
        Deed::WriteShared(random.random_range(0..FILES))
    } else if which < SHARED_WRITES + OWN_WRITES {
        Deed::WriteOwn
    } else {
        Deed::Read(file(random))
    }
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
        OWN_WRITES * 100.0,
        SHARED_WRITES * 100.0
    )
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn deeds_are_as_often_as_they_are_said_to_be() {
        let mut random = SmallRng::seed_from_u64(1);
        let deeds: Vec<Deed> = (0..400_000).map(|_| deed(&mut random)).collect();
        let share = |which: &dyn Fn(&Deed) -> bool| deeds.iter().filter(|deed| which(deed)).count() as f64 / 400_000.0;
        let near = |is: f64, is_to_be: f64| assert!((is / is_to_be - 1.0).abs() < 0.1, "{is} instead of {is_to_be}");
        near(share(&|deed| *deed == Deed::WriteOwn), OWN_WRITES);
        let shared = share(&|deed| matches!(deed, Deed::WriteShared(_)));
        assert!((shared / SHARED_WRITES - 1.0).abs() < 0.5, "{shared}");
        let reads = 1.0 - OWN_WRITES - SHARED_WRITES;
        near(share(&|deed| *deed == Deed::Read(0)), reads / SUMS[FILES - 1]);
        near(share(&|deed| *deed == Deed::Read(9)), read_rate(9) * PAUSE);
        near((0..FILES).map(read_rate).sum::<f64>() * PAUSE, reads);
        let pauses: f64 = (0..100_000).map(|_| pause(&mut random)).sum();
        near(pauses / 100_000.0, PAUSE);
    }
}
