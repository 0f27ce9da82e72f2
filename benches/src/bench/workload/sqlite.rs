//! A database: each transaction is synced, and rolled back from a journal after a crash.

use std::time::Duration;

use anyhow::{Result, ensure};
use rusqlite::Connection;

use super::{Bench, Workload};
use crate::bench::results::Unit;

pub(super) struct Sqlite;

impl Workload for Sqlite {
    fn round(&self, bench: &mut Bench<'_>) -> Result<()> {
        let place = bench.make_place()?;
        let count = bench.inputs.scale.pick(5, 100, 1000);
        let mut database = Connection::open(place.join("database"))?;
        database.busy_timeout(Duration::from_secs(30))?;
        database.pragma_update(None, "journal_mode", "DELETE")?;
        database.pragma_update(None, "synchronous", "FULL")?;
        database.execute_batch("CREATE TABLE entries (id INTEGER PRIMARY KEY, text TEXT NOT NULL)")?;
        bench.rate("transactions", Unit::PerSecond, || {
            for id in 0..count {
                let transaction = database.transaction()?;
                transaction.execute("INSERT INTO entries VALUES (?1, ?2)", (id, "text ".repeat(40)))?;
                transaction.commit()?;
            }
            Ok(f64::from(count))
        })?;
        let reads = count * 20;
        bench.rate("queries", Unit::PerSecond, || {
            for number in 0..reads {
                let id = number * 7 % count;
                let text: String =
                    database.query_row("SELECT text FROM entries WHERE id = ?1", [id], |row| row.get(0))?;
                ensure!(text.len() == 200, "entry {id} has {} bytes", text.len());
            }
            Ok(f64::from(reads))
        })
    }
}
