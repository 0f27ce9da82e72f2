//! Whose request it is: the kernel names user and group, `/proc` the supplementary groups.

use std::num::NonZeroUsize;
use std::time::Duration;

use larder_protocol::attr::Credential;
use larder_protocol::limits::MAX_GROUPS;
use larder_protocol::runtime::BootTime;
use lru::LruCache;
use parking_lot::Mutex;

/// How long a thread's groups are remembered.
const FRESH: Duration = Duration::from_secs(1);
/// How many threads are remembered.
const THREADS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1023);

/// A thread: its pid, uid and gid.
type Thread = (u32, u32, u32);

/// Supplementary groups of threads, cached briefly.
pub(super) struct Credentials {
    cache: Mutex<LruCache<Thread, (BootTime, Vec<u32>)>>,
}

impl Default for Credentials {
    fn default() -> Credentials {
        Credentials { cache: Mutex::new(LruCache::new(THREADS)) }
    }
}

impl Credentials {
    /// The credential of a thread. The superuser's groups are not asked for: they grant nothing more.
    pub(super) fn of(&self, uid: u32, gid: u32, pid: u32, now: BootTime) -> Credential {
        if uid == 0 || pid == 0 {
            return Credential { uid, gid, groups: Vec::new() };
        }
        let key = (pid, uid, gid);
        if let Some((read, groups)) = self.cache.lock().get(&key)
            && now.saturating_sub(*read) < FRESH
        {
            return Credential { uid, gid, groups: groups.clone() };
        }
        // A thread that has ended meanwhile has no groups left to ask for; it gets none.
        let groups = std::fs::read_to_string(format!("/proc/{pid}/status")).map_or_else(|_| Vec::new(), |s| parse(&s));
        self.cache.lock().put(key, (now, groups.clone()));
        Credential { uid, gid, groups }
    }
}

fn parse(status: &str) -> Vec<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or_default();
    line.split_ascii_whitespace().filter_map(|group| group.parse().ok()).take(MAX_GROUPS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_read_from_the_status_line() {
        assert_eq!(parse("Name:\tx\nUid:\t1\t1\t1\t1\nGroups:\t4 24 1000 \nNStgid:\t7\n"), [4, 24, 1000]);
        assert_eq!(parse("Groups:\t \n"), [0u32; 0]);
        assert_eq!(parse(""), [0u32; 0]);
    }

    #[test]
    fn groups_are_remembered_for_a_second_and_boundedly() {
        let credentials = Credentials::default();
        let key = (u32::MAX, 5, 6);
        credentials.cache.lock().put(key, (Duration::from_secs(10), vec![7]));
        let groups = |secs| credentials.of(5, 6, u32::MAX, Duration::from_millis(secs)).groups;
        assert_eq!(groups(10_900), [7]);
        assert_eq!(groups(11_000), [0u32; 0], "no such thread");
        for pid in 0..5000 {
            credentials.cache.lock().put((pid, 1, 1), (Duration::ZERO, Vec::new()));
        }
        assert_eq!(credentials.cache.lock().len(), THREADS.get());
    }

    #[test]
    fn nobody_asks_for_the_groups_of_root() {
        let credentials = Credentials::default();
        assert_eq!(credentials.of(0, 3, std::process::id(), Duration::ZERO).groups, [0u32; 0]);
        assert_eq!(credentials.cache.lock().len(), 0);
    }
}
