//! The source's part: it sends what a volume holds, and lets go of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::VolumeId;
use larder_protocol::payload::Payload;
use larder_protocol::runtime::{BootTime, RuntimeExt};
use larder_protocol::service::admin::AdminError;
use larder_protocol::service::transfer::{
    ContentChange, ContentName, ContentPiece, RowNow, TransferReply, TransferRequest,
};
use parking_lot::Mutex;
use tracing::{info, warn};

use super::error;
use crate::core::moving::{self, NotNow};
use crate::failpoint::Failpoint;
use crate::location::{Cell, LocationError};
use crate::promises::Quiet;
use crate::service::Server;
use crate::volume::Volume;
use crate::volume::content::ContentId;
use crate::volume::keys::Table;
use crate::volume::original::{Original, runs};
use crate::volume::record::FORMAT;

/// How long a volume may be frozen before it is served again: then the destination has to try once more.
const FROZEN_FOR: Duration = Duration::from_secs(10);
/// How long requests that are under way may take to end once the volume is frozen.
const DRAINED_WITHIN: Duration = Duration::from_secs(5);
/// How long changes are noted for a destination that does not ask for them.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);
/// The pause before a directory is asked again that did not answer.
const AGAIN: Duration = Duration::from_secs(1);

/// Volumes that other servers copy.
#[derive(Default)]
pub struct Departures {
    /// By numbers that are random, so that those of an earlier process are none of this one's.
    all: Mutex<BTreeMap<u64, Arc<Departure>>>,
}

/// A volume that another server copies.
struct Departure {
    number: u64,
    volume: VolumeId,
    token: u64,
    original: Original,
    state: Mutex<State>,
    /// When the destination asked for something last.
    used: Mutex<BootTime>,
}

#[derive(Default)]
struct State {
    /// Keeps the volume open; nothing once it is frozen.
    open: Option<Arc<Volume>>,
    /// Nobody gets callbacks (M4).
    quiet: Option<Quiet>,
}

impl Departures {
    fn add(&self, number: u64, volume: VolumeId, token: u64, open: Arc<Volume>, now: BootTime) -> Arc<Departure> {
        let original = open.original();
        let state = Mutex::new(State { open: Some(open), quiet: None });
        let departure = Arc::new(Departure { number, volume, token, original, state, used: Mutex::new(now) });
        // One that was interrupted, and is begun anew.
        self.end(volume);
        self.all.lock().insert(number, departure.clone());
        departure
    }

    fn get(&self, number: u64, now: BootTime) -> Result<Arc<Departure>, AdminError> {
        let departure = self.all.lock().get(&number).cloned();
        let departure =
            departure.ok_or_else(|| error(ErrorCode::BadSequence, "it sends the volume no more; begin anew"))?;
        *departure.used.lock() = now;
        Ok(departure)
    }

    fn end(&self, volume: VolumeId) {
        self.all.lock().retain(|_, departure| {
            let stays = departure.volume != volume;
            if !stays {
                // Whoever still answers for it keeps nothing open.
                *departure.state.lock() = State::default();
            }
            stays
        });
    }

    fn is_there(&self, number: u64) -> bool {
        self.all.lock().contains_key(&number)
    }

    fn has(&self, volume: VolumeId) -> bool {
        self.all.lock().values().any(|departure| departure.volume == volume)
    }

    fn forget_unused(&self, before: BootTime) {
        self.all.lock().retain(|_, departure| *departure.used.lock() >= before);
    }
}

