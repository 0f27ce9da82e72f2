//! The tables of a volume's metadata and how their keys are built.
//!
//! Keys are byte strings compared bytewise; numbers in them are big-endian so that their order is the numbers' order.

use larder_protocol::ids::ClientId;
use larder_protocol::name::Name;

/// A table: an ordered map of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Table {
    /// Up to three rows: [`HEADER`], identity and counters of the volume; [`QUOTA`], if it was set; [`VOUCHED`], if the volume
    /// was at other servers before.
    Header = 0,
    /// vnode → [`VnodeRecord`](super::record::VnodeRecord).
    Vnodes = 1,
    /// vnode → contents of a small file, exactly `size` bytes; no row for an empty one.
    Inline = 2,
    /// directory, name → [`EntryRecord`](super::record::EntryRecord).
    Entries = 3,
    /// directory, cookie → [`CookieRecord`](super::record::CookieRecord).
    Cookies = 4,
    /// vnode, name → value of an extended attribute.
    Xattrs = 5,
    /// vnode, group → checksums of [`GROUP`](super::record::GROUP) blocks of a content file.
    Checksums = 6,
    /// vnode, client → [`OrphanRecord`](super::record::OrphanRecord): a client that keeps a file without a name.
    Orphans = 7,
    /// vnode → [`DirtyRecord`](super::record::DirtyRecord): its content file may be ahead of the metadata.
    Dirty = 8,
    /// vnode, number → [`Intent`](super::record::Intent): work on content files that recovery carries out again.
    Intents = 9,
    /// client, slot → [`SlotRecord`](super::record::SlotRecord).
    Slots = 10,
    /// client → [`ClientRecord`](super::record::ClientRecord).
    Clients = 11,
}

impl Table {
    /// Every table.
    pub const ALL: &'static [Table] = &[
        Table::Header,
        Table::Vnodes,
        Table::Inline,
        Table::Entries,
        Table::Cookies,
        Table::Xattrs,
        Table::Checksums,
        Table::Orphans,
        Table::Dirty,
        Table::Intents,
        Table::Slots,
        Table::Clients,
    ];

    /// The table of this number, as the store's format numbers them.
    pub fn numbered(number: u8) -> Option<Table> {
        Table::ALL.iter().find(|table| **table as u8 == number).copied()
    }

    /// The table's name, in SQLite and in messages.
    pub fn name(self) -> &'static str {
        match self {
            Table::Header => "header",
            Table::Vnodes => "vnodes",
            Table::Inline => "inline",
            Table::Entries => "entries",
            Table::Cookies => "cookies",
            Table::Xattrs => "xattrs",
            Table::Checksums => "checksums",
            Table::Orphans => "orphans",
            Table::Dirty => "dirty",
            Table::Intents => "intents",
            Table::Slots => "slots",
            Table::Clients => "clients",
        }
    }

    /// Whether every key begins with the number of a vnode.
    pub fn has_vnode_keys(self) -> bool {
        !matches!(self, Table::Header | Table::Slots | Table::Clients)
    }

    /// Whether every key is one 8-byte number below 2⁶³, which an engine may store more compactly.
    pub fn has_number_keys(self) -> bool {
        matches!(self, Table::Vnodes | Table::Inline | Table::Dirty)
    }
}

/// The key of the volume's identity and counters in [`Table::Header`].
pub const HEADER: &[u8] = b"volume";
/// The key of what the volume may hold, in the same table.
pub const QUOTA: &[u8] = b"quota";
/// The key of the lives of other servers whose acknowledged changes are durable here ([`Epoch`](larder_protocol::ids::Epoch)s),
/// in the same table.
pub const VOUCHED: &[u8] = b"vouched";

/// Key of a vnode's row in [`Table::Vnodes`], [`Table::Inline`], [`Table::Dirty`]; and the prefix of the keys that
/// begin with a vnode.
pub fn vnode(vnode: u64) -> [u8; 8] {
    vnode.to_be_bytes()
}

/// Key in [`Table::Entries`].
pub fn entry(dir: u64, name: &Name) -> Vec<u8> {
    with_suffix(dir, name.as_bytes())
}

/// Key in [`Table::Cookies`].
pub fn cookie(dir: u64, cookie: u64) -> Vec<u8> {
    with_suffix(dir, &cookie.to_be_bytes())
}

/// Key in [`Table::Xattrs`].
pub fn xattr(vnode: u64, name: &[u8]) -> Vec<u8> {
    with_suffix(vnode, name)
}

/// Key in [`Table::Checksums`].
pub fn checksums(vnode: u64, group: u64) -> Vec<u8> {
    with_suffix(vnode, &group.to_be_bytes())
}

/// Key in [`Table::Orphans`].
pub fn orphan(vnode: u64, client: ClientId) -> Vec<u8> {
    with_suffix(vnode, &client.0.to_be_bytes())
}

/// Key in [`Table::Intents`].
pub fn intent(vnode: u64, number: u64) -> Vec<u8> {
    with_suffix(vnode, &number.to_be_bytes())
}

/// Key in [`Table::Slots`].
pub fn slot(client: ClientId, slot: u32) -> Vec<u8> {
    let mut key = client.0.to_be_bytes().to_vec();
    key.extend_from_slice(&slot.to_be_bytes());
    key
}

/// Key in [`Table::Clients`], and the prefix of a client's keys in [`Table::Slots`].
pub fn client(client: ClientId) -> [u8; 16] {
    client.0.to_be_bytes()
}

fn with_suffix(vnode: u64, suffix: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(8 + suffix.len());
    key.extend_from_slice(&vnode.to_be_bytes());
    key.extend_from_slice(suffix);
    key
}

/// The number that an 8-byte piece of a key holds.
pub fn number(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

/// The first key that does not begin with `prefix`: the end of a range over all that do. `None` if there is none.
pub fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return Some(end);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_end_where_they_should() {
        assert_eq!(prefix_end(&[1, 2]), Some(vec![1, 3]));
        assert_eq!(prefix_end(&[1, 255]), Some(vec![2]));
        assert_eq!(prefix_end(&[255, 255]), None);
    }

    #[test]
    fn keys_of_one_directory_are_together_and_in_order() {
        assert!(cookie(5, 9) < cookie(5, 10));
        assert!(cookie(5, u64::MAX) < cookie(6, 0));
        assert!(entry(5, &Name::new(b"zz").unwrap()) < entry(6, &Name::new(b"a").unwrap()));
    }
}
