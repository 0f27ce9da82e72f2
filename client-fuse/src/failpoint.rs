//! Places at which the process can be made to die, for tests of what a crash leaves behind (AFS mode); see
//! [`larder_protocol::failpoint`].

/// A place. What must survive a death there is said with each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failpoint {
    /// A part of a file has come and is in the cache. Nothing was changed: the file is as it was.
    Fetching,
    /// All of a file has come, and the cache does not know it yet. Nothing was changed.
    Fetched,
    /// The cache knows a copy. Nothing was changed.
    Installed,
    /// A program's first write to a file is about to be made, and recorded. The file is as it was.
    Recorded,
    /// A write was made and not answered. The file is as it was, or with the writes up to this one.
    Written,
    /// A file is about to be stored. All writes were answered, so all of them are there after recovery.
    Storing,
    /// A piece of a file was staged. As before.
    Staging,
    /// All pieces were staged. As before.
    Staged,
    /// The server has stored the file, and nobody has heard of it. As before, and the store is not a conflict.
    Stored,
    /// The cache knows that the file is stored, and close(2) has not returned. As before.
    Settled,
    /// At the next mount, before what was left is looked at. All writes are there after the mount that follows.
    Recovering,
    /// At the next mount, what was left is stored, and the cache does not know it. As before.
    Recovered,
}

impl Failpoint {
    /// All of them.
    pub const ALL: [Failpoint; 12] = [
        Failpoint::Fetching,
        Failpoint::Fetched,
        Failpoint::Installed,
        Failpoint::Recorded,
        Failpoint::Written,
        Failpoint::Storing,
        Failpoint::Staging,
        Failpoint::Staged,
        Failpoint::Stored,
        Failpoint::Settled,
        Failpoint::Recovering,
        Failpoint::Recovered,
    ];

    /// Its name in `FAILPOINTS`.
    pub fn name(self) -> &'static str {
        match self {
            Failpoint::Fetching => "afs::fetch::part",
            Failpoint::Fetched => "afs::fetch::whole",
            Failpoint::Installed => "afs::fetch::installed",
            Failpoint::Recorded => "afs::write::recorded",
            Failpoint::Written => "afs::write::made",
            Failpoint::Storing => "afs::store::begun",
            Failpoint::Staging => "afs::store::piece",
            Failpoint::Staged => "afs::store::staged",
            Failpoint::Stored => "afs::store::stored",
            Failpoint::Settled => "afs::store::settled",
            Failpoint::Recovering => "afs::recovery::begun",
            Failpoint::Recovered => "afs::recovery::stored",
        }
    }

    /// The process is here, and dies if it is to.
    #[inline(always)]
    pub(crate) fn pass(self) {
        larder_protocol::failpoint::pass(self.name());
    }
}
