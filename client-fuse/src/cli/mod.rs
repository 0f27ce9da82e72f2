//! The command `larder`: mounting, unmounting, statistics, volumes.

mod admin;
mod cache;
mod control;
mod daemon;
mod dial;
mod generate;
mod helper;
mod mount;
mod mounts;
mod options;
mod rundir;
mod spec;
mod stats;
mod umount;
mod unmount;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tracing_subscriber::EnvFilter;

use self::admin::mountpoint::MountpointArgs;
use self::admin::server::ServerArgs;
use self::admin::volume::VolumeArgs;
use self::spec::Spec;

/// The name under which mount(8) calls for file systems of the type `larder`.
const HELPER: &str = "mount.larder";

/// Mounts Larder's volumes and looks after mounts, volumes and servers.
#[derive(Debug, Parser)]
#[command(
    name = "larder",
    version,
    after_help = "Examples:
  larder mount 127.0.0.1:7425 /mnt         mount the volume `root` of a server
  larder mount --mode afs --cache-size 20G host:7425 /mnt
  larder stats /mnt                        what the mount has done so far
  larder umount /mnt
  larder volume create home --quota 50G    make a volume, and
  larder mountpoint add /mnt/home home     let it appear in the tree

RUST_LOG sets what is logged, as in RUST_LOG=larder_client=debug."
)]
struct Cli {
    /// Log more; twice for still more.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Mount(MountArgs),
    Umount(UmountArgs),
    Stats(StatsArgs),
    Cache(CacheArgs),
    Volume(VolumeArgs),
    Mountpoint(MountpointArgs),
    Server(ServerArgs),
    Completions(CompletionsArgs),
    Man(ManArgs),
}

/// Mount a volume; returns when the mount answers.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Options for -o, by their names in nfs(5) where they exist:
  actimeo, acregmin, acregmax, acdirmin, acdirmax
                    how long attributes are used without asking, in seconds (nfs mode)
  noac              attributes are asked for each time (actimeo=0)
  cto, nocto        whether open asks the server for changes (close-to-open)
  lookupcache=all|positive|none
                    which names the kernel may keep; in afs mode all, or none at all
  hard, soft        wait for a server that is gone, or fail with ETIMEDOUT
  timeo, retrans    how long to wait for an answer, in tenths of a second, and how often a soft mount tries again
  rsize, wsize      largest read and write, in bytes
  ro, rw, atime, noatime, relatime, suid, nosuid, dev, nodev, exec, noexec, sync, async, dirsync
                    as in mount(8)
  mode=nfs|afs|direct, cache, cache-size, coherence, fsync
                    as --mode, --cache, --cache-size, --coherence and --fsync
  passthrough=SIZE|off
                    from which size on the kernel itself serves cached files in afs mode, where it can
fcntl and flock locks are seen by programs on this machine only (nolock).

Examples:
  larder mount 127.0.0.1:7425 /mnt
  larder mount --mode direct -o ro,noatime host:7425/root /mnt/files
  larder mount -o soft,timeo=100,retrans=3 '[2001:db8::1]:7425' /mnt

In /etc/fstab, with mount.larder installed:
  host:7425/root  /mnt  larder  defaults,_netdev  0 0")]
struct MountArgs {
    /// How to cache.
    #[arg(long, value_enum)]
    mode: Option<ModeName>,
    /// The directory of the disk cache, which one mount at a time can use (afs mode) [default: one for each mount
    /// point in /var/cache/larder, or in ~/.cache/larder for others than root]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// How large the disk cache may get, such as 500M or 20G (afs mode) [default: 10G]
    #[arg(long, value_name = "SIZE", value_parser = options::cache_size)]
    cache_size: Option<u64>,
    /// Whether changes wait until other clients have given up what they cached (afs mode) [default: strict]
    #[arg(long, value_enum)]
    coherence: Option<CoherenceName>,
    /// Whether fsync stores the file at the server, or makes it durable in the cache (afs mode) [default: server]
    #[arg(long, value_enum)]
    fsync: Option<FsyncName>,
    /// Stay in the foreground and log to standard error.
    #[arg(long)]
    foreground: bool,
    /// Mount options, separated by commas.
    #[arg(short = 'o', value_name = "OPTIONS", action = clap::ArgAction::Append)]
    options: Vec<String>,
    /// Pass over options that are unknown.
    #[arg(long, hide = true)]
    sloppy: bool,
    /// Serve the mount, and tell the process that started this one how it went.
    #[arg(long, hide = true)]
    serve: bool,
    /// What to mount; port 7425 and the volume `root` when left out.
    #[arg(value_name = "HOST:PORT[/VOLUME]")]
    spec: Spec,
    /// An existing directory.
    mountpoint: PathBuf,
}

/// Unmount, and wait until everything is written to the server.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  larder umount /mnt
  larder umount --force /mnt     also with the server gone and programs waiting for it; what was not
                                 written to the server yet is lost, and the programs get errors")]
struct UmountArgs {
    /// Unmount even if the server is gone or the mount is in use.
    #[arg(short, long)]
    force: bool,
    /// Where it is mounted.
    mountpoint: PathBuf,
}

