//! The destination's part: it runs the move.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use larder_protocol::cell::{ServerId, ServerRecord, VolumeRecord};
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::{Epoch, VolumeId};
use larder_protocol::runtime::RuntimeExt;
use larder_protocol::service::admin::AdminError;
use larder_protocol::service::transfer::{
    ContentName, ContentPiece, MovePhase, MoveStatus, RowNow, TransferReply, TransferRequest,
};
use parking_lot::Mutex;
use tracing::{info, warn};

use super::error;
use super::pace::Pace;
use crate::core::moving::{self, NotNow};
use crate::failpoint::Failpoint;
use crate::location::{Cell, LocationError};
use crate::net::link::{Link, LinkError};
use crate::service::Server;
use crate::volume::arriving::{Arriving, RowChange};
use crate::volume::content::files::FileContent;
use crate::volume::content::{Content, ContentId};
use crate::volume::error::StoreError;
use crate::volume::keys::Table;
use crate::volume::record::FORMAT;

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(30);
/// How long clients may take to give up their callbacks: as long as a lease, and the source's own start.
const PREPARED: Duration = Duration::from_secs(180);
/// The pause before what failed is tried again, and the longest; it doubles.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Files copied beside each other, and pieces of one.
const BESIDE: usize = 8;
/// Bytes of a file that are copied one after the other, beside others.
const SPAN: u64 = 16 << 20;
/// Of these at most.
const SPANS: u64 = 64;
/// Rows and parts of files that may be left to be copied while programs wait.
const FEW: u64 = 512;
/// How often what has changed is copied before programs wait, however much is left.
const ROUNDS: usize = 16;
/// Bytes after which what was copied is made durable, so that it need not be copied again.
const REMEMBER: u64 = 256 << 20;

/// Volumes that this server fetches from others.
#[derive(Default)]
pub struct Arrivals(Mutex<BTreeMap<VolumeId, Arc<Arrival>>>);

/// A volume that this server fetches.
pub struct Arrival {
    volume: VolumeId,
    token: u64,
    pace: Pace,
    copied: AtomicU64,
    status: Mutex<MoveStatus>,
}

/// Why an attempt ended.
enum Failed {
    /// It may go better another time.
    Now(String),
    /// It will not.
    ForGood(AdminError),
}

impl From<LinkError> for Failed {
    fn from(cause: LinkError) -> Failed {
        Failed::Now(format!("the server that has it does not answer: {cause}"))
    }
}

impl From<AdminError> for Failed {
    fn from(cause: AdminError) -> Failed {
        Failed::Now(format!("the server that has it says: {cause}"))
    }
}

impl From<io::Error> for Failed {
    fn from(cause: io::Error) -> Failed {
        if matches!(cause.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            return full();
        }
        Failed::Now(format!("what was copied cannot be written: {cause}"))
    }
}

impl From<StoreError> for Failed {
    fn from(cause: StoreError) -> Failed {
        match cause {
            StoreError::Full => full(),
            StoreError::Io(cause) => cause.into(),
            StoreError::Corrupt(cause) => Failed::ForGood(error(
                ErrorCode::Io,
                format!("what came is damaged: {cause}; stop the server that has the volume and run `larderd check`"),
            )),
            cause => Failed::Now(format!("what was copied cannot be written: {cause}")),
        }
    }
}

fn full() -> Failed {
    Failed::ForGood(error(ErrorCode::NoSpace, "there is no room for the volume on the disk of this server"))
}

fn strange() -> Failed {
    Failed::Now(
        "the server that has it answered something else than was asked; it may be of another version".to_owned(),
    )
}

impl Arrival {
    fn at(&self, phase: MovePhase) {
        let mut status = self.status.lock();
        status.phase = phase;
        status.problem = None;
    }

    fn took(&self, bytes: u64) {
        self.copied.fetch_add(bytes, Ordering::Relaxed);
    }

    fn is_over(&self) -> bool {
        self.status.lock().result.is_some()
    }