impl Server {
    /// Answers the destination of a move.
    pub(crate) async fn send(self: &Arc<Self>, request: TransferRequest) -> Result<TransferReply, AdminError> {
        let now = self.runtime().boottime();
        let departure = |number| self.departures().get(number, now);
        match request {
            TransferRequest::Begin { volume, token } => self.begin_departure(volume, token).await,
            TransferRequest::Rows { number, table, after } => {
                let (departure, table) = (departure(number)?, table_of(table)?);
                let read = move || departure.original.rows(table, after.as_deref());
                let (rows, end) = self.read(read).await?.map_err(unreadable)?;
                let rows = rows.into_iter().map(|(key, value)| row((table, key, Some(value)))).collect();
                Ok(TransferReply::Rows { rows, end })
            }
            TransferRequest::Content { number, content, offset, end } => {
                let departure = departure(number)?;
                let id = ContentId { vnode: content.vnode, version: content.version };
                let read = move || departure.original.read(id, offset, end);
                let piece = self.read(read).await?.map_err(unreadable)?;
                Ok(TransferReply::Content(piece.map(|piece| {
                    let data = piece.data.into_iter().map(|(offset, bytes)| (offset, Payload(bytes))).collect();
                    ContentPiece { data, end: piece.end, size: piece.size, has_changed: piece.has_changed }
                })))
            }
            TransferRequest::Changes { number } => {
                let departure = departure(number)?;
                let read = move || departure.original.changes().map(|changes| (changes, departure.original.noted()));
                let (changes, left) = self.read(read).await?.map_err(unreadable)?;
                let changes = changes
                    .ok_or_else(|| error(ErrorCode::BadSequence, "another one copies the volume; begin anew"))?;
                let contents = changes.contents.into_iter().map(|(id, touched)| ContentChange {
                    content: ContentName { vnode: id.vnode, version: id.version },
                    ranges: runs(&touched),
                });
                Ok(TransferReply::Changes {
                    rows: changes.rows.into_iter().map(row).collect(),
                    contents: contents.collect(),
                    left: left as u64,
                    end: changes.end,
                })
            }
            TransferRequest::Prepare { number } => {
                let departure = departure(number)?;
                self.prepare_departure(&departure).await;
                Ok(TransferReply::Done)
            }
            TransferRequest::Freeze { number } => {
                let (this, departure) = (self.clone(), departure(number)?);
                // Done to its end, whatever becomes of who asked.
                let frozen = self.runtime().detached(self.tracked(async move { this.freeze(&departure).await }));
                frozen.await.unwrap_or_else(|| Err(error(ErrorCode::Internal, "the server met a defect")))?;
                Ok(TransferReply::Done)
            }
            TransferRequest::Thaw { number } => {
                let departure = departure(number)?;
                self.thaw(departure.volume).await;
                Ok(TransferReply::Done)
            }
            TransferRequest::Moved { volume } => {
                self.let_go(volume).await?;
                Ok(TransferReply::Done)
            }
        }
    }

