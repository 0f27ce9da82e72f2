//! Listing directories.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use larder_protocol::attr::{Credential, FileType};
use larder_protocol::error::ErrorCode;
use larder_protocol::name::Name;
use larder_protocol::service::file::{DirEntry, Query, QueryReply};
use parking_lot::Mutex;

use super::asking::Asked;
use super::handle::{DirHandle, Listing};
use super::{DirItem, DirName, Entry, Error, Vfs, unexpected};
use crate::core::dir_cache::Child;

/// Bytes of listing asked for at a time.
const LISTING: u32 = 256 << 10;
/// Positions below this are `.` and `..`; the entry with cookie `c` ends at `c` plus this.
const DOTS: u64 = 2;

impl Listing {
    /// Whether the entries behind `cookie` are here, or that there are none.
    fn covers(&self, cookie: u64) -> bool {
        cookie >= self.after && (self.end || self.entries.last().is_some_and(|last| cookie < last.cookie))
    }

    fn behind(&self, cookie: u64) -> &[DirEntry] {
        &self.entries[self.entries.partition_point(|entry| entry.cookie <= cookie)..]
    }
}

impl Vfs {
    /// Opens a directory for listing.
    ///
    /// # Errors
    /// `NotDirectory`, or `Stale` for a node that is not known.
    pub async fn opendir(&self, cred: &Credential, node: u64) -> Result<u64, Error> {
        let node = self.node(node)?;
        if node.kind != FileType::Directory {
            return Err(ErrorCode::NotDirectory.into());
        }
        Ok(self.handles.add_dir(DirHandle { node, cred: Arc::new(cred.clone()), listing: Mutex::new(None) }))
    }

    /// Gives the entries from position `offset` on to `sink`, until it returns false (it then did not take the last
    /// item) or a part of the listing ends. No item at all means the end.
    ///
    /// # Errors
    /// The server's, or that there is no answer.
    pub async fn readdir(
        &self,
        handle: u64,
        offset: u64,
        plus: bool,
        sink: &mut (dyn FnMut(DirItem) -> bool + Send),
    ) -> Result<(), Error> {
        let handle = self.handles.dir(handle)?;
        if offset == 0 {
            // The start, or rewinddir(3): the listing is to be new.
            *handle.listing.lock() = None;
        }
        for position in offset..DOTS {
            if !sink(self.dot(&handle, position, plus)) {
                return Ok(());
            }
        }
        let cookie = offset.saturating_sub(DOTS);
        let listing = self.listing(&handle, cookie, plus).await?;
        for entry in listing.behind(cookie) {
            let item = self.item(&handle, &listing, entry, plus);
            let counted = item.entry.as_ref().map(|entry| entry.node);
            if !sink(item) {
                if let Some(node) = counted {
                    self.forget(node, 1);
                }
                break;
            }
        }
        Ok(())
    }

    fn dot(&self, handle: &DirHandle, position: u64, plus: bool) -> DirItem {
        let this = &handle.node;
        let (name, number) = match position {
            0 => (DirName::Current, this.number),
            _ => (DirName::Parent, this.parent.load(Ordering::Relaxed)),
        };
        let number = if number == 0 { this.number } else { number };
        let entry = plus.then(|| {
            let attributes = self.view(this);
            Entry {
                node: number,
                generation: this.fid.generation,
                attr: attributes.attr,
                attr_ttl: std::time::Duration::ZERO,
                entry_ttl: std::time::Duration::ZERO,
                pass: None,
            }
        });
        DirItem { node: number, offset: position + 1, kind: FileType::Directory, name, entry }
    }

    fn item(&self, handle: &DirHandle, listing: &Listing, entry: &DirEntry, plus: bool) -> DirItem {
        let shown = match &entry.attr {
            // What appears there must be looked up.
            _ if entry.kind == FileType::MountPoint => None,
            None if plus && self.afs.is_some() => self.known_object(entry.fid, &handle.node, listing.change),
            Some(attr) if plus => {
                Some(self.entry(attr.clone(), &handle.node, listing.change, &Asked::plain(listing.sent)))
            }
            _ => None,
        };
        DirItem {
            node: self.nodes.number(entry.fid),
            offset: entry.cookie + DOTS,
            kind: entry.kind,
            name: DirName::Entry(entry.name.clone()),
            entry: shown,
        }
    }

