//! The store's directory: what it holds, how it begins, and that one process at a time has it.
//!
//! ```text
//! DIR/larder-store.toml     says that this is a store, and in which format
//! DIR/lives.toml            the processes that have served it since the machine was started
//! DIR/lock                  locked by the server (or checker) that uses it; holds its process id
//! DIR/volumes/1-root/       one directory for each volume: its id, its name
//! ```
//!
//! A new store is built beside its place and moved there; the marker comes last. So a crash at any point leaves
//! either nothing that counts or a whole store, and the next start goes on from there.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use larder_protocol::ids::{Epoch, MAX_VOLUME, VolumeId};
use larder_protocol::limits::MAX_VOLUME_NAME;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::volume;

/// The format this build reads and writes.
const FORMAT: u32 = 1;
const MARKER: &str = "larder-store.toml";
const LOCK: &str = "lock";
const VOLUMES: &str = "volumes";
const NEW_MARKER: &str = ".larder-store.toml.new";
const NEW_VOLUMES: &str = ".volumes.new";
const ROOT: &str = "root";
const LIVES: &str = "lives.toml";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// As many are remembered: who is older has been retried by nobody for long.
const MAX_LIVES: usize = 1000;

/// A store that this process has to itself.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    /// The lock lasts as long as this file is open.
    _lock: File,
}

/// A volume in a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredVolume {
    /// Its id.
    pub id: VolumeId,
    /// Its name.
    pub name: String,
    /// Its directory.
    pub dir: PathBuf,
}

/// The processes that have served a store since the machine was started.
#[derive(Serialize, Deserialize)]
struct Lives {
    /// Names the start (random(4), `boot_id`).
    boot: String,
    epochs: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Marker {
    format: u32,
}

/// What a directory is.
#[derive(Debug, PartialEq, Eq)]
enum State {
    Absent,
    /// Empty, or the work of a first start that was cut.
    Unfinished,
    Store,
}

impl Store {
    /// Locks a store; makes one, with its volume `root`, if the directory is empty or not there.
    ///
    /// # Errors
    /// Another process has it; the directory holds something else, or a store of a newer format; input and output.
    pub fn open(dir: &Path) -> anyhow::Result<Store> {
        if examine(dir)? == State::Absent {
            private_dir(dir).with_context(|| format!("cannot make the store's directory {}", dir.display()))?;
            if let Some(parent) = dir.parent() {
                let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
                sync_dir(parent)?;
            }
        }
        let store = Store { _lock: lock(dir)?, dir: dir.to_owned() };
        // Looked at again now that nobody else is at it.
        if examine(dir)? != State::Store {
            store.create().with_context(|| format!("cannot make a store in {}", dir.display()))?;
        }
        Ok(store)
    }

    /// Locks a store that must be there.
    ///
    /// # Errors
    /// As [`open`](Store::open), and when there is no store.
    pub fn open_existing(dir: &Path) -> anyhow::Result<Store> {
        let is_store = dir.join(MARKER).exists() && examine(dir)? == State::Store;
        if !is_store {
            bail!("{} is not a Larder store; a server makes one at its first start", dir.display());
        }
        Ok(Store { _lock: lock(dir)?, dir: dir.to_owned() })
    }

