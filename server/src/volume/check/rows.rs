//! Every row of every table: its checksum, its key, its record, and that it belongs to something.

use std::collections::BTreeSet;
use std::ops::Bound;

use larder_protocol::cell::Quota;
use larder_protocol::ids::{ClientId, Epoch};
use larder_protocol::limits::MAX_XATTR_NAME;
use larder_protocol::name::Name;
use serde::de::DeserializeOwned;

use super::found::Findings;
use super::nodes::{Node, NodeBody, Nodes};
use super::{Volume, hex, vnode_of};
use crate::volume::codec;
use crate::volume::content::ContentId;
use crate::volume::data::checksums::Group;
use crate::volume::error::{StoreError, StoreResult};
use crate::volume::keys::{self, Table};
use crate::volume::meta::Snapshot;
use crate::volume::record::{
    ClientRecord, CookieRecord, DirtyRecord, EntryRecord, HeaderRecord, Intent, OrphanRecord, SlotRecord, VnodeRecord,
};

/// Rows read at once.
const PIECE: usize = 512;

/// Calls `each` with every row of a table in order, sealed as it is.
pub(super) fn scan(
    snapshot: &dyn Snapshot,
    table: Table,
    mut each: impl FnMut(Vec<u8>, Vec<u8>) -> StoreResult<()>,
) -> StoreResult<()> {
    let mut last: Option<Vec<u8>> = None;
    loop {
        let from = last.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let rows = snapshot.range(table, from, Bound::Unbounded, PIECE)?;
        let is_last = rows.len() < PIECE;
        last = rows.last().map(|(key, _)| key.clone());
        for (key, sealed) in rows {
            each(key, sealed)?;
        }
        if is_last {
            return Ok(());
        }
    }
}

/// As [`scan`], with records; damaged rows are passed over, for [`vnodes`] and [`others`] have reported them.
pub(super) fn scan_records<T: DeserializeOwned>(
    snapshot: &dyn Snapshot,
    table: Table,
    mut each: impl FnMut(&[u8], T) -> StoreResult<()>,
) -> StoreResult<()> {
    scan(snapshot, table, |key, sealed| match record(table, &key, sealed) {
        Ok(record) => each(&key, record),
        Err(_) => Ok(()),
    })
}

/// One record, `None` if it is not there or damaged.
pub(super) fn get<T: DeserializeOwned>(snapshot: &dyn Snapshot, table: Table, key: &[u8]) -> StoreResult<Option<T>> {
    Ok(snapshot.get(table, key)?.and_then(|sealed| record(table, key, sealed).ok()))
}

fn record<T: DeserializeOwned>(table: Table, key: &[u8], sealed: Vec<u8>) -> StoreResult<T> {
    codec::decode(&codec::open(table, key, sealed)?)
}

/// The vnodes.
pub(super) fn vnodes(volume: &Volume<'_>, findings: &mut Findings<'_>) -> StoreResult<Nodes> {
    let mut nodes = Nodes::default();
    scan(volume.snapshot, Table::Vnodes, |key, sealed| {
        let vnode = vnode_of(&key);
        match record::<VnodeRecord>(Table::Vnodes, &key, sealed.clone()) {
            Ok(record) => {
                nodes.push(Node::new(vnode.unwrap_or_default(), &record));
                Ok(())
            }
            Err(error) => findings.set_row_aside(vnode, error.to_string(), (Table::Vnodes, &key), sealed),
        }
    })?;
    Ok(nodes)
}

