//! The clients that a volume knows: their replay slots, and what they keep of files without a name.

use std::collections::BTreeSet;
use std::sync::Arc;

use larder_protocol::error::ErrorCode;
use larder_protocol::ids::ClientId;
use larder_protocol::limits::CLIENT_FORGOTTEN_AFTER;
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
        while self.data.writer.internal(move |cx| Ok(outlived(cx)? && orphans::release_client(cx, client)?)).await? {}
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
    /// # Errors
    /// As the store fails.
    pub async fn expire_clients(self: &Arc<Self>, connected: &BTreeSet<ClientId>) -> Result<(), ErrorCode> {
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
            } else if silent > CLIENT_FORGOTTEN_AFTER.as_secs() as i64 {
                tracing::info!("volume {}: client {client} has been gone for a day and is forgotten", self.name);
                self.client_gone(client, None).await?;
            }
        }
        Ok(())
    }

    /// Which clients the volume holds slots for.
    pub fn clients(&self) -> usize {
        self.slots.lock().replay.clients()
    }
}
