//! Larder's client.
//!
//! [`rpc`] keeps the connections to a server; [`vfs`] is the file system that every mode shares; [`mode`] holds the
//! caching policies; [`core`] the pure state machines under both: they take the time as an argument and touch neither
//! socket nor clock. None of these needs a mount, so tests drive them directly. [`fuse`] puts the kernel in front of
//! [`vfs`], and [`cli`] the command line in front of everything.

pub mod cli;
pub mod core;
pub mod failpoint;
pub mod fuse;
pub mod mode;
pub mod rpc;
pub mod vfs;
