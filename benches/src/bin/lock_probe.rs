//! Tries to lock a file as another program: `lock_probe fcntl|flock FILE` exits with 0 if the lock was free, 1 if
//! somebody has it, 2 for anything else.

use std::fs::File;
use std::process::ExitCode;

use rustix::fs::{FlockOperation, fcntl_lock, flock};
use rustix::io::Errno;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let [kind, path] = args.as_slice() else {
        eprintln!("usage: lock_probe fcntl|flock FILE");
        return ExitCode::from(2);
    };
    let file = match File::options().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(error) => {
            eprintln!("{}: {error}", path.display());
            return ExitCode::from(2);
        }
    };
    let outcome = match kind.to_str() {
        Some("fcntl") => fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive),
        Some("flock") => flock(&file, FlockOperation::NonBlockingLockExclusive),
        _ => Err(Errno::INVAL),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Errno::WOULDBLOCK | Errno::ACCESS) => ExitCode::from(1),
        Err(error) => {
            eprintln!("locking {}: {error}", path.display());
            ExitCode::from(2)
        }
    }
}
