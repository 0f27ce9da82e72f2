//! `larder server`.

use std::time::Duration;

use clap::{Args, Subcommand};
use larder_protocol::cell::ServerRecord;
use larder_protocol::service::admin::{AdminReply, AdminRequest, ServerStatus};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::show::{bytes, print, span, table};
use super::{CellArgs, Session, runtime, strange};

/// How long a server may take to tell about itself.
const TELLS_WITHIN: Duration = Duration::from_secs(3);

/// Show the servers of a cell.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  larder server --server any.server:7425 list")]
pub(in crate::cli) struct ServerArgs {
    #[command(flatten)]
    cell: CellArgs,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// All servers that have said lately that they are there, and what each has and does
    List,
}

pub(in crate::cli) fn run(args: &ServerArgs) -> anyhow::Result<()> {
    let Verb::List = args.verb;
    let servers = runtime()?.block_on(async {
        let any = Session::open(&args.cell.server).await?;
        let servers = match any.ask(AdminRequest::Servers).await {
            Ok(AdminReply::Servers(servers)) => Ok(servers),
            Ok(other) => Err(strange(&other)),
            Err(error) => Err(error),
        };
        any.close().await;
        let asking = servers?.into_iter().map(|server| async move {
            let status = status(&server).await.ok();
            (server, status)
        });
        anyhow::Ok(futures::future::join_all(asking).await)
    })?;
    if args.cell.json {
        return print(&format!("{:#}\n", Value::Array(servers.iter().map(value).collect())));
    }
    let head =
        ["id", "address", "answers", "version", "epoch", "up", "volumes", "open", "clients", "load", "free", "of"];
    let mut lines = vec![head.map(str::to_owned).to_vec()];
    for (server, status) in &servers {
        let mut line = vec![server.id.to_string(), server.address.clone()];
        line.push(if status.is_some() { "yes" } else { "no" }.to_owned());
        line.push(server.software.clone());
        line.push(format!("{:016x}", server.epoch.0));
        if let Some(status) = status {
            line.extend([
                span(status.uptime),
                status.volumes.to_string(),
                status.open.to_string(),
                status.clients.to_string(),
                format!("{:.2}", f64::from(status.load) / 1000.0),
                bytes(status.free),
                bytes(status.total),
            ]);
        }
        lines.push(line);
    }
    print(&table(&lines))
}

async fn status(server: &ServerRecord) -> anyhow::Result<ServerStatus> {
    let asking = async {
        let session = Session::open(&server.address.parse().map_err(anyhow::Error::msg)?).await?;
        let reply = session.ask(AdminRequest::Status).await;
        session.close().await;
        match reply? {
            AdminReply::Status(status) => Ok(status),
            other => Err(strange(&other)),
        }
    };
    timeout(TELLS_WITHIN, asking).await?
}

fn value((server, status): &(ServerRecord, Option<ServerStatus>)) -> Value {
    let told = status.as_ref().map(|status| {
        json!({
            "volumes": status.volumes,
            "open": status.open,
            "clients": status.clients,
            "requests": status.requests,
            "uptime": status.uptime,
            "total": status.total,
            "free": status.free,
            "load": f64::from(status.load) / 1000.0,
            "location": status.location,
        })
    });
    json!({
        "id": server.id.to_string(),
        "address": server.address,
        "version": server.software,
        "epoch": format!("{:016x}", server.epoch.0),
        "answers": status.is_some(),
        "status": told,
    })
}
