//! Talking to the process behind a mount: one command per line over a Unix socket, one line of JSON in answer.
//!
//! The socket is served beside the file system, so it answers while the server is down.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use larder_protocol::runtime::BoxFuture;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::sync::Semaphore;

use super::admin::mountpoint;

/// The longest command, in bytes.
const MAX_COMMAND: u64 = 1024;
/// The longest answer, in bytes.
const MAX_ANSWER: u64 = 4 << 20;
/// Callers at a time; more are turned away.
const MAX_CALLERS: usize = 32;
/// How long a caller may be silent.
const SILENCE: Duration = Duration::from_secs(10);

/// What a process behind a mount can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Who are you?
    Ping,
    /// What has happened so far?
    Stats,
    /// Unmount if nobody uses the mount, then flush and end.
    Unmount,
    /// Let everything that waits fail, unmount, and end.
    Abort,
    /// Say nothing, and keep the connection until you end.
    Watch,
    /// About the disk cache.
    Cache(CacheCommand),
    /// About where volumes appear.
    Mountpoint(mountpoint::Request),
}

/// What can be asked about the disk cache. Files go by their inode numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CacheCommand {
    /// How full is it?
    Status,
    /// What is in it, with larger numbers than this?
    List(u64),
    /// Is all of it as it was made?
    VerifyAll,
    /// Is this file's copy?
    Verify(u64),
    /// Keep this file in it.
    Pin(u64),
    /// Do not.
    Unpin(u64),
    /// Take this file's copy out of it.
    Evict(u64),
    /// Remove this conflict.
    Forget(u64),
}

impl Command {
    /// The command as one line.
    fn line(&self) -> String {
        match self {
            Command::Ping => "ping".to_owned(),
            Command::Stats => "stats".to_owned(),
            Command::Unmount => "unmount".to_owned(),
            Command::Abort => "abort".to_owned(),
            Command::Watch => "watch".to_owned(),
            Command::Cache(CacheCommand::Status) => "cache status".to_owned(),
            Command::Cache(CacheCommand::List(from)) => format!("cache list {from}"),
            Command::Cache(CacheCommand::VerifyAll) => "cache verify".to_owned(),
            Command::Cache(CacheCommand::Verify(inode)) => format!("cache verify {inode}"),
            Command::Cache(CacheCommand::Pin(inode)) => format!("cache pin {inode}"),
            Command::Cache(CacheCommand::Unpin(inode)) => format!("cache unpin {inode}"),
            Command::Cache(CacheCommand::Evict(inode)) => format!("cache evict {inode}"),
            Command::Cache(CacheCommand::Forget(id)) => format!("cache forget {id}"),
            Command::Mountpoint(request) => format!("mountpoint {}", request.words()),
        }
    }

    /// The command that a line says.
    fn parse(line: &str) -> Option<Command> {
        let mut words = line.split_whitespace();
        let command = match words.next()? {
            "ping" => Command::Ping,
            "stats" => Command::Stats,
            "unmount" => Command::Unmount,
            "abort" => Command::Abort,
            "watch" => Command::Watch,
            "mountpoint" => return mountpoint::Request::parse(words).map(Command::Mountpoint),
            "cache" => {
                let verb = words.next()?;
                let number = words.next().map(str::parse).transpose().ok()?;
                Command::Cache(match (verb, number) {
                    ("status", None) => CacheCommand::Status,
                    ("verify", None) => CacheCommand::VerifyAll,
                    ("list", Some(from)) => CacheCommand::List(from),
                    ("verify", Some(inode)) => CacheCommand::Verify(inode),
                    ("pin", Some(inode)) => CacheCommand::Pin(inode),
                    ("unpin", Some(inode)) => CacheCommand::Unpin(inode),
                    ("evict", Some(inode)) => CacheCommand::Evict(inode),
                    ("forget", Some(id)) => CacheCommand::Forget(id),
                    _ => return None,
                })
            }
            _ => return None,
        };
        words.next().is_none().then_some(command)
    }
}

/// Answers commands; [`Command::Watch`] does not get here.
pub(super) type Handler = Arc<dyn Fn(Command) -> BoxFuture<Value> + Send + Sync>;

/// The socket of this process. It is removed when this is dropped.
pub(super) struct Control {
    path: PathBuf,
    inode: u64,
}

impl Control {
    /// Listens at `path`, in place of what an earlier process left there, and serves each caller in a task.
    ///
    /// # Errors
    /// What making the socket says.
    pub(super) fn listen(path: PathBuf, handler: Handler) -> io::Result<Control> {
        // The name is the mount's device number, which this process has now. It gets it only when it answers: until
        // then it would be taken for what a dead process has left.
        let begun = path.with_extension(format!("{}.new", std::process::id()));
        match std::fs::remove_file(&begun) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&begun)?;
        std::fs::set_permissions(&begun, std::fs::Permissions::from_mode(0o600))?;
        let inode = begun.symlink_metadata()?.ino();
        std::fs::rename(&begun, &path)?;
        tokio::spawn(accept(listener, handler));
        Ok(Control { path, inode })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // The number goes to another mount as soon as this one is gone.
        if self.path.symlink_metadata().is_ok_and(|found| found.ino() != self.inode) {
            return;
        }
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!("{} cannot be removed: {error}", self.path.display());
        }
    }
}

