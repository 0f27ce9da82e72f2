//! Telling the kernel what it must forget.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use fuser::{INodeNo, Notifier};
use larder_protocol::name::Name;

use crate::vfs::Kernel;

/// `FUSE_NOTIFY_INC_EPOCH` of the kernel's `uapi/linux/fuse.h`, since Linux 6.16: every name that the kernel knows is to
/// be looked up again before it is used. fuser has no call for it.
const NOTIFY_INC_EPOCH: i32 = 8;

/// `FUSE_NOTIFY_INVAL_INODE`. fuser's own call does not tell when the kernel has no such inode.
const NOTIFY_INVAL_INODE: i32 = 2;

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

/// A `fuse_out_header` (the length of all, the code in place of an error, and no request that it answers), and `body`
/// behind it.
fn message<const N: usize>(code: i32, body: &[u8]) -> [u8; N] {
    let mut message = [0; N];
    message[..4].copy_from_slice(&(N as u32).to_ne_bytes());
    message[4..8].copy_from_slice(&code.to_ne_bytes());
    message[16..].copy_from_slice(body);
    message
}

/// A `fuse_notify_inval_inode_out` for the attributes alone, which is what a negative offset stands for.
fn attrs_of(node: u64) -> [u8; 24] {
    let mut body = [0; 24];
    body[..8].copy_from_slice(&node.to_ne_bytes());
    body[8..16].copy_from_slice(&(-1i64).to_ne_bytes());
    body
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

    /// Takes the directory's lock, which a program holds whose change of it is being served.
    fn inval_name(&self, dir: u64, name: &Name) {
        // As above: what the kernel does not know is as good.
        if let Err(error) = self.notifier.inval_entry(INodeNo(dir), OsStr::from_bytes(name.as_bytes())) {
            tracing::debug!("the kernel did not take an invalidation of {name:?} in inode {dir}: {error}");
        }
    }

    /// The pages are left alone, so the kernel waits for no lock of theirs.
    fn expire_attrs(&self, node: u64) -> bool {
        match rustix::io::write(&self.device, &message::<40>(NOTIFY_INVAL_INODE, &attrs_of(node))) {
            Ok(_) => true,
            Err(rustix::io::Errno::NOENT) => false,
            Err(error) => {
                tracing::debug!("the kernel did not take an invalidation of the attributes of inode {node}: {error}");
                true
            }
        }
    }

    /// Raises a number that each name is compared with when it is used, so no lock is taken. The kernel detaches what
    /// is mounted under a name that it finds outdated, so it is not told while anything is.
    fn expire_names(&self) -> bool {
        !(self.has_mounts_inside)() && rustix::io::write(&self.device, &message::<16>(NOTIFY_INC_EPOCH, &[])).is_ok()
    }
}
