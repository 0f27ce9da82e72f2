//! One small file that a worker writes and all others read: what they read is never older than what was acknowledged.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::Rng;
use rand::rngs::SmallRng;

use super::{Broken, Workload, none_if_missing, pattern};

/// Bytes of the file: one request of any mode.
const LEN: usize = 512;

/// What the writer was told.
#[derive(Default)]
pub struct Register {
    acked: AtomicU64,
    tried: AtomicU64,
}

/// A worker's use of it.
pub(super) struct RegisterUse {
    register: Arc<Register>,
    writes: bool,
    done: u64,
}

impl RegisterUse {
    pub(super) fn new(register: Arc<Register>, writes: bool) -> RegisterUse {
        RegisterUse { register, writes, done: 0 }
    }

    /// The version that is read. All that was acknowledged before the file was opened is in it (C3).
    fn read(&self, dir: &Path) -> io::Result<Result<u64, Broken>> {
        let acked = self.register.acked.load(Ordering::SeqCst);
        // All workers share the volume's root.
        let Some(file) = none_if_missing(File::open(dir.join("../register")))? else {
            return Ok(if acked == 0 { Ok(0) } else { Err(format!("the register is gone at version {acked}")) });
        };
        // At once: between two reads it may be written.
        let mut bytes = vec![0; 2 * LEN];
        let len = file.read_at(&mut bytes, 0)?;
        bytes.truncate(len);
        let tried = self.register.tried.load(Ordering::SeqCst);
        if bytes.is_empty() && acked == 0 {
            return Ok(Ok(0));
        }
        let Some(number) = bytes.first_chunk().map(|number| u64::from_le_bytes(*number)) else {
            return Ok(Err(format!("a register of {} bytes", bytes.len())));
        };
        if bytes != pattern(number, LEN) {
            return Ok(Err(format!("the register's version {number} is not whole")));
        }
        if number < acked {
            return Ok(Err(format!("version {number} was read after version {acked} was acknowledged")));
        }
        Ok(if number > tried { Err(format!("version {number} before it was written")) } else { Ok(number) })
    }
}

impl Workload for RegisterUse {
    fn name(&self) -> &'static str {
        if self.writes { "register writer" } else { "register reader" }
    }

    fn step(&mut self, dir: &Path, random: &mut SmallRng) -> io::Result<()> {
        if self.writes {
            let next = self.register.tried.fetch_add(1, Ordering::SeqCst) + 1;
            // Not truncated: a reader would be right to see that.
            let options = OpenOptions::new().write(true).create(true).truncate(false).open(dir.join("../register"));
            let file = options?;
            file.write_all_at(&pattern(next, LEN), 0)?;
            file.sync_all()?;
            crate::process::close(file)?;
            self.register.acked.store(next, Ordering::SeqCst);
        } else if let Err(broken) = self.read(dir)? {
            return Err(io::Error::new(io::ErrorKind::InvalidData, broken));
        }
        self.done += 1;
        std::thread::sleep(Duration::from_millis(random.random_range(0..4)));
        Ok(())
    }

    fn check(&mut self, dir: &Path) -> io::Result<Result<(), Broken>> {
        Ok(self.read(dir)?.map(|_| ()))
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
        let (root, mut random) = (scratch().unwrap(), SmallRng::seed_from_u64(1));
        let dir = root.path().join("own");
        fs::create_dir(&dir).unwrap();
        let register = Arc::new(Register::default());
        let (mut writer, mut reader) =
            (RegisterUse::new(register.clone(), true), RegisterUse::new(register.clone(), false));
        reader.step(&dir, &mut random).unwrap();
        for _ in 0..5 {
            writer.step(&dir, &mut random).unwrap();
            reader.step(&dir, &mut random).unwrap();
        }
        let mut mixed = pattern(5, LEN);
        mixed[300..].copy_from_slice(&pattern(4, LEN)[300..]);
        for bytes in [pattern(4, LEN), pattern(6, LEN), mixed] {
            fs::write(root.path().join("register"), bytes).unwrap();
            assert!(reader.step(&dir, &mut random).is_err());
            assert!(reader.check(&dir).unwrap().is_err());
        }
        register.tried.store(6, Ordering::SeqCst);
        fs::write(root.path().join("register"), pattern(6, LEN)).unwrap();
        reader.step(&dir, &mut random).unwrap();
    }
}
