//! Having the system write back early what will be synced later.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use rustix::io::Errno;

/// Begins to bring a range to the disk. Waits for none of it, unless the disk has more to do than it can queue.
pub(super) fn begin(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let range = (i64::try_from(offset), i64::try_from(len));
    let (Ok(offset), Ok(len)) = range else { return Err(Errno::OVERFLOW.into()) };
    // SAFETY: only numbers are passed, and the descriptor is open for as long as `file` is borrowed.
    let failed = unsafe { libc::sync_file_range(file.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE) } != 0;
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}
