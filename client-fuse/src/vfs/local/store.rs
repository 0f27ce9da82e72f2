//! Storing whole files at the server (rule 4 of AFS mode).

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use larder_protocol::attr::{Attr, AttrChange, Credential};
use larder_protocol::error::ErrorCode;
use larder_protocol::limits::MAX_PAYLOAD;
use larder_protocol::payload::Payload;
use larder_protocol::service::file::{NewContents, Op, OpReply, StageRequest};
use larder_protocol::sparse::data_ranges;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::copy::{LocalCopy, Unstored};
use super::fetch::disk_error;
use crate::failpoint::Failpoint;
use crate::mode::afs::Afs;
use crate::mode::afs::disk::{CHECK_BLOCK, CacheFile, checksum};
use crate::vfs::asking::Asked;
use crate::vfs::file_state::FileState;
use crate::vfs::node::Node;
use crate::vfs::{Error, Vfs, unexpected};

/// Pieces on their way.
const WINDOW: usize = 8;
/// Times that staging begins anew because the server has no longer what came.
const AGAIN: u32 = 8;
/// How often a store is tried again that got no answer in a soft mount's time.
const RETRY: Duration = Duration::from_secs(5);

/// A piece of a copy to be sent.
struct Piece {
    number: u64,
    data: Bytes,
    checksum: u32,
    /// What of it must be sent: the rest is zeros at its ends.
    part: Range<usize>,
}

fn read_piece(file: &File, number: u64, size: u64) -> io::Result<Piece> {
    let offset = number * CHECK_BLOCK as u64;
    let len = (size - offset).min(CHECK_BLOCK as u64) as usize;
    let mut data = BytesMut::zeroed(len);
    file.read_exact_at(&mut data, offset)?;
    Ok(Piece { number, checksum: checksum(&data), part: without_zeros(&data), data: data.freeze() })
}

/// The numbers of the pieces that are not all hole, in order. Of a file of many terabytes there may be few.
fn pieces_with_data(file: &File, size: u64) -> io::Result<Vec<Range<u64>>> {
    let piece = CHECK_BLOCK as u64;
    let mut found: Vec<Range<u64>> = Vec::new();
    let mut at = 0;
    while at < size {
        // The position of the descriptor means nothing to anybody.
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) if start < size => start,
            Ok(_) | Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(start))?.min(size);
        let pieces = start / piece..end.div_ceil(piece);
        match found.last_mut() {
            Some(last) if pieces.start <= last.end => last.end = last.end.max(pieces.end),
            _ => found.push(pieces),
        }
        at = end.max(start + 1);
    }
    Ok(found)
}

/// The checksums of a file that is all hole.
fn checksums_of_hole(size: u64) -> Vec<u32> {
    let piece = CHECK_BLOCK as u64;
    let whole = if size < piece { 0 } else { checksum(&vec![0; CHECK_BLOCK]) };
    let mut sums = vec![whole; (size / piece) as usize];
    let rest = (size % piece) as usize;
    if rest > 0 {
        sums.push(checksum(&vec![0; rest]));
    }
    sums
}

/// What is left of a piece without the zeros at its ends.
fn without_zeros(data: &[u8]) -> Range<usize> {
    data_ranges(data).reduce(|all, next| all.start..next.end).unwrap_or(0..0)
}

impl Vfs {
    /// Stores a copy's changes, if there are any; who comes while it is being stored waits for that. `writer` is on
    /// whose behalf, if nobody has written by way of this process.
    pub(in crate::vfs) async fn store(
        &self,
        node: &Arc<Node>,
        copy: &Arc<LocalCopy>,
        writer: &Arc<Credential>,
    ) -> Result<(), Error> {
        self.store_unless(node, copy, writer, || false).await
    }

