//! `larder mount`: checks, and a process in the background that serves the mount.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};

use super::daemon::{self, ANSWER_WITHIN, ATTACH_WITHIN, Plan};
use super::options::{self, CacheChoice, Options};
use super::{CoherenceName, FsyncName, ModeName, MountArgs, control, mounts, rundir, unmount};
use crate::fuse::DEVICE;
use crate::vfs::{Fsync, Mode};

/// How long the process in the background may take in all: connecting, mounting, and cleaning up if that failed.
const READY_WITHIN: Duration = Duration::from_secs(ATTACH_WITHIN.as_secs() + ANSWER_WITHIN.as_secs() + 60);
/// The longest report, in bytes.
const MAX_REPORT: u64 = 64 * 1024;

/// How the process in the background reports: one line, of one of these and a text.
const READY: &str = "ready ";
const FAILED: &str = "failed ";

pub(super) fn run(args: MountArgs, verbose: u8) -> anyhow::Result<()> {
    if args.serve {
        return serve(args);
    }
    let plan = plan(&args)?;
    for warning in &plan.options.warnings {
        eprintln!("larder: {warning}");
    }
    if args.foreground {
        let dir = rundir::prepare().context("cannot use the runtime directory")?;
        rundir::sweep(&dir);
        return daemon::run(plan, |text| writeln!(io::stdout(), "{text}"));
    }
    let text = start(&args, &plan, verbose)?;
    println!("{text}");
    Ok(())
}

fn plan(args: &MountArgs) -> anyhow::Result<Plan> {
    let mut options: Options = options::parse(&args.options, args.sloppy).map_err(anyhow::Error::msg)?;
    match args.mode {
        Some(ModeName::Nfs) => options.mount.mode = Mode::Nfs,
        Some(ModeName::Afs) => options.mount.mode = Mode::Afs,
        Some(ModeName::Direct) => options.mount.mode = Mode::Direct,
        None => {}
    }
    if let Some(coherence) = args.coherence {
        options.mount.strict = coherence == CoherenceName::Strict;
    }
    if let Some(fsync) = args.fsync {
        options.mount.fsync = if fsync == FsyncName::Local { Fsync::Local } else { Fsync::Server };
    }
    options.cache.dir = args.cache.clone().or(options.cache.dir);
    options.cache.size = args.cache_size.or(options.cache.size);
    check_device()?;
    let mountpoint = check_mountpoint(&args.mountpoint)?;
    if options.mount.mode == Mode::Afs {
        let mut cache = options.cache.settle(|| default_cache(&mountpoint));
        // The process that serves the mount has another working directory.
        cache.dir = std::path::absolute(&cache.dir)
            .with_context(|| format!("cannot use the cache directory {}", cache.dir.display()))?;
        check_cache_place(&cache.dir, &mountpoint)?;
        options.mount.cache = Some(cache);
    } else if options.cache != CacheChoice::default() {
        options.warnings.push("options of the cache have no effect without `--mode afs`".to_owned());
    }
    Ok(Plan { spec: args.spec.clone(), mountpoint, options })
}

/// A cache in what it is a cache of waits for itself.
fn check_cache_place(dir: &Path, mountpoint: &Path) -> anyhow::Result<()> {
    // As far as it is there already.
    let place = dir.ancestors().find_map(|there| there.canonicalize().ok()).unwrap_or_else(|| dir.to_owned());
    let below = mounts::table()?.into_iter().rev().find(|mount| place.starts_with(&mount.mountpoint));
    let on_larder = below.filter(mounts::Mount::is_larder).map(|mount| mount.mountpoint);
    let inside = if place.starts_with(mountpoint) { Some(mountpoint.to_owned()) } else { on_larder };
    if let Some(inside) = inside {
        bail!(
            "the cache directory {} is below the mount point {}: name a directory on a disk of this machine",
            dir.display(),
            inside.display()
        );
    }
    Ok(())
}

/// The cache of a mount that none was chosen for: one for each mount point.
fn default_cache(mountpoint: &Path) -> PathBuf {
    let base = if rustix::process::geteuid().is_root() {
        PathBuf::from("/var/cache")
    } else {
        let chosen = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|dir| dir.is_absolute());
        chosen
            .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
            .unwrap_or_else(std::env::temp_dir)
    };
    base.join("larder").join(mounts::escape(mountpoint))
}

