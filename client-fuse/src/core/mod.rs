//! Pure state machines: no clock, socket or task. Each takes what happened, and the time, and says what to do.

pub mod attr_cache;
pub mod dir_cache;
pub mod extents;
pub mod page_cache;
pub mod promises;
pub mod slots;
pub mod write_behind;
