//! The metadata engine on disk: SQLite with a write-ahead log.
//!
//! One write connection, read connections beside it, and one for checkpoints, so that moving the log into the
//! database file does not hold up commits. A commit is durable once the log is synced: by SQLite when the batch asks
//! for it (`synchronous=FULL`), or later, for many batches at once, by [`Metadata::sync`].

mod reading;
mod statements;

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rusqlite::{Connection, ErrorCode, OpenFlags, ffi, params};

use self::reading::{Pool, WarmSnapshot};
use self::statements::{Key, Statements};
use super::{Batch, Metadata, Snapshot};
use crate::volume::Durability;
use crate::volume::error::{StoreError, StoreResult};
use crate::volume::keys::Table;

/// Bytes of a page. Most rows are small and most batches touch few pages, each of which the log holds whole, so the
/// smallest size that the disk writes at once is the best.
const PAGE: i64 = 4096;

/// Pages in the log at which a commit moves them itself, should [`Metadata::tidy`] not have come (64 MiB).
const CHECKPOINT_PAGES: i64 = 16 << 10;

/// Bytes of the log's file above which [`Metadata::tidy`] cuts it.
const LOG_LARGE: u64 = 16 << 20;

/// KiB of pages that the write connection keeps.
const WRITE_CACHE_KIB: i64 = 8 << 10;

/// How long a connection waits for another one's lock. They are held for microseconds.
const BUSY: Duration = Duration::from_secs(10);

/// Prepared statements kept by a connection: all there can be.
const STATEMENT_CACHE: usize = 12 * 9 + 4;

/// The engine.
#[derive(Debug)]
pub struct SqliteMetadata {
    path: PathBuf,
    durability: Durability,
    statements: Statements,
    /// Empty after a failure that left the connection useless; the next commit opens another.
    writer: Mutex<Option<Writer>>,
    readers: Pool,
    checkpointer: Mutex<Connection>,
    /// The log, for syncing it. SQLite locks only the database file and the index of the log, so opening and closing
    /// this one does not drop any of its locks (fcntl(2), "record locks").
    log: File,
    committed: AtomicU64,
    durable: AtomicU64,
    tidied: AtomicU64,
    /// A sync failed: the kernel has dropped what it could not write and a second sync would succeed all the same.
    sync_failed: AtomicBool,
    /// The last commit failed, and may be in effect after the next start all the same: where the log could not be synced
    /// it holds the whole batch, which only this process leaves out. The next commit takes its place.
    in_doubt: AtomicBool,
}

#[derive(Debug)]
struct Writer {
    connection: Connection,
    syncs: bool,
}

impl Writer {
    fn open(path: &Path) -> StoreResult<Writer> {
        let connection = connect(path, OpenFlags::empty(), WRITE_CACHE_KIB)?;
        let pragma = |name, value| connection.pragma_update(None, name, value).map_err(engine_error);
        pragma("wal_autocheckpoint", CHECKPOINT_PAGES)?;
        pragma("synchronous", 2)?;
        connection.set_prepared_statement_cache_capacity(STATEMENT_CACHE);
        Ok(Writer { connection, syncs: true })
    }

    fn run(&self, sql: &str) -> StoreResult<()> {
        reading::run(&self.connection, sql)
    }

    /// Sets whether commits sync the log (`FULL`) or not (`NORMAL`).
    fn set_syncs(&mut self, syncs: bool) -> StoreResult<()> {
        if self.syncs != syncs {
            let level = if syncs { "FULL" } else { "NORMAL" };
            self.connection.pragma_update(None, "synchronous", level).map_err(engine_error)?;
            self.syncs = syncs;
        }
        Ok(())
    }

