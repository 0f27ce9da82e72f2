//! A metadata engine in memory, for tests and simulations: it can lose what was not synced, and fail when told to.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use super::{Batch, Metadata, Row, Snapshot};
use crate::volume::error::{StoreError, StoreResult};
use crate::volume::keys::Table;

/// Shared until changed: a snapshot is one reference for each table, and a commit copies only tables that it changes
/// while a snapshot holds them.
type Rows = Arc<BTreeMap<Vec<u8>, Arc<[u8]>>>;

#[derive(Clone, Debug)]
struct Tables(Vec<Rows>);

impl Tables {
    fn new() -> Tables {
        Tables(Table::ALL.iter().map(|_| Rows::default()).collect())
    }

    fn apply(&mut self, batch: &Batch) {
        for (table, key, value) in &batch.changes {
            let rows = Arc::make_mut(&mut self.0[*table as usize]);
            match value {
                Some(value) => rows.insert(key.clone(), value.as_slice().into()),
                None => rows.remove(key),
            };
        }
    }
}

#[derive(Debug)]
struct State {
    /// What snapshots see.
    live: Tables,
    /// What a power cut leaves at least.
    disk: Tables,
    /// What lies between the two, in order.
    unsynced: Vec<(u64, Batch)>,
    durable: u64,
    fail_next_commit: Option<StoreError>,
    /// Commits until one fails and comes to the disk all the same.
    until_doubt: Option<usize>,
    /// That batch.
    in_doubt: Option<(u64, Batch)>,
    /// Whether no other is accepted then.
    doubt_lasts: bool,
    is_full: bool,
}

impl State {
    fn make_durable(&mut self) {
        for (sequence, batch) in self.unsynced.drain(..) {
            self.disk.apply(&batch);
            self.durable = sequence;
        }
    }
}

/// The engine.
#[derive(Debug)]
pub struct MemoryMetadata {
    state: RwLock<State>,
    /// Held over a commit, as the one writer of an engine on disk would be.
    writer: Mutex<()>,
}

impl Default for MemoryMetadata {
    fn default() -> Self {
        MemoryMetadata::new()
    }
}

impl MemoryMetadata {
    /// An engine without rows.
    pub fn new() -> MemoryMetadata {
        MemoryMetadata::starting_with(Tables::new(), 0)
    }

    fn starting_with(tables: Tables, durable: u64) -> MemoryMetadata {
        let (live, disk) = (tables.clone(), tables);
        let state = State {
            live,
            disk,
            unsynced: Vec::new(),
            durable,
            fail_next_commit: None,
            until_doubt: None,
            in_doubt: None,
            doubt_lasts: true,
            is_full: false,
        };
        MemoryMetadata { state: RwLock::new(state), writer: Mutex::new(()) }
    }

    /// What a power cut at this moment leaves: every durable batch, and of the others those up to the sequence number
    /// `up_to`. Batches go to the disk in order, so it is always the first ones that survive. The last of them is one that
    /// failed and is in doubt.
    pub fn power_cut(&self, up_to: u64) -> MemoryMetadata {
        let state = self.state.read();
        let (mut tables, mut durable) = (state.disk.clone(), state.durable);
        for (sequence, batch) in
            state.unsynced.iter().chain(&state.in_doubt).take_while(|(sequence, _)| *sequence <= up_to)
        {
            tables.apply(batch);
            durable = *sequence;
        }
        MemoryMetadata::starting_with(tables, durable)
    }

    /// Lets all commits fail, without a change, for as long as the disk is full.
    pub fn set_full(&self, is_full: bool) {
        self.state.write().is_full = is_full;
    }

    /// Lets the next commit fail with `error`, without a change.
    pub fn fail_next_commit(&self, error: StoreError) {
        self.state.write().fail_next_commit = Some(error);
    }

    /// Lets the commit after so many others fail, though it has come to the disk; and, if the doubt `lasts`, all that come
    /// after it. Else the next one ends it.
    pub fn doubt_commit(&self, after: usize, lasts: bool) {
        let mut state = self.state.write();
        (state.until_doubt, state.doubt_lasts) = (Some(after), lasts);
    }
}

impl Metadata for MemoryMetadata {
    fn snapshot(&self) -> StoreResult<Box<dyn Snapshot + '_>> {
        Ok(Box::new(MemorySnapshot(self.state.read().live.clone())))
    }

    fn commit(&self, sequence: u64, batch: &Batch, durable: bool) -> StoreResult<()> {
        let _one_at_a_time = self.writer.lock();
        let mut state = self.state.write();
        if let Some(error) = state.fail_next_commit.take() {
            return Err(error);
        }
        if state.is_full {
            return Err(StoreError::Full);
        }
        let failed = || StoreError::Engine("it has failed before".to_owned());
        if state.in_doubt.is_some() && state.doubt_lasts {
            return Err(failed());
        }
        state.in_doubt = None;
        match state.until_doubt {
            Some(0) => {
                state.until_doubt = None;
                state.in_doubt = Some((sequence, batch.clone()));
                return Err(failed());
            }
            Some(left) => state.until_doubt = Some(left - 1),
            None => {}
        }
        state.live.apply(batch);
        state.unsynced.push((sequence, batch.clone()));
        if durable {
            state.make_durable();
        }
        Ok(())
    }

    fn is_in_doubt(&self) -> bool {
        self.state.read().in_doubt.is_some()
    }

    fn durable_up_to(&self) -> u64 {
        self.state.read().durable
    }

    fn sync(&self) -> StoreResult<()> {
        self.state.write().make_durable();
        Ok(())
    }

    fn tidy(&self) -> StoreResult<()> {
        Ok(())
    }
}

