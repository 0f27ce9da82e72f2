//! The offline check of a store: every invariant of its volumes, and the repair of what can be mended without losing
//! data.
//!
//! A check is a few passes over one snapshot of a volume: the `rows` and what they say of each vnode, the `tree`,
//! the `contents`, the `counts`. With repair, each finding that can be mended adds its changes to one draft; after
//! the passes it is committed and the volume is checked again, until nothing mendable is found. So a repair is
//! believed only if a check of its result says so.

mod contents;
mod counts;
mod found;
mod lost;
mod nodes;
mod paths;
mod rows;
mod tree;

use std::fmt;
use std::ops::AddAssign;
use std::path::Path;

use anyhow::Context as _;
use larder_protocol::attr::{FileType, Timestamp};
use larder_protocol::ids::{ROOT_VNODE, VolumeId};
use larder_protocol::limits::{CLIENT_FORGOTTEN_AFTER, ORPHANS_YIELD_AFTER};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use self::found::{Findings, Mending};
use self::nodes::Nodes;
use super::content::files::FileContent;
use super::error::{StoreError, StoreResult};
use super::meta::sqlite::SqliteMetadata;
use super::meta::{Metadata, Snapshot};
use super::record::HeaderRecord;
use super::view::{Draft, Records, Verified};
use super::{Durability, keys};
use crate::store;

/// Checks of one volume, each with the repair of what the one before found. What one repair brings to light (such as
/// the children of a directory that had to go) takes another; a chain of more than a few is a defect.
const ROUNDS: usize = 8;

/// What a check did about a finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state", content = "how")]
pub enum Outcome {
    /// It can be mended, and was not asked to be.
    Repairable,
    /// It was mended, in this way.
    Repaired(String),
    /// It cannot be mended, for this reason.
    Unrepairable(String),
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The volume's name.
    pub volume: String,
    /// The vnode it is about.
    pub vnode: Option<u64>,
    /// A path of that vnode in the volume, if it has one.
    pub path: Option<String>,
    /// What is wrong.
    pub what: String,
    /// What was done about it.
    pub outcome: Outcome,
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Volumes checked.
    pub volumes: usize,
    /// Vnodes checked, in all volumes.
    pub vnodes: u64,
    /// What of them has no name any more.
    pub kept: Kept,
    /// What is wrong, or was before the repair.
    pub findings: Vec<Finding>,
}

/// Files that were removed while a client had them open: they stay until it closes them, leaves, or is silent for
/// [`CLIENT_FORGOTTEN_AFTER`]. Those of clients that died are why a store may hold more than its names say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Kept {
    /// How many.
    pub files: u64,
    /// Bytes that they occupy.
    pub bytes: u64,
}

impl Kept {
    fn of(nodes: &Nodes) -> Kept {
        let nameless = nodes.iter().filter(|node| node.is_kept && node.names == 0);
        nameless
            .fold(Kept::default(), |kept, node| Kept { files: kept.files + 1, bytes: kept.bytes + node.blocks * 512 })
    }
}

impl AddAssign for Kept {
    fn add_assign(&mut self, more: Kept) {
        self.files += more.files;
        self.bytes += more.bytes;
    }
}

impl Report {
    /// Whether nothing was found.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }

    /// Whether the store is sound now: nothing was found, or all of it was mended.
    pub fn is_sound(&self) -> bool {
        self.findings.iter().all(|finding| matches!(finding.outcome, Outcome::Repaired(_)))
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "volume {}", self.volume)?;
        if let Some(vnode) = self.vnode {
            write!(f, ", vnode {vnode}")?;
        }
        if let Some(path) = &self.path {
            write!(f, " ({path})")?;
        }
        write!(f, ": {}; ", self.what)?;
        match &self.outcome {
            Outcome::Repairable => write!(f, "--repair can mend it"),
            Outcome::Repaired(how) => write!(f, "repaired: {how}"),
            Outcome::Unrepairable(why) => write!(f, "cannot be repaired: {why}"),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            writeln!(f, "{finding}")?;
        }
        write!(f, "{} volumes, {} vnodes: ", self.volumes, self.vnodes)?;
        match self.findings.len() {
            0 => write!(f, "sound"),
            count => {
                let repaired = self.findings.iter().filter(|f| matches!(f.outcome, Outcome::Repaired(_))).count();
                write!(f, "{count} findings, {repaired} of them repaired")
            }
        }?;
        if self.kept.files > 0 {
            let Kept { files, bytes } = self.kept;
            let hours = CLIENT_FORGOTTEN_AFTER.as_secs() / 3600;
            let minutes = ORPHANS_YIELD_AFTER.as_secs() / 60;
            write!(
                f,
                "\n{files} vnodes ({} KiB) are removed files that clients had open; those of ",
                bytes.div_ceil(1024)
            )?;
            write!(
                f,
                "clients that do not come back go {hours} hours after they were last heard of, where room is scarce {minutes} minutes"
            )?;
        }
        Ok(())
    }
}

/// Checks the store in `store_dir`, whose lock the caller holds, and with `repair` mends what it can.
///
/// # Errors
/// A volume cannot be read at all. What is wrong *in* a volume is a finding, not an error.
pub fn run(store_dir: &Path, repair: bool) -> anyhow::Result<Report> {
    let mut report = Report::default();
    for stored in store::volumes(store_dir)? {
        let shown = stored.dir.display();
        let checked = check_volume(&stored.dir, &stored.name, Some(stored.id), repair)
            .with_context(|| format!("cannot check the volume in {shown}"))?;
        report.volumes += 1;
        report.vnodes += checked.vnodes;
        report.kept += checked.kept;
        report.findings.extend(checked.findings);
    }
    Ok(report)
}