    fn commit(&self, statements: &Statements, batch: &Batch) -> Result<(), Uncommitted> {
        self.run("BEGIN IMMEDIATE")?;
        for (table, key, value) in &batch.changes {
            let sql = statements.of(*table);
            let key = Key::to_write(*table, key)?;
            match value {
                Some(value) => {
                    let mut put = self.connection.prepare_cached(&sql.put).map_err(engine_error)?;
                    put.execute(params![key, value]).map_err(engine_error)?;
                }
                None => {
                    let mut delete = self.connection.prepare_cached(&sql.delete).map_err(engine_error)?;
                    delete.execute([key]).map_err(engine_error)?;
                }
            }
        }
        reading::execute(&self.connection, "COMMIT").map_err(|error| {
            // The log's index grows after the log was written, and synced (walFrames in SQLite's wal.c).
            let is_written = is_of_index(&error);
            Uncommitted { error: engine_error(error), is_written }
        })
    }
}

/// Why a batch is not committed.
struct Uncommitted {
    error: StoreError,
    /// Whether all of it may be in the log, though there was no room for something else.
    is_written: bool,
}

impl From<StoreError> for Uncommitted {
    fn from(error: StoreError) -> Uncommitted {
        Uncommitted { error, is_written: false }
    }
}

impl SqliteMetadata {
    /// Makes a database without rows at `path`, where nothing may be yet.
    ///
    /// # Errors
    /// `Io` if something is there; the engine's.
    pub fn create(path: &Path, durability: Durability) -> StoreResult<SqliteMetadata> {
        // The file is made here, for SQLite would open one that is there.
        OpenOptions::new().write(true).create_new(true).open(path)?;
        let connection = connect(path, OpenFlags::SQLITE_OPEN_CREATE, WRITE_CACHE_KIB)?;
        connection.pragma_update(None, "page_size", PAGE).map_err(engine_error)?;
        let mode: String =
            connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0)).map_err(engine_error)?;
        if mode != "wal" {
            let directory = path.parent().unwrap_or(path).display();
            return Err(StoreError::Engine(format!("SQLite cannot keep a write-ahead log in {directory}")));
        }
        let schema = statements::schema();
        connection.execute_batch(&format!("BEGIN IMMEDIATE; {schema} COMMIT;")).map_err(engine_error)?;
        drop(connection);
        if let Some(directory) = path.parent() {
            File::open(directory)?.sync_all()?;
        }
        SqliteMetadata::open(path, durability)
    }

    /// Opens the database at `path`. What an earlier process left in the log is in it, and durable.
    ///
    /// # Errors
    /// `Io` if there is none; `Corrupt` if it is none of Larder's; the engine's.
    pub fn open(path: &Path, durability: Durability) -> StoreResult<SqliteMetadata> {
        // Not by opening it: closing that descriptor would drop the locks of other connections to it.
        std::fs::metadata(path)?;
        let writer = Writer::open(path)?;
        let tables: i64 = writer
            .connection
            .query_row("SELECT count(*) FROM sqlite_schema WHERE type = 'table'", [], |row| row.get(0))
            .map_err(engine_error)?;
        if tables != Table::ALL.len() as i64 {
            return Err(StoreError::Corrupt(format!("{} has not the tables of a volume", path.display())));
        }
        let checkpointer = connect(path, OpenFlags::empty(), WRITE_CACHE_KIB)?;
        // Cutting the log must not wait for readers while it holds up commits: it comes again another time.
        checkpointer.busy_timeout(Duration::ZERO).map_err(engine_error)?;
        // The read of the tables above has made the log if there was none, and it stays while a connection is open.
        let mut log = path.as_os_str().to_owned();
        log.push("-wal");
        let log = OpenOptions::new().read(true).write(true).open(&log)?;
        log.sync_data()?;
        if let Some(directory) = path.parent() {
            File::open(directory)?.sync_all()?;
        }
        Ok(SqliteMetadata {
            path: path.to_owned(),
            durability,
            statements: Statements::new(),
            writer: Mutex::new(Some(writer)),
            readers: Pool::new(path.to_owned()),
            checkpointer: Mutex::new(checkpointer),
            log,
            committed: AtomicU64::new(0),
            durable: AtomicU64::new(0),
            tidied: AtomicU64::new(0),
            sync_failed: AtomicBool::new(false),
            in_doubt: AtomicBool::new(false),
        })
    }

    /// What SQLite's own check of its file finds, one sentence each; empty if all is well.
    ///
    /// # Errors
    /// The engine's, if it cannot even look.
    pub fn integrity(&self) -> StoreResult<Vec<String>> {
        let connection = self.checkpointer.lock();
        let mut statement = connection.prepare("PRAGMA integrity_check").map_err(engine_error)?;
        let lines = statement.query_map([], |row| row.get::<_, String>(0)).map_err(engine_error)?;
        let lines = lines.collect::<Result<Vec<String>, _>>().map_err(engine_error)?;
        Ok(lines.into_iter().filter(|line| line != "ok").collect())
    }

    fn check_trust(&self) -> StoreResult<()> {
        if self.sync_failed.load(Ordering::Acquire) {
            let path = self.path.display();
            return Err(StoreError::Engine(format!(
                "{path} could not be synced before, so what it holds is uncertain; check the disk and restart"
            )));
        }
        Ok(())
    }

    /// Cuts the log if it has grown large. Says whether it is small: whoever reads from it or commits keeps it.
    fn cut_log(&self, checkpointer: &Connection) -> StoreResult<bool> {
        let is_small = || Ok(self.log.metadata()?.len() <= LOG_LARGE);
        if is_small()? {
            return Ok(true);
        }
        // The cut needs SQLite's write lock, which a commit must never find taken.
        let Some(_no_commit) = self.writer.try_lock() else { return Ok(false) };
        checkpoint(checkpointer, "PRAGMA wal_checkpoint(TRUNCATE)")?;
        is_small()
    }
}

