//! What the cache knows of its files, as it is kept on disk.
//!
//! A [`State`](super::state::State) in memory says what holds; this follows it, one transaction for many changes. After
//! a crash it is therefore behind, and what it says of a file counts only if the file is still as it says.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use larder_protocol::ids::{Fid, VolumeId};
use rusqlite::{Connection, ErrorCode, Row, params};

/// The format of the tables. Another one is put aside like a damaged index.
const FORMAT: i64 = 1;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS clean (
        volume INTEGER NOT NULL, vnode INTEGER NOT NULL, generation INTEGER NOT NULL,
        id INTEGER NOT NULL, version INTEGER NOT NULL, size INTEGER NOT NULL, mtime INTEGER NOT NULL,
        inode INTEGER NOT NULL, boot INTEGER NOT NULL, checksums BLOB NOT NULL, name BLOB, seal INTEGER NOT NULL,
        used INTEGER NOT NULL,
        PRIMARY KEY (volume, vnode, generation));
    CREATE TABLE IF NOT EXISTS conflicts (
        id INTEGER PRIMARY KEY, base INTEGER NOT NULL,
        volume INTEGER NOT NULL, vnode INTEGER NOT NULL, generation INTEGER NOT NULL,
        name BLOB, since INTEGER NOT NULL, why TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS pins (
        volume INTEGER NOT NULL, vnode INTEGER NOT NULL, generation INTEGER NOT NULL,
        PRIMARY KEY (volume, vnode, generation)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS dirty_names (id INTEGER PRIMARY KEY, name BLOB NOT NULL);
";

/// The name that programs used for a file: only a hint for people, for it may have been renamed since.
pub(super) type Name = Option<Arc<[u8]>>;

/// What is known of a clean copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CleanRow {
    /// The number of its file.
    pub(super) id: u64,
    /// The version that it is a copy of.
    pub(super) version: u64,
    /// The file's size.
    pub(super) size: u64,
    /// The file's last change, in nanoseconds since 1970.
    pub(super) mtime: i64,
    /// The file's inode number.
    pub(super) inode: u64,
    /// The boot of the machine in which its contents were last known to be those of `checksums`.
    pub(super) boot: u64,
    /// The checksum of each block.
    pub(super) checksums: Arc<[u32]>,
    /// The file's name.
    pub(super) name: Name,
    /// Its last use, in nanoseconds since 1970; no two are the same.
    pub(super) used: u64,
}

impl CleanRow {
    /// The checksum over all but `used`, which changes often and matters little.
    fn seal(&self, fid: Fid) -> u32 {
        let mut bytes = Vec::with_capacity(80 + 4 * self.checksums.len());
        let Fid { volume, vnode, generation } = fid;
        for number in [u64::from(volume.0), vnode, generation, self.id, self.version, self.size, self.inode, self.boot]
        {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&self.mtime.to_le_bytes());
        bytes.extend_from_slice(&pack(&self.checksums));
        bytes.extend_from_slice(self.name.as_deref().unwrap_or_default());
        crc32c::crc32c(&bytes)
    }
}

/// What is known of a conflict beyond what its file's name says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ConflictRow {
    /// What it was to become a version of.
    pub(super) fid: Fid,
    /// The version that it was based on.
    pub(super) base: u64,
    /// The file's name.
    pub(super) name: Name,
    /// When it was put aside, in nanoseconds since 1970.
    pub(super) since: u64,
    /// Why the server did not take it.
    pub(super) why: Arc<str>,
}

/// Changes to be written. `None` removes a row.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Clean copies.
    pub(super) clean: Vec<(Fid, Option<CleanRow>)>,
    /// Last uses of clean copies that are otherwise as before.
    pub(super) used: Vec<(Fid, u64)>,
    /// Conflicts by their numbers.
    pub(super) conflicts: Vec<(u64, Option<ConflictRow>)>,
    /// Whether files are pinned.
    pub(super) pins: Vec<(Fid, bool)>,
    /// Names of dirty files by their numbers.
    pub(super) dirty_names: Vec<(u64, Name)>,
}

impl Batch {
    /// Whether there is nothing to write.
    pub(super) fn is_empty(&self) -> bool {
        let Batch { clean, used, conflicts, pins, dirty_names } = self;
        clean.is_empty() && used.is_empty() && conflicts.is_empty() && pins.is_empty() && dirty_names.is_empty()
    }
}

/// What an earlier life knew.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    /// Clean copies, the least recently used first.
    pub(super) clean: Vec<(Fid, CleanRow)>,
    /// Conflicts by their numbers.
    pub(super) conflicts: Vec<(u64, ConflictRow)>,
    /// Pinned files.
    pub(super) pins: Vec<Fid>,
    /// Names of dirty files by their numbers.
    pub(super) dirty_names: Vec<(u64, Name)>,
}

/// Why the index could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(super) enum IndexError {
    /// What it holds makes no sense.
    #[error("it is damaged: {0}")]
    Damaged(rusqlite::Error),
    /// It is of another release.
    #[error("it has format {0}, not {FORMAT}")]
    Format(i64),
    /// The system's fault.
    #[error(transparent)]
    System(rusqlite::Error),
}

