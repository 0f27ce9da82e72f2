//! Counters of the volume, and what stands alone: extended attributes and replay slots.

use larder_protocol::ids::ClientId;

use super::found::Findings;
use super::nodes::Nodes;
use super::rows::{get, scan_records};
use super::{Volume, now};
use crate::volume::context::CHANGES;
use crate::volume::error::StoreResult;
use crate::volume::keys::{self, Table};
use crate::volume::record::{ClientRecord, FORMAT, HeaderRecord, SlotRecord};
use crate::volume::view::Records;

pub(super) fn check(
    volume: &Volume<'_>,
    header: &HeaderRecord,
    nodes: &Nodes,
    findings: &mut Findings<'_>,
) -> StoreResult<()> {
    if header.format != FORMAT {
        let what = format!("the volume has format {}", header.format);
        findings.report(None, what, format!("this build knows format {FORMAT} only"));
    }
    if volume.id.is_some_and(|id| id != header.id) {
        let what = format!("the volume's header says that its id is {}, and its directory says another", header.id);
        findings.report(None, what, "rename the directory");
    }
    for node in nodes.iter().filter(|node| node.xattrs != node.xattr_rows) {
        let (says, has) = (node.xattrs, node.xattr_rows);
        let what = format!("it says that it has {says} extended attributes, and it has {has}");
        findings.mend_vnode(node.vnode, what, "count corrected", |record| record.xattrs = has)?;
    }
    counters(header, nodes, findings)?;
    slots(volume, findings)
}

/// Changes the header in the draft.
fn mend_header(
    findings: &mut Findings<'_>,
    what: String,
    how: &str,
    change: impl FnOnce(&mut HeaderRecord),
) -> StoreResult<()> {
    findings.mend(None, what, how, |draft| {
        let mut header = draft.header()?;
        change(&mut header);
        draft.put(Table::Header, keys::HEADER, &header)
    })
}

fn counters(header: &HeaderRecord, nodes: &Nodes, findings: &mut Findings<'_>) -> StoreResult<()> {
    let (vnodes, blocks) = (nodes.len() as u64, nodes.iter().map(|node| node.blocks).sum::<u64>());
    if header.vnodes != vnodes {
        let what = format!("the volume says that it has {} vnodes, and it has {vnodes}", header.vnodes);
        mend_header(findings, what, "count corrected", |header| header.vnodes = vnodes)?;
    }
    if header.blocks != blocks {
        let what = format!("the volume says that it occupies {} blocks, and it is {blocks}", header.blocks);
        mend_header(findings, what, "count corrected", |header| header.blocks = blocks)?;
    }
    let top = nodes.iter().map(|node| node.vnode).max().unwrap_or(0);
    if header.next_vnode <= top {
        let what = format!("the volume's next vnode number is {}, and {top} is taken", header.next_vnode);
        mend_header(findings, what, "next number corrected", |header| header.next_vnode = top + 1)?;
    }
    // Handles and change attributes that this incarnation could give out a second time.
    let newest = nodes.iter().map(|node| node.generation.max(node.change.saturating_sub(CHANGES))).max().unwrap_or(0);
    if header.incarnation < newest {
        let what = format!("the volume's incarnation is {}, and a vnode is from {newest}", header.incarnation);
        mend_header(findings, what, "incarnation raised", |header| header.incarnation = newest)?;
    }
    Ok(())
}

fn slots(volume: &Volume<'_>, findings: &mut Findings<'_>) -> StoreResult<()> {
    let mut missing: Option<(ClientId, u64)> = None;
    let mut all = Vec::new();
    scan_records(volume.snapshot, Table::Slots, |_, slot: SlotRecord| {
        let (client, incarnation) = (slot.id.client, slot.id.incarnation);
        match &mut missing {
            Some((last, highest)) if *last == client => *highest = incarnation.max(*highest),
            _ if get::<ClientRecord>(volume.snapshot, Table::Clients, &keys::client(client))?.is_none() => {
                all.extend(missing.replace((client, incarnation)));
            }
            _ => {}
        }
        Ok(())
    })?;
    all.extend(missing);
    for (client, incarnation) in all {
        let last_seen = now();
        let what = format!("client {client} has replay slots, and the volume does not know it");
        // Its slots must stay: it may be about to retry what they answer.
        findings.mend(None, what, "made known again", |draft| {
            draft.put(Table::Clients, &keys::client(client), &ClientRecord { incarnation, last_seen })
        })?;
    }
    Ok(())
}
