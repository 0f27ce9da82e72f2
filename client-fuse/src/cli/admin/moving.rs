//! `larder volume move`.

use std::time::Duration;

use anyhow::{anyhow, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use larder_protocol::cell::ServerRecord;
use larder_protocol::service::admin::{AdminReply, AdminRequest};
use larder_protocol::service::transfer::{MovePhase, MoveStatus};
use serde_json::json;

use super::super::options::bytes as size;
use super::super::spec::Server;
use super::show::{bytes, print};
use super::{CellArgs, Session, ask_owner, runtime, strange};

/// How often it is asked how far the move is.
const LOOK_EVERY: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(super) struct MoveArgs {
    /// Its name or number
    volume: String,
    /// Where it is to be: a server's id or address, as `larder server list` shows them
    #[arg(required_unless_present = "abort", conflicts_with = "abort")]
    to: Option<String>,
    /// Bytes in a second that it may take, such as 20M, while programs use the volume [default: as many as go]
    #[arg(long, value_name = "RATE", value_parser = size, conflicts_with = "abort")]
    limit: Option<u64>,
    /// Give up the move that is under way: the volume stays where it is
    #[arg(long)]
    abort: bool,
}

pub(super) fn run(cell: &CellArgs, args: &MoveArgs) -> anyhow::Result<()> {
    let Some(to) = &args.to else {
        return match ask_owner(cell, &args.volume, |place| AdminRequest::AbortMove { volume: place.volume.id })? {
            AdminReply::Volume(place) if cell.json => print(&format!("{:#}\n", super::volume::value(&place))),
            AdminReply::Volume(place) => {
                print(&format!("volume {} ({}) stays where it is\n", place.volume.id, place.volume.name))
            }
            other => Err(strange(&other)),
        };
    };
    let (name, server, status) = runtime()?.block_on(fetch(cell, args, to))?;
    if cell.json {
        print(&format!("{:#}\n", value(&status, &server)))?;
    }
    match status.result {
        Some(Ok(())) | None if cell.json => Ok(()),
        Some(Ok(())) | None => {
            let pause =
                status.frozen_for.map_or_else(String::new, |millis| format!("; programs waited for {millis} ms"));
            let copied =
                if status.copied > 0 { format!("; {} were copied", bytes(status.copied)) } else { String::new() };
            print(&format!("volume {} ({name}) is at {}{copied}{pause}\n", status.volume, server.address))
        }
        Some(Err(reason)) => Err(anyhow!(reason).context(format!("the volume {name} has not moved"))),
    }
}

/// Has it moved, and watches until that is over.
async fn fetch(cell: &CellArgs, args: &MoveArgs, to: &str) -> anyhow::Result<(String, ServerRecord, MoveStatus)> {
    let any = Session::open(&cell.server).await?;
    let found = async {
        let place = any.find(&args.volume).await?;
        match any.ask(AdminRequest::Servers).await? {
            AdminReply::Servers(servers) => Ok((place, find(&servers, to)?)),
            other => Err(strange(&other)),
        }
    };
    let found = found.await;
    any.close().await;
    let (place, server) = found?;
    let volume = place.volume.id;
    let address: Server = server.address.parse().map_err(anyhow::Error::msg)?;
    let destination = Session::open(&address).await?;
    let bar = bar(cell.json);
    let mut request = AdminRequest::Move { volume, limit: args.limit };
    let moved = loop {
        let status = match destination.ask(request).await {
            Ok(AdminReply::Moving(status)) => status,
            Ok(other) => break Err(strange(&other)),
            Err(reason) => {
                break Err(reason.context(format!("cannot tell how far the move of {} is", place.volume.name)));
            }
        };
        bar.set_length(status.total);
        bar.set_position(status.copied);
        bar.set_message(told(&status));
        if status.phase == MovePhase::Ended {
            break Ok(status);
        }
        tokio::time::sleep(LOOK_EVERY).await;
        request = AdminRequest::MoveStatus { volume };
    };
    bar.finish_and_clear();
    destination.close().await;
    Ok((place.volume.name, server, moved?))
}

/// The server that a person means.
fn find(servers: &[ServerRecord], to: &str) -> anyhow::Result<ServerRecord> {
    let host = |address: &str| address.rsplit_once(':').map_or(address, |(host, _)| host).to_owned();
    let exact = servers.iter().find(|server| server.id.to_string() == to || server.address == to);
    let mut by_host = servers.iter().filter(|server| host(&server.address) == to);
    match (exact, by_host.next(), by_host.next()) {
        (Some(server), ..) | (None, Some(server), None) => Ok(server.clone()),
        (None, Some(_), Some(_)) => bail!("several servers are at {to}: name one by its id or its port"),
        (None, None, _) => {
            let there: Vec<&str> = servers.iter().map(|server| server.address.as_str()).collect();
            bail!("no server of this cell is called {to}; there are {} (see `larder server list`)", there.join(", "))
        }
    }
}

fn bar(is_hidden: bool) -> ProgressBar {
    if is_hidden {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {binary_bytes_per_sec} {wide_msg}")
    {
        bar.set_style(style);
    }
    bar
}

fn told(status: &MoveStatus) -> String {
    match (&status.problem, status.phase) {
        (Some(problem), _) => format!("{problem}; trying again"),
        (None, MovePhase::Copying) => "copying".to_owned(),
        (None, MovePhase::CatchingUp) => "copying what has changed".to_owned(),
        (None, MovePhase::Preparing) => "waiting for clients to give up what they have cached".to_owned(),
        (None, MovePhase::Switching) => "switching".to_owned(),
        (None, MovePhase::Ended) => String::new(),
    }
}

fn value(status: &MoveStatus, server: &ServerRecord) -> serde_json::Value {
    json!({
        "volume": status.volume.0,
        "server": server.id.to_string(),
        "address": server.address,
        "moved": !matches!(status.result, Some(Err(_))),
        "copied": status.copied,
        "paused_ms": status.frozen_for,
        "error": match &status.result { Some(Err(reason)) => Some(reason.to_string()), _ => None },
    })
}

#[cfg(test)]
mod tests {
    use larder_protocol::cell::ServerId;
    use larder_protocol::ids::Epoch;

    use super::*;

    #[test]
    fn a_server_is_named_by_its_id_its_address_or_its_host() {
        let server = |id, address: &str| {
            let (id, address, software) = (ServerId(id), address.to_owned(), String::new());
            ServerRecord { id, address, software, epoch: Epoch(1) }
        };
        let servers = [server(1, "east:7425"), server(2, "west:7425"), server(3, "west:7426")];
        let found = |to: &str| find(&servers, to).map(|server| server.id.0).ok();
        assert_eq!(found("0000000000000002"), Some(2));
        assert_eq!(found("west:7426"), Some(3));
        assert_eq!(found("east"), Some(1));
        assert_eq!(found("west"), None, "there are two");
        assert_eq!(found("north"), None);
    }
}
