//! Decisions without machinery: no clock, executor, socket or file. What has to be known comes in as an argument.

pub mod callbacks;
pub mod fence;
pub mod moving;
pub mod promises;
pub mod replay;
