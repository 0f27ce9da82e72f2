//! The command line of `larderd`.

mod serve;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::config::DurabilityLevel;
use crate::location::Location;
use crate::service::credential::{Network, RootSquash};
use crate::store::Store;
use crate::volume::check;
use larder_protocol::handshake::LeaseTerms;

/// Larder's file server.
#[derive(Debug, Parser)]
#[command(name = "larderd", version, propagate_version = true)]
#[command(after_help = "Examples:\n  larderd serve --store /srv/larder\n  larderd check --store /srv/larder")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands of `larderd`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serves a store to clients, until SIGTERM or SIGINT.
    Serve(Box<ServeArgs>),
    /// Verifies a store that no server uses, and says what is wrong with it.
    Check(CheckArgs),
    /// Prints a script that completes commands and options in a shell.
    #[command(after_help = "Example:\n  larderd completions bash > /etc/bash_completion.d/larderd")]
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Prints the manual page.
    #[command(after_help = "Example:\n  larderd man > /usr/local/share/man/man8/larderd.8")]
    Man,
}

/// Options of `larderd serve`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  larderd serve --store /srv/larder
      Serves /srv/larder to this machine on 127.0.0.1:7425. The first start makes the store.
  larderd serve --store /srv/larder --listen 10.0.0.5:7425 --insecure
      Serves it to a trusted network.
  larderd serve --config /etc/larderd.toml
      Reads options from a file, such as: store = \"/srv/larder\"
                                          listen = [\"127.0.0.1:7425\"]
                                          durability = \"process\"")]
pub struct ServeArgs {
    /// The store's directory. Made, with the volume `root`, if it is empty or not there.
    #[arg(long, value_name = "DIR")]
    pub store: Option<PathBuf>,
    /// An address to listen on; may be given several times [default: 127.0.0.1:7425]. Port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Vec<String>,
    /// What an acknowledged change survives [default: power].
    #[arg(long, value_name = "WHAT")]
    pub durability: Option<DurabilityLevel>,
    /// A TOML file with the same options, without their dashes. The command line wins.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Listen on addresses that other hosts can reach, although nothing is encrypted or authenticated yet.
    #[arg(long)]
    pub insecure: bool,
    /// Whether the superusers of clients become nobody [default: auto].
    #[arg(long, value_name = "WHEN")]
    pub root_squash: Option<RootSquash>,
    /// Hosts that are trusted as this one is, as an address or ADDRESS/BITS; may be given several times. Their superusers
    /// stay that, and their servers may belong to this cell.
    #[arg(long, value_name = "HOSTS")]
    pub trust: Vec<Network>,
    /// Where the cell's directory is: larder://HOST:PORT for the store of another server, whose cell this one joins;
    /// etcd://HOST:PORT for etcd, with commas between several, and /CELL behind them if it holds more than one cell; or own
    /// [default: as it was when the store was made, which is own if nothing was said]
    #[arg(long, value_name = "WHERE")]
    pub location: Option<Location>,
    /// How long a client may rely on what it caches without asking, in seconds: also the longest that a change waits
    /// for a client that is cut off [default: 10]
    #[arg(long, value_name = "SECONDS", value_parser = crate::config::lease_term)]
    pub lease_term: Option<LeaseTerms>,
    /// How long a thread looks out for the next request before it sleeps, in microseconds, while requests come in quick
    /// succession: answers them sooner, and takes up to one processor's idle time for it. 0: not at all [default: 300]
    #[arg(long, value_name = "MICROSECONDS", value_parser = crate::config::busy_poll)]
    pub busy_poll: Option<Duration>,
    /// Where clients and other servers reach it [default: the first address that it listens on, or the machine's name if
    /// that is all of its addresses]
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    /// What to log to standard error, such as `debug` or `larder_server=trace`. Without it RUST_LOG counts
    /// [default: info].
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
    /// Write the addresses that were opened to this file, one on a line, once clients can connect.
    #[arg(long, value_name = "FILE")]
    pub port_file: Option<PathBuf>,
}

/// Options of `larderd check`.
#[derive(Debug, Args)]
#[command(after_help = "\
The exit status is 0 if the store is sound, 1 if something was found (repaired or not), 2 if the check could not run.

Examples:
  larderd check --store /srv/larder
  larderd check --store /srv/larder --repair")]
pub struct CheckArgs {
    /// The store's directory.
    #[arg(long, value_name = "DIR")]
    pub store: PathBuf,
    /// Mend what can be mended without losing data.
    #[arg(long)]
    pub repair: bool,
    /// Report as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Runs the command that the process was started with.
pub fn run() -> ExitCode {
    larder_protocol::failpoint::set_up();
    let result = match Cli::parse().command {
        Command::Serve(args) => serve::run(*args).map(|()| ExitCode::SUCCESS),
        Command::Check(args) => return run_check(&args),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "larderd", &mut io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::Man => manual().map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        eprintln!("larderd: {error:#}");
        ExitCode::FAILURE
    })
}

/// The manual page of the command, with those of its subcommands behind it.
fn manual() -> anyhow::Result<()> {
    let mut command = Cli::command();
    command.build();
    let mut out = io::stdout().lock();
    let man = clap_mangen::Man::new(command.clone()).section("8");
    man.render(&mut out)?;
    for sub in command.get_subcommands() {
        if sub.get_name() != "help" {
            let man = clap_mangen::Man::new(sub.clone()).section("8");
            man.render_name_section(&mut out)?;
            man.render_synopsis_section(&mut out)?;
            man.render_options_section(&mut out)?;
            man.render_extra_section(&mut out)?;
        }
    }
    Ok(())
}

fn run_check(args: &CheckArgs) -> ExitCode {
    match check_store(args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("larderd: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether the store is sound.
fn check_store(args: &CheckArgs) -> anyhow::Result<bool> {
    let store = Store::open_existing(&args.store)?;
    let report = check::run(store.dir(), args.repair)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{report}");
    }
    Ok(report.findings.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_are_read() {
        let cli = Cli::try_parse_from(["larderd", "serve", "--store", "/s", "--root-squash", "on", "--insecure"]);
        let Command::Serve(args) = cli.unwrap().command else { panic!("not serve") };
        assert_eq!(args.root_squash, Some(RootSquash::On));
        assert!(args.insecure);
        assert!(Cli::try_parse_from(["larderd", "serve", "--durability", "none"]).is_err());
        assert!(Cli::try_parse_from(["larderd", "check"]).is_err(), "a check needs a store");
    }

    #[test]
    fn a_check_of_what_is_no_store_could_not_run() {
        let dir = tempfile::tempdir().unwrap();
        let args = CheckArgs { store: dir.path().to_owned(), repair: false, json: false };
        assert!(check_store(&args).unwrap_err().to_string().contains("not a Larder store"));
    }
}