    fn status(&self) -> MoveStatus {
        let copied = self.copied.load(Ordering::Relaxed);
        let status = self.status.lock().clone();
        MoveStatus { copied, total: status.total.max(copied), ..status }
    }
}

/// What an attempt works with.
struct Copying<'a> {
    server: Arc<Server>,
    arrival: Arc<Arrival>,
    link: &'a Link,
    number: u64,
    arriving: Arc<Mutex<Arriving>>,
    content: Arc<FileContent>,
    /// Whether programs wait: then nothing else is waited for.
    is_frozen: bool,
    /// Files that were written since all were made durable.
    unsynced: BTreeSet<ContentId>,
}

/// Some ranges of a content file.
struct Ranges {
    id: ContentId,
    ranges: Vec<(u64, Option<u64>)>,
    /// Of a file that is copied whole, the change attribute of its data.
    whole: Option<u64>,
}

impl Server {
    /// Fetches a volume from the server that has it, or goes on with that.
    pub(crate) async fn fetch_volume(
        self: &Arc<Self>,
        volume: VolumeId,
        limit: Option<u64>,
    ) -> Result<MoveStatus, AdminError> {
        let _turn = self.administering().lock().await;
        let cell = self.cell()?;
        let token = self.runtime().random();
        let record = match cell.update(volume, |record| Ok(moving::begin(record, self.id(), token).map(drop)?)).await {
            Ok(record) => record,
            Err(LocationError::Moving(NotNow::There)) => {
                // The move that was asked for may be the one that has just ended.
                let last = self.arrivals().0.lock().get(&volume).map(|arrival| arrival.status());
                return Ok(last.unwrap_or_else(|| ended(volume, self.id(), Ok(()))));
            }
            Err(reason) => return Err(reason.into()),
        };
        let token = record.moving.map_or(token, |moving| moving.token);
        // Not one that was given up, and has not seen it yet.
        if let Some(arrival) = self.arrivals().running(volume).filter(|arrival| arrival.token == token) {
            arrival.pace.set(limit);
            return Ok(arrival.status());
        }
        info!("volume {volume} ({}) moves here from the server {}", record.name, record.server);
        let status = MoveStatus { phase: MovePhase::Copying, result: None, ..ended(volume, self.id(), Ok(())) };
        let arrival = Arc::new(Arrival {
            volume,
            token,
            pace: Pace::new(limit, self.runtime().clone()),
            copied: AtomicU64::new(0),
            status: Mutex::new(status),
        });
        self.arrivals().0.lock().insert(volume, arrival.clone());
        let running = self.tracked(self.clone().run_arrival(arrival.clone()));
        self.runtime().spawn(Box::pin(running));
        Ok(arrival.status())
    }

    /// How far that is.
    pub(crate) fn arrival_status(&self, volume: VolumeId) -> Result<MoveStatus, AdminError> {
        let arrival = self.arrivals().0.lock().get(&volume).cloned();
        let none = || error(ErrorCode::NoSuchVolume, format!("this server fetches no volume {volume}"));
        Ok(arrival.ok_or_else(none)?.status())
    }

    /// Puts volumes in their places that an earlier process has fetched whole, and removes what it has of those that do not
    /// come here any more. Before anything is served.
    pub(crate) async fn settle_arrivals(self: &Arc<Self>) -> anyhow::Result<()> {
        let Ok(cell) = self.cell() else { return Ok(()) };
        let as_error = |cause: String| anyhow::anyhow!(cause);
        for id in self.volumes().arrivals().await.map_err(as_error)? {
            match cell.known(id) {
                Some(record) if record.server == self.id() => {
                    info!("volume {id} ({}) has moved here", record.name);
                    self.volumes().install(id, &record.name).await.map_err(as_error)?;
                }
                Some(record) if record.moving.is_some_and(|moving| moving.to == self.id()) => {
                    info!("volume {id} ({}) was moving here; `larder volume move` goes on with that", record.name);
                }
                _ => self.volumes().drop_arriving(id).await.map_err(as_error)?,
            }
        }
        Ok(())
    }

