//! One object's attributes and how long they may be used (the `ac*` options of nfs(5)).
//!
//! 1. Validity is counted from *before* the request that brought the attributes, so the server's state is never older
//!    than the interval says.
//! 2. The interval doubles each time the attributes were found unchanged after it, from `min` up to `max`, and falls
//!    back to `min` at a change. `max` is a hard bound.
//! 3. Replies can overtake each other. One that may be older than what is known never replaces it silently: either it
//!    is known to be older and is dropped, or the order cannot be told and nothing counts as valid until a new request.

use std::time::Duration;

use larder_protocol::attr::{Attr, AttrChange};
use larder_protocol::runtime::BootTime;
use serde::{Deserialize, Serialize};

/// When something happened: on the clock, and in the order of this client's events. The clock alone cannot order
/// events of one instant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// The time.
    pub at: BootTime,
    /// The event's number.
    pub tick: u64,
}

/// The shortest and the longest interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Used after a change.
    pub min: Duration,
    /// Never exceeded.
    pub max: Duration,
}

/// Why a cached thing could not be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Miss {
    /// It was never there, or was dropped.
    NotCached,
    /// Its time was over (rule 1 of NFS mode).
    Expired,
    /// A file was opened (rule 2 of NFS mode, close-to-open).
    Opened,
    /// The file had another `change` than the blocks (rules 2 and 3 of NFS mode).
    Changed,
    /// Replies overtook each other, and their order cannot be told.
    Unordered,
    /// The mode caches nothing.
    Uncached,
    /// Data not yet sent covered a part of what was read.
    Dirty,
    /// There is no callback on it, or it was broken (rule 1 of AFS mode).
    NoCallback,
    /// The lease was not renewed in time (rule 1 of AFS mode).
    LeaseExpired,
    /// The callback was granted under a lease that has lapsed, or by another server process (rules 7 and 8 of AFS
    /// mode).
    Lapsed,
    /// This client is changing it (rule 12 of AFS mode).
    Changing,
    /// There is no complete copy of this version on the disk (rule 2 of AFS mode).
    NoCopy,
}

impl Miss {
    /// Every reason, in order.
    pub const ALL: [Miss; 12] = [
        Miss::NotCached,
        Miss::Expired,
        Miss::Opened,
        Miss::Changed,
        Miss::Unordered,
        Miss::Uncached,
        Miss::Dirty,
        Miss::NoCallback,
        Miss::LeaseExpired,
        Miss::Lapsed,
        Miss::Changing,
        Miss::NoCopy,
    ];

    /// The name in statistics.
    pub fn name(self) -> &'static str {
        match self {
            Miss::NotCached => "not_cached",
            Miss::Expired => "expired",
            Miss::Opened => "opened",
            Miss::Changed => "changed",
            Miss::Unordered => "unordered",
            Miss::Uncached => "uncached",
            Miss::Dirty => "dirty",
            Miss::NoCallback => "no_callback",
            Miss::LeaseExpired => "lease_expired",
            Miss::Lapsed => "lapsed",
            Miss::Changing => "changing",
            Miss::NoCopy => "no_copy",
        }
    }
}

/// What a reply meant for the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// The object is as it was.
    Same,
    /// The object has changed; the attributes are the new ones.
    Newer,
    /// The reply was overtaken and is dropped.
    Older,
    /// The reply and what was known overlap in time; the next use must ask again.
    Unclear,
}

/// An object's attributes with what is known of their age. Compact: a client holds one for each node.
#[derive(Clone, Debug)]
pub struct AttrCache {
    attr: Attr,
    /// From when the attributes are known to hold (rule 1), in nanoseconds.
    since: u64,
    /// The tick of the request that brought them.
    sent: u64,
    /// The tick at which they were applied.
    applied: u64,
    /// When the interval last changed, in nanoseconds.
    interval_since: u64,
    interval_ms: u32,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Usable,
    Dropped,
    Unordered,
}

fn nanos(time: BootTime) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

impl AttrCache {
    /// Begins with a reply to a request sent at `sent`, applied at `now`.
    pub fn new(attr: Attr, sent: Stamp, now: Stamp, limits: Limits) -> AttrCache {
        AttrCache {
            attr,
            since: nanos(sent.at),
            sent: sent.tick,
            applied: now.tick,
            interval_since: nanos(now.at),
            interval_ms: millis(limits.min.min(limits.max)),
            state: State::Usable,
        }
    }

    /// The attributes last seen, valid or not.
    pub fn attr(&self) -> &Attr {
        &self.attr
    }

