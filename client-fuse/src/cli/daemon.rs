//! The process behind a mount, from connecting to the server until everything is flushed.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use larder_protocol::attr::Credential;
use larder_protocol::runtime::{BusyPoll, SystemRuntime};
use rustix::io::Errno;
use serde_json::{Value, json};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::admin::mountpoint;
use super::control::{Command, Control, Handler};
use super::mounts::{self, Mount};
use super::options::Options;
use super::spec::Spec;
use super::{cache, rundir, unmount};
use crate::fuse::{self, Mounted};
use crate::rpc::{CHANNELS, TcpConnector};
use crate::vfs::{self, ROOT, Vfs};

/// How long the server may take until the volume is attached, also for a `hard` mount.
pub(super) const ATTACH_WITHIN: Duration = Duration::from_secs(12);
/// How long the new mount may take until it answers.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(12);
/// How long an unmount may take that has mapped pages to write.
pub(super) const UNMOUNT_WITHIN: Duration = Duration::from_secs(30);
/// How long everything unwritten may take at the end.
pub(super) const FLUSH_WITHIN: Duration = Duration::from_secs(60);
/// How long a forced end may spend on saving what can be saved.
const LAST_CHANCE: Duration = Duration::from_secs(3);
/// How long the kernel may take to end a session whose mount is off the tree and not in use.
const END_WITHIN: Duration = Duration::from_secs(3);
/// How far the kernel reads ahead, in KiB.
const READ_AHEAD_KB: u32 = 4096;

/// What to mount where.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// The volume.
    pub spec: Spec,
    /// An absolute path without symbolic links.
    pub mountpoint: PathBuf,
    /// The options.
    pub options: Options,
}

impl Plan {
    /// What to tell the user about the new mount.
    fn success(&self) -> String {
        format!(
            "{} mounted on {} ({}, nolock: fcntl and flock locks are seen on this machine only)",
            self.spec,
            self.mountpoint.display(),
            self.options.mount.mode.name()
        )
    }
}

/// Mounts and serves until the end. `ready` is called once, when the mount answers; if it fails, nobody wants the
/// mount any more.
///
/// # Errors
/// Why there is no mount: then nothing is left mounted.
pub(super) fn run(plan: Plan, ready: impl FnOnce(&str) -> io::Result<()>) -> anyhow::Result<()> {
    let (runtime, executors) =
        SystemRuntime::start("larder", CHANNELS, BusyPoll::none()).context("cannot start threads")?;
    // This thread takes signals and commands.
    let main = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start threads")?;
    let result = main.block_on(serve(&plan, Arc::new(runtime), ready));
    // Blocking calls that met their bound were given up, and end with the process.
    executors.stop(Duration::from_secs(1));
    main.shutdown_background();
    result
}

async fn serve(
    plan: &Plan,
    runtime: Arc<SystemRuntime>,
    ready: impl FnOnce(&str) -> io::Result<()>,
) -> anyhow::Result<()> {
    let mut signals = Signals::new().context("cannot handle signals")?;
    // Where the answers to most requests come in.
    let control = runtime.executor(0).clone();
    let server = plan.spec.server.to_string();
    let connector = Arc::new(TcpConnector::new(server.clone()));
    let attaching = Vfs::attach(runtime, connector, &plan.spec.volume, plan.options.mount.clone());
    let vfs = match timeout(ATTACH_WITHIN, attaching).await {
        Ok(attached) => attached?,
        Err(_) => bail!(
            "the server at {server} does not answer within {} s; check that larderd runs there and that the address is \
             right",
            ATTACH_WITHIN.as_secs()
        ),
    };
    // Mounting blocks until the kernel has been answered, which needs only other threads.
    let inside = {
        let mountpoint = plan.mountpoint.clone();
        // Where the table cannot be read it is better to ask too often.
        move || mounts::any_inside(&mountpoint).unwrap_or(true)
    };
    let source = plan.spec.to_string();
    let mounted = match fuse::mount(&vfs, &control, &source, &plan.mountpoint, &plan.options.kernel, inside) {
        Ok(mounted) => mounted,
        Err(error) => {
            finish(&vfs).await;
            return Err(explain(error, &plan.mountpoint));
        }
    };
    let mount = Arc::new(Serving { vfs, mounted, plan: plan.clone(), asked: Notify::new() });
    let begun = match begin(&mount).await {
        Ok((place, control)) => match ready(&plan.success()) {
            Ok(()) => Ok((place, control)),
            Err(error) => Err(anyhow!(error).context("nobody waits for the mount any more")),
        },
        Err(error) => Err(error),
    };
    let (place, control) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            mount.force(false).await;
            return Err(error);
        }
    };
    tracing::info!("{}", plan.success());
    tokio::select! {
        () = mount.mounted.ended() => tracing::info!("{}: the kernel ended the session", plan.mountpoint.display()),
        () = mount.asked.notified() => {}
        name = signals.next() => {
            tracing::info!("{name}: unmounting {}", plan.mountpoint.display());
            mount.leave().await;
        }
    }
    finish(&mount.vfs).await;
    // An aborted connection ends the session and leaves the mount on the tree.
    if mounts::at(&plan.mountpoint).is_ok_and(|found| found.is_some_and(|found| found == place))
        && let Err(error) = mount.blocking(unmount::forcibly).await
    {
        tracing::warn!("{} is left mounted: {error}", plan.mountpoint.display());
    }
    drop(control);
    tracing::info!("the end");
    Ok(())
}