    async fn run_arrival(self: Arc<Self>, arrival: Arc<Arrival>) {
        let volume = arrival.volume;
        let mut pause = AGAIN.0;
        let result = loop {
            let copied = arrival.copied.load(Ordering::Relaxed);
            let attempt = tokio::select! {
                biased;
                () = self.ending() => return,
                attempt = self.clone().attempt(&arrival) => attempt,
            };
            match attempt {
                Ok(()) => break Ok(()),
                Err(Failed::ForGood(reason)) => break Err(reason),
                Err(Failed::Now(problem)) => {
                    warn!("volume {volume} cannot be moved here just now: {problem}; trying again");
                    arrival.status.lock().problem = Some(problem);
                }
            }
            if arrival.copied.load(Ordering::Relaxed) > copied {
                pause = AGAIN.0;
            }
            tokio::select! {
                biased;
                () = self.ending() => return,
                () = self.runtime().sleep(pause) => {}
            }
            pause = AGAIN.1.min(pause * 2);
        };
        if let Err(reason) = &result {
            warn!("volume {volume} does not move here: {reason}");
            self.give_up_arrival(&arrival).await;
        }
        let mut status = arrival.status.lock();
        (status.phase, status.problem, status.result) = (MovePhase::Ended, None, Some(result));
    }

    async fn give_up_arrival(self: &Arc<Self>, arrival: &Arrival) {
        let Ok(cell) = self.cell() else { return };
        let (here, token) = (self.id(), arrival.token);
        if let Err(reason) = cell.update(arrival.volume, |record| Ok(moving::decline(record, here, token)?)).await {
            info!("volume {}: {reason}", arrival.volume);
        }
        // What is here may be the volume by now, or nobody can tell.
        let is_elsewhere = match cell.volume(arrival.volume).await {
            Ok(record) => record.server != here,
            Err(LocationError::NoSuchVolume(_)) => true,
            Err(_) => false,
        };
        if !is_elsewhere {
            return;
        }
        if let Err(cause) = self.volumes().drop_arriving(arrival.volume).await {
            warn!("{cause}");
        }
    }

    /// The record, if the volume is to come here still; nothing if it is here.
    async fn moving_here(&self, cell: &Cell, arrival: &Arrival) -> Result<Option<VolumeRecord>, Failed> {
        let record = match cell.volume(arrival.volume).await {
            Err(LocationError::NoSuchVolume(_)) => {
                return Err(Failed::ForGood(error(ErrorCode::NoSuchVolume, "the volume is no more")));
            }
            record => record.map_err(|reason| Failed::Now(reason.to_string()))?,
        };
        if record.server == self.id() {
            return Ok(None);
        }
        let is_it = record.moving.is_some_and(|moving| moving.to == self.id() && moving.token == arrival.token);
        if !is_it {
            return Err(Failed::ForGood(error(ErrorCode::Busy, "the move was given up")));
        }
        Ok(Some(record))
    }

    async fn attempt(self: Arc<Self>, arrival: &Arc<Arrival>) -> Result<(), Failed> {
        let cell = self.cell().map_err(Failed::ForGood)?;
        let Some(record) = self.moving_here(cell, arrival).await? else {
            // It was entered, and the answer was lost.
            let name = cell.known(arrival.volume).map_or_else(String::new, |record| record.name);
            return self.take_its_place(arrival, &name).await;
        };
        // A copy from an earlier time, which the volume has left.
        self.volumes().remove_departed(arrival.volume).await.map_err(Failed::Now)?;
        if let Some(dir) = self.volumes().directory(arrival.volume) {
            let text = format!("{} is in its place at this server; move it away", dir.display());
            return Err(Failed::ForGood(error(ErrorCode::Busy, text)));
        }
        let source = self.address_of(cell, &record).await?;
        let link = Link::new(source, self.runtime().clone());
        let done = self.copy_over(cell, arrival, &record, &link).await;
        link.close().await;
        done
    }

