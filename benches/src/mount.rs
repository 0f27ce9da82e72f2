//! Mounts of a server, as child processes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::fs::statfs;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::Signal;

use crate::process::{Process, binary, command, run, scratch};
use crate::server::Server;

/// `f_type` of a FUSE mount, from statfs(2).
const FUSE_SUPER_MAGIC: i64 = 0x6573_5546;

/// How long a mount may take to answer, or a client to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a file of a mount may stay open in a process that is just starting.
const BRIEFLY: Duration = Duration::from_secs(3);

/// How a client caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Attributes and blocks, polled.
    Nfs,
    /// Whole files on disk, with callbacks.
    Afs,
    /// Nothing.
    Direct,
}

impl Mode {
    /// Every mode.
    pub const ALL: [Mode; 3] = [Mode::Nfs, Mode::Afs, Mode::Direct];

    /// The mode's name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Nfs => "nfs",
            Mode::Afs => "afs",
            Mode::Direct => "direct",
        }
    }
}

/// Requests by the names of their kinds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts(pub BTreeMap<String, u64>);

/// Kinds of requests by which connections and leases are kept, whatever programs do.
const UPKEEP: [&str; 3] = ["hello", "renew", "breaks"];

impl Counts {
    /// Those in what `larder stats --json` prints.
    ///
    /// # Errors
    /// If there are none.
    pub fn in_stats(stats: &serde_json::Value) -> Result<Counts> {
        let requests = stats["requests"].as_object().context("no requests in the stats")?;
        let count = |kind: &serde_json::Value| kind["count"].as_u64().unwrap_or(0);
        Ok(Counts(requests.iter().map(|(kind, stats)| (kind.clone(), count(stats))).collect()))
    }

    /// What was added since `before`, without what is sent whatever programs do.
    pub fn since(&self, before: &Counts) -> Counts {
        let added = self.0.iter().map(|(kind, count)| (kind.clone(), count - before.of(kind)));
        Counts(added.filter(|(kind, count)| *count > 0 && !UPKEEP.contains(&kind.as_str())).collect())
    }

    /// How many of this kind there were.
    pub fn of(&self, kind: &str) -> u64 {
        self.0.get(kind).copied().unwrap_or(0)
    }

    /// How many there were of all kinds.
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }
}

/// What may be said of a mount beside its mode and the options of `-o`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Setup<'a> {
    /// Options of `-o`, empty for none.
    pub options: &'a str,
    /// More arguments of `larder mount`.
    pub arguments: &'a [&'a str],
    /// The directory of the disk cache (afs mode), if it is not to be `DIR/NAME.cache`.
    pub cache: Option<&'a Path>,
    /// The network namespace of ip-netns(8) that the client is to be in.
    pub namespace: Option<&'a str>,
    /// Where the client is to die, as `FAILPOINTS` says it.
    pub failpoint: Option<&'a str>,
    /// The file that says by how many seconds the client's calendar is wrong.
    pub clock: Option<&'a Path>,
    /// Which boot of its machine the client takes this for.
    pub boot: Option<u64>,
    /// The volume, if it is not to be `root`.
    pub volume: Option<&'a str>,
}

/// A mounted client.
#[derive(Debug)]
pub struct Mount {
    client: Option<Process>,
    mode: Mode,
    path: PathBuf,
}

