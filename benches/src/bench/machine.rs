//! What is known of the machine that figures come from.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::process::run;

fn line_of(path: &str, key: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    Some(line.split_once([':', '='])?.1.trim().trim_matches('"').to_owned())
}

/// Facts by name. What cannot be told is missing. `dir` is where stores and caches are.
pub fn facts(dir: &Path) -> BTreeMap<String, String> {
    let first_line = |path: &str| Some(fs::read_to_string(path).ok()?.lines().next()?.to_owned());
    let file_system = run(Command::new("stat").args(["-f", "-c", "%T"]).arg(dir)).ok();
    let processors = std::thread::available_parallelism().ok().map(|count| count.to_string());
    let facts = [
        ("processor", line_of("/proc/cpuinfo", "model name")),
        ("processors", processors),
        ("memory", line_of("/proc/meminfo", "MemTotal")),
        ("kernel", first_line("/proc/sys/kernel/osrelease")),
        ("system", line_of("/etc/os-release", "PRETTY_NAME")),
        (
            "file system of stores and caches",
            file_system.map(|told| String::from_utf8_lossy(&told.stdout).trim().into()),
        ),
        ("load at the beginning", first_line("/proc/loadavg")),
    ];
    facts.into_iter().filter_map(|(name, fact)| Some((name.to_owned(), fact?))).collect()
}

/// The date and the time, in UTC.
pub fn now() -> String {
    let told = run(Command::new("date").args(["-u", "+%Y-%m-%d %H:%M:%S"])).ok();
    told.map(|told| String::from_utf8_lossy(&told.stdout).trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_told_is_told() {
        let facts = facts(Path::new("/"));
        assert!(facts["processors"].parse::<u32>().unwrap() > 0);
        assert!(facts["kernel"].contains('.') && facts.contains_key("memory"));
        assert!(now().starts_with("20"));
    }
}