fn check_device() -> anyhow::Result<()> {
    match Path::new(DEVICE).symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => bail!(
            "{DEVICE} is missing: load the kernel module with `modprobe fuse`, or give the device to the container"
        ),
        // Whether it may be used is for the kernel or fusermount3 to say.
        _ => Ok(()),
    }
}

/// The mount point without symbolic links, if it can be one. A mount of Larder that is there is not touched: it may
/// hang.
fn check_mountpoint(path: &Path) -> anyhow::Result<PathBuf> {
    let shown = path.display();
    let missing = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => anyhow!("the mount point {shown} does not exist; make it with `mkdir {shown}`"),
        _ => anyhow!(error).context(format!("cannot use the mount point {shown}")),
    };
    refuse_mounted(mounts::find(path).map_err(missing)?, path)?;
    let resolved = path.canonicalize().map_err(missing)?;
    refuse_mounted(mounts::at(&resolved).context("cannot read the table of mounts")?, path)?;
    if !resolved.is_dir() {
        bail!("the mount point {shown} is not a directory");
    }
    if std::fs::read_dir(&resolved).is_ok_and(|mut entries| entries.next().is_some()) {
        eprintln!("note: {shown} is not empty; what is in it is hidden while Larder is mounted there");
    }
    Ok(resolved)
}

fn refuse_mounted(found: Option<mounts::Mount>, path: &Path) -> anyhow::Result<()> {
    let Some(mount) = found.filter(mounts::Mount::is_larder) else { return Ok(()) };
    let shown = path.display();
    let alive = rundir::socket_of(&mount).is_some_and(|socket| control::Caller::connect(&socket).is_ok());
    let source = &mount.source;
    if alive {
        bail!("{source} is mounted on {shown} already; unmount it first with `larder umount {shown}`");
    }
    bail!(
        "{shown} is a mount of {source} whose process does not answer; remove it with `larder umount --force {shown}`"
    );
}

/// Starts the process that serves the mount; what it says once the mount answers.
fn start(args: &MountArgs, plan: &Plan, verbose: u8) -> anyhow::Result<String> {
    let dir = rundir::prepare().context("cannot use the runtime directory")?;
    rundir::sweep(&dir);
    let log_path = rundir::log_path(&dir, &plan.mountpoint);
    let log = rundir::open_log(&log_path).with_context(|| format!("cannot log to {}", log_path.display()))?;
    let mut command = Command::new(own_executable());
    command.args(serve_arguments(args, plan, verbose));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    let mut child = command.spawn().context("cannot start a process for the mount")?;
    // Always there: it was asked for above.
    let report = child.stdout.take().context("the new process has no output")?;
    match wait_for_report(report) {
        Some(line) => match line.split_at_checked(READY.len()) {
            Some((READY, text)) => Ok(text.to_owned()),
            _ => {
                // It ends by itself: it has no mount.
                let cause = line.strip_prefix(FAILED).map_or_else(|| last_line(&log_path), str::to_owned);
                Err(anyhow!(cause))
            }
        },
        None => {
            give_up(&mut child, plan);
            bail!("the mount did not answer within {} s; {} may say why", READY_WITHIN.as_secs(), log_path.display())
        }
    }
}

/// The program to run again. Its own path names it in lists of processes; after an upgrade of the running program only
/// the kernel's link is left.
fn own_executable() -> PathBuf {
    std::env::current_exe().ok().filter(|path| path.exists()).unwrap_or_else(|| PathBuf::from("/proc/self/exe"))
}

fn serve_arguments(args: &MountArgs, plan: &Plan, verbose: u8) -> Vec<std::ffi::OsString> {
    let mut list: Vec<std::ffi::OsString> = vec!["mount".into(), "--serve".into()];
    list.extend((0..verbose).map(|_| "--verbose".into()));
    if args.sloppy {
        list.push("--sloppy".into());
    }
    for options in &args.options {
        list.extend(["-o".into(), options.into()]);
    }
    if let Some(cache) = &plan.options.mount.cache {
        list.extend(["--cache".into(), cache.dir.clone().into()]);
        list.extend(["--cache-size".into(), cache.size.to_string().into()]);
    }
    let strict = if plan.options.mount.strict { "strict" } else { "prompt" };
    let fsync = if plan.options.mount.fsync == Fsync::Local { "local" } else { "server" };
    list.extend(["--coherence".into(), strict.into(), "--fsync".into(), fsync.into()]);
    list.extend(["--mode".into(), plan.options.mount.mode.name().into(), "--".into()]);
    list.extend([plan.spec.to_string().into(), plan.mountpoint.clone().into()]);
    list
}

