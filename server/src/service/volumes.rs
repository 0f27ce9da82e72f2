//! The volumes of a server, opened at their first use.

use std::collections::BTreeMap;
use std::sync::Arc;

use larder_protocol::error::ErrorCode;
use larder_protocol::ids::{ClientId, Epoch, VolumeId};
use larder_protocol::runtime::{RuntimeExt, SharedRuntime};
use parking_lot::RwLock;
use tracing::{error, info};

use crate::promises::PromiseKeeper;
use crate::store::{Store, StoredVolume};
use crate::volume::{self, Durability, Volume, VolumeConfig};

/// Volumes by id.
pub struct Volumes {
    open: RwLock<BTreeMap<VolumeId, Arc<Volume>>>,
    source: Option<Source>,
    runtime: SharedRuntime,
    promises: Arc<PromiseKeeper>,
}

/// Where volumes that are not open yet come from.
struct Source {
    store: Store,
    stored: Vec<StoredVolume>,
    durability: Durability,
    epoch: Epoch,
    /// Held while a volume is being opened, so that none is opened twice; whether more may be opened.
    opening: tokio::sync::Mutex<bool>,
}

impl Volumes {
    /// Exactly these.
    pub fn given(volumes: Vec<Arc<Volume>>, promises: Arc<PromiseKeeper>, runtime: SharedRuntime) -> Volumes {
        volumes.iter().for_each(|volume| volume.promise_by(promises.clone()));
        let open = volumes.into_iter().map(|volume| (volume.id(), volume)).collect();
        Volumes { open: RwLock::new(open), source: None, runtime, promises }
    }

    /// Those of a store.
    ///
    /// # Errors
    /// The store's directory cannot be read.
    pub fn stored(
        store: Store,
        durability: Durability,
        epoch: Epoch,
        promises: Arc<PromiseKeeper>,
        runtime: SharedRuntime,
    ) -> anyhow::Result<Volumes> {
        let stored = store.volumes()?;
        let opening = tokio::sync::Mutex::new(true);
        let source = Some(Source { store, stored, durability, epoch, opening });
        Ok(Volumes { open: RwLock::default(), source, runtime, promises })
    }

    /// A volume, opened if it is not.
    ///
    /// # Errors
    /// `NoSuchVolume`; `Unavailable` while the server ends; `Io` if it cannot be opened, for a reason that is logged.
    pub async fn get(self: &Arc<Self>, id: VolumeId) -> Result<Arc<Volume>, ErrorCode> {
        if let Some(volume) = self.open.read().get(&id) {
            return Ok(volume.clone());
        }
        let stored = self.find(|stored| stored.id == id).ok_or(ErrorCode::NoSuchVolume)?;
        // Not cut when its request is: a volume that was opened must not be lost before it is entered.
        let this = self.clone();
        let opened = self.runtime.detached(async move { this.open(stored).await }).await;
        opened.unwrap_or(Err(ErrorCode::Internal))
    }

    /// A volume by its name.
    ///
    /// # Errors
    /// As [`get`](Volumes::get).
    pub async fn named(self: &Arc<Self>, name: &str) -> Result<Arc<Volume>, ErrorCode> {
        let open = self.open.read().values().find(|volume| volume.name() == name).cloned();
        match open {
            Some(volume) => Ok(volume),
            None => {
                let stored = self.find(|stored| stored.name == name).ok_or(ErrorCode::NoSuchVolume)?;
                self.get(stored.id).await
            }
        }
    }

    /// Whether what is acknowledged is durable.
    pub fn is_durable(&self) -> bool {
        match &self.source {
            Some(source) => source.durability == Durability::Power,
            None => self.open.read().values().all(|volume| volume.is_durable()),
        }
    }

    /// Those that are open, in the order of their ids.
    pub fn opened(&self) -> Vec<Arc<Volume>> {
        self.open.read().values().cloned().collect()
    }