    async fn address_of(&self, cell: &Cell, record: &VolumeRecord) -> Result<String, Failed> {
        let address = |server: ServerRecord| server.address;
        if let Some(known) = cell.server(record.server).map(address) {
            return Ok(known);
        }
        cell.refresh().await.map_err(|reason| Failed::Now(reason.to_string()))?;
        let gone = || Failed::Now(format!("the server that has it, {}, is not there", record.server));
        cell.server(record.server).map(address).ok_or_else(gone)
    }

    async fn copy_over(
        self: &Arc<Self>,
        cell: &Cell,
        arrival: &Arc<Arrival>,
        record: &VolumeRecord,
        link: &Link,
    ) -> Result<(), Failed> {
        arrival.at(MovePhase::Copying);
        let (volume, token) = (arrival.volume, arrival.token);
        let begun = ask(link, ANSWER, TransferRequest::Begin { volume, token }).await?;
        let TransferReply::Begun { number, format, bytes, lives } = begun else { return Err(strange()) };
        if format != FORMAT {
            let text = format!("the server that has it keeps volumes in format {format}, and this one in {FORMAT}");
            return Err(Failed::ForGood(error(ErrorCode::NotSupported, text)));
        }
        arrival.status.lock().total = bytes;
        arrival.copied.store(0, Ordering::Relaxed);
        let dir = self.volumes().arriving(volume).await.map_err(Failed::Now)?;
        let opened = self.runtime().blocking(move || Arriving::open(&dir)).await;
        let arriving = opened.ok_or_else(strange)??;
        let content = arriving.content();
        let mut copying = Copying {
            server: self.clone(),
            arrival: arrival.clone(),
            link,
            number,
            arriving: Arc::new(Mutex::new(arriving)),
            content,
            is_frozen: false,
            unsynced: BTreeSet::new(),
        };
        copying.copy_all().await?;
        Failpoint::Copied.pass();
        arrival.at(MovePhase::CatchingUp);
        for _ in 0..ROUNDS {
            let changed = copying.catch_up().await?;
            copying.remember().await?;
            if changed <= FEW {
                break;
            }
        }
        arrival.at(MovePhase::Preparing);
        done(ask(link, PREPARED, TransferRequest::Prepare { number }).await?)?;
        // What little this is is made durable file by file.
        copying.catch_up().await?;
        arrival.at(MovePhase::Switching);
        let frozen_at = self.runtime().boottime();
        copying.is_frozen = true;
        let here = self.lives();
        let switched = async {
            done(ask(link, ANSWER, TransferRequest::Freeze { number }).await?)?;
            copying.catch_up().await?;
            Failpoint::CopiedLast.pass();
            let name = copying.finish(lives, here).await?;
            Failpoint::Arrived.pass();
            self.commit_arrival(cell, arrival).await?;
            Ok::<_, Failed>(name)
        };
        self.volumes().expect(volume);
        if let Err(failed) = switched.await {
            self.volumes().unexpect(volume);
            // It would go on by itself, only later.
            let _ = ask(link, ANSWER, TransferRequest::Thaw { number }).await;
            return Err(failed);
        }
        Failpoint::MoveCommitted.pass();
        drop(copying);
        self.take_its_place(arrival, &record.name).await?;
        let frozen_for = self.runtime().boottime().saturating_sub(frozen_at);
        arrival.status.lock().frozen_for = Some(frozen_for.as_millis() as u64);
        info!("volume {volume} ({}) has moved here; nobody served it for {} ms", record.name, frozen_for.as_millis());
        // It finds out by itself, too, only later: and answers until then that it is not ready.
        if let Err(reason) = ask(link, ANSWER, TransferRequest::Moved { volume }).await.and_then(done) {
            let (Failed::Now(reason) | Failed::ForGood(AdminError { text: reason, .. })) = reason;
            warn!("volume {volume} has moved here: {reason}");
        }
        Ok(())
    }

