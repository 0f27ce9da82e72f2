//! Contents: they are where the records say, as long, with the checksums they had, and nothing else is there.

use std::collections::BTreeSet;
use std::io;

use larder_protocol::service::file::SeekWhat;

use super::Volume;
use super::found::Findings;
use super::nodes::{Node, NodeBody, Nodes};
use super::rows::with_prefix;
use crate::volume::codec;
use crate::volume::content::{Content, ContentId};
use crate::volume::data::checksums::{self, Group};
use crate::volume::error::StoreResult;
use crate::volume::keys::{self, Table};
use crate::volume::record::{BLOCK, GROUP};

const DAMAGED: &str = "what was written there is lost; restore the file from a backup";

pub(super) fn check(
    volume: &Volume<'_>,
    nodes: &Nodes,
    removals: &BTreeSet<ContentId>,
    findings: &mut Findings<'_>,
) -> StoreResult<()> {
    for node in nodes.iter() {
        match node.body {
            NodeBody::Inline => inline(node, findings)?,
            NodeBody::Content { version } => {
                unused_inline(volume, node, findings)?;
                content(volume, node, ContentId { vnode: node.vnode, version }, findings)?;
            }
            _ => unused_inline(volume, node, findings)?,
        }
    }
    let (mut stray, mut strange) = (Vec::new(), Vec::new());
    volume.content.list(
        &mut |id| {
            let owned = nodes.get(id.vnode).is_some_and(|node| node.version() == Some(id.version));
            if !owned && !removals.contains(&id) {
                stray.push(id);
            }
        },
        &mut |path| strange.push(path),
    )?;
    stray.sort_unstable();
    for id in stray {
        findings.set_content_aside(id, volume.content);
    }
    for path in strange {
        let full = volume.content.directory().join(&path);
        findings.set_file_aside(None, format!("content/{path} is not one of Larder's files"), full);
    }
    Ok(())
}

fn inline(node: &Node, findings: &mut Findings<'_>) -> StoreResult<()> {
    let len = u64::from(node.inline.unwrap_or(0));
    if len != node.size {
        let what = format!("the file's record says {} bytes, and {len} are there", node.size);
        findings.report(Some(node.vnode), what, "restore the file from a backup");
        return Ok(());
    }
    let blocks = node.size.div_ceil(512);
    if blocks != node.blocks {
        let what = format!("it says that it occupies {} blocks, and it is {blocks}", node.blocks);
        findings.mend_vnode(node.vnode, what, "count corrected", |record| record.blocks = blocks)?;
    }
    Ok(())
}

/// Contents in the metadata of what has none there. They stay until a file is settled that has outgrown the metadata.
fn unused_inline(volume: &Volume<'_>, node: &Node, findings: &mut Findings<'_>) -> StoreResult<()> {
    if node.inline.is_none() || !node.is_settled() {
        return Ok(());
    }
    let key = keys::vnode(node.vnode);
    let sealed = volume.snapshot.get(Table::Inline, &key)?.unwrap_or_default();
    let what = "it has contents in the metadata, and should have none there";
    findings.set_row_aside(Some(node.vnode), what, (Table::Inline, &key), sealed)
}

fn content(volume: &Volume<'_>, node: &Node, id: ContentId, findings: &mut Findings<'_>) -> StoreResult<()> {
    let stat = match volume.content.stat(id) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if !node.to_materialize {
                findings.report(Some(node.vnode), "its content file is missing", "restore the file from a backup");
            }
            return Ok(());
        }
        Err(error) => {
            findings.report(Some(node.vnode), format!("its content file cannot be read: {error}"), "check the disk");
            return Ok(());
        }
        Ok(stat) => stat,
    };
    // The blocks that a content file occupies are the file system's affair and change behind our back, as when it
    // gives back what it had reserved; so they are not compared.
    if !node.is_settled() {
        return Ok(());
    }
    if stat.size != node.size {
        let what = format!("its record says {} bytes, and its content file has {}", node.size, stat.size);
        findings.report(Some(node.vnode), what, "restore the file from a backup");
        return Ok(());
    }
    let mut damage = Damage::default();
    match sums(volume, id, stat.size, &mut damage, findings).and_then(|()| holes(volume, id, stat.size, &mut damage)) {
        Ok(()) => {}
        Err(Trouble::Store(error)) => return Err(error),
        Err(Trouble::Content(error)) => {
            findings.report(Some(node.vnode), format!("its content file cannot be read: {error}"), "check the disk");
        }
    }
    for (first, last) in damage.0 {
        let (from, to) = (first * BLOCK, ((last + 1) * BLOCK).min(stat.size));
        findings.report(Some(node.vnode), format!("bytes {from} to {to} do not match their checksums"), DAMAGED);
    }
    Ok(())
}

