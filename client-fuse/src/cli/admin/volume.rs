//! `larder volume`.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use larder_protocol::cell::{Quota, VolumeRecord, VolumeState};
use larder_protocol::ids::VolumeId;
use larder_protocol::limits::DELETED_KEPT;
use larder_protocol::service::admin::{AdminReply, AdminRequest, Place, VolumeUsage};
use serde_json::{Value, json};

use super::super::options::bytes as size;
use super::moving::{self, MoveArgs};
use super::show::{bytes, print, table};
use super::{CellArgs, all_volumes, ask_any, ask_owner, strange};

/// Make, list and look after volumes.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  larder volume create home --quota 50G          on the server at 127.0.0.1
  larder volume --server east:7425 create logs   on another one
  larder volume list
  larder volume set-quota home 100G --max-files 1000000
  larder volume delete home                      it can be restored for seven days
  larder volume restore home
  larder volume move home west:7425              programs go on meanwhile

A volume is named by its name or its number. It appears in the tree once it has a mount point: see `larder mountpoint`.")]
pub(in crate::cli) struct VolumeArgs {
    #[command(flatten)]
    cell: CellArgs,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a volume, on the server that is asked
    Create {
        /// Letters, digits, dots, hyphens and underscores
        name: String,
        #[command(flatten)]
        quota: QuotaArgs,
    },
    /// All volumes of the cell
    List,
    /// What a volume holds
    Show {
        /// Its name or number
        volume: String,
    },
    /// Call a volume otherwise
    Rename {
        /// Its name or number
        volume: String,
        /// Its name from now on
        name: String,
    },
    /// Take a volume away; it can be restored for seven days
    Delete {
        /// Its name or number
        volume: String,
    },
    /// Bring a volume back that was deleted
    Restore {
        /// Its name or number
        volume: String,
        /// Its name from now on, if another volume has the one that it had
        #[arg(long)]
        name: Option<String>,
    },
    /// Set how much a volume may hold
    SetQuota {
        /// Its name or number
        volume: String,
        /// Bytes, such as 500M or 20G, or `none`
        #[arg(value_parser = limit)]
        bytes: Limit,
        /// Files, directories and all else that has a number, or `none` [default: as it is]
        #[arg(long, value_name = "N", value_parser = count)]
        max_files: Option<Limit>,
    },
    /// Keep programs from a volume
    Offline {
        /// Its name or number
        volume: String,
    },
    /// Let programs use a volume again
    Online {
        /// Its name or number
        volume: String,
    },
    /// Move a volume to another server while programs use it; that goes on if this command is interrupted
    Move(MoveArgs),
}

#[derive(Debug, Args)]
struct QuotaArgs {
    /// Bytes that it may hold, such as 500M or 20G [default: as many as the server has room for]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    quota: Option<u64>,
    /// Files, directories and all else that has a number
    #[arg(long, value_name = "N")]
    max_files: Option<u64>,
}

/// So much, or as much as there is.
type Limit = Option<u64>;

fn limit(text: &str) -> Result<Limit, String> {
    if text == "none" { Ok(None) } else { size(text).map(Some).map_err(str::to_owned) }
}

fn count(text: &str) -> Result<Limit, String> {
    match text {
        "none" => Ok(None),
        text => text.parse().map(Some).map_err(|_| format!("`{text}` is no number of files; write one, or `none`")),
    }
}

pub(in crate::cli) fn run(args: &VolumeArgs) -> anyhow::Result<()> {
    let cell = &args.cell;
    let json = cell.json;
    match &args.verb {
        Verb::Create { name, quota } => {
            let quota = Quota { bytes: quota.quota, files: quota.max_files };
            changed(json, "is made", ask_any(cell, AdminRequest::Create { name: name.clone(), quota })?)
        }
        Verb::List => list(json, &all_volumes(cell)?),
        Verb::Show { volume } => {
            match ask_owner(cell, volume, |place| AdminRequest::Show { volume: place.volume.id })? {
                AdminReply::Shown { place, usage } => show(json, &place, &usage),
                other => Err(strange(&other)),
            }
        }
        Verb::Rename { volume, name } => {
            let request = |place: &Place| AdminRequest::Rename { volume: place.volume.id, name: name.clone() };
            changed(json, "has its new name", ask_owner(cell, volume, request)?)
        }
        Verb::Delete { volume } => {
            let days = DELETED_KEPT.as_secs() / 86_400;
            let told = format!("is deleted; for {days} days, `larder volume restore` brings it back");
            let request = |place: &Place| AdminRequest::Delete { volume: place.volume.id };
            changed(json, &told, ask_owner(cell, volume, request)?)
        }
        Verb::Restore { volume, name } => {
            let request = |place: &Place| AdminRequest::Restore { volume: place.volume.id, name: name.clone() };
            changed(json, "is back", ask_owner(cell, volume, request)?)
        }
        Verb::SetQuota { volume, bytes, max_files } => {
            let files = match max_files {
                Some(files) => *files,
                None => match ask_owner(cell, volume, |place| AdminRequest::Show { volume: place.volume.id })? {
                    AdminReply::Shown { usage, .. } => usage.quota.files,
                    other => return Err(strange(&other)),
                },
            };
            let quota = Quota { bytes: *bytes, files };
            let request = |place: &Place| AdminRequest::SetQuota { volume: place.volume.id, quota };
            changed(json, &format!("may hold {}", of_quota(quota)), ask_owner(cell, volume, request)?)
        }
        Verb::Offline { volume } => {
            let request = |place: &Place| AdminRequest::SetOnline { volume: place.volume.id, online: false };
            changed(json, "is offline", ask_owner(cell, volume, request)?)
        }
        Verb::Online { volume } => {
            let request = |place: &Place| AdminRequest::SetOnline { volume: place.volume.id, online: true };
            changed(json, "is online", ask_owner(cell, volume, request)?)
        }
        Verb::Move(args) => moving::run(cell, args),
    }
}

