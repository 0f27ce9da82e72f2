//! `larder umount`.

use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use serde_json::Value;

use super::control::{Caller, Command};
use super::daemon::{FLUSH_WITHIN, UNMOUNT_WITHIN};
use super::mounts::{self, Mount};
use super::{UmountArgs, rundir, unmount};

/// How long the process behind a mount may take to end in order: flushing, leaving the server, and a margin.
const END_WITHIN: Duration = Duration::from_secs(FLUSH_WITHIN.as_secs() + 10);
/// How long it may take to unmount: it gives up by itself before.
const ANSWER_WITHIN: Duration = Duration::from_secs(UNMOUNT_WITHIN.as_secs() + 5);
/// How long it may take when it is forced to, before it is killed.
const FORCED_WITHIN: Duration = Duration::from_secs(8);

pub(super) fn run(args: &UmountArgs) -> anyhow::Result<()> {
    let shown = args.mountpoint.display();
    let mount = mounts::find(&args.mountpoint)
        .with_context(|| format!("cannot find the mount on {shown}"))?
        .ok_or_else(|| anyhow!("{shown} is not mounted"))?;
    if !mount.is_larder() {
        bail!("{shown} is a mount of {} ({}), not of Larder; use umount(8)", mount.source, mount.fs_type);
    }
    if args.force { force(&mount) } else { in_order(&mount) }
}

/// The process behind a mount; `None` if it is gone.
///
/// # Errors
/// Why it cannot be called, though it is there.
fn call(mount: &Mount) -> io::Result<Option<Caller>> {
    let Some(socket) = rundir::socket_of(mount) else { return Ok(None) };
    match Caller::connect(&socket) {
        Ok(caller) => Ok(Some(caller)),
        Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

fn in_order(mount: &Mount) -> anyhow::Result<()> {
    let shown = mount.mountpoint.display();
    let owner = mount.user_id.unwrap_or(0);
    let calling =
        || call(mount).with_context(|| format!("cannot reach the process of {shown}, which user {owner} runs"));
    let Some(mut caller) = calling()? else {
        // The kernel ends the connection with the process, so this cannot hang.
        unmount::plain(&mount.mountpoint).map_err(|error| refused(mount, error.kind(), &error.to_string()))?;
        sweep(mount);
        return Ok(());
    };
    // A connection of its own, to see the process end by.
    let watcher = calling()?.and_then(|mut watcher| watcher.ask(Command::Watch, ANSWER_WITHIN).ok().map(|_| watcher));
    match caller.ask(Command::Unmount, ANSWER_WITHIN) {
        Ok(answer) if answer["ok"] == true => {}
        Ok(answer) => {
            return Err(refused(mount, kind_of(&answer), answer["error"].as_str().unwrap_or("no reason given")));
        }
        // It may have ended before its answer was out.
        Err(_) if !is_mounted(mount) => {}
        Err(error) => return Err(refused(mount, error.kind(), &error.to_string())),
    }
    if watcher.is_some_and(|watcher| !watcher.wait_for_end(END_WITHIN)) {
        bail!(
            "{shown} is unmounted, but its process still has data for {} that it cannot write; see its log in {}",
            mount.source,
            rundir::socket_of(mount)
                .and_then(|socket| Some(socket.parent()?.display().to_string()))
                .unwrap_or_default()
        );
    }
    Ok(())
}

fn kind_of(answer: &Value) -> io::ErrorKind {
    if answer["busy"] == true {
        io::ErrorKind::ResourceBusy
    } else if answer["late"] == true {
        io::ErrorKind::TimedOut
    } else {
        io::ErrorKind::Other
    }
}

fn refused(mount: &Mount, kind: io::ErrorKind, cause: &str) -> anyhow::Error {
    let shown = mount.mountpoint.display();
    match kind {
        io::ErrorKind::ResourceBusy => anyhow!(
            "{shown} is in use: a program has a file open or its working directory there (`fuser -vm {shown}` shows which); \
             end it, or use `larder umount --force {shown}`"
        ),
        io::ErrorKind::TimedOut => anyhow!(
            "{shown} cannot be unmounted while the server {} does not answer; wait for it, or give up what is not \
             written with `larder umount --force {shown}`",
            mount.source
        ),
        _ => anyhow!("cannot unmount {shown}: {cause}"),
    }
}

/// Removes what a process that did not end in order has left.
fn sweep(mount: &Mount) {
    if let Some(dir) = rundir::socket_of(mount).as_deref().and_then(Path::parent) {
        rundir::sweep(dir);
    }
}

fn is_mounted(mount: &Mount) -> bool {
    // Unknown counts as mounted: it is tried again, or said.
    mounts::table().map_or(true, |all| all.contains(mount))
}

/// Tries every way there is, each of which may be closed: the process may hang, the control file system be missing.
fn force(mount: &Mount) -> anyhow::Result<()> {
    let shown = mount.mountpoint.display();
    let mut caller = call(mount).unwrap_or_else(|error| {
        tracing::debug!("the process of {shown} cannot be called: {error}");
        None
    });
    let pid = caller.as_ref().and_then(|caller| caller.pid().ok());
    let ending = match &mut caller {
        Some(caller) => caller.ask(Command::Abort, FORCED_WITHIN).inspect_err(|error| {
            tracing::debug!("the process of {shown} does not obey: {error}");
        }),
        None => Err(io::ErrorKind::NotFound.into()),
    };
    let mut failures = Vec::new();
    if is_mounted(mount) {
        if let Err(error) = unmount::abort_connection(mount) {
            failures.push(format!("its connection cannot be aborted ({error})"));
        }
        if let Err(error) = unmount::forcibly(&mount.mountpoint)
            && is_mounted(mount)
        {
            failures.push(format!("it cannot be taken off the tree ({error})"));
        }
    }
    // Closing its end of the connection is what makes the kernel let go of programs that still wait.
    let ended = match caller {
        Some(caller) if ending.is_ok() => caller.wait_for_end(FORCED_WITHIN),
        Some(_) => false,
        None => true,
    };
    if !ended && let Some(pid) = pid {
        eprintln!("note: the process of {shown} ({}) does not end and is killed", pid.as_raw_nonzero());
        if let Err(error) = rustix::process::kill_process(pid, rustix::process::Signal::KILL) {
            failures.push(format!("its process cannot be killed ({error})"));
        }
    }
    sweep(mount);
    if is_mounted(mount) {
        bail!("{shown} is still mounted: {}", failures.join(", "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn refusals_say_what_to_do() {
        let mount = Mount {
            major: 0,
            minor: 99,
            mountpoint: "/mnt".into(),
            fs_type: mounts::FS_TYPE.to_owned(),
            source: "h:1/root".to_owned(),
            user_id: Some(0),
        };
        let text = |answer: Value| refused(&mount, kind_of(&answer), "odd").to_string();
        assert!(text(json!({ "busy": true })).contains("in use"));
        assert!(text(json!({ "late": true })).contains("h:1/root does not answer"));
        assert!(text(json!({ "error": "odd" })).contains("odd"));
    }

    #[test]
    fn what_is_no_mount_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let umount =
            |path: &Path| run(&UmountArgs { force: false, mountpoint: path.to_owned() }).unwrap_err().to_string();
        assert!(umount(dir.path()).contains("not mounted"));
        assert!(umount(Path::new("/proc")).contains("not of Larder"));
    }
}