/// What has to be done about a row.
enum Verdict {
    Sound,
    /// It belongs to nothing: taking it out loses nothing that can be reached.
    Dangling(&'static str),
    Damaged(StoreError),
}

fn verdict<T>(result: StoreResult<T>, use_record: impl FnOnce(T) -> Verdict) -> Verdict {
    result.map_or_else(Verdict::Damaged, use_record)
}

/// All other tables, as far as each row can be judged by itself and its vnode. Gives back the content files that are
/// still to be removed.
pub(super) fn others(
    volume: &Volume<'_>,
    nodes: &mut Nodes,
    findings: &mut Findings<'_>,
) -> StoreResult<BTreeSet<ContentId>> {
    let mut removals = BTreeSet::new();
    for &table in Table::ALL {
        if table == Table::Vnodes {
            continue;
        }
        scan(volume.snapshot, table, |key, sealed| {
            let opened = codec::open(table, &key, sealed.clone());
            match opened.map_or_else(Verdict::Damaged, |value| judge(table, &key, &value, nodes, &mut removals)) {
                Verdict::Sound => Ok(()),
                Verdict::Dangling(what) => dangling(findings, table, &key, sealed, what),
                Verdict::Damaged(error) => {
                    if matches!(table, Table::Dirty | Table::Intents)
                        && let Some(node) = vnode_of(&key).and_then(|vnode| nodes.get_mut(vnode))
                    {
                        // Its contents may be anywhere on their way: nothing to compare with.
                        node.is_dirty = true;
                    }
                    damaged(findings, table, &key, sealed, &error)
                }
            }
        })?;
    }
    Ok(removals)
}

fn judge(table: Table, key: &[u8], value: &[u8], nodes: &mut Nodes, removals: &mut BTreeSet<ContentId>) -> Verdict {
    let malformed = || Verdict::Damaged(StoreError::Corrupt(format!("malformed key {}", hex(key))));
    let vnode = vnode_of(key);
    let rest = key.get(8..).unwrap_or_default();
    match table {
        Table::Vnodes => Verdict::Sound,
        Table::Header if key == keys::QUOTA => verdict(codec::decode::<Quota>(value), |_| Verdict::Sound),
        Table::Header if key == keys::VOUCHED => verdict(codec::decode::<Vec<Epoch>>(value), |_| Verdict::Sound),
        Table::Header if key != keys::HEADER => malformed(),
        Table::Header => verdict(codec::decode::<HeaderRecord>(value), |_| Verdict::Sound),
        // Whether these belong to something is the tree's business.
        Table::Entries if Name::new(rest).is_err() => malformed(),
        Table::Entries => verdict(codec::decode::<EntryRecord>(value), |_| Verdict::Sound),
        Table::Cookies if keys::number(rest).is_none() => malformed(),
        Table::Cookies => verdict(codec::decode::<CookieRecord>(value), |_| Verdict::Sound),
        Table::Slots | Table::Clients => judge_client(table, key, value).unwrap_or_else(malformed),
        Table::Inline | Table::Dirty if key.len() != 8 => malformed(),
        Table::Orphans if rest.len() != 16 => malformed(),
        Table::Checksums | Table::Intents if rest.len() != 8 => malformed(),
        Table::Xattrs if rest.is_empty() || rest.len() > MAX_XATTR_NAME => malformed(),
        _ => {
            let Some(vnode) = vnode else { return malformed() };
            judge_of_vnode(table, vnode, value, nodes.get_mut(vnode), removals)
        }
    }
}

fn judge_client(table: Table, key: &[u8], value: &[u8]) -> Option<Verdict> {
    let client = ClientId(u128::from_be_bytes(key.get(..16)?.try_into().ok()?));
    if table == Table::Clients {
        return (key.len() == 16).then(|| verdict(codec::decode::<ClientRecord>(value), |_| Verdict::Sound));
    }
    let slot = u32::from_be_bytes(key.get(16..)?.try_into().ok()?);
    Some(verdict(codec::decode::<SlotRecord>(value), |record| {
        if (record.id.client, record.id.slot) == (client, slot) {
            Verdict::Sound
        } else {
            Verdict::Damaged(StoreError::Corrupt(format!("slot {slot} of client {client} names another one")))
        }
    }))
}

fn judge_of_vnode(
    table: Table,
    vnode: u64,
    value: &[u8],
    node: Option<&mut Node>,
    removals: &mut BTreeSet<ContentId>,
) -> Verdict {
    if table == Table::Intents {
        return verdict(codec::decode::<Intent>(value), |intent| judge_intent(vnode, &intent, node, removals));
    }
    let Some(node) = node else { return Verdict::Dangling("belongs to a vnode that is not there") };
    let has_content = matches!(node.body, NodeBody::Content { .. });
    match table {
        Table::Inline => {
            node.inline = Some(u32::try_from(value.len()).unwrap_or(u32::MAX));
            Verdict::Sound
        }
        Table::Xattrs => {
            node.xattr_rows += 1;
            Verdict::Sound
        }
        Table::Checksums if !has_content => Verdict::Dangling("belongs to a vnode without a content file"),
        Table::Checksums => verdict(Group::from_row(value.to_vec()), |_| Verdict::Sound),
        Table::Dirty if !has_content => Verdict::Dangling("belongs to a vnode without a content file"),
        Table::Dirty => verdict(codec::decode::<DirtyRecord>(value), |_| {
            node.is_dirty = true;
            Verdict::Sound
        }),
        Table::Orphans => verdict(codec::decode::<OrphanRecord>(value), |_| {
            node.is_kept = true;
            Verdict::Sound
        }),
        _ => Verdict::Sound,
    }
}

fn judge_intent(vnode: u64, intent: &Intent, node: Option<&mut Node>, removals: &mut BTreeSet<ContentId>) -> Verdict {
    if let Intent::Remove { version } = *intent {
        if node.is_some_and(|node| node.version() == Some(version)) {
            return Verdict::Dangling("is to remove the contents that its vnode has");
        }
        removals.insert(ContentId { vnode, version });
        return Verdict::Sound;
    }
    let (Intent::Begin { version }
    | Intent::Truncate { version, .. }
    | Intent::Punch { version, .. }
    | Intent::Reserve { version, .. }
    | Intent::Remove { version }) = *intent;
    match node {
        Some(node) if node.version() == Some(version) => {
            node.has_intents = true;
            node.to_materialize |= matches!(intent, Intent::Begin { .. });
            Verdict::Sound
        }
        _ => Verdict::Dangling("belongs to contents that are not there"),
    }
}

fn dangling(
    findings: &mut Findings<'_>,
    table: Table,
    key: &[u8],
    sealed: Vec<u8>,
    what: &'static str,
) -> StoreResult<()> {
    let what = format!("row {} of table {} {what}", hex(key), table.name());
    findings.set_row_aside(vnode_of(key), what, (table, key), sealed)
}

/// A row that does not open or decode. What others can make up for is set aside; what holds data stays where it is.
fn damaged(
    findings: &mut Findings<'_>,
    table: Table,
    key: &[u8],
    sealed: Vec<u8>,
    error: &StoreError,
) -> StoreResult<()> {
    let vnode = (!matches!(table, Table::Slots | Table::Clients | Table::Header)).then(|| vnode_of(key)).flatten();
    let what = error.to_string();
    match table {
        Table::Inline => findings.report(vnode, what, "the file's contents are lost; restore it from a backup"),
        Table::Checksums => {
            findings.report(vnode, what, "nothing else says whether the contents are as written; restore the file");
        }
        Table::Header => findings.report(vnode, what, "restore the volume from a backup"),
        // The file's size counts for more than what was only appended to it: so nothing is cut.
        Table::Dirty if key.len() == 8 => {
            return findings
                .mend(vnode, what, "marked as written in place", |draft| draft.put(table, key, &DirtyRecord::InPlace));
        }
        _ => return findings.set_row_aside(vnode, what, (table, key), sealed),
    }
    Ok(())
}

/// The keys of a table that begin with a vnode.
pub(super) fn with_prefix(snapshot: &dyn Snapshot, table: Table, vnode: u64) -> StoreResult<Vec<Vec<u8>>> {
    let prefix = keys::vnode(vnode);
    let end = keys::prefix_end(&prefix);
    let to = end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
    let rows = snapshot.range(table, Bound::Included(&prefix), to, usize::MAX)?;
    Ok(rows.into_iter().map(|(key, _)| key).collect())
}
