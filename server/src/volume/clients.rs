//! The clients that a volume knows: their replay slots, and what they keep of files without a name.

use std::collections::BTreeSet;
use std::sync::Arc;

use larder_protocol::error::ErrorCode;
use larder_protocol::ids::ClientId;
use larder_protocol::limits::{CLIENT_FORGOTTEN_AFTER, ORPHANS_YIELD_AFTER};
use larder_protocol::service::callback::Grants;
use larder_protocol::service::file::Mutated;

use super::apply::orphans;
use super::context::Context;
use super::error::{StoreError, StoreResult};
use super::keys::{self, Table};
use super::meta::Metadata;
use super::record::{ClientRecord, SlotRecord};
use super::view::{Records, Verified};
use super::{Volume, codec};
use crate::core::replay::Replay;

/// Reads what the store holds of replay slots.
pub(super) fn load(meta: &dyn Metadata, replay: &mut Replay<Mutated>) -> StoreResult<()> {
    let snapshot = meta.snapshot()?;
    let view = Verified(&*snapshot);
    for (client, record) in rows(&view)? {
        replay.load_client(client, record.incarnation);
    }
    for (_, value) in view.with_prefix(Table::Slots, &[], usize::MAX)? {
        let slot: SlotRecord = codec::decode(&value)?;
        let (sequence, durable, reply) = codec::decode(&slot.result)?;
        replay.load_slot(slot.id, Ok(Mutated { sequence, durable, reply, grants: Grants::default() }));
    }
    Ok(())
}

fn rows(view: &Verified<'_>) -> StoreResult<Vec<(ClientId, ClientRecord)>> {
    let row = |(key, value): (Vec<u8>, Vec<u8>)| {
        let id: [u8; 16] =
            key.try_into().map_err(|_| StoreError::Corrupt("a key in `clients` is malformed".to_owned()))?;
        Ok((ClientId(u128::from_be_bytes(id)), codec::decode(&value)?))
    };
    view.with_prefix(Table::Clients, &[], usize::MAX)?.into_iter().map(row).collect()
}

impl Volume {
    /// Frees what is kept for a client: all of it, or what lives before `below` left.
    ///
    /// # Errors
    /// As the store fails.
    pub async fn client_gone(self: &Arc<Self>, client: ClientId, below: Option<u64>) -> Result<(), ErrorCode> {
        // Its next life stages again, under numbers that may be these.
        self.data.drop_stages_of(client).await;
        let row: Option<ClientRecord> = self.data.writer.client_row(client)?;
        let Some(row) = row else { return Ok(()) };
        if below.is_some_and(|below| row.incarnation >= below) {
            return Ok(());
        }
        self.slots.lock().replay.forget(client, below);
        // Looked at again in each step: a new life of the client may have begun since.
        let outlived = move |cx: &Context<'_, '_>| -> StoreResult<bool> {
            let row: Option<ClientRecord> = cx.draft.record(Table::Clients, &keys::client(client))?;
            Ok(row.is_some_and(|row| below.is_none_or(|below| row.incarnation < below)))
        };
        self.release_orphans(client, outlived).await?;
        self.data
            .writer
            .internal(move |cx| {
                if !outlived(cx)? {
                    return Ok(());
                }
                cx.draft.delete_prefix(Table::Slots, &keys::client(client))?;
                cx.draft.delete(Table::Clients, &keys::client(client));
                Ok(())
            })
            .await?;
        self.data.writer.forget_client(client);
        Ok(())
    }

    /// Notes that connected clients for which files without a name are kept are there: where room is scarce, how long
    /// they have been silent decides, and only the store knows it after a restart. Clients for which nothing is kept
    /// have a day, and are noted by [`expire_clients`](Self::expire_clients).
    ///
    /// # Errors
    /// As the store fails.
    pub fn note_keepers(&self, connected: &BTreeSet<ClientId>) -> Result<(), ErrorCode> {
        let keepers = {
            let snapshot = self.data.meta.snapshot()?;
            orphans::keepers(&Verified(&*snapshot))?
        };
        for client in keepers.intersection(connected) {
            self.note(*client);
        }
        Ok(())
    }