    /// As [`store`](Vfs::store), unless it is somebody else's turn by the time that it begins.
    async fn store_unless(
        &self,
        node: &Arc<Node>,
        copy: &Arc<LocalCopy>,
        writer: &Arc<Credential>,
        is_left_to_others: impl Fn() -> bool,
    ) -> Result<(), Error> {
        let Some(afs) = &self.afs else { return Ok(()) };
        let _turn = self.until_abort(copy.storing.lock()).await?;
        if is_left_to_others() {
            return Ok(());
        }
        let Some(was) = copy.unstored(writer) else { return Ok(()) };
        let writer = was.writer.clone();
        if node.state.lock().kept {
            // It has no name any more, and nobody but this machine's programs can read it.
            return Ok(());
        }
        self.until_abort(copy.wait_whole()).await??;
        if copy.expects_unseen() {
            let stamped = copy.clone();
            self.on_disk(move || stamped.restamp()).await.map_err(|error| disk_error(&error, "sync"))?;
        }
        Failpoint::Storing.pass();
        let (change, asked, checksums) = self.send_store(afs, copy.file(), || copy.size(), &writer, None).await?;
        Failpoint::Stored.pass();
        self.learn_own(node, &change, &asked);
        drop(asked);
        afs.stores.fetch_add(1, Ordering::Relaxed);
        self.is_stored(afs, copy, &was, &change.attr, checksums);
        Failpoint::Settled.pass();
        // What the kernel has are the times that the local file had.
        self.notifier.expire_attrs(node.number);
        Ok(())
    }

    /// Has the server take a file of the cache as the whole contents of what it is a copy of. What that changed, and the
    /// checksums of what was stored. With a `base`, which it must replace, no program that runs has asked for it.
    pub(super) async fn send_store(
        &self,
        afs: &Afs,
        file: &Arc<CacheFile>,
        size: impl Fn() -> u64,
        writer: &Arc<Credential>,
        base: Option<u64>,
    ) -> Result<(AttrChange, Asked, Vec<u32>), Error> {
        for _ in 0..AGAIN {
            let (contents, checksums) = match self.send_contents(afs, file, size(), writer).await {
                Ok(sent) => sent,
                Err(Error::Refused(ErrorCode::NotStaged)) => continue,
                Err(error) => return Err(error),
            };
            Failpoint::Staged.pass();
            let op = Op::Store { fid: file.fid(), contents, base };
            let changed = match base {
                None => self.change(writer, op).await,
                Some(_) => self.change_unasked(writer, op).await,
            };
            match changed {
                Ok((OpReply::Attr(change), asked)) => return Ok((change, asked, checksums)),
                Ok(_) => return Err(unexpected()),
                // The server was restarted after the last piece, or needed the room.
                Err(Error::Refused(ErrorCode::NotStaged)) => {}
                Err(error) => return Err(error),
            }
        }
        // It was not restarted as often as that: what was staged had to make room each time.
        Err(ErrorCode::NoSpace.into())
    }

    fn is_stored(&self, afs: &Afs, copy: &Arc<LocalCopy>, was: &Unstored, attr: &Attr, checksums: Vec<u32>) {
        let _recording = copy.recording.lock();
        let clean = copy.stored(was, attr, &checksums);
        let recorded = if clean && !copy.expects_unseen() {
            afs.unstored.lock().remove(&copy.file().id());
            afs.disk.mark_clean(copy.file(), attr.data_version, checksums)
        } else {
            // What came meanwhile, or may come, is based on what was stored.
            if clean {
                afs.unstored.lock().remove(&copy.file().id());
            }
            afs.disk.mark_dirty(copy.file(), attr.data_version, was.writer.uid, was.writer.gid)
        };
        if let Err(error) = recorded {
            // It is stored; should this process end now, it would be compared with what the server has.
            tracing::debug!("the cache cannot record that a file is stored: {error}");
        }
    }

    /// The contents, as far as they must be sent before the store itself, with the checksums of their parts.
    async fn send_contents(
        &self,
        afs: &Afs,
        file: &Arc<CacheFile>,
        size: u64,
        writer: &Arc<Credential>,
    ) -> Result<(NewContents, Vec<u32>), Error> {
        if size <= MAX_PAYLOAD as u64 {
            if size == 0 {
                return Ok((NewContents::Whole(Payload::default()), Vec::new()));
            }
            let piece = self.piece(file, 0, size).await?;
            return Ok((NewContents::Whole(Payload(piece.data)), vec![piece.checksum]));
        }
        let (fid, stage) = (file.fid(), afs.next_stage());
        let looked = file.clone();
        let found = self.on_disk(move || pieces_with_data(looked.file(), size)).await;
        let found = found.map_err(|error| disk_error(&error, "read"))?;
        // What is larger than the cache is not kept.
        let mut checksums = if size <= afs.disk.limit() { checksums_of_hole(size) } else { Vec::new() };
        let mut note = |(number, sum): (u64, u32)| {
            if let Some(place) = checksums.get_mut(number as usize) {
                *place = sum;
            }
        };
        let send = |number: u64, first: bool| async move {
            let piece = self.piece(file, number, size).await?;
            let sum = (piece.number, piece.checksum);
            if piece.part.is_empty() && !first {
                return Ok(sum);
            }
            let offset = number * CHECK_BLOCK as u64 + piece.part.start as u64;
            let request = StageRequest { fid, stage, first, offset, data: Payload(piece.data.slice(piece.part)) };
            self.servers.stage(writer, request).await?;
            Failpoint::Staging.pass();
            Ok::<_, Error>(sum)
        };
        // Before the others, which must find the stage.
        note(send(0, true).await?);
        let others = found.into_iter().flatten().filter(|number| *number > 0);
        let mut sending = futures::stream::iter(others.map(|number| send(number, false))).buffer_unordered(WINDOW);
        while let Some(sent) = sending.next().await {
            note(sent?);
        }
        Ok((NewContents::Staged { stage, size }, checksums))
    }