    /// The commit point (M1 of `core::moving`).
    async fn commit_arrival(&self, cell: &Cell, arrival: &Arrival) -> Result<(), Failed> {
        let (here, token) = (self.id(), arrival.token);
        loop {
            match cell.update(arrival.volume, |record| Ok(moving::commit(record, here, token)?)).await {
                Ok(_) => return Ok(()),
                Err(LocationError::Moving(reason @ NotNow::Thawed)) => return Err(Failed::Now(reason.to_string())),
                Err(LocationError::Registry(reason)) => {
                    // Whether it took place is not known. The source asks, too, and thaws what has not moved.
                    warn!("volume {}: whether it has moved here is not known: {reason}", arrival.volume);
                    arrival.status.lock().problem = Some(reason.to_string());
                }
                Err(reason) => return Err(Failed::ForGood(reason.into())),
            }
            tokio::select! {
                biased;
                () = self.ending() => return Err(Failed::Now("the server is ending".to_owned())),
                () = self.runtime().sleep(AGAIN.0) => {}
            }
        }
    }

    async fn take_its_place(self: &Arc<Self>, arrival: &Arrival, name: &str) -> Result<(), Failed> {
        let volume = arrival.volume;
        if self.volumes().arrivals().await.map_err(Failed::Now)?.contains(&volume) {
            self.volumes().install(volume, name).await.map_err(Failed::Now)?;
        }
        Failpoint::Installed.pass();
        Ok(())
    }
}

impl Arrivals {
    fn running(&self, volume: VolumeId) -> Option<Arc<Arrival>> {
        self.0.lock().get(&volume).filter(|arrival| !arrival.is_over()).cloned()
    }
}

