//! Places at which the server can be made to die, for tests of what a crash leaves behind; see
//! [`larder_protocol::failpoint`].
//!
//! At each of them all that was acknowledged survives, and the store is sound. What is said with a place is what becomes
//! of the operation that is under way, whose client asks again: it happens once, or not at all if its client is gone.

/// A place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failpoint {
    /// A batch of mutations is about to be committed. None of them has happened.
    Committing,
    /// A batch is committed, and nobody has heard of it. Its mutations have happened, and are answered from their slots.
    Committed,
    /// A file is entered as dirty, and nothing of it was changed. It is as it was.
    Entered,
    /// An unstable write was made and not answered. The file has it or not, and is of the size that goes with that.
    Written,
    /// A file's unstable writes are synced, and their commit is not answered. They are there.
    Synced,
    /// A file's checksums are complete and not stored. It is as it was, and checksums are computed again.
    Settling,
    /// A piece of new contents is staged. The file is as it was, and what was staged is gone.
    Staged,
    /// New contents are complete and durable, and the file does not have them yet. It is as it was.
    Installing,
    /// It is recorded that a file is to be cut, and it was not. It is cut when the volume is opened.
    Cutting,
    /// Contents are moved from the metadata to a file, and the metadata still has them. They are as they were.
    Moving,
    /// A content file is about to be removed. It is removed later.
    Removing,
    /// The volume is being opened, and what was left half done is finished but not recorded. It is done again.
    Recovering,
    /// The volume is open, and nothing was served.
    Recovered,
    /// A client that may get callbacks is recorded, and does not know. A later change waits for it at most as long as
    /// for any other that does not answer.
    Recorded,
    /// All callbacks on what a mutation changes are broken, and it is not applied.
    Broken,
    /// A volume's directory is made, and its record is not entered. There is no such volume, and there will be none of its
    /// number.
    VolumeMade,
    /// A volume is about to be frozen for a move. It is not, and the move is begun anew.
    Freezing,
    /// It is frozen, and open still. It is served again by the next process.
    Frozen,
    /// All of a volume has been copied once. What is whole is not copied again.
    Copied,
    /// The last of a volume has been copied, and is not durable. It is where it was.
    CopiedLast,
    /// All of it is durable at its destination, and the record does not say so. It is where it was.
    Arrived,
    /// The record says that it is here, and it is not in its place. It is put there by the next process.
    MoveCommitted,
    /// It is in its place, and the source does not know. It asks the directory.
    Installed,
    /// A volume has moved, and the copy that is left is about to be removed. It is removed later.
    LettingGo,
    /// A volume's record is entered or changed, and nobody has heard of it. It says that, and whoever asks again is told.
    RecordChanged,
}

impl Failpoint {
    /// Those that an administrator's requests come to.
    pub const OF_VOLUMES: [Failpoint; 2] = [Failpoint::VolumeMade, Failpoint::RecordChanged];

    /// Those that the source of a move comes to.
    pub const OF_SOURCES: [Failpoint; 3] = [Failpoint::Freezing, Failpoint::Frozen, Failpoint::LettingGo];

    /// Those that its destination comes to.
    pub const OF_DESTINATIONS: [Failpoint; 5] =
        [Failpoint::Copied, Failpoint::CopiedLast, Failpoint::Arrived, Failpoint::MoveCommitted, Failpoint::Installed];

    /// Those that programs' requests come to.
    pub const OF_FILES: [Failpoint; 15] = [
        Failpoint::Committing,
        Failpoint::Committed,
        Failpoint::Entered,
        Failpoint::Written,
        Failpoint::Synced,
        Failpoint::Settling,
        Failpoint::Staged,
        Failpoint::Installing,
        Failpoint::Cutting,
        Failpoint::Moving,
        Failpoint::Removing,
        Failpoint::Recovering,
        Failpoint::Recovered,
        Failpoint::Recorded,
        Failpoint::Broken,
    ];

    /// Its name in `FAILPOINTS`.
    pub fn name(self) -> &'static str {
        match self {
            Failpoint::Committing => "store::batch::begun",
            Failpoint::Committed => "store::batch::committed",
            Failpoint::Entered => "store::write::entered",
            Failpoint::Written => "store::write::made",
            Failpoint::Synced => "store::commit::synced",
            Failpoint::Settling => "store::settle::begun",
            Failpoint::Staged => "store::stage::piece",
            Failpoint::Installing => "store::install::begun",
            Failpoint::Cutting => "store::truncate::recorded",
            Failpoint::Moving => "store::move::copied",
            Failpoint::Removing => "store::remove::begun",
            Failpoint::Recovering => "store::recovery::done",
            Failpoint::Recovered => "store::recovery::recorded",
            Failpoint::Recorded => "promises::holder::recorded",
            Failpoint::Broken => "promises::break::settled",
            Failpoint::VolumeMade => "volumes::create::made",
            Failpoint::RecordChanged => "volumes::record::changed",
            Failpoint::Freezing => "move::source::freezing",
            Failpoint::Frozen => "move::source::frozen",
            Failpoint::LettingGo => "move::source::letting-go",
            Failpoint::Copied => "move::destination::copied",
            Failpoint::CopiedLast => "move::destination::copied-last",
            Failpoint::Arrived => "move::destination::arrived",
            Failpoint::MoveCommitted => "move::destination::committed",
            Failpoint::Installed => "move::destination::installed",
        }
    }

    /// The process is here, and dies if it is to.
    #[inline(always)]
    pub(crate) fn pass(self) {
        larder_protocol::failpoint::pass(self.name());
    }
}
