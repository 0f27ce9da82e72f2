//! Telling the kernel what it must forget.

use std::os::fd::OwnedFd;

use fuser::{INodeNo, Notifier};

use crate::vfs::Kernel;

/// `FUSE_NOTIFY_INC_EPOCH` of the kernel's `uapi/linux/fuse.h`, since Linux 6.16: every name that the kernel knows is to
/// be looked up again before it is used. fuser has no call for it.
const NOTIFY_INC_EPOCH: i32 = 8;

/// The way to the kernel of one mount.
pub(super) struct KernelNotifier {
    notifier: Notifier,
    device: OwnedFd,
    has_mounts_inside: Box<dyn Fn() -> bool + Send + Sync>,
}

impl KernelNotifier {
    /// `device` is a descriptor of the session's own.
    pub(super) fn new(
        notifier: Notifier,
        device: OwnedFd,
        has_mounts_inside: Box<dyn Fn() -> bool + Send + Sync>,
    ) -> KernelNotifier {
        KernelNotifier { notifier, device, has_mounts_inside }
    }
}

/// A `fuse_out_header` alone: its length, the code in place of an error, and no request that it answers.
fn message(code: i32) -> [u8; 16] {
    let mut message = [0; 16];
    message[..4].copy_from_slice(&16u32.to_ne_bytes());
    message[4..8].copy_from_slice(&code.to_ne_bytes());
    message
}

impl Kernel for KernelNotifier {
    /// Waits in the kernel until no page of the file is locked, and a page may be locked for a request that is being
    /// served: so never to be called from a thread that serves any.
    fn inval_data(&self, node: u64) {
        // fuser takes it for done if the kernel has no such inode, which is as good.
        if let Err(error) = self.notifier.inval_inode(INodeNo(node), 0, -1) {
            tracing::debug!("the kernel did not take an invalidation of inode {node}: {error}");
        }
    }

    /// A negative offset leaves the pages alone, so the kernel waits for no lock of theirs.
    fn expire_attrs(&self, node: u64) {
        if let Err(error) = self.notifier.inval_inode(INodeNo(node), -1, 0) {
            tracing::debug!("the kernel did not take an invalidation of the attributes of inode {node}: {error}");
        }
    }

    /// Raises a number that each name is compared with when it is used, so no lock is taken. The kernel detaches what
    /// is mounted under a name that it finds outdated, so it is not told while anything is.
    fn expire_names(&self) -> bool {
        !(self.has_mounts_inside)() && rustix::io::write(&self.device, &message(NOTIFY_INC_EPOCH)).is_ok()
    }
}
