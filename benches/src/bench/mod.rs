//! Measures Larder beside other file systems: `scripts/bench`.
//!
//! [`candidate`] is what is measured, [`workload`] what it is made to do, [`inputs`] what with, [`run`] the rounds,
//! [`progress`] how far they are, [`meter`] what they cost, [`ping`] what tarpc
//! does, [`memory`] what many files need, [`question`] what depends on
//! what, [`behaviour`] what a client does where there are many, [`scale`] what that comes to where there are more than can be
//! measured, [`statistics`] what can be said of several figures, [`results`] the file that keeps them, [`report`] the page
//! that shows them, and [`compare`] the difference of two runs.

pub mod behaviour;
pub mod candidate;
pub mod compare;
pub mod inputs;
pub mod machine;
pub mod memory;
pub mod meter;
pub mod ping;
pub mod processors;
pub mod progress;
pub mod question;
pub mod report;
pub mod results;
pub mod run;
pub mod scale;
pub mod statistics;
pub mod workload;