impl From<rusqlite::Error> for IndexError {
    fn from(error: rusqlite::Error) -> IndexError {
        match error.sqlite_error_code() {
            // Faults of the disk, of rights and of memory: a new index would fare no better. All others speak of what
            // is in the file, down to tables that lack a column.
            Some(
                ErrorCode::CannotOpen
                | ErrorCode::ReadOnly
                | ErrorCode::PermissionDenied
                | ErrorCode::SystemIoFailure
                | ErrorCode::DiskFull
                | ErrorCode::OutOfMemory
                | ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::FileLockingProtocolFailed
                | ErrorCode::NoLargeFileSupport,
            ) => IndexError::System(error),
            _ => IndexError::Damaged(error),
        }
    }
}

impl From<IndexError> for io::Error {
    fn from(error: IndexError) -> io::Error {
        match &error {
            IndexError::System(cause) if cause.sqlite_error_code() == Some(ErrorCode::DiskFull) => {
                io::Error::new(io::ErrorKind::StorageFull, error)
            }
            _ => io::Error::other(error),
        }
    }
}

/// The database.
#[derive(Debug)]
pub(super) struct Index {
    path: PathBuf,
    /// `None` after a new one could not be begun.
    open: Option<(Connection, u64)>,
}

impl Index {
    /// Opens the index, makes one if there is none, and begins anew if it is damaged.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn open(path: PathBuf) -> io::Result<(Index, Loaded)> {
        let mut index = Index { path, open: None };
        let loaded = match index.connect() {
            Err(error @ (IndexError::Damaged(_) | IndexError::Format(_))) => {
                index.put_aside(&error)?;
                index.connect()?
            }
            result => result?,
        };
        Ok((index, loaded))
    }

    /// Whether changes would go to the file at the index's path, and not to one that was removed.
    pub(super) fn is_in_place(&self) -> bool {
        let inode = self.path.metadata().map(|found| found.ino());
        matches!((&self.open, inode), (Some((_, own)), Ok(found)) if *own == found)
    }

    /// Begins a new index where the old one was removed. It has no rows.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn begin_anew(&mut self) -> io::Result<()> {
        // Closed first: that removes the log by its name, which would be the new one's.
        self.open = None;
        self.remove_log();
        if self.path.exists() {
            // Somebody put another file there. Nothing is known of it.
            std::fs::remove_file(&self.path)?;
        }
        self.connect()?;
        Ok(())
    }

    /// Writes changes in one transaction.
    ///
    /// # Errors
    /// [`IndexError`]. The index is then as before, unless it is damaged.
    pub(super) fn write(&mut self, batch: &Batch) -> Result<(), IndexError> {
        let Some((connection, _)) = &mut self.open else {
            return Err(IndexError::System(rusqlite::Error::InvalidPath(self.path.clone())));
        };
        let transaction = connection.transaction()?;
        write(&transaction, batch)?;
        transaction.commit()?;
        Ok(())
    }

    /// Puts a damaged index aside, for whoever wants to know what happened to it.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn put_aside(&mut self, why: &IndexError) -> io::Result<()> {
        self.open = None;
        let aside = self.path.with_extension("sqlite.damaged");
        tracing::warn!("{}: {why}; it is put aside as {}", self.path.display(), aside.display());
        match std::fs::rename(&self.path, aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.remove_log();
        Ok(())
    }

    fn remove_log(&self) {
        for extension in ["sqlite-wal", "sqlite-shm"] {
            super::layout::remove(&self.path.with_extension(extension));
        }
    }

    fn connect(&mut self) -> Result<Loaded, IndexError> {
        let connection = Connection::open(&self.path)?;
        // The cache directory is locked. This keeps the log's index in memory instead of a file.
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.pragma_update(None, "trusted_schema", 0)?;
        let format: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if format != FORMAT && format != 0 {
            return Err(IndexError::Format(format));
        }
        connection.execute_batch(SCHEMA)?;
        if format == 0 {
            connection.pragma_update(None, "user_version", FORMAT)?;
        }
        let loaded = load(&connection)?;
        let inode = self.path.metadata().map_or(0, |found| found.ino());
        self.open = Some((connection, inode));
        Ok(loaded)
    }
}

