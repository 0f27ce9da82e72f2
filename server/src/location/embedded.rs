//! The location service in a server's own store: `location.sqlite`.
//!
//! Records that go by themselves are kept in memory alone: those who put them put them again, also after a restart.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use larder_protocol::runtime::{BootTime, BoxFuture, RuntimeExt, SharedRuntime};
use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use tokio::sync::Notify;

use super::registry::{Change, Entry, Listing, Registry, RegistryError, Transaction};

/// The file in the store's directory.
pub const FILE: &str = "location.sqlite";
/// How long [`Registry::changed`] waits at most.
const WAIT: Duration = Duration::from_secs(60);
/// What revisions go ahead by at each start, so that those of records that were in memory alone are not used again.
const AHEAD: i64 = 1 << 32;

/// The records.
pub struct EmbeddedRegistry {
    inner: Mutex<Inner>,
    changed: Notify,
    runtime: SharedRuntime,
    name: String,
}

struct Inner {
    connection: Connection,
    revision: u64,
    /// Those that go by themselves, and when.
    passing: BTreeMap<String, (Entry, BootTime)>,
}

impl EmbeddedRegistry {
    /// Opens it, or makes it.
    ///
    /// # Errors
    /// SQLite's.
    pub fn open(store: &Path, runtime: SharedRuntime) -> rusqlite::Result<Arc<EmbeddedRegistry>> {
        let path = store.join(FILE);
        let connection = Connection::open(&path)?;
        // Few changes, each of which must be there when it is answered.
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.execute_batch(
            "CREATE TABLE IF NOT EXISTS records (key TEXT PRIMARY KEY, value TEXT NOT NULL, version INTEGER NOT NULL)
                 WITHOUT ROWID;
             CREATE TABLE IF NOT EXISTS revision (number INTEGER NOT NULL);",
        )?;
        let last: Option<i64> = connection.query_row("SELECT number FROM revision", [], |row| row.get(0)).optional()?;
        let revision = last.unwrap_or(0) + AHEAD;
        let set = if last.is_some() { "UPDATE revision SET number = ?1" } else { "INSERT INTO revision VALUES (?1)" };
        connection.execute(set, [revision])?;
        let inner = Inner { connection, revision: revision as u64, passing: BTreeMap::new() };
        let name = format!("the server's own ({})", path.display());
        Ok(Arc::new(EmbeddedRegistry { inner: Mutex::new(inner), changed: Notify::new(), runtime, name }))
    }

    fn error(&self, error: &rusqlite::Error) -> RegistryError {
        RegistryError { service: self.name.clone(), cause: error.to_string() }
    }

    /// Runs something that may wait for the disk.
    fn run<T: Send + 'static>(
        self: Arc<Self>,
        work: impl FnOnce(&mut Inner, BootTime) -> rusqlite::Result<T> + Send + 'static,
    ) -> BoxFuture<Result<T, RegistryError>> {
        Box::pin(async move {
            let this = self.clone();
            let done = self.runtime.blocking(move || {
                let now = this.runtime.boottime();
                let mut inner = this.inner.lock();
                let gone = inner.expire(now);
                let result = work(&mut inner, now).map_err(|error| this.error(&error));
                drop(inner);
                if gone {
                    this.changed.notify_waiters();
                }
                result
            });
            let panicked = || RegistryError { service: self.name.clone(), cause: "it met a defect".to_owned() };
            done.await.unwrap_or_else(|| Err(panicked()))
        })
    }
}

impl Inner {
    /// Forgets what has run out; whether there was any.
    fn expire(&mut self, now: BootTime) -> bool {
        let before = self.passing.len();
        self.passing.retain(|_, (_, until)| *until > now);
        let gone = self.passing.len() < before;
        self.revision += u64::from(gone);
        gone
    }

