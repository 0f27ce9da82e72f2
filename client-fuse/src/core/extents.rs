//! Byte ranges of a file with data, none overlapping another.

use std::collections::BTreeMap;

/// The data of a range.
#[expect(clippy::len_without_is_empty, reason = "no range is empty")]
pub trait Piece: Sized {
    /// Number of bytes.
    fn len(&self) -> usize;
    /// Keeps the first `at` bytes and returns the others.
    fn split_off(&mut self, at: usize) -> Self;
}

/// What one more range costs in memory besides its bytes, about.
const OVERHEAD: u64 = 192;

/// The ranges, by offset.
#[derive(Debug)]
pub struct Extents<P> {
    map: BTreeMap<u64, P>,
    bytes: u64,
}

impl<P> Default for Extents<P> {
    fn default() -> Self {
        Extents { map: BTreeMap::new(), bytes: 0 }
    }
}

impl<P: Piece> Extents<P> {
    /// Bytes of data in all ranges.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Memory that they take, about: many small ranges cost more than their bytes.
    pub fn weight(&self) -> u64 {
        self.bytes + self.map.len() as u64 * OVERHEAD
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Where the last one ends.
    pub fn end(&self) -> Option<u64> {
        self.map.last_key_value().map(|(start, piece)| start + piece.len() as u64)
    }

    /// All ranges, by offset.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &P)> {
        self.map.iter().map(|(start, piece)| (*start, piece))
    }

    /// The range that begins at or before `offset`, if it reaches past it.
    pub fn at(&self, offset: u64) -> Option<(u64, &P)> {
        let (start, piece) = self.map.range(..=offset).next_back()?;
        (start + piece.len() as u64 > offset).then_some((*start, piece))
    }

    /// The same, to change its bytes in place but not their number.
    pub fn at_mut(&mut self, offset: u64) -> Option<(u64, &mut P)> {
        let (start, piece) = self.map.range_mut(..=offset).next_back()?;
        (start + piece.len() as u64 > offset).then_some((*start, piece))
    }

    /// Where the first range at or after `offset` begins.
    pub fn next_start(&self, offset: u64) -> Option<u64> {
        self.map.range(offset..).next().map(|(start, _)| *start)
    }

    /// Whether any range has a byte in `start..end`.
    pub fn overlaps(&self, start: u64, end: u64) -> bool {
        start < end && (self.at(start).is_some() || self.next_start(start).is_some_and(|next| next < end))
    }

    /// What of `start..end` has data, in order: from where to where.
    pub fn covered(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, u64)> {
        let first = self.at(start).map_or(start, |(first, _)| first);
        let inside = self.map.range(first..end.max(first));
        inside.map(move |(at, piece)| ((*at).max(start), (at + piece.len() as u64).min(end)))
    }

    /// Adds a range where there is none.
    pub fn insert(&mut self, start: u64, piece: P) {
        debug_assert!(!self.overlaps(start, start + piece.len() as u64), "carve first");
        if piece.len() > 0 {
            self.bytes += piece.len() as u64;
            self.map.insert(start, piece);
        }
    }

    /// Takes the range that begins exactly at `start`.
    pub fn remove(&mut self, start: u64) -> Option<P> {
        let piece = self.map.remove(&start)?;
        self.bytes -= piece.len() as u64;
        Some(piece)
    }

    /// Takes the range that ends exactly at `end`.
    pub fn remove_ending_at(&mut self, end: u64) -> Option<(u64, P)> {
        let (start, piece) = self.map.range(..end).next_back()?;
        let start = *start;
        if start + piece.len() as u64 != end {
            return None;
        }
        self.remove(start).map(|piece| (start, piece))
    }

    /// Takes all data in `start..end`, splitting the ranges at its edges.
    pub fn carve(&mut self, start: u64, end: u64) -> Vec<(u64, P)> {
        let mut taken = Vec::new();
        if start >= end {
            return taken;
        }
        self.split_at(start);
        self.split_at(end);
        while let Some(next) = self.next_start(start).filter(|next| *next < end) {
            if let Some(piece) = self.remove(next) {
                taken.push((next, piece));
            }
        }
        taken
    }

    /// Takes every range that `pick` wants.
    pub fn extract(&mut self, mut pick: impl FnMut(&P) -> bool) -> Vec<(u64, P)> {
        let starts: Vec<u64> = self.map.iter().filter(|(_, piece)| pick(piece)).map(|(start, _)| *start).collect();
        starts.into_iter().filter_map(|start| self.remove(start).map(|piece| (start, piece))).collect()
    }

    /// Changes every range, but not its number of bytes.
    pub fn for_each_mut(&mut self, change: impl FnMut(&mut P)) {
        self.map.values_mut().for_each(change);
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.map.clear();
        self.bytes = 0;
    }

    fn split_at(&mut self, offset: u64) {
        let tail = match self.at_mut(offset) {
            Some((start, piece)) if start < offset => piece.split_off((offset - start) as usize),
            _ => return,
        };
        self.map.insert(offset, tail);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    impl Piece for Vec<u8> {
        fn len(&self) -> usize {
            Vec::len(self)
        }

        fn split_off(&mut self, at: usize) -> Self {
            Vec::split_off(self, at)
        }
    }

    proptest! {
        #[test]
        fn extents_behave_like_an_array(steps in prop::collection::vec((any::<bool>(), 0u64..60, 1u64..20, any::<u8>()), 1..60)) {
            let mut extents: Extents<Vec<u8>> = Extents::default();
            let mut model = [None; 80];
            for (put, start, len, value) in steps {
                let range = start as usize..(start + len) as usize;
                let some = model[range.clone()].iter().any(Option::is_some);
                prop_assert_eq!(extents.overlaps(start, start + len), some);
                let taken = extents.carve(start, start + len);
                let there: u64 = model[range.clone()].iter().flatten().count() as u64;
                prop_assert_eq!(taken.iter().map(|(_, piece)| piece.len() as u64).sum::<u64>(), there);
                for (at, piece) in taken {
                    for (i, byte) in piece.iter().enumerate() {
                        prop_assert_eq!(model[at as usize + i], Some(*byte));
                    }
                }
                if put {
                    extents.insert(start, vec![value; len as usize]);
                }
                model[range].fill(put.then_some(value));
                prop_assert_eq!(extents.bytes(), model.iter().flatten().count() as u64);
                let end = model.iter().rposition(Option::is_some).map(|last| last as u64 + 1);
                prop_assert_eq!(extents.end(), end);
            }
        }
    }
}
