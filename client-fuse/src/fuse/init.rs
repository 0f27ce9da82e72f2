//! What is agreed with the kernel when a mount begins.

use fuser::{InitFlags, KernelConfig};

/// Requests that the kernel may have outstanding in the background, such as reading ahead.
const MAX_BACKGROUND: u16 = 128;

/// What is asked of the kernel, each as far as it has it.
///
/// Left out, each for a reason: `WRITEBACK_CACHE` (the kernel would ignore sizes changed by others), `POSIX_LOCKS` and
/// `FLOCK_LOCKS` (the kernel keeps locks itself, for this machine), `POSIX_ACL` (nothing enforces them), `SETXATTR_EXT`,
/// `SECURITY_CTX`, `CREATE_SUPP_GROUP` and `OVER_IO_URING` (fuser does not parse them), `EXPORT_SUPPORT` (it needs
/// lookups of `.` and `..`), `ABORT_ERROR` (the end of an aborted mount would be an error of the session),
/// `CACHE_SYMLINKS` (targets would outlive the attributes' validity), `ATOMIC_O_TRUNC` (with it, an open with O_RDONLY
/// and O_TRUNC has truncated a program that is being run before the kernel says ETXTBSY; without it, a truncation
/// follows the open and costs one request).
const WANTED: &[InitFlags] = &[
    // Lookups and listings in one directory at the same time.
    InitFlags::FUSE_PARALLEL_DIROPS,
    // A changed size or mtime drops the pages; attributes are asked for again on read once they have expired.
    InitFlags::FUSE_AUTO_INVAL_DATA,
    InitFlags::FUSE_ASYNC_READ,
    InitFlags::FUSE_ASYNC_DIO,
    // Files that bypass the page cache can be mapped all the same.
    InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
    // The server applies the umask, so that a directory's default can take its place.
    InitFlags::FUSE_DONT_MASK,
];

/// What is asked for beside that where files are cached whole. `ATOMIC_O_TRUNC` saves fetching what is to be cut off: in
/// this mode a truncation is one of the copy, which goes to the server when a descriptor is closed that was written by.
const WANTED_FOR_COPIES: &[InitFlags] = &[InitFlags::FUSE_ATOMIC_O_TRUNC, InitFlags::FUSE_PASSTHROUGH];

/// What is asked for beside that where files are not cached whole: attributes come with the listing, where programs
/// seem to want them. The kernel takes in what came with a listing a while after it has got the reply, and as if it were
/// new by then: names that were expired in between count again. So where names are good until they are expired, they
/// are looked up one by one, which asks no server.
const WANTED_WITHOUT_COPIES: &[InitFlags] = &[InitFlags::FUSE_DO_READDIRPLUS, InitFlags::FUSE_READDIRPLUS_AUTO];

/// Settles the connection's terms. `max_write` is the largest write that the volume takes, in bytes; `copies` says
/// whether files are cached whole on this machine's disk.
pub(super) fn negotiate(config: &mut KernelConfig, max_write: u32, copies: bool) {
    if copies {
        for flag in WANTED_FOR_COPIES {
            if config.add_capabilities(*flag).is_err() {
                tracing::info!("this kernel does not have {flag:?}; going on without it");
            }
        }
        // The cache may lie on a stacked file system itself, such as a container's overlay.
        if config.set_max_stack_depth(2).is_err() {
            tracing::info!("this kernel does not serve cached files itself");
        }
    }
    let listings = if copies { &[] } else { WANTED_WITHOUT_COPIES };
    for flag in WANTED.iter().chain(listings) {
        if config.add_capabilities(*flag).is_err() {
            tracing::info!("this kernel does not have {flag:?}; going on without it");
        }
    }
    // setuid and setgid bits fall at the server, so the kernel need not ask for `security.capability` before writes.
    if config.add_capabilities(InitFlags::FUSE_HANDLE_KILLPRIV_V2).is_err()
        && config.add_capabilities(InitFlags::FUSE_HANDLE_KILLPRIV).is_err()
    {
        tracing::info!("this kernel clears setuid bits itself, at the cost of a request before writes");
    }
    // Out of range, the nearest value in range is handed back.
    if let Err(nearest) = config.set_max_write(max_write) {
        let _ = config.set_max_write(nearest);
    }
    let _ = config.set_max_background(MAX_BACKGROUND);
}
