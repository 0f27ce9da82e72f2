//! Administering volumes. What changes one is done by the server that has it.

use std::collections::BTreeSet;

use larder_protocol::attr::Credential;
use larder_protocol::cell::{MountedAt, Quota, VolumeRecord, VolumeState};
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::VolumeId;
use larder_protocol::limits::{DELETED_KEPT, MAX_LISTED};
use larder_protocol::runtime::RuntimeExt;
use larder_protocol::service::admin::{
    AdminError, AdminReply, AdminRequest, Place, ServerStatus, VolumeKey, VolumeUsage,
};
use tracing::{info, warn};

use super::Server;
use crate::core::moving::NotNow;
use crate::failpoint::Failpoint;
use crate::location::{Cell, LocationError, is_volume_name};
use crate::net::sessions::Session;

fn error(code: ErrorCode, text: impl Into<String>) -> AdminError {
    AdminError { code, text: text.into() }
}

impl From<LocationError> for AdminError {
    fn from(from: LocationError) -> AdminError {
        let code = match &from {
            LocationError::Registry(_) => ErrorCode::NoLocation,
            LocationError::Damaged { .. } => ErrorCode::Io,
            LocationError::NoSuchVolume(_) => ErrorCode::NoSuchVolume,
            LocationError::Exists(_) => ErrorCode::Exists,
            LocationError::BadName(_) => ErrorCode::Invalid,
            LocationError::Exhausted => ErrorCode::NoSpace,
            LocationError::Contended | LocationError::NotNow(_) | LocationError::Moving(_) => ErrorCode::Busy,
        };
        error(code, from.to_string())
    }
}

impl Server {
    /// Does what an administrator asks for.
    pub(super) async fn administer(
        &self,
        session: &Session,
        cred: Credential,
        request: AdminRequest,
    ) -> Result<AdminReply, AdminError> {
        self.admit(session)
            .map_err(|code| error(code, "the connection has not said hello, or another has its place"))?;
        let cred = self.settings.root_squash.apply(session.peer(), cred);
        let changes = !matches!(
            request,
            AdminRequest::Find { .. }
                | AdminRequest::List { .. }
                | AdminRequest::Servers
                | AdminRequest::Status
                | AdminRequest::Show { .. }
                | AdminRequest::MoveStatus { .. }
        );
        if changes && cred.uid != 0 {
            return Err(error(
                ErrorCode::NotPermitted,
                "only the superuser may change volumes, and the server takes that of another host for nobody unless it runs \
                 with --root-squash off",
            ));
        }
        let cell = self.cell()?;
        match request {
            AdminRequest::Find { volume } => Ok(AdminReply::Volume(self.place(&find(cell, volume).await?))),
            AdminRequest::List { after } => {
                let all = cell.volumes().await?;
                let rest = &all[all.partition_point(|volume| Some(volume.id) <= after)..];
                let volumes = rest.iter().take(MAX_LISTED).map(|volume| self.place(volume)).collect();
                Ok(AdminReply::Volumes { volumes, end: rest.len() <= MAX_LISTED })
            }
            AdminRequest::Servers => {
                cell.refresh().await?;
                Ok(AdminReply::Servers(cell.servers()))
            }
            AdminRequest::Status => Ok(AdminReply::Status(self.status(cell))),
            AdminRequest::Show { volume } => {
                let record = self.own(cell, volume).await?;
                let usage = self.usage(&record).await?;
                Ok(AdminReply::Shown { place: self.place(&record), usage })
            }
            AdminRequest::MoveStatus { volume } => Ok(AdminReply::Moving(self.arrival_status(volume)?)),
            AdminRequest::Move { volume, limit } => {
                let this = self.this.upgrade().ok_or_else(|| error(ErrorCode::Unavailable, "the server is ending"))?;
                let begun =
                    self.runtime().detached(self.tracked(async move { this.fetch_volume(volume, limit).await }));
                let defect = || error(ErrorCode::Internal, "the server met a defect; its log says more");
                Ok(AdminReply::Moving(begun.await.unwrap_or_else(|| Err(defect()))?))
            }
            changing => {
                let this = self.this.upgrade().ok_or_else(|| error(ErrorCode::Unavailable, "the server is ending"))?;
                // Done to its end, whatever becomes of who asked: a volume that is half closed could be opened twice.
                let done = self.runtime().detached(self.tracked(async move {
                    // One after the other: each looks at what there is before it changes that.
                    let _turn = this.administering.lock().await;
                    let record = this.change(this.cell()?, changing).await?;
                    Ok(AdminReply::Volume(this.place(&record)))
                }));
                let defect = || error(ErrorCode::Internal, "the server met a defect; its log says more");
                done.await.unwrap_or_else(|| Err(defect()))
            }
        }
    }

