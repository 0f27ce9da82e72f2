//! What the check knows of each vnode: what its record says, and what the other rows say of it.

use crate::volume::record::{Body, VnodeRecord};
use larder_protocol::attr::FileType;

/// One vnode, small enough that a million fit in memory.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) vnode: u64,
    pub(super) generation: u64,
    pub(super) size: u64,
    pub(super) blocks: u64,
    pub(super) change: u64,
    pub(super) nlink: u32,
    pub(super) xattrs: u32,
    pub(super) kind: FileType,
    pub(super) body: NodeBody,
    /// Entries that point at it.
    pub(super) names: u32,
    pub(super) xattr_rows: u32,
    /// Bytes of its row in `Inline`.
    pub(super) inline: Option<u32>,
    pub(super) is_kept: bool,
    pub(super) is_dirty: bool,
    pub(super) has_intents: bool,
    /// Its content file may not have been made yet.
    pub(super) to_materialize: bool,
}

#[derive(Debug)]
pub(super) enum NodeBody {
    Inline,
    Content { version: u64 },
    Directory(Box<DirNode>),
    Other,
}

#[derive(Debug, Default)]
pub(super) struct DirNode {
    pub(super) parent: u64,
    pub(super) entries: u64,
    pub(super) next_cookie: u64,
    /// Entries that there are.
    pub(super) found: u64,
    /// Entries that are directories.
    pub(super) subdirs: u32,
    /// The highest cookie that there is.
    pub(super) top_cookie: u64,
    /// The directory that has a name for it.
    pub(super) named_in: Option<u64>,
}

impl Node {
    pub(super) fn new(vnode: u64, record: &VnodeRecord) -> Node {
        let body = match record.body {
            Body::Inline => NodeBody::Inline,
            Body::Content { version } => NodeBody::Content { version },
            Body::Directory { parent, entries, next_cookie } => {
                NodeBody::Directory(Box::new(DirNode { parent, entries, next_cookie, ..DirNode::default() }))
            }
            _ => NodeBody::Other,
        };
        Node {
            vnode,
            generation: record.generation,
            size: record.size,
            blocks: record.blocks,
            change: record.change.max(record.data_change),
            nlink: record.nlink,
            xattrs: record.xattrs,
            kind: record.kind(),
            body,
            names: 0,
            xattr_rows: 0,
            inline: None,
            is_kept: false,
            is_dirty: false,
            has_intents: false,
            to_materialize: false,
        }
    }

    pub(super) fn dir(&self) -> Option<&DirNode> {
        match &self.body {
            NodeBody::Directory(dir) => Some(dir),
            _ => None,
        }
    }

    pub(super) fn dir_mut(&mut self) -> Option<&mut DirNode> {
        match &mut self.body {
            NodeBody::Directory(dir) => Some(dir),
            _ => None,
        }
    }

    /// Whether contents and record agree, so that they can be compared.
    pub(super) fn is_settled(&self) -> bool {
        !self.is_dirty && !self.has_intents
    }

    pub(super) fn version(&self) -> Option<u64> {
        match self.body {
            NodeBody::Content { version } => Some(version),
            _ => None,
        }
    }
}

/// All vnodes, in the order of their numbers.
#[derive(Debug, Default)]
pub(super) struct Nodes(Vec<Node>);

impl Nodes {
    /// Adds a vnode; they come in order.
    pub(super) fn push(&mut self, node: Node) {
        debug_assert!(self.0.last().is_none_or(|last| last.vnode < node.vnode));
        self.0.push(node);
    }

    pub(super) fn get(&self, vnode: u64) -> Option<&Node> {
        let place = self.0.binary_search_by_key(&vnode, |node| node.vnode).ok()?;
        self.0.get(place)
    }

    pub(super) fn get_mut(&mut self, vnode: u64) -> Option<&mut Node> {
        let place = self.0.binary_search_by_key(&vnode, |node| node.vnode).ok()?;
        self.0.get_mut(place)
    }

    pub(super) fn dir_mut(&mut self, vnode: u64) -> Option<&mut DirNode> {
        self.get_mut(vnode)?.dir_mut()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Node> {
        self.0.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}
