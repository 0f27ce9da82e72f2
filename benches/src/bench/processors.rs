//! Who runs on which processors.

use std::fs;

use anyhow::{Context, Result};
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// While it lives, a server has a processor to itself, as on a machine of its own: what its requests cost does not depend on
/// whether this process has just been there. Threads that either starts meanwhile stay where those are that started them.
pub struct Apart {
    before: CpuSet,
}

impl Apart {
    /// Gives the first processor to the process `server`, and the others to this one. `None` where there is only one.
    ///
    /// # Errors
    /// The system's.
    pub fn new(server: u32) -> Result<Option<Apart>> {
        let before = sched_getaffinity(None).context("asking for this process's processors")?;
        let (mut first, mut others) = (CpuSet::new(), before);
        let Some(one) = (0..CpuSet::MAX_CPU).find(|cpu| before.is_set(*cpu)).filter(|_| before.count() > 1) else {
            return Ok(None);
        };
        first.set(one);
        others.unset(one);
        let apart = Apart { before };
        keep(server, &first)?;
        keep(std::process::id(), &others)?;
        Ok(Some(apart))
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        // Threads that are gone need none.
        let _ = keep(std::process::id(), &self.before);
    }
}

/// Keeps all threads that a process has on these processors.
fn keep(process: u32, processors: &CpuSet) -> Result<()> {
    let of = format!("/proc/{process}/task");
    for thread in fs::read_dir(&of).with_context(|| format!("reading {of}"))? {
        let thread = thread?.file_name().to_str().and_then(|thread| thread.parse().ok()).and_then(Pid::from_raw);
        match sched_setaffinity(thread, processors) {
            // It has ended meanwhile.
            Err(rustix::io::Errno::SRCH) => {}
            done => done.with_context(|| format!("choosing processors for {process}"))?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_has_a_processor_to_itself_for_a_while() {
        let mut server = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let before = sched_getaffinity(None).unwrap();
        if let Some(apart) = Apart::new(server.id()).unwrap() {
            let of_server = sched_getaffinity(Pid::from_raw(server.id() as i32)).unwrap();
            assert_eq!((of_server.count(), sched_getaffinity(None).unwrap().count()), (1, before.count() - 1));
            let child = std::thread::spawn(|| sched_getaffinity(None).unwrap());
            assert_eq!(child.join().unwrap(), sched_getaffinity(None).unwrap());
            drop(apart);
        }
        assert_eq!(sched_getaffinity(None).unwrap(), before);
        server.kill().unwrap();
        server.wait().unwrap();
    }
}