/// Removes the index of another volume.
///
/// # Errors
/// What the system says.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    for path in [path.to_owned(), path.with_extension("sqlite-wal"), path.with_extension("sqlite-shm")] {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn load(connection: &Connection) -> rusqlite::Result<Loaded> {
    let mut loaded = Loaded::default();
    let mut clean = connection.prepare(
        "SELECT volume, vnode, generation, id, version, size, mtime, inode, boot, checksums, name, used, seal \
         FROM clean ORDER BY used, id",
    )?;
    let mut rows = clean.query([])?;
    while let Some(row) = rows.next()? {
        let fid = fid(row, 0)?;
        let found = CleanRow {
            id: number(row, 3)?,
            version: number(row, 4)?,
            size: number(row, 5)?,
            mtime: row.get(6)?,
            inode: number(row, 7)?,
            boot: number(row, 8)?,
            checksums: unpack(row.get_ref(9)?.as_blob()?),
            name: name(row, 10)?,
            used: number(row, 11)?,
        };
        // SQLite does not notice a flipped bit in a number. Without its row the copy is dropped.
        if found.seal(fid) == row.get::<_, u32>(12)? {
            loaded.clean.push((fid, found));
        }
    }
    let mut conflicts = connection
        .prepare("SELECT volume, vnode, generation, id, base, name, since, why FROM conflicts ORDER BY id")?;
    let mut rows = conflicts.query([])?;
    while let Some(row) = rows.next()? {
        let why: String = row.get(7)?;
        let found = ConflictRow {
            fid: fid(row, 0)?,
            base: number(row, 4)?,
            name: name(row, 5)?,
            since: number(row, 6)?,
            why: why.into(),
        };
        loaded.conflicts.push((number(row, 3)?, found));
    }
    let mut pins = connection.prepare("SELECT volume, vnode, generation FROM pins")?;
    loaded.pins = pins.query_map([], |row| fid(row, 0))?.collect::<rusqlite::Result<_>>()?;
    let mut names = connection.prepare("SELECT id, name FROM dirty_names ORDER BY id")?;
    loaded.dirty_names =
        names.query_map([], |row| Ok((number(row, 0)?, name(row, 1)?)))?.collect::<rusqlite::Result<_>>()?;
    Ok(loaded)
}

fn write(connection: &Connection, batch: &Batch) -> rusqlite::Result<()> {
    let mut put = connection.prepare_cached(
        "INSERT OR REPLACE INTO clean VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
    )?;
    let mut delete =
        connection.prepare_cached("DELETE FROM clean WHERE volume = ?1 AND vnode = ?2 AND generation = ?3")?;
    for (fid, row) in &batch.clean {
        let (volume, vnode, generation) = key(*fid);
        let Some(row) = row else {
            delete.execute(params![volume, vnode, generation])?;
            continue;
        };
        put.execute(params![
            volume,
            vnode,
            generation,
            row.id as i64,
            row.version as i64,
            row.size as i64,
            row.mtime,
            row.inode as i64,
            row.boot as i64,
            pack(&row.checksums),
            row.name.as_deref(),
            row.seal(*fid),
            row.used as i64,
        ])?;
    }
    let mut touch =
        connection.prepare_cached("UPDATE clean SET used = ?4 WHERE volume = ?1 AND vnode = ?2 AND generation = ?3")?;
    for (fid, used) in &batch.used {
        let (volume, vnode, generation) = key(*fid);
        touch.execute(params![volume, vnode, generation, *used as i64])?;
    }
    for (id, row) in &batch.conflicts {
        let Some(row) = row else {
            connection.prepare_cached("DELETE FROM conflicts WHERE id = ?1")?.execute([*id as i64])?;
            continue;
        };
        let (volume, vnode, generation) = key(row.fid);
        let (name, since) = (row.name.as_deref(), row.since as i64);
        connection
            .prepare_cached("INSERT OR REPLACE INTO conflicts VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")?
            .execute(params![*id as i64, row.base as i64, volume, vnode, generation, name, since, &*row.why])?;
    }
    for (fid, pinned) in &batch.pins {
        let (volume, vnode, generation) = key(*fid);
        let sql = match pinned {
            true => "INSERT OR REPLACE INTO pins VALUES (?1, ?2, ?3)",
            false => "DELETE FROM pins WHERE volume = ?1 AND vnode = ?2 AND generation = ?3",
        };
        connection.prepare_cached(sql)?.execute(params![volume, vnode, generation])?;
    }
    for (id, name) in &batch.dirty_names {
        match name {
            Some(name) => connection
                .prepare_cached("INSERT OR REPLACE INTO dirty_names VALUES (?1, ?2)")?
                .execute(params![*id as i64, &**name])?,
            None => connection.prepare_cached("DELETE FROM dirty_names WHERE id = ?1")?.execute([*id as i64])?,
        };
    }
    Ok(())
}

/// SQLite's integers are signed: the bits are kept.
fn key(fid: Fid) -> (u32, i64, i64) {
    (fid.volume.0, fid.vnode as i64, fid.generation as i64)
}

fn fid(row: &Row<'_>, first: usize) -> rusqlite::Result<Fid> {
    Ok(Fid { volume: VolumeId(row.get(first)?), vnode: number(row, first + 1)?, generation: number(row, first + 2)? })
}

fn number(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    row.get::<_, i64>(column).map(|value| value as u64)
}

fn name(row: &Row<'_>, column: usize) -> rusqlite::Result<Name> {
    Ok(row.get_ref(column)?.as_blob_or_null()?.map(Arc::from))
}

fn pack(checksums: &[u32]) -> Vec<u8> {
    checksums.iter().flat_map(|sum| sum.to_le_bytes()).collect()
}

fn unpack(bytes: &[u8]) -> Arc<[u32]> {
    bytes.chunks_exact(4).map(|sum| u32::from_le_bytes([sum[0], sum[1], sum[2], sum[3]])).collect()
}