/// Flushes and leaves the server.
async fn finish(vfs: &Vfs) {
    if timeout(FLUSH_WITHIN, vfs.shutdown()).await.is_err() {
        tracing::error!("not everything could be written to the server within {} s", FLUSH_WITHIN.as_secs());
    }
    vfs.abort();
}

/// A mount that is being served.
struct Serving {
    vfs: Arc<Vfs>,
    mounted: Mounted,
    plan: Plan,
    /// The mount was taken down by a command.
    asked: Notify,
}

impl Serving {
    /// Runs something that may block on the mount where it holds up nothing else, within a bound.
    async fn blocking(&self, work: fn(&Path) -> io::Result<()>) -> io::Result<()> {
        let mountpoint = self.plan.mountpoint.clone();
        match timeout(UNMOUNT_WITHIN, tokio::task::spawn_blocking(move || work(&mountpoint))).await {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => Err(io::Error::other(panic)),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no end within its time")),
        }
    }

    /// Unmounts; if the mount is in use, after flushing, only off the tree.
    async fn leave(&self) {
        match self.blocking(unmount::plain).await {
            Ok(()) => {}
            Err(error) => {
                tracing::warn!("{} cannot be unmounted in order: {error}", self.plan.mountpoint.display());
                if timeout(UNMOUNT_WITHIN, self.vfs.sync_all()).await.is_err() {
                    tracing::error!("what was written before may not have reached the server");
                }
                if let Err(error) = self.blocking(unmount::lazily).await {
                    tracing::error!("{} cannot be unmounted: {error}", self.plan.mountpoint.display());
                }
            }
        }
        // With files still open the session goes on until this process ends.
        let _ = timeout(END_WITHIN, self.mounted.ended()).await;
    }

    /// Ends everything that waits, and takes the mount down whatever its state.
    async fn force(&self, save: bool) {
        if save && timeout(LAST_CHANCE, self.vfs.sync_all()).await.is_err() {
            tracing::warn!("forced to end with data that has not reached the server");
        }
        self.vfs.abort();
        if let Err(error) = self.blocking(unmount::forcibly).await {
            tracing::warn!("{} cannot be unmounted: {error}", self.plan.mountpoint.display());
        }
    }
}

/// Everything between the kernel's yes and the first program that uses the mount.
async fn begin(mount: &Arc<Serving>) -> anyhow::Result<(Mount, Control)> {
    let plan = &mount.plan;
    let place = mounts::at(&plan.mountpoint)
        .context("cannot read the table of mounts")?
        .filter(|place| place.is_larder() && place.source == plan.spec.to_string())
        .ok_or_else(|| anyhow!("{} was unmounted again at once", plan.mountpoint.display()))?;
    raise_read_ahead(&place);
    let control = rundir::prepare()
        .and_then(|dir| Control::listen(rundir::socket_in(&dir, &place), handler(mount)))
        .context("cannot make the control socket")?;
    match timeout(ATTACH_WITHIN, ask(&mount.vfs)).await {
        Ok(Ok(())) => Ok((place, control)),
        Ok(Err(error)) => Err(anyhow!(error).context(format!("{} does not answer", plan.mountpoint.display()))),
        Err(_) => bail!("{} does not answer within {} s", plan.mountpoint.display(), ATTACH_WITHIN.as_secs()),
    }
}

