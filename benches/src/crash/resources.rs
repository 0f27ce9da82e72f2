//! What processes use while things break: memory and descriptors.

use std::fs;
use std::path::Path;
use std::time::Duration;

use std::os::unix::fs::MetadataExt;

/// Descriptors that a process may have, when all files are removed, beyond those it had at first: connections that are
/// kept for the next request, and those to a database.
pub const MORE_FILES: u64 = 24;
/// Bytes of memory that a process may have at the end beyond what it had at first: what caches and allocators keep.
pub const MORE_MEMORY: u64 = 192 << 20;
/// Samples of a process until only every other one is kept.
const SAMPLES: usize = 512;

/// What a process uses at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Since the round's beginning.
    pub at: Duration,
    /// Bytes in memory (resident set).
    pub memory: u64,
    /// Open descriptors.
    pub files: u64,
}

impl Sample {
    /// What this process uses now. `None` if it is gone.
    pub fn of(process: u32, at: Duration) -> Option<Sample> {
        let status = fs::read_to_string(format!("/proc/{process}/statm")).ok()?;
        let pages: u64 = status.split_ascii_whitespace().nth(1)?.parse().ok()?;
        let files = fs::read_dir(format!("/proc/{process}/fd")).ok()?.count() as u64;
        Some(Sample { at, memory: pages * rustix::param::page_size() as u64, files })
    }
}

/// What the processes in one place use over time.
#[derive(Clone, Debug)]
pub struct Curve {
    /// Which process.
    pub who: String,
    /// All of the round, with the first one and the last one.
    pub samples: Vec<Sample>,
    /// The most there ever was of each.
    pub most: Sample,
    /// Of so many samples one is kept.
    step: usize,
    skipped: usize,
    last: Sample,
}

impl Curve {
    /// A curve that begins with this.
    pub fn new(who: String, first: Sample) -> Curve {
        Curve { who, samples: vec![first], most: first, step: 1, skipped: 0, last: first }
    }

    /// What there was first.
    pub fn first(&self) -> Sample {
        self.samples[0]
    }

    /// What there was last.
    pub fn last(&self) -> Sample {
        self.last
    }

    /// Adds a sample.
    pub fn add(&mut self, sample: Sample) {
        self.most.memory = self.most.memory.max(sample.memory);
        self.most.files = self.most.files.max(sample.files);
        self.last = sample;
        self.skipped += 1;
        if self.skipped < self.step {
            return;
        }
        self.skipped = 0;
        self.samples.push(sample);
        if self.samples.len() > SAMPLES {
            let mut index = 0;
            self.samples.retain(|_| {
                index += 1;
                index % 2 == 1
            });
            self.step *= 2;
        }
    }

    /// What there is too much of at the end.
    pub fn excess(&self) -> Option<String> {
        let (first, last) = (self.first(), self.last());
        if last.files > first.files + MORE_FILES {
            return Some(format!("{} descriptors, where it had {}", last.files, first.files));
        }
        if last.memory > first.memory + MORE_MEMORY {
            return Some(format!("{} MiB of memory, where it had {}", last.memory >> 20, first.memory >> 20));
        }
        None
    }
}

/// What the descriptors of a process are, and how many there are of each kind: numbers in names are left out.
pub fn descriptors(process: u32) -> String {
    let mut kinds = std::collections::BTreeMap::<String, usize>::new();
    let entries = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
    for target in entries.filter_map(|entry| fs::read_link(entry.path()).ok()) {
        let mut name = target.to_string_lossy().into_owned();
        // Files of a directory are of a kind.
        if let Some((directory, _)) = name.rsplit_once('/').filter(|_| name.chars().any(|c| c.is_ascii_digit())) {
            name = format!("{directory}/");
        }
        name.retain(|c| !c.is_ascii_digit());
        *kinds.entry(name).or_default() += 1;
    }
    let mut kinds: Vec<_> = kinds.into_iter().map(|(name, count)| (count, name)).collect();
    kinds.sort_unstable_by(|a, b| b.cmp(a));
    kinds.iter().take(6).map(|(count, name)| format!("{count} {name}")).collect::<Vec<_>>().join(", ")
}

/// Bytes on the disk of all files in a directory, at any depth. What vanishes meanwhile is not there.
pub fn size(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let of = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => size(&entry.path()),
        Ok(metadata) if metadata.is_file() => metadata.blocks() * 512,
        _ => 0,
    };
    entries.flatten().map(of).sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

    use super::*;
    use crate::process::scratch;

    #[test]
    fn descriptors_and_memory_of_a_process_are_counted() {
        let before = Sample::of(std::process::id(), Duration::ZERO).unwrap();
        let dir = scratch().unwrap();
        // Other tests open and close files beside this one.
        let files: Vec<_> = (0..500).map(|i| fs::File::create(dir.path().join(i.to_string())).unwrap()).collect();
        let memory = std::hint::black_box(vec![1u8; 64 << 20]);
        let after = Sample::of(std::process::id(), Duration::ZERO).unwrap();
        assert!(descriptors(std::process::id()).contains("larder-test-"), "the directory they are in");
        assert!(after.files > before.files + 400, "{before:?} {after:?}");
        assert!(after.memory > before.memory + (32 << 20), "{before:?} {after:?}");
        drop((files, memory));
        fs::write(dir.path().join("0"), [7; 100_000]).unwrap();
        assert!((100_000..200_000).contains(&size(dir.path())));
        assert_eq!(Sample::of(u32::MAX >> 1, Duration::ZERO), None);
    }

    #[test]
    fn a_long_curve_stays_short_and_keeps_its_ends_and_its_most() {
        let sample = |n: u64| Sample { at: Duration::from_secs(n), memory: n << 20, files: 10 };
        let mut curve = Curve::new("server".to_owned(), sample(0));
        (1..100_000).for_each(|n| curve.add(sample(n % 50_000)));
        assert!(curve.samples.len() <= SAMPLES);
        assert_eq!((curve.first(), curve.last(), curve.most.memory), (sample(0), sample(49_999), 49_999 << 20));
    }

    #[test]
    fn what_is_left_behind_is_noticed() {
        let first = Sample { at: Duration::ZERO, memory: 50 << 20, files: 30 };
        let excess = |memory, files| {
            let mut curve = Curve::new("server".to_owned(), first);
            // What was used meanwhile does not matter.
            curve.add(Sample { at: Duration::ZERO, memory: 4 << 30, files: 4000 });
            curve.add(Sample { at: Duration::ZERO, memory, files });
            curve.excess()
        };
        assert_eq!(excess(first.memory + MORE_MEMORY, first.files + MORE_FILES), None);
        assert!(excess(first.memory + MORE_MEMORY + 1, first.files).is_some());
        assert!(excess(first.memory, first.files + MORE_FILES + 1).is_some());
    }
}
