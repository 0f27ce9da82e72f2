//! Larder in one of its modes, with a server of its own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::Candidate;
use crate::bench::meter::{Reading, Usage, loopback_bytes};
use crate::mount::{Mode, Mount, Setup};
use crate::process::{binary, run};
use crate::proxy::{Link, Proxy};
use crate::server::Server;

/// Requests that come with asking for figures.
const OF_ASKING: [&str; 2] = ["hello", "stats"];

/// How Larder is set up.
#[derive(Clone, Debug)]
pub struct Setting {
    /// What the candidate is called.
    pub name: String,
    /// How clients cache.
    pub mode: Mode,
    /// What the server's acknowledgements survive: `power` or `process`.
    pub durability: &'static str,
    /// More arguments of `larderd serve`.
    pub server: Vec<String>,
    /// Options of `larder mount -o`.
    pub options: String,
    /// What is between clients and the server, beside what the machine is. Nothing: no proxy.
    pub link: Link,
}

impl Setting {
    /// One of the modes, as it comes but for durability: peers, too, sync only what a program asks them to.
    pub fn of(mode: Mode) -> Setting {
        Setting {
            name: mode.name().to_owned(),
            mode,
            durability: "process",
            server: Vec::new(),
            options: String::new(),
            link: Link::default(),
        }
    }

    /// The same, called otherwise.
    pub fn named(name: String, mode: Mode) -> Setting {
        Setting { name, ..Setting::of(mode) }
    }

    /// The same, but the server does not look out for requests.
    pub fn without_busy_poll(mut self) -> Setting {
        self.server.extend(["--busy-poll", "0"].map(str::to_owned));
        self
    }
}

/// Gives back the room of large files below a directory that nobody uses any more.
fn empty_large(dir: &Path) -> Result<()> {
    /// Bytes of a large file.
    const LARGE: u64 = 1 << 20;
    let Ok(entries) = std::fs::read_dir(dir) else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if metadata.is_dir() {
            empty_large(&entry.path())?;
        } else if metadata.len() >= LARGE {
            std::fs::File::options().write(true).open(entry.path())?.set_len(0)?;
        }
    }
    Ok(())
}

/// A network on which messages take so long there and back.
pub fn round_trip(takes: Duration) -> Link {
    Link { delay: takes / 2, ..Link::default() }
}

/// Which version of Larder is measured.
pub fn version() -> Option<String> {
    let told = run(std::process::Command::new(binary("larder").ok()?).arg("--version")).ok()?;
    Some(String::from_utf8_lossy(&told.stdout).trim().to_owned())
}

/// Larder in one mode.
pub struct Larder {
    setting: Setting,
    dir: PathBuf,
    // Unmounted before the server ends.
    clients: Vec<Client>,
    proxy: Option<Proxy>,
    server: Server,
    /// Disk caches so far.
    caches: u32,
}

/// A client.
struct Client {
    /// Nothing where it could not be mounted again.
    mount: Option<Mount>,
    /// Its disk cache.
    cache: PathBuf,
}

impl Larder {
    /// Starts a server in `DIR/NAME`.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start(dir: &Path, setting: Setting) -> Result<Larder> {
        let dir = dir.join(&setting.name);
        std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        let arguments: Vec<&str> = setting.server.iter().map(String::as_str).collect();
        let server = Server::start_of(&dir, dir.join("store"), setting.durability, &arguments)?;
        let proxy = if setting.link == Link::default() {
            None
        } else {
            let proxy = Proxy::start(server.address())?;
            proxy.set(setting.link);
            Some(proxy)
        };
        Ok(Larder { setting, dir, clients: Vec::new(), proxy, server, caches: 0 })
    }

    /// The server.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// The server's address, as clients see it.
    pub fn address(&self) -> String {
        self.proxy.as_ref().map_or_else(|| self.server.address().to_owned(), Proxy::address)
    }

    fn mounts(&self) -> impl Iterator<Item = &Mount> {
        self.clients.iter().filter_map(|client| client.mount.as_ref())
    }

    /// A client.
    pub fn client(&self, number: usize) -> Option<&Mount> {
        self.clients.get(number)?.mount.as_ref()
    }

    /// Mounts with a new disk cache.
    fn mount(&mut self, number: usize) -> Result<Client> {
        self.caches += 1;
        let cache = self.dir.join(format!("cache-{}", self.caches));
        let setup = Setup { options: &self.setting.options, cache: Some(&cache), ..Setup::default() };
        let name = format!("client-{number}");
        let mount = Some(Mount::set_up(&self.dir, &name, &self.address(), self.setting.mode, &setup)?);
        Ok(Client { mount, cache })
    }
}

impl Candidate for Larder {
    fn name(&self) -> &str {
        &self.setting.name
    }

    fn version(&self) -> Option<String> {
        version()
    }

    fn settings(&self) -> Option<String> {
        Some(format!("as it comes, but --durability {}", self.setting.durability))
    }

    fn need_clients(&mut self, count: usize) -> Result<()> {
        while self.clients.len() < count {
            let client = self.mount(self.clients.len())?;
            self.clients.push(client);
        }
        Ok(())
    }

    fn path(&self, client: usize) -> PathBuf {
        self.dir.join(format!("client-{client}"))
    }

    fn forget(&mut self, client: usize) -> Result<()> {
        let known = self.clients.get_mut(client).context("there is no such client")?;
        if let Some(mount) = known.mount.take() {
            mount.close(false)?;
        }
        // The files of old caches stay: ext4 is slow in making files for minutes after many were removed.
        empty_large(&known.cache)?;
        self.clients[client] = self.mount(client)?;
        Ok(())
    }

    fn can_forget(&self) -> bool {
        true
    }

    fn reading(&self) -> Result<Reading> {
        let mut requests = self.server.counts()?.0;
        requests.retain(|kind, _| !OF_ASKING.contains(&kind.as_str()));
        let servers: Vec<u32> = self.server.id().into_iter().collect();
        let clients: Vec<u32> = self.mounts().filter_map(Mount::id).collect();
        Ok(Reading { requests, wire: loopback_bytes()?, servers: Usage::of(&servers), clients: Usage::of(&clients) })
    }

    fn end(&mut self) -> Result<()> {
        for mount in std::mem::take(&mut self.clients).into_iter().filter_map(|client| client.mount) {
            mount.close(false)?;
        }
        self.server.stop()
    }
}
