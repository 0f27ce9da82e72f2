//! A gate for each file: readers share it, whoever changes contents has it alone.
//!
//! **D1.** Contents change, and the `Dirty` and `Intents` rows of a file change, only under its gate, held alone; but for
//! the intents of scratch content files (D9).
//! **D2.** Who needs the gates of two files takes them in the order of their vnode numbers.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

type Map = Arc<Mutex<HashMap<u64, Arc<RwLock<()>>>>>;

/// The gates of a volume's files; only those in use exist.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gates(Map);

enum Held {
    Shared(#[expect(dead_code, reason = "held, not used")] OwnedRwLockReadGuard<()>),
    Alone(#[expect(dead_code, reason = "held, not used")] OwnedRwLockWriteGuard<()>),
}

/// A gate passed; dropping it leaves it.
pub(crate) struct Pass {
    held: Option<Held>,
    map: Map,
    vnode: u64,
}

impl Gates {
    fn gate(&self, vnode: u64) -> Arc<RwLock<()>> {
        Arc::clone(self.0.lock().entry(vnode).or_default())
    }

    fn pass(&self, vnode: u64, held: Held) -> Pass {
        Pass { held: Some(held), map: Arc::clone(&self.0), vnode }
    }

    /// Waits until nobody has the gate alone.
    pub(crate) async fn shared(&self, vnode: u64) -> Pass {
        let gate = self.gate(vnode);
        self.pass(vnode, Held::Shared(gate.read_owned().await))
    }

    /// Waits until nobody else is in.
    pub(crate) async fn alone(&self, vnode: u64) -> Pass {
        let gate = self.gate(vnode);
        self.pass(vnode, Held::Alone(gate.write_owned().await))
    }

    /// Takes one gate shared and another alone (D2); if they are the same, that one alone.
    pub(crate) async fn shared_and_alone(&self, shared: u64, alone: u64) -> (Option<Pass>, Pass) {
        if shared == alone {
            (None, self.alone(alone).await)
        } else if shared < alone {
            let first = self.shared(shared).await;
            (Some(first), self.alone(alone).await)
        } else {
            let first = self.alone(alone).await;
            (Some(self.shared(shared).await), first)
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.held = None;
        let mut map = self.map.lock();
        // One reference is the map's. Nobody can get another while the map is locked.
        if map.get(&self.vnode).is_some_and(|gate| Arc::strong_count(gate) == 1) {
            map.remove(&self.vnode);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn gates_exclude_and_vanish() {
        let gates = Gates::default();
        let reader = gates.shared(5).await;
        assert!(gates.shared(5).now_or_never().is_some());
        assert!(gates.alone(5).now_or_never().is_none());
        let (other, _alone) = gates.shared_and_alone(5, 4).await;
        assert!(gates.shared(4).now_or_never().is_none());
        drop((reader, other));
        assert!(gates.alone(5).now_or_never().is_some());
        drop(_alone);
        assert!(gates.0.lock().is_empty());
    }
}