    async fn change(&self, cell: &Cell, request: AdminRequest) -> Result<VolumeRecord, AdminError> {
        match request {
            AdminRequest::Create { name, quota } => self.create_volume(cell, name, quota).await,
            AdminRequest::Rename { volume, name } => {
                let before = self.own(cell, volume).await?;
                if volume == VolumeId::ROOT {
                    return Err(error(ErrorCode::Busy, "the volume root has the name by which every client finds it"));
                }
                let renamed = cell.update(volume, |record| {
                    may_be_used(record)?;
                    record.name.clone_from(&name);
                    Ok(())
                });
                let after = renamed.await?;
                info!("volume {volume} is called {} now, and not {} any more", after.name, before.name);
                Ok(after)
            }
            AdminRequest::Delete { volume } => {
                self.own(cell, volume).await?;
                if volume == VolumeId::ROOT {
                    return Err(error(
                        ErrorCode::Busy,
                        "the volume root is where the cell's tree begins: it cannot be deleted",
                    ));
                }
                let inside: Vec<String> = cell
                    .volumes()
                    .await?
                    .into_iter()
                    .filter(|other| other.mounted.is_some_and(|at| at.volume == volume))
                    .map(|other| other.name)
                    .collect();
                if !inside.is_empty() {
                    let names = inside.join(", ");
                    let text = format!("volumes have their mount points in it ({names}): remove those first");
                    return Err(error(ErrorCode::Busy, text));
                }
                let stale = self.stale_mount(cell, &cell.volume(volume).await?).await;
                let since = self.runtime().wall();
                let deleted = cell.update(volume, |record| {
                    if record.mounted == stale {
                        record.mounted = None;
                    }
                    if let Some(at) = record.mounted {
                        return Err(LocationError::NotNow(format!(
                            "the volume {} has a mount point (in volume {}): remove that first, with `larder mountpoint remove`",
                            record.name, at.volume
                        )));
                    }
                    stays(record)?;
                    if !matches!(record.state, VolumeState::Deleted { .. }) {
                        record.state = VolumeState::Deleted { since };
                    }
                    Ok(())
                });
                let record = deleted.await?;
                info!(
                    "volume {volume} ({}) is deleted; it can be restored for {} days",
                    record.name,
                    DELETED_KEPT.as_secs() / 86_400
                );
                self.withdraw(&record).await;
                Ok(record)
            }
            AdminRequest::Restore { volume, name } => {
                self.own(cell, volume).await?;
                if self.volumes.directory(volume).is_none() {
                    return Err(error(
                        ErrorCode::NoSuchVolume,
                        "the volume is being removed for good: its time is over",
                    ));
                }
                let restored = cell.update(volume, |record| {
                    if !matches!(record.state, VolumeState::Deleted { .. }) {
                        return Err(LocationError::NotNow(format!("the volume {} is not deleted", record.name)));
                    }
                    record.state = VolumeState::Online;
                    if let Some(name) = &name {
                        record.name.clone_from(name);
                    }
                    Ok(())
                });
                let record = restored.await.map_err(|reason| match reason {
                    LocationError::Exists(name) => error(
                        ErrorCode::Exists,
                        format!(
                            "there is another volume {name} by now: restore this one under another name, with --name"
                        ),
                    ),
                    reason => reason.into(),
                })?;
                info!("volume {volume} ({}) is restored", record.name);
                Ok(record)
            }
            AdminRequest::SetQuota { volume, quota } => {
                let record = self.own(cell, volume).await?;
                let open = self.volumes.get(volume).await.map_err(|code| refused(&record, code))?;
                open.set_quota(quota).await.map_err(|code| refused(&record, code))?;
                Ok(record)
            }
            AdminRequest::SetMounted { volume, from, to } => {
                if let Some(to) = to {
                    outside(cell, volume, to.volume).await?;
                }
                let stale = self.stale_mount(cell, &cell.volume(volume).await?).await;
                let changed = cell.update(volume, |record| {
                    may_be_used(record)?;
                    if record.mounted == to {
                        return Ok(());
                    }
                    match record.mounted {
                        at if at == from || at == stale => record.mounted = to,
                        Some(at) => {
                            return Err(LocationError::NotNow(format!(
                                "the volume {} has a mount point already, in volume {}: a volume has one place in the tree",
                                record.name, at.volume
                            )));
                        }
                        None => return Err(LocationError::NotNow(format!("the volume {} appears nowhere", record.name))),
                    }
                    Ok(())
                });
                Ok(changed.await?)
            }
            AdminRequest::SetOnline { volume, online } => {
                self.own(cell, volume).await?;
                if volume == VolumeId::ROOT && !online {
                    return Err(error(
                        ErrorCode::Busy,
                        "the volume root is where every client begins: it cannot be taken offline; stop the server instead",
                    ));
                }
                let changed = cell.update(volume, |record| {
                    may_be_used(record)?;
                    stays(record)?;
                    record.state = if online { VolumeState::Online } else { VolumeState::Offline };
                    Ok(())
                });
                let record = changed.await?;
                info!("volume {volume} ({}) is {}", record.name, if online { "online" } else { "offline" });
                if !online {
                    self.withdraw(&record).await;
                }
                Ok(record)
            }
            AdminRequest::AbortMove { volume } => {
                let record = self.own(cell, volume).await?;
                if record.moving.is_none() {
                    return Err(error(ErrorCode::Invalid, format!("the volume {} is not moving", record.name)));
                }
                self.give_up_departure(cell, volume).await?;
                info!("volume {volume} ({}) does not move", record.name);
                Ok(cell.volume(volume).await?)
            }
            AdminRequest::Find { .. }
            | AdminRequest::List { .. }
            | AdminRequest::Servers
            | AdminRequest::Status
            | AdminRequest::Move { .. }
            | AdminRequest::MoveStatus { .. }
            | AdminRequest::Show { .. } => Err(error(ErrorCode::Internal, "it changes nothing")),
        }
    }