/// A volume as one round of the check sees it.
struct Volume<'a> {
    id: Option<VolumeId>,
    snapshot: &'a dyn Snapshot,
    content: &'a FileContent,
}

/// What came of one volume.
struct Checked {
    vnodes: u64,
    kept: Kept,
    findings: Vec<Finding>,
}

impl Checked {
    /// That its rows cannot be read.
    fn unreadable(findings: Vec<Finding>) -> Checked {
        Checked { vnodes: 0, kept: Kept::default(), findings }
    }
}

/// One round's result.
struct Round {
    checked: Checked,
    /// Whether repair changed anything.
    changed: bool,
}

fn check_volume(dir: &Path, name: &str, id: Option<VolumeId>, repair: bool) -> anyhow::Result<Checked> {
    let meta = match SqliteMetadata::open(&dir.join("meta.sqlite"), Durability::Power) {
        Ok(meta) => meta,
        Err(StoreError::Corrupt(what)) => return Ok(Checked::unreadable(vec![damaged_engine(name, &what)])),
        Err(error) => return Err(error.into()),
    };
    let damage = match meta.integrity() {
        Ok(damage) => damage,
        Err(StoreError::Corrupt(what)) => vec![what],
        Err(error) => return Err(error.into()),
    };
    if !damage.is_empty() {
        return Ok(Checked::unreadable(damage.iter().map(|what| damaged_engine(name, what)).collect()));
    }
    let content = FileContent::open(&dir.join("content"))?;
    let mut all: Vec<Finding> = Vec::new();
    for round in 1.. {
        let result = check_once(dir, name, id, &meta, &content, repair && round <= ROUNDS)?;
        for mut finding in result.checked.findings {
            if repair && finding.outcome == Outcome::Repairable {
                finding.outcome = Outcome::Unrepairable("it came back after each repair".to_owned());
            }
            if !all.contains(&finding) {
                all.push(finding);
            }
        }
        if !result.changed {
            return Ok(Checked { findings: all, ..result.checked });
        }
    }
    unreachable!("the rounds end when nothing is changed, and behind the last one nothing is")
}

fn damaged_engine(volume: &str, what: &str) -> Finding {
    let what = format!("meta.sqlite is damaged: {what}");
    let outcome = Outcome::Unrepairable("restore the volume from a backup".to_owned());
    Finding { volume: volume.to_owned(), vnode: None, path: None, what, outcome }
}

fn check_once(
    dir: &Path,
    name: &str,
    id: Option<VolumeId>,
    meta: &SqliteMetadata,
    content: &FileContent,
    repair: bool,
) -> anyhow::Result<Round> {
    let snapshot = meta.snapshot()?;
    let view = Verified(&*snapshot);
    let header = match essentials(&view) {
        Ok(header) => header,
        Err(StoreError::Corrupt(what)) => {
            let checked = Checked::unreadable(vec![damaged_engine(name, &what)]);
            return Ok(Round { checked, changed: false });
        }
        Err(error) => return Err(error.into()),
    };
    let volume = Volume { id, snapshot: &*snapshot, content };
    let mending = repair.then(|| Mending::new(Draft::new(&view), &header));
    let mut findings = Findings::new(name, mending);
    let nodes = passes(&volume, &header, &mut findings)?;
    paths::add(&volume, &nodes, findings.list_mut())?;
    let (findings, mending) = findings.into_parts();
    let batch = match mending {
        Some(mending) => mending.carry_out(dir, content)?,
        None => None,
    };
    let sequence = header.sequence + 1;
    let checked = Checked { vnodes: nodes.len() as u64, kept: Kept::of(&nodes), findings };
    drop(snapshot);
    let changed = batch.is_some();
    if let Some(batch) = batch {
        meta.commit(sequence, &batch, true)?;
    }
    Ok(Round { checked, changed })
}

/// What a volume cannot be without: its header and its root directory. Where one of these is lost, nothing that can be
/// found wrong with the rest is worth a repair.
fn essentials(view: &Verified<'_>) -> StoreResult<HeaderRecord> {
    let header = view.header()?;
    let root = view.vnode(ROOT_VNODE)?;
    if root.is_none_or(|root| root.kind() != FileType::Directory) {
        return Err(StoreError::Corrupt("the volume has no root directory".to_owned()));
    }
    Ok(header)
}

fn passes(volume: &Volume<'_>, header: &HeaderRecord, findings: &mut Findings<'_>) -> StoreResult<Nodes> {
    let mut nodes = rows::vnodes(volume, findings)?;
    let removals = rows::others(volume, &mut nodes, findings)?;
    let nameless = tree::check(volume, &mut nodes, findings)?;
    contents::check(volume, &nodes, &removals, findings)?;
    counts::check(volume, header, &nodes, findings)?;
    // Last, for what is linked there gets its names on top of the counts as they should be.
    lost::link(volume, &nodes, &nameless, findings)?;
    Ok(nodes)
}

/// What is wrong with the volume in a directory.
#[cfg(test)]
pub(super) fn check_for_tests(dir: &Path) -> Vec<Finding> {
    check_volume(dir, "test", None, false).expect("the volume can be checked").findings
}

/// The key of a vnode for messages and files.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The wall clock: the check runs beside no other machine and in real time.
fn now() -> Timestamp {
    let now = clock_gettime(ClockId::Realtime);
    Timestamp { secs: now.tv_sec, nanos: now.tv_nsec as u32 }
}

/// The vnode that a key begins with.
fn vnode_of(key: &[u8]) -> Option<u64> {
    key.get(..8).and_then(keys::number)
}

#[cfg(test)]
mod tests;