    /// Writes down, with the next batch, that a client was there.
    fn note(&self, client: ClientId) {
        let now = self.runtime.wall();
        self.data.writer.lazily(move |cx| {
            let key = keys::client(client);
            let Some(row) = cx.draft.record::<ClientRecord>(Table::Clients, &key)? else { return Ok(()) };
            Ok(cx.draft.put(Table::Clients, &key, &ClientRecord { last_seen: now, ..row })?)
        });
    }

    /// Forgets clients that have been silent for a day, and notes that the connected ones were heard of.
    ///
    /// How long a client has been silent is known from the calendar, the only clock that goes on when the server is
    /// restarted. It may be set, so it does not count for those that this process has `heard_of` in the last day. It is
    /// not to be called before clients that live have had time to come back to a server that was restarted.
    ///
    /// # Errors
    /// As the store fails.
    pub async fn expire_clients(
        self: &Arc<Self>,
        connected: &BTreeSet<ClientId>,
        heard_of: &BTreeSet<ClientId>,
    ) -> Result<(), ErrorCode> {
        let known = {
            let snapshot = self.data.meta.snapshot()?;
            rows(&Verified(&*snapshot))?
        };
        let now = self.runtime.wall();
        for (client, record) in known {
            let silent = now.secs.saturating_sub(record.last_seen.secs);
            if connected.contains(&client) {
                self.note(client);
            } else if !heard_of.contains(&client) && silent > CLIENT_FORGOTTEN_AFTER.as_secs() as i64 {
                tracing::info!("volume {}: client {client} has been gone for a day and is forgotten", self.name);
                self.client_gone(client, None).await?;
            }
        }
        Ok(())
    }

    /// Where room is scarce, lets go of the files without a name that are kept for clients which have been silent for
    /// [`ORPHANS_YIELD_AFTER`]: by the calendar, and not `heard_of` by this process in that time. It is not to be called
    /// before clients that live have had time to come back to a server that was restarted.
    ///
    /// # Errors
    /// As the store fails.
    pub async fn orphans_yield(self: &Arc<Self>, heard_of: &BTreeSet<ClientId>) -> Result<(), ErrorCode> {
        if !self.data.room.is_scarce() {
            return Ok(());
        }
        let (known, keepers) = {
            let snapshot = self.data.meta.snapshot()?;
            let view = Verified(&*snapshot);
            (rows(&view)?, orphans::keepers(&view)?)
        };
        let now = self.runtime.wall();
        for (client, record) in known {
            let silent = now.secs.saturating_sub(record.last_seen.secs);
            if !keepers.contains(&client)
                || heard_of.contains(&client)
                || silent <= ORPHANS_YIELD_AFTER.as_secs() as i64
            {
                continue;
            }
            tracing::info!(
                "volume {}: room is scarce; the removed files that client {client} had open go, it has been silent for {} \
                 minutes",
                self.name,
                silent / 60
            );
            // It may come back in between.
            let is_still = move |cx: &Context<'_, '_>| -> StoreResult<bool> {
                let row: Option<ClientRecord> = cx.draft.record(Table::Clients, &keys::client(client))?;
                Ok(row.is_some_and(|row| row.last_seen == record.last_seen))
            };
            self.release_orphans(client, is_still).await?;
        }
        Ok(())
    }

    /// Lets go of what is kept for a client, some at a time, for as long as it may go.
    async fn release_orphans(
        &self,
        client: ClientId,
        may_go: impl Fn(&Context<'_, '_>) -> StoreResult<bool> + Copy + Send + 'static,
    ) -> Result<(), ErrorCode> {
        while self.data.writer.internal(move |cx| Ok(may_go(cx)? && orphans::release_client(cx, client)?)).await? {}
        Ok(())
    }

