//! How a server is told what to do: a TOML file, under what the command line says.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use larder_protocol::handshake::LeaseTerms;
use serde::Deserialize;

use crate::cli::ServeArgs;
use crate::location::Location;
use crate::service::credential::{Network, RootSquash, Squash};
use crate::volume::Durability;

/// Where a server listens unless told otherwise.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:7425";

/// How long a server looks out for the next request unless told otherwise: a little longer than a client on the same
/// machine takes between two requests of one program.
pub const DEFAULT_BUSY_POLL: Duration = Duration::from_micros(300);
/// Longer is no use: it is more than to wake up takes.
const MAX_BUSY_POLL: Duration = Duration::from_millis(10);

/// What an acknowledgement promises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum DurabilityLevel {
    /// It survives a power cut.
    #[default]
    Power,
    /// It survives the end of the server's process; what a program has synced with fsync survives a power cut, and the rest
    /// if it is 50 ms old.
    Process,
}

impl From<DurabilityLevel> for Durability {
    fn from(level: DurabilityLevel) -> Durability {
        match level {
            DurabilityLevel::Power => Durability::Power,
            DurabilityLevel::Process => Durability::Process,
        }
    }
}

/// The keys of a configuration file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct File {
    store: Option<PathBuf>,
    listen: Option<Vec<String>>,
    durability: Option<DurabilityLevel>,
    insecure: Option<bool>,
    root_squash: Option<RootSquash>,
    trust: Option<Vec<String>>,
    location: Option<String>,
    lease_term: Option<toml::Value>,
    busy_poll: Option<u64>,
    advertise: Option<String>,
    log: Option<String>,
    port_file: Option<PathBuf>,
}

/// What a server is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServeConfig {
    /// The store's directory.
    pub store: PathBuf,
    /// Addresses to listen on.
    pub listen: Vec<SocketAddr>,
    /// What an acknowledgement promises.
    pub durability: DurabilityLevel,
    /// Whether to listen on addresses that other hosts can reach.
    pub insecure: bool,
    /// What becomes of the clients' superusers.
    pub root_squash: Squash,
    /// Where the cell's directory is, if it was said.
    pub location: Option<Location>,
    /// How long promises last.
    pub lease: LeaseTerms,
    /// How long a thread looks out for the next of many requests before it sleeps.
    pub busy_poll: Duration,
    /// Where clients and other servers reach it, if that is not where it listens: `HOST:PORT`.
    pub advertise: Option<String>,
    /// What to log, as a filter of `tracing`.
    pub log: Option<String>,
    /// Where to write the addresses that were opened.
    pub port_file: Option<PathBuf>,
}

impl ServeConfig {
    /// What the command line says, and where it is silent, the file that it names, and then the defaults.
    ///
    /// # Errors
    /// The file cannot be read, or has a key or value that means nothing; no store is named; an address has no
    /// meaning.
    pub fn resolve(args: ServeArgs) -> anyhow::Result<ServeConfig> {
        let file = match &args.config {
            Some(path) => read(path)?,
            None => File::default(),
        };
        let Some(store) = args.store.or(file.store) else {
            bail!("no store is named: give --store DIR, or `store = \"DIR\"` in the configuration file");
        };
        let mut listen = args.listen;
        if listen.is_empty() {
            listen = file.listen.unwrap_or_else(|| vec![DEFAULT_LISTEN.to_owned()]);
        }
        if listen.is_empty() {
            bail!("`listen` names no address; leave it out for {DEFAULT_LISTEN}");
        }
        let listen = listen.iter().map(|text| address(text)).collect::<anyhow::Result<Vec<_>>>()?;
        let lease = match (args.lease_term, file.lease_term) {
            (Some(lease), _) => lease,
            (None, Some(secs)) => lease_term(&secs.to_string()).map_err(|error| anyhow!("`lease-term`: {error}"))?,
            (None, None) => LeaseTerms::default(),
        };
        let trusted: Result<Vec<Network>, String> = file.trust.iter().flatten().map(|text| text.parse()).collect();
        let trusted = trusted.map_err(|error| anyhow!("`trust`: {error}"))?;
        Ok(ServeConfig {
            store,
            listen,
            durability: args.durability.or(file.durability).unwrap_or_default(),
            insecure: args.insecure || file.insecure.unwrap_or(false),
            root_squash: Squash {
                when: args.root_squash.or(file.root_squash).unwrap_or_default(),
                trusted: if args.trust.is_empty() { trusted } else { args.trust },
            },
            location: match (args.location, file.location) {
                (Some(location), _) => Some(location),
                (None, Some(text)) => Some(text.parse().map_err(|error| anyhow!("`location`: {error}"))?),
                (None, None) => None,
            },
            lease,
            busy_poll: match (args.busy_poll, file.busy_poll) {
                (Some(window), _) => window,
                (None, Some(micros)) => {
                    busy_poll(&micros.to_string()).map_err(|error| anyhow!("`busy-poll`: {error}"))?
                }
                (None, None) => DEFAULT_BUSY_POLL,
            },
            advertise: args.advertise.or(file.advertise),
            log: args.log.or(file.log),
            port_file: args.port_file.or(file.port_file),
        })
    }
}