    /// The store's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Notes that a process begins to serve the store. All that have since the machine was started, this one included.
    ///
    /// # Errors
    /// The file cannot be written, or the system does not say when it was started.
    pub fn begin_life(&self, epoch: Epoch) -> anyhow::Result<BTreeSet<Epoch>> {
        let boot = fs::read_to_string(BOOT_ID).with_context(|| format!("cannot read {BOOT_ID}"))?;
        let path = self.dir.join(LIVES);
        let before = fs::read_to_string(&path).ok().and_then(|text| toml::from_str::<Lives>(&text).ok());
        let mut epochs = before.filter(|lives| lives.boot == boot.trim()).map_or_else(Vec::new, |lives| lives.epochs);
        epochs.push(format!("{:016x}", epoch.0));
        epochs.drain(..epochs.len().saturating_sub(MAX_LIVES));
        let lives = Lives { boot: boot.trim().to_owned(), epochs };
        // Not synced: what a power cut takes of it means nothing after that.
        let new = self.dir.join(format!(".{LIVES}.new"));
        fs::write(&new, toml::to_string(&lives)?).with_context(|| format!("cannot write {}", new.display()))?;
        fs::rename(&new, &path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(lives.epochs.iter().filter_map(|epoch| u64::from_str_radix(epoch, 16).ok()).map(Epoch).collect())
    }

    /// Its volumes, in the order of their ids.
    ///
    /// # Errors
    /// As [`volumes`].
    pub fn volumes(&self) -> anyhow::Result<Vec<StoredVolume>> {
        volumes(&self.dir)
    }

    fn create(&self) -> anyhow::Result<()> {
        let volumes = self.dir.join(VOLUMES);
        if !volumes.try_exists()? {
            let new = self.dir.join(NEW_VOLUMES);
            match fs::remove_dir_all(&new) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
            private_dir(&new)?;
            let root = new.join(dir_name(VolumeId::ROOT, ROOT));
            private_dir(&root)?;
            volume::create(&root, VolumeId::ROOT, ROOT)?;
            // The whole tree at once, whatever files the volume consists of.
            rustix::fs::syncfs(File::open(&new)?)?;
            fs::rename(&new, &volumes)?;
            sync_dir(&self.dir)?;
        }
        let new = self.dir.join(NEW_MARKER);
        let mut file = File::create(&new)?;
        file.write_all(toml::to_string(&Marker { format: FORMAT })?.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, self.dir.join(MARKER))?;
        sync_dir(&self.dir)
    }
}

/// The volumes of the store in `dir`, in the order of their ids.
///
/// # Errors
/// The directory cannot be read; two volumes have one id or one name.
pub fn volumes(dir: &Path) -> anyhow::Result<Vec<StoredVolume>> {
    let dir = dir.join(VOLUMES);
    let entries = fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut volumes = Vec::new();
    for entry in entries {
        let entry = entry?;
        let parsed = entry.file_name().to_str().and_then(parse_dir_name);
        match parsed {
            Some((id, name)) => volumes.push(StoredVolume { id, name, dir: entry.path() }),
            None => tracing::warn!("{} is not a volume's directory; ignoring it", entry.path().display()),
        }
    }
    volumes.sort_by(|a, b| (a.id, &a.name).cmp(&(b.id, &b.name)));
    for pair in volumes.windows(2) {
        if pair[0].id == pair[1].id {
            let (a, b) = (pair[0].dir.display(), pair[1].dir.display());
            bail!("{a} and {b} are copies of one volume: a store can hold only one of them; move the other away");
        }
    }
    let mut names: Vec<&StoredVolume> = volumes.iter().collect();
    names.sort_by(|a, b| a.name.cmp(&b.name));
    for pair in names.windows(2) {
        if pair[0].name == pair[1].name {
            let (a, b) = (pair[0].dir.display(), pair[1].dir.display());
            bail!("{a} and {b} have the same volume name; rename or move one of them away");
        }
    }
    Ok(volumes)
}

/// The name of a volume's directory.
fn dir_name(id: VolumeId, name: &str) -> String {
    format!("{id}-{name}")
}

fn parse_dir_name(dir_name: &str) -> Option<(VolumeId, String)> {
    let (id, name) = dir_name.split_once('-')?;
    let id: u32 = id.parse().ok()?;
    let printable = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    let valid = (1..=MAX_VOLUME).contains(&id) && (1..=MAX_VOLUME_NAME).contains(&name.len()) && printable;
    valid.then(|| (VolumeId(id), name.to_owned()))
}

fn examine(dir: &Path) -> anyhow::Result<State> {
    let shown = dir.display();
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(State::Absent),
        Err(error) => return Err(error).with_context(|| format!("cannot read the store's directory {shown}")),
    };
    match fs::read_to_string(dir.join(MARKER)) {
        Ok(text) => {
            let marker: Marker = toml::from_str(&text)
                .with_context(|| format!("{shown}/{MARKER} is damaged; it should say `format = {FORMAT}`"))?;
            if marker.format > FORMAT {
                let format = marker.format;
                bail!("the store {shown} has format {format}, and this server knows {FORMAT} only; use a newer server");
            }
            return Ok(State::Store);
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot read {shown}/{MARKER}")),
    }
    for entry in entries {
        let name = entry?.file_name();
        let ours = [LOCK, NEW_MARKER, NEW_VOLUMES, "lost+found"].iter().any(|ours| name == *ours);
        let moved = name == VOLUMES && dir.join(VOLUMES).join(dir_name(VolumeId::ROOT, ROOT)).is_dir();
        if !ours && !moved {
            bail!(
                "{shown} is not a Larder store and not empty (it has {name:?}); \
                 choose an empty directory, or one that does not exist yet"
            );
        }
    }
    Ok(State::Unfinished)
}

fn lock(dir: &Path) -> anyhow::Result<File> {
    let path = dir.join(LOCK);
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = open.with_context(|| format!("cannot open {}", path.display()))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {
            file.set_len(0)?;
            writeln!(file, "{}", std::process::id())?;
            Ok(file)
        }
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            let read = file.read_to_string(&mut holder);
            let holder = read.ok().and_then(|_| holder.trim().parse::<u32>().ok());
            let holder = holder.map_or_else(|| "unknown".to_owned(), |pid| pid.to_string());
            bail!("store {} is in use by another larderd (pid {holder}); stop that one first", dir.display())
        }
        Err(error) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

fn private_dir(dir: &Path) -> io::Result<()> {
    // Everybody's files are in it: permissions are checked by the server, not by the system under it.
    DirBuilder::new().mode(0o700).create(dir)
}

fn sync_dir(dir: &Path) -> anyhow::Result<()> {
    File::open(dir)?.sync_all().with_context(|| format!("cannot sync {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn temporary() -> (tempfile::TempDir, PathBuf) {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("store");
        (parent, dir)
    }

    #[test]
    fn a_first_start_makes_a_store_and_the_next_finds_it() {
        let (_parent, dir) = temporary();
        let made = Store::open(&dir).unwrap().volumes().unwrap();
        assert_eq!(made.len(), 1);
        assert_eq!((made[0].id, made[0].name.as_str()), (VolumeId::ROOT, "root"));
        assert_eq!(Store::open(&dir).unwrap().volumes().unwrap(), made);
        assert_eq!(Store::open_existing(&dir).unwrap().volumes().unwrap(), made);
    }

    #[test]
    fn lives_are_those_since_the_machine_was_started() {
        let (_parent, dir) = temporary();
        let store = Store::open(&dir).unwrap();
        assert_eq!(store.begin_life(Epoch(7)).unwrap(), BTreeSet::from([Epoch(7)]));
        assert_eq!(store.begin_life(Epoch(8)).unwrap(), BTreeSet::from([Epoch(7), Epoch(8)]));
        let path = dir.join(LIVES);
        let another = fs::read_to_string(&path).unwrap().replace("boot = \"", "boot = \"x");
        fs::write(&path, another).unwrap();
        assert_eq!(store.begin_life(Epoch(9)).unwrap(), BTreeSet::from([Epoch(9)]));
        fs::write(&path, "damaged").unwrap();
        assert_eq!(store.begin_life(Epoch(10)).unwrap(), BTreeSet::from([Epoch(10)]));
    }

    #[test]
    fn one_process_at_a_time_has_it() {
        let (_parent, dir) = temporary();
        let first = Store::open(&dir).unwrap();
        let error = Store::open(&dir).unwrap_err().to_string();
        assert!(error.contains("in use by another larderd"), "{error}");
        assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
        drop(first);
        Store::open(&dir).unwrap();
    }

    #[test]
    fn what_is_no_store_is_left_alone() {
        let (_parent, dir) = temporary();
        assert!(Store::open_existing(&dir).is_err());
        assert!(!dir.exists());
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("thesis.tex"), "precious").unwrap();
        let error = Store::open(&dir).unwrap_err().to_string();
        assert!(error.contains("thesis.tex"), "{error}");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "not even a lock is left behind");
    }

