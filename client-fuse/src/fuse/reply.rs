//! Replies that need more than one call of fuser.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use bytes::Bytes;
use fuser::{
    BackingId, Errno, FileHandle, FopenFlags, Generation, INodeNo, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyXattr,
};
use larder_protocol::attr::{FileType, VolumeSpace};
use larder_protocol::limits::MAX_NAME;

use super::convert::{self, BLOCK_SIZE, file_attr, name_alone, placeholder};
use crate::vfs::{Attributes, DirItem, DirName, Entry, LookupResult, Opened};

pub(super) fn done(reply: ReplyEmpty, (): ()) {
    reply.ok();
}

pub(super) fn data(reply: ReplyData, data: Bytes) {
    reply.data(&data);
}

pub(super) fn attr(reply: ReplyAttr, found: Attributes) {
    reply.attr(&found.ttl, &file_attr(found.node, &found.attr));
}

pub(super) fn entry(reply: ReplyEntry, entry: Entry) {
    let attr = file_attr(entry.node, &entry.attr);
    reply.entry_with_ttls(&entry.attr_ttl, &entry.entry_ttl, &attr, Generation(entry.generation));
}

pub(super) fn lookup(reply: ReplyEntry, found: LookupResult) {
    match found {
        LookupResult::Found(found) => entry(reply, found),
        LookupResult::Missing { ttl, .. } if ttl.is_zero() => reply.error(Errno::ENOENT),
        // Number 0 with a validity is a name known not to exist.
        LookupResult::Missing { ttl, pass } => {
            reply.entry(&ttl, &placeholder(0, FileType::Regular), Generation(0));
            drop(pass);
        }
    }
}

/// Replies to an open; if the kernel can serve the file itself, it does. `took` learns that, or that it refused.
pub(super) fn opened(reply: ReplyOpen, opened: Opened, took: impl FnOnce(bool)) {
    let (handle, flags) = (FileHandle(opened.handle), convert::fopen_flags(&opened));
    let Some(backing) = &opened.backing else { return reply.opened(handle, flags) };
    let mut refused = false;
    let way = backing.way(|file| match reply.open_backing(file) {
        Ok(id) => Some(Box::new(id)),
        Err(error) => {
            tracing::info!("the kernel does not serve cached files itself ({error}); this process does");
            refused = true;
            None
        }
    });
    let id = way.and_then(|way| way.downcast_ref::<BackingId>());
    if id.is_some() || refused {
        took(id.is_some());
    }
    match id {
        // The page cache is that of the file behind.
        Some(id) => reply.opened_passthrough(handle, flags - FopenFlags::FOPEN_KEEP_CACHE, id),
        None => reply.opened(handle, flags),
    }
}

pub(super) fn created(reply: ReplyCreate, (entry, opened): (Entry, Opened)) {
    reply.created(
        &common_ttl(&entry),
        &file_attr(entry.node, &entry.attr),
        Generation(entry.generation),
        FileHandle(opened.handle),
        convert::fopen_flags(&opened),
    );
}

/// Where a reply has one validity for name and attributes, both get the shorter one.
fn common_ttl(entry: &Entry) -> Duration {
    entry.attr_ttl.min(entry.entry_ttl)
}

/// Adds a name to a listing; whether there was room.
pub(super) fn add_name(reply: &mut ReplyDirectory, item: &DirItem) -> bool {
    !reply.add(INodeNo(item.node), item.offset, convert::kind(item.kind), OsStr::from_bytes(item.name.as_bytes()))
}

/// Adds a name with its attributes to a listing; whether there was room.
pub(super) fn add_entry(reply: &mut ReplyDirectoryPlus, item: &DirItem) -> bool {
    let name = OsStr::from_bytes(item.name.as_bytes());
    match &item.entry {
        Some(entry) => {
            let attr = file_attr(entry.node, &entry.attr);
            let generation = Generation(entry.generation);
            !reply.add(INodeNo(entry.node), item.offset, name, &common_ttl(entry), &attr, generation)
        }
        None => {
            let attr = match item.name {
                // The kernel takes no reference for these.
                DirName::Current | DirName::Parent => placeholder(item.node, item.kind),
                DirName::Entry(_) => name_alone(item.node, item.kind),
            };
            !reply.add(attr.ino, item.offset, name, &Duration::ZERO, &attr, Generation(0))
        }
    }
}

/// The figures of statfs(2), in blocks.
pub(super) fn space(reply: ReplyStatfs, space: VolumeSpace) {
    let blocks = |bytes: u64| bytes / u64::from(BLOCK_SIZE);
    reply.statfs(
        blocks(space.total),
        blocks(space.free),
        blocks(space.available),
        space.files,
        space.files_free,
        BLOCK_SIZE,
        MAX_NAME as u32,
        BLOCK_SIZE,
    );
}

/// Replies with a value, or with its size if the caller has no room at all and so asks for it.
pub(super) fn sized(reply: ReplyXattr, room: u32, value: &[u8]) {
    match u32::try_from(value.len()) {
        Ok(size) if room == 0 => reply.size(size),
        Ok(size) if size <= room => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}

/// The names of extended attributes as listxattr(2) returns them, each with a terminator.
pub(super) fn join(names: &[Bytes]) -> Vec<u8> {
    let mut list = Vec::with_capacity(names.iter().map(|name| name.len() + 1).sum());
    for name in names {
        list.extend_from_slice(name);
        list.push(0);
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_joined_with_terminators() {
        assert_eq!(join(&[]), b"");
        assert_eq!(join(&[Bytes::from_static(b"user.a"), Bytes::from_static(b"user.b")]), b"user.a\0user.b\0");
    }
}
