//! The tree: names and cookies agree, names point at what is there, every directory hangs in it once.

use larder_protocol::attr::FileType;
use larder_protocol::ids::ROOT_VNODE;
use larder_protocol::name::Name;

use super::found::{Findings, edit};
use super::nodes::{DirNode, Node, Nodes};
use super::rows::{get, scan_records};
use super::{Volume, vnode_of};
use crate::volume::error::StoreResult;
use crate::volume::keys::{self, Table};
use crate::volume::record::{Body, CookieRecord, EntryRecord};

/// Vnodes without a name that somebody should find again.
pub(super) struct Nameless(pub(super) Vec<u64>);

pub(super) fn check(volume: &Volume<'_>, nodes: &mut Nodes, findings: &mut Findings<'_>) -> StoreResult<Nameless> {
    entries(volume, nodes, findings)?;
    cookies(volume, nodes, findings)?;
    cycles(volume, nodes, findings)?;
    directories(nodes, findings)?;
    links(volume, nodes, findings)
}

/// A name as its key has it. Malformed keys were reported with the rows.
fn split(key: &[u8]) -> Option<(u64, Name)> {
    Some((vnode_of(key)?, Name::new(key.get(8..)?).ok()?))
}

fn entries(volume: &Volume<'_>, nodes: &mut Nodes, findings: &mut Findings<'_>) -> StoreResult<()> {
    scan_records(volume.snapshot, Table::Entries, |key, entry: EntryRecord| {
        let Some((dir, name)) = split(key) else { return Ok(()) };
        if let Some(what) = why_not(nodes, dir, &entry) {
            return findings.mend(Some(dir), format!("name {name:?} {what}"), "name removed", |draft| {
                draft.delete(Table::Entries, key);
                Ok(())
            });
        }
        let kind = nodes.get(entry.vnode).map_or(entry.kind, |node| node.kind);
        let place = keys::cookie(dir, entry.cookie);
        let wanted = CookieRecord { name: name.clone(), vnode: entry.vnode, generation: entry.generation, kind };
        if entry.kind != kind {
            let fixed = EntryRecord { kind, ..entry.clone() };
            findings.mend(Some(dir), format!("name {name:?} has the wrong kind"), "kind corrected", |draft| {
                draft.put(Table::Entries, key, &fixed)?;
                draft.put(Table::Cookies, &place, &wanted)
            })?;
        } else {
            match get::<CookieRecord>(volume.snapshot, Table::Cookies, &place)? {
                Some(cookie) if cookie == wanted => {}
                Some(cookie) if cookie.name != name && has_entry(volume, dir, &cookie.name, entry.cookie)? => {
                    let what = format!("names {name:?} and {:?} have one place in the listing", cookie.name);
                    let place = next_place(nodes, dir);
                    let moved = EntryRecord { cookie: place, ..entry.clone() };
                    findings.mend(Some(dir), what, "another place given", |draft| {
                        draft.put(Table::Entries, key, &moved)?;
                        draft.put(Table::Cookies, &keys::cookie(dir, place), &wanted)?;
                        edit(draft, dir, |record| set_next_cookie(&mut record.body, place + 1))
                    })?;
                }
                _ => {
                    let what = format!("name {name:?} is not in the listing as it should be");
                    findings.mend(Some(dir), what, "listing corrected", |draft| {
                        draft.put(Table::Cookies, &place, &wanted)
                    })?;
                }
            }
        }
        count(nodes, dir, entry.vnode, entry.cookie, &name, findings)
    })
}

/// Why a name cannot stay.
fn why_not(nodes: &Nodes, dir: u64, entry: &EntryRecord) -> Option<&'static str> {
    if nodes.get(dir).and_then(Node::dir).is_none() {
        return Some("is in what is no directory");
    }
    if entry.vnode == ROOT_VNODE {
        return Some("points at the root directory");
    }
    match nodes.get(entry.vnode) {
        None => Some("points at a vnode that is not there"),
        Some(node) if node.generation != entry.generation => Some("points at a vnode of another generation"),
        Some(_) => None,
    }
}

