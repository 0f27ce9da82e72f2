//! What an earlier life of this mount left behind (rule 9 of AFS mode).

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use larder_protocol::attr::{Attr, Credential};
use larder_protocol::error::ErrorCode;
use larder_protocol::runtime::RuntimeExt;
use larder_protocol::service::file::{Query, QueryReply};

use crate::failpoint::Failpoint;
use crate::mode::afs::Afs;
use crate::mode::afs::disk::{CHECK_BLOCK, CacheFile, LeftDirty, checksums_of};
use crate::vfs::{Error, Vfs, unexpected};

/// How long whoever mounts waits for the recovery.
const RECOVERY: Duration = Duration::from_secs(5);

/// What became of a file that was left dirty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Recovered {
    /// It is stored now.
    Stored,
    /// It had been stored, or had no changes.
    WasStored,
    /// It is not stored: the machine was started anew, and what was not synced may be lacking.
    Uncertain,
}

impl Vfs {
    /// Begins to recover what an earlier life left, and waits a while: mostly there is nothing, or little. What takes
    /// longer goes on while the mount is used; a file that programs change before its turn becomes a conflict.
    pub(in crate::vfs) async fn begin_recovery(&self, afs: &Arc<Afs>) {
        // A mount that may change nothing leaves it to one that may.
        let Some(vfs) = self.weak.upgrade().filter(|vfs| !vfs.options.ro) else { return };
        let afs = afs.clone();
        let recovering = self.runtime.detached(async move { vfs.recover(&afs).await });
        tokio::select! {
            biased;
            _ = recovering => {}
            () = self.runtime.sleep(RECOVERY) => tracing::info!("still storing what was being written when the mount ended"),
        }
    }

    /// Stores what an earlier life left dirty, or keeps it as a conflict.
    async fn recover(&self, afs: &Arc<Afs>) {
        for left in afs.disk.left_dirty() {
            let shown = left
                .name
                .as_deref()
                .map_or_else(|| format!("file {}", left.fid), |name| format!("\"{}\"", String::from_utf8_lossy(name)));
            let why = match self.recover_one(afs, &left).await {
                Ok(Recovered::Stored) => {
                    tracing::info!("{shown}, which was being written when the mount ended, is stored now");
                    continue;
                }
                Ok(Recovered::WasStored) => continue,
                Ok(Recovered::Uncertain) => {
                    "the machine was started anew before it was closed, and some of it may be lacking".to_owned()
                }
                // It stays where it is, for the next time.
                Err(Error::Aborted | Error::TimedOut { .. }) => return,
                Err(Error::Refused(code @ (ErrorCode::Offline | ErrorCode::Moved | ErrorCode::NoLocation))) => {
                    tracing::warn!(
                        "{shown} was being written when the mount ended, and cannot be stored now: {code}; the next mount \
                         tries again"
                    );
                    continue;
                }
                Err(Error::Refused(ErrorCode::Conflict)) => "it was changed by another client meanwhile".to_owned(),
                Err(Error::Refused(ErrorCode::Stale)) => "it was removed meanwhile".to_owned(),
                Err(error) => error.to_string(),
            };
            match afs.disk.keep_as_conflict(&left.file, left.base, left.name.as_deref(), &why) {
                Ok(path) => tracing::error!(
                    "{shown} was being written when the mount ended and cannot be stored ({why}); what was written is \
                     kept as {}",
                    path.display()
                ),
                Err(error) => tracing::error!("{shown} cannot be stored ({why}), nor kept as a conflict: {error}"),
            }
        }
    }

    async fn recover_one(&self, afs: &Afs, left: &LeftDirty) -> Result<Recovered, Error> {
        Failpoint::Recovering.pass();
        let cred = Credential { uid: left.uid, gid: left.gid, groups: Vec::new() };
        let (reply, _) = self.ask(&cred, Query::Getattr { fid: left.fid }).await?;
        let QueryReply::Attr(attr) = reply else { return Err(unexpected()) };
        // The store may have been carried out although nobody here has heard of it; and most files that may have been
        // written were not.
        // What is larger than the cache is not kept, and may be a hole of any size.
        let comparable = attr.size == left.size && attr.size <= afs.disk.limit();
        if comparable && self.is_same(&cred, &attr, &left.file).await? {
            self.settle_left(afs, &left.file, attr.data_version, checksums_of(left.file.file()));
            return Ok(Recovered::WasStored);
        }
        if attr.data_version != left.base {
            return Err(ErrorCode::Conflict.into());
        }
        if !left.is_certain {
            // Not only what was written last: of a copy that had not reached the disk when it was opened, anything.
            return Ok(Recovered::Uncertain);
        }
        let (cred, base) = (Arc::new(cred), Some(left.base));
        let (change, asked, checksums) = self.send_store(afs, &left.file, || left.size, &cred, base).await?;
        Failpoint::Recovered.pass();
        let version = change.attr.data_version;
        self.learn_changed(change.attr, &asked, |_| {});
        drop(asked);
        self.settle_left(afs, &left.file, version, Ok(checksums));
        Ok(Recovered::Stored)
    }

    fn settle_left(&self, afs: &Afs, file: &Arc<CacheFile>, version: u64, checksums: io::Result<Vec<u32>>) {
        let settled = checksums.and_then(|checksums| afs.disk.mark_clean(file, version, checksums));
        if let Err(error) = settled {
            tracing::debug!("the cache cannot record that a file is stored: {error}");
        }
    }

    /// Whether the server has the same contents.
    async fn is_same(&self, cred: &Credential, attr: &Attr, file: &Arc<CacheFile>) -> Result<bool, Error> {
        let mut offset = 0;
        while offset < attr.size {
            let len = (attr.size - offset).min(CHECK_BLOCK as u64);
            let query =
                Query::Fetch { fid: attr.fid, offset, len: len as u32, version: Some(attr.data_version), copy: false };
            let (reply, _) = self.ask(cred, query).await?;
            let QueryReply::Data { data, attr: now } = reply else { return Err(unexpected()) };
            let mine = read(file, offset, len as usize).map_err(|error| super::disk_error(&error, "read"))?;
            if now.data_version != attr.data_version || data.0 != mine {
                return Ok(false);
            }
            offset += len;
        }
        Ok(true)
    }
}

fn read(file: &Arc<CacheFile>, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut data = vec![0; len];
    file.file().read_exact_at(&mut data, offset)?;
    Ok(data)
}
