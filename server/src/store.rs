//! The store's directory: what it holds, how it begins, and that one process at a time has it.
//!
//! ```text
//! DIR/larder-store.toml     says that this is a store, in which format, and whose
//! DIR/location              where the cell's directory is
//! DIR/lives.toml            the processes that have served it since the machine was started
//! DIR/lock                  locked by the server (or checker) that uses it; holds its process id
//! DIR/volumes/1-root/       one directory for each volume: its id, its name
//! DIR/volumes/.arriving-7/  a volume that is being copied here from another server
//! ```
//!
//! A new store has no volumes; the marker comes last. So a crash at any point leaves either nothing that counts or a
//! whole store, and the next start goes on from there. A volume is built beside its place and moved there.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use larder_protocol::cell::{Quota, ServerId};
use larder_protocol::ids::{Epoch, MAX_VOLUME, VolumeId};
use larder_protocol::limits::MAX_VOLUME_NAME;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::location::{Location, embedded};
use crate::volume;

/// The format this build reads and writes.
const FORMAT: u32 = 1;
const MARKER: &str = "larder-store.toml";
const LOCK: &str = "lock";
const VOLUMES: &str = "volumes";
const NEW_MARKER: &str = ".larder-store.toml.new";
/// Volumes that are being made, and removed.
const NEW_VOLUME: &str = ".new-";
const GONE_VOLUME: &str = ".gone-";
/// Volumes that are being copied here.
const ARRIVING_VOLUME: &str = ".arriving-";
/// Says of a volume's directory that it may be removed once the volume is at another server.
const DEPARTING: &str = "departing";
const LIVES: &str = "lives.toml";
const LOCATION: &str = "location";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// As many are remembered: who is older has been retried by nobody for long.
const MAX_LIVES: usize = 1000;

/// A store that this process has to itself.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    server: ServerId,
    /// The lock lasts as long as this file is open.
    _lock: File,
}

