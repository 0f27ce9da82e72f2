//! The loads that `scripts/bench` measures with: `probe --help`.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use clap::{Parser, Subcommand};
use larder_benches::raw::Raw;

/// Bytes moved at a time, as in the protocol's largest read.
const CHUNK: usize = 1 << 20;
/// Bytes of each file of the metadata load.
const FILE: usize = 4096;
/// How long the load on existing files repeats each of its operations, at least: longer than the second for which many
/// file systems believe what they have, so that asking again is part of it.
const REPEAT: Duration = Duration::from_secs(2);

/// Loads for measuring; each prints its figures, one `NAME VALUE` in a line.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    load: Load,
}

#[derive(Subcommand)]
enum Load {
    /// Sends data over loopback TCP without any protocol: `tcp MIB_PER_SECOND`
    Tcp {
        /// MiB to send
        #[arg(default_value_t = 1024)]
        mib: usize,
    },
    /// Touches memory and gives it back. A virtual machine gets memory that it has not used lately from its host, page by
    /// page and slowly; what is measured next should not pay for that
    Warm {
        /// MiB to touch
        mib: usize,
    },
    /// Creates (with 4 KiB each), stats, reads, renames and removes files: operations per second of each
    Metadata {
        /// Where to do it; nothing stays behind
        dir: PathBuf,
        /// How many files
        #[arg(default_value_t = 2000)]
        files: usize,
    },
    /// Stats, and opens, reads and closes, all files of a directory again and again: operations per second of each,
    /// without the first time
    Existing {
        /// Where the files are
        dir: PathBuf,
    },
    /// Fills a server with empty files, a thousand in each directory, without a mount
    Populate {
        /// HOST:PORT
        address: String,
        /// How many files
        #[arg(default_value_t = 1_000_000)]
        files: usize,
    },
}

fn main() -> Result<()> {
    match Cli::parse().load {
        Load::Tcp { mib } => tcp(mib),
        Load::Warm { mib } => warm(mib),
        Load::Metadata { dir, files } => metadata(&dir, files),
        Load::Existing { dir } => existing(&dir),
        Load::Populate { address, files } => populate(&address, files),
    }
}

fn tcp(mib: usize) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let receiver = thread::spawn(move || -> Result<usize> {
        let (mut stream, _) = listener.accept()?;
        let mut buffer = vec![0; CHUNK];
        let mut received = 0;
        loop {
            match stream.read(&mut buffer)? {
                0 => return Ok(received),
                len => received += len,
            }
        }
    });
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let chunk = vec![1; CHUNK];
    let start = Instant::now();
    for _ in 0..mib {
        stream.write_all(&chunk)?;
    }
    drop(stream);
    let received = receiver.join().map_err(|_| anyhow!("the receiver panicked"))??;
    let took = start.elapsed();
    ensure!(received == mib * CHUNK, "{received} bytes arrived of {mib} MiB");
    println!("tcp {:.1}", mib as f64 / took.as_secs_f64());
    Ok(())
}

fn warm(mib: usize) -> Result<()> {
    /// Bytes of a page, or less.
    const PAGE: usize = 4096;
    let mut chunks = Vec::new();
    for _ in 0..mib {
        let mut chunk = Vec::<u8>::new();
        chunk.try_reserve_exact(CHUNK).context("not that much memory")?;
        chunk.resize(CHUNK, 1);
        chunks.push(chunk);
    }
    let touched: usize =
        chunks.iter().map(|chunk| chunk.iter().step_by(PAGE).map(|byte| usize::from(*byte)).sum::<usize>()).sum();
    ensure!(touched == mib * (CHUNK / PAGE), "{touched} pages were touched");
    Ok(())
}

fn metadata(dir: &Path, files: usize) -> Result<()> {
    let dir = dir.join("metadata");
    fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
    let (data, mut buffer) = (vec![7; FILE], vec![0; FILE]);
    let at = |prefix: &str, i: usize| dir.join(format!("{prefix}-{i:06}"));
    let row = |name: &str, work: &mut dyn FnMut(usize) -> Result<()>| -> Result<()> {
        let start = Instant::now();
        for i in 0..files {
            work(i).with_context(|| format!("{name} of file {i}"))?;
        }
        println!("{name} {:.0}", files as f64 / start.elapsed().as_secs_f64());
        Ok(())
    };
    row("create", &mut |i| {
        // The file is closed when it is dropped; what close(2) says is lost, as with most programs.
        Ok(File::create_new(at("file", i))?.write_all(&data)?)
    })?;
    row("stat", &mut |i| {
        ensure!(fs::metadata(at("file", i))?.len() == FILE as u64, "a wrong size");
        Ok(())
    })?;
    row("read", &mut |i| {
        File::open(at("file", i))?.read_exact(&mut buffer)?;
        ensure!(buffer == data, "wrong bytes");
        Ok(())
    })?;
    row("rename", &mut |i| Ok(fs::rename(at("file", i), at("moved", i))?))?;
    row("unlink", &mut |i| Ok(fs::remove_file(at("moved", i))?))?;
    fs::remove_dir(&dir)?;
    Ok(())
}

fn existing(dir: &Path) -> Result<()> {
    let entries = fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))?;
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    ensure!(!paths.is_empty(), "{} is empty", dir.display());
    let mut buffer = vec![0; FILE];
    let row = |name: &str, work: &mut dyn FnMut(&Path) -> Result<()>| -> Result<()> {
        let mut pass = || paths.iter().try_for_each(|path| work(path).with_context(|| path.display().to_string()));
        pass()?;
        let (start, mut done) = (Instant::now(), 0);
        while start.elapsed() < REPEAT {
            pass()?;
            done += paths.len();
        }
        println!("{name} {:.0}", done as f64 / start.elapsed().as_secs_f64());
        Ok(())
    };
    row("stat", &mut |path| {
        ensure!(fs::metadata(path)?.is_file(), "not a file");
        Ok(())
    })?;
    row("open", &mut |path| {
        ensure!(File::open(path)?.read(&mut buffer)? > 0, "nothing to read");
        Ok(())
    })
}

fn populate(address: &str, files: usize) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut raw = Raw::connect(address).await?;
        let start = Instant::now();
        for first in (0..files).step_by(1000) {
            let dir = raw.mkdir(raw.root, format!("dir-{first:07}").as_bytes()).await?.fid;
            for i in first..files.min(first + 1000) {
                raw.create(dir, format!("file-{i:07}").as_bytes()).await?;
            }
        }
        println!("populate {:.0}", files as f64 / start.elapsed().as_secs_f64());
        Ok(())
    })
}