impl Metadata for SqliteMetadata {
    fn snapshot(&self) -> StoreResult<Box<dyn Snapshot + '_>> {
        Ok(Box::new(self.readers.snapshot()?))
    }

    fn glance(&self) -> StoreResult<Box<dyn Snapshot + '_>> {
        // A commit of another connection empties the cache of each that reads, but not that of the writer, who is the
        // only one to commit.
        match self.writer.try_lock() {
            Some(writer) if writer.is_some() => Ok(Box::new(WarmSnapshot::new(&self.statements, writer)?)),
            _ => self.snapshot(),
        }
    }

    fn commit(&self, sequence: u64, batch: &Batch, durable: bool) -> StoreResult<()> {
        let durable = durable && self.durability == Durability::Power;
        self.check_trust()?;
        let mut place = self.writer.lock();
        let mut writer = match place.take() {
            Some(writer) => writer,
            None => Writer::open(&self.path)?,
        };
        let result =
            writer.set_syncs(durable).map_err(Uncommitted::from).and_then(|()| writer.commit(&self.statements, batch));
        match result {
            Ok(()) => {
                *place = Some(writer);
                // In this order: who sees that the doubt has ended has the batch that ended it synced.
                self.committed.store(sequence, Ordering::Release);
                self.in_doubt.store(false, Ordering::Release);
                if durable {
                    self.durable.fetch_max(sequence, Ordering::AcqRel);
                }
                Ok(())
            }
            Err(Uncommitted { error, is_written }) => {
                if matches!(&error, StoreError::Io(error) if error.get_ref().is_some_and(|e| e.is::<SyncFailed>())) {
                    self.sync_failed.store(true, Ordering::Release);
                }
                // Where the log had no room, the end of the batch was not written, which makes it one.
                if is_written || !matches!(error, StoreError::Full) {
                    self.in_doubt.store(true, Ordering::Release);
                }
                // SQLite has rolled back by itself after some errors. A connection that cannot is closed, which does.
                if writer.connection.is_autocommit() || writer.run("ROLLBACK").is_ok() {
                    *place = Some(writer);
                }
                Err(error)
            }
        }
    }

    fn is_in_doubt(&self) -> bool {
        self.in_doubt.load(Ordering::Acquire)
    }

    fn durable_up_to(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    fn sync(&self) -> StoreResult<()> {
        self.check_trust()?;
        // Whatever is committed is in the log, or was moved to the database file, which a checkpoint syncs before
        // the log may begin anew.
        let committed = self.committed.load(Ordering::Acquire);
        if committed > self.durable.load(Ordering::Acquire) {
            if let Err(error) = self.log.sync_data() {
                self.sync_failed.store(true, Ordering::Release);
                return Err(error.into());
            }
            self.durable.fetch_max(committed, Ordering::AcqRel);
        }
        Ok(())
    }

    fn tidy(&self) -> StoreResult<()> {
        let committed = self.committed.load(Ordering::Acquire);
        if committed == self.tidied.load(Ordering::Acquire) {
            return Ok(());
        }
        let checkpointer = self.checkpointer.lock();
        checkpoint(&checkpointer, "PRAGMA wal_checkpoint(PASSIVE)")?;
        if self.cut_log(&checkpointer)? {
            self.tidied.store(committed, Ordering::Release);
        }
        Ok(())
    }
}

