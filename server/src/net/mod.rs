//! Connections: where they come from, for whom they speak, how their requests are taken and answered.

pub mod connection;
pub mod gate;
pub mod link;
pub mod listener;
pub mod sessions;
