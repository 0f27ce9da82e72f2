//! Checksums of content files: CRC32C of each block of [`BLOCK`] bytes, filled up with zeros behind the file's end.
//!
//! In a settled file each block with a checksum matches it, and each without is all zeros: a hole. So a sparse file of
//! any size needs rows only for its data, and extending a file changes no checksum.

use std::ops::Bound;

use crate::volume::error::{StoreError, StoreResult};
use crate::volume::keys::{self, Table};
use crate::volume::record::{BLOCK, GROUP};
use crate::volume::view::{Draft, Records, View};

const BITMAP: usize = GROUP as usize / 8;
const ROW: usize = BITMAP + GROUP as usize * 4;

/// The checksum of one block of which `data` is what the file has; the rest counts as zeros.
pub fn of_block(data: &[u8]) -> u32 {
    debug_assert!(data.len() as u64 <= BLOCK);
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut crc = crc32c::crc32c(data);
    let mut missing = BLOCK as usize - data.len();
    while missing > 0 {
        let piece = missing.min(ZEROS.len());
        crc = crc32c::crc32c_append(crc, &ZEROS[..piece]);
        missing -= piece;
    }
    crc
}

/// Whether a block is what a hole reads as.
pub fn is_zero(data: &[u8]) -> bool {
    data.iter().all(|byte| *byte == 0)
}

/// The checksums of [`GROUP`] neighbouring blocks: one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group(Box<[u8]>);

impl Default for Group {
    fn default() -> Group {
        Group(vec![0; ROW].into())
    }
}

impl Group {
    /// Takes a row's value.
    ///
    /// # Errors
    /// `Corrupt` if it has another size.
    pub fn from_row(row: Vec<u8>) -> StoreResult<Group> {
        if row.len() == ROW {
            Ok(Group(row.into()))
        } else {
            Err(StoreError::Corrupt(format!("a row of checksums has {} bytes instead of {ROW}", row.len())))
        }
    }

    /// The row's value.
    pub fn into_row(self) -> Vec<u8> {
        self.0.into()
    }

    /// The checksum of the group's block `index`, if it has one.
    pub fn get(&self, index: usize) -> Option<u32> {
        if self.0[index / 8] & (1 << (index % 8)) == 0 {
            return None;
        }
        let at = BITMAP + index * 4;
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.0[at..at + 4]);
        Some(u32::from_le_bytes(bytes))
    }

    /// Sets or takes away the checksum of the group's block `index`.
    pub fn set(&mut self, index: usize, checksum: Option<u32>) {
        let bit = 1 << (index % 8);
        match checksum {
            Some(_) => self.0[index / 8] |= bit,
            None => self.0[index / 8] &= !bit,
        }
        let at = BITMAP + index * 4;
        self.0[at..at + 4].copy_from_slice(&checksum.unwrap_or(0).to_le_bytes());
    }

    /// Whether no block has a checksum.
    pub fn is_empty(&self) -> bool {
        self.0[..BITMAP].iter().all(|byte| *byte == 0)
    }
}

/// The group a block is in, and its place there.
pub fn place(block: u64) -> (u64, usize) {
    (block / GROUP, (block % GROUP) as usize)
}

/// One group of a file; an empty one if there is no row.
///
/// # Errors
/// As the store fails.
pub fn load(view: &(impl View + ?Sized), vnode: u64, group: u64) -> StoreResult<Group> {
    let row = view.get(Table::Checksums, &keys::checksums(vnode, group))?;
    row.map_or_else(|| Ok(Group::default()), Group::from_row)
}

/// Stores a group, or deletes its row when it is empty.
pub fn store(draft: &mut Draft<'_>, vnode: u64, group: u64, checksums: Group) {
    let key = keys::checksums(vnode, group);
    if checksums.is_empty() {
        draft.delete(Table::Checksums, &key);
    } else {
        draft.put_bytes(Table::Checksums, &key, checksums.into_row());
    }
}

/// Takes away the checksums of all blocks from `from` up to but without `to`.
///
/// # Errors
/// As the store fails.
pub fn clear(draft: &mut Draft<'_>, vnode: u64, from: u64, to: u64) -> StoreResult<()> {
    if from >= to {
        return Ok(());
    }
    let (first, _) = place(from);
    let (last, _) = place(to - 1);
    let start = keys::checksums(vnode, first);
    let end = keys::checksums(vnode, last);
    let rows = draft.range(Table::Checksums, Bound::Included(&start), Bound::Included(&end), usize::MAX)?;
    for (key, row) in rows {
        let group = key.get(8..).and_then(keys::number);
        let group = group.ok_or_else(|| StoreError::Corrupt("a key of checksums is malformed".to_owned()))?;
        let mut checksums = Group::from_row(row)?;
        for index in 0..GROUP {
            let block = group * GROUP + index;
            if (from..to).contains(&block) {
                checksums.set(index as usize, None);
            }
        }
        store(draft, vnode, group, checksums);
    }
    Ok(())
}

/// Whether the file has any checksums at all.
///
/// # Errors
/// As the store fails.
pub fn any(view: &(impl View + ?Sized), vnode: u64) -> StoreResult<bool> {
    Ok(!view.with_prefix(Table::Checksums, &keys::vnode(vnode), 1)?.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_block_counts_as_filled_with_zeros() {
        let mut full = vec![0; BLOCK as usize];
        full[..3].copy_from_slice(b"abc");
        assert_eq!(of_block(b"abc"), of_block(&full));
        assert_ne!(of_block(b"abc"), of_block(b"abd"));
        assert_eq!(of_block(b""), of_block(&vec![0; BLOCK as usize]));
    }

    #[test]
    fn groups_keep_what_they_are_given() {
        let mut group = Group::default();
        assert!(group.is_empty());
        group.set(0, Some(7));
        group.set(255, Some(0));
        assert_eq!((group.get(0), group.get(1), group.get(255)), (Some(7), None, Some(0)));
        let mut again = Group::from_row(group.clone().into_row()).unwrap();
        assert_eq!(again, group);
        again.set(0, None);
        again.set(255, None);
        assert_eq!(again, Group::default());
        assert!(Group::from_row(vec![0; 5]).is_err());
    }
}