    async fn piece(&self, file: &Arc<CacheFile>, number: u64, size: u64) -> Result<Piece, Error> {
        let read = if size <= 64 << 10 {
            read_piece(file.file(), number, size)
        } else {
            let file = file.clone();
            self.on_disk(move || read_piece(file.file(), number, size)).await
        };
        match read {
            Ok(piece) => Ok(piece),
            // It was made shorter meanwhile: whoever did that stores it too.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                let len = ((size - number * CHECK_BLOCK as u64).min(CHECK_BLOCK as u64)) as usize;
                let data = Bytes::from(vec![0; len]);
                Ok(Piece { number, checksum: checksum(&data), part: 0..0, data })
            }
            Err(error) => Err(disk_error(&error, "read")),
        }
    }

    /// The last descriptor of a file that was written is closed, and there are changes that came after its flush.
    /// Returns when they are stored, or kept as a conflict, or left to somebody who opened the file for writing.
    pub(super) async fn store_at_last(
        &self,
        node: &Arc<Node>,
        file: &FileState,
        copy: &Arc<LocalCopy>,
        writer: &Arc<Credential>,
    ) {
        let Some(afs) = &self.afs else { return };
        loop {
            // Who opens it for writing counts before he waits for his turn, so he is seen here or waits for this.
            match self.store_unless(node, copy, writer, || file.is_being_written()).await {
                Ok(()) => return,
                // What is dirty stays so on the disk, and the next mount stores it.
                Err(Error::Aborted) => return,
                Err(Error::TimedOut { .. }) => {
                    if self.until_abort(self.runtime.sleep(RETRY)).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    file.flow.lock().fail(error);
                    if file.is_being_written() {
                        return;
                    }
                    self.keep_conflict(afs, node, copy, &error.to_string());
                    return;
                }
            }
        }
    }

    /// Keeps what cannot be stored beside the files, where its owner finds it.
    pub(super) fn keep_conflict(&self, afs: &Afs, node: &Arc<Node>, copy: &Arc<LocalCopy>, why: &str) {
        afs.unstored.lock().remove(&copy.file().id());
        // The kernel may have pages that the server never got.
        {
            let mut state = node.state.lock();
            state.promise = None;
            if let Some(pages) = state.pages.as_deref_mut() {
                pages.forget();
            }
        }
        self.notifier.expire_attrs(node.number);
        let name = self.path_hint(node);
        match afs.disk.keep_as_conflict(copy.file(), copy.base(), name.as_deref(), why) {
            Ok(path) => tracing::error!(
                "what was written to file {} could not be stored ({why}); it is kept as {}",
                node.fid,
                path.display()
            ),
            Err(error) => tracing::error!(
                "what was written to file {} could not be stored ({why}), nor kept in the cache: {error}",
                node.fid
            ),
        }
    }

    /// Stores everything that has changes. Errors are reported at the next flush or fsync of each file.
    pub(in crate::vfs) async fn store_all(&self) {
        let Some(afs) = &self.afs else { return };
        let unstored: Vec<(Arc<Node>, Arc<LocalCopy>)> = afs.unstored.lock().values().cloned().collect();
        let nobody = Arc::new(Credential::root());
        for (node, copy) in unstored {
            if let Err(error) = self.store(&node, &copy, &nobody).await
                && let Some(file) = node.file()
            {
                file.flow.lock().fail(error);
            }
        }
    }
}
