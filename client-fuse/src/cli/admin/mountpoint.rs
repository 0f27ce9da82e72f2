//! `larder mountpoint`: where volumes appear in the tree.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use clap::{Args, Subcommand};
use larder_protocol::ids::VolumeId;
use serde_json::{Value, json};

use super::super::control::{Caller, Command};
use super::super::{mounts, rundir};
use super::show::print;
use super::{ANSWER_WITHIN, credential, key};
use crate::vfs::Vfs;

/// Let a volume appear in a directory, as bind mounts do, for all clients.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  larder mountpoint add /mnt/home home     the volume `home` appears at /mnt/home, on every client
  larder mountpoint show /mnt/home
  larder mountpoint remove /mnt/home       the volume and its files stay

PATH is in a mount of Larder on this machine; what is above it must be there, and its last name must not.
A volume has one place in the tree.")]
pub(in crate::cli) struct MountpointArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a mount point
    Add {
        /// Where
        path: PathBuf,
        /// The volume's name or number
        volume: String,
    },
    /// Remove a mount point
    Remove {
        /// Where it is
        path: PathBuf,
    },
    /// Which volume appears there
    Show {
        /// Where
        path: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// What the process of a mount is asked. Directories go by their inode numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) struct Request {
    /// What to do.
    pub(in crate::cli) what: What,
    /// The directory.
    pub(in crate::cli) parent: u64,
    /// The name in it.
    pub(in crate::cli) name: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) enum What {
    Add(String),
    Remove,
    Show,
}

impl Request {
    /// As words on a line: names may hold anything, so they go as hexadecimal digits.
    pub(in crate::cli) fn words(&self) -> String {
        let name: String = self.name.iter().map(|byte| format!("{byte:02x}")).collect();
        match &self.what {
            What::Add(volume) => format!("add {} {name} {volume}", self.parent),
            What::Remove => format!("remove {} {name}", self.parent),
            What::Show => format!("show {} {name}", self.parent),
        }
    }

    pub(in crate::cli) fn parse<'a>(mut words: impl Iterator<Item = &'a str>) -> Option<Request> {
        let (verb, parent, name) = (words.next()?, words.next()?.parse().ok()?, words.next()?);
        let digits = name.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
        let what = match verb {
            "add" => What::Add(words.next()?.to_owned()),
            "remove" => What::Remove,
            "show" => What::Show,
            _ => return None,
        };
        let name = digits.collect::<Option<Vec<u8>>>().filter(|_| name.len().is_multiple_of(2))?;
        words.next().is_none().then_some(Request { what, parent, name })
    }
}

pub(in crate::cli) fn run(args: &MountpointArgs) -> anyhow::Result<()> {
    match &args.verb {
        Verb::Add { path, volume } => {
            let answer = ask(path, What::Add(volume.clone()))?;
            print(&format!("volume {} appears at {}\n", answer["volume"], path.display()))
        }
        Verb::Remove { path } => {
            let answer = ask(path, What::Remove)?;
            print(&format!("volume {} does not appear at {} any more\n", answer["volume"], path.display()))
        }
        Verb::Show { path, json } => {
            let answer = ask(path, What::Show)?;
            if *json {
                return print(&format!("{answer:#}\n"));
            }
            if answer["volume"].is_null() {
                bail!("{} is no mount point", path.display());
            }
            print(&format!("{}\n", answer["volume"]))
        }
    }
}

/// Asks the process of the mount that the path is in.
fn ask(path: &Path, what: What) -> anyhow::Result<Value> {
    let shown = path.display();
    let Some(name) = path.file_name() else { bail!("{shown} has no last name that could be a mount point") };
    let above = match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let above = above.canonicalize().with_context(|| format!("cannot find the directory {}", above.display()))?;
    let mount = mounts::containing(&above)
        .context("cannot read the table of mounts")?
        .filter(mounts::Mount::is_larder)
        .ok_or_else(|| anyhow!("{} is not in a mount of Larder", above.display()))?;
    let parent = above.metadata().with_context(|| format!("cannot look at {}", above.display()))?.ino();
    let at = mount.mountpoint.display().to_string();
    let gone = || anyhow!("the process of {at} is gone; remove the mount with `larder umount --force {at}`");
    let socket = rundir::socket_of(&mount).ok_or_else(gone)?;
    let mut caller = Caller::connect(&socket).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => {
            anyhow!("user {} made the mount on {at}; ask as that user, or as root", mount.user_id.unwrap_or(0))
        }
        _ => gone(),
    })?;
    let request = Request { what, parent, name: name.as_bytes().to_vec() };
    let answer = caller.ask(Command::Mountpoint(request), ANSWER_WITHIN);
    let answer = answer.with_context(|| format!("the process of {at} does not answer"))?;
    match answer.get("error").and_then(Value::as_str) {
        Some(error) => Err(anyhow!("{shown}: {error}")),
        None => Ok(answer),
    }
}

/// What the process of a mount does and answers.
pub(in crate::cli) async fn answer(vfs: &Vfs, request: Request) -> Value {
    let Request { what, parent, name } = request;
    let cred = credential();
    let of = |volume: VolumeId| json!({ "volume": volume.0 });
    let done = match what {
        What::Add(volume) => vfs.add_mount_point(&cred, parent, &name, key(&volume)).await.map(of),
        What::Remove => vfs.remove_mount_point(&cred, parent, &name).await.map(of),
        What::Show => {
            let found = vfs.grafted(&cred, parent, &name).await.map_err(|error| error.to_string());
            found.map(|volume| json!({ "volume": volume.map(|volume| volume.0) }))
        }
    };
    done.unwrap_or_else(|error| json!({ "error": error }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_lines_whatever_the_name() {
        for what in [What::Add("home".to_owned()), What::Remove, What::Show] {
            for name in [&b"plain"[..], b"with blank\n", &[0xff, 0xfe], &[b'x'; 255]] {
                let request = Request { what: what.clone(), parent: 7, name: name.to_vec() };
                assert_eq!(Request::parse(request.words().split_whitespace()), Some(request));
            }
        }
        for bad in ["", "add 7 41", "show 7 4", "show x 41", "show 7 zz", "remove 7 41 more", "walk 7 41"] {
            assert_eq!(Request::parse(bad.split_whitespace()), None, "{bad}");
        }
    }
}
