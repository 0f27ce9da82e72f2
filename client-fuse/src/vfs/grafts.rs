//! Mount points: crossing them, making and removing them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use larder_protocol::attr::{Attr, Credential, FileType};
use larder_protocol::cell::{MountedAt, VolumeRecord, VolumeState};
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::{Fid, ROOT_VNODE, VolumeId};
use larder_protocol::name::Name;
use larder_protocol::service::admin::{AdminReply, AdminRequest, VolumeKey};
use larder_protocol::service::file::{Op, OpReply, Query, QueryReply};

use super::node::Node;
use super::{Entry, Error, Vfs, unexpected};

/// The root directory of a volume, whose generation is that of the volume's making.
fn root_of(volume: VolumeId) -> Fid {
    Fid { volume, vnode: ROOT_VNODE, generation: 0 }
}

/// The volume that appears at a mount point.
fn mounted_at(attr: &Attr) -> VolumeId {
    VolumeId(attr.rdev)
}

impl Vfs {
    /// What is looked up in place of a mount point: the root directory of the volume that appears there. The lookup that
    /// `found` counts passes to it. The name may be used for as long as the mount point's: which volume appears there is
    /// what its directory says.
    pub(super) async fn cross(&self, cred: &Credential, dir: &Arc<Node>, found: Entry) -> Result<Entry, Error> {
        let Entry { node, attr, entry_ttl, pass, .. } = found;
        // Nobody asks the server while he holds one.
        drop(pass);
        self.forget(node, 1);
        let (fid, since) = (root_of(mounted_at(&attr)), self.runtime.boottime());
        let change = dir.state.lock().attrs.attr().change;
        let mut entry = match self.known_object(fid, dir, change) {
            Some(known) => {
                self.counters.hit();
                known
            }
            None => {
                let (reply, asked) = self.ask(cred, Query::Getattr { fid }).await?;
                let QueryReply::Attr(attr) = reply else { return Err(unexpected()) };
                self.entry(attr, dir, change, &asked)
            }
        };
        // Whether a break came for the directory meanwhile is not known here: then the kernel is to ask again.
        let asked = self.runtime.boottime().saturating_sub(since);
        let is_same = dir.state.lock().attrs.attr().change == change;
        entry.entry_ttl = if is_same { entry_ttl.saturating_sub(asked).min(entry.attr_ttl) } else { Duration::ZERO };
        Ok(entry)
    }

    /// Makes a mount point of a volume, and says which object it is.
    ///
    /// # Errors
    /// The server's, or that there is no answer.
    pub async fn graft(&self, cred: &Credential, parent: u64, name: &[u8], volume: VolumeId) -> Result<Fid, Error> {
        self.may_change()?;
        let (dir, name) = (self.node(parent)?, Name::new(name)?);
        let (entry, _) = self.make(cred, &dir, Op::Graft { dir: dir.fid, name: name.clone(), volume }).await?;
        // The kernel has not looked it up, and may have found that there is nothing of the name.
        self.forget(entry.node, 1);
        self.notifier.inval_name(dir.number, &name);
        self.notifier.expire_attrs(dir.number);
        Ok(entry.attr.fid)
    }

    /// Removes a mount point, and says which object it was and which volume appeared there.
    ///
    /// # Errors
    /// `Invalid` if the name is no mount point; the server's, or that there is no answer.
    pub async fn ungraft(&self, cred: &Credential, parent: u64, name: &[u8]) -> Result<(Fid, VolumeId), Error> {
        self.may_change()?;
        let (dir, name) = (self.node(parent)?, Name::new(name)?);
        let (reply, asked) = self.change(cred, Op::Ungraft { dir: dir.fid, name: name.clone() }).await?;
        let OpReply::Removed { dir: dir_change, object } = reply else { return Err(unexpected()) };
        self.learn_own(&dir, &dir_change, &asked);
        self.patch_dir(&dir, &dir_change, |names| {
            names.remove(&name);
        });
        drop(asked);
        // The kernel knows the volume's root directory by this name.
        self.notifier.inval_name(dir.number, &name);
        self.notifier.expire_attrs(dir.number);
        Ok((object.fid, mounted_at(&object)))
    }

    /// Lets a volume appear under a name, and says which it is.
    ///
    /// # Errors
    /// Why not, for a person to read. Then it does not.
    pub async fn add_mount_point(
        &self,
        cred: &Credential,
        parent: u64,
        name: &[u8],
        volume: VolumeKey,
    ) -> Result<VolumeId, String> {
        let text = |error: Error| error.to_string();
        let record = self.administer(cred, AdminRequest::Find { volume }).await?;
        if record.state != VolumeState::Online {
            return Err(format!("the volume {} is not online", record.name));
        }
        let made = self.graft(cred, parent, name, record.id).await.map_err(text)?;
        let to = Some(MountedAt { volume: made.volume, vnode: made.vnode });
        let request = AdminRequest::SetMounted { volume: record.id, from: None, to };
        if let Err(why) = self.administer(cred, request).await {
            // It must not appear at a place that its record does not know.
            return match self.ungraft(cred, parent, name).await {
                Ok(_) => Err(why),
                Err(error) => Err(format!("{why}; and the mount point that was made could not be removed: {error}")),
            };
        }
        Ok(record.id)
    }

    /// Removes a mount point, and says which volume appeared there.
    ///
    /// # Errors
    /// Why not, for a person to read.
    pub async fn remove_mount_point(&self, cred: &Credential, parent: u64, name: &[u8]) -> Result<VolumeId, String> {
        let (at, volume) = self.ungraft(cred, parent, name).await.map_err(|error| match error {
            Error::Refused(ErrorCode::Invalid) => "it is no mount point".to_owned(),
            error => error.to_string(),
        })?;
        let from = Some(MountedAt { volume: at.volume, vnode: at.vnode });
        let request = AdminRequest::SetMounted { volume, from, to: None };
        match self.administer(cred, request).await {
            Ok(_) => {}
            // The volume is gone, or appears elsewhere.
            Err(why) => tracing::info!("the record of volume {volume} is left as it is: {why}"),
        }
        Ok(volume)
    }

    /// Asks for a change of a volume's record, or what it is.
    async fn administer(&self, cred: &Credential, request: AdminRequest) -> Result<VolumeRecord, String> {
        match self.servers.admin(cred, request).await.map_err(|failure| Error::from(failure).to_string())? {
            Ok(AdminReply::Volume(place)) => Ok(place.volume),
            Ok(_) => Err(unexpected().to_string()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Which volume appears under a name, if it is a mount point.
    ///
    /// # Errors
    /// The server's, or that there is no answer.
    pub async fn grafted(&self, cred: &Credential, parent: u64, name: &[u8]) -> Result<Option<VolumeId>, Error> {
        let (dir, name) = (self.node(parent)?, Name::new(name)?);
        let (reply, _) = self.ask(cred, Query::Lookup { dir: dir.fid, name }).await?;
        match reply {
            QueryReply::Entry { attr: Some(attr), .. } => {
                let is_one = attr.kind == FileType::MountPoint;
                Ok(is_one.then(|| mounted_at(&attr)))
            }
            QueryReply::Entry { attr: None, .. } => Err(ErrorCode::NotFound.into()),
            _ => Err(unexpected()),
        }
    }

    /// The directory above a node, by its number.
    ///
    /// # Errors
    /// `Stale` if it is not known.
    pub fn parent_of(&self, node: u64) -> Result<u64, Error> {
        match self.node(node)?.parent.load(Ordering::Relaxed) {
            0 => Err(ErrorCode::Stale.into()),
            parent => Ok(parent),
        }
    }
}