    /// How long the attributes may still be used, or why not.
    ///
    /// # Errors
    /// The rule that failed.
    pub fn remaining(&self, now: BootTime) -> Result<Duration, Miss> {
        match self.state {
            State::Dropped => return Err(Miss::NotCached),
            State::Unordered => return Err(Miss::Unordered),
            State::Usable => {}
        }
        let end = self.since.saturating_add(u64::from(self.interval_ms) * 1_000_000);
        match end.checked_sub(nanos(now)) {
            Some(left) if left > 0 => Ok(Duration::from_nanos(left)),
            _ => Err(Miss::Expired),
        }
    }

    /// Whether the request that brought the attributes was sent after `moment`.
    pub fn sent_after(&self, moment: Stamp) -> bool {
        self.state == State::Usable && self.sent > moment.tick
    }

    /// Whether replies have crossed, so that the attributes may not be the newest that this client was told.
    pub fn is_unordered(&self) -> bool {
        self.state == State::Unordered
    }

    /// The next use must ask the server.
    pub fn drop_validity(&mut self) {
        self.state = State::Dropped;
    }

    /// Takes in a reply to a request sent at `sent` that changed nothing.
    pub fn apply(&mut self, attr: Attr, sent: Stamp, now: Stamp, limits: Limits) -> Applied {
        if attr.change == self.attr.change {
            self.refresh(attr, sent, now, limits);
            return Applied::Same;
        }
        if sent.tick > self.applied {
            self.replace(attr, sent, now, limits);
            return Applied::Newer;
        }
        if sent.tick < self.sent {
            // The cached reply's request was sent later, so using it is never staler than using this one (rule 3).
            return Applied::Older;
        }
        self.state = State::Unordered;
        Applied::Unclear
    }

    /// Takes in attributes that the server has promised to speak up about: no change of them can have been missed, so
    /// whatever else was known is older.
    pub fn apply_promised(&mut self, attr: Attr, sent: Stamp, now: Stamp, limits: Limits) -> Applied {
        if attr.change == self.attr.change && self.state == State::Usable {
            self.refresh(attr, sent, now, limits);
            return Applied::Same;
        }
        let same = attr.change == self.attr.change;
        self.replace(attr, sent, now, limits);
        if same { Applied::Same } else { Applied::Newer }
    }

    /// Takes in the reply to this client's own change. `older` says that the change is known to lie behind the
    /// cached state, because later changes of this client started from its result.
    pub fn apply_own(&mut self, change: &AttrChange, older: bool, sent: Stamp, now: Stamp, limits: Limits) -> Applied {
        let attr = change.attr.clone();
        if attr.change == self.attr.change {
            self.refresh(attr, sent, now, limits);
            return Applied::Same;
        }
        if older {
            return Applied::Older;
        }
        if change.before == self.attr.change || sent.tick > self.applied {
            let clear = self.state != State::Unordered || sent.tick > self.applied;
            self.replace(attr, sent, now, limits);
            if !clear {
                self.state = State::Unordered;
            }
            return Applied::Newer;
        }
        // Shown until the next request, because programs of this client should see what they did.
        self.replace(attr, sent, now, limits);
        self.state = State::Unordered;
        Applied::Unclear
    }

    fn refresh(&mut self, attr: Attr, sent: Stamp, now: Stamp, limits: Limits) {
        let now_ns = nanos(now.at);
        if sent.tick >= self.sent {
            // The access time may differ although `change` does not.
            self.attr = attr;
            self.since = self.since.max(nanos(sent.at));
            self.sent = sent.tick;
            self.applied = now.tick;
            self.state = State::Usable;
        }
        if now_ns >= self.interval_since.saturating_add(u64::from(self.interval_ms) * 1_000_000) {
            let max = millis(limits.max);
            self.interval_ms = self.interval_ms.saturating_mul(2).min(max);
            self.interval_since = now_ns;
        }
    }

    fn replace(&mut self, attr: Attr, sent: Stamp, now: Stamp, limits: Limits) {
        *self = AttrCache::new(attr, sent, now, limits);
    }
}

#[cfg(test)]
mod tests {
    use larder_protocol::attr::{FileType, Timestamp};
    use larder_protocol::ids::{Fid, VolumeId};
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { min: Duration::from_secs(3), max: Duration::from_secs(60) };

    fn attr(change: u64) -> Attr {
        let time = Timestamp::default();
        Attr {
            fid: Fid { volume: VolumeId::ROOT, vnode: 7, generation: 1 },
            kind: FileType::Regular,
            mode: 0o644,
            nlink: 1,
            uid: 0,
            gid: 0,
            size: 0,
            blocks: 0,
            rdev: 0,
            atime: time,
            mtime: time,
            ctime: time,
            btime: time,
            change,
            data_version: 1,
            has_xattr: false,
        }
    }

    fn at(secs: u64, tick: u64) -> Stamp {
        Stamp { at: Duration::from_secs(secs), tick }
    }

