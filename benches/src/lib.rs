//! Tests and measurements of Larder on real mounts.
//!
//! [`server`] and [`mount`] run the two binaries and take them down again, [`cell`] runs both with several
//! volumes, and [`many_servers`] with several servers, [`raw`] speaks the protocol without a mount, [`chores`] are what programs do, [`proxy`] is a network with faults, [`network`] is one
//! of machines, [`mod@etcd`] a directory for cells, [`disk`] and [`medium`] are disks, the second one with power cuts, [`size`]
//! says how much to do, [`wal`] tears a database's log, [`race`] lets two threads race, [`seeds`] runs worlds in virtual
//! time. The tests under `tests/` state one promise each;
//! `docs/semantics.md` cites them by name. [`crash`] breaks things at random and checks all promises at once; [`mod@bench`]
//! measures Larder beside other file systems.

pub mod bench;
pub mod cell;
pub mod chores;
pub mod crash;
pub mod digest;
pub mod disk;
pub mod etcd;
pub mod fuzzing;
pub mod many_servers;
pub mod medium;
pub mod mount;
pub mod network;
pub mod page;
pub mod pass_through;
#[cfg(feature = "failpoints")]
pub mod planted;
pub mod process;
pub mod proxy;
pub mod race;
pub mod raw;
pub mod seeds;
pub mod server;
pub mod size;
pub mod source;
pub mod virtual_clock;
pub mod wal;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// What a thread that panicked left is as good as any.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes a test of each of these functions (`fn(Mode)`) for each caching mode: `nfs::NAME` and `direct::NAME`.
#[macro_export]
macro_rules! in_each_mode {
    ($($name:ident),* $(,)?) => {
        mod nfs {
            $(#[test] fn $name() { super::$name($crate::mount::Mode::Nfs); })*
        }
        mod afs {
            $(#[test] fn $name() { super::$name($crate::mount::Mode::Afs); })*
        }
        mod direct {
            $(#[test] fn $name() { super::$name($crate::mount::Mode::Direct); })*
        }
    };
}

/// Makes a test of each of these functions (`fn(&Mount)`) for each caching mode, `nfs::NAME` and `direct::NAME`, each
/// on a server, a store and a mount of its own.
#[macro_export]
macro_rules! on_a_mount_of_each_mode {
    ($($name:ident),* $(,)?) => {
        mod nfs {
            $(#[test] fn $name() { $crate::mount::with_mount($crate::mount::Mode::Nfs, super::$name); })*
        }
        mod afs {
            $(#[test] fn $name() { $crate::mount::with_mount($crate::mount::Mode::Afs, super::$name); })*
        }
        mod direct {
            $(#[test] fn $name() { $crate::mount::with_mount($crate::mount::Mode::Direct, super::$name); })*
        }
    };
}
