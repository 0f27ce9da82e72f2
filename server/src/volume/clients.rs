//! The clients that a volume knows: their replay slots, and what they keep of files without a name.

use std::collections::BTreeSet;
use std::sync::Arc;

use larder_protocol::error::ErrorCode;
use larder_protocol::ids::ClientId;
use larder_protocol::limits::{CLIENT_FORGOTTEN_AFTER, ORPHANS_YIELD_AFTER};
use larder_protocol::runtime::RuntimeExt;
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
                self.data.writer.lazily(move |cx| {
                    let key = keys::client(client);
                    let Some(row) = cx.draft.record::<ClientRecord>(Table::Clients, &key)? else { return Ok(()) };
                    Ok(cx.draft.put(Table::Clients, &key, &ClientRecord { last_seen: now, ..row })?)
                });
            } else if !heard_of.contains(&client) && silent > CLIENT_FORGOTTEN_AFTER.as_secs() as i64 {
                tracing::info!("volume {}: client {client} has been gone for a day and is forgotten", self.name);
                self.client_gone(client, None).await?;
            }
        }
        Ok(())
    }

    /// Where room is scarce, lets go of the files without a name that are kept for clients of which `is_heard` says that
    /// they are not: the longest gone first, and as many as it takes. It is asked again in each batch: a client may come
    /// back meanwhile. Says whether all could go that was to; the log says why not.
    pub async fn orphans_yield(self: &Arc<Self>, is_heard: impl Fn(ClientId) -> bool + Clone + Send + 'static) -> bool {
        let was_wanted = self.data.room.was_wanted();
        if !was_wanted && !self.data.room.is_scarce() {
            return true;
        }
        let keepers = match self.keepers().await {
            Ok(keepers) => keepers,
            Err(code) => {
                tracing::warn!("volume {}: cannot see for whom removed files are kept: {code}", self.name);
                return false;
            }
        };
        let mut has_gone = false;
        let mut is_well = true;
        for client in keepers.into_iter().filter(|client| !is_heard(*client)) {
            // Who found no room gets what the first one leaves, and says so again if that is not enough.
            if self.data.hurry.is_cancelled() || !(self.data.room.is_scarce() || was_wanted && !has_gone) {
                break;
            }
            tracing::info!(
                "volume {}: room is scarce; the removed files that client {client} had open go, nothing was heard of it for \
                 {} minutes",
                self.name,
                ORPHANS_YIELD_AFTER.as_secs() / 60
            );
            let is_heard = is_heard.clone();
            match self.release_orphans(client, move |_: &Context<'_, '_>| Ok(!is_heard(client))).await {
                Ok(()) => has_gone = true,
                // What another client left may be whole.
                Err(code) => {
                    tracing::warn!("volume {}: what client {client} left cannot go: {code}", self.name);
                    is_well = false;
                }
            }
            self.data.removals_ended().await;
        }
        is_well
    }

    /// The clients for which files without a name are kept, the longest gone first.
    async fn keepers(self: &Arc<Self>) -> Result<Vec<ClientId>, ErrorCode> {
        let meta = Arc::clone(&self.data.meta);
        let look = move || {
            let snapshot = meta.snapshot()?;
            let view = Verified(&*snapshot);
            let keepers = orphans::keepers(&view)?;
            let mut known = rows(&view)?;
            known.retain(|(client, _)| keepers.contains(client));
            known.sort_by_key(|(client, record)| (record.last_seen, *client));
            StoreResult::Ok(known.into_iter().map(|(client, _)| client).collect())
        };
        Ok(self.runtime.blocking(look).await.ok_or(ErrorCode::Internal)??)
    }

    /// Lets go of what is kept for a client, some at a time, for as long as it may go.
    ///
    /// # Errors
    /// `Unavailable` if the server is to end; as the store fails.
    async fn release_orphans(
        &self,
        client: ClientId,
        may_go: impl Fn(&Context<'_, '_>) -> StoreResult<bool> + Clone + Send + 'static,
    ) -> Result<(), ErrorCode> {
        loop {
            let may_go = may_go.clone();
            if !self.data.writer.internal(move |cx| Ok(may_go(cx)? && orphans::release_client(cx, client)?)).await? {
                return Ok(());
            }
            if self.data.hurry.is_cancelled() {
                return Err(ErrorCode::Unavailable);
            }
        }
    }

    /// Which clients the volume holds slots for.
    pub fn clients(&self) -> usize {
        self.slots.lock().replay.clients()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use larder_protocol::attr::Credential;
    use larder_protocol::ids::{Epoch, OpId, VolumeId};
    use larder_protocol::name::Name;
    use larder_protocol::payload::Payload;
    use larder_protocol::runtime::{SharedRuntime, SimRuntime};
    use larder_protocol::service::file::{AllocateHow, CreateHow, Op, OpReply, WriteRequest};

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

    /// A volume in memory, in which clients have so many removed files open.
    async fn with_orphans(of: &[(ClientId, usize)]) -> (Arc<Volume>, Arc<MemoryMetadata>, Arc<MemoryContent>) {
        let runtime: SharedRuntime = Arc::new(SimRuntime::new(1));
        let (meta, content) = (Arc::new(MemoryMetadata::new()), Arc::new(MemoryContent::new()));
        prepare(&*meta, VolumeId::ROOT, "root", runtime.wall()).unwrap();
        let volume = open_on(meta.clone(), content.clone(), Durability::Power, Epoch(1), runtime).unwrap();
        let dir = volume.root();
        let how = CreateHow::Exclusive;
        for (client, files) in of {
            for file in 0..*files as u64 {
                let name = Name::new(format!("{}-{file}", client.0).as_bytes()).unwrap();
                let create = Op::Create { dir, name: name.clone(), mode: 0o644, umask: 0, how };
                for (step, op) in [create, Op::Remove { dir, name, keep: true }].into_iter().enumerate() {
                    let id = OpId { client: *client, incarnation: 1, slot: 0, seq: 2 * file + step as u64 + 1 };
                    volume.mutate(&Credential::root(), id, op).await.unwrap();
                }
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        (volume, meta, content)
    }

    /// For whom how many files are kept.
    fn kept(volume: &Volume) -> BTreeMap<ClientId, usize> {
        let snapshot = volume.data.meta.snapshot().unwrap();
        let mut kept = BTreeMap::new();
        for (key, _) in Verified(&*snapshot).with_prefix(Table::Orphans, &[], usize::MAX).unwrap() {
            let client = ClientId(u128::from_be_bytes(key[8..].try_into().unwrap()));
            *kept.entry(client).or_default() += 1;
        }
        kept
    }

    const DEAD: ClientId = ClientId(7);
    const LATER: ClientId = ClientId(3);
    const ALIVE: ClientId = ClientId(5);

    #[tokio::test(start_paused = true)]
    async fn what_clients_had_open_that_are_not_heard_yields_when_room_is_scarce() {
        let (volume, _, content) = with_orphans(&[(DEAD, 1), (LATER, 1), (ALIVE, 1)]).await;
        let yields = async || assert!(volume.orphans_yield(|client| client == ALIVE).await);
        content.set_disk_size(100 << 20);
        yields().await;
        assert_eq!(kept(&volume).len(), 3, "there is room");
        content.set_disk_size(8 << 20);
        yields().await;
        assert_eq!(kept(&volume), BTreeMap::from([(ALIVE, 1)]));
        assert_eq!(volume.clients(), 3, "what they did is remembered");
    }

    #[tokio::test(start_paused = true)]
    async fn who_found_no_room_gets_what_the_longest_gone_has() {
        let (volume, _, content) = with_orphans(&[(DEAD, 1), (LATER, 1), (ALIVE, 1)]).await;
        let dir = volume.root();
        let op =
            Op::Create { dir, name: Name::new(b"file").unwrap(), mode: 0o644, umask: 0, how: CreateHow::Exclusive };
        let id = OpId { client: ALIVE, incarnation: 1, slot: 0, seq: 3 };
        let made = volume.mutate(&Credential::root(), id, op).await.unwrap();
        let OpReply::Entry { attr, .. } = made.reply else { panic!("{made:?}") };
        let data = Payload(vec![1; 1 << 20].into());
        let request = WriteRequest::one(attr.fid, 0, data, true);
        volume.write(&Credential::root(), request).await.unwrap();
        content.set_disk_size(100 << 20);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let allocate = |seq, len| {
            let id = OpId { client: ALIVE, incarnation: 1, slot: 1, seq };
            let op = Op::Allocate { fid: attr.fid, offset: 2 << 20, len, how: AllocateHow::ReserveKeepSize };
            let volume = volume.clone();
            async move { volume.mutate(&Credential::root(), id, op).await.map(drop) }
        };
        let yields = async || assert!(volume.orphans_yield(|client| client == ALIVE).await);
        // More than the disk is: nothing that is kept is in its way.
        assert_eq!(allocate(1, 200 << 20).await, Err(ErrorCode::NoSpace));
        yields().await;
        assert_eq!(kept(&volume).len(), 3);
        assert_eq!(allocate(2, 87 << 20).await, Err(ErrorCode::NoSpace));
        yields().await;
        assert_eq!(kept(&volume), BTreeMap::from([(LATER, 1), (ALIVE, 1)]));
        yields().await;
        assert_eq!(kept(&volume).len(), 2, "nobody has asked since");
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_go_does_not_hold_up_what_can() {
        let (volume, meta, content) = with_orphans(&[(DEAD, 1), (LATER, 1)]).await;
        content.set_disk_size(8 << 20);
        meta.fail_next_commit(StoreError::Corrupt("a row".to_owned()));
        assert!(!volume.orphans_yield(|_| false).await);
        assert_eq!(kept(&volume), BTreeMap::from([(DEAD, 1)]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_comes_back_keeps_what_is_left() {
        let (volume, _, content) = with_orphans(&[(DEAD, 300)]).await;
        content.set_disk_size(8 << 20);
        let asked = Arc::new(AtomicU32::new(0));
        // It is back when the first of two batches is done.
        let is_heard = move |_| asked.fetch_add(1, Ordering::SeqCst) >= 2;
        assert!(volume.orphans_yield(is_heard).await);
        assert_eq!(kept(&volume), BTreeMap::from([(DEAD, 44)]));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_more_goes_when_the_server_ends() {
        let (volume, _, content) = with_orphans(&[(DEAD, 300), (LATER, 1)]).await;
        content.set_disk_size(8 << 20);
        volume.hurry();
        assert_eq!(volume.client_gone(DEAD, None).await, Err(ErrorCode::Unavailable));
        assert_eq!(kept(&volume), BTreeMap::from([(DEAD, 44), (LATER, 1)]));
        let snapshot = volume.data.meta.snapshot().unwrap();
        assert_eq!(rows(&Verified(&*snapshot)).unwrap().len(), 2, "the next life knows who has them");
        volume.orphans_yield(|_| false).await;
        assert_eq!(kept(&volume).len(), 2);
    }
}