    /// Which clients the volume holds slots for.
    pub fn clients(&self) -> usize {
        self.slots.lock().replay.clients()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use larder_protocol::attr::Credential;
    use larder_protocol::ids::{Epoch, OpId, VolumeId};
    use larder_protocol::name::Name;
    use larder_protocol::runtime::{SharedRuntime, SimRuntime};
    use larder_protocol::service::file::{CreateHow, Op};

    use super::*;
    use crate::volume::content::memory::MemoryContent;
    use crate::volume::meta::memory::MemoryMetadata;
    use crate::volume::{Durability, open_on, prepare};

    #[tokio::test(start_paused = true)]
    async fn a_client_is_forgotten_after_a_day_unless_it_was_heard_of() {
        let runtime: SharedRuntime = Arc::new(SimRuntime::new(1));
        let (meta, content) = (Arc::new(MemoryMetadata::new()), Arc::new(MemoryContent::new()));
        prepare(&*meta, VolumeId::ROOT, "root", runtime.wall()).unwrap();
        let volume = open_on(meta, content, Durability::Power, Epoch(1), runtime).unwrap();
        let [away, gone, there] = [1, 2, 3].map(ClientId);
        for client in [away, gone, there] {
            let id = OpId { client, incarnation: 1, slot: 0, seq: 1 };
            let name = Name::new(format!("{}", client.0).as_bytes()).unwrap();
            let op = Op::Mkdir { dir: volume.root(), name, mode: 0o755, umask: 0 };
            volume.mutate(&Credential::root(), id, op).await.unwrap();
        }
        let (connected, heard_of) = (BTreeSet::from([there]), BTreeSet::from([away, there]));
        let expire = || volume.expire_clients(&connected, &heard_of);
        tokio::time::sleep(Duration::from_secs(23 * 3600)).await;
        expire().await.unwrap();
        assert_eq!(volume.clients(), 3);
        tokio::time::sleep(Duration::from_secs(2 * 3600)).await;
        expire().await.unwrap();
        assert_eq!(volume.clients(), 2);
        volume.expire_clients(&BTreeSet::new(), &BTreeSet::new()).await.unwrap();
        assert_eq!(volume.clients(), 1, "the one that was there two hours ago");
    }

    #[tokio::test(start_paused = true)]
    async fn what_silent_clients_had_open_yields_when_room_is_scarce() {
        let runtime: SharedRuntime = Arc::new(SimRuntime::new(1));
        let (meta, content) = (Arc::new(MemoryMetadata::new()), Arc::new(MemoryContent::new()));
        prepare(&*meta, VolumeId::ROOT, "root", runtime.wall()).unwrap();
        let volume = open_on(meta, content.clone(), Durability::Power, Epoch(1), runtime).unwrap();
        let [dead, alive, busy] = [1, 2, 3].map(ClientId);
        let mut slot = 0;
        let mut mutate = async |client, op| {
            slot += 1;
            let id = OpId { client, incarnation: 1, slot, seq: 1 };
            volume.mutate(&Credential::root(), id, op).await.unwrap();
        };
        let dir = volume.root();
        for client in [dead, alive, busy] {
            let name = Name::new(format!("{}", client.0).as_bytes()).unwrap();
            let how = CreateHow::Exclusive;
            mutate(client, Op::Create { dir, name: name.clone(), mode: 0o644, umask: 0, how }).await;
            mutate(client, Op::Remove { dir, name, keep: true }).await;
        }
        let keepers = || {
            let snapshot = volume.data.meta.snapshot().unwrap();
            orphans::keepers(&Verified(&*snapshot)).unwrap()
        };
        let yields = async || volume.orphans_yield(&BTreeSet::from([alive])).await.unwrap();
        content.set_disk_size(100 << 20);
        tokio::time::sleep(ORPHANS_YIELD_AFTER + Duration::from_secs(2)).await;
        let name = Name::new(b"one that is used").unwrap();
        mutate(busy, Op::Mkdir { dir, name, mode: 0o755, umask: 0 }).await;
        yields().await;
        assert_eq!(keepers().len(), 3, "there is room");
        content.set_disk_size(8 << 20);
        yields().await;
        assert_eq!(keepers(), BTreeSet::from([alive, busy]));
        assert_eq!(volume.clients(), 3, "what it did is remembered");
        tokio::time::sleep(ORPHANS_YIELD_AFTER + Duration::from_secs(2)).await;
        yields().await;
        assert_eq!(keepers(), BTreeSet::from([alive]));
        // A server that was restarted has heard of nobody.
        volume.note_keepers(&BTreeSet::from([dead, alive])).unwrap();
        volume.data.writer.flush_lazy().await.unwrap();
        let after_restart = async || volume.orphans_yield(&BTreeSet::new()).await.unwrap();
        after_restart().await;
        assert_eq!(keepers(), BTreeSet::from([alive]), "it was there a moment ago");
        tokio::time::sleep(ORPHANS_YIELD_AFTER + Duration::from_secs(2)).await;
        after_restart().await;
        assert_eq!(keepers(), BTreeSet::new());
    }
}
