//! `larder cache`: what a mount keeps on this machine's disk.

use std::collections::HashSet;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, anyhow, bail};
use larder_protocol::error::ErrorCode;
use serde_json::{Value, json};

use super::control::{CacheCommand, Caller, Command};
use super::{CacheArgs, CacheVerb, mounts, rundir};
use crate::mode::afs::disk::{Evicted, Listed, ListedState, Verified};
use crate::vfs::{Error, Vfs};

/// How long one step may take: a file may have to be fetched or read for it.
const ANSWER_WITHIN: Duration = Duration::from_secs(600);
/// Files listed in one answer.
const PIECE: usize = 2000;

pub(super) fn run(args: &CacheArgs) -> anyhow::Result<()> {
    let mut caller = caller(&args.mountpoint)?;
    // What is to be forgotten has a number and no path.
    let path = args.path.as_ref().filter(|_| args.verb != CacheVerb::Forget);
    let below = path.map(|path| resolve(&args.mountpoint, path)).transpose()?;
    let mut out = io::stdout().lock();
    match args.verb {
        CacheVerb::Status => {
            let status = ask(&mut caller, CacheCommand::Status)?;
            if args.json {
                writeln!(out, "{status:#}")?;
            } else {
                print_status(&mut out, &status)?;
            }
            Ok(())
        }
        CacheVerb::List => {
            let mut files: Vec<Value> = Vec::new();
            loop {
                let after = files.last().and_then(|last| last["id"].as_u64()).unwrap_or(0);
                let piece = ask(&mut caller, CacheCommand::List(after))?;
                let Some(Value::Array(piece)) = piece.get("files").cloned() else { bail!("a strange answer") };
                // Files that come meanwhile have larger numbers, and may come as fast as they are asked for.
                let is_last = piece.len() < PIECE;
                files.extend(piece);
                if is_last {
                    break;
                }
            }
            files.sort_by_key(|file| file["inode"].as_u64());
            if let Some(path) = &below {
                let wanted: HashSet<u64> = regular_files(path)?.iter().map(|(inode, _)| *inode).collect();
                files.retain(|file| file["inode"].as_u64().is_some_and(|inode| wanted.contains(&inode)));
            }
            if args.json {
                writeln!(out, "{:#}", Value::Array(files))?;
            } else {
                print_list(&mut out, &files)?;
            }
            Ok(())
        }
        CacheVerb::Verify => {
            let results = match &below {
                None => vec![ask(&mut caller, CacheCommand::VerifyAll)?],
                Some(path) => each(&mut caller, path, CacheCommand::Verify)?,
            };
            if let Some(error) = results.iter().find_map(refusal) {
                bail!("{error}");
            }
            let verified: Vec<Value> =
                results.iter().filter_map(|result| result["verified"].as_array()).flatten().cloned().collect();
            let damaged: Vec<&Value> = verified.iter().filter(|one| !one["error"].is_null()).collect();
            for one in &damaged {
                writeln!(out, "{}: {}", text(&one["name"]), text(&one["error"]))?;
            }
            writeln!(out, "{} of {} copies are damaged; they will be fetched again", damaged.len(), verified.len())?;
            Ok(())
        }
        CacheVerb::Pin | CacheVerb::Unpin | CacheVerb::Evict => {
            let path =
                below.ok_or_else(|| anyhow!("name the file or directory, such as a path below the mount point"))?;
            let command = match args.verb {
                CacheVerb::Pin => CacheCommand::Pin,
                CacheVerb::Unpin => CacheCommand::Unpin,
                _ => CacheCommand::Evict,
            };
            let results = each(&mut caller, &path, command)?;
            let mut refused = 0;
            for result in &results {
                if let Some(error) = refusal(result) {
                    refused += 1;
                    eprintln!("larder: {}: {error}", text(&result["path"]));
                }
            }
            let done = match args.verb {
                CacheVerb::Pin => "pinned",
                CacheVerb::Unpin => "unpinned",
                _ => "evicted",
            };
            writeln!(out, "{} {done}", files(results.len() - refused))?;
            if refused > 0 { Err(anyhow!("{} could not be {done}", files(refused))) } else { Ok(()) }
        }
        CacheVerb::Forget => {
            let Some(id) = args.path.as_ref().and_then(|path| path.to_str()).and_then(|text| text.parse().ok()) else {
                bail!("give the number of the conflict, as `larder cache list` shows it");
            };
            ask(&mut caller, CacheCommand::Forget(id))?;
            writeln!(out, "conflict {id} is forgotten")?;
            Ok(())
        }
    }
}

/// Why the mount has not done what it was asked to.
fn refusal(answer: &Value) -> Option<&str> {
    answer.get("error").and_then(Value::as_str)
}