    #[test]
    fn validity_counts_from_before_the_request() {
        let cache = AttrCache::new(attr(1), at(10, 1), at(12, 2), LIMITS);
        assert_eq!(cache.remaining(Duration::from_secs(12)), Ok(Duration::from_secs(1)));
        assert_eq!(cache.remaining(Duration::from_secs(13)), Err(Miss::Expired));
    }

    #[test]
    fn the_interval_doubles_while_nothing_changes_and_falls_back_at_a_change() {
        let mut cache = AttrCache::new(attr(1), at(0, 1), at(0, 2), LIMITS);
        let (mut now, mut tick, mut seen) = (0, 2, Vec::new());
        for _ in 0..6 {
            let left = cache.remaining(Duration::from_secs(now)).unwrap().as_secs();
            seen.push(left);
            now += left;
            tick += 2;
            assert_eq!(cache.apply(attr(1), at(now, tick), at(now, tick + 1), LIMITS), Applied::Same);
        }
        assert_eq!(seen, [3, 6, 12, 24, 48, 60]);
        assert_eq!(cache.apply(attr(2), at(now, tick + 2), at(now, tick + 3), LIMITS), Applied::Newer);
        assert_eq!(cache.remaining(Duration::from_secs(now)), Ok(LIMITS.min));
    }

    #[test]
    fn asking_often_does_not_lengthen_the_interval_early() {
        let mut cache = AttrCache::new(attr(1), at(0, 1), at(0, 2), LIMITS);
        for tick in 2..20 {
            cache.apply(attr(1), at(1, 2 * tick), at(1, 2 * tick + 1), LIMITS);
        }
        assert_eq!(cache.remaining(Duration::from_secs(1)), Ok(LIMITS.min));
    }

    #[test]
    fn a_reply_that_was_overtaken_is_dropped() {
        let mut cache = AttrCache::new(attr(2), at(5, 10), at(6, 11), LIMITS);
        assert_eq!(cache.apply(attr(1), at(4, 9), at(7, 12), LIMITS), Applied::Older);
        assert_eq!(cache.attr().change, 2);
        assert!(cache.remaining(Duration::from_secs(6)).is_ok());
    }

    #[test]
    fn replies_that_crossed_leave_nothing_valid() {
        let mut cache = AttrCache::new(attr(2), at(5, 10), at(6, 13), LIMITS);
        assert_eq!(cache.apply(attr(3), at(5, 11), at(7, 14), LIMITS), Applied::Unclear);
        assert_eq!(cache.remaining(Duration::from_secs(6)), Err(Miss::Unordered));
        assert_eq!(cache.apply(attr(3), at(8, 15), at(8, 16), LIMITS), Applied::Newer);
        assert!(cache.remaining(Duration::from_secs(8)).is_ok());
    }

    #[test]
    fn own_changes_follow_each_other_by_their_change_attributes() {
        let mut cache = AttrCache::new(attr(1), at(0, 1), at(0, 2), LIMITS);
        let second = AttrChange { before: 1, attr: attr(2) };
        // Sent before the cached reply was applied, but it starts from exactly that state.
        assert_eq!(cache.apply_own(&second, false, at(0, 1), at(1, 5), LIMITS), Applied::Newer);
        assert_eq!(cache.attr().change, 2);
        let late = AttrChange { before: 0, attr: attr(1) };
        assert_eq!(cache.apply_own(&late, true, at(0, 1), at(1, 6), LIMITS), Applied::Older);
        assert_eq!(cache.attr().change, 2);
    }

    #[test]
    fn opens_accept_only_replies_sent_after_they_began() {
        let cache = AttrCache::new(attr(1), at(0, 5), at(0, 6), LIMITS);
        assert!(cache.sent_after(at(0, 4)));
        assert!(!cache.sent_after(at(0, 5)));
    }

    proptest! {
        /// Whatever arrives in whatever order, attributes are never shown longer than `max` after their request.
        #[test]
        fn max_is_a_hard_bound(steps in prop::collection::vec((0u64..40, 0u64..30, 0u64..4), 1..60)) {
            let mut cache = AttrCache::new(attr(0), at(0, 1), at(0, 2), LIMITS);
            let (mut now, mut tick, mut last_sent) = (0, 100, 0);
            for (step, delay, change) in steps {
                now += step;
                tick += 10;
                let sent = at(now.saturating_sub(delay), tick - delay);
                let before = cache.attr().change;
                cache.apply(attr(change), sent, at(now, tick), LIMITS);
                if cache.attr().change == before {
                    last_sent = last_sent.max(sent.at.as_secs());
                } else {
                    last_sent = sent.at.as_secs();
                }
                if let Ok(left) = cache.remaining(Duration::from_secs(now)) {
                    prop_assert!(now + left.as_secs() <= last_sent + LIMITS.max.as_secs());
                }
            }
        }
    }
}
