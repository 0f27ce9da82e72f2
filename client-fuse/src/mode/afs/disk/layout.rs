//! What is where in the cache directory.
//!
//! ```text
//! lock               locked (flock(2)) by the mount that uses the directory
//! identity           the client's id and incarnation
//! volume             the server and volume that the cache belongs to
//! index.sqlite       what is known of clean copies, conflicts and pins
//! new/ID             being fetched
//! files/xx/ID        clean copies; xx is the low byte of ID in hexadecimal
//! dirty/VOLUME.VNODE.GENERATION.BASE.UID.GID.BOOT.ID
//! conflicts/VOLUME.VNODE.GENERATION.BASE.ID
//! ```
//!
//! The names of dirty files and conflicts say all that is needed to make sense of them without the index.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::num::NonZeroU64;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use larder_protocol::ids::{Fid, VolumeId};

const NEW: &str = "new";
const FILES: &str = "files";
const DIRTY: &str = "dirty";
const CONFLICTS: &str = "conflicts";

/// Where a cache file is, which says what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Being fetched.
    New,
    /// The clean copy of its fid.
    Clean,
    /// A clean copy that was replaced while it was open: it goes when it is closed, unless it becomes dirty before.
    Replaced,
    /// May hold data that the server has not.
    Dirty(Origin),
    /// Holds data that the server did not take.
    Conflict {
        /// The data version that it was based on.
        base: u64,
    },
    /// Removed.
    Gone,
}

/// What a dirty file came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    /// The data version that it is based on.
    pub(super) base: u64,
    /// The user who stores it.
    pub(super) uid: u32,
    /// That user's group.
    pub(super) gid: u32,
    /// The boot of the machine in which it became dirty. `None` once it is synced, with all that it was based on: then it
    /// outlives a power cut.
    pub(super) boot: Option<NonZeroU64>,
}

/// The paths in one cache directory.
#[derive(Debug)]
pub(super) struct Layout {
    dir: PathBuf,
}

impl Layout {
    /// The layout of the directory at `dir`.
    pub(super) fn new(dir: PathBuf) -> Layout {
        Layout { dir }
    }

    /// The cache directory.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The file that is locked.
    pub(super) fn lock(&self) -> PathBuf {
        self.dir.join("lock")
    }

    /// The file that names the client.
    pub(super) fn identity(&self) -> PathBuf {
        self.dir.join("identity")
    }

    /// The file that names the volume.
    pub(super) fn volume(&self) -> PathBuf {
        self.dir.join("volume")
    }

    /// The index.
    pub(super) fn index(&self) -> PathBuf {
        self.dir.join("index.sqlite")
    }

    /// The directory of dirty files.
    pub(super) fn dirty(&self) -> PathBuf {
        self.dir.join(DIRTY)
    }

    /// The directory of conflicts.
    pub(super) fn conflicts(&self) -> PathBuf {
        self.dir.join(CONFLICTS)
    }

    /// Where the cache file `id`, which is of `fid`, is if it is at `place`.
    pub(super) fn path(&self, fid: Fid, id: u64, place: Place) -> PathBuf {
        match place {
            Place::New | Place::Gone => self.new_file(id),
            Place::Clean | Place::Replaced => self.clean(id),
            Place::Dirty(Origin { base, uid, gid, boot }) => {
                let boot = boot.map_or(0, NonZeroU64::get);
                self.dirty().join(format!("{fid}.{base}.{uid}.{gid}.{boot}.{id}"))
            }
            Place::Conflict { base } => self.conflicts().join(format!("{fid}.{base}.{id}")),
        }
    }

    /// Where the file `id` is while it is fetched.
    pub(super) fn new_file(&self, id: u64) -> PathBuf {
        self.dir.join(NEW).join(id.to_string())
    }

    /// Where the clean copy `id` is.
    pub(super) fn clean(&self, id: u64) -> PathBuf {
        self.clean_dir(id as u8).join(id.to_string())
    }

    fn clean_dir(&self, low: u8) -> PathBuf {
        self.dir.join(FILES).join(format!("{low:02x}"))
    }

