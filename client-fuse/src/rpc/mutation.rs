//! A mutation on its way to a server: under one id, whichever server it is sent to.
//!
//! - **X1** What was sent and not answered goes under the same id when it is sent again, also to another server: the slots of
//!   a volume move with it.
//! - **X2** What is given up after it was sent, and before it was answered, keeps its slot until it is certain that it is not
//!   executed later. That is seen to in the background.

use std::sync::Arc;

use larder_protocol::attr::Credential;
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::{Fid, OpId, VolumeId};
use larder_protocol::runtime::BootTime;
use larder_protocol::service::file::{Mutated, NewContents, Op};
use larder_protocol::service::kind::Kind;
use larder_protocol::service::{LarderRequest, LarderResponse};

use super::client::{Tries, error_of, unexpected};
use super::routing::Route;
use super::slot_queue::SlotGuard;
use super::{Client, Failure, Servers};

/// A mutation.
pub struct Mutation {
    cred: Credential,
    op: Op,
    /// Who knows where its volume goes.
    servers: Option<Arc<Servers>>,
    /// When it began, and when it is given up.
    begun: Option<(BootTime, Option<BootTime>)>,
    /// Once it has an id.
    pending: Option<Pending>,
}

impl Mutation {
    /// It was sent nowhere yet. Where its volume goes while it is on its way `servers` know, if there are several.
    pub(super) fn new(cred: &Credential, op: Op, servers: Option<Arc<Servers>>) -> Mutation {
        Mutation { cred: cred.clone(), op, servers, begun: None, pending: None }
    }

    /// Has it carried out by a server, exactly once. After `Moved` it can be sent to another one; otherwise that is its end.
    ///
    /// # Errors
    /// As [`Client::mutate`].
    pub async fn at(&mut self, client: &Arc<Client>) -> Result<Mutated, Failure> {
        let now = client.shared().runtime.boottime();
        let (started, limit) = *self.begun.get_or_insert_with(|| (now, client.give_up_at(now)));
        let result = self.until(client, limit).await;
        if !is_moved(&result) {
            self.pending = None;
            client.record(self.op.kind(), started, result.is_ok());
        }
        if result.is_ok() {
            client.has_written(carried(&self.op));
        }
        result
    }

    async fn until(&mut self, client: &Arc<Client>, limit: Option<BootTime>) -> Result<Mutated, Failure> {
        let volume = self.op.fid().ok_or(Failure::Refused(ErrorCode::Invalid))?.volume;
        let slots = client.shared().slots.of(volume);
        loop {
            let pending = match &mut self.pending {
                Some(pending) => {
                    pending.goes_to(client, &self.op);
                    pending
                }
                None => {
                    let slot = client.bounded(limit, slots.acquire()).await.map_err(Failure::NotSent)?;
                    let (cred, op, servers) = (&self.cred, self.op.clone(), self.servers.clone());
                    self.pending.insert(Pending::new(client.clone(), slot, cred, op, servers))
                }
            };
            let incarnation = pending.life;
            match pending.run(limit).await? {
                Ok(mutated) => return Ok(mutated),
                Err(ErrorCode::UnknownClient | ErrorCode::Fenced) => {
                    // The server has forgotten this life of the client, and with it the recorded results.
                    if client.shared().slots.renew(incarnation) {
                        tracing::warn!("the server has forgotten this client; starting a new incarnation");
                        // All servers are to learn of it: the slots are of one life everywhere.
                        match &self.servers {
                            Some(servers) => servers.all().iter().for_each(|client| client.kill_all()),
                            None => client.kill_all(),
                        }
                    }
                    if pending.tries.open > 0 {
                        // An earlier sending may have been executed, and nobody can tell any more.
                        return Err(Failure::Refused(ErrorCode::Io));
                    }
                    self.pending = None;
                }
                Err(code) => return Err(Failure::Refused(code)),
            }
        }
    }
}

fn is_moved(result: &Result<Mutated, Failure>) -> bool {
    matches!(result, Err(Failure::Refused(ErrorCode::Moved)))
}

/// Bytes of file data that an operation carries.
fn carried(op: &Op) -> u64 {
    match op {
        Op::Append { data, .. } | Op::Store { contents: NewContents::Whole(data), .. } => data.len() as u64,
        _ => 0,
    }
}