/// The line that the process reports, empty if it ended without; `None` if it takes too long.
fn wait_for_report(output: ChildStdout) -> Option<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        if let Err(error) = BufReader::new(output.take(MAX_REPORT)).read_line(&mut line) {
            tracing::debug!("the report of the new process cannot be read: {error}");
        }
        // Nobody waits for a report that is late.
        let _ = sender.send(line.trim_end().to_owned());
    });
    receiver.recv_timeout(READY_WITHIN).ok()
}

fn give_up(child: &mut Child, plan: &Plan) {
    if let Err(error) = child.kill() {
        tracing::warn!("the process of the mount cannot be ended: {error}");
    }
    let ours = |mount: &mounts::Mount| mount.is_larder() && mount.source == plan.spec.to_string();
    if mounts::at(&plan.mountpoint).is_ok_and(|found| found.as_ref().is_some_and(ours))
        && let Err(error) = unmount::forcibly(&plan.mountpoint)
    {
        tracing::warn!("{} is left mounted: {error}", plan.mountpoint.display());
    }
}

/// The end of the log of a process that ended without a report, such as one that was killed.
fn last_line(log: &Path) -> String {
    let line = std::fs::read_to_string(log).ok().and_then(|text| text.lines().last().map(str::to_owned));
    match line {
        Some(line) => format!("the process of the mount ended: {line}"),
        None => "the process of the mount ended without a word".to_owned(),
    }
}

/// The process in the background: serves, and reports to the process that started it.
fn serve(args: MountArgs) -> anyhow::Result<()> {
    // The terminal's signals are not for this process. It fails for the leader of a group, which this one is not when
    // `start` has started it.
    if let Err(error) = rustix::process::setsid() {
        tracing::debug!("no session of its own: {error}");
    }
    let result = plan(&args).and_then(|plan| {
        // A working directory would keep another file system busy.
        std::env::set_current_dir("/").context("cannot change to /")?;
        daemon::run(plan, |text| {
            report(READY, text)?;
            // The other process reads to the end; what is printed from here on goes to the log.
            Ok(rustix::stdio::dup2_stdout(io::stderr())?)
        })
    });
    if let Err(error) = &result {
        // Once the mount was ready nobody listens, and the log has it: `main` prints every error.
        let _ = report(FAILED, &super::one_line(&format!("{error:#}")));
    }
    result
}

fn report(kind: &str, text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{kind}{text}")?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::{Cli, Command as CliCommand};
    use super::*;

    fn args(words: &[&str]) -> MountArgs {
        let words = ["larder", "mount"].iter().chain(words);
        match Cli::try_parse_from(words).unwrap().command {
            CliCommand::Mount(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_new_process_gets_the_same_mount() {
        let first = args(&["-o", "soft,timeo=5", "[::1]:99", "/mnt", "-o", "mode=direct"]);
        let options = options::parse(&first.options, false).unwrap();
        let plan = Plan { spec: first.spec.clone(), mountpoint: PathBuf::from("/-mnt"), options };
        let words = serve_arguments(&first, &plan, 2);
        let cli = Cli::try_parse_from(std::iter::once("larder".into()).chain(words)).unwrap();
        assert_eq!(cli.verbose, 2);
        let CliCommand::Mount(second) = cli.command else { panic!("not a mount") };
        assert!(second.serve && !second.foreground);
        assert_eq!((second.options, second.spec), (first.options, first.spec));
        assert_eq!((second.mode, second.mountpoint), (Some(ModeName::Direct), plan.mountpoint));
    }

    #[test]
    fn mount_points_that_cannot_be_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let text = |path: &Path| check_mountpoint(path).unwrap_err().to_string();
        assert!(text(&file).contains("not a directory"));
        assert!(text(&dir.path().join("absent")).contains("does not exist"));
        assert!(text(&dir.path().join("absent/deeper")).contains("does not exist"));
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        assert_eq!(check_mountpoint(&link).unwrap(), dir.path().canonicalize().unwrap());
    }
}
