//! `/lost+found`: where vnodes without a name get one.

use larder_protocol::attr::FileType;
use larder_protocol::ids::{MAX_VNODE, ROOT_VNODE};
use larder_protocol::name::Name;

use super::found::Findings;
use super::nodes::Nodes;
use super::rows::with_prefix;
use super::tree::Nameless;
use super::{Volume, now};
use crate::volume::error::{StoreError, StoreResult};
use crate::volume::keys::{self, Table};
use crate::volume::record::{Body, CookieRecord, EntryRecord, VnodeRecord};
use crate::volume::view::{Draft, Records};

const DIRECTORY: &str = "lost+found";

/// Gives each a name, `/lost+found/<vnode>`.
pub(super) fn link(
    volume: &Volume<'_>,
    nodes: &Nodes,
    Nameless(nameless): &Nameless,
    findings: &mut Findings<'_>,
) -> StoreResult<()> {
    for &vnode in nameless {
        let Some(node) = nodes.get(vnode) else { continue };
        let subdirs = node.dir().map(|dir| dir.subdirs);
        let kept = with_prefix(volume.snapshot, Table::Orphans, vnode)?;
        let what = "it has no name, and no client keeps it";
        let generation = findings.generation();
        findings.mend(Some(vnode), what, format!("it is /{DIRECTORY}/{vnode} now"), |draft| {
            kept.iter().for_each(|key| draft.delete(Table::Orphans, key));
            let directory = directory(draft, generation)?;
            let Some(mut record) = draft.vnode(vnode)? else { return Ok(()) };
            record.nlink = subdirs.map_or(1, |subdirs| 2 + subdirs);
            if let Body::Directory { parent, .. } = &mut record.body {
                *parent = directory;
            }
            draft.put_vnode(vnode, &record)?;
            add(draft, directory, &free_name(draft, directory, &vnode.to_string())?, vnode, &record)
        })?;
    }
    Ok(())
}

fn name(text: &str) -> StoreResult<Name> {
    Name::new(text.as_bytes()).map_err(|error| StoreError::Engine(format!("\"{text}\" is no name: {error}")))
}

/// A name that is not taken: the text, or the text with a number behind it.
fn free_name(draft: &Draft<'_>, directory: u64, text: &str) -> StoreResult<Name> {
    let mut free = name(text)?;
    let mut number = 0;
    while draft.entry(directory, &free)?.is_some() {
        number += 1;
        free = name(&format!("{text}.{number}"))?;
    }
    Ok(free)
}

/// The directory, made if it is not there.
fn directory(draft: &mut Draft<'_>, generation: u64) -> StoreResult<u64> {
    if let Some(entry) = draft.entry(ROOT_VNODE, &name(DIRECTORY)?)?
        && entry.kind == FileType::Directory
        && draft.vnode(entry.vnode)?.is_some_and(|record| record.nlink > 0)
    {
        return Ok(entry.vnode);
    }
    let mut header = draft.header()?;
    let vnode = header.next_vnode;
    if vnode > MAX_VNODE {
        return Err(StoreError::Engine("the volume has no vnode number left".to_owned()));
    }
    let now = now();
    let record = VnodeRecord {
        generation,
        mode: 0o700,
        nlink: 2,
        uid: 0,
        gid: 0,
        size: 4096,
        blocks: 8,
        atime: now,
        mtime: now,
        ctime: now,
        btime: now,
        // The repair gives a new one to all that it touches.
        change: 0,
        data_change: 0,
        xattrs: 0,
        body: Body::Directory { parent: ROOT_VNODE, entries: 0, next_cookie: 1 },
    };
    header.next_vnode += 1;
    header.vnodes += 1;
    header.blocks += record.blocks;
    draft.put(Table::Header, keys::HEADER, &header)?;
    draft.put_vnode(vnode, &record)?;
    let free = free_name(draft, ROOT_VNODE, DIRECTORY)?;
    add(draft, ROOT_VNODE, &free, vnode, &record)?;
    Ok(vnode)
}

/// Adds a name to a directory.
fn add(draft: &mut Draft<'_>, dir: u64, name: &Name, vnode: u64, record: &VnodeRecord) -> StoreResult<()> {
    let Some(mut above) = draft.vnode(dir)? else {
        return Err(StoreError::Corrupt(format!("directory {dir} is not there")));
    };
    let Body::Directory { entries, next_cookie, .. } = &mut above.body else {
        return Err(StoreError::Corrupt(format!("vnode {dir} is no directory")));
    };
    let cookie = *next_cookie;
    *next_cookie += 1;
    *entries += 1;
    let (generation, kind) = (record.generation, record.kind());
    above.nlink += u32::from(kind == FileType::Directory);
    draft.put_vnode(dir, &above)?;
    draft.put(Table::Entries, &keys::entry(dir, name), &EntryRecord { vnode, generation, kind, cookie })?;
    let place = CookieRecord { name: name.clone(), vnode, generation, kind };
    draft.put(Table::Cookies, &keys::cookie(dir, cookie), &place)
}
