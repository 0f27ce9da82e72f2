//! The SQL of each table, written once, and how keys become SQLite's values.

use std::cmp::Ordering;
use std::ops::Bound;

use rusqlite::ToSql;
use rusqlite::types::{ToSqlOutput, ValueRef};

use crate::volume::error::{StoreError, StoreResult};
use crate::volume::keys::Table;

/// The statements over one table. Their texts are the keys of a connection's statement cache.
#[derive(Debug)]
pub(super) struct TableSql {
    pub(super) get: String,
    pub(super) put: String,
    pub(super) delete: String,
    /// By the lower bound (inclusive, exclusive) and the upper (none, inclusive, exclusive).
    ranges: [[String; 3]; 2],
}

/// The statements over all tables.
#[derive(Debug)]
pub(super) struct Statements(Vec<TableSql>);

impl Statements {
    pub(super) fn new() -> Statements {
        Statements(Table::ALL.iter().map(|table| TableSql::new(table.name())).collect())
    }

    pub(super) fn of(&self, table: Table) -> &TableSql {
        &self.0[table as usize]
    }
}

impl TableSql {
    fn new(table: &str) -> TableSql {
        let range = |lower: &str, upper: &str| {
            format!("SELECT k, v FROM {table} WHERE k {lower} ?1 {upper} ORDER BY k LIMIT ?3")
        };
        // The parameter ?2 occurs in each text, so that all are bound alike.
        let ranges =
            |lower: &str| [range(lower, "AND ?2 IS NULL"), range(lower, "AND k <= ?2"), range(lower, "AND k < ?2")];
        TableSql {
            get: format!("SELECT v FROM {table} WHERE k = ?1"),
            put: format!("INSERT INTO {table} (k, v) VALUES (?1, ?2) ON CONFLICT (k) DO UPDATE SET v = excluded.v"),
            delete: format!("DELETE FROM {table} WHERE k = ?1"),
            ranges: [ranges(">="), ranges(">")],
        }
    }
}

/// The statements that make the tables.
pub(super) fn schema() -> String {
    let table = |table: &Table| {
        let name = table.name();
        if table.has_number_keys() {
            // The key is the row's own number: no second copy of it, and the shortest search.
            format!("CREATE TABLE {name} (k INTEGER PRIMARY KEY, v BLOB NOT NULL);")
        } else {
            format!("CREATE TABLE {name} (k BLOB PRIMARY KEY, v BLOB NOT NULL) WITHOUT ROWID;")
        }
    };
    Table::ALL.iter().map(table).collect()
}

/// A key as SQLite has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key<'a> {
    Number(i64),
    Bytes(&'a [u8]),
    /// No upper bound.
    None,
}

impl<'a> Key<'a> {
    /// The key of a row; `None` if the table can have no such key.
    pub(super) fn of(table: Table, key: &'a [u8]) -> Option<Key<'a>> {
        if !table.has_number_keys() {
            return Some(Key::Bytes(key));
        }
        let number = u64::from_be_bytes(key.try_into().ok()?);
        Some(Key::Number(i64::try_from(number).ok()?))
    }

    /// The key of a row to be written.
    pub(super) fn to_write(table: Table, key: &'a [u8]) -> StoreResult<Key<'a>> {
        Key::of(table, key).ok_or_else(|| {
            StoreError::Engine(format!("\"{}\" is no key of table {}", key.escape_ascii(), table.name()))
        })
    }
}

impl ToSql for Key<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Key::Number(number) => ValueRef::Integer(*number),
            Key::Bytes(bytes) => ValueRef::Blob(bytes),
            Key::None => ValueRef::Null,
        }))
    }
}

