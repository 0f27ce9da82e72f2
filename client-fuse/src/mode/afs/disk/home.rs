//! Whose a cache directory is: its lock, the client's identity, the volume it belongs to.

use std::fs::{File, OpenOptions};
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use larder_protocol::failpoint;
use larder_protocol::ids::ClientId;
use rustix::fs::FlockOperation;

use super::layout::{Layout, write_atomically};

/// The lock on a cache directory, held while this lives.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
}

impl Lock {
    /// Takes the lock; `None` if another mount has it.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn take(path: &Path) -> io::Result<Option<Lock>> {
        loop {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                result => result?,
            }
            let lock = Lock { file };
            // Somebody may have removed the file in between: the lock of a file without a name keeps nobody out.
            if lock.holds(path) {
                return Ok(Some(lock));
            }
        }
    }

    /// Whether the file that is locked is still the one at `path`.
    pub(super) fn holds(&self, path: &Path) -> bool {
        match (self.file.metadata(), path.metadata()) {
            (Ok(own), Ok(found)) => (own.dev(), own.ino()) == (found.dev(), found.ino()),
            _ => false,
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the file would not do while a process that was just forked still has it open, until its exec.
        if let Err(error) = rustix::fs::flock(&self.file, FlockOperation::Unlock) {
            tracing::debug!("the lock of the cache directory cannot be given back: {error}");
        }
    }
}

/// Who the client is, and which life of it this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    /// The same for as long as the cache directory is kept.
    pub(super) client: ClientId,
    /// Higher at each open.
    pub(super) incarnation: u64,
}

impl Identity {
    /// Reads the identity, or begins a new one, and raises the incarnation durably.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn raise(layout: &Layout, new_client: u128, wall_nanos: u64) -> io::Result<Identity> {
        let path = layout.identity();
        let identity = match read_small(&path)? {
            None => Identity { client: ClientId(new_client), incarnation: wall_nanos },
            Some(text) => match Identity::parse(&text) {
                Some(old) => {
                    let incarnation = old.incarnation.saturating_add(1).max(wall_nanos);
                    Identity { client: old.client, incarnation }
                }
                None => {
                    tracing::warn!("{} is damaged: this mount gets a new identity", path.display());
                    Identity { client: ClientId(new_client), incarnation: wall_nanos }
                }
            },
        };
        identity.write(layout)?;
        Ok(identity)
    }

    /// Writes it durably.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn write(self, layout: &Layout) -> io::Result<()> {
        let Identity { client, incarnation } = self;
        write_atomically(&layout.identity(), &format!("client {client}\nincarnation {incarnation}\n"))
    }

    fn parse(text: &str) -> Option<Identity> {
        let (client, incarnation) = text.strip_prefix("client ")?.split_once("\nincarnation ")?;
        let client = ClientId(u128::from_str_radix(client, 16).ok()?);
        Some(Identity { client, incarnation: incarnation.strip_suffix('\n')?.parse().ok()? })
    }
}

/// The volume that the cache belongs to, if that is recorded.
///
/// # Errors
/// What the system says.
pub(super) fn read_volume(layout: &Layout) -> io::Result<Option<String>> {
    Ok(read_small(&layout.volume())?.map(|text| text.trim_end_matches('\n').to_owned()))
}

/// Records durably the volume that the cache belongs to.
///
/// # Errors
/// What the system says.
pub(super) fn write_volume(layout: &Layout, volume: &str) -> io::Result<()> {
    write_atomically(&layout.volume(), &format!("{volume}\n"))
}

fn read_small(path: &Path) -> io::Result<Option<String>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Tells this boot of the machine from others; `None` if the system does not say.
pub(super) fn boot() -> Option<NonZeroU64> {
    let of_system = || {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let digits: String = text.chars().filter(char::is_ascii_hexdigit).take(16).collect();
        NonZeroU64::new(u64::from_str_radix(&digits, 16).ok()?)
    };
    failpoint::boot().or_else(of_system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_incarnation_only_grows() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().to_owned());
        let lives: Vec<_> = [(7, 100), (8, 50), (9, 1000), (9, 1000)]
            .map(|(new, wall)| Identity::raise(&layout, new, wall).unwrap())
            .map(|identity| (identity.client.0, identity.incarnation))
            .to_vec();
        assert_eq!(lives, [(7, 100), (7, 101), (7, 1000), (7, 1001)]);
        std::fs::write(layout.identity(), "client zz").unwrap();
        let next = Identity::raise(&layout, 11, 5).unwrap();
        assert_eq!(next, Identity { client: ClientId(11), incarnation: 5 });
    }

    #[test]
    fn a_lock_without_its_name_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let lock = Lock::take(&path).unwrap().unwrap();
        assert!(lock.holds(&path) && Lock::take(&path).unwrap().is_none());
        std::fs::remove_file(&path).unwrap();
        assert!(!lock.holds(&path));
        let lock = Lock::take(&path).unwrap().unwrap();
        let _as_in_a_forked_process = lock.file.try_clone().unwrap();
        drop(lock);
        assert!(Lock::take(&path).unwrap().is_some());
    }
}
