//! Directories in which a change may be carried out later, of which nobody will hear: the server's disk failed on the way
//! and its next start decides. In AFS mode rules 6 and 8 see to them; in the others
//! nothing but the time for which the kernel may keep a name stands between that change and a program that goes by the
//! old name: it would write to the file that was there. So the kernel keeps no name of such a directory.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use larder_protocol::ids::Fid;
use larder_protocol::runtime::BootTime;
use parking_lot::Mutex;

/// Directories that are told apart. When there are more, all are taken to be unsure.
const MAX: usize = 1024;
/// How long an answer of the server's former process may be on its way through this one.
const LATE: Duration = Duration::from_secs(60);

/// Directories with such a change.
#[derive(Debug, Default)]
pub(super) struct UnsureDirs {
    /// Whether there may be any: every name that is given out asks, and hardly ever is there one.
    any: AtomicBool,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Each with the end of it, once that is known.
    dirs: BTreeMap<Fid, Option<BootTime>>,
    /// Of directories that there was no room for: with the end of it, once that is known.
    others: Option<Option<BootTime>>,
}

impl UnsureDirs {
    /// A change in this directory may still be carried out.
    pub(super) fn insert(&self, dir: Fid) {
        let mut inner = self.inner.lock();
        self.any.store(true, Ordering::Release);
        if inner.dirs.len() < MAX || inner.dirs.contains_key(&dir) {
            inner.dirs.insert(dir, None);
        } else {
            inner.others = Some(None);
        }
    }

    /// The server's process that had the changes of these directories is gone, and with it what was not carried out.
    pub(super) fn server_restarted(&self, now: BootTime, is_its: impl Fn(Fid) -> bool) {
        let mut inner = self.inner.lock();
        let Inner { dirs, others } = &mut *inner;
        let mut is_any_left = false;
        for (dir, end) in dirs {
            if is_its(*dir) {
                end.get_or_insert(now + LATE);
            }
            is_any_left |= end.is_none();
        }
        // They may be of any server. Once none that is known waits for its own, they do not either.
        if let Some(end) = others.as_mut().filter(|_| !is_any_left) {
            end.get_or_insert(now + LATE);
        }
    }

    /// Whether the kernel may keep no name of this directory.
    pub(super) fn contains(&self, dir: Fid, clock: impl FnOnce() -> BootTime) -> bool {
        if !self.any.load(Ordering::Acquire) {
            return false;
        }
        let mut inner = self.inner.lock();
        let now = clock();
        let lasts = |end: Option<BootTime>| end.is_none_or(|end| now < end);
        if let Some(end) = inner.others {
            if lasts(end) {
                return true;
            }
            inner.others = None;
        }
        match inner.dirs.get(&dir) {
            None => false,
            Some(end) if lasts(*end) => true,
            Some(_) => {
                inner.dirs.remove(&dir);
                self.any.store(!inner.dirs.is_empty(), Ordering::Release);
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use larder_protocol::ids::VolumeId;

    use super::*;

    const NOW: BootTime = Duration::from_secs(100);

    fn dir(vnode: u64) -> Fid {
        Fid { volume: VolumeId(1), vnode, generation: 1 }
    }

    #[test]
    fn a_directory_is_unsure_until_some_time_after_the_server_was_restarted() {
        let unsure = UnsureDirs::default();
        unsure.insert(dir(1));
        assert!(unsure.contains(dir(1), || NOW * 1000) && !unsure.contains(dir(2), || NOW));
        unsure.server_restarted(NOW, |_| true);
        // Another change, in the new process.
        unsure.insert(dir(3));
        unsure.server_restarted(NOW + LATE / 2, |_| true);
        assert!(unsure.contains(dir(1), || NOW + LATE - Duration::from_millis(1)));
        assert!(!unsure.contains(dir(1), || NOW + LATE));
        assert!(unsure.contains(dir(3), || NOW + LATE));
        assert!(!unsure.contains(dir(3), || NOW + LATE * 2));
    }

    #[test]
    fn only_the_server_that_has_a_directory_ends_its_doubt() {
        let unsure = UnsureDirs::default();
        unsure.insert(dir(1));
        unsure.insert(dir(2));
        unsure.server_restarted(NOW, |restarted| restarted == dir(1));
        assert!(!unsure.contains(dir(1), || NOW + LATE) && unsure.contains(dir(2), || NOW + LATE));
    }

    #[test]
    fn of_too_many_none_is_forgotten() {
        let unsure = UnsureDirs::default();
        let many = MAX as u64 * 2;
        (0..many).for_each(|vnode| unsure.insert(dir(vnode)));
        assert!((0..many).all(|vnode| unsure.contains(dir(vnode), || NOW)));
        unsure.server_restarted(NOW, |_| true);
        assert!((0..many).all(|vnode| unsure.contains(dir(vnode), || NOW)));
        assert!((0..many).all(|vnode| !unsure.contains(dir(vnode), || NOW + LATE)));
        assert!(unsure.inner.lock().dirs.is_empty() && !unsure.any.into_inner());
    }
}
