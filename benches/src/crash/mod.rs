//! Breaks things under programs that work, and checks what they were promised.
//!
//! A *run* has rounds. Each round has a *world* ([`world`]: a server, mounts, the network and the disks of both), *workers*
//! with a *workload* each ([`workload`]) and *faults* ([`fault`]), again and again at random times. A workload knows what
//! it was told: what was acknowledged, and what was under way when its mount died and so may have happened or not. After
//! each fault, and at the end, from the same mount and from one that has seen nothing, it checks
//! that what it was told is there and nothing else ([`round`]). What comes of it is an [`outcome`], and a [`report`].
//!
//! - **C1** An operation that fails is a finding, unless its mount was taken down meanwhile or the disk is out of order on
//!   purpose.
//! - **C2** What was acknowledged is there. What was under way is there or not, and not in between.
//! - **C3** A value that was read is at least as new as the last one acknowledged before its file was opened.
//! - **C4** The workers go on after each fault; the store is sound (`larderd check`) after each round.
//! - **C5** When all files are removed, memory, descriptors and room on the disk come back ([`resources`]).

pub mod fault;
pub mod outcome;
pub mod report;
pub mod resources;
pub mod round;
mod watchdog;
mod worker;
pub mod workload;
pub mod world;

pub use fault::Fault;
pub use outcome::{Finding, Outcome, Plan};