fn has_entry(volume: &Volume<'_>, dir: u64, name: &Name, cookie: u64) -> StoreResult<bool> {
    let entry: Option<EntryRecord> = get(volume.snapshot, Table::Entries, &keys::entry(dir, name))?;
    Ok(entry.is_some_and(|entry| entry.cookie == cookie))
}

/// Takes a place at the end of a directory's listing.
fn next_place(nodes: &mut Nodes, dir: u64) -> u64 {
    let Some(dir) = nodes.dir_mut(dir) else { return 0 };
    let place = dir.next_cookie.max(dir.top_cookie + 1);
    dir.next_cookie = place + 1;
    place
}

/// Counts a name that stays.
fn count(
    nodes: &mut Nodes,
    dir: u64,
    target: u64,
    cookie: u64,
    name: &Name,
    findings: &mut Findings<'_>,
) -> StoreResult<()> {
    let is_dir = nodes.get(target).is_some_and(|node| node.kind == FileType::Directory);
    if let Some(child) = nodes.dir_mut(target) {
        if let Some(other) = child.named_in {
            // Directories have one name. Which of several is right, the directory itself knows, if any is.
            let what = format!("a directory has two names, {name:?} in directory {dir} and one in {other}");
            if child.parent != dir || other == dir {
                return findings.mend(Some(target), what, "the name that it does not know is removed", |draft| {
                    draft.delete(Table::Entries, &keys::entry(dir, name));
                    draft.delete(Table::Cookies, &keys::cookie(dir, cookie));
                    Ok(())
                });
            }
            // The next round finds the other name to be the one too many.
            findings.mend(Some(target), what, "the directory above corrected", |draft| {
                edit(draft, target, |record| set_parent(&mut record.body, other))
            })?;
        } else {
            child.named_in = Some(dir);
        }
    }
    if let Some(above) = nodes.dir_mut(dir) {
        above.found += 1;
        above.subdirs += u32::from(is_dir);
        above.top_cookie = above.top_cookie.max(cookie);
    }
    if let Some(node) = nodes.get_mut(target) {
        node.names += 1;
    }
    Ok(())
}

fn set_parent(body: &mut Body, above: u64) {
    if let Body::Directory { parent, .. } = body {
        *parent = above;
    }
}

fn set_next_cookie(body: &mut Body, next: u64) {
    if let Body::Directory { next_cookie, .. } = body {
        *next_cookie = next.max(*next_cookie);
    }
}

fn cookies(volume: &Volume<'_>, nodes: &mut Nodes, findings: &mut Findings<'_>) -> StoreResult<()> {
    scan_records(volume.snapshot, Table::Cookies, |key, record: CookieRecord| {
        let (Some(dir), Some(cookie)) = (vnode_of(key), key.get(8..).and_then(keys::number)) else { return Ok(()) };
        let CookieRecord { name, vnode, generation, kind } = record;
        let at = keys::entry(dir, &name);
        let entry: Option<EntryRecord> = get(volume.snapshot, Table::Entries, &at)?;
        let twin = EntryRecord { vnode, generation, kind, cookie };
        match entry {
            // Its own check has dealt with this pair.
            Some(entry) if entry.cookie == cookie && why_not(nodes, dir, &entry).is_none() => Ok(()),
            None if why_not(nodes, dir, &twin).is_none() => {
                let what = format!("name {name:?} is in the listing and cannot be looked up");
                findings.mend(Some(dir), what, "name put back", |draft| draft.put(Table::Entries, &at, &twin))?;
                count(nodes, dir, vnode, cookie, &name, findings)
            }
            _ => {
                let what = format!("the listing has {name:?} in a place where it is not");
                findings.mend(Some(dir), what, "taken out of the listing", |draft| {
                    draft.delete(Table::Cookies, key);
                    Ok(())
                })
            }
        }
    })
}