fn files(number: usize) -> String {
    if number == 1 { "1 file".to_owned() } else { format!("{number} files") }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

/// A path as the user gave it: below the mount point, or a path of its own.
fn resolve(mountpoint: &Path, path: &Path) -> anyhow::Result<PathBuf> {
    let inside = mountpoint.join(path);
    let found = if inside.symlink_metadata().is_ok() { inside } else { path.to_owned() };
    let missing = || format!("there is no {} in {}", path.display(), mountpoint.display());
    let (mine, root) = (found.symlink_metadata().with_context(missing)?, mountpoint.metadata().with_context(missing)?);
    if mine.dev() != root.dev() {
        bail!("{} is not in the mount {}", path.display(), mountpoint.display());
    }
    Ok(found)
}

/// The regular files at and below a path, with their inode numbers.
fn regular_files(path: &Path) -> anyhow::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    let dev = path.symlink_metadata().with_context(|| format!("cannot look at {}", path.display()))?.dev();
    let mut left = vec![path.to_owned()];
    while let Some(path) = left.pop() {
        let meta = path.symlink_metadata().with_context(|| format!("cannot look at {}", path.display()))?;
        if meta.dev() != dev {
            // Another mount, inside: its numbers are others.
            continue;
        }
        if meta.is_dir() {
            let entries = std::fs::read_dir(&path).with_context(|| format!("cannot list {}", path.display()))?;
            for entry in entries {
                left.push(entry?.path());
            }
        } else if meta.is_file() {
            found.push((meta.ino(), path));
        }
    }
    Ok(found)
}

/// Asks for something about each file at and below a path; answers that say no are among the results.
fn each(caller: &mut Caller, path: &Path, command: fn(u64) -> CacheCommand) -> anyhow::Result<Vec<Value>> {
    let mut results = Vec::new();
    for (inode, path) in regular_files(path)? {
        let mut result = caller.ask(Command::Cache(command(inode)), ANSWER_WITHIN).context("no answer")?;
        result["path"] = json!(path.display().to_string());
        results.push(result);
    }
    Ok(results)
}

fn ask(caller: &mut Caller, command: CacheCommand) -> anyhow::Result<Value> {
    let answer =
        caller.ask(Command::Cache(command), ANSWER_WITHIN).context("the process of the mount does not answer")?;
    match refusal(&answer) {
        Some(error) => bail!("{error}"),
        None => Ok(answer),
    }
}

fn caller(path: &Path) -> anyhow::Result<Caller> {
    let shown = path.display();
    let mount = mounts::find(path)
        .with_context(|| format!("cannot find the mount on {shown}"))?
        .filter(mounts::Mount::is_larder)
        .ok_or_else(|| anyhow!("{shown} is not a mount point of Larder"))?;
    let gone = || anyhow!("the process of {shown} is gone; remove the mount with `larder umount --force {shown}`");
    let socket = rundir::socket_of(&mount).ok_or_else(gone)?;
    Caller::connect(&socket).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => {
            anyhow!("user {} made the mount on {shown}; ask as that user, or as root", mount.user_id.unwrap_or(0))
        }
        _ => gone(),
    })
}

fn print_status(out: &mut impl Write, status: &Value) -> io::Result<()> {
    let Value::Object(fields) = status else { return writeln!(out, "{status}") };
    let width = fields.keys().map(String::len).max().unwrap_or(0);
    for (name, value) in fields {
        let shown = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        writeln!(out, "{:width$}  {shown}", name.replace('_', " "))?;
    }
    Ok(())
}

fn print_list(out: &mut impl Write, files: &[Value]) -> io::Result<()> {
    writeln!(out, "{:>12}  {:9}  {:6}  {:>12}  NAME", "SIZE", "STATE", "PINNED", "INODE")?;
    for file in files {
        let pinned = if file["pinned"] == json!(true) { "pinned" } else { "" };
        let (size, inode) = (file["size"].as_u64().unwrap_or(0), file["inode"].as_u64().unwrap_or(0));
        let state = text(&file["state"]);
        write!(out, "{size:>12}  {state:9}  {pinned:6}  {inode:>12}  {}", file["name"].as_str().unwrap_or("-"))?;
        if state == "conflict" {
            let id = file["id"].as_u64().unwrap_or(0);
            write!(out, "  (conflict {id}: {}; kept as {})", text(&file["why"]), text(&file["path"]))?;
        }
        writeln!(out)?;
    }
    Ok(())
}