    async fn create_volume(&self, cell: &Cell, name: String, quota: Quota) -> Result<VolumeRecord, AdminError> {
        if !is_volume_name(&name) {
            return Err(LocationError::BadName(name).into());
        }
        if cell.volume_named(&name).await.is_ok() {
            return Err(LocationError::Exists(name).into());
        }
        let id = cell.next_id().await?;
        let failed = |cause: String| error(ErrorCode::Io, format!("cannot make the volume {name}: {cause}"));
        self.volumes.add(id, &name, quota).await.map_err(failed)?;
        Failpoint::VolumeMade.pass();
        let record = VolumeRecord {
            id,
            name: name.clone(),
            server: self.id,
            state: VolumeState::Online,
            mounted: None,
            moving: None,
        };
        if let Err(reason) = cell.enter(record.clone()).await {
            // If the service has it all the same, the volume is missing there, and whoever asked is told that it failed:
            // only what certainly was not entered is removed.
            if matches!(reason, LocationError::Exists(_))
                && let Err(cause) = self.volumes.remove(id).await
            {
                warn!("cannot remove what was to be volume {id}: {cause}");
            }
            return Err(reason.into());
        }
        info!("volume {id} ({name}) is made");
        Ok(record)
    }

    /// Sees to it that nobody uses a volume any more whose record says that nobody is to.
    async fn withdraw(&self, record: &VolumeRecord) {
        if let Err(code) = self.volumes.withdraw(record.id).await {
            warn!("volume {} ({}) could not be closed cleanly: {code}", record.id, record.name);
        }
        // Nobody gets callbacks on it any more.
        self.promises.break_volume(record.id).await;
    }

    /// The record of a volume that this server has.
    async fn own(&self, cell: &Cell, volume: VolumeId) -> Result<VolumeRecord, AdminError> {
        let record = cell.volume(volume).await?;
        if record.server == self.id {
            return Ok(record);
        }
        let place = self.place(&record);
        let at = place.address.unwrap_or_else(|| format!("{}, which does not answer", record.server));
        Err(error(ErrorCode::Moved, format!("the volume {} is on another server: {at}", record.name)))
    }

    /// Where the volume's record says that it appears, if it certainly does not: whoever removed the mount point could not say
    /// so, or the volume is gone that it was in.
    async fn stale_mount(&self, cell: &Cell, record: &VolumeRecord) -> Option<MountedAt> {
        let at = record.mounted?;
        let is_there = match cell.volume(at.volume).await {
            Err(LocationError::NoSuchVolume(_)) => false,
            Ok(above) if above.server == self.id => match self.volumes.get(at.volume).await {
                Ok(above) => above.has_graft(at.vnode, record.id).unwrap_or(true),
                Err(_) => true,
            },
            // Nobody here can tell.
            _ => true,
        };
        (!is_there).then_some(at)
    }

