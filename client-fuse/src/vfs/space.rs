//! Space: reserving and freeing it, finding it, copying within it, and how much there is.

use std::collections::HashMap;
use std::time::Duration;

use larder_protocol::attr::{Credential, VolumeSpace};
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::VolumeId;
use larder_protocol::runtime::BootTime;
use larder_protocol::service::file::{AllocateHow, Op, OpReply, Query, QueryReply, SeekWhat};

use parking_lot::Mutex;

use super::{Error, Vfs, unexpected};

/// What fallocate(2) is asked to do.
fn allocate_how(mode: i32) -> Option<AllocateHow> {
    const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    const ZERO_KEEP: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
    Some(match mode {
        0 => AllocateHow::Reserve,
        libc::FALLOC_FL_KEEP_SIZE => AllocateHow::ReserveKeepSize,
        PUNCH => AllocateHow::Punch,
        libc::FALLOC_FL_ZERO_RANGE => AllocateHow::Zero,
        ZERO_KEEP => AllocateHow::ZeroKeepSize,
        _ => return None,
    })
}

/// How full volumes were a short while ago. Programs that walk a tree ask for it over and over.
#[derive(Default)]
pub(super) struct SpaceCache(Mutex<HashMap<VolumeId, (VolumeSpace, BootTime)>>);

/// How old it may be in AFS mode.
const SPACE_KEPT: Duration = Duration::from_secs(30);

impl SpaceCache {
    fn get(&self, volume: VolumeId, now: BootTime) -> Option<VolumeSpace> {
        let (space, at) = self.0.lock().get(&volume).cloned()?;
        (now.saturating_sub(at) < SPACE_KEPT).then_some(space)
    }

    fn put(&self, volume: VolumeId, space: VolumeSpace, now: BootTime) {
        self.0.lock().insert(volume, (space, now));
    }
}

impl Vfs {
    /// Reserves, frees or zeroes a part of a file (fallocate(2)).
    ///
    /// # Errors
    /// `NotSupported` for other modes; the server's, or that there is no answer.
    pub async fn fallocate(&self, handle: u64, offset: u64, len: u64, mode: i32) -> Result<(), Error> {
        let handle = self.writable(handle)?;
        let how = allocate_how(mode).ok_or(ErrorCode::NotSupported)?;
        if len == 0 {
            return Err(ErrorCode::Invalid.into());
        }
        Vfs::end_of(offset, len)?;
        if let Some(copy) = &handle.copy {
            return self.fallocate_local(&handle, copy, offset, len, mode).await;
        }
        let _exclusive = self.exclusive(&handle.node, &handle.file).await?;
        let op = Op::Allocate { fid: handle.node.fid, offset, len, how };
        let (reply, asked) = self.change(&handle.cred, op).await?;
        match reply {
            OpReply::Attr(change) => {
                self.learn_own(&handle.node, &change, &asked);
                Ok(())
            }
            _ => Err(unexpected()),
        }
    }

    /// The next data or hole (lseek(2)).
    ///
    /// # Errors
    /// `NoSuchRange` if there is none; the server's, or that there is no answer.
    pub async fn lseek(&self, handle: u64, offset: u64, what: SeekWhat) -> Result<u64, Error> {
        let handle = self.handles.file(handle)?;
        if let Some(copy) = &handle.copy {
            return self.lseek_local(&handle, copy, offset, what).await;
        }
        loop {
            let setbacks = handle.file.flow.lock().data.setbacks();
            self.flush_data(&handle.node, &handle.file, false).await?;
            let found = self.servers.query(&handle.cred, Query::Seek { fid: handle.node.fid, offset, what }).await;
            let mut flow = handle.file.flow.lock();
            self.follow_server(handle.node.fid.volume, &mut flow);
            if flow.data.setbacks() != setbacks {
                // A new server process has answered, before it was sent again what the old one lost.
                continue;
            }
            return match found? {
                QueryReply::Offset(offset) => Ok(offset),
                _ => Err(unexpected()),
            };
        }
    }

    /// Copies at the server, and returns how many bytes, which may be fewer than asked.
    ///
    /// # Errors
    /// `CrossVolume` between volumes; the server's, or that there is no answer.
    pub async fn copy_file_range(
        &self,
        handle_in: u64,
        offset_in: u64,
        handle_out: u64,
        offset_out: u64,
        len: u64,
    ) -> Result<u64, Error> {
        let (from, to) = (self.handles.file(handle_in)?, self.writable(handle_out)?);
        if !from.readable {
            return Err(Error::BadHandle);
        }
        if from.node.fid.volume != to.node.fid.volume {
            return Err(ErrorCode::CrossVolume.into());
        }
        if len == 0 {
            return Ok(0);
        }
        Vfs::end_of(offset_out, len)?;
        if let (Some(source), Some(target)) = (&from.copy, &to.copy) {
            return self.copy_local((&from, source, offset_in), (&to, target, offset_out), len).await;
        }
        if self.afs.is_some() {
            // One of them is not cached: the program copies by reading and writing instead.
            return Err(ErrorCode::CrossVolume.into());
        }
        // Committed, so that a restart of the server does not take it from under the copy. Nothing keeps newer data
        // from following, which is in order; taking both files exclusively could deadlock with a copy back.
        self.flush_data(&from.node, &from.file, true).await?;
        let _exclusive = self.exclusive(&to.node, &to.file).await?;
        let op =
            Op::CopyRange { from: from.node.fid, from_offset: offset_in, to: to.node.fid, to_offset: offset_out, len };
        let (reply, asked) = self.change(&to.cred, op).await?;
        match reply {
            OpReply::Copied { len, attr } => {
                self.learn_own(&to.node, &attr, &asked);
                Ok(len)
            }
            _ => Err(unexpected()),
        }
    }

    /// How full the volume is that the node is in.
    ///
    /// # Errors
    /// The server's, or that there is no answer.
    pub async fn statfs(&self, cred: &Credential, node: u64) -> Result<VolumeSpace, Error> {
        let node = self.node(node)?;
        let now = self.runtime.boottime();
        if let Some(space) = self.space.get(node.fid.volume, now).filter(|_| self.afs.is_some()) {
            return Ok(space);
        }
        match self.servers.query(cred, Query::Statfs { fid: node.fid }).await? {
            QueryReply::Space(space) => {
                self.space.put(node.fid.volume, space.clone(), now);
                Ok(space)
            }
            _ => Err(unexpected()),
        }
    }

    /// Whether the caller has all permissions in `mask`.
    ///
    /// # Errors
    /// `AccessDenied` if not; the server's, or that there is no answer.
    pub async fn access(&self, cred: &Credential, node: u64, mask: u32) -> Result<(), Error> {
        let node = self.node(node)?;
        let (reply, asked) = self.ask(cred, Query::Access { fid: node.fid, mask }).await?;
        match reply {
            QueryReply::Access { granted, attr } => {
                self.learn(&node, attr, &asked);
                if granted & mask == mask { Ok(()) } else { Err(ErrorCode::AccessDenied.into()) }
            }
            _ => Err(unexpected()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_modes_of_fallocate_pass() {
        assert_eq!(allocate_how(0), Some(AllocateHow::Reserve));
        assert_eq!(allocate_how(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE), Some(AllocateHow::Punch));
        assert_eq!(allocate_how(libc::FALLOC_FL_PUNCH_HOLE), None);
        assert_eq!(allocate_how(libc::FALLOC_FL_COLLAPSE_RANGE), None);
    }
}
