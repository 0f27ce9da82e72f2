//! Typed reading of a volume's metadata, and drafts of changes to it.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use larder_protocol::name::Name;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::codec;
use super::error::{StoreError, StoreResult};
use super::keys::{self, Table};
use super::meta::{Batch, Row, Snapshot};
use super::record::{CookieRecord, EntryRecord, HeaderRecord, VnodeRecord};

/// Rows with their checksums verified and taken off.
pub trait View {
    /// The value under a key.
    ///
    /// # Errors
    /// The engine's; `Corrupt` for a row that does not match its checksum.
    fn get(&self, table: Table, key: &[u8]) -> StoreResult<Option<Vec<u8>>>;

    /// Rows in the order of their keys, `limit` at most.
    ///
    /// # Errors
    /// As [`get`](View::get).
    fn range(&self, table: Table, from: Bound<&[u8]>, to: Bound<&[u8]>, limit: usize) -> StoreResult<Vec<Row>>;

    /// The keys of rows in their order, `limit` at most. Rows are not looked at: those that are damaged are among them.
    ///
    /// # Errors
    /// The engine's.
    fn keys(&self, table: Table, from: Bound<&[u8]>, to: Bound<&[u8]>, limit: usize) -> StoreResult<Vec<Vec<u8>>>;
}

/// A snapshot, verified.
pub struct Verified<'a>(pub &'a (dyn Snapshot + 'a));

impl View for Verified<'_> {
    fn get(&self, table: Table, key: &[u8]) -> StoreResult<Option<Vec<u8>>> {
        self.0.get(table, key)?.map(|sealed| codec::open(table, key, sealed)).transpose()
    }

    fn range(&self, table: Table, from: Bound<&[u8]>, to: Bound<&[u8]>, limit: usize) -> StoreResult<Vec<Row>> {
        let mut rows = self.0.range(table, from, to, limit)?;
        for (key, value) in &mut rows {
            *value = codec::open(table, key, std::mem::take(value))?;
        }
        Ok(rows)
    }

    fn keys(&self, table: Table, from: Bound<&[u8]>, to: Bound<&[u8]>, limit: usize) -> StoreResult<Vec<Vec<u8>>> {
        Ok(self.0.range(table, from, to, limit)?.into_iter().map(|(key, _)| key).collect())
    }
}

/// Records by what they are.
pub trait Records: View {
    /// A record of any type.
    ///
    /// # Errors
    /// As [`View::get`]; `Corrupt` if it does not decode.
    fn record<T: DeserializeOwned>(&self, table: Table, key: &[u8]) -> StoreResult<Option<T>> {
        self.get(table, key)?.map(|bytes| codec::decode(&bytes)).transpose()
    }

    /// The volume's header.
    ///
    /// # Errors
    /// As [`Records::record`]; `Corrupt` if there is none.
    fn header(&self) -> StoreResult<HeaderRecord> {
        self.record(Table::Header, keys::HEADER)?
            .ok_or_else(|| StoreError::Corrupt("the volume has no header".to_owned()))
    }

    /// A vnode.
    ///
    /// # Errors
    /// As [`Records::record`].
    fn vnode(&self, vnode: u64) -> StoreResult<Option<VnodeRecord>> {
        self.record(Table::Vnodes, &keys::vnode(vnode))
    }

    /// A name in a directory.
    ///
    /// # Errors
    /// As [`Records::record`].
    fn entry(&self, dir: u64, name: &Name) -> StoreResult<Option<EntryRecord>> {
        self.record(Table::Entries, &keys::entry(dir, name))
    }

    /// Names of a directory behind a cookie, `limit` at most, with their cookies.
    ///
    /// # Errors
    /// As [`Records::record`].
    fn listing(&self, dir: u64, after: u64, limit: usize) -> StoreResult<Vec<(u64, CookieRecord)>> {
        let from = keys::cookie(dir, after);
        let end = keys::prefix_end(&keys::vnode(dir));
        let to = end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        self.range(Table::Cookies, Bound::Excluded(&from), to, limit)?
            .into_iter()
            .map(|(key, value)| {
                let cookie = key.get(8..).and_then(keys::number);
                let cookie = cookie.ok_or_else(|| StoreError::Corrupt("a cookie's key is malformed".to_owned()))?;
                Ok((cookie, codec::decode(&value)?))
            })
            .collect()
    }

    /// All rows whose keys begin with `prefix`, `limit` at most.
    ///
    /// # Errors
    /// As [`View::range`].
    fn with_prefix(&self, table: Table, prefix: &[u8], limit: usize) -> StoreResult<Vec<Row>> {
        let end = keys::prefix_end(prefix);
        let to = end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        self.range(table, Bound::Included(prefix), to, limit)
    }

    /// A small file's contents.
    ///
    /// # Errors
    /// As [`View::get`]; `Corrupt` if they are not as long as the record says.
    fn inline(&self, vnode: u64, record: &VnodeRecord) -> StoreResult<Bytes> {
        let bytes = self.get(Table::Inline, &keys::vnode(vnode))?.unwrap_or_default();
        if bytes.len() as u64 == record.size {
            return Ok(bytes.into());
        }
        let (has, says) = (bytes.len(), record.size);
        Err(StoreError::Corrupt(format!("vnode {vnode} has {has} bytes of contents, and its record says {says}")))
    }
}

