//! Contents in ordinary files.
//!
//! `<directory>/<bits 16 to 23 of the vnode>/<bits 8 to 15>/<vnode>.<version>`, all in hex: vnodes made one after the
//! other share a directory, so that its entry is in memory and one sync of it covers many of them.

mod handles;

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use larder_protocol::service::file::SeekWhat;
use rustix::fs::{Advice, FallocateFlags, SeekFrom};
use rustix::io::Errno;

use self::handles::Handles;
use super::{Content, ContentId, ContentStat, Space};

/// Bytes moved at once where the kernel cannot copy by itself.
const COPY_PIECE: usize = 256 << 10;

/// Content files in a directory.
#[derive(Debug)]
pub struct FileContent {
    directory: PathBuf,
    handles: Handles,
}

impl FileContent {
    /// Opens the directory, and makes it if it is not there.
    ///
    /// # Errors
    /// The operating system's.
    pub fn open(directory: &Path) -> io::Result<FileContent> {
        match fs::create_dir(directory) {
            Ok(()) => {
                if let Some(parent) = directory.parent() {
                    File::open(parent)?.sync_all()?;
                }
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        Ok(FileContent { directory: directory.to_owned(), handles: Handles::new(directory) })
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where a content file is.
    pub fn path(&self, id: ContentId) -> PathBuf {
        self.directory.join(relative_path(id))
    }
}

/// The two levels of directories above a content file.
fn levels(id: ContentId) -> (u8, u8) {
    ((id.vnode >> 16) as u8, (id.vnode >> 8) as u8)
}

fn relative_path(id: ContentId) -> PathBuf {
    let (upper, lower) = levels(id);
    format!("{upper:02x}/{lower:02x}/{:x}.{:x}", id.vnode, id.version).into()
}

/// The content file that a name stands for. Only the name that [`relative_path`] would give counts.
fn parse(upper: &str, lower: &str, name: &str) -> Option<ContentId> {
    let (vnode, version) = name.split_once('.')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    let id = ContentId { vnode: number(vnode)?, version: number(version)? };
    (relative_path(id) == Path::new(&format!("{upper}/{lower}/{name}"))).then_some(id)
}

/// Tries again when a signal came in between.
fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}

fn past_the_end() -> io::Error {
    Errno::FBIG.into()
}

impl Content for FileContent {
    fn create(&self, id: ContentId) -> io::Result<()> {
        self.handles.create(id)
    }

    fn read_cached(&self, id: ContentId, offset: u64, len: usize) -> io::Result<Option<Bytes>> {
        let handle = self.handles.get(id)?;
        let mut buffer = Vec::with_capacity(len);
        if !read_without_waiting(&handle, &mut buffer, offset)? {
            return Ok(None);
        }
        if buffer.len() < len && offset + (buffer.len() as u64) < handle.metadata()?.len() {
            // Not the end of the file but of what is in memory.
            return Ok(None);
        }
        Ok(Some(finished(buffer)))
    }

    fn read(&self, id: ContentId, offset: u64, len: usize) -> io::Result<Bytes> {
        let handle = self.handles.get(id)?;
        let mut buffer = Vec::with_capacity(len);
        while buffer.len() < len {
            let at = offset + buffer.len() as u64;
            // `Vec` may have got more capacity than was asked for.
            let wanted = len - buffer.len();
            let before = buffer.len();
            retry(|| rustix::io::pread(&*handle, rustix::buffer::spare_capacity(&mut buffer), at))?;
            if buffer.len() == before {
                break;
            }
            buffer.truncate(before + wanted);
        }
        Ok(finished(buffer))
    }

    fn write(&self, id: ContentId, mut offset: u64, mut data: &[u8]) -> io::Result<()> {
        let handle = self.handles.get(id)?;
        while !data.is_empty() {
            let written = retry(|| rustix::io::pwrite(&*handle, data, offset))?;
            if written == 0 {
                return Err(ErrorKind::WriteZero.into());
            }
            data = &data[written..];
            offset += written as u64;
        }
        Ok(())
    }

    fn stat(&self, id: ContentId) -> io::Result<ContentStat> {
        let stat = rustix::fs::fstat(&*self.handles.get(id)?)?;
        Ok(ContentStat { size: stat.st_size.cast_unsigned(), blocks: stat.st_blocks.cast_unsigned() })
    }

    fn truncate(&self, id: ContentId, size: u64) -> io::Result<()> {
        let handle = self.handles.get(id)?;
        retry(|| rustix::fs::ftruncate(&*handle, size))
    }

    fn punch(&self, id: ContentId, offset: u64, len: u64) -> io::Result<()> {
        self.allocate(id, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len)
    }

    fn reserve(&self, id: ContentId, offset: u64, len: u64, keep_size: bool) -> io::Result<()> {
        let flags = if keep_size { FallocateFlags::KEEP_SIZE } else { FallocateFlags::empty() };
        self.allocate(id, flags, offset, len)
    }

    fn seek(&self, id: ContentId, offset: u64, what: SeekWhat) -> io::Result<Option<u64>> {
        let handle = self.handles.get(id)?;
        // The descriptor's position is nobody's: all else names its offsets.
        let to = match what {
            SeekWhat::Data => SeekFrom::Data(offset),
            SeekWhat::Hole => SeekFrom::Hole(offset),
        };
        match rustix::fs::seek(&*handle, to) {
            Ok(found) => Ok(Some(found)),
            Err(Errno::NXIO) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn copy(&self, from: ContentId, from_offset: u64, to: ContentId, to_offset: u64, len: u64) -> io::Result<u64> {
        let (source, target) = (self.handles.get(from)?, self.handles.get(to)?);
        let mut copied = 0;
        while copied < len {
            let (mut at, mut put) = (from_offset + copied, to_offset + copied);
            let piece = usize::try_from(len - copied).unwrap_or(usize::MAX).min(1 << 30);
            match rustix::fs::copy_file_range(&*source, Some(&mut at), &*target, Some(&mut put), piece) {
                Ok(0) => break,
                Ok(count) => copied += count as u64,
                Err(Errno::INTR) => {}
                Err(Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP) => {
                    return self.copy_by_hand(from, from_offset, to, to_offset, copied, len);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(copied)
    }

    fn sync(&self, id: ContentId) -> io::Result<()> {
        let handle = self.handles.get(id)?;
        retry(|| rustix::fs::fdatasync(&*handle))?;
        self.handles.sync_name(id)
    }

    fn distrust(&self, id: ContentId) -> io::Result<()> {
        self.handles.forget(id);
        let handle = self.handles.get(id)?;
        Ok(rustix::fs::fadvise(&*handle, 0, None, Advice::DontNeed)?)
    }

    fn remove(&self, id: ContentId) -> io::Result<()> {
        self.handles.forget(id);
        self.handles.forget_name(id);
        match fs::remove_file(self.path(id)) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    fn list(&self, each: &mut dyn FnMut(ContentId), strange: &mut dyn FnMut(String)) -> io::Result<()> {
        let is_level = |name: &str| name.len() == 2 && u8::from_str_radix(name, 16).is_ok();
        for (upper, upper_is_dir) in entries(&self.directory)? {
            if !upper_is_dir || !is_level(&upper) {
                strange(upper);
                continue;
            }
            for (lower, lower_is_dir) in entries(&self.directory.join(&upper))? {
                if !lower_is_dir || !is_level(&lower) {
                    strange(format!("{upper}/{lower}"));
                    continue;
                }
                for (name, is_dir) in entries(&self.directory.join(&upper).join(&lower))? {
                    match parse(&upper, &lower, &name) {
                        Some(id) if !is_dir => each(id),
                        _ => strange(format!("{upper}/{lower}/{name}")),
                    }
                }
            }
        }
        Ok(())
    }

    fn space(&self) -> io::Result<Space> {
        let stat = rustix::fs::statvfs(&self.directory)?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        // File systems that make inodes as they need them count none.
        let files_free = if stat.f_files == 0 { u64::MAX } else { stat.f_favail };
        let (total, free, available) = (bytes(stat.f_blocks), bytes(stat.f_bfree), bytes(stat.f_bavail));
        Ok(Space { total, free, available, files_free })
    }
}

impl FileContent {
    fn allocate(&self, id: ContentId, flags: FallocateFlags, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let handle = self.handles.get(id)?;
        let room = larder_protocol::limits::MAX_FILE_SIZE.checked_sub(offset).ok_or_else(past_the_end)?;
        // A hole may reach past every end; space cannot.
        let len = if flags.contains(FallocateFlags::PUNCH_HOLE) { len.min(room) } else { len };
        if len > room {
            return Err(past_the_end());
        }
        if len == 0 {
            return Ok(());
        }
        retry(|| rustix::fs::fallocate(&*handle, flags, offset, len))
    }

    fn copy_by_hand(
        &self,
        from: ContentId,
        from_offset: u64,
        to: ContentId,
        to_offset: u64,
        mut copied: u64,
        len: u64,
    ) -> io::Result<u64> {
        while copied < len {
            let piece = usize::try_from(len - copied).unwrap_or(usize::MAX).min(COPY_PIECE);
            let data = self.read(from, from_offset + copied, piece)?;
            if data.is_empty() {
                break;
            }
            self.write(to, to_offset + copied, &data)?;
            copied += data.len() as u64;
        }
        Ok(copied)
    }
}

/// Names in a directory, and whether each is a directory itself, in order.
fn entries(directory: &Path) -> io::Result<Vec<(String, bool)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        // A name that is not UTF-8 is none of ours, and stays so in this spelling.
        found.push((entry.file_name().to_string_lossy().into_owned(), entry.file_type()?.is_dir()));
    }
    found.sort_unstable();
    Ok(found)
}

/// Gives back memory that a short read left unused.
fn finished(mut buffer: Vec<u8>) -> Bytes {
    if buffer.len() < buffer.capacity() / 2 {
        buffer.shrink_to_fit();
    }
    buffer.into()
}

/// Fills the spare capacity of `buffer` from the page cache; `false` if the disk would have to be waited for.
fn read_without_waiting(file: impl AsFd, buffer: &mut Vec<u8>, offset: u64) -> io::Result<bool> {
    use std::os::fd::AsRawFd;

    let fd = file.as_fd();
    let spare = buffer.spare_capacity_mut();
    let vector = libc::iovec { iov_base: spare.as_mut_ptr().cast(), iov_len: spare.len() };
    let Ok(offset) = i64::try_from(offset) else { return Ok(true) };
    loop {
        // SAFETY: `fd` is open for as long as it is borrowed; `vector` names exactly the spare capacity of `buffer`,
        // which is borrowed mutably until the last use of `spare`, and the call only writes to it.
        let count = unsafe { libc::preadv2(fd.as_raw_fd(), &raw const vector, 1, offset, libc::RWF_NOWAIT) };
        if let Ok(count) = usize::try_from(count) {
            let len = buffer.len() + count;
            // SAFETY: the kernel has written `count` bytes to the spare capacity, so these are initialised.
            unsafe { buffer.set_len(len) };
            return Ok(true);
        }
        let error = io::Error::last_os_error();
        match Errno::from_io_error(&error) {
            Some(Errno::INTR) => {}
            // Nothing of it is in memory, or the file system cannot tell.
            Some(Errno::AGAIN | Errno::OPNOTSUPP) => return Ok(false),
            _ => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests;
