//! Answers to requests that change nothing, from snapshots beside the writer.
//!
//! **The order of reading.** What unstable writes did to a file with a content file lies in the [`UnsettledMap`] until
//! it is committed into the record. To show a state that the file really had, and never one older than what was shown
//! before, a reader asks the map for a vnode *before* it takes the snapshot that it reads the record in: what is missing
//! in the map is then in the snapshot. But which vnodes a name leads to is known only after reading. So each answer is
//! worked out from one snapshot in a [`Pass`]; if the pass met a content file that the map was not asked for in time,
//! the map is asked for that one too, and the whole answer is worked out again from a new snapshot. Records of other
//! kinds are never ahead of themselves and need no second pass.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use larder_protocol::attr::{Credential, FileType, MAY_EXEC, MAY_READ, MAY_WRITE};
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::{Fid, VolumeId};
use larder_protocol::limits::{MAX_READDIR, MAX_RECHECK};
use larder_protocol::name::Name;
use larder_protocol::service::file::{Checked, DirEntry, Query, QueryReply};

use super::access::{self, XattrUse};
use super::data::unsettled::UnsettledMap;
use super::error::{StoreError, StoreResult};
use super::keys::{self, Table};
use super::meta::Snapshot;
use super::record::{Body, CookieRecord, Unsettled, VnodeRecord};
use super::view::{Records, Verified, View};

/// Passes over one request at most. Each one more means that the name got yet another content file in between.
const PASSES: usize = 16;

/// Passes over a listing at most; attributes that are not certain then are left out.
const LISTING_PASSES: usize = 2;

/// Entries read at a time.
const PIECE: usize = 256;

/// Names of extended attributes read at a time; their values come with them.
const XATTR_PIECE: usize = 16;

/// Bytes that an entry without its name takes in a reply at most.
const ENTRY_BYTES: usize = 48;

/// Bytes that attributes take in a reply at most.
const ATTR_BYTES: usize = 136;

/// Reads one volume.
pub(super) struct Reader<'a> {
    /// Takes a snapshot of all that is committed at that moment.
    pub(super) snapshot: &'a dyn Fn() -> StoreResult<Box<dyn Snapshot + 'a>>,
    /// The volume.
    pub(super) volume: VolumeId,
    /// What lies over its records.
    pub(super) unsettled: &'a UnsettledMap,
}

impl Reader<'_> {
    /// Answers a query, but for those about data and space (`Read`, `Fetch`, `Seek`, `Statfs`), which are not for this
    /// type.
    ///
    /// # Errors
    /// What a local file system would answer; `Stale` for handles whose object is gone; `Unavailable` if the object
    /// under a name changed again and again while it was read; the store's. `Internal` for the queries named above.
    pub(super) fn query(&self, cred: &Credential, query: &Query) -> Result<QueryReply, ErrorCode> {
        let fid = query.fid().ok_or(ErrorCode::Invalid)?;
        let one = BTreeSet::from([fid.vnode]);
        match query {
            Query::Lookup { name, .. } => self.certain(one, |pass| pass.lookup(cred, fid, name)),
            Query::Parent { .. } => self.certain(one, |pass| pass.parent(cred, fid)),
            Query::Getattr { .. } => self.certain(one, |pass| pass.getattr(fid)),
            Query::Access { mask, .. } => self.certain(one, |pass| pass.access(cred, fid, *mask)),
            Query::Readlink { .. } => self.certain(one, |pass| pass.readlink(fid)),
            Query::Readdir { cookie, max_bytes, plus, .. } => {
                let (listing, _) = self.passes(one, LISTING_PASSES, |pass| {
                    pass.readdir(cred, fid, *cookie, (*max_bytes).min(MAX_READDIR) as usize, *plus)
                })?;
                Ok(listing)
            }
            Query::Getxattr { name, .. } => self.certain(one, |pass| pass.getxattr(cred, fid, name)),
            Query::Listxattr { .. } => self.certain(one, |pass| pass.listxattr(cred, fid)),
            Query::Recheck { items } => {
                if items.len() > MAX_RECHECK {
                    return Err(ErrorCode::Invalid);
                }
                let vnodes = items.iter().map(|(fid, _)| fid.vnode).collect();
                self.certain(vnodes, |pass| pass.recheck(items))
            }
            Query::Read { .. } | Query::Fetch { .. } | Query::Seek { .. } | Query::Statfs { .. } => {
                debug_assert!(false, "a query about data or space does not come here");
                Err(ErrorCode::Internal)
            }
        }
    }

    /// What `work` finds in a pass in which nothing was uncertain, beginning with what it knows to be asked for.
    fn certain<T>(
        &self,
        vnodes: BTreeSet<u64>,
        work: impl Fn(&Pass<'_>) -> Result<T, ErrorCode>,
    ) -> Result<T, ErrorCode> {
        match self.passes(vnodes, PASSES, work)? {
            (found, true) => Ok(found),
            (_, false) => Err(ErrorCode::Unavailable),
        }
    }

    /// What `work` finds in the first pass in which nothing is uncertain, else in the last, and whether that is so.
    fn passes<T>(
        &self,
        mut vnodes: BTreeSet<u64>,
        passes: usize,
        work: impl Fn(&Pass<'_>) -> Result<T, ErrorCode>,
    ) -> Result<(T, bool), ErrorCode> {
        let mut pass_number = 1;
        loop {
            let asked = vnodes.iter().map(|&vnode| (vnode, self.unsettled.get(vnode))).collect();
            let snapshot = (self.snapshot)()?;
            let pass = Pass { view: Verified(&*snapshot), volume: self.volume, asked, uncertain: RefCell::default() };
            let found = work(&pass);
            let uncertain = pass.uncertain.into_inner();
            let certain = uncertain.is_empty();
            if certain || pass_number == passes {
                return Ok((found?, certain));
            }
            vnodes.extend(uncertain);
            pass_number += 1;
        }
    }
}

/// One attempt at an answer, from one snapshot.
struct Pass<'p> {
    view: Verified<'p>,
    volume: VolumeId,
    /// What the map said, before the snapshot was taken, of the vnodes it was asked for.
    asked: BTreeMap<u64, Option<Unsettled>>,
    /// Vnodes met that it should have been asked for too.
    uncertain: RefCell<BTreeSet<u64>>,
}

