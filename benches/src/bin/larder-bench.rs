//! Measures Larder beside other file systems: `scripts/bench` runs it in namespaces of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use larder_benches::bench::candidate::{
    Candidate, KEPT, LOCAL, Larder, Local, PASS_THROUGH, PassThrough, Peer, Setting, round_trip, version,
};
use larder_benches::bench::inputs::{Inputs, Scale};
use larder_benches::bench::ping;
use larder_benches::bench::question::{self, Asking, Question};
use larder_benches::bench::results::{About, FORM, LeftOut, Results};
use larder_benches::bench::run::{Plan, run};
use larder_benches::bench::workload::Kind;
use larder_benches::bench::{compare, machine, report, scale};
use larder_benches::mount::Mode;
use larder_benches::pass_through;
use larder_benches::process::scratch;
use larder_benches::proxy::Link;

/// Measures Larder's modes beside other file systems
#[derive(Parser)]
#[command(name = "scripts/bench", subcommand_required = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Measures, and writes bench.json and bench.html
    Run(Run),
    /// Measures what a server, and a client in each mode, need for many files
    Memory {
        /// How many
        #[arg(long, default_value_t = 1_000_000)]
        files: usize,
        /// Where bench.json and bench.html go
        #[arg(long, default_value = "bench")]
        out: PathBuf,
    },
    /// Predicts from the loads in a report what more clients come to, and adds that to it
    Scale {
        /// A directory with a bench.json that has loads (--questions load), or such a file
        dir: PathBuf,
    },
    /// Makes one report of the results in these directories
    Report {
        /// Directories with a bench.json, or such files
        #[arg(required = true)]
        dirs: Vec<PathBuf>,
        /// Where the report goes [default: the first directory]
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Names what has changed from one run to another beyond the noise; exit status 1 if something got worse
    Compare {
        /// A directory with a bench.json, or such a file
        old: PathBuf,
        /// Another one
        new: PathBuf,
    },
    /// Answers to tarpc requests that ask for nothing
    #[command(hide = true)]
    PingServer,
    /// Serves a directory by FUSE and does nothing else
    #[command(hide = true)]
    PassThrough {
        /// The directory
        source: PathBuf,
        /// Where it is mounted
        mountpoint: PathBuf,
        /// Seconds for which the kernel keeps names and attributes
        #[arg(long)]
        validity: u64,
    },
}

/// What Larder is measured beside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Beside {
    /// The disk that all stores and caches are on
    Local,
    /// The same behind a FUSE file system that does nothing else
    PassThrough,
    /// sshfs
    Sshfs,
    /// GlusterFS
    Glusterfs,
    /// MooseFS
    Moosefs,
    /// OpenAFS, by its FUSE client
    Openafs,
}

impl Beside {
    fn name(self) -> &'static str {
        match self {
            Beside::Local => LOCAL,
            Beside::PassThrough => PASS_THROUGH,
            Beside::Sshfs => "sshfs",
            Beside::Glusterfs => "glusterfs",
            Beside::Moosefs => "moosefs",
            Beside::Openafs => "openafs",
        }
    }
}

/// Modes of Larder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Modes {
    /// Nothing is cached
    Direct,
    /// Attributes and blocks are, polled
    Nfs,
    /// Whole files are, on disk, with callbacks
    Afs,
}

impl From<Modes> for Mode {
    fn from(mode: Modes) -> Mode {
        match mode {
            Modes::Direct => Mode::Direct,
            Modes::Nfs => Mode::Nfs,
            Modes::Afs => Mode::Afs,
        }
    }
}

#[derive(clap::Args)]
struct Run {
    /// Modes of Larder
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["direct", "nfs", "afs"])]
    modes: Vec<Modes>,
    /// What they are measured beside; one that cannot run here is left out with a note
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["local", "pass-through", "sshfs", "glusterfs"])]
    peers: Vec<Beside>,
    /// What is done [default: all, or nothing where questions are asked]
    #[arg(long, value_enum, value_delimiter = ',')]
    workloads: Option<Vec<Kind>>,
    /// What is asked besides, of Larder alone [default: nothing; with --full all]
    #[arg(long, value_enum, value_delimiter = ',')]
    questions: Option<Vec<Question>>,
    /// Clients of each candidate in the workloads mail and shared
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(2..=100))]
    clients: u16,
    /// Rounds of each; every figure is their median
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Milliseconds that a message of Larder's takes there and back, beside what the machine takes; peers have none
    #[arg(long, value_name = "MS", default_value_t = 0.0)]
    rtt: f64,
    /// Amounts so small that figures mean nothing
    #[arg(long, conflicts_with = "full")]
    quick: bool,
    /// Larger amounts
    #[arg(long)]
    full: bool,
    /// Where bench.json and bench.html go
    #[arg(long, default_value = "bench")]
    out: PathBuf,
    /// Only says whether the options are right
    #[arg(long, hide = true)]
    check: bool,
    /// The script that starts peers
    #[arg(long, hide = true)]
    peer_script: Option<PathBuf>,
    /// Peers that cannot run, and why: `NAME=WHY`
    #[arg(long, hide = true)]
    left_out: Vec<String>,
    /// What was asked for, as it is told in the report
    #[arg(long, hide = true)]
    command: Option<String>,
    /// Which source Larder was built from, as it is told in the report
    #[arg(long, hide = true)]
    source: Option<String>,
}

