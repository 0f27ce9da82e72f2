//! `larderd serve`: a server in a process of its own.

use std::fs::{self, File};
use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use anyhow::{Context as _, bail};
use larder_protocol::runtime::{BusyPoll, SharedRuntime, SystemRuntime};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{debug, info, warn};
use tracing_subscriber::EnvFilter;

use super::ServeArgs;
use crate::config::{ServeConfig, advertised};
use crate::net::listener;
use crate::service::{Server, ServerConfig, Settings};

/// How long connections get to finish what they have begun once the server was told to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// Threads that run tasks, at least: one that waits for the disk in between must not hold up all others.
const MIN_WORKERS: usize = 4;

pub(super) fn run(args: ServeArgs) -> anyhow::Result<()> {
    let config = ServeConfig::resolve(args)?;
    log(config.log.as_deref())?;
    let workers = available_parallelism().map_or(MIN_WORKERS, |cores| cores.get().max(MIN_WORKERS));
    // This thread takes connections and signals, and those others do the work.
    let main = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start threads")?;
    let (runtime, executors) =
        SystemRuntime::start("larderd", workers, BusyPoll::new(config.busy_poll)).context("cannot start threads")?;
    let result = main.block_on(serve(config, Arc::new(runtime)));
    // Whatever still runs was given its time by then.
    executors.stop(Duration::ZERO);
    main.shutdown_background();
    result
}

/// Volumes and connections take open files, and shells allow few where the system allows many.
fn allow_open_files() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        warn!("the limit of open files ({current:?}) cannot be raised: {error}; many clients or volumes may exceed it");
    }
}

async fn serve(config: ServeConfig, runtime: SharedRuntime) -> anyhow::Result<()> {
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // Before the store is opened: a wrong address should not cost a recovery.
    let listeners = listener::bind(&config.listen, config.insecure).await?;
    let address = match (&config.advertise, listeners.first()) {
        (Some(address), _) => address.clone(),
        (None, Some(listener)) => advertised(listener.local_addr().context("a listening socket has no address")?),
        (None, None) => bail!("there is no address to listen on"),
    };
    allow_open_files();
    let server = ServerConfig {
        store: config.store.clone(),
        durability: config.durability.into(),
        address,
        location: config.location.clone(),
        settings: Settings { root_squash: config.root_squash.clone(), lease: config.lease },
    };
    let server = Server::new(server, runtime).await?;
    info!(
        version = env!("CARGO_PKG_VERSION"),
        store = %config.store.display(),
        epoch = format!("{:016x}", server.epoch().0),
        durability = ?config.durability,
        "store opened"
    );
    announce(&config, &listeners)?;
    let accepting: Vec<_> =
        listeners.into_iter().map(|listener| tokio::spawn(listener::accept(server.clone(), listener))).collect();
    notify(NotifyState::Ready);
    let name = ended_by(&mut term, &mut interrupt).await;
    info!("{name}: ending");
    notify(NotifyState::Stopping);
    let closed = server.shut_down(PATIENCE).await;
    for task in accepting {
        task.await.context("a listener panicked")?;
    }
    if let Some(path) = &config.port_file {
        // It may be gone already, with the directory that it was in.
        let _ = fs::remove_file(path);
    }
    if let Err(code) = closed {
        bail!("a volume could not be closed cleanly ({code}); the next start recovers it");
    }
    info!("ended");
    Ok(())
}

fn log(filter: Option<&str>) -> anyhow::Result<()> {
    let text = match filter {
        Some(text) => text.to_owned(),
        None => std::env::var(EnvFilter::DEFAULT_ENV).unwrap_or_else(|_| "info".to_owned()),
    };
    // tarpc enters a span for each request, at a price that shows; whoever wants them names it.
    let text = if text.contains("tarpc") { text } else { format!("{text},tarpc=warn") };
    let filter = EnvFilter::try_new(&text)
        .with_context(|| format!("`{text}` is no log filter; write a level such as `info`"))?;
    let logger = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    logger.try_init().map_err(|error| anyhow::anyhow!("cannot start logging: {error}"))
}

fn announce(config: &ServeConfig, listeners: &[TcpListener]) -> anyhow::Result<()> {
    let mut addresses = Vec::new();
    for listener in listeners {
        let address = listener.local_addr().context("a listening socket has no address")?;
        info!("listening on {address}");
        addresses.push(address);
    }
    match &config.port_file {
        Some(path) => {
            write_port_file(path, &addresses).with_context(|| format!("cannot write the port file {}", path.display()))
        }
        None => Ok(()),
    }
}

/// Writes the file so that whoever waits for it never sees half of it.
fn write_port_file(path: &Path, addresses: &[SocketAddr]) -> std::io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let mut file = File::create(&new)?;
    for address in addresses {
        writeln!(file, "{address}")?;
    }
    fs::rename(&new, path)
}

async fn ended_by(term: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = term.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}

fn notify(state: NotifyState<'_>) {
    // Fails where no service manager listens, which is usual.
    if let Err(error) = sd_notify::notify(&[state]) {
        debug!("cannot tell the service manager: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_file_has_every_address() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("port");
        write_port_file(&path, &["127.0.0.1:1".parse().unwrap(), "[::1]:2".parse().unwrap()]).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "127.0.0.1:1\n[::1]:2\n");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