impl<V: View + ?Sized> Records for V {}

/// A row that was changed, and the change to it that was there before, if any.
type Undo = ((Table, Vec<u8>), Option<Option<Vec<u8>>>);

/// Changes not committed yet, over a view: what is read through it includes them.
pub struct Draft<'a> {
    base: &'a dyn View,
    changes: BTreeMap<(Table, Vec<u8>), Option<Vec<u8>>>,
    undo: Vec<Undo>,
}

/// A moment in a draft's making, to go back to.
#[derive(Clone, Copy, Debug)]
pub struct Savepoint(usize);

impl<'a> Draft<'a> {
    /// Begins a draft without changes.
    pub fn new(base: &'a dyn View) -> Draft<'a> {
        Draft { base, changes: BTreeMap::new(), undo: Vec::new() }
    }

    /// Marks this moment.
    pub fn savepoint(&self) -> Savepoint {
        Savepoint(self.undo.len())
    }

    /// Takes back every change since `point`.
    pub fn roll_back(&mut self, point: Savepoint) {
        while self.undo.len() > point.0 {
            match self.undo.pop() {
                Some((key, Some(before))) => {
                    self.changes.insert(key, before);
                }
                Some((key, None)) => {
                    self.changes.remove(&key);
                }
                None => break,
            }
        }
    }

    fn change(&mut self, table: Table, key: &[u8], value: Option<Vec<u8>>) {
        let key = (table, key.to_vec());
        let before = self.changes.insert(key.clone(), value);
        self.undo.push((key, before));
    }

    /// Sets a row.
    pub fn put_bytes(&mut self, table: Table, key: &[u8], value: Vec<u8>) {
        self.change(table, key, Some(value));
    }

    /// Sets a record.
    ///
    /// # Errors
    /// As [`codec::encode`].
    pub fn put<T: Serialize>(&mut self, table: Table, key: &[u8], record: &T) -> StoreResult<()> {
        self.put_bytes(table, key, codec::encode(record)?);
        Ok(())
    }

    /// Sets a vnode's record.
    ///
    /// # Errors
    /// As [`codec::encode`].
    pub fn put_vnode(&mut self, vnode: u64, record: &VnodeRecord) -> StoreResult<()> {
        self.put(Table::Vnodes, &keys::vnode(vnode), record)
    }

    /// Deletes a row, which need not be there.
    pub fn delete(&mut self, table: Table, key: &[u8]) {
        self.change(table, key, None);
    }

    /// Deletes every row whose key begins with `prefix`.
    ///
    /// # Errors
    /// As [`View::keys`]: what is damaged can be deleted.
    pub fn delete_prefix(&mut self, table: Table, prefix: &[u8]) -> StoreResult<()> {
        const PIECE: usize = 1024;
        let end = keys::prefix_end(prefix);
        let mut last: Option<Vec<u8>> = None;
        loop {
            let from = last.as_deref().map_or(Bound::Included(prefix), Bound::Excluded);
            let to = end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
            let keys = self.keys(table, from, to, PIECE)?;
            for key in &keys {
                self.delete(table, key);
            }
            match keys.into_iter().nth(PIECE - 1) {
                Some(key) => last = Some(key),
                None => return Ok(()),
            }
        }
    }

    /// Whether nothing was changed.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// The rows that were changed.
    pub fn changed(&self) -> impl Iterator<Item = (Table, &[u8])> {
        self.changes.keys().map(|(table, key)| (*table, key.as_slice()))
    }

    /// The changes, sealed, as one batch.
    pub fn into_batch(self) -> Batch {
        let seal = |((table, key), value): ((Table, Vec<u8>), Option<Vec<u8>>)| {
            let value = value.map(|value| codec::seal(table, &key, value));
            (table, key, value)
        };
        Batch { changes: self.changes.into_iter().map(seal).collect() }
    }
}

impl Draft<'_> {
    /// Rows of the base, of which `ask` gives so many, with the changes.
    fn merged(
        &self,
        table: Table,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
        limit: usize,
        ask: impl FnOnce(usize) -> StoreResult<Vec<Row>>,
    ) -> StoreResult<Vec<Row>> {
        let in_range = |key: &[u8]| {
            (match from {
                Bound::Included(from) => key >= from,
                Bound::Excluded(from) => key > from,
                Bound::Unbounded => true,
            }) && (match to {
                Bound::Included(to) => key <= to,
                Bound::Excluded(to) => key < to,
                Bound::Unbounded => true,
            })
        };
        let start = match from {
            Bound::Included(from) | Bound::Excluded(from) => from.to_vec(),
            Bound::Unbounded => Vec::new(),
        };
        let changed: Vec<(&Vec<u8>, &Option<Vec<u8>>)> = self
            .changes
            .range((table, start)..)
            .take_while(|((at, key), _)| *at == table && (in_range(key) || Bound::Excluded(key.as_slice()) == from))
            .filter(|((_, key), _)| in_range(key))
            .map(|((_, key), value)| (key, value))
            .collect();
        // Each deleted row may hide one of the base's, so ask for as many more.
        let deleted = changed.iter().filter(|(_, value)| value.is_none()).count();
        let base = ask(limit.saturating_add(deleted))?;
        let mut merged: BTreeMap<Vec<u8>, Vec<u8>> = base.into_iter().collect();
        let whole = merged.len() < limit.saturating_add(deleted);
        let last = merged.keys().next_back().cloned();
        for (key, value) in changed {
            match value {
                // Behind the end of what the base gave, rows of the base may be missing in between.
                Some(value) if whole || last.as_ref().is_some_and(|last| key <= last) => {
                    merged.insert(key.clone(), value.clone());
                }
                Some(_) => {}
                None => {
                    merged.remove(key);
                }
            }
        }
        Ok(merged.into_iter().take(limit).collect())
    }
}

