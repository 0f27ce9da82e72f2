//! The durable record of the clients that may hold callbacks.
//!
//! A server that restarts knows no callbacks any more, while clients go on relying on them until they hear of it. So
//! before it lets anything change it waits for those that are recorded here (P6 of
//! [`core::promises`](crate::core::promises)).

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use larder_protocol::ids::ClientId;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// What the record says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// The longest term that any of their leases had; `None` if there never was one.
    pub term: Option<Duration>,
    /// The clients.
    pub clients: BTreeSet<ClientId>,
}

/// Where the record is kept. Calls block.
pub trait Holders: Send + Sync + 'static {
    /// What was saved last; nothing if nothing ever was.
    ///
    /// # Errors
    /// It cannot be read, or is damaged.
    fn load(&self) -> io::Result<Recorded>;

    /// Replaces the record, durably and as a whole.
    ///
    /// # Errors
    /// The system's.
    fn save(&self, term: Duration, clients: &BTreeSet<ClientId>) -> io::Result<()>;
}

/// A file in the store's directory: one record in bincode, and its CRC32C.
#[derive(Debug)]
pub struct HolderFile {
    path: PathBuf,
}

impl HolderFile {
    /// The record of the store in this directory.
    pub fn in_store(dir: &Path) -> HolderFile {
        HolderFile { path: dir.join("holders") }
    }
}

fn damaged(path: &Path) -> io::Error {
    let text = format!(
        "{} is damaged: remove it once every client that used the store has been away for as long as a lease runs",
        path.display()
    );
    io::Error::new(io::ErrorKind::InvalidData, text)
}

impl Holders for HolderFile {
    fn load(&self) -> io::Result<Recorded> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Recorded::default()),
            Err(error) => return Err(error),
        };
        let (record, checksum) = bytes.split_last_chunk::<4>().ok_or_else(|| damaged(&self.path))?;
        if crc32c::crc32c(record) != u32::from_le_bytes(*checksum) {
            return Err(damaged(&self.path));
        }
        bincode::deserialize(record).map_err(|_| damaged(&self.path))
    }

    fn save(&self, term: Duration, clients: &BTreeSet<ClientId>) -> io::Result<()> {
        let record = Recorded { term: Some(term), clients: clients.clone() };
        let mut bytes = bincode::serialize(&record).map_err(io::Error::other)?;
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        let new = self.path.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        match self.path.parent() {
            Some(dir) => File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    }
}

/// A record in memory, for servers that are a part of a test.
#[derive(Debug, Default)]
pub struct HolderMemory(Mutex<Recorded>);

impl Holders for HolderMemory {
    fn load(&self) -> io::Result<Recorded> {
        Ok(self.0.lock().clone())
    }

    fn save(&self, term: Duration, clients: &BTreeSet<ClientId>) -> io::Result<()> {
        *self.0.lock() = Recorded { term: Some(term), clients: clients.clone() };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_is_read_back_and_damage_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let holders = HolderFile::in_store(dir.path());
        assert_eq!(holders.load().unwrap(), Recorded::default());
        let clients = BTreeSet::from([ClientId(1), ClientId(7)]);
        holders.save(Duration::from_secs(10), &clients).unwrap();
        let recorded = Recorded { term: Some(Duration::from_secs(10)), clients };
        assert_eq!(holders.load().unwrap(), recorded);
        let mut bytes = fs::read(&holders.path).unwrap();
        bytes[9] ^= 1;
        fs::write(&holders.path, &bytes).unwrap();
        assert!(holders.load().unwrap_err().to_string().contains("holders is damaged"));
        fs::write(&holders.path, "x").unwrap();
        assert!(holders.load().is_err());
    }
}
