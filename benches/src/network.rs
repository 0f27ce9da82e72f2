//! Machines in a network of their own: network namespaces, and a switch between them.

use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;

use crate::process::run;

/// It is taken down when this is dropped, after whatever runs in it.
#[derive(Debug)]
pub struct Network {
    name: String,
    machines: usize,
}

/// Runs ip(8), in a namespace if one is named.
///
/// # Errors
/// If it fails.
pub fn ip(namespace: Option<&str>, words: &str) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(namespace.iter().flat_map(|name| ["-n", name])).args(words.split_whitespace());
    run(&mut command).map(drop)
}

impl Network {
    /// So many machines. The first has the switch, to which the cable of each other one leads.
    ///
    /// # Errors
    /// If namespaces cannot be made.
    pub fn new(machines: usize) -> Result<Network> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        // From here on its drop removes what was made. `scripts/test` knows the name, in case this process is killed.
        let network = Network { name: format!("larder-{}-{number}", std::process::id()), machines };
        for machine in 0..machines {
            ip(None, &format!("netns add {}", network.of(machine)))?;
            ip(Some(&network.of(machine)), "link set lo up")?;
        }
        let first = network.of(0);
        ip(Some(&first), "link add switch type bridge")?;
        ip(Some(&first), &format!("addr add {}/24 dev switch", network.address(0)))?;
        ip(Some(&first), "link set switch up")?;
        for machine in 1..machines {
            let (port, other) = (network.port(machine), network.of(machine));
            ip(Some(&first), &format!("link add {port} type veth peer name cable netns {other}"))?;
            ip(Some(&first), &format!("link set {port} master switch up"))?;
            ip(Some(&other), &format!("addr add {}/24 dev cable", network.address(machine)))?;
            ip(Some(&other), "link set cable up")?;
        }
        Ok(network)
    }

    /// The namespace of a machine, as ip-netns(8) calls it.
    pub fn of(&self, machine: usize) -> String {
        format!("{}-{machine}", self.name)
    }

    /// A machine's address.
    pub fn address(&self, machine: usize) -> String {
        format!("10.77.0.{}", machine + 1)
    }

    /// Where the cable of a machine is plugged in, at the first one.
    pub fn port(&self, machine: usize) -> String {
        format!("port-{machine}")
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // The links go with the namespaces, and those once no process is left in them.
        for machine in 0..self.machines {
            if let Err(error) = ip(None, &format!("netns del {}", self.of(machine))) {
                eprintln!("{error:#}");
            }
        }
    }
}