impl Mount {
    /// Mounts the volume `root` of `server` at `DIR/NAME`. `options` are those of `-o`, empty for none.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn new(dir: &Path, name: &str, server: &Server, mode: Mode, options: &str) -> Result<Mount> {
        Mount::of_address(dir, name, server.address(), mode, options)
    }

    /// As [`new`](Mount::new), of whatever answers at `address`.
    ///
    /// # Errors
    /// If it does not mount.
    pub fn of_address(dir: &Path, name: &str, address: &str, mode: Mode, options: &str) -> Result<Mount> {
        Mount::set_up(dir, name, address, mode, &Setup { options, ..Setup::default() })
    }

    /// As [`of_address`](Mount::of_address), with more to say.
    ///
    /// # Errors
    /// If it does not mount.
    pub fn set_up(dir: &Path, name: &str, address: &str, mode: Mode, setup: &Setup<'_>) -> Result<Mount> {
        let path = dir.join(name);
        fs::create_dir_all(&path)?;
        ensure!(Path::new("/dev/fuse").exists(), "/dev/fuse is missing: load the fuse module; mounts cannot be tested");
        let mut command = if setup.failpoint.is_some() || setup.clock.is_some() || setup.boot.is_some() {
            Command::new(binary("larder-failpoints")?)
        } else {
            command("larder", setup.namespace)?
        };
        command.envs(setup.failpoint.map(|failpoint| ("FAILPOINTS", failpoint)));
        command.envs(setup.clock.map(|clock| ("LARDER_WALL_CLOCK", clock)));
        command.envs(setup.boot.map(|boot| ("LARDER_BOOT", boot.to_string())));
        command.args(["mount", "--foreground", "--mode", mode.name()]);
        if mode == Mode::Afs {
            let cache = setup.cache.map_or_else(|| dir.join(format!("{name}.cache")), Path::to_owned);
            command.arg("--cache").arg(cache);
        }
        if !setup.options.is_empty() {
            command.args(["-o", setup.options]);
        }
        command.args(setup.arguments);
        let volume = setup.volume.unwrap_or("root");
        command.arg(format!("{address}/{volume}")).arg(&path);
        // The table has a mount before its client has done with mounting, and takes the unmounting for a failure.
        let log = dir.join(format!("{name}.log"));
        let told = || fs::read_to_string(&log).unwrap_or_default().matches(&format!("/{volume} mounted on ")).count();
        let before = told();
        let mut client = Process::spawn(&mut command, dir, name)?;
        if let Err(error) = client.wait_ready(PATIENCE, || (is_mounted(&path) && told() > before).then_some(())) {
            drop(client);
            // It may have died just after it was mounted.
            let _ = unmount(&path, UnmountFlags::DETACH);
            return Err(error);
        }
        Ok(Mount { client: Some(client), mode, path })
    }

    /// The mount point.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How this mount caches.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// What the disk cache (afs mode) holds, as `larder cache list` has it.
    ///
    /// # Errors
    /// What that command says.
    pub fn cached(&self) -> Result<Vec<serde_json::Value>> {
        let listed = run(Command::new(binary("larder")?).args(["cache", "list", "--json"]).arg(&self.path))?;
        Ok(serde_json::from_slice(&listed.stdout)?)
    }

    /// Removes all conflicts of the disk cache.
    ///
    /// # Errors
    /// If they cannot be removed.
    pub fn forget_conflicts(&self) -> Result<()> {
        for file in self.cached()?.iter().filter(|file| file["state"] == "conflict") {
            run(Command::new(binary("larder")?).args(["cache", "forget"]).arg(&self.path).arg(file["id"].to_string()))?;
        }
        Ok(())
    }

    /// A path below the mount point.
    pub fn at(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// The client's process id, while it is mounted.
    pub fn id(&self) -> Option<u32> {
        self.client.as_ref().map(Process::id)
    }

    /// The client's counters, as JSON.
    ///
    /// # Errors
    /// If the client does not answer.
    pub fn stats(&self) -> Result<serde_json::Value> {
        let output = run(Command::new(binary("larder")?).arg("stats").arg(&self.path).arg("--json"))?;
        serde_json::from_slice(&output.stdout).context("reading the client's stats")
    }

    /// How often the client had an answer to requests of each kind.
    ///
    /// # Errors
    /// If the client does not answer.
    pub fn counts(&self) -> Result<Counts> {
        Counts::in_stats(&self.stats()?)
    }

    /// What the client has logged.
    pub fn log(&self) -> String {
        self.client.as_ref().map(Process::log).unwrap_or_default()
    }

    /// Sends the client a signal.
    ///
    /// # Errors
    /// If that fails.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.client.as_ref().map_or(Ok(()), |client| client.signal(signal))
    }

    /// Whether the client was killed.
    ///
    /// # Errors
    /// If it has ended in another way, with its log.
    pub fn was_killed(&mut self) -> Result<bool> {
        self.client.as_mut().map_or(Ok(true), Process::was_killed)
    }

    /// Waits until the client has died, and removes what is left of the mount. Its cache stays.
    ///
    /// # Errors
    /// If it lives on, or the mount cannot be removed.
    pub fn bury(mut self) -> Result<()> {
        let Some(mut client) = self.client.take() else { return Ok(()) };
        let ended = client.wait(PATIENCE).with_context(|| format!("the client did not die:\n{}", client.log()));
        let removed = run(Command::new(binary("larder")?).args(["umount", "--force"]).arg(&self.path));
        if removed.is_err() {
            // What the failure leaves must not stay behind.
            let _ = unmount(&self.path, UnmountFlags::DETACH);
        }
        ended.and(removed.map(|_| ()))
    }

    /// Unmounts with `larder umount` and waits for the client's end.
    ///
    /// # Errors
    /// If either fails.
    pub fn close(mut self, force: bool) -> Result<()> {
        self.unmount(force)
    }

    fn unmount(&mut self, force: bool) -> Result<()> {
        let Some(mut client) = self.client.take() else { return Ok(()) };
        let mut command = Command::new(binary("larder")?);
        command.arg("umount").args(force.then_some("--force")).arg(&self.path);
        // Tests run beside each other: a child that another one just forked has this mount's files open until it execs.
        let start = Instant::now();
        let mut unmounted = run(&mut command).map(|_| ());
        while unmounted.is_err() && start.elapsed() < BRIEFLY {
            std::thread::sleep(Duration::from_millis(50));
            unmounted = run(&mut command).map(|_| ());
        }
        if let Err(error) = unmounted {
            // What the failure leaves must not stay behind.
            let _ = unmount(&self.path, UnmountFlags::DETACH);
            return Err(error);
        }
        let status = client.wait(PATIENCE)?;
        ensure!(force || status.success(), "the client ended with {status}:\n{}", client.log());
        Ok(())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // By force: a test that failed may have left files open, or a server that is gone.
        if let Err(error) = self.unmount(true) {
            eprintln!("{error:#}");
        }
    }
}