struct MemorySnapshot(Tables);

impl Snapshot for MemorySnapshot {
    fn get(&self, table: Table, key: &[u8]) -> StoreResult<Option<Vec<u8>>> {
        Ok(self.0.0[table as usize].get(key).map(|value| value.to_vec()))
    }

    fn range(&self, table: Table, from: Bound<&[u8]>, to: Bound<&[u8]>, limit: usize) -> StoreResult<Vec<Row>> {
        if is_empty(from, to) {
            return Ok(Vec::new());
        }
        let rows = self.0.0[table as usize].range::<[u8], _>((from, to)).take(limit);
        Ok(rows.map(|(key, value)| (key.clone(), value.to_vec())).collect())
    }
}

/// Whether no key lies between the bounds: `BTreeMap::range` takes no such bounds, and an engine must.
fn is_empty(from: Bound<&[u8]>, to: Bound<&[u8]>) -> bool {
    match (from, to) {
        (Bound::Included(from), Bound::Included(to)) => from > to,
        (Bound::Included(from) | Bound::Excluded(from), Bound::Included(to) | Bound::Excluded(to)) => from >= to,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: u8, value: u8) -> Batch {
        Batch { changes: vec![(Table::Xattrs, vec![key], Some(vec![value]))] }
    }

    fn value(engine: &MemoryMetadata, key: u8) -> Option<Vec<u8>> {
        engine.snapshot().unwrap().get(Table::Xattrs, &[key]).unwrap()
    }

    #[test]
    fn a_power_cut_leaves_the_first_batches_and_all_durable_ones() {
        let engine = MemoryMetadata::new();
        engine.commit(1, &put(1, 1), true).unwrap();
        engine.commit(2, &put(2, 2), false).unwrap();
        engine.commit(3, &put(1, 3), false).unwrap();
        assert_eq!(engine.durable_up_to(), 1);
        let none = engine.power_cut(0);
        assert_eq!((value(&none, 1), value(&none, 2)), (Some(vec![1]), None));
        let some = engine.power_cut(2);
        assert_eq!((value(&some, 1), value(&some, 2)), (Some(vec![1]), Some(vec![2])));
        assert_eq!(some.durable_up_to(), 2);
        engine.sync().unwrap();
        assert_eq!(engine.durable_up_to(), 3);
        assert_eq!(value(&engine.power_cut(0), 1), Some(vec![3]));
    }

    #[test]
    fn a_failed_commit_changes_nothing_and_the_next_one_works() {
        let engine = MemoryMetadata::new();
        engine.fail_next_commit(StoreError::Full);
        assert!(matches!(engine.commit(1, &put(1, 1), true), Err(StoreError::Full)));
        assert_eq!((value(&engine, 1), engine.durable_up_to()), (None, 0));
        engine.commit(1, &put(1, 1), true).unwrap();
        assert_eq!(value(&engine, 1), Some(vec![1]));
    }

    #[test]
    fn a_commit_in_doubt_may_come_back_and_is_the_last_one() {
        let engine = MemoryMetadata::new();
        engine.doubt_commit(1, true);
        engine.commit(1, &put(1, 1), true).unwrap();
        assert!(!engine.is_in_doubt());
        assert!(engine.commit(2, &put(1, 2), true).is_err() && engine.is_in_doubt());
        assert_eq!(value(&engine, 1), Some(vec![1]));
        assert_eq!(value(&engine.power_cut(1), 1), Some(vec![1]));
        assert_eq!(value(&engine.power_cut(2), 1), Some(vec![2]));
        assert!(engine.commit(3, &put(1, 3), true).is_err());
        assert_eq!(value(&engine.power_cut(3), 1), Some(vec![2]));
        assert!(!engine.power_cut(3).is_in_doubt());
    }

    #[test]
    fn a_snapshot_stays_as_it_was() {
        let engine = MemoryMetadata::new();
        engine.commit(1, &put(1, 1), false).unwrap();
        let before = engine.snapshot().unwrap();
        engine.commit(2, &put(1, 2), false).unwrap();
        assert_eq!(before.get(Table::Xattrs, &[1]).unwrap(), Some(vec![1]));
        assert_eq!(value(&engine, 1), Some(vec![2]));
    }
}
