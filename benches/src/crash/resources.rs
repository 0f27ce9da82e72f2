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
/// When a process that lives long has all that it needs for its work: what it has more at the end has grown.
pub const SETTLED: Duration = Duration::from_secs(300);
/// Bytes of memory by which a process may grow after that.
pub const GROWTH: u64 = 32 << 20;
/// Samples until only every other one is kept.
const SAMPLES: usize = 512;

/// What a process uses at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Since the round's beginning.
    pub at: Duration,
    /// Bytes in memory (resident set).
    pub memory: u64,
    /// Open descriptors, but for those of contents that are there: a server keeps them, and the files that a client has
    /// removed just before it died are there for another day.
    pub files: u64,
}

/// Whether a descriptor is of a content file, which is there.
fn is_of_contents(target: &Path) -> bool {
    target.components().any(|part| part.as_os_str() == "content") && target.is_file()
}

impl Sample {
    /// What this process uses now. `None` if it is gone.
    pub fn of(process: u32, at: Duration) -> Option<Sample> {
        let status = fs::read_to_string(format!("/proc/{process}/statm")).ok()?;
        let pages: u64 = status.split_ascii_whitespace().nth(1)?.parse().ok()?;
        let targets =
            fs::read_dir(format!("/proc/{process}/fd")).ok()?.map(|entry| fs::read_link(entry.ok()?.path()).ok());
        let files = targets.filter(|target| !target.as_deref().is_some_and(is_of_contents)).count() as u64;
        Some(Sample { at, memory: pages * rustix::param::page_size() as u64, files })
    }
}

/// Samples over time, the first one among them: of many every other one, or fewer.
#[derive(Clone, Debug)]
pub struct Thinned<T> {
    kept: Vec<T>,
    /// Of so many one is kept.
    step: usize,
    skipped: usize,
}

impl<T> Default for Thinned<T> {
    fn default() -> Thinned<T> {
        Thinned { kept: Vec::new(), step: 1, skipped: 0 }
    }
}

impl<T> Thinned<T> {
    /// Adds one.
    pub fn add(&mut self, sample: T) {
        self.skipped += 1;
        if self.skipped < self.step && !self.kept.is_empty() {
            return;
        }
        self.skipped = 0;
        self.kept.push(sample);
        if self.kept.len() > SAMPLES {
            let mut index = 0;
            self.kept.retain(|_| {
                index += 1;
                index % 2 == 1
            });
            self.step *= 2;
        }
    }

    /// Those that are kept.
    pub fn kept(&self) -> &[T] {
        &self.kept
    }
}

/// One process after the other in a place.
#[derive(Clone, Copy, Debug)]
struct Life {
    process: u32,
    began: Duration,
    /// What it used when it had what it needs.
    settled: Option<Sample>,
}

/// What the processes in one place use over time.
#[derive(Clone, Debug)]
pub struct Curve {
    /// Which process.
    pub who: String,
    /// All of the round.
    pub samples: Thinned<Sample>,
    /// The most there ever was of each.
    pub most: Sample,
    first: Sample,
    last: Sample,
    life: Life,
}

impl Curve {
    /// A curve that begins with this process.
    pub fn new(who: String, process: u32, first: Sample) -> Curve {
        let life = Life { process, began: first.at, settled: None };
        let mut samples = Thinned::default();
        samples.add(first);
        Curve { who, samples, most: first, first, last: first, life }
    }

    /// What there was first.
    pub fn first(&self) -> Sample {
        self.first
    }

    /// What there was last.
    pub fn last(&self) -> Sample {
        self.last
    }

    /// Adds what the process in this place uses by now.
    pub fn add(&mut self, process: u32, sample: Sample) {
        if process != self.life.process {
            self.life = Life { process, began: sample.at, settled: None };
        }
        if sample.at.saturating_sub(self.life.began) >= SETTLED {
            self.life.settled.get_or_insert(sample);
        }
        self.most.memory = self.most.memory.max(sample.memory);
        self.most.files = self.most.files.max(sample.files);
        self.last = sample;
        self.samples.add(sample);
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
        let settled = self.life.settled?;
        let grown = last.memory.saturating_sub(settled.memory);
        (grown > GROWTH).then(|| {
            let (mib, after, time) = (last.memory >> 20, settled.memory >> 20, last.at - settled.at);
            format!("{mib} MiB of memory, and had {after} at work {time:.0?} ago")
        })
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

    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;

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
    fn descriptors_of_contents_count_when_these_are_gone() {
        let dir = scratch().unwrap();
        let contents = dir.path().join("content/00/1");
        fs::create_dir_all(contents.parent().unwrap()).unwrap();
        fs::write(&contents, "x").unwrap();
        let mut reader = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(fs::File::open(&contents).unwrap())
            .spawn()
            .unwrap();
        // A program that answers has done with the libraries that it opens at its start.
        reader.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        reader.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let count = || Sample::of(reader.id(), Duration::ZERO).map_or(0, |sample| sample.files);
        let there = count();
        let other = fs::File::create(dir.path().join("other")).unwrap();
        assert!(!is_of_contents(&fs::read_link(format!("/proc/self/fd/{}", other.as_raw_fd())).unwrap()));
        fs::remove_file(contents).unwrap();
        let gone = count();
        reader.kill().unwrap();
        reader.wait().unwrap();
        assert!(there >= 2 && gone == there + 1, "{there}, {gone}");
    }

    #[test]
    fn a_long_curve_stays_short_and_keeps_its_ends_and_its_most() {
        let sample = |n: u64| Sample { at: Duration::from_secs(n), memory: n << 20, files: 10 };
        let mut curve = Curve::new("server".to_owned(), 1, sample(0));
        (1..100_000).for_each(|n| curve.add(1, sample(n % 50_000)));
        let kept = curve.samples.kept();
        assert!((SAMPLES / 2..=SAMPLES).contains(&kept.len()) && kept[0] == sample(0));
        assert_eq!((curve.first(), curve.last(), curve.most.memory), (sample(0), sample(49_999), 49_999 << 20));
    }

    #[test]
    fn what_is_left_behind_is_noticed() {
        let first = Sample { at: Duration::ZERO, memory: 50 << 20, files: 30 };
        let excess = |memory, files| {
            let mut curve = Curve::new("server".to_owned(), 1, first);
            // What was used meanwhile does not matter.
            curve.add(1, Sample { at: Duration::ZERO, memory: 4 << 30, files: 4000 });
            curve.add(1, Sample { at: Duration::ZERO, memory, files });
            curve.excess()
        };
        assert_eq!(excess(first.memory + MORE_MEMORY, first.files + MORE_FILES), None);
        assert!(excess(first.memory + MORE_MEMORY + 1, first.files).is_some());
        assert!(excess(first.memory, first.files + MORE_FILES + 1).is_some());
    }

    #[test]
    fn a_process_that_lives_long_may_not_grow() {
        let sample = |at: Duration, memory| Sample { at, memory, files: 10 };
        let excess = |ends_as, grown| {
            let first = 30 << 20;
            let mut curve = Curve::new("server".to_owned(), 1, sample(Duration::ZERO, first));
            curve.add(1, sample(SETTLED, first * 2));
            curve.add(1, sample(SETTLED * 2, first * 3));
            curve.add(ends_as, sample(SETTLED * 4, first * 2 + grown));
            curve.excess()
        };
        assert_eq!(excess(1, GROWTH), None);
        assert!(excess(1, GROWTH + 1).is_some_and(|what| what.contains("900s ago")));
        assert_eq!(excess(2, GROWTH + 1), None, "another process begins anew");
    }
}