/// Asks as the first program will. Not by way of the kernel, which has answered: a process that waits for a mount cannot be
/// killed while the mount's own process lives, which must not be the same one.
async fn ask(vfs: &Vfs) -> Result<(), vfs::Error> {
    let root = Credential::root();
    vfs.statfs(&root, ROOT).await?;
    vfs.getattr(&root, ROOT, None).await?;
    Ok(())
}

/// Lets the kernel read ahead in larger steps than its 128 KiB. Takes root; without it reading is slower.
fn raise_read_ahead(place: &Mount) {
    let file = format!("/sys/class/bdi/{}/read_ahead_kb", place.device());
    if let Err(error) = std::fs::write(&file, READ_AHEAD_KB.to_string()) {
        tracing::debug!("{file} stays as it is: {error}");
    }
}

/// Answers the control socket.
fn handler(mount: &Arc<Serving>) -> Handler {
    let mount = Arc::clone(mount);
    Arc::new(move |command| {
        let mount = Arc::clone(&mount);
        Box::pin(async move { answer(&mount, command).await })
    })
}

async fn answer(mount: &Serving, command: Command) -> Value {
    match command {
        Command::Ping => json!({
            "pid": std::process::id(),
            "source": mount.plan.spec.to_string(),
            "mountpoint": mount.plan.mountpoint.display().to_string(),
            "options": mount.vfs.options().list(),
        }),
        Command::Stats => serde_json::to_value(mount.vfs.stats())
            .unwrap_or_else(|error| json!({ "error": format!("the statistics cannot be written: {error}") })),
        Command::Unmount => match mount.blocking(unmount::plain).await {
            Ok(()) => {
                mount.asked.notify_one();
                json!({ "ok": true })
            }
            Err(error) => json!({
                "error": error.to_string(),
                "busy": error.kind() == io::ErrorKind::ResourceBusy,
                "late": error.kind() == io::ErrorKind::TimedOut,
            }),
        },
        Command::Abort => {
            tracing::warn!("forced to end by a command");
            mount.force(true).await;
            mount.asked.notify_one();
            json!({ "ok": true })
        }
        Command::Cache(command) => cache::answer(&mount.vfs, command).await,
        Command::Mountpoint(request) => mountpoint::answer(&mount.vfs, request).await,
        Command::Watch => json!({ "watching": true }),
    }
}

/// The signals that end a mount.
struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
}

impl Signals {
    fn new() -> io::Result<Signals> {
        Ok(Signals {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
            _ = self.hup.recv() => "SIGHUP",
        }
    }
}

/// What the user can do about a mount that the kernel or fusermount3 refused.
fn explain(error: io::Error, mountpoint: &Path) -> anyhow::Error {
    let text = error.to_string();
    let advice = if text.contains("user_allow_other") {
        "users other than root may mount only when /etc/fuse.conf has a line `user_allow_other`: add it, or mount as \
         root"
    } else if error.kind() == io::ErrorKind::NotFound {
        "users other than root mount through fusermount3: install the package fuse3"
    } else if Errno::from_io_error(&error) == Some(Errno::ACCESS) || error.kind() == io::ErrorKind::PermissionDenied {
        "not permitted: mount as root, or on a directory of your own with read and write access to /dev/fuse"
    } else if text.is_empty() {
        "fusermount3 gave no reason"
    } else {
        "the kernel refuses the mount"
    };
    anyhow!("{text}").context(format!("cannot mount on {}: {advice}", mountpoint.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_say_what_to_do() {
        let path = Path::new("/mnt");
        let text = |error| format!("{:#}", explain(error, path));
        let other = "option allow_other only allowed if 'user_allow_other' is set in /etc/fuse.conf";
        assert!(text(io::Error::new(io::ErrorKind::PermissionDenied, other)).contains("add it"));
        assert!(text(io::ErrorKind::NotFound.into()).contains("fuse3"));
        assert!(text(io::ErrorKind::PermissionDenied.into()).contains("as root"));
        assert!(text(io::Error::other("odd")).contains("odd"));
    }
}