    #[test]
    fn a_newer_format_is_refused() {
        let (_parent, dir) = temporary();
        drop(Store::open(&dir).unwrap());
        fs::write(dir.join(MARKER), "format = 99\n").unwrap();
        let error = Store::open(&dir).unwrap_err().to_string();
        assert!(error.contains("format 99"), "{error}");
    }

    #[test]
    fn a_first_start_that_was_cut_is_finished() {
        let (_parent, dir) = temporary();
        drop(Store::open(&dir).unwrap());
        // Cut before the marker.
        fs::rename(dir.join(MARKER), dir.join(NEW_MARKER)).unwrap();
        assert_eq!(Store::open(&dir).unwrap().volumes().unwrap().len(), 1);
        // Cut while the volume was made.
        fs::remove_file(dir.join(MARKER)).unwrap();
        fs::rename(dir.join(VOLUMES), dir.join(NEW_VOLUMES)).unwrap();
        assert_eq!(Store::open(&dir).unwrap().volumes().unwrap().len(), 1);
        assert!(!dir.join(NEW_VOLUMES).exists());
    }

    #[test]
    fn volumes_are_found_by_their_directories() {
        assert_eq!(parse_dir_name("12-home-a.b"), Some((VolumeId(12), "home-a.b".to_owned())));
        for bad in ["root", "0-root", "16777216-x", "1-", "x-root", "1-a/b", "1-a b"] {
            assert_eq!(parse_dir_name(bad), None, "{bad}");
        }
        let (_parent, dir) = temporary();
        let store = Store::open(&dir).unwrap();
        fs::create_dir(dir.join(VOLUMES).join("1-copy")).unwrap();
        assert!(store.volumes().unwrap_err().to_string().contains("copies of one volume"));
        fs::remove_dir(dir.join(VOLUMES).join("1-copy")).unwrap();
        fs::create_dir(dir.join(VOLUMES).join("2-root")).unwrap();
        assert!(store.volumes().unwrap_err().to_string().contains("same volume name"));
    }
}
