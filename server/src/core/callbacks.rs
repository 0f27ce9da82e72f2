//! Who holds a callback on which object: compact, because there are millions.
//!
//! A holder is one life of one client's lease. When a lease ends its number is never used again, so all its callbacks
//! are void at once, and are swept up later.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::Range;

/// One life of a client's lease, by the place of the client in a table and a count of its lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Holder {
    /// The client's place.
    pub client: u32,
    /// Counts its leases.
    pub life: u32,
}

/// The holders of one object: mostly one or two.
#[derive(Clone, Debug)]
enum Holders {
    One(Holder),
    Many(Vec<Holder>),
}

/// The callbacks of a server.
#[derive(Debug, Default)]
pub struct Callbacks {
    objects: HashMap<u64, Holders>,
    /// In the order in which they were granted; what is not in `objects` any more is passed over.
    ages: VecDeque<(u64, Holder)>,
    pairs: usize,
}

/// Bytes of one object's entry in the table, with the table's own share of free places.
const ENTRY_BYTES: usize = (size_of::<(u64, Holders)>() + 1) * 8 / 7;

impl Holders {
    fn as_slice(&self) -> &[Holder] {
        match self {
            Holders::One(holder) => std::slice::from_ref(holder),
            Holders::Many(holders) => holders,
        }
    }
}

impl Callbacks {
    /// Grants a callback. Says whether it is new.
    pub fn grant(&mut self, object: u64, holder: Holder) -> bool {
        match self.objects.get_mut(&object) {
            None => {
                self.objects.insert(object, Holders::One(holder));
            }
            Some(holders) if holders.as_slice().contains(&holder) => return false,
            Some(Holders::Many(holders)) => holders.push(holder),
            Some(one) => {
                let first = one.as_slice()[0];
                *one = Holders::Many(vec![first, holder]);
            }
        }
        self.pairs += 1;
        self.ages.push_back((object, holder));
        if self.ages.len() > 2 * self.pairs + 1024 {
            self.tidy_ages();
        }
        true
    }

    /// Leaves one place in the order for each callback: the one of its last grant.
    fn tidy_ages(&mut self) {
        let (objects, mut seen) = (&self.objects, HashSet::with_capacity(self.pairs));
        let mut ages: VecDeque<(u64, Holder)> = VecDeque::with_capacity(self.pairs);
        for (object, holder) in self.ages.drain(..).rev() {
            let there = objects.get(&object).is_some_and(|all| all.as_slice().contains(&holder));
            if there && seen.insert((object, holder)) {
                ages.push_front((object, holder));
            }
        }
        self.ages = ages;
    }

    /// Takes the callbacks on an object from all holders but one client.
    pub fn take(&mut self, object: u64, but: Option<u32>) -> Vec<Holder> {
        let Some(holders) = self.objects.remove(&object) else { return Vec::new() };
        let (kept, taken): (Vec<Holder>, Vec<Holder>) =
            holders.as_slice().iter().partition(|holder| Some(holder.client) == but);
        self.pairs -= taken.len();
        self.put(object, kept);
        taken
    }

    /// The objects of this range on which there are callbacks, in order.
    pub fn within(&self, range: &Range<u64>) -> Vec<u64> {
        let mut objects: Vec<u64> = self.objects.keys().filter(|object| range.contains(object)).copied().collect();
        objects.sort_unstable();
        objects
    }

    /// Takes the oldest callback.
    pub fn take_oldest(&mut self) -> Option<(u64, Holder)> {
        loop {
            let (object, holder) = self.ages.pop_front()?;
            let Some(holders) = self.objects.get(&object) else { continue };
            if !holders.as_slice().contains(&holder) {
                continue;
            }
            let kept = holders.as_slice().iter().copied().filter(|other| *other != holder).collect();
            self.objects.remove(&object);
            self.put(object, kept);
            self.pairs -= 1;
            return Some((object, holder));
        }
    }

    fn put(&mut self, object: u64, holders: Vec<Holder>) {
        match holders[..] {
            [] => {}
            [one] => {
                self.objects.insert(object, Holders::One(one));
            }
            _ => {
                self.objects.insert(object, Holders::Many(holders));
            }
        }
    }

    /// Sweeps up what holders have that do not count any more.
    pub fn sweep(&mut self, counts: impl Fn(Holder) -> bool) {
        let mut pairs = 0;
        self.objects.retain(|_, holders| {
            let kept: Vec<Holder> = holders.as_slice().iter().copied().filter(|holder| counts(*holder)).collect();
            pairs += kept.len();
            match kept[..] {
                [] => return false,
                [one] => *holders = Holders::One(one),
                _ if kept.len() < holders.as_slice().len() => *holders = Holders::Many(kept),
                _ => {}
            }
            true
        });
        self.pairs = pairs;
        self.tidy_ages();
        self.objects.shrink_to_fit();
        self.ages.shrink_to_fit();
    }

