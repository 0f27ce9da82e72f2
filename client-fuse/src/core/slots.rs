//! Replay slots of one client in one volume: which operation gets which slot and number.
//!
//! 1. A slot has at most one operation outstanding.
//! 2. Each operation that is sent uses up the next number of its slot, whatever becomes of it. One that is not leaves
//!    the number to the next: the server knows a client by the first number of a slot, so that one must not be skipped.
//! 3. The lowest free slot is taken first, so that a client that does one thing at a time uses one slot.
//! 4. A new incarnation starts with all slots free and counts from 1; what old operations give back is ignored.

/// A place for one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The client's life.
    pub incarnation: u64,
    /// The slot.
    pub slot: u32,
    /// The operation's number in the slot.
    pub seq: u64,
}

/// The slots.
#[derive(Debug)]
pub struct Slots {
    incarnation: u64,
    limit: usize,
    slots: Vec<Slot>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    seq: u64,
    taken: bool,
}

impl Slots {
    /// No slots are given out before [`Slots::set_limit`].
    pub fn new(incarnation: u64) -> Slots {
        Slots { incarnation, limit: 0, slots: Vec::new() }
    }

    /// The number of slots that the server allows. Slots above a lowered limit are not given out again.
    pub fn set_limit(&mut self, limit: u32) {
        self.limit = limit as usize;
    }

    /// The life that new operations belong to.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Takes the lowest free slot (rules 1 to 3).
    pub fn take(&mut self) -> Option<Place> {
        let free = self.slots.iter().position(|slot| !slot.taken).unwrap_or(self.slots.len());
        if free >= self.limit {
            return None;
        }
        if free == self.slots.len() {
            self.slots.push(Slot::default());
        }
        let slot = &mut self.slots[free];
        slot.taken = true;
        slot.seq += 1;
        Some(Place { incarnation: self.incarnation, slot: free as u32, seq: slot.seq })
    }

    /// The operation was never sent.
    pub fn give_back(&mut self, place: Place) {
        self.free(place);
        if place.incarnation == self.incarnation
            && let Some(slot) = self.slots.get_mut(place.slot as usize)
        {
            slot.seq = place.seq - 1;
        }
    }

    /// The operation has been answered.
    pub fn free(&mut self, place: Place) {
        if place.incarnation == self.incarnation
            && let Some(slot) = self.slots.get_mut(place.slot as usize)
        {
            debug_assert!(slot.taken && slot.seq == place.seq, "{place:?} is given back twice");
            slot.taken = false;
        }
    }

    /// Begins a new life (rule 4).
    pub fn renew(&mut self, incarnation: u64) {
        self.incarnation = incarnation;
        self.slots.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_operation_that_was_not_sent_leaves_its_number_to_the_next() {
        let mut slots = Slots::new(1);
        slots.set_limit(1);
        let unsent = slots.take().unwrap();
        slots.give_back(unsent);
        assert_eq!(slots.take(), Some(unsent));
        slots.renew(2);
        slots.set_limit(1);
        let first = slots.take().unwrap();
        slots.give_back(unsent);
        assert_eq!(slots.take(), None, "a place of an older life is ignored");
        assert_eq!((first.incarnation, first.seq), (2, 1));
    }

    #[test]
    fn the_lowest_free_slot_counts_on() {
        let mut slots = Slots::new(1);
        assert_eq!(slots.take(), None, "before the server said how many");
        slots.set_limit(2);
        let a = slots.take().unwrap();
        let b = slots.take().unwrap();
        assert_eq!((a.slot, a.seq, b.slot, b.seq), (0, 1, 1, 1));
        assert_eq!(slots.take(), None);
        slots.free(a);
        let c = slots.take().unwrap();
        assert_eq!((c.slot, c.seq), (0, 2));
    }

    #[test]
    fn a_new_life_ignores_the_old() {
        let mut slots = Slots::new(1);
        slots.set_limit(1);
        let old = slots.take().unwrap();
        slots.renew(2);
        let new = slots.take().unwrap();
        assert_eq!((new.incarnation, new.slot, new.seq), (2, 0, 1));
        slots.free(old);
        assert_eq!(slots.take(), None, "the new operation still has the slot");
    }

    proptest! {
        #[test]
        fn no_slot_is_taken_twice_and_numbers_only_grow(steps in prop::collection::vec((any::<bool>(), 0usize..8), 1..200)) {
            let mut slots = Slots::new(1);
            slots.set_limit(5);
            let mut out: Vec<Place> = Vec::new();
            let mut last: BTreeMap<u32, u64> = BTreeMap::new();
            for (take, which) in steps {
                if take {
                    match slots.take() {
                        Some(place) => {
                            prop_assert!(out.iter().all(|other| other.slot != place.slot));
                            let last = last.entry(place.slot).or_default();
                            prop_assert_eq!(place.seq, *last + 1);
                            *last = place.seq;
                            out.push(place);
                        }
                        None => prop_assert_eq!(out.len(), 5),
                    }
                } else if which < out.len() {
                    slots.free(out.swap_remove(which));
                }
            }
        }
    }
}