/// A record, or that it is not certain to be up to date.
enum Found {
    Record(VnodeRecord),
    Uncertain(VnodeRecord),
}

impl Pass<'_> {
    fn find(&self, vnode: u64) -> StoreResult<Option<Found>> {
        let Some(mut record) = self.view.vnode(vnode)? else { return Ok(None) };
        if !matches!(record.body, Body::Content { .. }) {
            return Ok(Some(Found::Record(record)));
        }
        match self.asked.get(&vnode) {
            Some(unsettled) => {
                if let Some(unsettled) = unsettled {
                    unsettled.lay_over(&mut record);
                }
                Ok(Some(Found::Record(record)))
            }
            None => {
                self.uncertain.borrow_mut().insert(vnode);
                Ok(Some(Found::Uncertain(record)))
            }
        }
    }

    /// A record, which counts only if the pass ends without anything uncertain.
    fn record(&self, vnode: u64) -> StoreResult<Option<VnodeRecord>> {
        Ok(self.find(vnode)?.map(|found| match found {
            Found::Record(record) | Found::Uncertain(record) => record,
        }))
    }

    fn resolve(&self, fid: Fid) -> Result<VnodeRecord, ErrorCode> {
        match self.record(fid.vnode)? {
            Some(record) if record.generation == fid.generation && fid.volume == self.volume => Ok(record),
            _ => Err(ErrorCode::Stale),
        }
    }

    fn resolve_dir(&self, fid: Fid) -> Result<VnodeRecord, ErrorCode> {
        let record = self.resolve(fid)?;
        if record.kind() == FileType::Directory { Ok(record) } else { Err(ErrorCode::NotDirectory) }
    }

    fn lookup(&self, cred: &Credential, fid: Fid, name: &Name) -> Result<QueryReply, ErrorCode> {
        let dir = self.resolve_dir(fid)?;
        access::need(cred, &dir, MAY_EXEC)?;
        let attr = match self.view.entry(fid.vnode, name)? {
            None => None,
            Some(entry) => match self.record(entry.vnode)? {
                Some(record) if record.generation == entry.generation => Some(record.attr(self.volume, entry.vnode)),
                _ => return Err(dangling(fid.vnode, name, entry.vnode).into()),
            },
        };
        Ok(QueryReply::Entry { attr, dir: dir.attr(self.volume, fid.vnode) })
    }

    fn parent(&self, cred: &Credential, fid: Fid) -> Result<QueryReply, ErrorCode> {
        let dir = self.resolve_dir(fid)?;
        access::need(cred, &dir, MAY_EXEC)?;
        let Body::Directory { parent, .. } = dir.body else { return Err(ErrorCode::NotDirectory) };
        let Some(above) = self.record(parent)? else {
            let message = format!("directory {} has parent {parent}, which is not there", fid.vnode);
            return Err(StoreError::Corrupt(message).into());
        };
        Ok(QueryReply::Entry { attr: Some(above.attr(self.volume, parent)), dir: dir.attr(self.volume, fid.vnode) })
    }

    fn getattr(&self, fid: Fid) -> Result<QueryReply, ErrorCode> {
        Ok(QueryReply::Attr(self.resolve(fid)?.attr(self.volume, fid.vnode)))
    }

    /// What became of each object since it had this change attribute.
    fn recheck(&self, items: &[(Fid, u64)]) -> Result<QueryReply, ErrorCode> {
        let check = |&(fid, change): &(Fid, u64)| match self.resolve(fid) {
            // Objects of another volume are not gone, nor is anything else known of them here.
            _ if fid.volume != self.volume => Err(ErrorCode::Invalid),
            Ok(record) if record.change == change => Ok(Checked::Same),
            Ok(record) => Ok(Checked::Changed(record.attr(self.volume, fid.vnode))),
            Err(ErrorCode::Stale) => Ok(Checked::Gone),
            Err(error) => Err(error),
        };
        Ok(QueryReply::Rechecked(items.iter().map(check).collect::<Result<_, _>>()?))
    }

    fn access(&self, cred: &Credential, fid: Fid, mask: u32) -> Result<QueryReply, ErrorCode> {
        let record = self.resolve(fid)?;
        let granted = [MAY_READ, MAY_WRITE, MAY_EXEC]
            .into_iter()
            .filter(|&one| mask & one != 0 && access::may(cred, &record, one))
            .fold(0, |granted, one| granted | one);
        Ok(QueryReply::Access { granted, attr: record.attr(self.volume, fid.vnode) })
    }

    fn readlink(&self, fid: Fid) -> Result<QueryReply, ErrorCode> {
        match self.resolve(fid)?.body {
            Body::Symlink { target } => Ok(QueryReply::Target(target)),
            _ => Err(ErrorCode::Invalid),
        }
    }

    fn readdir(
        &self,
        cred: &Credential,
        fid: Fid,
        cookie: u64,
        max_bytes: usize,
        plus: bool,
    ) -> Result<QueryReply, ErrorCode> {
        let dir = self.resolve_dir(fid)?;
        access::need(cred, &dir, MAY_READ)?;
        // Names alone may be read without search permission, what is behind them may not.
        let plus = plus && access::may(cred, &dir, MAY_EXEC);
        let mut entries: Vec<DirEntry> = Vec::new();
        let mut bytes = 0;
        let mut last = cookie;
        let end = 'listing: loop {
            let piece = self.view.listing(fid.vnode, last, PIECE)?;
            let whole = piece.len() < PIECE;
            for (cookie, place) in piece {
                let size = ENTRY_BYTES + place.name.as_bytes().len() + if plus { ATTR_BYTES } else { 0 };
                if !entries.is_empty() && bytes + size > max_bytes {
                    break 'listing false;
                }
                bytes += size;
                last = cookie;
                entries.push(self.dir_entry(cookie, place, plus)?);
            }
            if whole {
                break true;
            }
        };
        Ok(QueryReply::Listing { entries, end, dir: dir.attr(self.volume, fid.vnode) })
    }

    fn dir_entry(&self, cookie: u64, place: CookieRecord, plus: bool) -> StoreResult<DirEntry> {
        let found = match if plus { self.find(place.vnode) } else { Ok(None) } {
            // It is whoever asks about this object that gets the error, not whoever looks for another one beside it.
            Err(damage @ StoreError::Corrupt(_)) => {
                tracing::error!("a listing does without the attributes of {:?}: {damage}", place.name);
                None
            }
            found => found?,
        };
        let attr = match found {
            Some(Found::Record(record)) if record.generation == place.generation => {
                Some(record.attr(self.volume, place.vnode))
            }
            _ => None,
        };
        let fid = Fid { volume: self.volume, vnode: place.vnode, generation: place.generation };
        Ok(DirEntry { cookie, name: place.name, fid, kind: place.kind, attr })
    }

    fn getxattr(&self, cred: &Credential, fid: Fid, name: &[u8]) -> Result<QueryReply, ErrorCode> {
        let record = self.resolve(fid)?;
        access::may_use_xattr(cred, &record, name, XattrUse::Get)?;
        if record.xattrs == 0 {
            return Err(ErrorCode::NoXattr);
        }
        let value = self.view.get(Table::Xattrs, &keys::xattr(fid.vnode, name))?.ok_or(ErrorCode::NoXattr)?;
        Ok(QueryReply::Xattr(Bytes::from(value).into()))
    }

    fn listxattr(&self, cred: &Credential, fid: Fid) -> Result<QueryReply, ErrorCode> {
        use std::ops::Bound::{Excluded, Unbounded};
        let record = self.resolve(fid)?;
        let mut names = Vec::new();
        let prefix = keys::vnode(fid.vnode);
        let end = keys::prefix_end(&prefix);
        let to = end.as_deref().map_or(Unbounded, Excluded);
        let mut last = prefix.to_vec();
        let mut whole = record.xattrs == 0;
        while !whole {
            let rows = self.view.range(Table::Xattrs, Excluded(&last), to, XATTR_PIECE)?;
            whole = rows.len() < XATTR_PIECE;
            for (key, _) in rows {
                let name = &key[prefix.len()..];
                // Only root may know of these (xattr(7)).
                if access::is_root(cred) || !name.starts_with(b"trusted.") {
                    names.push(Bytes::copy_from_slice(name));
                }
                last = key;
            }
        }
        Ok(QueryReply::XattrNames(names))
    }
}

fn dangling(dir: u64, name: &Name, vnode: u64) -> StoreError {
    StoreError::Corrupt(format!("{name:?} in directory {dir} names vnode {vnode}, which is not there"))
}

#[cfg(test)]
mod tests;