impl Copying<'_> {
    /// Copies everything.
    async fn copy_all(&mut self) -> Result<(), Failed> {
        for table in Table::ALL {
            let mut after: Option<Bytes> = None;
            loop {
                let number = self.number;
                let request = TransferRequest::Rows { number, table: *table as u8, after: after.take() };
                let TransferReply::Rows { rows, end } = ask(self.link, ANSWER, request).await? else {
                    return Err(strange());
                };
                after = rows.last().map(|row| row.key.clone());
                let is_over = end || after.is_none();
                self.apply(rows).await?;
                if is_over {
                    break;
                }
            }
        }
        let arriving = self.arriving.clone();
        self.blocking(move || arriving.lock().drop_unused()).await??;
        self.copy_wanted(Vec::new()).await?;
        self.remember().await
    }

    /// Copies what has changed, and says how much more has by now: rows and parts of files.
    async fn catch_up(&mut self) -> Result<u64, Failed> {
        let mut changed = BTreeMap::new();
        let left = loop {
            let request = TransferRequest::Changes { number: self.number };
            let TransferReply::Changes { rows, contents, left, end } = ask(self.link, ANSWER, request).await? else {
                return Err(strange());
            };
            self.apply(rows).await?;
            for change in contents {
                let ranges: &mut Vec<_> = changed.entry(id_of(change.content)).or_default();
                ranges.extend(change.ranges);
            }
            // While programs go on there is always more; what came since is for the next round.
            if end {
                break left;
            }
        };
        let follows: Vec<Ranges> = {
            let arriving = self.arriving.lock();
            let ranges = changed.into_iter().filter(|(id, _)| arriving.follows(*id));
            ranges.map(|(id, ranges)| Ranges { id, ranges, whole: None }).collect()
        };
        self.copy_wanted(follows).await?;
        Ok(left)
    }

    async fn apply(&mut self, rows: Vec<RowNow>) -> Result<(), Failed> {
        if rows.is_empty() {
            return Ok(());
        }
        let bytes =
            rows.iter().map(|row| row.key.len() + row.value.as_ref().map_or(0, |value| value.len())).sum::<usize>();
        let rows = rows.into_iter().map(change).collect::<Result<Vec<RowChange>, Failed>>()?;
        let arriving = self.arriving.clone();
        self.blocking(move || arriving.lock().apply(rows)).await??;
        self.took(bytes as u64).await;
        Ok(())
    }

    /// Copies these ranges, and the files that rows have shown to be needed.
    async fn copy_wanted(&mut self, changed: Vec<Ranges>) -> Result<(), Failed> {
        let wanted = self.arriving.lock().take_wanted();
        let whole = |(id, data)| Ranges { id, ranges: vec![(0, None)], whole: Some(data) };
        let files: Vec<Ranges> = changed.into_iter().chain(wanted.into_iter().map(whole)).collect();
        self.unsynced.extend(files.iter().map(|file| file.id));
        let mut since = self.arrival.copied.load(Ordering::Relaxed);
        let mut files = files.into_iter();
        loop {
            // Some at a time, so that what was copied is remembered in between.
            let some: Vec<Ranges> = files.by_ref().take(BESIDE * BESIDE).collect();
            if some.is_empty() {
                return Ok(());
            }
            let copies = futures::stream::iter(some.into_iter().map(|file| self.copy_file(file)));
            let copied: Vec<Result<Option<(ContentId, u64)>, Failed>> = copies.buffer_unordered(BESIDE).collect().await;
            for one in copied {
                if let Some((id, data)) = one? {
                    self.arriving.lock().copied(id, data);
                }
            }
            let now = self.arrival.copied.load(Ordering::Relaxed);
            if !self.is_frozen && now - since >= REMEMBER {
                since = now;
                self.remember().await?;
            }
        }
    }

    /// Copies ranges of a file. Returns it if it was copied whole, and is as its record says.
    async fn copy_file(&self, file: Ranges) -> Result<Option<(ContentId, u64)>, Failed> {
        let Ranges { id, ranges, whole } = file;
        let content = self.content.clone();
        let is_new = whole.is_some();
        self.blocking(move || {
            if is_new {
                content.remove(id)?;
            }
            content.create(id)
        })
        .await??;
        let (mut size, mut has_changed) = (None, false);
        for (start, end) in ranges {
            let Some(first) = self.copy_piece(id, start, end.unwrap_or(u64::MAX), is_new).await? else {
                return Ok(None);
            };
            let stop = end.unwrap_or(u64::MAX).min(first.size);
            // Few, however large the file is: most of it may be a hole.
            let span = SPAN.max(stop.saturating_sub(first.end).div_ceil(SPANS));
            let spans = (first.end..stop).step_by(span as usize);
            let spans = spans.map(|from| (from, stop.min(from.saturating_add(span))));
            let spans = futures::stream::iter(spans).map(|(from, to)| self.copy_span(id, from, to, is_new));
            let spans: Vec<Result<Option<ContentPiece>, Failed>> = spans.buffered(BESIDE / 2).collect().await;
            let mut last = first;
            for span in spans {
                match span? {
                    Some(piece) => last = ContentPiece { has_changed: last.has_changed || piece.has_changed, ..piece },
                    None => return Ok(None),
                }
            }
            (size, has_changed) = (Some(last.size), has_changed || last.has_changed);
        }
        if let Some(size) = size {
            let content = self.content.clone();
            self.blocking(move || if content.stat(id)?.size == size { Ok(()) } else { content.truncate(id, size) })
                .await??;
        }
        Ok(whole.filter(|_| !has_changed).map(|data| (id, data)))
    }

    /// Copies a range, piece by piece. Returns what was told with the last one.
    async fn copy_span(
        &self,
        id: ContentId,
        start: u64,
        end: u64,
        is_new: bool,
    ) -> Result<Option<ContentPiece>, Failed> {
        let (mut at, mut has_changed) = (start, false);
        loop {
            let Some(piece) = self.copy_piece(id, at, end, is_new).await? else { return Ok(None) };
            has_changed |= piece.has_changed;
            if piece.end >= end.min(piece.size) || piece.end <= at {
                return Ok(Some(ContentPiece { has_changed, ..piece }));
            }
            at = piece.end;
        }
    }

    /// Copies a piece from an offset on, and returns what was told with it; nothing if there is no such content file any more.
    async fn copy_piece(
        &self,
        id: ContentId,
        offset: u64,
        end: u64,
        is_new: bool,
    ) -> Result<Option<ContentPiece>, Failed> {
        let content = ContentName { vnode: id.vnode, version: id.version };
        let request = TransferRequest::Content { number: self.number, content, offset, end };
        let TransferReply::Content(piece) = ask(self.link, ANSWER, request).await? else { return Err(strange()) };
        let Some(mut piece) = piece else {
            if self.is_frozen {
                warn!("volume {}: the contents of vnode {} are missing", self.arrival.volume, id.vnode);
            }
            return Ok(None);
        };
        let bytes = piece.data.iter().map(|(_, data)| data.len() as u64).sum();
        let (data, until, content) = (std::mem::take(&mut piece.data), piece.end, self.content.clone());
        self.blocking(move || {
            let is_whole = matches!(&data[..], [(at, data)] if *at == offset && at + data.len() as u64 == until);
            if !is_new && !is_whole && until > offset {
                content.punch(id, offset, until - offset)?;
            }
            data.iter().try_for_each(|(at, data)| content.write(id, *at, &data.0))
        })
        .await??;
        self.took(bytes).await;
        Ok(Some(piece))
    }

    async fn took(&self, bytes: u64) {
        self.arrival.took(bytes);
        if !self.is_frozen {
            self.arrival.pace.took(bytes).await;
        }
    }

    /// Makes durable what was copied, so that it need not be copied again, nor made durable while programs wait.
    async fn remember(&mut self) -> Result<(), Failed> {
        let arriving = self.arriving.clone();
        self.blocking(move || arriving.lock().sync_contents()).await??;
        self.unsynced.clear();
        Ok(())
    }

    /// All is here: makes the rest durable (M5). Returns the volume's name.
    async fn finish(&mut self, lives: Vec<Epoch>, here: Vec<Epoch>) -> Result<String, Failed> {
        let syncs = std::mem::take(&mut self.unsynced).into_iter().map(|id| {
            let content = self.content.clone();
            self.blocking(move || match content.sync(id) {
                // It went with its vnode, or was never there.
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                done => done,
            })
        });
        let synced: Vec<_> = futures::stream::iter(syncs).buffer_unordered(BESIDE).collect().await;
        synced.into_iter().try_for_each(|done| Ok::<_, Failed>(done??))?;
        let (arriving, volume) = (self.arriving.clone(), self.arrival.volume);
        Ok(self.blocking(move || arriving.lock().finish(volume, &lives, &here)).await??)
    }

    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failed> {
        self.server.runtime().blocking(work).await.ok_or_else(|| Failed::Now("the server met a defect".to_owned()))
    }
}

async fn ask(link: &Link, time: Duration, request: TransferRequest) -> Result<TransferReply, Failed> {
    Ok(link.ask(time, |client, context| async move { client.transfer(context, request).await }).await??)
}

fn done(reply: TransferReply) -> Result<(), Failed> {
    if reply == TransferReply::Done { Ok(()) } else { Err(strange()) }
}

fn id_of(name: ContentName) -> ContentId {
    ContentId { vnode: name.vnode, version: name.version }
}

fn change(row: RowNow) -> Result<RowChange, Failed> {
    let table = Table::numbered(row.table).ok_or_else(strange)?;
    Ok((table, row.key.into(), row.value.map(|value| value.0.into())))
}

fn ended(volume: VolumeId, to: ServerId, result: Result<(), AdminError>) -> MoveStatus {
    let (copied, total) = (0, 0);
    MoveStatus {
        volume,
        to,
        phase: MovePhase::Ended,
        copied,
        total,
        frozen_for: None,
        problem: None,
        result: Some(result),
    }
}
