//! Files that a worker writes again and again, and that all others read: what they read is never older than what was
//! acknowledged, and is what was written.
//!
//! A version is written whole, block by block in order, and then synced. A small register is one block, which must be of
//! one version in every mode. A large one has many blocks: where both the writer and the reader are in `afs` mode, all that
//! is read is of one version that was closed, but for what a client that died had written and not closed, which its next
//! life stores. Else it may be a mix, as of NFS, but of whole blocks, each of them at least as
//! new as what was acknowledged before the file was opened, and none newer than what was begun.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::Rng;
use rand::rngs::SmallRng;

use super::{Broken, Workload, kept, kind_of_mount, none_if_missing, open_shared, pattern};

/// A file, and what its writer was told.
#[derive(Debug)]
pub(super) struct Register {
    name: &'static str,
    /// Bytes of a block: at most a page.
    block: usize,
    blocks: usize,
    /// Between two uses, at most.
    rest: Duration,
    acked: AtomicU64,
    tried: AtomicU64,
    /// The last version whose writer's client died before it was acknowledged.
    cut: AtomicU64,
}

/// Bytes that are read and written at once: one request of `direct` mode.
const AT_ONCE: usize = 256 << 10;
/// How late a writer may be to say that it was cut off.
const LATE: Duration = Duration::from_millis(if cfg!(test) { 300 } else { 10_000 });
/// Versions of a register: the number of a block's pattern says which one it is of, and which block it is.
const VERSIONS: u64 = 1 << 32;

impl Register {
    /// One request of any mode.
    pub(super) fn small() -> Register {
        Register::new("register", 512, 1, Duration::from_millis(4))
    }

    /// Many requests of any mode.
    pub(super) fn large() -> Register {
        Register::new("large-register", 4096, 768, Duration::from_millis(400))
    }

    fn new(name: &'static str, block: usize, blocks: usize, rest: Duration) -> Register {
        Register {
            name,
            block,
            blocks,
            rest,
            acked: AtomicU64::new(0),
            tried: AtomicU64::new(0),
            cut: AtomicU64::new(0),
        }
    }

    fn version(&self, version: u64) -> Vec<u8> {
        let block = |index: usize| pattern(index as u64 * VERSIONS + version, self.block);
        (0..self.blocks).flat_map(block).collect()
    }
}

/// A worker's use of one.
pub(super) struct RegisterUse {
    register: Arc<Register>,
    writes: bool,
    /// What is read is of one version.
    is_whole: bool,
    done: u64,
}

impl RegisterUse {
    /// Its only writer.
    pub(super) fn writer(register: Arc<Register>) -> RegisterUse {
        RegisterUse { register, writes: true, is_whole: false, done: 0 }
    }

    /// One of its readers. `is_whole` says that no mix may be read.
    pub(super) fn reader(register: Arc<Register>, is_whole: bool) -> RegisterUse {
        RegisterUse { register, writes: false, is_whole, done: 0 }
    }

    fn write(&self, dir: &Path, version: u64) -> io::Result<()> {
        let file = open_shared(dir, self.register.name)?;
        for (index, bytes) in self.register.version(version).chunks(AT_ONCE).enumerate() {
            file.write_all_at(bytes, (index * AT_ONCE) as u64)?;
        }
        file.sync_all()?;
        crate::process::close(file)
    }