/// Directories that hang below themselves. One name in each ring is taken out; the next round finds that directory
/// nameless.
fn cycles(volume: &Volume<'_>, nodes: &mut Nodes, findings: &mut Findings<'_>) -> StoreResult<()> {
    let mut known: std::collections::BTreeSet<u64> = std::collections::BTreeSet::new();
    let mut rings = Vec::new();
    for node in nodes.iter().filter(|node| node.dir().is_some()) {
        let mut way = Vec::new();
        let mut at = node.vnode;
        while !known.contains(&at) {
            known.insert(at);
            way.push(at);
            match nodes.get(at).and_then(Node::dir).and_then(|dir| dir.named_in) {
                Some(above) => at = above,
                None => break,
            }
        }
        // Only a ring comes back to where this walk was.
        let came_back = nodes.get(at).and_then(Node::dir).is_some_and(|dir| dir.named_in.is_some());
        if came_back && way.contains(&at) {
            rings.push(at);
        }
    }
    for vnode in rings {
        let Some(above) = nodes.get(vnode).and_then(Node::dir).and_then(|dir| dir.named_in) else { continue };
        let mut taken = Vec::new();
        scan_records(volume.snapshot, Table::Entries, |key, entry: EntryRecord| {
            if entry.vnode == vnode && vnode_of(key) == Some(above) {
                taken.push((key.to_vec(), keys::cookie(above, entry.cookie)));
            }
            Ok(())
        })?;
        let what = "the directory hangs below itself";
        findings.mend(Some(vnode), what, "its name is removed", |draft| {
            for (entry, cookie) in &taken {
                draft.delete(Table::Entries, entry);
                draft.delete(Table::Cookies, cookie);
            }
            Ok(())
        })?;
    }
    Ok(())
}

fn directories(nodes: &Nodes, findings: &mut Findings<'_>) -> StoreResult<()> {
    for node in nodes.iter() {
        let Some(dir) = node.dir() else { continue };
        let DirNode { parent, entries, next_cookie, found, top_cookie, named_in, .. } = *dir;
        let right = if node.vnode == ROOT_VNODE { Some(ROOT_VNODE) } else { named_in };
        if let Some(above) = right
            && parent != above
        {
            let what = format!("the directory says that it is in {parent}, and its name is in {above}");
            findings.mend_vnode(node.vnode, what, "directory above corrected", |record| {
                set_parent(&mut record.body, above);
            })?;
        }
        if entries != found {
            let what = format!("the directory says that it has {entries} names, and there are {found}");
            findings.mend_vnode(node.vnode, what, "count corrected", |record| {
                if let Body::Directory { entries, .. } = &mut record.body {
                    *entries = found;
                }
            })?;
        }
        if next_cookie <= top_cookie {
            let what = format!("the directory's next place in the listing is {next_cookie}, and {top_cookie} is taken");
            findings.mend_vnode(node.vnode, what, "next place corrected", |record| {
                set_next_cookie(&mut record.body, top_cookie + 1);
            })?;
        }
    }
    Ok(())
}

fn links(volume: &Volume<'_>, nodes: &Nodes, findings: &mut Findings<'_>) -> StoreResult<Nameless> {
    let mut nameless = Vec::new();
    for node in nodes.iter() {
        let has_name = node.names > 0 || node.vnode == ROOT_VNODE;
        let is_empty = node.dir().is_none_or(|dir| dir.found == 0);
        if !(has_name || node.is_kept && is_empty) {
            nameless.push(node.vnode);
        }
        if has_name && node.is_kept {
            let what = "a client keeps it as a file without a name, and it has one";
            let rows = super::rows::with_prefix(volume.snapshot, Table::Orphans, node.vnode)?;
            findings.mend(Some(node.vnode), what, "the client keeps it no more", |draft| {
                rows.iter().for_each(|key| draft.delete(Table::Orphans, key));
                Ok(())
            })?;
        }
        let right = match node.dir() {
            Some(dir) if has_name || dir.found > 0 => 2 + dir.subdirs,
            _ => node.names,
        };
        // What is nameless and not kept gets its name and count in one step.
        if node.nlink != right && (has_name || node.is_kept) {
            let what = format!("it says that it has {} links, and it has {right}", node.nlink);
            findings.mend_vnode(node.vnode, what, "count corrected", |record| record.nlink = right)?;
        }
    }
    Ok(Nameless(nameless))
}