impl View for Draft<'_> {
    fn get(&self, table: Table, key: &[u8]) -> StoreResult<Option<Vec<u8>>> {
        match self.changes.get(&(table, key.to_vec())) {
            Some(changed) => Ok(changed.clone()),
            None => self.base.get(table, key),
        }
    }

    fn range(&self, table: Table, from: Bound<&[u8]>, to: Bound<&[u8]>, limit: usize) -> StoreResult<Vec<Row>> {
        self.merged(table, from, to, limit, |limit| self.base.range(table, from, to, limit))
    }

    fn keys(&self, table: Table, from: Bound<&[u8]>, to: Bound<&[u8]>, limit: usize) -> StoreResult<Vec<Vec<u8>>> {
        let without_value = |limit| {
            let keys = self.base.keys(table, from, to, limit)?;
            Ok(keys.into_iter().map(|key| (key, Vec::new())).collect())
        };
        let rows = self.merged(table, from, to, limit, without_value)?;
        Ok(rows.into_iter().map(|(key, _)| key).collect())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Rows(BTreeMap<Vec<u8>, Vec<u8>>);

    impl View for Rows {
        fn get(&self, _: Table, key: &[u8]) -> StoreResult<Option<Vec<u8>>> {
            Ok(self.0.get(key).cloned())
        }

        fn range(&self, _: Table, from: Bound<&[u8]>, to: Bound<&[u8]>, limit: usize) -> StoreResult<Vec<Row>> {
            let rows = self.0.range::<[u8], _>((from, to)).take(limit);
            Ok(rows.map(|(key, value)| (key.clone(), value.clone())).collect())
        }

        fn keys(&self, _: Table, from: Bound<&[u8]>, to: Bound<&[u8]>, limit: usize) -> StoreResult<Vec<Vec<u8>>> {
            Ok(self.0.range::<[u8], _>((from, to)).take(limit).map(|(key, _)| key.clone()).collect())
        }
    }

    proptest! {
        #[test]
        fn a_draft_reads_like_its_changes_applied(
            base in prop::collection::btree_map(0u8..20, any::<u8>(), 0..20),
            changes in prop::collection::vec((0u8..20, prop::option::of(any::<u8>())), 0..20),
            undone in prop::collection::vec((0u8..20, prop::option::of(any::<u8>())), 0..20),
            from in 0u8..20, to in 0u8..21, exclusive: bool, limit in 0usize..25,
        ) {
            let rows: BTreeMap<Vec<u8>, Vec<u8>> = base.iter().map(|(k, v)| (vec![*k], vec![*v])).collect();
            let base = Rows(rows.clone());
            let mut model = Rows(rows);
            let mut draft = Draft::new(&base);
            for (key, value) in changes {
                match value {
                    Some(value) => {
                        draft.put_bytes(Table::Xattrs, &[key], vec![value]);
                        model.0.insert(vec![key], vec![value]);
                    }
                    None => {
                        draft.delete(Table::Xattrs, &[key]);
                        model.0.remove(&vec![key]);
                    }
                }
            }
            let point = draft.savepoint();
            for (key, value) in undone {
                match value {
                    Some(value) => draft.put_bytes(Table::Xattrs, &[key], vec![value]),
                    None => draft.delete(Table::Xattrs, &[key]),
                }
            }
            draft.roll_back(point);
            let (from_key, to_key) = ([from.min(to)], [to]);
            let from = if exclusive && from < to { Bound::Excluded(&from_key[..]) } else { Bound::Included(&from_key[..]) };
            let to = Bound::Excluded(&to_key[..]);
            prop_assert_eq!(
                draft.range(Table::Xattrs, from, to, limit).unwrap(),
                model.range(Table::Xattrs, from, to, limit).unwrap()
            );
            prop_assert_eq!(
                draft.keys(Table::Xattrs, from, to, limit).unwrap(),
                model.keys(Table::Xattrs, from, to, limit).unwrap()
            );
            for key in 0..20 {
                prop_assert_eq!(draft.get(Table::Xattrs, &[key]).unwrap(), model.get(Table::Xattrs, &[key]).unwrap());
            }
        }
    }
}