/// What stops the reading of one file.
enum Trouble {
    Store(crate::volume::error::StoreError),
    Content(io::Error),
}

impl From<crate::volume::error::StoreError> for Trouble {
    fn from(error: crate::volume::error::StoreError) -> Trouble {
        Trouble::Store(error)
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Trouble {
        Trouble::Content(error)
    }
}

/// Runs of damaged blocks, first and last.
#[derive(Default)]
struct Damage(Vec<(u64, u64)>);

impl Damage {
    fn add(&mut self, block: u64) {
        match self.0.last_mut() {
            Some((_, last)) if *last + 1 == block => *last = block,
            _ => self.0.push((block, block)),
        }
    }
}

/// One group of checksums; `None` if its row is damaged, which was reported.
fn group(volume: &Volume<'_>, key: &[u8]) -> StoreResult<Option<Group>> {
    let Some(sealed) = volume.snapshot.get(Table::Checksums, key)? else { return Ok(Some(Group::default())) };
    Ok(codec::open(Table::Checksums, key, sealed).and_then(Group::from_row).ok())
}

/// Each block that has a checksum matches it.
fn sums(
    volume: &Volume<'_>,
    id: ContentId,
    size: u64,
    damage: &mut Damage,
    findings: &mut Findings<'_>,
) -> Result<(), Trouble> {
    for key in with_prefix(volume.snapshot, Table::Checksums, id.vnode)? {
        let Some(number) = key.get(8..).and_then(keys::number) else { continue };
        let Some(mut sums) = group(volume, &key)? else { continue };
        let mut beyond = false;
        for index in 0..GROUP as usize {
            let Some(sum) = sums.get(index) else { continue };
            let block = number.saturating_mul(GROUP).saturating_add(index as u64);
            let Some(offset) = block.checked_mul(BLOCK).filter(|offset| *offset < size) else {
                sums.set(index, None);
                beyond = true;
                continue;
            };
            let data = volume.content.read(id, offset, BLOCK as usize)?;
            if checksums::of_block(&data) != sum {
                damage.add(block);
            }
        }
        if beyond {
            findings.mend(Some(id.vnode), "it has checksums behind its end", "these are removed", |draft| {
                checksums::store(draft, id.vnode, number, sums);
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// Each block that has none is all zeros.
fn holes(volume: &Volume<'_>, id: ContentId, size: u64, damage: &mut Damage) -> Result<(), Trouble> {
    let mut at = 0;
    let mut current: Option<(u64, Option<Group>)> = None;
    while at < size {
        let Some(data) = volume.content.seek(id, at, SeekWhat::Data)? else { return Ok(()) };
        let block = data / BLOCK;
        let (number, index) = checksums::place(block);
        if current.as_ref().is_none_or(|(loaded, _)| *loaded != number) {
            current = Some((number, group(volume, &keys::checksums(id.vnode, number))?));
        }
        let is_hole = matches!(&current, Some((_, Some(group))) if group.get(index).is_none());
        if is_hole && !checksums::is_zero(&volume.content.read(id, block * BLOCK, BLOCK as usize)?) {
            damage.add(block);
        }
        at = (block + 1) * BLOCK;
    }
    Ok(())
}
