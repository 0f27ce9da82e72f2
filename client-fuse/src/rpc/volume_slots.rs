//! The replay slots of a client: a queue for each volume, and one life for all of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use larder_protocol::ids::VolumeId;
use parking_lot::Mutex;

use super::slot_queue::SlotQueue;

/// All slots.
#[derive(Debug)]
pub struct VolumeSlots(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    incarnation: u64,
    /// Slots in each volume; none before a server has said how many.
    limit: u32,
    queues: BTreeMap<VolumeId, Arc<SlotQueue>>,
}

impl VolumeSlots {
    /// Those of a client in this life.
    pub fn new(incarnation: u64) -> VolumeSlots {
        VolumeSlots(Mutex::new(Inner { incarnation, limit: 0, queues: BTreeMap::new() }))
    }

    /// Those in a volume.
    pub fn of(&self, volume: VolumeId) -> Arc<SlotQueue> {
        let mut inner = self.0.lock();
        let (incarnation, limit) = (inner.incarnation, inner.limit);
        let queue = inner.queues.entry(volume).or_insert_with(|| {
            let queue = SlotQueue::new(incarnation);
            queue.set_limit(limit);
            queue
        });
        queue.clone()
    }

    /// A server allows this many in each volume.
    pub fn set_limit(&self, limit: u32) {
        let queues: Vec<Arc<SlotQueue>> = {
            let mut inner = self.0.lock();
            inner.limit = limit;
            inner.queues.values().cloned().collect()
        };
        queues.iter().for_each(|queue| queue.set_limit(limit));
    }

    /// The client's life now.
    pub fn incarnation(&self) -> u64 {
        self.0.lock().incarnation
    }

    /// Begins a new life in all volumes, if the one that the caller has seen is still the current one. Returns whether it
    /// did.
    pub fn renew(&self, seen: u64) -> bool {
        let queues: Vec<Arc<SlotQueue>> = {
            let mut inner = self.0.lock();
            if inner.incarnation != seen {
                return false;
            }
            inner.incarnation = seen + 1;
            inner.queues.values().cloned().collect()
        };
        for queue in queues {
            queue.renew(seen);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn each_volume_counts_by_itself_and_all_begin_a_new_life_together() {
        let slots = VolumeSlots::new(3);
        let (one, two) = (slots.of(VolumeId(1)), slots.of(VolumeId(2)));
        assert!(one.acquire().now_or_never().is_none(), "nobody has said how many");
        slots.set_limit(2);
        let place = |queue: &Arc<SlotQueue>| {
            let mut guard = queue.acquire().now_or_never().unwrap();
            guard.sent();
            guard.place()
        };
        assert_eq!((place(&one).seq, place(&one).seq, place(&two).seq), (1, 2, 1));
        assert!(slots.renew(3) && !slots.renew(3));
        assert_eq!(slots.incarnation(), 4);
        for queue in [one, two, slots.of(VolumeId(9))] {
            let place = place(&queue);
            assert_eq!((place.incarnation, place.seq), (4, 1));
        }
    }
}
