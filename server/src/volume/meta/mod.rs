//! The metadata engine under a volume: ordered tables, atomic batches, snapshots.
//!
//! Nothing above this trait knows which engine it has. Rows are opaque here; their checksums are added and verified
//! above, in [`codec`](super::codec) and [`view`](super::view).

pub mod memory;
pub mod sqlite;

use std::ops::Bound;

use super::error::StoreResult;
use super::keys::Table;

/// Changes that become visible and durable together.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// For each row its new value, or `None` to delete it. No row occurs twice.
    pub changes: Vec<(Table, Vec<u8>, Option<Vec<u8>>)>,
}

/// A row: key and value.
pub type Row = (Vec<u8>, Vec<u8>);

/// An engine. One writer calls [`commit`](Metadata::commit); any number of readers take snapshots beside it.
pub trait Metadata: Send + Sync + 'static {
    /// A consistent view of everything committed so far.
    ///
    /// # Errors
    /// The engine's.
    fn snapshot(&self) -> StoreResult<Box<dyn Snapshot + '_>>;

    /// As [`snapshot`](Metadata::snapshot), for a few rows that are looked at on the way to a change. An engine may lend
    /// what its writer has at hand, which is warm where changes have left other views cold. A commit may wait for its
    /// end.
    ///
    /// # Errors
    /// The engine's.
    fn glance(&self) -> StoreResult<Box<dyn Snapshot + '_>> {
        self.snapshot()
    }

    /// Applies a batch: all of it or, with an error, nothing, but for what [`is_in_doubt`](Metadata::is_in_doubt) says.
    /// Snapshots taken after it returned see it. `sequence`
    /// names it and grows from batch to batch. When `durable` is set it survives a power cut once this returns;
    /// otherwise it survives the end of the process, and a power cut after the next [`sync`](Metadata::sync).
    ///
    /// # Errors
    /// `Full` when there is no room; the engine is usable afterwards.
    fn commit(&self, sequence: u64, batch: &Batch, durable: bool) -> StoreResult<()>;

    /// Whether a batch that failed, and that no snapshot shows, may be in effect after the next start: its commit had come
    /// to the disk, or may have, when the engine failed. Until this is false again nothing may be removed because
    /// snapshots do not refer to it.
    fn is_in_doubt(&self) -> bool;

    /// The highest sequence number that, with all before it, survives a power cut.
    fn durable_up_to(&self) -> u64;

    /// Makes everything committed so far durable.
    ///
    /// # Errors
    /// The engine's; then nothing is known of what was not durable before.
    fn sync(&self) -> StoreResult<()>;

    /// Housekeeping that may take a while (such as moving a journal into place); called now and then from a thread
    /// that may block.
    ///
    /// # Errors
    /// The engine's.
    fn tidy(&self) -> StoreResult<()>;
}

/// A consistent view.
pub trait Snapshot {
    /// The value under a key.
    ///
    /// # Errors
    /// The engine's.
    fn get(&self, table: Table, key: &[u8]) -> StoreResult<Option<Vec<u8>>>;

    /// Rows in the order of their keys, `limit` at most.
    ///
    /// # Errors
    /// The engine's.
    fn range(&self, table: Table, from: Bound<&[u8]>, to: Bound<&[u8]>, limit: usize) -> StoreResult<Vec<Row>>;
}