    fn place(&self, volume: &VolumeRecord) -> Place {
        let server = self.cell.as_ref().and_then(|cell| cell.server(volume.server));
        Place { volume: volume.clone(), address: server.map(|server| server.address) }
    }

    async fn usage(&self, record: &VolumeRecord) -> Result<VolumeUsage, AdminError> {
        let refused = |code| refused(record, code);
        let volume = self.volumes.get(record.id).await.map_err(refused)?;
        let usage = volume.usage().map_err(refused)?;
        let path = self.volumes.directory(record.id).map(|path| path.display().to_string());
        Ok(VolumeUsage {
            quota: volume.quota(),
            bytes: usage.bytes,
            files: usage.files,
            created: usage.created.secs,
            path: path.unwrap_or_default(),
        })
    }

    fn status(&self, cell: &Cell) -> ServerStatus {
        let stats = self.stats();
        // A server whose disk or load cannot be told is there all the same.
        let disk = self.store_dir.as_ref().and_then(|dir| rustix::fs::statvfs(dir).ok());
        let load = std::fs::read_to_string("/proc/loadavg").ok();
        let load = load.and_then(|text| text.split(' ').next()?.parse::<f64>().ok()).unwrap_or(0.0);
        ServerStatus {
            id: self.id,
            volumes: self.volumes.count() as u64,
            open: self.volumes.opened().len() as u64,
            clients: stats.clients,
            requests: stats.requests.values().map(|kind| kind.count).sum(),
            uptime: stats.uptime_secs,
            total: disk.as_ref().map_or(0, |disk| disk.f_blocks * disk.f_frsize),
            free: disk.as_ref().map_or(0, |disk| disk.f_bavail * disk.f_frsize),
            load: (load * 1000.0) as u32,
            location: cell.registry().name(),
        }
    }
}

/// Sees to it that a volume does not appear inside itself.
async fn outside(cell: &Cell, volume: VolumeId, place: VolumeId) -> Result<(), AdminError> {
    if volume == VolumeId::ROOT {
        return Err(error(
            ErrorCode::Invalid,
            "the volume root is where the cell's tree begins: it can have no mount point",
        ));
    }
    let mut above = Some(place);
    let mut seen = BTreeSet::new();
    while let Some(at) = above {
        // A ring that is there already leads nowhere else.
        if at == volume || !seen.insert(at) {
            return Err(error(ErrorCode::Invalid, format!("volume {volume} would appear inside itself")));
        }
        above = cell.volume(at).await?.mounted.map(|mounted| mounted.volume);
    }
    Ok(())
}

/// # Errors
/// The volume is deleted.
fn may_be_used(record: &VolumeRecord) -> Result<(), LocationError> {
    match record.state {
        VolumeState::Deleted { .. } => {
            Err(LocationError::NotNow(format!("the volume {} is deleted: restore it first", record.name)))
        }
        VolumeState::Online | VolumeState::Offline => Ok(()),
    }
}

/// # Errors
/// The volume is moving to another server.
fn stays(record: &VolumeRecord) -> Result<(), LocationError> {
    match record.moving {
        Some(moving) => Err(LocationError::Moving(NotNow::MovesTo(moving.to))),
        None => Ok(()),
    }
}

fn refused(record: &VolumeRecord, code: ErrorCode) -> AdminError {
    error(code, format!("the volume {}: {code}", record.name))
}

/// The volume that a person means. A name means a volume that is deleted only if no other has it now, and just one that is
/// deleted had it.
async fn find(cell: &Cell, key: VolumeKey) -> Result<VolumeRecord, AdminError> {
    let name = match key {
        VolumeKey::Id(id) => return Ok(cell.volume(id).await?),
        VolumeKey::Name(name) => name,
    };
    match cell.volume_named(&name).await {
        Err(LocationError::NoSuchVolume(_)) => {}
        found => return Ok(found?),
    }
    let deleted: Vec<VolumeRecord> = cell.volumes().await?.into_iter().filter(|volume| volume.name == name).collect();
    match &deleted[..] {
        [] => Err(LocationError::NoSuchVolume(name).into()),
        [one] => Ok(one.clone()),
        several => {
            let ids: Vec<String> = several.iter().map(|volume| volume.id.to_string()).collect();
            let text = format!(
                "{} deleted volumes were called {name}: name one by its number ({})",
                several.len(),
                ids.join(", ")
            );
            Err(error(ErrorCode::Invalid, text))
        }
    }
}
