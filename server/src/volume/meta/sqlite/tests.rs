//! The engine against its model, and what only an engine on disk can do.

use std::ops::Bound;

use proptest::prelude::*;

use super::*;
use crate::volume::keys;
use crate::volume::meta::memory::MemoryMetadata;

fn put(table: Table, key: &[u8], value: Vec<u8>) -> Batch {
    Batch { changes: vec![(table, key.to_vec(), Some(value))] }
}

fn engine(durability: Durability) -> (tempfile::TempDir, SqliteMetadata) {
    let dir = tempfile::tempdir().unwrap();
    let engine = SqliteMetadata::create(&dir.path().join("meta.sqlite"), durability).unwrap();
    (dir, engine)
}

#[derive(Clone, Debug)]
enum Step {
    Commit(Vec<(usize, u8, Option<u16>)>, bool),
    Sync,
    Tidy,
    Reopen,
    Range { table: usize, from: (u8, u8), to: (u8, u8), limit: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let change = (0..Table::ALL.len(), 0u8..12, prop::option::of(0u16..5000));
    prop_oneof![
        6 => (prop::collection::vec(change, 0..8), any::<bool>()).prop_map(|(changes, durable)| Step::Commit(changes, durable)),
        1 => Just(Step::Sync),
        1 => Just(Step::Tidy),
        1 => Just(Step::Reopen),
        6 => (0..Table::ALL.len(), (0u8..3, 0u8..12), (0u8..3, 0u8..12), 0usize..9)
            .prop_map(|(table, from, to, limit)| Step::Range { table, from, to, limit }),
    ]
}

fn key(table: Table, number: u8) -> Vec<u8> {
    // Number keys are eight bytes; others are tried with different lengths.
    if table.has_number_keys() {
        keys::vnode(u64::from(number)).to_vec()
    } else {
        vec![number; usize::from(number % 3)]
    }
}

fn bound((kind, _): (u8, u8), key: &[u8]) -> Bound<&[u8]> {
    match kind {
        0 => Bound::Unbounded,
        1 => Bound::Included(key),
        _ => Bound::Excluded(key),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
    #[test]
    fn both_engines_do_the_same(steps in prop::collection::vec(step(), 1..40)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("meta.sqlite");
        let mut sqlite = SqliteMetadata::create(&path, Durability::Power).unwrap();
        let memory = MemoryMetadata::new();
        let mut sequence = 0;
        let mut reopened_at = 0;
        for step in steps {
            match step {
                Step::Commit(changes, durable) => {
                    sequence += 1;
                    let mut batch = Batch::default();
                    for (table, number, value) in changes {
                        let (table, key) = (Table::ALL[table], key(Table::ALL[table], number));
                        batch.changes.retain(|(t, k, _)| (*t, k) != (table, &key));
                        batch.changes.push((table, key, value.map(|len| vec![number; usize::from(len)])));
                    }
                    sqlite.commit(sequence, &batch, durable).unwrap();
                    memory.commit(sequence, &batch, durable).unwrap();
                }
                Step::Sync => {
                    sqlite.sync().unwrap();
                    memory.sync().unwrap();
                }
                Step::Tidy => sqlite.tidy().unwrap(),
                Step::Reopen => {
                    drop(sqlite);
                    sqlite = SqliteMetadata::open(&path, Durability::Power).unwrap();
                    memory.sync().unwrap();
                    reopened_at = sequence;
                }
                Step::Range { table, from, to, limit } => {
                    let table = Table::ALL[table];
                    let (from_key, to_key) = (key(table, from.1), key(table, to.1));
                    let (from, to) = (bound(from, &from_key), bound(to, &to_key));
                    let (ours, model) = (sqlite.snapshot().unwrap(), memory.snapshot().unwrap());
                    prop_assert_eq!(
                        ours.range(table, from, to, limit).unwrap(),
                        model.range(table, from, to, limit).unwrap()
                    );
                    prop_assert_eq!(ours.get(table, &from_key).unwrap(), model.get(table, &from_key).unwrap());
                }
            }
            prop_assert_eq!(sqlite.durable_up_to().max(reopened_at), memory.durable_up_to());
        }
        prop_assert_eq!(sqlite.integrity().unwrap(), Vec::<String>::new());
    }
}

#[test]
fn a_snapshot_is_pinned_when_it_is_taken() {
    let (_dir, engine) = engine(Durability::Power);
    engine.commit(1, &put(Table::Vnodes, &keys::vnode(1), vec![1]), true).unwrap();
    let before = engine.snapshot().unwrap();
    engine.commit(2, &put(Table::Vnodes, &keys::vnode(1), vec![2]), true).unwrap();
    engine.tidy().unwrap();
    assert_eq!(before.get(Table::Vnodes, &keys::vnode(1)).unwrap(), Some(vec![1]));
    drop(before);
    assert_eq!(engine.snapshot().unwrap().get(Table::Vnodes, &keys::vnode(1)).unwrap(), Some(vec![2]));
}

#[test]
fn only_power_durability_syncs_at_commit() {
    for (durability, durable) in [(Durability::Power, 1), (Durability::Process, 0)] {
        let (_dir, engine) = engine(durability);
        engine.commit(1, &put(Table::Header, b"a", vec![1]), true).unwrap();
        assert_eq!(engine.durable_up_to(), durable);
        engine.commit(2, &put(Table::Header, b"a", vec![2]), false).unwrap();
        assert_eq!(engine.durable_up_to(), durable);
        engine.sync().unwrap();
        assert_eq!(engine.durable_up_to(), 2);
    }
}

#[test]
fn a_full_database_fails_whole_and_goes_on_later() {
    let (_dir, engine) = engine(Durability::Power);
    engine.commit(1, &put(Table::Inline, &keys::vnode(1), vec![1; 100]), true).unwrap();
    let limit = |pages: i64| {
        let place = engine.writer.lock();
        let connection = &place.as_ref().unwrap().connection;
        connection.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(())).unwrap();
    };
    limit(20);
    let mut large = put(Table::Inline, &keys::vnode(1), vec![2; 100]);
    large.changes.push((Table::Inline, keys::vnode(2).to_vec(), Some(vec![3; 1 << 20])));
    assert!(matches!(engine.commit(2, &large, true), Err(StoreError::Full)));
    assert!(!engine.is_in_doubt());
    assert_eq!(engine.durable_up_to(), 1);
    let value = |vnode| engine.snapshot().unwrap().get(Table::Inline, &keys::vnode(vnode)).unwrap();
    assert_eq!((value(1), value(2)), (Some(vec![1; 100]), None));
    limit(1 << 20);
    engine.commit(2, &large, true).unwrap();
    assert_eq!((value(1), value(2)), (Some(vec![2; 100]), Some(vec![3; 1 << 20])));
}

#[test]
fn a_commit_that_failed_is_in_doubt_until_the_next_one() {
    let (_dir, engine) = engine(Durability::Power);
    let run = |sql: &str| engine.writer.lock().as_ref().unwrap().run(sql).unwrap();
    let batch = put(Table::Inline, &keys::vnode(1), vec![1]);
    engine.commit(1, &batch, true).unwrap();
    assert!(!engine.is_in_doubt());
    run("PRAGMA query_only = 1");
    assert!(matches!(engine.commit(2, &batch, true), Err(error) if !matches!(error, StoreError::Full)));
    assert!(engine.is_in_doubt());
    run("PRAGMA query_only = 0");
    engine.commit(2, &batch, true).unwrap();
    assert!(!engine.is_in_doubt());
}

#[test]
fn the_log_is_cut_once_it_is_large() {
    let (_dir, engine) = engine(Durability::Process);
    for sequence in 1..=40 {
        engine.commit(sequence, &put(Table::Inline, &keys::vnode(sequence), vec![1; 1 << 19]), false).unwrap();
    }
    assert!(engine.log.metadata().unwrap().len() > LOG_LARGE);
    engine.tidy().unwrap();
    assert_eq!(engine.log.metadata().unwrap().len(), 0);
    engine.commit(41, &put(Table::Inline, &keys::vnode(41), vec![2]), false).unwrap();
    assert_eq!(engine.snapshot().unwrap().get(Table::Inline, &keys::vnode(7)).unwrap(), Some(vec![1; 1 << 19]));
}

#[test]
fn a_log_that_a_reader_kept_is_cut_when_he_is_gone() {
    let (_dir, engine) = engine(Durability::Process);
    engine.commit(1, &put(Table::Inline, &keys::vnode(1), vec![1]), false).unwrap();
    let reader = engine.snapshot().unwrap();
    for sequence in 2..=40 {
        engine.commit(sequence, &put(Table::Inline, &keys::vnode(sequence), vec![1; 1 << 19]), false).unwrap();
    }
    engine.tidy().unwrap();
    assert!(engine.log.metadata().unwrap().len() > LOG_LARGE);
    drop(reader);
    // Nothing was committed in between.
    engine.tidy().unwrap();
    assert_eq!(engine.log.metadata().unwrap().len(), 0);
}

#[test]
fn commits_readers_and_checkpoints_do_not_get_into_each_others_way() {
    let (_dir, engine) = engine(Durability::Process);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                engine.tidy().unwrap();
                engine.sync().unwrap();
            }
        });
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    let snapshot = engine.snapshot().unwrap();
                    let (a, b) =
                        (snapshot.get(Table::Xattrs, b"a").unwrap(), snapshot.get(Table::Xattrs, b"b").unwrap());
                    assert_eq!(a, b);
                }
            });
        }
        let commit = |sequence: u64| {
            let value = sequence.to_be_bytes().repeat(800);
            let mut batch = put(Table::Xattrs, b"a", value.clone());
            batch.changes.push((Table::Xattrs, b"b".to_vec(), Some(value)));
            engine.commit(sequence, &batch, sequence.is_multiple_of(100))
        };
        // The other threads must end before a failure is reported, or nothing would end.
        let result = (1..=1500).try_for_each(commit);
        done.store(true, Ordering::Release);
        result.unwrap();
    });
}

#[test]
fn what_is_no_database_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meta.sqlite");
    assert!(matches!(SqliteMetadata::open(&path, Durability::Power), Err(StoreError::Io(_))));
    std::fs::write(&path, vec![7; 8192]).unwrap();
    assert!(matches!(SqliteMetadata::open(&path, Durability::Power), Err(StoreError::Corrupt(_))));
    assert!(matches!(SqliteMetadata::create(&path, Durability::Power), Err(StoreError::Io(_))));
    std::fs::write(&path, b"").unwrap();
    assert!(SqliteMetadata::open(&path, Durability::Power).is_err());
}

#[test]
fn a_key_that_is_no_number_is_refused_where_numbers_are_due() {
    let (_dir, engine) = engine(Durability::Power);
    assert!(matches!(engine.commit(1, &put(Table::Vnodes, b"short", vec![1]), true), Err(StoreError::Engine(_))));
    assert_eq!(engine.snapshot().unwrap().get(Table::Vnodes, b"short").unwrap(), None);
    engine.commit(1, &put(Table::Vnodes, &keys::vnode(3), vec![1]), true).unwrap();
}