/// Moves what it can of the log; what readers still need is moved another time.
fn checkpoint(connection: &Connection, sql: &str) -> StoreResult<()> {
    match connection.query_row(sql, [], |_| Ok(())) {
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => Ok(()),
        result => result.map_err(engine_error),
    }
}

fn connect(path: &Path, more: OpenFlags, cache_kib: i64) -> StoreResult<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | more;
    let connection = Connection::open_with_flags(path, flags).map_err(engine_error)?;
    set_up(&connection, cache_kib)?;
    Ok(connection)
}

/// What all connections have in common.
fn set_up(connection: &Connection, cache_kib: i64) -> StoreResult<()> {
    // Nobody else uses the file. But a reader that meets the log's index in the middle of a change takes the write
    // lock for a moment to look again, and a commit may find it taken.
    connection.busy_timeout(BUSY).map_err(engine_error)?;
    let pragma = |name, value: i64| connection.pragma_update(None, name, value).map_err(engine_error);
    // Negative: KiB instead of pages.
    pragma("cache_size", -cache_kib)?;
    pragma("temp_store", 2)?;
    pragma("mmap_size", 0)?;
    pragma("trusted_schema", 0)?;
    pragma("journal_size_limit", LOG_LARGE as i64)
}

/// Marks an error of the sync at a commit's end.
#[derive(Debug, thiserror::Error)]
#[error("meta.sqlite could not be synced: {0}")]
struct SyncFailed(rusqlite::Error);

/// Whether the log's index could not grow.
fn is_of_index(error: &rusqlite::Error) -> bool {
    error.sqlite_error().is_some_and(|error| error.extended_code == ffi::SQLITE_IOERR_SHMSIZE)
}

fn engine_error(error: rusqlite::Error) -> StoreError {
    let extended = error.sqlite_error().map(|error| error.extended_code);
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::Full,
        Some(_) if is_of_index(&error) => StoreError::Full,
        Some(_) if matches!(extended, Some(ffi::SQLITE_IOERR_FSYNC | ffi::SQLITE_IOERR_DIR_FSYNC)) => {
            StoreError::Io(std::io::Error::other(SyncFailed(error)))
        }
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            StoreError::Corrupt(format!("meta.sqlite: {error}"))
        }
        Some(ErrorCode::SystemIoFailure) => StoreError::Io(std::io::Error::other(error)),
        None if matches!(error, rusqlite::Error::InvalidColumnType(..)) => {
            StoreError::Corrupt(format!("meta.sqlite: {error}"))
        }
        _ => StoreError::Engine(error.to_string()),
    }
}

#[cfg(test)]
mod tests;