async fn accept(listener: UnixListener, handler: Handler) {
    let places = Arc::new(Semaphore::new(MAX_CALLERS));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
                let handler = Arc::clone(&handler);
                tokio::spawn(async move {
                    if let Err(error) = attend(stream, handler).await {
                        tracing::debug!("a caller at the control socket was lost: {error}");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                // Out of descriptors, for instance: it may pass.
                tracing::warn!("the control socket cannot take a caller: {error}");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn attend(stream: tokio::net::UnixStream, handler: Handler) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = tokio::io::BufReader::new(reader);
    loop {
        let mut line = String::new();
        let mut bounded = (&mut reader).take(MAX_COMMAND);
        match tokio::time::timeout(SILENCE, bounded.read_line(&mut line)).await {
            Err(_) | Ok(Ok(0)) => return Ok(()),
            Ok(Err(error)) => return Err(error),
            Ok(Ok(_)) => {}
        }
        let answer = match Command::parse(&line) {
            Some(Command::Watch) => {
                writer.write_all(b"{\"watching\":true}\n").await?;
                // Ends when the caller leaves, or with this process.
                let mut rest = [0];
                let _left = reader.read(&mut rest).await?;
                return Ok(());
            }
            Some(command) => handler(command).await,
            None => json!({ "error": "unknown command" }),
        };
        let mut answer = answer.to_string();
        answer.push('\n');
        tokio::time::timeout(SILENCE, writer.write_all(answer.as_bytes())).await??;
    }
}

/// A connection to the process behind a mount.
pub(super) struct Caller {
    stream: BufReader<UnixStream>,
}

impl Caller {
    /// Connects.
    ///
    /// # Errors
    /// What connecting says: `ConnectionRefused` and `NotFound` when the process is gone.
    pub(super) fn connect(path: &Path) -> io::Result<Caller> {
        let stream = UnixStream::connect(path)?;
        stream.set_write_timeout(Some(SILENCE))?;
        Ok(Caller { stream: BufReader::new(stream) })
    }

    /// The process at the other end.
    ///
    /// # Errors
    /// What the socket says.
    pub(super) fn pid(&self) -> io::Result<rustix::process::Pid> {
        Ok(rustix::net::sockopt::socket_peercred(self.stream.get_ref())?.pid)
    }

    /// Sends a command and waits for its answer.
    ///
    /// # Errors
    /// `TimedOut` when there is none in time; `InvalidData` when it is not JSON; what the socket says.
    pub(super) fn ask(&mut self, command: Command, within: Duration) -> io::Result<Value> {
        self.stream.get_ref().set_read_timeout(Some(within))?;
        self.stream.get_mut().write_all(format!("{}\n", command.line()).as_bytes())?;
        let mut line = String::new();
        (&mut self.stream).take(MAX_ANSWER).read_line(&mut line).map_err(timed_out)?;
        if line.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        serde_json::from_str(&line).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// Waits until the process has ended; whether it has.
    pub(super) fn wait_for_end(mut self, within: Duration) -> bool {
        if self.stream.get_ref().set_read_timeout(Some(within)).is_err() {
            return false;
        }
        let mut rest = [0];
        !matches!(self.stream.read(&mut rest).map_err(timed_out), Err(error) if error.kind() == io::ErrorKind::TimedOut)
    }
}

/// A read that takes too long on a Unix socket says "would block".
fn timed_out(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, "no answer in time"),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn serve(path: &Path) -> (tokio::runtime::Runtime, Control) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let handler: Handler = Arc::new(|command| Box::pin(async move { json!({ "did": command.line() }) }));
        let control = {
            let _inside = runtime.enter();
            Control::listen(path.to_owned(), handler).unwrap()
        };
        (runtime, control)
    }

    #[test]
    fn who_ends_takes_nobody_elses_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0:1.sock");
        let (_first_runtime, first) = serve(&path);
        // Another mount has got the device number before the process of the first is at its end.
        let (_second_runtime, second) = serve(&path);
        drop(first);
        assert!(Caller::connect(&path).unwrap().ask(Command::Ping, SOON).is_ok());
        drop(second);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn commands_are_answered_one_after_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0:1.sock");
        std::fs::write(&path, "left behind").unwrap();
        let (_runtime, control) = serve(&path);
        let mut caller = Caller::connect(&path).unwrap();
        let cache = [
            CacheCommand::Status,
            CacheCommand::List(7),
            CacheCommand::VerifyAll,
            CacheCommand::Verify(u64::MAX),
            CacheCommand::Pin(1),
            CacheCommand::Unpin(2),
            CacheCommand::Evict(3),
            CacheCommand::Forget(4),
        ];
        let others = [Command::Ping, Command::Stats, Command::Unmount, Command::Abort];
        for command in others.into_iter().chain(cache.map(Command::Cache)) {
            let line = command.line();
            assert_eq!(Command::parse(&line), Some(command.clone()));
            assert_eq!(caller.ask(command, SOON).unwrap()["did"], line);
        }
        for bad in ["", "cache", "cache pin", "cache pin x", "cache status 1", "ping 1"] {
            assert_eq!(Command::parse(bad), None, "{bad}");
        }
        assert_eq!(caller.pid().unwrap(), rustix::process::getpid());
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        drop(control);
        assert!(!path.exists());
    }

    #[test]
    fn a_watcher_learns_of_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0:1.sock");
        let (runtime, _control) = serve(&path);
        let mut caller = Caller::connect(&path).unwrap();
        assert_eq!(caller.ask(Command::Watch, SOON).unwrap()["watching"], true);
        let patient = Caller { stream: BufReader::new(caller.stream.get_ref().try_clone().unwrap()) };
        assert!(!patient.wait_for_end(Duration::from_millis(20)));
        drop(runtime);
        assert!(caller.wait_for_end(SOON));
    }

    #[test]
    fn nonsense_is_answered_and_a_flood_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0:1.sock");
        let (_runtime, _control) = serve(&path);
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.write_all(b"nonsense\n").unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        assert!(line.contains("unknown command"), "{line}");
        stream.write_all(&[b'x'; 10_000]).unwrap();
        line.clear();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        assert!(line.contains("unknown command"), "{line}");
    }
}