/// Whether a FUSE file system answers at `path`.
pub(crate) fn is_mounted(path: &Path) -> bool {
    statfs(path).is_ok_and(|info| i128::from(info.f_type) == i128::from(FUSE_SUPER_MAGIC))
}

/// A server and two mounts of it.
#[derive(Debug)]
pub struct Pair {
    /// The first mount.
    pub a: Mount,
    /// The second one.
    pub b: Mount,
    /// Their server.
    pub server: Server,
    dir: tempfile::TempDir,
}

impl Pair {
    /// Starts a server and mounts it twice with these options.
    ///
    /// # Errors
    /// If either does not start.
    pub fn new(mode: Mode, options: &str) -> Result<Pair> {
        let dir = scratch()?;
        let server = Server::start(dir.path(), "process")?;
        let a = Mount::new(dir.path(), "a", &server, mode, options)?;
        let b = Mount::new(dir.path(), "b", &server, mode, options)?;
        Ok(Pair { a, b, server, dir })
    }

    /// A directory of this test's own, outside the mounts.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

/// Runs `promise` on a fresh mount, then unmounts in good order and checks the store.
///
/// # Panics
/// If anything fails.
pub fn with_mount(mode: Mode, promise: impl FnOnce(&Mount)) {
    let outcome = (|| {
        let dir = scratch()?;
        let mut server = Server::start(dir.path(), "process")?;
        let mount = Mount::new(dir.path(), "mnt", &server, mode, "")?;
        promise(&mount);
        mount.close(false)?;
        server.check().map(drop)
    })();
    if let Err(error) = outcome {
        panic!("{} mode: {error:#}", mode.name());
    }
}

/// Waits for something that a client does by itself.
///
/// # Panics
/// If it is not so after ten seconds.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..200 {
        if is_so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("not so after ten seconds: {what}");
}