/// Show what a mount or a server has done: requests by kind, latency, cache hits and misses.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  larder stats /mnt                      answers while the server is down, too
  larder stats 127.0.0.1:7425 --json     the server's own counters, for scripts")]
struct StatsArgs {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// A mount point, or HOST:PORT of a server.
    #[arg(value_name = "MOUNTPOINT|HOST:PORT")]
    target: OsString,
}

/// Show and look after what a mount in afs mode keeps on this machine's disk.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  larder cache status /mnt               how full it is
  larder cache list /mnt                 what is in it, conflicts included
  larder cache pin /mnt src/big.iso      keep a file, or all below a directory, and fetch it again when it changes
  larder cache evict /mnt src            take copies out
  larder cache verify /mnt               compare copies with their checksums; damaged ones are fetched again
  larder cache forget /mnt 17            remove conflict 17 for good

A conflict is a file that was written and could not be stored, because somebody else had changed or removed it by then,
or the server refused it. `list` says where it is kept.")]
struct CacheArgs {
    /// What to do.
    #[arg(value_enum)]
    verb: CacheVerb,
    /// The mount point.
    mountpoint: PathBuf,
    /// A file or directory, by its path below the mount point; for `forget` the conflict's number.
    path: Option<PathBuf>,
    /// Print JSON (status, list).
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum CacheVerb {
    /// How full it is.
    Status,
    /// What is in it.
    List,
    /// Keep files in it.
    Pin,
    /// Let files be evicted again.
    Unpin,
    /// Take copies out of it.
    Evict,
    /// Compare copies with their checksums.
    Verify,
    /// Remove a conflict.
    Forget,
}

/// Print completions for a shell.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  larder completions bash > /usr/share/bash-completion/completions/larder")]
struct CompletionsArgs {
    /// The shell.
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

/// Print the man page, or write those of all commands to a directory.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  larder man | man -l -
  larder man --out /usr/local/share/man/man1")]
struct ManArgs {
    /// The directory to write to.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ModeName {
    /// Attributes and data in memory; others' changes are seen at open, or when attributes expire (the default).
    Nfs,
    /// Whole files on this machine's disk; others' changes are seen at the next open, lookup or stat.
    Afs,
    /// Nothing: every operation asks the server.
    Direct,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum CoherenceName {
    /// Once a change has returned, nobody sees what was before.
    Strict,
    /// Changes return at once; others may see what was before for as long as a lease runs.
    Prompt,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FsyncName {
    /// The file is stored.
    Server,
    /// The file is durable in the cache, from where it is stored later, even if this machine fails.
    Local,
}

/// Runs the command that this process was called with.
pub fn main() -> ExitCode {
    larder_protocol::failpoint::set_up();
    let mut arguments = std::env::args_os();
    let called = arguments.next().unwrap_or_default();
    let result = if Path::new(&called).file_name().is_some_and(|name| name == HELPER) {
        helper::run()
    } else {
        run(Cli::parse())
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("larder: {}", one_line(&format!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let serves = matches!(&cli.command, Command::Mount(args) if args.serve || args.foreground);
    start_logging(cli.verbose, if serves { "info" } else { "warn" });
    match cli.command {
        Command::Mount(args) => mount::run(args, cli.verbose),
        Command::Umount(args) => umount::run(&args),
        Command::Stats(args) => stats::run(&args),
        Command::Cache(args) => cache::run(&args),
        Command::Volume(args) => admin::volume::run(&args),
        Command::Mountpoint(args) => admin::mountpoint::run(&args),
        Command::Server(args) => admin::server::run(&args),
        Command::Completions(args) => generate::completions(args.shell),
        Command::Man(args) => generate::man(args.out.as_deref()),
    }
}

fn start_logging(verbose: u8, default: &str) {
    let level = match verbose {
        0 => default,
        1 => "debug",
        _ => "trace",
    };
    // tarpc warns of every request that is lost with its connection, which `rpc` says once; fuser logs every request.
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(format!("{level},tarpc=error,fuser=warn")));
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let logging = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(terminal);
    if let Err(error) = logging.try_init() {
        eprintln!("larder: cannot log: {error}");
    }
}

/// Errors of other programs come in several lines.
fn one_line(text: &str) -> String {
    text.split(['\n', '\r']).map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn mount_takes_its_words_in_any_order() {
        let cli =
            Cli::try_parse_from(["larder", "mount", "h:1/v", "/mnt", "-o", "ro", "--mode", "direct", "-o", "soft"]);
        let Command::Mount(args) = cli.unwrap().command else { panic!("not a mount") };
        assert_eq!((args.options, args.mode), (vec!["ro".to_owned(), "soft".to_owned()], Some(ModeName::Direct)));
        assert_eq!(args.spec.to_string(), "h:1/v");
        assert!(Cli::try_parse_from(["larder", "mount", "h:0/v", "/mnt"]).is_err());
        assert!(Cli::try_parse_from(["larder", "mount", "h:1"]).is_err());
    }

    #[test]
    fn an_error_is_one_line() {
        assert_eq!(one_line("a\n  b\r\n\nc"), "a; b; c");
    }
}
