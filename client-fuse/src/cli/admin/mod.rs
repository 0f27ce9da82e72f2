//! `larder volume`, `server` and `mountpoint`: looking after a cell.

pub(super) mod mountpoint;
mod moving;
pub(super) mod server;
mod show;
pub(super) mod volume;

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use larder_protocol::attr::Credential;
use larder_protocol::error::ErrorCode;
use larder_protocol::handshake::{Hello, MAX_VERSION, MIN_VERSION};
use larder_protocol::ids::{ClientId, VolumeId};
use larder_protocol::service::LarderClient;
use larder_protocol::service::admin::{AdminError, AdminReply, AdminRequest, Place, VolumeKey};
use tokio::time::timeout;

use super::dial::{dial, runtime, within};
use super::spec::{DEFAULT_PORT, Server};

/// How long a server may take to be reached, and to say hello.
const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// How long it may take for what was asked: who holds leases on a volume may have to be waited for.
const ANSWER_WITHIN: Duration = Duration::from_secs(120);

/// Where to ask, and how to answer.
#[derive(Clone, Debug, Args)]
pub(super) struct CellArgs {
    /// Any server of the cell
    #[arg(long, global = true, value_name = "HOST[:PORT]", env = "LARDER_SERVER", default_value_t = local())]
    server: Server,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

fn local() -> Server {
    Server { host: "127.0.0.1".to_owned(), port: DEFAULT_PORT }
}

/// A connection to a server.
struct Session {
    client: LarderClient,
    server: Server,
}

/// The caller's own rights, as far as the server believes them.
fn credential() -> Credential {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    Credential { uid, gid, groups: Vec::new() }
}

impl Session {
    async fn open(server: &Server) -> anyhow::Result<Session> {
        let opening = async {
            let client = dial(server).await?;
            let hello = Hello {
                min_version: MIN_VERSION,
                max_version: MAX_VERSION,
                client: ClientId(rand::random()),
                incarnation: 1,
                channel: 0,
                generation: 1,
                prompt: false,
                software: concat!("larder ", env!("CARGO_PKG_VERSION")).to_owned(),
            };
            client.hello(within(HELLO_WITHIN), hello).await??;
            anyhow::Ok(Session { client, server: server.clone() })
        };
        let advice = || format!("cannot reach the server at {server}; check the address, and that larderd runs there");
        match timeout(HELLO_WITHIN, opening).await {
            Ok(opened) => opened.with_context(advice),
            Err(_) => Err(anyhow!("no answer within {} s", HELLO_WITHIN.as_secs()).context(advice())),
        }
    }

    async fn ask(&self, request: AdminRequest) -> anyhow::Result<AdminReply> {
        let answer = self.client.admin(within(ANSWER_WITHIN), credential(), request).await;
        Ok(answer.with_context(|| format!("the server at {} does not answer", self.server))??)
    }

    async fn find(&self, volume: &str) -> anyhow::Result<Place> {
        match self.ask(AdminRequest::Find { volume: key(volume) }).await? {
            AdminReply::Volume(place) => Ok(place),
            other => Err(strange(&other)),
        }
    }

    /// Leaves, so that the server need not keep who asked.
    async fn close(self) {
        // What was asked for is done; the server forgets who asked by itself, too, only later.
        let _ = self.client.goodbye(within(HELLO_WITHIN)).await;
    }
}

fn strange(reply: &AdminReply) -> anyhow::Error {
    anyhow!("the server answered something else than was asked ({reply:?}); it may be of another version")
}

/// How a person names a volume: by its number or its name.
fn key(text: &str) -> VolumeKey {
    match text.parse() {
        Ok(number) => VolumeKey::Id(VolumeId(number)),
        Err(_) => VolumeKey::Name(text.to_owned()),
    }
}

/// Asks something of any server.
fn ask_any(cell: &CellArgs, request: AdminRequest) -> anyhow::Result<AdminReply> {
    runtime()?.block_on(async {
        let session = Session::open(&cell.server).await?;
        let reply = session.ask(request).await;
        session.close().await;
        reply
    })
}

/// All volumes of the cell, in the order of their numbers.
fn all_volumes(cell: &CellArgs) -> anyhow::Result<Vec<Place>> {
    runtime()?.block_on(async {
        let session = Session::open(&cell.server).await?;
        let mut all: Vec<Place> = Vec::new();
        let listed = loop {
            match session.ask(AdminRequest::List { after: all.last().map(|place| place.volume.id) }).await {
                Ok(AdminReply::Volumes { volumes, end }) => {
                    let is_over = end || volumes.is_empty();
                    all.extend(volumes);
                    if is_over {
                        break Ok(all);
                    }
                }
                Ok(other) => break Err(strange(&other)),
                Err(error) => break Err(error),
            }
        };
        session.close().await;
        listed
    })
}

/// Asks something of the server that has a volume.
fn ask_owner(
    cell: &CellArgs,
    volume: &str,
    request: impl FnOnce(&Place) -> AdminRequest,
) -> anyhow::Result<AdminReply> {
    runtime()?.block_on(async {
        let any = Session::open(&cell.server).await?;
        let found = any.find(volume).await;
        let asked = match found {
            Ok(place) => at_owner(&any, &place, request(&place)).await,
            Err(error) => Err(error),
        };
        any.close().await;
        asked
    })
}

/// Who is asked already may have the volume, and is asked first: where a server says that it is need not lead to it from
/// everywhere, and must not lead to another.
async fn at_owner(any: &Session, place: &Place, request: AdminRequest) -> anyhow::Result<AdminReply> {
    let asked = any.ask(request.clone()).await;
    let moved =
        |error: &anyhow::Error| error.downcast_ref::<AdminError>().is_some_and(|error| error.code == ErrorCode::Moved);
    if !asked.as_ref().is_err_and(moved) {
        return asked;
    }
    let Some(address) = &place.address else {
        bail!(
            "the server that has the volume {}, {}, is not there; see `larder server list`",
            place.volume.name,
            place.volume.server
        );
    };
    let server: Server = address.parse().map_err(anyhow::Error::msg)?;
    let owner = Session::open(&server).await?;
    let reply = match owner.ask(AdminRequest::Status).await {
        Ok(AdminReply::Status(status)) if status.id == place.volume.server => owner.ask(request).await,
        Ok(_) => Err(anyhow!(
            "the server at {address} is not the one that has the volume {} ({}); see `larder server list`",
            place.volume.name,
            place.volume.server
        )),
        Err(error) => Err(error),
    };
    owner.close().await;
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_named_by_its_number_or_its_name() {
        assert_eq!(key("12"), VolumeKey::Id(VolumeId(12)));
        assert_eq!(key("home"), VolumeKey::Name("home".to_owned()));
    }
}