    /// Reads it. All that was acknowledged before the file was opened is in it (C3).
    fn read(&self, dir: &Path) -> io::Result<Result<(), Broken>> {
        let register = &*self.register;
        let acked = register.acked.load(Ordering::SeqCst);
        // All workers share the volume's root.
        let Some(file) = none_if_missing(File::open(dir.join("..").join(register.name)))? else {
            return Ok(if acked == 0 { Ok(()) } else { Err(format!("{} is gone at version {acked}", register.name)) });
        };
        // One more than there can be.
        let mut bytes = vec![0; register.block * register.blocks + 1];
        let mut len = 0;
        while len < bytes.len() {
            // Not more: the kernel divides it in the middle of blocks where a buffer does not begin with a page.
            let end = bytes.len().min(len + AT_ONCE);
            match file.read_at(&mut bytes[len..end], len as u64)? {
                0 => break,
                more => len += more,
            }
        }
        bytes.truncate(len);
        let tried = register.tried.load(Ordering::SeqCst);
        let verdict = |is_whole| self.verdict(&bytes, acked, tried, is_whole);
        let strict = verdict(self.is_whole);
        if strict.is_ok() || !self.is_whole {
            return Ok(strict);
        }
        // The writer says so once its call has failed, which is before its next mount; unless it is late.
        let begin = Instant::now();
        while register.cut.load(Ordering::SeqCst) <= acked {
            if begin.elapsed() > LATE {
                return Ok(strict);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(verdict(false))
    }

    fn verdict(&self, bytes: &[u8], acked: u64, tried: u64, is_whole: bool) -> Result<(), Broken> {
        let Register { name, block, blocks, .. } = *self.register;
        // Before the first version is there whole, it may be shorter.
        let is_len = match bytes.len() {
            0 => acked == 0,
            len if acked == 0 && !is_whole => len <= block * blocks,
            len => len == block * blocks,
        };
        if !is_len || !bytes.len().is_multiple_of(block) {
            return Err(format!("{name} has {} bytes", bytes.len()));
        }
        let mut first = None;
        for (index, bytes) in bytes.chunks(block).enumerate() {
            let number = bytes.first_chunk().map_or(0, |number| u64::from_le_bytes(*number));
            let version = number % VERSIONS;
            let is_hole = acked == 0 && !is_whole && bytes.iter().all(|byte| *byte == 0);
            if is_hole {
                continue;
            }
            if number / VERSIONS != index as u64 || pattern(number, block) != bytes {
                return Err(format!("block {index} of {name} is none that was written ({number:#x})"));
            }
            if version < acked {
                return Err(format!("{name}: version {version} was read after version {acked} was acknowledged"));
            }
            if version > tried {
                return Err(format!("{name}: version {version} before it was written"));
            }
            let first = *first.get_or_insert(version);
            if is_whole && first != version {
                return Err(format!("{name}: block {index} is of version {version}, the first one of {first}"));
            }
        }
        Ok(())
    }
}

impl Workload for RegisterUse {
    fn name(&self) -> &'static str {
        match (self.register.blocks, self.writes) {
            (1, true) => "register writer",
            (1, false) => "register reader",
            (_, true) => "large register writer",
            (_, false) => "large register reader",
        }
    }

    fn step(&mut self, dir: &Path, random: &mut SmallRng) -> io::Result<()> {
        if self.writes {
            let next = self.register.tried.fetch_add(1, Ordering::SeqCst) + 1;
            let mounted = kind_of_mount(dir);
            let cut = |_: &io::Error| {
                // A client that lives stores all of it, or nothing.
                if mounted.is_err() || kind_of_mount(dir) != mounted {
                    self.register.cut.store(next, Ordering::SeqCst);
                }
            };
            self.write(dir, next).inspect_err(cut)?;
            self.register.acked.store(next, Ordering::SeqCst);
        } else {
            kept(self.read(dir)?)?;
        }
        self.done += 1;
        std::thread::sleep(random.random_range(Duration::ZERO..self.register.rest));
        Ok(())
    }

    fn check(&mut self, dir: &Path) -> io::Result<Result<(), Broken>> {
        self.read(dir)
    }

    fn acknowledged(&self) -> u64 {
        self.done
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

    use std::fs;

    use rand::SeedableRng;

    use super::*;
    use crate::process::scratch;

    #[test]
    fn an_older_version_than_was_acknowledged_is_noticed() {
        for register in [Register::small(), Register::large()] {
            let (root, mut random) = (scratch().unwrap(), SmallRng::seed_from_u64(1));
            let dir = root.path().join("own");
            fs::create_dir(&dir).unwrap();
            let register = Arc::new(register);
            let mut writer = RegisterUse::writer(register.clone());
            let mut reader = RegisterUse::reader(register.clone(), false);
            reader.step(&dir, &mut random).unwrap();
            for _ in 0..5 {
                writer.step(&dir, &mut random).unwrap();
                reader.step(&dir, &mut random).unwrap();
            }
            let of = |version| register.version(version);
            let mut torn = of(5);
            torn[300..].copy_from_slice(&of(4)[300..]);
            let (short, long) = (of(5)[1..].to_vec(), [of(5), of(5)].concat());
            for bytes in [of(4), of(6), torn, short, long, vec![0; of(5).len()], Vec::new()] {
                fs::write(root.path().join(register.name), bytes).unwrap();
                assert!(reader.step(&dir, &mut random).is_err());
                assert!(reader.check(&dir).unwrap().is_err());
            }
            register.tried.store(6, Ordering::SeqCst);
            fs::write(root.path().join(register.name), of(6)).unwrap();
            reader.step(&dir, &mut random).unwrap();
            fs::remove_file(root.path().join(register.name)).unwrap();
            assert!(reader.step(&dir, &mut random).is_err());
        }
    }

    #[test]
    fn a_mix_is_of_whole_blocks_and_not_where_files_are_fetched_whole() {
        let reader = RegisterUse::reader(Arc::new(Register::large()), true);
        let whole = |bytes: &[u8], acked, tried| reader.verdict(bytes, acked, tried, true).is_ok();
        let mixed = |bytes: &[u8], acked, tried| reader.verdict(bytes, acked, tried, false).is_ok();
        let mut bytes = reader.register.version(7);
        assert!(whole(&bytes, 6, 8));
        bytes[8192..12288].copy_from_slice(&reader.register.version(8)[8192..12288]);
        assert!(mixed(&bytes, 6, 8) && mixed(&bytes, 7, 8));
        assert!(!whole(&bytes, 6, 8));
        assert!(!mixed(&bytes, 8, 8), "older than was acknowledged");
        assert!(!mixed(&bytes, 6, 7), "before it was begun");
        // A block in the place of another.
        bytes.copy_within(0..4096, 4096);
        assert!(!mixed(&bytes, 6, 8));
    }

    #[test]
    fn before_the_first_version_there_may_be_a_part_of_it() {
        let reader = RegisterUse::reader(Arc::new(Register::large()), true);
        let whole = |bytes: &[u8], acked| reader.verdict(bytes, acked, 1, true).is_ok();
        let mixed = |bytes: &[u8], acked| reader.verdict(bytes, acked, 1, false).is_ok();
        let mut part = reader.register.version(1)[..40960].to_vec();
        assert!(!whole(&part, 0) && mixed(&part, 0));
        part[..4096].fill(0);
        assert!(mixed(&part, 0), "later blocks may come first");
        assert!(!mixed(&part, 1));
        assert!(whole(&[], 0) && !whole(&[], 1));
    }

    #[test]
    fn what_a_writer_that_died_had_not_closed_may_be_a_mix_until_the_next_version() {
        let root = scratch().unwrap();
        let dir = root.path().join("own");
        fs::create_dir(&dir).unwrap();
        let register = Arc::new(Register::large());
        let mut reader = RegisterUse::reader(register.clone(), true);
        let mut mix = register.version(4);
        mix[..4096].copy_from_slice(&register.version(5)[..4096]);
        fs::write(root.path().join(register.name), mix).unwrap();
        register.tried.store(5, Ordering::SeqCst);
        register.acked.store(4, Ordering::SeqCst);
        assert!(reader.check(&dir).unwrap().is_err());
        register.cut.store(5, Ordering::SeqCst);
        assert_eq!(reader.check(&dir).unwrap(), Ok(()));
        register.cut.store(4, Ordering::SeqCst);
        assert!(reader.check(&dir).unwrap().is_err(), "it was written whole since");
        assert!(RegisterUse::writer(register).step(&dir.join("missing"), &mut SmallRng::seed_from_u64(1)).is_err());
        assert_eq!(reader.register.cut.load(Ordering::SeqCst), 6);
    }
}
