//! A database with a rollback journal, and `synchronous=FULL`.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::process::Command;

use rand::Rng;
use rand::rngs::SmallRng;

use super::{Broken, Workload, none_if_missing, run};

/// Rows of a transaction at most.
const ROWS: u64 = 20;

/// Transactions until the next database is begun: a check looks at all of them.
const TRANSACTIONS: usize = 2000;

/// Each transaction that was committed is there whole, and the database is sound.
#[derive(Default)]
pub(super) struct Sqlite {
    database: u64,
    /// Its table is there.
    is_made: bool,
    /// The number of the last transaction that was begun.
    tried: u64,
    /// Those that are in this database: committed, or seen in it.
    committed: BTreeSet<u64>,
    /// One that was not answered, and may be there or not.
    undecided: Option<u64>,
    total: u64,
}

impl Sqlite {
    fn sql(&self, dir: &Path, sql: &str) -> io::Result<String> {
        let mut command = Command::new("sqlite3");
        let database = dir.join(format!("database-{}", self.database));
        command.args(["-batch", "-bail", "-cmd", ".timeout 60000"]).arg(database).arg(sql);
        run(dir, &mut command)
    }
}

impl Workload for Sqlite {
    fn name(&self) -> &'static str {
        "sqlite"
    }

    fn is_program(&self) -> bool {
        true
    }

    fn step(&mut self, dir: &Path, random: &mut SmallRng) -> io::Result<()> {
        if self.committed.len() >= TRANSACTIONS {
            // Before it is removed, so that nobody looks for what is in it.
            let old = std::mem::take(self);
            *self = Sqlite { database: old.database + 1, total: old.total, ..Sqlite::default() };
        }
        if let Some(old) = self.database.checked_sub(1).filter(|_| !self.is_made) {
            // Its journal goes with it, should a transaction have been cut.
            none_if_missing(std::fs::remove_file(dir.join(format!("database-{old}"))))?;
            none_if_missing(std::fs::remove_file(dir.join(format!("database-{old}-journal"))))?;
        }
        if !self.is_made {
            self.sql(
                dir,
                "PRAGMA journal_mode=DELETE; CREATE TABLE IF NOT EXISTS t(tx INTEGER, row INTEGER, of INTEGER);",
            )?;
            self.is_made = true;
        }
        self.tried += 1;
        let (tx, rows) = (self.tried, random.random_range(1..=ROWS));
        let values: Vec<String> = (0..rows).map(|row| format!("({tx},{row},{rows})")).collect();
        let sql =
            format!("PRAGMA synchronous=FULL; BEGIN IMMEDIATE; INSERT INTO t VALUES {}; COMMIT;", values.join(","));
        self.undecided = Some(tx);
        self.sql(dir, &sql)?;
        self.undecided = None;
        self.committed.insert(tx);
        self.total += 1;
        Ok(())
    }

    fn check(&mut self, dir: &Path) -> io::Result<Result<(), Broken>> {
        if !self.is_made {
            return Ok(Ok(()));
        }
        let sound = self.sql(dir, "PRAGMA integrity_check;")?;
        if sound.trim() != "ok" {
            return Ok(Err(format!("the database is damaged: {}", sound.trim())));
        }
        let torn = self.sql(dir, "SELECT tx FROM t GROUP BY tx HAVING count(*) != max(of);")?;
        if !torn.trim().is_empty() {
            return Ok(Err(format!("transactions that are not whole: {}", torn.trim())));
        }
        let found = self.sql(dir, "SELECT DISTINCT tx FROM t;")?;
        let found: BTreeSet<u64> = found.lines().filter_map(|line| line.trim().parse().ok()).collect();
        let lost: Vec<_> = self.committed.difference(&found).collect();
        let strange: Vec<_> = found.difference(&self.committed).filter(|tx| Some(**tx) != self.undecided).collect();
        if !lost.is_empty() || !strange.is_empty() {
            return Ok(Err(format!("committed and lost: {lost:?}; not committed, and there: {strange:?}")));
        }
        // Seen or not seen, that is for good.
        (self.committed, self.undecided) = (found, None);
        Ok(Ok(()))
    }

    fn acknowledged(&self) -> u64 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

    use rand::SeedableRng;

    use super::*;
    use crate::process::scratch;

    #[test]
    fn a_transaction_that_is_lost_or_cut_is_noticed() {
        let (dir, mut random) = (scratch().unwrap(), SmallRng::seed_from_u64(1));
        let mut sqlite = Sqlite::default();
        (0..4).for_each(|_| sqlite.step(dir.path(), &mut random).unwrap());
        assert_eq!(sqlite.check(dir.path()).unwrap(), Ok(()));
        for damage in ["DELETE FROM t WHERE tx = 2;", "DELETE FROM t WHERE tx = 4;", "INSERT INTO t VALUES (9, 0, 2);"]
        {
            let good = std::fs::read(dir.path().join("database-0")).unwrap();
            sqlite.sql(dir.path(), damage).unwrap();
            assert!(sqlite.check(dir.path()).unwrap().is_err(), "{damage}");
            std::fs::write(dir.path().join("database-0"), good).unwrap();
        }
        assert_eq!(sqlite.settle(dir.path()).unwrap(), Ok(()));
    }
}