fn shown_name(name: Option<&[u8]>) -> Value {
    name.map_or(Value::Null, |name| json!(String::from_utf8_lossy(name)))
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn listed(file: &Listed) -> Value {
    let (state, path, why) = match &file.state {
        ListedState::Clean => ("clean", None, None),
        ListedState::Dirty => ("dirty", None, None),
        ListedState::Conflict { path, why } => ("conflict", Some(path.display().to_string()), Some(why.clone())),
    };
    json!({
        "id": file.id,
        "inode": file.fid.inode_number(),
        "fid": file.fid.to_string(),
        "name": shown_name(file.name.as_deref()),
        "size": file.size,
        "state": state,
        "path": path,
        "why": why,
        "version": file.version,
        "pinned": file.pinned,
        "open": file.open,
        "last_used": seconds(file.last_used),
    })
}

/// Some of a list, from behind a file's number on. Not from a place on: what is in the cache changes between two pieces.
fn piece_after(mut all: Vec<Listed>, after: u64, len: usize) -> Vec<Listed> {
    all.retain(|file| file.id > after);
    all.sort_unstable_by_key(|file| file.id);
    all.truncate(len);
    all
}

fn verified(one: &Verified) -> Value {
    json!({
        "name": one.name.as_deref().map_or_else(|| json!(one.fid.to_string()), |name| shown_name(Some(name))),
        "error": one.ok.as_ref().err(),
    })
}

/// Answers a command, in the process behind the mount.
pub(super) async fn answer(vfs: &Vfs, command: CacheCommand) -> Value {
    if vfs.disk_cache().is_none() {
        return json!({ "error": "this mount has no cache on disk; only those with --mode afs have" });
    }
    let result = carry_out(vfs, command).await;
    result.unwrap_or_else(|error| json!({ "error": error.to_string() }))
}

async fn carry_out(vfs: &Vfs, command: CacheCommand) -> Result<Value, Error> {
    let verify = |found: Vec<Verified>| json!({ "verified": found.iter().map(verified).collect::<Vec<_>>() });
    Ok(match command {
        CacheCommand::Status => {
            let mut status = serde_json::to_value(vfs.stats().cache).unwrap_or(Value::Null);
            if let (Some(fields), Some(cache)) = (status.as_object_mut(), &vfs.options().cache) {
                fields.insert("directory".to_owned(), json!(cache.dir.display().to_string()));
            }
            status
        }
        CacheCommand::List(after) => {
            let piece = piece_after(vfs.cache_list().await?, after, PIECE);
            json!({ "files": piece.iter().map(listed).collect::<Vec<_>>() })
        }
        CacheCommand::VerifyAll => verify(vfs.cache_verify(None).await?),
        CacheCommand::Verify(inode) => verify(vfs.cache_verify(Some(inode)).await?),
        CacheCommand::Pin(inode) => match vfs.cache_pin(inode, true).await {
            Err(Error::Refused(ErrorCode::FileTooLarge)) => {
                json!({ "error": "the cache has no room for it; mount with a larger --cache-size, or unpin others" })
            }
            pinned => pinned.map(|()| json!({ "ok": true }))?,
        },
        CacheCommand::Unpin(inode) => {
            vfs.cache_pin(inode, false).await?;
            json!({ "ok": true })
        }
        CacheCommand::Evict(inode) => match vfs.cache_evict(inode).await? {
            Evicted::Done | Evicted::Absent => json!({ "ok": true }),
            Evicted::Dirty => json!({ "error": "it holds changes that are not stored yet" }),
            Evicted::Open => json!({ "error": "a program has it open" }),
            Evicted::Pinned => json!({ "error": "it is pinned; unpin it first" }),
        },
        CacheCommand::Forget(id) => match vfs.cache_forget_conflict(id).await {
            Err(Error::Refused(ErrorCode::NotFound)) => {
                json!({ "error": format!("there is no conflict {id}; `larder cache list` shows those there are") })
            }
            forgotten => forgotten.map(|()| json!({ "ok": true }))?,
        },
    })
}

#[cfg(test)]
mod tests {
    use larder_protocol::ids::{Fid, VolumeId};

    use super::*;

    #[test]
    fn a_list_in_pieces_has_each_file_once_though_others_come_and_go() {
        let file = |id: u64| Listed {
            id,
            // In the order of the list others are before it, or behind.
            fid: Fid { volume: VolumeId(1), vnode: 1000 - id, generation: 1 },
            name: None,
            size: 0,
            state: ListedState::Clean,
            version: 1,
            pinned: false,
            open: false,
            last_used: UNIX_EPOCH,
        };
        let (mut cache, mut seen) = (Vec::from_iter((1..=100).map(file)), Vec::new());
        loop {
            let piece = piece_after(cache.clone(), seen.last().copied().unwrap_or(0), 10);
            if piece.is_empty() {
                break;
            }
            seen.extend(piece.iter().map(|file| file.id));
            // One that was seen goes, and one comes.
            cache.retain(|file| file.id != seen[0] && file.id != seen[seen.len() - 1]);
            if cache.len() > 50 {
                cache.insert(0, file(1000 - cache.len() as u64));
            }
        }
        assert!((1..=100).all(|id| seen.iter().filter(|seen| **seen == id).count() == 1), "{seen:?}");
        assert!(seen.is_sorted() && seen.len() > 100);
    }
}
