//! Paths of the vnodes that findings are about.

use std::collections::BTreeMap;

use larder_protocol::ids::ROOT_VNODE;

use super::nodes::{Node, Nodes};
use super::rows::scan_records;
use super::{Finding, Volume, vnode_of};
use crate::volume::error::StoreResult;
use crate::volume::keys::Table;
use crate::volume::record::EntryRecord;

/// Directories above one another that a path is followed through.
const DEPTH: usize = 4096;

/// A name, and the directory it is in.
type Place = (u64, Vec<u8>);

/// Adds the paths that can be told.
pub(super) fn add(volume: &Volume<'_>, nodes: &Nodes, findings: &mut [Finding]) -> StoreResult<()> {
    let mut places: BTreeMap<u64, Option<Place>> = BTreeMap::new();
    for vnode in findings.iter().filter_map(|finding| finding.vnode) {
        places.insert(vnode, None);
    }
    if places.is_empty() {
        return Ok(());
    }
    find(volume, &mut places)?;
    let mut above: BTreeMap<u64, Option<Place>> = BTreeMap::new();
    for (dir, _) in places.values().flatten() {
        let mut at = *dir;
        // A directory seen before has all above it in the map already.
        while at != ROOT_VNODE && !places.contains_key(&at) && above.insert(at, None).is_none() {
            match nodes.get(at).and_then(Node::dir).and_then(|dir| dir.named_in) {
                Some(next) => at = next,
                None => break,
            }
        }
    }
    find(volume, &mut above)?;
    places.extend(above);
    for finding in findings {
        finding.path = finding.vnode.and_then(|vnode| path(vnode, &places));
    }
    Ok(())
}

/// Looks up one name for each, in one pass over all names.
fn find(volume: &Volume<'_>, places: &mut BTreeMap<u64, Option<Place>>) -> StoreResult<()> {
    if places.is_empty() {
        return Ok(());
    }
    scan_records(volume.snapshot, Table::Entries, |key, entry: EntryRecord| {
        if let Some(place) = places.get_mut(&entry.vnode)
            && place.is_none()
            && let (Some(dir), Some(name)) = (vnode_of(key), key.get(8..))
        {
            *place = Some((dir, name.to_vec()));
        }
        Ok(())
    })
}

fn path(vnode: u64, places: &BTreeMap<u64, Option<Place>>) -> Option<String> {
    let mut names = Vec::new();
    let mut at = vnode;
    while at != ROOT_VNODE {
        let (dir, name) = places.get(&at)?.as_ref()?;
        names.push(name.escape_ascii().to_string());
        at = *dir;
        if names.len() > DEPTH {
            return None;
        }
    }
    names.reverse();
    Some(format!("/{}", names.join("/")))
}
