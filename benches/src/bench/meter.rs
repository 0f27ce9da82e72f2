//! What processes and the network have used so far.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};

use super::results::Cost;

/// Counters that only grow, and memory as it is.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// Requests answered, by kind.
    pub requests: BTreeMap<String, u64>,
    /// Bytes sent over the loopback.
    pub wire: u64,
    /// What the servers' processes have used.
    pub servers: Usage,
    /// What the clients' processes have used.
    pub clients: Usage,
}

/// What processes have used.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Processor seconds, of user and kernel.
    pub cpu: f64,
    /// Resident bytes now.
    pub memory: u64,
}

impl Usage {
    /// Of these processes and all that they have started, and so on, as far as it still runs: a server may have a process for
    /// each connection, and a client one for what it encrypts.
    pub fn of_trees(roots: &[u32]) -> Usage {
        let all = fs::read_dir("/proc").into_iter().flatten().flatten();
        let mut others: Vec<(u32, u32)> = all
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter_map(|process| Some((process, parent(process)?)))
            .collect();
        let mut tree = roots.to_vec();
        loop {
            let known = tree.len();
            others.retain(|(process, parent)| {
                let is_of_it = tree.contains(parent) && !tree.contains(process);
                if is_of_it {
                    tree.push(*process);
                }
                !is_of_it
            });
            if tree.len() == known {
                return Usage::of(&tree);
            }
        }
    }

    /// Of these processes. One that is gone counts no more.
    pub fn of(processes: &[u32]) -> Usage {
        processes
            .iter()
            .filter_map(|process| of_process(*process))
            .fold(Usage::default(), |sum, one| Usage { cpu: sum.cpu + one.cpu, memory: sum.memory + one.memory })
    }
}

/// Fields of proc_pid_stat(5), by the numbers that they have there.
fn stat_fields<const N: usize>(process: u32, numbers: [usize; N]) -> Option<[u64; N]> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name, field 2, is in brackets and may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let mut found = [0; N];
    for (value, number) in found.iter_mut().zip(numbers) {
        *value = fields.get(number - 3)?.parse().ok()?;
    }
    Some(found)
}

fn parent(process: u32) -> Option<u32> {
    let [parent] = stat_fields(process, [4])?;
    parent.try_into().ok()
}

/// What a process uses, or `None` if it is gone.
pub fn of_process(process: u32) -> Option<Usage> {
    let [user, system, pages] = stat_fields(process, [14, 15, 24])?;
    let cpu = (user + system) as f64 / rustix::param::clock_ticks_per_second() as f64;
    Some(Usage { cpu, memory: pages * rustix::param::page_size() as u64 })
}

/// Bytes that have gone over the loopback of this network namespace.
///
/// # Errors
/// If proc(5) does not say.
pub fn loopback_bytes() -> Result<u64> {
    let table = fs::read_to_string("/proc/self/net/dev").context("reading /proc/self/net/dev")?;
    let line = table.lines().find_map(|line| line.trim_start().strip_prefix("lo:"));
    let received = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    received.context("/proc/self/net/dev has no line for the loopback")
}

impl Reading {
    /// What was used between `before` and this.
    pub fn since(&self, before: &Reading) -> Cost {
        let added = |(kind, count): (&String, &u64)| {
            let added = count - before.requests.get(kind).copied().unwrap_or(0).min(*count);
            (added > 0).then(|| (kind.clone(), added))
        };
        Cost {
            requests: self.requests.iter().filter_map(added).collect(),
            wire: self.wire.saturating_sub(before.wire),
            server_cpu: (self.servers.cpu - before.servers.cpu).max(0.0),
            client_cpu: (self.clients.cpu - before.clients.cpu).max(0.0),
            server_memory: self.servers.memory,
            client_memory: self.clients.memory,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_process_that_works_uses_its_processor() {
        let me = [std::process::id()];
        let before = Usage::of(&me);
        let begin = Instant::now();
        let mut sum = 0u64;
        while Usage::of(&me).cpu - before.cpu < 0.05 {
            sum = std::hint::black_box(sum.wrapping_mul(31).wrapping_add(7));
            assert!(begin.elapsed().as_secs() < 60, "it does not grow");
        }
        assert!(before.memory > 100 << 10);
        assert_eq!(Usage::of(&[u32::MAX - 1]), Usage::default(), "one that is gone");
    }

    #[test]
    fn what_a_process_has_started_counts_with_it() {
        let mut shell = std::process::Command::new("sh");
        let mut shell = shell.args(["-c", "sleep 60 & wait"]).spawn().unwrap();
        let begin = Instant::now();
        let alone = || Usage::of(&[shell.id()]).memory;
        while Usage::of_trees(&[shell.id()]).memory <= alone() {
            assert!(begin.elapsed().as_secs() < 60, "its child is not counted");
        }
        let all: Vec<u32> =
            fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
        let child = all.into_iter().find(|process| parent(*process) == Some(shell.id())).unwrap();
        let kill = |id: u32| {
            let id = rustix::process::Pid::from_raw(id as i32).unwrap();
            rustix::process::kill_process(id, rustix::process::Signal::KILL).unwrap();
        };
        kill(child);
        shell.wait().unwrap();
    }

    #[test]
    fn what_goes_over_the_loopback_is_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let before = loopback_bytes().unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut receiver, _) = listener.accept().unwrap();
        sender.write_all(&[7; 100_000]).unwrap();
        receiver.read_exact(&mut [0; 100_000]).unwrap();
        assert!(loopback_bytes().unwrap() - before >= 100_000);
    }
}