    fn get(&self, key: &str) -> rusqlite::Result<Option<Entry>> {
        if let Some((entry, _)) = self.passing.get(key) {
            return Ok(Some(entry.clone()));
        }
        let mut statement = self.connection.prepare_cached("SELECT value, version FROM records WHERE key = ?1")?;
        let entry = |row: &rusqlite::Row<'_>| {
            Ok(Entry { key: key.to_owned(), value: row.get(0)?, version: row.get::<_, i64>(1)? as u64 })
        };
        statement.query_row([key], entry).optional()
    }

    fn list(&self, prefix: &str) -> rusqlite::Result<Listing> {
        let sql = "SELECT key, value, version FROM records WHERE substr(key, 1, ?2) = ?1 AND key >= ?1 ORDER BY key";
        let mut statement = self.connection.prepare_cached(sql)?;
        let entry = |row: &rusqlite::Row<'_>| {
            Ok(Entry { key: row.get(0)?, value: row.get(1)?, version: row.get::<_, i64>(2)? as u64 })
        };
        let kept: Vec<Entry> =
            statement.query_map(params![prefix, prefix.chars().count() as i64], entry)?.collect::<Result<_, _>>()?;
        let passing = self.passing.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
        let mut entries: Vec<Entry> = kept.into_iter().chain(passing.map(|(_, (entry, _))| entry.clone())).collect();
        entries.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Listing { entries, revision: self.revision })
    }

    fn transact(&mut self, transaction: &Transaction, now: BootTime) -> rusqlite::Result<Option<u64>> {
        for expected in &transaction.expected {
            let version = self.get(&expected.key)?.map_or(0, |entry| entry.version);
            if version != expected.version {
                return Ok(None);
            }
        }
        if let [Change { key, value: Some(value), ttl: Some(ttl) }] = &transaction.changes[..]
            && let Some((entry, until)) = self.passing.get_mut(key)
            && entry.value == *value
        {
            // Nobody need look at everything because somebody is still there.
            *until = now.saturating_add(*ttl);
            return Ok(Some(entry.version));
        }
        let version = self.revision + 1;
        let kept: Vec<&Change> = transaction.changes.iter().filter(|change| change.ttl.is_none()).collect();
        if !kept.is_empty() {
            let batch = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            for Change { key, value, .. } in kept {
                match value {
                    Some(value) => batch.execute(
                        "INSERT OR REPLACE INTO records VALUES (?1, ?2, ?3)",
                        params![key, value, version as i64],
                    )?,
                    None => batch.execute("DELETE FROM records WHERE key = ?1", [key])?,
                };
            }
            batch.execute("UPDATE revision SET number = ?1", [version as i64])?;
            batch.commit()?;
        }
        self.revision = version;
        for Change { key, value, ttl } in &transaction.changes {
            self.passing.remove(key);
            if let (Some(value), Some(ttl)) = (value, ttl) {
                let entry = Entry { key: key.clone(), value: value.clone(), version };
                self.passing.insert(key.clone(), (entry, now.saturating_add(*ttl)));
            }
        }
        Ok(Some(version))
    }
}

impl Registry for EmbeddedRegistry {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn is_own(&self) -> bool {
        true
    }

    fn get(self: Arc<Self>, key: String) -> BoxFuture<Result<Option<Entry>, RegistryError>> {
        self.run(move |inner, _| inner.get(&key))
    }

    fn list(self: Arc<Self>, prefix: String) -> BoxFuture<Result<Listing, RegistryError>> {
        self.run(move |inner, _| inner.list(&prefix))
    }

    fn transact(self: Arc<Self>, transaction: Transaction) -> BoxFuture<Result<Option<u64>, RegistryError>> {
        let this = self.clone();
        let done = self.run(move |inner, now| inner.transact(&transaction, now));
        Box::pin(async move {
            let done = done.await?;
            if done.is_some() {
                this.changed.notify_waiters();
            }
            Ok(done)
        })
    }

