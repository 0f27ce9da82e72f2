//! Reading: a pool of connections for it, snapshots that borrow one each, and those that borrow the writer's.

use std::ops::Bound;
use std::path::PathBuf;

use parking_lot::{Mutex, MutexGuard};
use rusqlite::{Connection, OpenFlags, params};

use super::statements::{self, Key, Statements};
use super::{STATEMENT_CACHE, Writer, engine_error, set_up};
use crate::volume::error::{StoreError, StoreResult};
use crate::volume::keys::Table;
use crate::volume::meta::{Row, Snapshot};

/// Read connections that are kept when nobody uses them. More are opened under load and closed after use.
const IDLE_MAX: usize = 8;

/// KiB of pages that a read connection keeps; the kernel's page cache has the rest.
const CACHE_KIB: i64 = 1024;

/// The read connections.
#[derive(Debug)]
pub(super) struct Pool {
    path: PathBuf,
    statements: Statements,
    /// Used from the end: the connection used last has the warmest cache.
    idle: Mutex<Vec<Connection>>,
}

impl Pool {
    pub(super) fn new(path: PathBuf) -> Pool {
        Pool { path, statements: Statements::new(), idle: Mutex::new(Vec::new()) }
    }

    fn connect(&self) -> StoreResult<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.path, flags).map_err(engine_error)?;
        set_up(&connection, CACHE_KIB)?;
        connection.pragma_update(None, "query_only", true).map_err(engine_error)?;
        connection.set_prepared_statement_cache_capacity(STATEMENT_CACHE);
        Ok(connection)
    }

    /// A view of everything committed before this call.
    pub(super) fn snapshot(&self) -> StoreResult<SqliteSnapshot<'_>> {
        let idle = self.idle.lock().pop();
        let connection = match idle {
            Some(connection) => connection,
            None => self.connect()?,
        };
        // BEGIN alone pins nothing; the first read does.
        run(&connection, "BEGIN")?;
        let snapshot = SqliteSnapshot { pool: self, connection: Some(connection) };
        snapshot.get(Table::Header, b"")?;
        Ok(snapshot)
    }
}

pub(super) fn run(connection: &Connection, sql: &str) -> StoreResult<()> {
    execute(connection, sql).map_err(engine_error)
}

/// As [`run`], with the error as it is.
pub(super) fn execute(connection: &Connection, sql: &str) -> rusqlite::Result<()> {
    connection.prepare_cached(sql)?.execute([]).map(drop)
}

/// A read transaction on a connection of the pool.
pub(super) struct SqliteSnapshot<'p> {
    pool: &'p Pool,
    /// There until the drop.
    connection: Option<Connection>,
}

/// A read transaction on the writer's connection, which does nothing else meanwhile.
pub(super) struct WarmSnapshot<'w> {
    statements: &'w Statements,
    /// There is one: [`WarmSnapshot::new`] saw to it.
    writer: MutexGuard<'w, Option<Writer>>,
}

impl<'w> WarmSnapshot<'w> {
    /// Begins one.
    ///
    /// # Errors
    /// The engine's, and that there is no connection.
    pub(super) fn new(
        statements: &'w Statements,
        writer: MutexGuard<'w, Option<Writer>>,
    ) -> StoreResult<WarmSnapshot<'w>> {
        let snapshot = WarmSnapshot { statements, writer };
        run(snapshot.connection()?, "BEGIN")?;
        Ok(snapshot)
    }
}

impl Drop for WarmSnapshot<'_> {
    fn drop(&mut self) {
        let ended = match self.connection() {
            Ok(connection) if connection.is_autocommit() => Ok(()),
            Ok(connection) => run(connection, "COMMIT"),
            Err(_) => return,
        };
        if let Err(error) = ended {
            tracing::warn!("a read transaction did not end well, so the writer's connection is closed: {error}");
            *self.writer = None;
        }
    }
}

/// What a snapshot reads by.
trait Reads {
    fn connection(&self) -> StoreResult<&Connection>;
    fn statements(&self) -> &Statements;
}

impl Reads for SqliteSnapshot<'_> {
    fn connection(&self) -> StoreResult<&Connection> {
        self.connection.as_ref().ok_or_else(|| StoreError::Engine("the snapshot has ended".to_owned()))
    }

    fn statements(&self) -> &Statements {
        &self.pool.statements
    }
}

impl Reads for WarmSnapshot<'_> {
    fn connection(&self) -> StoreResult<&Connection> {
        let writer = self.writer.as_ref().map(|writer| &writer.connection);
        writer.ok_or_else(|| StoreError::Engine("the writer's connection is closed".to_owned()))
    }

    fn statements(&self) -> &Statements {
        self.statements
    }
}

impl<R: Reads> Snapshot for R {
    fn get(&self, table: Table, key: &[u8]) -> StoreResult<Option<Vec<u8>>> {
        let Some(key) = Key::of(table, key) else { return Ok(None) };
        let sql = &self.statements().of(table).get;
        let mut statement = self.connection()?.prepare_cached(sql).map_err(engine_error)?;
        let mut rows = statement.query([key]).map_err(engine_error)?;
        let Some(row) = rows.next().map_err(engine_error)? else { return Ok(None) };
        Ok(Some(blob(row, 0)?.to_vec()))
    }

    fn range(&self, table: Table, from: Bound<&[u8]>, to: Bound<&[u8]>, limit: usize) -> StoreResult<Vec<Row>> {
        let Some((sql, from, to)) = statements::range(self.statements(), table, from, to) else {
            return Ok(Vec::new());
        };
        let mut statement = self.connection()?.prepare_cached(sql).map_err(engine_error)?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut rows = statement.query(params![from, to, limit]).map_err(engine_error)?;
        let mut found = Vec::new();
        while let Some(row) = rows.next().map_err(engine_error)? {
            let key = if table.has_number_keys() {
                let number: i64 = row.get(0).map_err(engine_error)?;
                number.cast_unsigned().to_be_bytes().to_vec()
            } else {
                blob(row, 0)?.to_vec()
            };
            found.push((key, blob(row, 1)?.to_vec()));
        }
        Ok(found)
    }
}

fn blob<'r>(row: &'r rusqlite::Row<'_>, column: usize) -> StoreResult<&'r [u8]> {
    let value = row.get_ref(column).map_err(engine_error)?;
    value.as_blob().map_err(|error| StoreError::Corrupt(format!("a row of meta.sqlite has a wrong type: {error}")))
}

impl Drop for SqliteSnapshot<'_> {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else { return };
        // A connection that cannot end its transaction is closed, which ends it too.
        if let Err(error) = run(&connection, "COMMIT") {
            tracing::warn!("a read transaction did not end well, so its connection is closed: {error}");
            return;
        }
        let mut idle = self.pool.idle.lock();
        if idle.len() < IDLE_MAX {
            idle.push(connection);
        }
    }
}