/// A range query: the statement and its bounds. `None` if no key lies in the range.
pub(super) fn range<'s, 'k>(
    statements: &'s Statements,
    table: Table,
    from: Bound<&'k [u8]>,
    to: Bound<&'k [u8]>,
) -> Option<(&'s str, Key<'k>, Key<'k>)> {
    let ranges = &statements.of(table).ranges;
    if table.has_number_keys() {
        let (first, last) = (first_number(from)?, last_number(to)?);
        return (first <= last).then_some((&ranges[0][1], Key::Number(first), Key::Number(last)));
    }
    let (lower, from) = match from {
        Bound::Included(from) => (0, from),
        Bound::Excluded(from) => (1, from),
        Bound::Unbounded => (0, &[][..]),
    };
    let (upper, to) = match to {
        Bound::Unbounded => (0, Key::None),
        Bound::Included(to) => (1, Key::Bytes(to)),
        Bound::Excluded(to) => (2, Key::Bytes(to)),
    };
    Some((&ranges[lower][upper], Key::Bytes(from), to))
}

/// The number whose eight bytes are the first of `bound`, filled up with zeros, and how `bound`'s length compares
/// with a key's. Bounds are compared bytewise and need not be eight bytes long.
fn number_at(bound: &[u8]) -> (u64, Ordering) {
    let mut bytes = [0; 8];
    let len = bound.len().min(8);
    bytes[..len].copy_from_slice(&bound[..len]);
    (u64::from_be_bytes(bytes), bound.len().cmp(&8))
}

fn first_number(from: Bound<&[u8]>) -> Option<i64> {
    let first = match from {
        Bound::Unbounded => 0,
        Bound::Included(from) | Bound::Excluded(from) if from.len() != 8 => {
            let (number, length) = number_at(from);
            // A key that equals the first bytes of a longer bound comes before it.
            if length.is_gt() { number.checked_add(1)? } else { number }
        }
        Bound::Included(from) => number_at(from).0,
        Bound::Excluded(from) => number_at(from).0.checked_add(1)?,
    };
    i64::try_from(first).ok()
}

fn last_number(to: Bound<&[u8]>) -> Option<i64> {
    let last = match to {
        Bound::Unbounded => u64::MAX,
        Bound::Included(to) | Bound::Excluded(to) if to.len() != 8 => {
            let (number, length) = number_at(to);
            if length.is_gt() { number } else { number.checked_sub(1)? }
        }
        Bound::Included(to) => number_at(to).0,
        Bound::Excluded(to) => number_at(to).0.checked_sub(1)?,
    };
    Some(i64::try_from(last).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use std::ops::RangeBounds;

    use proptest::prelude::*;

    use super::*;

    fn bound(kind: u8, bytes: &[u8]) -> Bound<&[u8]> {
        match kind {
            0 => Bound::Unbounded,
            1 => Bound::Included(bytes),
            _ => Bound::Excluded(bytes),
        }
    }

    proptest! {
        #[test]
        fn number_ranges_hold_the_keys_between_the_bounds(
            from in prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(127), Just(255)], 0..10),
            to in prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(127), Just(255)], 0..10),
            kinds in (0u8..3, 0u8..3),
            near in 0u64..3,
            of_from: bool,
        ) {
            let (from, to) = (bound(kinds.0, &from), bound(kinds.1, &to));
            // Keys around a bound are the ones that can go wrong.
            let around = match if of_from { from } else { to } {
                Bound::Included(bytes) | Bound::Excluded(bytes) => number_at(bytes).0,
                Bound::Unbounded => 0,
            };
            let number = (around & (u64::MAX >> 1)).saturating_add(near).saturating_sub(1).min(i64::MAX as u64);
            let key = number.to_be_bytes();
            let inside = <(Bound<&[u8]>, Bound<&[u8]>) as RangeBounds<[u8]>>::contains(&(from, to), &key[..]);
            let found = match (first_number(from), last_number(to)) {
                (Some(first), Some(last)) => (first..=last).contains(&(number as i64)),
                _ => false,
            };
            prop_assert_eq!(found, inside, "{:?}", key);
        }
    }
}