    // All prefixes have one revision: few things change, and a look more than needed costs little.
    fn changed(self: Arc<Self>, _prefix: String, revision: u64) -> BoxFuture<Result<u64, RegistryError>> {
        Box::pin(async move {
            let until = self.runtime.boottime().saturating_add(WAIT);
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                // Registered before it is looked, so that no change is missed.
                changed.as_mut().enable();
                let now = self.runtime.boottime();
                let (current, next) = {
                    let mut inner = self.inner.lock();
                    inner.expire(now);
                    (inner.revision, inner.passing.values().map(|(_, until)| *until).min())
                };
                if current != revision || now >= until {
                    return Ok(current);
                }
                let wait = next.unwrap_or(until).min(until).saturating_sub(now);
                tokio::select! {
                    biased;
                    () = changed => {}
                    () = self.runtime.sleep(wait) => {}
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use larder_protocol::runtime::SystemRuntime;

    use super::super::registry::Expected;
    use super::*;

    fn open(dir: &Path) -> Arc<EmbeddedRegistry> {
        EmbeddedRegistry::open(dir, Arc::new(SystemRuntime::new(tokio::runtime::Handle::current()))).unwrap()
    }

    fn transaction(expected: &[(&str, u64)], changes: &[Change]) -> Transaction {
        let expected = expected.iter().map(|(key, version)| Expected { key: (*key).to_owned(), version: *version });
        Transaction { expected: expected.collect(), changes: changes.to_vec() }
    }

    #[tokio::test]
    async fn a_transaction_takes_place_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let registry = open(dir.path());
        let both = [Change::put("a", "1"), Change::put("b", "2")];
        assert!(registry.clone().transact(transaction(&[("a", 0), ("b", 0)], &both)).await.unwrap().is_some());
        let other = [Change::put("a", "3"), Change::remove("b")];
        assert_eq!(registry.clone().transact(transaction(&[("a", 0)], &other)).await.unwrap(), None, "R1");
        let first = registry.clone().get("a".to_owned()).await.unwrap().unwrap();
        assert_eq!(first.value, "1");
        let made = registry.clone().transact(transaction(&[("a", first.version)], &other)).await.unwrap();
        assert!(made.is_some_and(|revision| revision > first.version), "R2");
        assert_eq!(registry.clone().transact(transaction(&[("a", first.version)], &other)).await.unwrap(), None, "R2");
        assert_eq!(registry.clone().get("b".to_owned()).await.unwrap(), None);
        // A put of the same is another version, also after a restart.
        let second = registry.clone().get("a".to_owned()).await.unwrap().unwrap();
        assert_eq!(made, Some(second.version), "R2");
        drop(registry);
        let registry = open(dir.path());
        assert_eq!(registry.clone().get("a".to_owned()).await.unwrap(), Some(second.clone()));
        assert!(registry.clone().transact(transaction(&[], &[Change::put("a", "3")])).await.unwrap().is_some());
        assert!(registry.get("a".to_owned()).await.unwrap().unwrap().version > second.version, "R2");
    }

    #[tokio::test]
    async fn a_listing_has_what_is_below_the_prefix() {
        let dir = tempfile::tempdir().unwrap();
        let registry = open(dir.path());
        let passing = Change { ttl: Some(Duration::from_secs(60)), ..Change::put("v/2", "passing") };
        let changes = [Change::put("v/1", "x"), Change::put("v/3", "y"), Change::put("w/1", "z"), passing];
        registry.clone().transact(transaction(&[], &changes)).await.unwrap();
        let keys = |listing: Listing| listing.entries.into_iter().map(|entry| entry.key).collect::<Vec<_>>();
        assert_eq!(keys(registry.clone().list("v/".to_owned()).await.unwrap()), ["v/1", "v/2", "v/3"]);
        assert_eq!(keys(registry.list("u/".to_owned()).await.unwrap()), [""; 0]);
    }

    #[tokio::test]
    async fn who_waits_learns_of_changes_and_of_what_runs_out() {
        let dir = tempfile::tempdir().unwrap();
        let registry = open(dir.path());
        let revision = registry.clone().list(String::new()).await.unwrap().revision;
        let waiting = tokio::spawn(registry.clone().changed(String::new(), revision));
        let passing = Change { ttl: Some(Duration::from_millis(30)), ..Change::put("s", "here") };
        registry.clone().transact(transaction(&[], &[passing])).await.unwrap();
        let next = waiting.await.unwrap().unwrap();
        assert_ne!(next, revision);
        assert_ne!(registry.clone().changed(String::new(), next).await.unwrap(), next, "it ran out");
        assert_eq!(registry.get("s".to_owned()).await.unwrap(), None);
    }
}
