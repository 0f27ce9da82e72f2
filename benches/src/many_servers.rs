//! A cell of several servers.
#![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

use std::fs;
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::etcd::Etcd;
use crate::mount::{Mode, Mount, Setup};
use crate::network::Network;
use crate::process::{command, run, scratch};
use crate::server::Server;

/// Where the directory of a cell is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Directory {
    /// In the store of the first server.
    Embedded,
    /// In etcd.
    Etcd,
}

/// Servers of one cell. They are ended with it.
pub struct ManyServers {
    // In the order in which they end.
    /// By their numbers.
    pub servers: Vec<Server>,
    /// Where the directory is, if it is there.
    pub etcd: Option<Etcd>,
    /// Where each has a machine of its own: the first is the client's.
    network: Option<Network>,
    /// Where all of it is.
    pub dir: TempDir,
}

impl ManyServers {
    /// So many, each with a store of its own.
    ///
    /// # Panics
    /// If one does not start.
    pub fn new(count: usize, directory: Directory) -> ManyServers {
        ManyServers::start(count, directory, None)
    }

    /// So many, each in a network namespace of its own, as the client is in another one. etcd is beside the first.
    ///
    /// # Panics
    /// If namespaces cannot be made, or a server does not start.
    pub fn apart(count: usize, directory: Directory) -> ManyServers {
        ManyServers::start(count, directory, Some(Network::new(count + 1).unwrap()))
    }

    fn start(count: usize, directory: Directory, network: Option<Network>) -> ManyServers {
        let dir = scratch().unwrap();
        let machine = |number: usize| match &network {
            Some(network) => (network.address(number + 1), Some(network.of(number + 1))),
            None => ("127.0.0.1".to_owned(), None),
        };
        let etcd = (directory == Directory::Etcd).then(|| {
            let (host, namespace) = machine(0);
            Etcd::start_in(dir.path(), &host, namespace.as_deref()).unwrap()
        });
        let machines: Vec<_> = (0..count).map(machine).collect();
        let mut world = ManyServers { servers: Vec::new(), etcd, network, dir };
        for (number, (host, namespace)) in machines.into_iter().enumerate() {
            let place = world.dir.path().join(format!("server-{number}"));
            fs::create_dir(&place).unwrap();
            let location = match &world.etcd {
                Some(etcd) => Some(format!("etcd://{}", etcd.address())),
                None => world.servers.first().map(|first| format!("larder://{}", first.address())),
            };
            let mut arguments: Vec<&str> = location.iter().flat_map(|location| ["--location", location]).collect();
            if namespace.is_some() {
                arguments.extend(["--insecure", "--trust", "10.77.0.0/24"]);
            }
            let listen = format!("{host}:0");
            world.servers.push(Server::start_in(&place, &listen, &arguments, namespace.as_deref()).unwrap());
        }
        world
    }

    /// `larder` with these arguments, which asks this server.
    ///
    /// # Panics
    /// If it was not built.
    pub fn command(&self, server: usize, arguments: &[&str]) -> Command {
        let mut command = command("larder", self.namespace().as_deref()).unwrap();
        command.args(arguments).env("LARDER_SERVER", self.servers[server].address());
        command
    }

    /// The namespace that clients are in.
    fn namespace(&self) -> Option<String> {
        Some(self.network.as_ref()?.of(0))
    }

    /// Runs `larder`, and returns what it prints.
    ///
    /// # Panics
    /// If it fails.
    pub fn larder(&self, server: usize, arguments: &[&str]) -> String {
        String::from_utf8(run(&mut self.command(server, arguments)).unwrap().stdout).unwrap()
    }

    /// Runs `larder`, which must fail, and returns what it says.
    ///
    /// # Panics
    /// If it does not.
    pub fn refused(&self, server: usize, arguments: &[&str]) -> String {
        let Output { status, stderr, .. } = self.command(server, arguments).output().unwrap();
        let told = String::from_utf8(stderr).unwrap();
        assert!(!status.success(), "larder {arguments:?} did not fail: {told}");
        told
    }

    /// Makes a volume at a server, and lets it appear in the root directory of the mount.
    ///
    /// # Panics
    /// If either fails.
    pub fn add(&self, server: usize, mount: &Mount, name: &str) {
        self.larder(server, &["volume", "create", name]);
        self.larder(0, &["mountpoint", "add", mount.at(name).to_str().unwrap(), name]);
    }

    /// Makes so many volumes at each server; returns where each is, and its name.
    ///
    /// # Panics
    /// If one is not made.
    pub fn spread(&self, mount: &Mount, each: usize) -> Vec<(usize, String)> {
        let mut names = Vec::new();
        for number in 0..each {
            for server in 0..self.servers.len() {
                let name = format!("at-{server}-{number}");
                self.add(server, mount, &name);
                names.push((server, name));
            }
        }
        names
    }

    /// Mounts the root volume from a server.
    ///
    /// # Panics
    /// If that fails.
    pub fn mount(&self, name: &str, server: usize, mode: Mode, options: &str) -> Mount {
        let namespace = self.namespace();
        let setup = Setup { options, namespace: namespace.as_deref(), ..Setup::default() };
        Mount::set_up(self.dir.path(), name, self.servers[server].address(), mode, &setup).unwrap()
    }

    /// Requests of a kind that all servers have answered.
    ///
    /// # Panics
    /// If one does not tell.
    pub fn answered(&self, kind: &str) -> u64 {
        let of = |server: &Server| server.stats().unwrap().requests.get(kind).map_or(0, |of_kind| of_kind.count);
        self.servers.iter().map(of).sum()
    }

    /// The server that has a volume.
    ///
    /// # Panics
    /// If none has it.
    pub fn place_of(&self, volume: &str) -> usize {
        let told = self.larder(0, &["volume", "list", "--json"]);
        let volumes: Vec<serde_json::Value> = serde_json::from_str(&told).unwrap();
        let record = volumes.iter().find(|record| record["name"] == volume).unwrap();
        self.servers.iter().position(|server| record["address"] == server.address()).unwrap()
    }

    /// Which servers have a directory of a volume.
    ///
    /// # Panics
    /// If a store cannot be read.
    pub fn copies_of(&self, volume: &str) -> Vec<usize> {
        let has = |server: &Server| {
            fs::read_dir(server.store().join("volumes")).unwrap().any(|entry| {
                let name = entry.unwrap().file_name().into_string().unwrap();
                name.split_once('-').is_some_and(|(_, name)| name == volume) && !name.starts_with('.')
            })
        };
        let numbered = self.servers.iter().enumerate().filter(|(_, server)| has(server));
        numbered.map(|(number, _)| number).collect()
    }

    /// Ends all, and has their stores checked.
    ///
    /// # Panics
    /// If one does not end well, or its check finds something.
    pub fn end(mut self) {
        // The one with the directory last.
        for server in self.servers.iter_mut().rev() {
            server.check().unwrap();
        }
    }
}