/// Where others reach a server that listens there, unless it is told: an address that stands for all of the machine's is
/// none, and the machine's name takes its place.
pub fn advertised(listening: SocketAddr) -> String {
    if !listening.ip().is_unspecified() {
        return listening.to_string();
    }
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{name}:{}", listening.port())
}

/// How long to look out for requests, from a number of microseconds.
///
/// # Errors
/// What would be right.
pub fn busy_poll(text: &str) -> Result<Duration, String> {
    match text.parse().map(Duration::from_micros) {
        Ok(window) if window <= MAX_BUSY_POLL => Ok(window),
        _ => Err(format!("a number of microseconds up to {}, and 0 for not at all", MAX_BUSY_POLL.as_micros())),
    }
}

/// The terms of leases, from a number of seconds.
///
/// # Errors
/// What would be right.
pub fn lease_term(text: &str) -> Result<LeaseTerms, String> {
    let term = text.parse::<f64>().ok().and_then(|secs| Duration::try_from_secs_f64(secs).ok());
    match term {
        Some(term) if LeaseTerms::RANGE.contains(&term) => Ok(LeaseTerms::new(term)),
        _ => Err(format!(
            "a number of seconds from {} to {}",
            LeaseTerms::RANGE.start().as_secs_f64(),
            LeaseTerms::RANGE.end().as_secs()
        )),
    }
}

fn read(path: &Path) -> anyhow::Result<File> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the configuration file {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("the configuration file {} is wrong", path.display()))
}

fn address(text: &str) -> anyhow::Result<SocketAddr> {
    let found = text.to_socket_addrs();
    let mut found = found.with_context(|| format!("`{text}` is no address to listen on; write ADDRESS:PORT"))?;
    found.next().with_context(|| format!("`{text}` has no address"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn resolve(args: &[&str]) -> anyhow::Result<ServeConfig> {
        let cli = Cli::try_parse_from(["larderd", "serve"].iter().chain(args))?;
        let Command::Serve(args) = cli.command else { panic!("not serve") };
        ServeConfig::resolve(*args)
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, text).unwrap();
        file
    }

    #[test]
    fn defaults_are_safe() {
        let config = resolve(&["--store", "/s"]).unwrap();
        assert_eq!(config.listen, [DEFAULT_LISTEN.parse().unwrap()]);
        assert_eq!(config.durability, DurabilityLevel::Power);
        assert_eq!(config.root_squash, Squash::default());
        assert!(!config.insecure);
        assert_eq!(config.lease.term, Duration::from_secs(10));
        assert_eq!(resolve(&["--store", "/s", "--lease-term", "2.5"]).unwrap().lease.term, Duration::from_millis(2500));
        assert!(resolve(&["--store", "/s", "--lease-term", "0"]).is_err());
        assert_eq!(config.busy_poll, DEFAULT_BUSY_POLL);
        assert_eq!(resolve(&["--store", "/s", "--busy-poll", "0"]).unwrap().busy_poll, Duration::ZERO);
        assert!(resolve(&["--store", "/s", "--busy-poll", "10001"]).is_err());
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let file = file(
            "store = '/file'\nlisten = ['127.0.0.1:1', '[::1]:2']\ndurability = 'process'\n\
             root-squash = 'on'\nlog = 'debug'\nport-file = '/p'\ninsecure = true\nbusy-poll = 50\n",
        );
        let path = file.path().to_str().unwrap();
        let from_file = resolve(&["--config", path]).unwrap();
        assert_eq!(from_file.store, Path::new("/file"));
        assert_eq!(from_file.listen.len(), 2);
        assert_eq!(from_file.durability, DurabilityLevel::Process);
        assert_eq!(from_file.root_squash.when, RootSquash::On);
        assert!(from_file.insecure);
        assert_eq!(from_file.busy_poll, Duration::from_micros(50));
        let args = ["--config", path, "--store", "/line", "--listen", "127.0.0.1:9", "--durability", "power"];
        let both = resolve(&args).unwrap();
        assert_eq!(both.store, Path::new("/line"));
        assert_eq!(both.listen, ["127.0.0.1:9".parse().unwrap()]);
        assert_eq!(both.durability, DurabilityLevel::Power);
        assert_eq!(both.root_squash.when, RootSquash::On, "what the line does not say stays");
    }

    #[test]
    fn mistakes_are_named() {
        let error = |text: &str| {
            let file = file(text);
            format!("{:#}", resolve(&["--config", file.path().to_str().unwrap()]).unwrap_err())
        };
        assert!(error("store = '/s'\nlisten-on = 'x'").contains("listen-on"));
        assert!(error("store = '/s'\ndurability = 'maybe'").contains("maybe"));
        assert!(error("store = '/s'\nlease-term = 0.1").contains("from 0.5 to 3600"));
        assert!(error("store = '/s'\nbusy-poll = 1000000").contains("up to 10000"));
        assert!(error("durability = 'power'").contains("--store"));
        assert!(error("store = '/s'\nlisten = ['nowhere']").contains("nowhere"));
        let missing = format!("{:#}", resolve(&["--config", "/nonexistent.toml"]).unwrap_err());
        assert!(missing.contains("/nonexistent.toml"), "{missing}");
    }
}