    async fn read<T: Send + 'static>(&self, read: impl FnOnce() -> T + Send + 'static) -> Result<T, AdminError> {
        let read = self.runtime().blocking(read).await;
        read.ok_or_else(|| error(ErrorCode::Internal, "the server met a defect; its log says more"))
    }

    async fn begin_departure(self: &Arc<Self>, volume: VolumeId, token: u64) -> Result<TransferReply, AdminError> {
        let cell = self.cell()?;
        let record = cell.volume(volume).await?;
        let moving = moving::may_send(&record, self.id(), token).map_err(LocationError::from)?;
        if moving.frozen {
            // An attempt that was cut off.
            self.thaw(volume).await;
        }
        // A freeze that comes late must not meet this one.
        let _turn = self.administering().lock().await;
        let refused = |code| error(code, format!("the volume {}: {code}", record.name));
        let open = self.volumes().get(volume).await.map_err(refused)?;
        let usage = open.usage().map_err(refused)?;
        let mut lives = self.lives();
        lives.extend_from_slice(open.vouched());
        let number = self.runtime().random();
        let departure = self.departures().add(number, volume, token, open, self.runtime().boottime());
        info!("volume {volume} ({}) is being copied to the server {}", record.name, moving.to);
        Ok(TransferReply::Begun { number: departure.number, format: FORMAT, bytes: usage.bytes, lives })
    }

    /// M4; and what is left to be written is written now rather than while programs wait.
    async fn prepare_departure(&self, departure: &Departure) {
        let open = departure.state.lock().open.clone();
        let Some(volume) = open else { return };
        let quiet = self.promises().quiet(departure.volume);
        departure.state.lock().quiet.get_or_insert(quiet);
        self.promises().break_volume(departure.volume).await;
        volume.settle_all().await;
    }

    async fn freeze(self: &Arc<Self>, departure: &Arc<Departure>) -> Result<(), AdminError> {
        let volume = departure.volume;
        // Nobody deletes it in between, or takes it offline.
        let _turn = self.administering().lock().await;
        if !self.departures().is_there(departure.number) {
            return Err(error(ErrorCode::BadSequence, "the volume was begun to be copied anew"));
        }
        if departure.state.lock().quiet.is_none() {
            return Err(error(ErrorCode::BadSequence, "clients may have callbacks on the volume still"));
        }
        self.volumes().mark_departing(volume).await.map_err(|cause| error(ErrorCode::Io, cause))?;
        Failpoint::Freezing.pass();
        let frozen = self.cell()?.update(volume, |record| Ok(moving::freeze(record, self.id(), departure.token)?));
        let record = frozen.await?;
        Failpoint::Frozen.pass();
        departure.state.lock().open = None;
        let (this, number, limit) = (self.clone(), departure.number, self.runtime().sleep(FROZEN_FOR));
        self.runtime().spawn(Box::pin(self.tracked(async move {
            tokio::select! {
                biased;
                () = this.ending() => return,
                () = limit => {}
            }
            if this.departures().is_there(number) {
                warn!("volume {volume}: the other server has not taken it in time; it is served here again");
                this.thaw(volume).await;
            }
        })));
        if let Err(code) = self.volumes().withdraw_within(volume, DRAINED_WITHIN).await {
            let this = self.clone();
            // Not here: nobody else could administer anything while the directory is away.
            self.runtime().spawn(Box::pin(self.tracked(async move { this.thaw(volume).await })));
            return Err(error(code, format!("the volume {} could not be closed: {code}", record.name)));
        }
        Ok(())
    }

    /// Serves a volume again, unless it has moved. Ends with the server, whatever the directory does.
    pub(crate) async fn thaw(self: &Arc<Self>, volume: VolumeId) {
        // Whoever copies it must ask for all of it again: it changes from now on.
        self.departures().end(volume);
        let Ok(cell) = self.cell() else { return };
        loop {
            match cell.update(volume, |record| Ok(moving::thaw(record, self.id())?)).await {
                Ok(_) => {
                    if let Err(cause) = self.volumes().unmark_departing(volume).await {
                        // It says that the copy may be removed once the volume is elsewhere, which is no harm.
                        warn!("{cause}");
                    }
                    return;
                }
                Err(LocationError::Moving(NotNow::At(_))) => {
                    if let Err(reason) = self.let_go(volume).await {
                        warn!("{reason}");
                    }
                    return;
                }
                Err(LocationError::NoSuchVolume(_)) => return,
                Err(reason) => {
                    warn!("volume {volume} is frozen, and whether it has moved is not known: {reason}; trying again");
                }
            }
            tokio::select! {
                biased;
                () = self.ending() => return,
                () = self.runtime().sleep(AGAIN) => {}
            }
        }
    }

    /// Removes what is left of a volume that has moved (M7).
    async fn let_go(&self, volume: VolumeId) -> Result<(), AdminError> {
        let record = self.cell()?.volume(volume).await?;
        if record.server == self.id() {
            return Err(error(ErrorCode::Busy, format!("the volume {} is here", record.name)));
        }
        self.departures().end(volume);
        if !self.volumes().is_departing(volume).await {
            return Ok(());
        }
        Failpoint::LettingGo.pass();
        let removed = self.volumes().remove_departed(volume).await;
        removed.map_err(|cause| error(ErrorCode::Io, format!("volume {volume} has moved; {cause}")))?;
        info!("volume {volume} ({}) has moved to the server {}", record.name, record.server);
        Ok(())
    }

    /// Finishes what an earlier process has begun, and looks now and then after moves of which nothing is heard.
    pub(crate) async fn look_after_departures(self: Arc<Self>) {
        let Ok(cell) = self.cell() else { return };
        loop {
            let mine: Vec<VolumeId> = self.volumes().directories().into_iter().map(|(id, _)| id).collect();
            for record in mine.into_iter().filter_map(|id| cell.known(id)) {
                let is_frozen = record.moving.is_some_and(|moving| moving.frozen);
                if record.server == self.id() && is_frozen && !self.departures().has(record.id) {
                    self.thaw(record.id).await;
                } else if record.server != self.id() && self.volumes().is_departing(record.id).await {
                    // What is known may be old, and is asked for anew.
                    if let Err(reason) = self.let_go(record.id).await {
                        warn!("{reason}; that is tried again");
                    }
                }
            }
            self.departures().forget_unused(self.runtime().boottime().saturating_sub(FORGOTTEN_AFTER));
            tokio::select! {
                biased;
                () = self.ending() => return,
                () = self.runtime().sleep(FROZEN_FOR) => {}
            }
        }
    }

    /// Gives a move up.
    pub(crate) async fn give_up_departure(&self, cell: &Cell, volume: VolumeId) -> Result<(), AdminError> {
        cell.update(volume, |record| Ok(moving::give_up(record, self.id())?)).await?;
        self.departures().end(volume);
        if let Err(cause) = self.volumes().unmark_departing(volume).await {
            warn!("{cause}");
        }
        Ok(())
    }
}

fn table_of(number: u8) -> Result<Table, AdminError> {
    Table::numbered(number).ok_or_else(|| error(ErrorCode::Invalid, format!("there is no table {number}")))
}

fn row((table, key, value): (Table, Vec<u8>, Option<Vec<u8>>)) -> RowNow {
    RowNow { table: table as u8, key: Bytes::from(key), value: value.map(|value| Payload(Bytes::from(value))) }
}

fn unreadable(cause: impl std::fmt::Display) -> AdminError {
    error(ErrorCode::Io, format!("the volume cannot be read at the server that has it: {cause}"))
}