fn of_quota(quota: Quota) -> String {
    let size = quota.bytes.map_or_else(|| "as much as the server has room for".to_owned(), bytes);
    match quota.files {
        Some(files) => format!("{size}, in {files} files at most"),
        None => size,
    }
}

fn changed(json: bool, told: &str, reply: AdminReply) -> anyhow::Result<()> {
    match reply {
        AdminReply::Volume(place) if json => print(&format!("{:#}\n", value(&place))),
        AdminReply::Volume(place) => print(&format!("volume {} ({}) {told}\n", place.volume.id, place.volume.name)),
        other => Err(strange(&other)),
    }
}

fn state(record: &VolumeRecord) -> &'static str {
    match record.state {
        VolumeState::Online if record.moving.is_some() => "moving",
        VolumeState::Online => "online",
        VolumeState::Offline => "offline",
        VolumeState::Deleted { .. } => "deleted",
    }
}

fn server(place: &Place) -> String {
    place.address.clone().unwrap_or_else(|| format!("{} (not there)", place.volume.server))
}

pub(super) fn value(place: &Place) -> Value {
    let record = &place.volume;
    json!({
        "id": record.id.0,
        "name": record.name,
        "state": state(record),
        "deleted": match record.state { VolumeState::Deleted { since } => Some(since.secs), _ => None },
        "server": record.server.to_string(),
        "address": place.address,
        "moving": record.moving.map(|moving| json!({ "to": moving.to.to_string(), "frozen": moving.frozen })),
        "mounted": record.mounted.map(|at| json!({ "volume": at.volume.0, "vnode": at.vnode })),
    })
}

fn list(json: bool, places: &[Place]) -> anyhow::Result<()> {
    if json {
        return print(&format!("{:#}\n", Value::Array(places.iter().map(value).collect())));
    }
    let names: BTreeMap<VolumeId, &str> =
        places.iter().map(|place| (place.volume.id, place.volume.name.as_str())).collect();
    let mut lines = vec![["id", "name", "state", "server", "mounted in"].map(str::to_owned).to_vec()];
    for place in places {
        let record = &place.volume;
        let mounted = record
            .mounted
            .map(|at| names.get(&at.volume).map_or_else(|| at.volume.to_string(), |name| (*name).to_owned()));
        lines.push(vec![
            record.id.to_string(),
            record.name.clone(),
            state(record).to_owned(),
            server(place),
            mounted.unwrap_or_default(),
        ]);
    }
    print(&table(&lines))
}

fn show(json: bool, place: &Place, usage: &VolumeUsage) -> anyhow::Result<()> {
    if json {
        let mut shown = value(place);
        shown["bytes"] = json!(usage.bytes);
        shown["files"] = json!(usage.files);
        shown["quota"] = json!({ "bytes": usage.quota.bytes, "files": usage.quota.files });
        shown["created"] = json!(usage.created);
        shown["path"] = json!(usage.path);
        return print(&format!("{shown:#}\n"));
    }
    let record = &place.volume;
    let mounted = record.mounted.map_or_else(|| "nowhere".to_owned(), |at| format!("in volume {}", at.volume));
    let lines = [
        ("volume", format!("{} ({})", record.id, record.name)),
        ("state", state(record).to_owned()),
        ("server", server(place)),
        ("directory", usage.path.clone()),
        ("mounted", mounted),
        ("holds", format!("{} in {} files", bytes(usage.bytes), usage.files)),
        ("may hold", of_quota(usage.quota)),
    ];
    let lines: Vec<Vec<String>> = lines.into_iter().map(|(name, text)| vec![name.to_owned(), text]).collect();
    print(&table(&lines))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_is_a_size_or_none() {
        assert_eq!(limit("none"), Ok(None));
        assert_eq!(limit("2G"), Ok(Some(2 << 30)));
        assert_eq!(count("7"), Ok(Some(7)));
        assert!(count("many").is_err());
    }
}