    /// A client is gone, or its lives before one are: frees what it left in the volumes that are open.
    ///
    /// # Errors
    /// The first that a volume met.
    pub async fn client_gone(&self, client: ClientId, before: Option<u64>) -> Result<(), ErrorCode> {
        for volume in self.opened() {
            volume.client_gone(client, before).await?;
        }
        Ok(())
    }

    /// Closes all; none is opened any more.
    ///
    /// # Errors
    /// The first that a volume met; the others are closed all the same.
    pub async fn close(&self) -> Result<(), ErrorCode> {
        if let Some(source) = &self.source {
            *source.opening.lock().await = false;
        }
        let mut result = Ok(());
        for volume in self.opened() {
            if let Err(code) = volume.close().await {
                error!(volume = volume.name(), "cannot close the volume cleanly: {code}");
                result = result.and(Err(code));
            }
        }
        result
    }

    fn find(&self, is_it: impl Fn(&StoredVolume) -> bool) -> Option<StoredVolume> {
        self.source.as_ref()?.stored.iter().find(|stored| is_it(stored)).cloned()
    }

    async fn open(&self, stored: StoredVolume) -> Result<Arc<Volume>, ErrorCode> {
        let source = self.source.as_ref().ok_or(ErrorCode::NoSuchVolume)?;
        let may_open = source.opening.lock().await;
        if let Some(volume) = self.open.read().get(&stored.id) {
            return Ok(volume.clone());
        }
        if !*may_open {
            return Err(ErrorCode::Unavailable);
        }
        let StoredVolume { id, name, dir } = stored;
        let (durability, epoch, runtime) = (source.durability, source.epoch, self.runtime.clone());
        let config = VolumeConfig { id, dir, durability, epoch, runtime };
        let opened = self.runtime.blocking(move || volume::open(config)).await;
        match opened {
            Some(Ok(volume)) => {
                volume.promise_by(self.promises.clone());
                info!(%id, name, "volume opened");
                self.open.write().insert(id, volume.clone());
                Ok(volume)
            }
            Some(Err(error)) => {
                let store = source.store.dir().display();
                error!(
                    %id, name,
                    "cannot open the volume: {error}. Stop the server and run `larderd check --store {store}`"
                );
                Err(ErrorCode::Io)
            }
            None => {
                error!(%id, name, "defect: opening the volume panicked");
                Err(ErrorCode::Internal)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use larder_protocol::handshake::LeaseTerms;
    use larder_protocol::runtime::SystemRuntime;

    use super::*;
    use crate::promises::holders::HolderMemory;

    #[tokio::test]
    async fn a_copy_of_a_volume_under_another_id_is_not_opened() {
        let parent = tempfile::tempdir().unwrap();
        let store = Store::open(&parent.path().join("store")).unwrap();
        let [root] = &store.volumes().unwrap()[..] else { panic!("not one volume") };
        let copy = root.dir.with_file_name("2-copy");
        fs::create_dir_all(copy.join("content")).unwrap();
        fs::copy(root.dir.join("meta.sqlite"), copy.join("meta.sqlite")).unwrap();
        let before = fs::read(copy.join("meta.sqlite")).unwrap();

        let runtime: SharedRuntime = Arc::new(SystemRuntime::new(tokio::runtime::Handle::current()));
        let (epoch, terms) = (Epoch(1), LeaseTerms::default());
        let promises = PromiseKeeper::new(epoch, terms, Arc::new(HolderMemory::default()), runtime.clone()).unwrap();
        let volumes = Arc::new(Volumes::stored(store, Durability::Power, epoch, promises, runtime).unwrap());
        // Clients would take the two for one volume, and its handles for those of the other.
        assert_eq!(volumes.named("copy").await.err(), Some(ErrorCode::Io));
        assert_eq!(volumes.named("root").await.unwrap().id(), VolumeId::ROOT);
        volumes.close().await.unwrap();
        assert_eq!(fs::read(copy.join("meta.sqlite")).unwrap(), before);
    }
}