/// A volume in a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredVolume {
    /// Its id.
    pub id: VolumeId,
    /// The name that it was made with.
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
    /// The server that it is the store of; older builds wrote none.
    server: Option<ServerId>,
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
        let lock = lock(dir)?;
        // Looked at again now that nobody else is at it.
        if examine(dir)? != State::Store {
            create(dir).with_context(|| format!("cannot make a store in {}", dir.display()))?;
        }
        Ok(Store { server: identity(dir)?, dir: dir.to_owned(), _lock: lock })
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
        let lock = lock(dir)?;
        Ok(Store { server: recorded_identity(dir)?.unwrap_or(ServerId(0)), dir: dir.to_owned(), _lock: lock })
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

    /// The server that it is the store of.
    pub fn server(&self) -> ServerId {
        self.server
    }

    /// Where the cell's directory is: what was said, or what was said before. It is kept: a server that began with a
    /// directory of its own must not forget those of its volumes that others were told of, nor the other way round.
    ///
    /// # Errors
    /// The store has been in a cell of another kind; the system's.
    pub fn settle_location(&self, said: Option<Location>) -> anyhow::Result<Location> {
        let path = self.dir.join(LOCATION);
        let before: Option<Location> = match fs::read_to_string(&path) {
            Ok(text) => Some(text.trim().parse().map_err(|error| anyhow!("{} is damaged: {error}", path.display()))?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let was_own = match &before {
            Some(before) => *before == Location::Own,
            None => self.dir.join(embedded::FILE).try_exists()? || !self.volumes()?.is_empty(),
        };
        let now = said.or_else(|| before.clone()).unwrap_or(Location::Own);
        if was_own && now != Location::Own {
            bail!(
                "the store {} has a directory of volumes of its own and cannot join the cell of {now}: begin with an empty \
                 store there, and move or copy what is in this one",
                self.dir.display()
            );
        }
        if before.as_ref().is_some_and(|before| *before != Location::Own) && now == Location::Own {
            bail!(
                "the store {} belongs to a cell whose directory is elsewhere ({}) and cannot begin one of its own",
                self.dir.display(),
                before.map_or_else(String::new, |before| before.to_string())
            );
        }
        if before.as_ref() != Some(&now) {
            let new = self.dir.join(format!(".{LOCATION}.new"));
            let mut file = File::create(&new)?;
            writeln!(file, "{now}")?;
            file.sync_all()?;
            fs::rename(&new, &path).with_context(|| format!("cannot write {}", path.display()))?;
            sync_dir(&self.dir)?;
        }
        Ok(now)
    }

    /// Makes an empty volume, with its directory. Whether it counts is for the location service to say.
    ///
    /// # Errors
    /// The system's, or the metadata engine's.
    pub fn add_volume(&self, id: VolumeId, name: &str, quota: Quota) -> anyhow::Result<StoredVolume> {
        let volumes = self.dir.join(VOLUMES);
        let new = volumes.join(format!("{NEW_VOLUME}{id}"));
        remove_all(&new)?;
        private_dir(&new)?;
        volume::create(&new, id, name, quota)?;
        let dir = volumes.join(dir_name(id, name));
        fs::rename(&new, &dir).with_context(|| format!("cannot make {}", dir.display()))?;
        sync_dir(&volumes)?;
        Ok(StoredVolume { id, name: name.to_owned(), dir })
    }

    /// Begins to remove a volume, which must not be open: it is none any more. Returns what is left to be removed.
    ///
    /// # Errors
    /// The system's; it is a volume still.
    pub fn begin_removal(&self, volume: &StoredVolume) -> anyhow::Result<PathBuf> {
        let volumes = self.dir.join(VOLUMES);
        // At once, so that a crash leaves no half of it that looks like a volume.
        let gone = volumes.join(format!("{GONE_VOLUME}{}", volume.id));
        remove_all(&gone)?;
        fs::rename(&volume.dir, &gone).with_context(|| format!("cannot remove {}", volume.dir.display()))?;
        sync_dir(&volumes)?;
        Ok(gone)
    }

    /// The directory that a volume is being copied into, made if it is not there.
    ///
    /// # Errors
    /// The system's.
    pub fn arriving(&self, id: VolumeId) -> anyhow::Result<PathBuf> {
        let dir = self.dir.join(VOLUMES).join(format!("{ARRIVING_VOLUME}{id}"));
        match private_dir(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(error).with_context(|| format!("cannot make {}", dir.display()))
            }
            _ => Ok(dir),
        }
    }

    /// The volumes that were being copied here.
    ///
    /// # Errors
    /// The system's.
    pub fn arrivals(&self) -> anyhow::Result<Vec<(VolumeId, PathBuf)>> {
        let mut arrivals = Vec::new();
        for entry in fs::read_dir(self.dir.join(VOLUMES))? {
            let entry = entry?;
            let name = entry.file_name();
            let id = name.to_str().and_then(|name| name.strip_prefix(ARRIVING_VOLUME)?.parse().ok());
            if let Some(id) = id {
                arrivals.push((VolumeId(id), entry.path()));
            }
        }
        Ok(arrivals)
    }

    /// A volume is copied whole, and is this server's from now on.
    ///
    /// # Errors
    /// The system's.
    pub fn arrived(&self, id: VolumeId, name: &str) -> anyhow::Result<StoredVolume> {
        let volumes = self.dir.join(VOLUMES);
        let dir = volumes.join(dir_name(id, name));
        fs::rename(self.arriving(id)?, &dir).with_context(|| format!("cannot make {}", dir.display()))?;
        sync_dir(&volumes)?;
        Ok(StoredVolume { id, name: name.to_owned(), dir })
    }

    /// Says of a volume's directory whether it may be removed once the volume is at another server.
    ///
    /// # Errors
    /// The system's.
    pub fn set_departing(volume: &StoredVolume, is_departing: bool) -> anyhow::Result<()> {
        let path = volume.dir.join(DEPARTING);
        let done = if is_departing {
            File::create(&path).and_then(|file| file.sync_all())
        } else {
            match fs::remove_file(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                done => done,
            }
        };
        done.with_context(|| format!("cannot write {}", path.display()))?;
        sync_dir(&volume.dir)
    }

    /// Whether that was said.
    pub fn is_departing(volume: &StoredVolume) -> bool {
        volume.dir.join(DEPARTING).exists()
    }

    /// What crashes have left of volumes that were being made or removed.
    ///
    /// # Errors
    /// The system's.
    pub fn left_over(&self) -> anyhow::Result<Vec<PathBuf>> {
        let mut left = Vec::new();
        for entry in fs::read_dir(self.dir.join(VOLUMES))? {
            let entry = entry?;
            let name = entry.file_name();
            if [NEW_VOLUME, GONE_VOLUME].iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
                left.push(entry.path());
            }
        }
        Ok(left)
    }

    /// Its volumes, in the order of their ids.
    ///
    /// # Errors
    /// As [`volumes`].
    pub fn volumes(&self) -> anyhow::Result<Vec<StoredVolume>> {
        volumes(&self.dir)
    }
}

