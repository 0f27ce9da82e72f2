//! Everything a volume holds, as the server itself shows it.

use std::collections::BTreeMap;

use larder_protocol::attr::{Attr, Credential, FileType};
use larder_protocol::ids::Fid;
use larder_protocol::name::Name;
use larder_protocol::service::file::{Query, QueryReply};
use larder_server::volume::Volume;

use crate::model::Model;
use crate::registers::contents;

/// An object, with what counts in a comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) fid: Fid,
    pub(crate) kind: FileType,
    pub(crate) mode: u32,
    pub(crate) nlink: u32,
    /// A file's contents, a link's target.
    pub(crate) data: Vec<u8>,
}

/// Objects by their paths, `/` first.
pub(crate) type Tree = BTreeMap<String, Node>;

pub(crate) async fn getattr(volume: &Volume, fid: Fid) -> Attr {
    match volume.query(&Credential::root(), Query::Getattr { fid }).await {
        Ok(QueryReply::Attr(attr)) => attr,
        other => panic!("asking for {fid}: {other:?}"),
    }
}

async fn entries(volume: &Volume, dir: Fid) -> Vec<(Name, Attr)> {
    let (mut all, mut cookie) = (Vec::new(), 0);
    loop {
        let query = Query::Readdir { dir, cookie, max_bytes: 1000, plus: true };
        let Ok(QueryReply::Listing { entries, end, .. }) = volume.query(&Credential::root(), query).await else {
            panic!("listing {dir}");
        };
        for entry in entries {
            assert!(entry.cookie > cookie);
            cookie = entry.cookie;
            all.push((entry.name, entry.attr.expect("asked for, and nothing changes")));
        }
        if end {
            return all;
        }
    }
}

/// Reads the tree below a directory.
///
/// # Panics
/// If link counts or sizes contradict what is there.
pub(crate) async fn read(volume: &Volume, root: Fid) -> Tree {
    let mut tree = Tree::new();
    let mut names: BTreeMap<Fid, (u32, u32)> = BTreeMap::new();
    let mut todo = vec![("/".to_owned(), getattr(volume, root).await)];
    while let Some((path, attr)) = todo.pop() {
        let mut subdirs = 0;
        let data = match attr.kind {
            FileType::Directory => {
                for (name, child) in entries(volume, attr.fid).await {
                    subdirs += u32::from(child.kind == FileType::Directory);
                    todo.push((format!("{path}{name}/"), child));
                }
                assert_eq!(attr.nlink, 2 + subdirs, "links of {path}");
                Vec::new()
            }
            FileType::Symlink => match volume.query(&Credential::root(), Query::Readlink { fid: attr.fid }).await {
                Ok(QueryReply::Target(target)) => target.to_vec(),
                other => panic!("reading the link {path}: {other:?}"),
            },
            _ => contents(volume, attr.fid).await,
        };
        if attr.kind != FileType::Directory {
            assert_eq!(attr.size, data.len() as u64, "size of {path}");
            let count = names.entry(attr.fid).or_insert((0, attr.nlink));
            count.0 += 1;
        }
        tree.insert(path, Node { fid: attr.fid, kind: attr.kind, mode: attr.mode, nlink: attr.nlink, data });
    }
    for (fid, (names, nlink)) in names {
        // Objects have no names outside of the tree that is read.
        assert_eq!(names, nlink, "links of {fid}");
    }
    tree
}

/// The same of a model.
pub(crate) fn of_model(model: &Model) -> Tree {
    let mut tree = Tree::new();
    let mut todo = vec![("/".to_owned(), model.root)];
    while let Some((path, fid)) = todo.pop() {
        let object = &model.objects[&fid];
        todo.extend(object.entries.iter().map(|(name, fid)| (format!("{path}{name}/"), *fid)));
        let node = Node { fid, kind: object.kind, mode: object.mode, nlink: object.nlink, data: object.data.clone() };
        tree.insert(path, node);
    }
    tree
}

/// # Panics
/// If they differ, with the first difference.
pub(crate) fn assert_same(expected: &Tree, found: &Tree, what: &str) {
    let shown = |node: Option<&Node>| {
        node.map(|node| (node.fid, node.kind, node.mode, node.nlink, node.data.len(), crc(&node.data)))
    };
    for path in expected.keys().chain(found.keys()) {
        assert_eq!(shown(found.get(path)), shown(expected.get(path)), "{what}: {path} (found, expected)");
    }
    assert!(expected == found, "{what}");
}

/// Enough to tell contents apart in a message.
fn crc(data: &[u8]) -> u64 {
    data.iter().fold(0, |sum: u64, byte| sum.wrapping_mul(31).wrapping_add((*byte).into()))
}