fn main() -> ExitCode {
    let done = match Cli::parse().verb {
        Verb::Run(what) => measure(&what),
        Verb::Memory { files, out } => memory(files, &out),
        Verb::Scale { dir } => scaled(&dir),
        Verb::Report { dirs, out } => merge(&dirs, out.as_deref()),
        Verb::PingServer => ping::serve(),
        Verb::PassThrough { source, mountpoint, validity } => {
            pass_through::serve(&source, &mountpoint, Duration::from_secs(validity))
        }
        Verb::Compare { old, new } => return compared(&old, &new),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("bench: {error:#}");
    ExitCode::from(2)
}

fn compared(old: &Path, new: &Path) -> ExitCode {
    let compared = Results::read(old).and_then(|old| Ok(compare::compare(&old, &Results::read(new)?)));
    match compared {
        Ok(comparison) => {
            print!("{}", compare::told(&comparison));
            if comparison.is_worse() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        }
        Err(error) => failed(&error),
    }
}

/// Where the report is that was read from there.
fn place_of(read: &Path) -> &Path {
    let beside = if read.is_dir() { Some(read) } else { read.parent() };
    beside.unwrap_or(Path::new("."))
}

fn scaled(dir: &Path) -> Result<()> {
    let mut results = Results::read(dir)?;
    scale::predict(&mut results).with_context(|| format!("predicting from {}", dir.display()))?;
    write(&results, place_of(dir))
}

fn merge(dirs: &[PathBuf], out: Option<&Path>) -> Result<()> {
    let (first, others) = dirs.split_first().context("no directory is given")?;
    let mut results = Results::read(first)?;
    for other in others {
        results.merge(Results::read(other)?).with_context(|| format!("adding {}", other.display()))?;
    }
    // Of all loads together.
    predict(&mut results);
    write(&results, out.unwrap_or(place_of(first)))
}

/// Adds what the model says, if there are loads to say it of.
fn predict(results: &mut Results) {
    if !results.loads.is_empty()
        && let Err(error) = scale::predict(results)
    {
        eprintln!("note: nothing is predicted for more clients: {error:#}");
    }
}

/// Writes both files and prints the table.
fn write(results: &Results, out: &Path) -> Result<()> {
    fs::create_dir_all(out).with_context(|| format!("making {}", out.display()))?;
    results.write(&out.join("bench.json"))?;
    let page = out.join("bench.html");
    fs::write(&page, report::page(results)).with_context(|| format!("writing {}", page.display()))?;
    print!("{}", report::table(results));
    println!("\nwritten to {} and bench.json beside it", page.display());
    Ok(())
}

fn memory(files: usize, out: &Path) -> Result<()> {
    let dir = scratch()?;
    let (begin, began) = (Instant::now(), machine::now());
    let candidates = Mode::ALL.iter().map(|mode| mode.name().to_owned()).collect();
    let mut results = Results { form: FORM, candidates, ..Results::default() };
    eprintln!("making {files} files on each of three servers, and looking at them; this takes some minutes");
    larder_benches::bench::memory::measure(dir.path(), files, &mut results)?;
    let command = format!("scripts/bench memory --files {files}");
    let (took, machine) = (begin.elapsed().as_secs_f64(), machine::facts(dir.path()));
    results.runs.push(About { command, began, took, machine, ..About::default() });
    write(&results, out)
}

impl Run {
    fn scale(&self) -> Scale {
        if self.quick {
            Scale::Quick
        } else if self.full {
            Scale::Full
        } else {
            Scale::Usual
        }
    }

    fn workloads(&self) -> Vec<Kind> {
        match &self.workloads {
            Some(workloads) => workloads.clone(),
            None if self.questions.is_some() => Vec::new(),
            None => Kind::value_variants().to_vec(),
        }
    }

    fn questions(&self) -> Vec<Question> {
        match &self.questions {
            Some(questions) => questions.clone(),
            None if self.full && self.workloads.is_none() => Question::value_variants().to_vec(),
            None => Vec::new(),
        }
    }
}

fn measure(what: &Run) -> Result<()> {
    ensure!(what.rtt.is_finite() && what.rtt >= 0.0, "--rtt {} is no time", what.rtt);
    if what.rtt > 0.0
        && let Some(peer) = what.peers.iter().find(|peer| !matches!(peer, Beside::Local | Beside::PassThrough))
    {
        bail!("--rtt delays Larder alone, and {} beside it would say nothing: leave it out of --peers", peer.name());
    }
    if what.check {
        return Ok(());
    }
    fs::create_dir_all(&what.out).with_context(|| format!("making {}", what.out.display()))?;
    let begin = Instant::now();
    let dir = scratch()?;
    let scale = what.scale();
    let workloads = what.workloads();
    let (peers, modes) = if workloads.is_empty() { (&[][..], &[][..]) } else { (&what.peers[..], &what.modes[..]) };
    // Questions have few of them at a time.
    let needed = scale.room() * (peers.len() + modes.len()).max(2) as u64;
    let space = rustix::fs::statvfs(dir.path()).with_context(|| format!("looking at {}", dir.path().display()))?;
    let free = (space.f_bavail * space.f_frsize) >> 20;
    ensure!(
        free >= needed,
        "{} has {free} MiB free, and this needs about {needed}: set BENCH_DIR to a directory on a larger disk",
        dir.path().display()
    );
    eprintln!("making what is worked on");
    let inputs = Inputs::make(dir.path(), scale)?;
    let mut left_out = Vec::new();
    for told in &what.left_out {
        let Some((name, why)) = told.split_once('=') else { bail!("--left-out {told} has no reason") };
        left_out.push(LeftOut { candidate: name.to_owned(), workload: None, why: why.to_owned() });
    }
    let mut candidates: Vec<Box<dyn Candidate>> = Vec::new();
    for beside in peers {
        match beside {
            Beside::Local => candidates.push(Box::new(Local::new(dir.path())?)),
            Beside::PassThrough => candidates.push(Box::new(PassThrough::start(dir.path(), KEPT)?)),
            peer if left_out.iter().any(|left_out| left_out.candidate == peer.name()) => {}
            peer => {
                eprintln!("starting {}", peer.name());
                let script = what.peer_script.as_deref().context("peers are started by scripts/bench only")?;
                let started = Peer::start(script, dir.path(), peer.name()).and_then(|mut peer| {
                    peer.need_clients(1)?;
                    Ok(peer)
                });
                match started {
                    Ok(peer) => candidates.push(Box::new(peer)),
                    Err(error) => {
                        let why = format!("{error:#}");
                        eprintln!("note: {} is left out: {why}", peer.name());
                        left_out.push(LeftOut { candidate: peer.name().to_owned(), workload: None, why });
                    }
                }
            }
        }
    }
    for mode in modes {
        let link = if what.rtt > 0.0 { round_trip(Duration::from_secs_f64(what.rtt / 1e3)) } else { Link::default() };
        let setting = Setting { link, ..Setting::of((*mode).into()) };
        candidates.push(Box::new(Larder::start(dir.path(), setting)?));
    }
    let command = what.command.clone().unwrap_or_else(|| std::env::args().collect::<Vec<_>>().join(" "));
    let plan = Plan {
        workloads,
        clients: what.clients.into(),
        rounds: what.rounds.into(),
        rtt: what.rtt,
        is_step: false,
        command,
        results: what.out.join("bench.json"),
    };
    let mut results = run(&plan, &inputs, &mut candidates, left_out)?;
    for candidate in &mut candidates {
        // What was measured is worth more.
        if let Err(error) = candidate.end() {
            let why = format!("ending it: {error:#}");
            eprintln!("note: {}: {why}", candidate.name());
            results.left_out.push(LeftOut {
                candidate: candidate.name().to_owned(),
                workload: Some("the end".into()),
                why,
            });
        }
    }
    drop(candidates);
    let modes: Vec<Mode> = what.modes.iter().map(|mode| (*mode).into()).collect();
    let rounds = what.rounds.into();
    let mut asking = Asking { dir: dir.path(), scale, modes: &modes, rounds, results: &mut results };
    question::ask(&what.questions(), &mut asking, &plan.results)?;
    predict(&mut results);
    let versions = &mut results.runs[0].versions;
    if let Some(version) = version().filter(|_| versions.is_empty()) {
        versions.insert("larder".to_owned(), version);
    }
    versions.extend(what.source.iter().map(|source| ("source".to_owned(), source.clone())));
    results.runs[0].took = begin.elapsed().as_secs_f64();
    write(&results, &what.out)
}