    /// Whether there is something in the directory, and it is no cache.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn is_of_others(&self) -> io::Result<bool> {
        if !self.dir.is_dir() || self.identity().is_file() || self.index().is_file() {
            return Ok(false);
        }
        // One whose making was cut short has the first of these, in this order.
        let begun = self.lock().is_file();
        let is_own = |name: &String| match name.as_str() {
            NEW | FILES | DIRTY | CONFLICTS | "lock" | "lost+found" => true,
            other => begun && (other.starts_with("volume") || other.starts_with("identity")),
        };
        Ok(!names(&self.dir)?.iter().all(is_own))
    }

    /// Makes the directories that are missing.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn make_dirs(&self) -> io::Result<()> {
        make_dir(&self.dir)?;
        let begins = !self.dir.join(FILES).is_dir();
        for name in [NEW, FILES, DIRTY, CONFLICTS] {
            make_dir(&self.dir.join(name))?;
        }
        if begins {
            // Now, and not one with each of the first files that are fetched.
            for low in 0..=u8::MAX {
                make_dir(&self.clean_dir(low))?;
            }
        }
        sync_dir(&self.dir)
    }

    /// The ids of files being fetched that an earlier life left.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn list_new(&self) -> io::Result<Vec<u64>> {
        let mut ids = Vec::new();
        for name in names(&self.dir.join(NEW))? {
            match name.parse() {
                Ok(id) => ids.push(id),
                Err(_) => self.leave_alone(NEW, &name),
            }
        }
        Ok(ids)
    }

    /// The ids of the files in `files`.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn list_clean(&self) -> io::Result<Vec<u64>> {
        let mut ids = Vec::new();
        let files = self.dir.join(FILES);
        for sub in names(&files)? {
            let Ok(low) = u64::from_str_radix(&sub, 16) else {
                self.leave_alone(FILES, &sub);
                continue;
            };
            for name in names(&files.join(&sub))? {
                match name.parse::<u64>() {
                    Ok(id) if id & 0xff == low => ids.push(id),
                    _ => self.leave_alone(FILES, &format!("{sub}/{name}")),
                }
            }
        }
        Ok(ids)
    }

    /// The dirty files.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn list_dirty(&self) -> io::Result<Vec<(u64, Fid, Origin)>> {
        let mut found = Vec::new();
        for name in names(&self.dirty())? {
            match numbers::<8>(&name).and_then(parse_dirty) {
                Some(entry) => found.push(entry),
                None => self.leave_alone(DIRTY, &name),
            }
        }
        Ok(found)
    }

    /// The conflicts: id, fid and base of each.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn list_conflicts(&self) -> io::Result<Vec<(u64, Fid, u64)>> {
        let mut found = Vec::new();
        for name in names(&self.conflicts())? {
            match numbers::<5>(&name).and_then(|numbers| {
                let [volume, vnode, generation, base, id] = numbers;
                Some((id, fid(volume, vnode, generation)?, base))
            }) {
                Some(entry) => found.push(entry),
                None => self.leave_alone(CONFLICTS, &name),
            }
        }
        Ok(found)
    }

    /// Only what has a name that the cache gives is the cache's to remove.
    fn leave_alone(&self, dir: &str, name: &str) {
        tracing::warn!("{} is not a file of this cache; it is left alone", self.dir.join(dir).join(name).display());
    }
}

fn parse_dirty([volume, vnode, generation, base, uid, gid, boot, id]: [u64; 8]) -> Option<(u64, Fid, Origin)> {
    let boot = NonZeroU64::new(boot);
    let origin = Origin { base, uid: uid.try_into().ok()?, gid: gid.try_into().ok()?, boot };
    Some((id, fid(volume, vnode, generation)?, origin))
}

fn fid(volume: u64, vnode: u64, generation: u64) -> Option<Fid> {
    Some(Fid { volume: VolumeId(volume.try_into().ok()?), vnode, generation })
}

/// Exactly `N` numbers with dots between them.
fn numbers<const N: usize>(name: &str) -> Option<[u64; N]> {
    let parts: Option<Vec<u64>> = name.split('.').map(|part| part.parse().ok()).collect();
    parts?.try_into().ok()
}

/// The names in a directory in order, none if there is no such directory.
fn names(dir: &Path) -> io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(names)
}

/// Makes a directory and those above it, where they are missing.
///
/// # Errors
/// What the system says.
pub(super) fn make_dir(path: &Path) -> io::Result<()> {
    // What users keep in files is nobody else's to read.
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Makes the names in a directory durable.
///
/// # Errors
/// What the system says.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Renames a file; makes the directory that it goes to if that is missing.
///
/// # Errors
/// What the system says; `NotFound` if there is no such file.
pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match std::fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && from.exists() => {
            if let Some(parent) = to.parent() {
                make_dir(parent)?;
            }
            std::fs::rename(from, to)
        }
        result => result,
    }
}

/// Removes a file. That it is gone already is fine, and anything else is only worth a line in the log: the file is of
/// no use to anyone, and the next mount tries again.
pub(super) fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!("{} is of no use any more and cannot be removed: {error}", path.display());
    }
}

/// Replaces a small file durably: after a crash it has the old contents or the new.
///
/// # Errors
/// What the system says.
pub(super) fn write_atomically(path: &Path, text: &str) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), sync_dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_a_file_is() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("cache"));
        layout.make_dirs().unwrap();
        let fid = Fid { volume: VolumeId(7), vnode: 1 << 39, generation: u64::MAX };
        let origin = Origin { base: u64::MAX, uid: u32::MAX, gid: 0, boot: NonZeroU64::new(u64::MAX) };
        for place in [Place::New, Place::Clean, Place::Dirty(origin), Place::Conflict { base: 3 }] {
            let path = layout.path(fid, 0x1ff, place);
            make_dir(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        for stranger in ["new/notes.txt", "files/readme", "files/ff/12", "dirty/1.2.3", "conflicts/1.2.3.4.5.6"] {
            std::fs::write(layout.dir().join(stranger), "").unwrap();
        }
        assert_eq!(layout.list_new().unwrap(), [0x1ff]);
        assert_eq!(layout.list_clean().unwrap(), [0x1ff]);
        assert_eq!(layout.list_dirty().unwrap(), [(0x1ff, fid, origin)]);
        assert_eq!(layout.list_conflicts().unwrap(), [(0x1ff, fid, 3)]);
    }

    #[test]
    fn a_rename_makes_the_directory_and_tells_a_missing_file() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("a"), dir.path().join("b/c/d"));
        assert_eq!(rename(&from, &to).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(!dir.path().join("b").exists());
        std::fs::write(&from, "x").unwrap();
        rename(&from, &to).unwrap();
        assert_eq!(std::fs::read(&to).unwrap(), b"x");
    }
}