fn create(dir: &Path) -> anyhow::Result<()> {
    let volumes = dir.join(VOLUMES);
    if !volumes.try_exists()? {
        private_dir(&volumes)?;
        sync_dir(dir)?;
    }
    mark(dir, ServerId(rand::random()))
}

fn mark(dir: &Path, server: ServerId) -> anyhow::Result<()> {
    let new = dir.join(NEW_MARKER);
    let mut file = File::create(&new)?;
    file.write_all(toml::to_string(&Marker { format: FORMAT, server: Some(server) })?.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, dir.join(MARKER))?;
    sync_dir(dir)
}

/// The server that a store is of. One that was made before servers had identities gets one.
fn identity(dir: &Path) -> anyhow::Result<ServerId> {
    if let Some(server) = recorded_identity(dir)? {
        return Ok(server);
    }
    let server = ServerId(rand::random());
    mark(dir, server).with_context(|| format!("cannot write {}", dir.join(MARKER).display()))?;
    Ok(server)
}

fn recorded_identity(dir: &Path) -> anyhow::Result<Option<ServerId>> {
    let path = dir.join(MARKER);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let marker: Marker = toml::from_str(&text).with_context(|| format!("{} is damaged", path.display()))?;
    Ok(marker.server)
}

/// Removes a directory with all that is in it, if it is there.
///
/// # Errors
/// The system's.
pub fn remove_all(dir: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// The volumes of the store in `dir`, in the order of their ids.
///
/// # Errors
/// The directory cannot be read; two volumes have one id.
pub fn volumes(dir: &Path) -> anyhow::Result<Vec<StoredVolume>> {
    let dir = dir.join(VOLUMES);
    let entries = fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut volumes = Vec::new();
    for entry in entries {
        let entry = entry?;
        let parsed = entry.file_name().to_str().and_then(parse_dir_name);
        match parsed {
            Some((id, name)) => volumes.push(StoredVolume { id, name, dir: entry.path() }),
            None if entry.file_name().to_string_lossy().starts_with('.') => {}
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
        // A first start that was cut has made no volumes yet.
        let empty = || dir.join(VOLUMES).read_dir().is_ok_and(|mut entries| entries.next().is_none());
        let ours = [LOCK, NEW_MARKER, "lost+found"].iter().any(|ours| name == *ours);
        let ours = ours || (name == VOLUMES && empty());
        if !ours {
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
        let store = Store::open(&dir).unwrap();
        assert_eq!(store.volumes().unwrap(), []);
        let made = store.add_volume(VolumeId::ROOT, "root", Quota::default()).unwrap();
        let server = store.server();
        drop(store);
        let store = Store::open(&dir).unwrap();
        assert_eq!((store.volumes().unwrap(), store.server()), (vec![made.clone()], server));
        drop(store);
        let store = Store::open_existing(&dir).unwrap();
        assert_eq!((store.volumes().unwrap(), store.server()), (vec![made], server));
    }

    #[test]
    fn a_store_without_an_identity_gets_one_for_good() {
        let (_parent, dir) = temporary();
        drop(Store::open(&dir).unwrap());
        fs::write(dir.join(MARKER), "format = 1\n").unwrap();
        let server = Store::open(&dir).unwrap().server();
        assert_eq!(Store::open(&dir).unwrap().server(), server);
    }

    #[test]
    fn what_a_crash_left_of_a_volume_is_removed() {
        let (_parent, dir) = temporary();
        let store = Store::open(&dir).unwrap();
        let made = store.add_volume(VolumeId(7), "home", Quota::default()).unwrap();
        let half = made.dir.with_file_name(format!("{NEW_VOLUME}8"));
        fs::create_dir_all(half.join("content")).unwrap();
        assert_eq!(store.volumes().unwrap(), std::slice::from_ref(&made));
        store.left_over().unwrap().iter().for_each(|path| remove_all(path).unwrap());
        assert!(!half.exists() && made.dir.exists());
        remove_all(&store.begin_removal(&made).unwrap()).unwrap();
        assert_eq!(store.volumes().unwrap(), []);
        assert_eq!(fs::read_dir(dir.join(VOLUMES)).unwrap().count(), 0);
    }

    #[test]
    fn a_store_stays_in_its_cell() {
        let (_parent, dir) = temporary();
        let store = Store::open(&dir).unwrap();
        let elsewhere = |host: &str| Location::Server(format!("{host}:7425"));
        assert_eq!(store.settle_location(Some(elsewhere("a"))).unwrap(), elsewhere("a"));
        assert_eq!(store.settle_location(None).unwrap(), elsewhere("a"), "it need not be said again");
        assert_eq!(store.settle_location(Some(elsewhere("b"))).unwrap(), elsewhere("b"), "servers move");
        assert!(store.settle_location(Some(Location::Own)).is_err());
        let (_parent, dir) = temporary();
        let store = Store::open(&dir).unwrap();
        assert_eq!(store.settle_location(None).unwrap(), Location::Own);
        assert!(store.settle_location(Some(elsewhere("a"))).unwrap_err().to_string().contains("larder://a:7425"));
        // One from before there was a choice.
        let (_parent, dir) = temporary();
        let store = Store::open(&dir).unwrap();
        store.add_volume(VolumeId::ROOT, "root", Quota::default()).unwrap();
        assert!(store.settle_location(Some(elsewhere("a"))).is_err());
        assert_eq!(store.settle_location(None).unwrap(), Location::Own);
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
        assert_eq!(Store::open(&dir).unwrap().volumes().unwrap(), []);
        // A volume is worth more than a marker.
        fs::create_dir(dir.join(VOLUMES).join("1-root")).unwrap();
        fs::remove_file(dir.join(MARKER)).unwrap();
        assert!(Store::open(&dir).unwrap_err().to_string().contains("not a Larder store"));
    }

    #[test]
    fn volumes_are_found_by_their_directories() {
        assert_eq!(parse_dir_name("12-home-a.b"), Some((VolumeId(12), "home-a.b".to_owned())));
        for bad in ["root", "0-root", "16777216-x", "1-", "x-root", "1-a/b", "1-a b"] {
            assert_eq!(parse_dir_name(bad), None, "{bad}");
        }
        let (_parent, dir) = temporary();
        let store = Store::open(&dir).unwrap();
        store.add_volume(VolumeId(1), "root", Quota::default()).unwrap();
        fs::create_dir(dir.join(VOLUMES).join("1-copy")).unwrap();
        assert!(store.volumes().unwrap_err().to_string().contains("copies of one volume"));
    }
}
