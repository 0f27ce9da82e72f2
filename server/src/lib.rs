//! Larder's server: the store that keeps volumes, and the service that clients reach it by.

pub mod cli;
pub mod config;
pub mod core;
pub mod failpoint;
pub mod location;
pub mod moving;
pub mod net;
pub mod promises;
pub mod service;
pub mod stats;
pub mod store;
pub mod volume;