    async fn listing(&self, handle: &DirHandle, cookie: u64, plus: bool) -> Result<Arc<Listing>, Error> {
        let known = handle.listing.lock().clone();
        if let Some(listing) = known
            && listing.covers(cookie)
            && (listing.plus || !plus)
        {
            return Ok(listing);
        }
        if cookie == 0
            && let Some(listing) = self.whole_listing(handle).await?
        {
            *handle.listing.lock() = Some(listing.clone());
            return Ok(listing);
        }
        let query = Query::Readdir { dir: handle.node.fid, cookie, max_bytes: LISTING, plus };
        let (reply, asked) = self.ask(&handle.cred, query).await?;
        match reply {
            QueryReply::Listing { entries, end, dir } => {
                let change = dir.change;
                self.learn(&handle.node, dir, &asked);
                let sent = asked.stamp;
                let listing = Arc::new(Listing { after: cookie, entries, end, sent, change, plus });
                *handle.listing.lock() = Some(listing.clone());
                Ok(listing)
            }
            _ => Err(unexpected()),
        }
    }

    /// The directory as AFS mode knows it, asked for as a whole if it does not. Positions are places in the list, which
    /// whoever lists it keeps until the end.
    async fn whole_listing(&self, handle: &DirHandle) -> Result<Option<Arc<Listing>>, Error> {
        if self.afs.is_none() {
            return Ok(None);
        }
        let mut known = self.known_list(&handle.node);
        if known.is_some() {
            self.counters.hit();
        } else {
            self.list_whole(&handle.cred, &handle.node).await?;
            known = self.known_list(&handle.node);
        }
        let Some((names, change)) = known else { return Ok(None) };
        let entry = |(place, (name, child)): (usize, &(Name, Child))| DirEntry {
            cookie: place as u64 + 1,
            name: name.clone(),
            fid: child.fid,
            kind: child.kind,
            attr: None,
        };
        let entries = names.iter().enumerate().map(entry).collect();
        let sent = self.stamp();
        Ok(Some(Arc::new(Listing { after: 0, entries, end: true, sent, change, plus: true })))
    }

    /// Closes a directory.
    pub fn releasedir(&self, handle: u64) {
        self.handles.remove_dir(handle);
    }

    /// Makes a directory's changes durable, if the server has not done so before it answered them.
    ///
    /// # Errors
    /// `BadHandle`; the server's, or that there is no answer.
    pub async fn fsyncdir(&self, handle: u64) -> Result<(), Error> {
        let volume = self.handles.dir(handle)?.node.fid.volume;
        self.sync_since(volume, self.servers.welcome_of(volume)).await
    }
}

#[cfg(test)]
mod tests {
    use larder_protocol::ids::{Fid, VolumeId};
    use larder_protocol::name::Name;

    use super::*;
    use crate::core::attr_cache::Stamp;

    fn listing(after: u64, cookies: &[u64], end: bool) -> Listing {
        let entries = cookies
            .iter()
            .map(|cookie| DirEntry {
                cookie: *cookie,
                name: Name::new(b"x").expect("a good name"),
                fid: Fid { volume: VolumeId::ROOT, vnode: *cookie, generation: 1 },
                kind: FileType::Regular,
                attr: None,
            })
            .collect();
        Listing { after, entries, end, sent: Stamp::default(), change: 0, plus: false }
    }

    #[test]
    fn a_part_of_a_listing_knows_which_positions_it_answers() {
        let part = listing(10, &[12, 15], false);
        assert!(!part.covers(9));
        assert!(part.covers(10) && part.covers(13));
        assert!(!part.covers(15), "what is behind the last entry is not here");
        assert!(listing(10, &[12, 15], true).covers(15));
        assert!(listing(0, &[], true).covers(7));
        assert_eq!(part.behind(12).len(), 1);
        assert_eq!(part.behind(10).len(), 2);
        assert_eq!(part.behind(99).len(), 0);
    }
}