    /// How many there are, those of leases that have ended included until they are swept up.
    pub fn len(&self) -> usize {
        self.pairs
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pairs == 0
    }

    /// Bytes of memory that they take, about.
    pub fn bytes(&self) -> usize {
        let lists: usize = self
            .objects
            .values()
            .map(|holders| match holders {
                Holders::One(_) => 0,
                Holders::Many(holders) => holders.capacity() * size_of::<Holder>() + 16,
            })
            .sum();
        self.objects.capacity() * ENTRY_BYTES + lists + self.ages.capacity() * size_of::<(u64, Holder)>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(client: u32) -> Holder {
        Holder { client, life: 1 }
    }

    #[test]
    fn all_but_one_client_lose_theirs() {
        let mut callbacks = Callbacks::default();
        for client in 0..3 {
            assert!(callbacks.grant(7, holder(client)));
            assert!(!callbacks.grant(7, holder(client)));
        }
        callbacks.grant(8, holder(0));
        assert_eq!(callbacks.len(), 4);
        assert_eq!(callbacks.take(7, Some(1)), [holder(0), holder(2)]);
        assert_eq!(callbacks.take(7, Some(1)), []);
        assert_eq!(callbacks.take(7, None), [holder(1)]);
        assert_eq!(callbacks.len(), 1);
        assert_eq!(callbacks.take(9, None), []);
    }

    #[test]
    fn the_oldest_go_first() {
        let mut callbacks = Callbacks::default();
        for object in 0..10 {
            callbacks.grant(object, holder(1));
        }
        callbacks.take(0, None);
        callbacks.grant(1, holder(2));
        assert_eq!(callbacks.take_oldest(), Some((1, holder(1))));
        assert_eq!(callbacks.take(1, None), [holder(2)]);
        assert_eq!(callbacks.take_oldest(), Some((2, holder(1))));
        assert_eq!(callbacks.len(), 7);
        for _ in 0..7 {
            assert!(callbacks.take_oldest().is_some());
        }
        assert_eq!(callbacks.take_oldest(), None);
        assert!(callbacks.is_empty());
    }

    #[test]
    fn what_was_granted_and_broken_for_ever_takes_no_memory() {
        let mut callbacks = Callbacks::default();
        for round in 0..100_000 {
            callbacks.grant(round % 10, holder(1));
            callbacks.take(round % 10, None);
        }
        assert!(callbacks.bytes() < 200_000, "{}", callbacks.bytes());
    }

    #[test]
    fn what_is_granted_and_broken_again_and_again_keeps_one_place_in_the_order() {
        let mut callbacks = Callbacks::default();
        for object in 1..=10_000 {
            callbacks.grant(object, holder(0));
        }
        for _ in 0..100_000 {
            callbacks.grant(0, holder(1));
            callbacks.take(0, None);
        }
        callbacks.grant(0, holder(1));
        assert!(callbacks.ages.len() <= 2 * callbacks.pairs + 1024 + 1, "{}", callbacks.ages.len());
        // Granted last, whatever it was before.
        for object in 1..=10_000 {
            assert_eq!(callbacks.take_oldest(), Some((object, holder(0))));
        }
        assert_eq!(callbacks.take_oldest(), Some((0, holder(1))));
        assert_eq!(callbacks.take_oldest(), None);
    }

    #[test]
    fn ended_leases_are_swept_up() {
        let mut callbacks = Callbacks::default();
        for object in 0..1000 {
            callbacks.grant(object, holder(1));
            callbacks.grant(object, holder(2));
        }
        callbacks.sweep(|holder| holder.client == 2);
        assert_eq!(callbacks.len(), 1000);
        assert_eq!(callbacks.take(5, None), [holder(2)]);
    }

    #[test]
    fn a_million_pairs_fit_into_two_hundred_bytes_each() {
        let mut callbacks = Callbacks::default();
        for object in 0..1000 {
            for client in 0..1000 {
                callbacks.grant(object, holder(client));
            }
        }
        assert!(callbacks.bytes() <= 200_000_000 / 4, "{}", callbacks.bytes());
        // One holder each is the other extreme.
        let mut callbacks = Callbacks::default();
        for object in 0..1_000_000 {
            callbacks.grant(object, holder(1));
        }
        assert!(callbacks.bytes() <= 200_000_000, "{}", callbacks.bytes());
    }
}