/// A mutation with its id (X1).
struct Pending {
    client: Arc<Client>,
    servers: Option<Arc<Servers>>,
    slot: Option<SlotGuard>,
    /// Shared with what sees to it once it is given up.
    route: Arc<Route>,
    request: LarderRequest,
    volume: VolumeId,
    life: u64,
    tries: Tries,
    answered: bool,
    /// How often a server has answered without asking a volume, so that the number was not used up.
    unseen: u32,
}

impl Pending {
    fn new(client: Arc<Client>, slot: SlotGuard, cred: &Credential, op: Op, servers: Option<Arc<Servers>>) -> Pending {
        let place = slot.place();
        let id =
            OpId { client: client.shared().client, incarnation: place.incarnation, slot: place.slot, seq: place.seq };
        let volume = op.fid().map_or(VolumeId::ROOT, |fid| fid.volume);
        Pending {
            route: Arc::new(client.route(&op)),
            client,
            servers,
            slot: Some(slot),
            request: LarderRequest::Mutate { cred: cred.clone(), id, op },
            volume,
            life: place.incarnation,
            tries: Tries::default(),
            answered: false,
            unseen: 0,
        }
    }

    /// It is sent there from now on.
    fn goes_to(&mut self, client: &Arc<Client>, op: &Op) {
        if !Arc::ptr_eq(&self.client, client) {
            self.client = client.clone();
            self.route = Arc::new(client.route(op));
        }
        self.answered = false;
    }

    async fn run(&mut self, limit: Option<BootTime>) -> Result<Result<Mutated, ErrorCode>, Failure> {
        let client = self.client.clone();
        let reply = client.exchange(self.route.channel, &self.request, limit, &mut self.tries, Some(self.life)).await?;
        self.answered = true;
        let LarderResponse::Mutate(result) = reply else { return Err(unexpected(Kind::Create)) };
        if result.as_ref().is_err_and(|code| is_of_no_volume(*code)) {
            self.unseen += 1;
            // That one was not executed; others may have been.
            self.tries.open = self.tries.open.saturating_sub(1);
        }
        Ok(result)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if self.tries.sent > self.unseen
            && let Some(slot) = &mut self.slot
        {
            slot.sent();
        }
        if self.answered || self.tries.open == 0 || self.client.shared().aborted.is_cancelled() {
            return;
        }
        let slot = self.slot.take();
        let (mut client, route, servers) = (self.client.clone(), self.route.clone(), self.servers.clone());
        let (volume, life, mut tries) = (self.volume, self.life, self.tries);
        let Some(request) = without_effect(&self.request) else { return };
        // The next connection fences this one, and with it what is on its way there.
        client.kill(route.channel);
        self.client.shared().runtime.spawn(Box::pin(async move {
            loop {
                let asking = client.exchange(route.channel, &request, None, &mut tries, Some(life));
                let Some(servers) = &servers else {
                    let _ = asking.await;
                    break;
                };
                client = match servers.or_elsewhere(volume, &client, asking).await {
                    // It is not executed there any more; whether it was, the volume knows.
                    Ok(Ok(reply)) if error_of(&reply) == Some(ErrorCode::Moved) => {
                        match servers.moved(volume, &client).await {
                            Ok(other) => other,
                            Err(_) => break,
                        }
                    }
                    Ok(_) => break,
                    Err(other) => other,
                };
            }
            drop((slot, route));
        }));
    }
}

/// A mutation that does nothing, in place of one that was given up: under the same id, so that the server answers it
/// with the result of that one if it was executed or is being so, and otherwise uses the id up. Only a forget of what
/// cannot be there has no effect, and the number of an object is never 0.
fn without_effect(request: &LarderRequest) -> Option<LarderRequest> {
    let LarderRequest::Mutate { cred, id, op } = request else { return None };
    let nothing = Fid { volume: op.fid()?.volume, vnode: 0, generation: 0 };
    Some(LarderRequest::Mutate { cred: cred.clone(), id: *id, op: Op::Forget { fids: vec![nothing] } })
}

/// Whether a server says this without asking a volume: what is refused so has used up no number there.
fn is_of_no_volume(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::NoSuchVolume | ErrorCode::Moved | ErrorCode::Offline | ErrorCode::NoLocation)
}
