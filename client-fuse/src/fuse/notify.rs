//! Telling the kernel what it must forget.

use fuser::{INodeNo, Notifier};

use crate::vfs::Kernel;

/// The way to the kernel of one mount.
pub(super) struct KernelNotifier(Notifier);

impl KernelNotifier {
    pub(super) fn new(notifier: Notifier) -> KernelNotifier {
        KernelNotifier(notifier)
    }
}

impl Kernel for KernelNotifier {
    /// Waits in the kernel until no page of the file is locked, and a page may be locked for a request that is being
    /// served: so never to be called from a thread that serves any.
    fn inval_data(&self, node: u64) {
        // fuser takes it for done if the kernel has no such inode, which is as good.
        if let Err(error) = self.0.inval_inode(INodeNo(node), 0, -1) {
            tracing::debug!("the kernel did not take an invalidation of inode {node}: {error}");
        }
    }

    /// A negative offset leaves the pages alone, so the kernel waits for no lock of theirs.
    fn expire_attrs(&self, node: u64) {
        if let Err(error) = self.0.inval_inode(INodeNo(node), -1, 0) {
            tracing::debug!("the kernel did not take an invalidation of the attributes of inode {node}: {error}");
        }
    }
}
