//! Findings as they come up, and what mending them takes.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::{Finding, Outcome, hex, now, vnode_of};
use crate::volume::content::ContentId;
use crate::volume::content::files::FileContent;
use crate::volume::context::next_incarnation;
use crate::volume::error::StoreResult;
use crate::volume::keys::{self, Table};
use crate::volume::meta::Batch;
use crate::volume::record::{HeaderRecord, VnodeRecord};
use crate::volume::view::{Draft, Records};

/// Where content files go that belong to no vnode.
const LOST_CONTENT: &str = "lost-content";
/// Where rows go that are damaged or belong to nothing.
const LOST_ROWS: &str = "lost-rows";

/// What is to be changed in a volume.
pub(super) struct Mending<'a> {
    /// The volume's incarnation once it is mended.
    incarnation: u64,
    draft: Draft<'a>,
    moves: Vec<PathBuf>,
    rows: Vec<(String, Vec<u8>)>,
}

impl<'a> Mending<'a> {
    pub(super) fn new(draft: Draft<'a>, header: &HeaderRecord) -> Mending<'a> {
        let incarnation = next_incarnation(header.incarnation, now(), rand::random());
        Mending { incarnation, draft, moves: Vec::new(), rows: Vec::new() }
    }

    /// Moves files aside and gives back the batch to commit. `None` if nothing is to be changed.
    pub(super) fn carry_out(mut self, dir: &Path, content: &FileContent) -> anyhow::Result<Option<Batch>> {
        if self.draft.is_empty() && self.moves.is_empty() {
            return Ok(None);
        }
        self.renew()?;
        // What leaves its place is safe elsewhere before the metadata says so.
        let lost = dir.join(LOST_ROWS);
        for (name, bytes) in self.rows {
            fs::create_dir_all(&lost)?;
            let mut file = fs::File::create(lost.join(name))?;
            std::io::Write::write_all(&mut file, &bytes)?;
            file.sync_all()?;
        }
        let lost = dir.join(LOST_CONTENT);
        for from in self.moves {
            fs::create_dir_all(&lost)?;
            let name = from.strip_prefix(content.directory()).unwrap_or(&from).to_string_lossy().replace('/', "_");
            fs::rename(&from, free_name(&lost, &name)?)?;
        }
        for directory in [LOST_ROWS, LOST_CONTENT].map(|name| dir.join(name)) {
            if directory.try_exists()? {
                fs::File::open(directory)?.sync_all()?;
            }
        }
        fs::File::open(dir)?.sync_all()?;
        Ok(Some(self.draft.into_batch()))
    }

    /// Raises the volume's incarnation, and gives each vnode that is touched a new change attribute: clients that have
    /// cached what it was must see that it is not that any more.
    fn renew(&mut self) -> StoreResult<()> {
        let mut header = self.draft.header()?;
        header.incarnation = self.incarnation;
        let visible = [Table::Vnodes, Table::Inline, Table::Entries, Table::Cookies, Table::Xattrs];
        let touched: BTreeSet<u64> = self
            .draft
            .changed()
            .filter(|(table, _)| visible.contains(table))
            .filter_map(|(_, key)| vnode_of(key))
            .collect();
        for vnode in touched {
            edit(&mut self.draft, vnode, |record| {
                record.change = header.incarnation;
                record.data_change = header.incarnation;
            })?;
        }
        self.draft.put(Table::Header, keys::HEADER, &header)
    }
}

/// A path in `directory` that is not taken.
fn free_name(directory: &Path, name: &str) -> std::io::Result<PathBuf> {
    let mut path = directory.join(name);
    let mut number = 0;
    while path.try_exists()? {
        number += 1;
        path = directory.join(format!("{name}.{number}"));
    }
    Ok(path)
}

/// The findings of one round.
pub(super) struct Findings<'a> {
    volume: String,
    list: Vec<Finding>,
    mending: Option<Mending<'a>>,
}

impl<'a> Findings<'a> {
    pub(super) fn new(volume: &str, mending: Option<Mending<'a>>) -> Findings<'a> {
        Findings { volume: volume.to_owned(), list: Vec::new(), mending }
    }

    fn add(&mut self, vnode: Option<u64>, what: String, outcome: Outcome) {
        self.list.push(Finding { volume: self.volume.clone(), vnode, path: None, what, outcome });
    }

    /// Notes what cannot be mended, and why.
    pub(super) fn report(&mut self, vnode: Option<u64>, what: impl Into<String>, why: impl Into<String>) {
        self.add(vnode, what.into(), Outcome::Unrepairable(why.into()));
    }

    /// Notes what can be mended, and mends it in the draft if that is asked for.
    pub(super) fn mend(
        &mut self,
        vnode: Option<u64>,
        what: impl Into<String>,
        how: impl Into<String>,
        mend: impl FnOnce(&mut Draft<'a>) -> StoreResult<()>,
    ) -> StoreResult<()> {
        let outcome = match &mut self.mending {
            Some(mending) => {
                mend(&mut mending.draft)?;
                Outcome::Repaired(how.into())
            }
            None => Outcome::Repairable,
        };
        self.add(vnode, what.into(), outcome);
        Ok(())
    }

    /// As [`mend`](Findings::mend), by changing a vnode's record.
    pub(super) fn mend_vnode(
        &mut self,
        vnode: u64,
        what: impl Into<String>,
        how: impl Into<String>,
        change: impl FnOnce(&mut VnodeRecord),
    ) -> StoreResult<()> {
        self.mend(Some(vnode), what, how, |draft| edit(draft, vnode, change))
    }

    /// As [`mend`](Findings::mend), by taking a row out and saving its bytes in a file.
    pub(super) fn set_row_aside(
        &mut self,
        vnode: Option<u64>,
        what: impl Into<String>,
        (table, key): (Table, &[u8]),
        sealed: Vec<u8>,
    ) -> StoreResult<()> {
        let file = format!("{}-{}", table.name(), hex(key));
        if let Some(mending) = &mut self.mending {
            mending.rows.push((file.clone(), sealed));
        }
        self.mend(vnode, what, format!("the row is in {LOST_ROWS}/{file} now"), |draft| {
            draft.delete(table, key);
            Ok(())
        })
    }

    /// Notes a file among the contents that belongs to no vnode, and moves it aside.
    pub(super) fn set_file_aside(&mut self, vnode: Option<u64>, what: impl Into<String>, path: PathBuf) {
        let outcome = match &mut self.mending {
            Some(mending) => {
                mending.moves.push(path);
                Outcome::Repaired(format!("the file is in {LOST_CONTENT} now"))
            }
            None => Outcome::Repairable,
        };
        self.add(vnode, what.into(), outcome);
    }

    /// As [`set_file_aside`](Findings::set_file_aside), for a content file.
    pub(super) fn set_content_aside(&mut self, id: ContentId, content: &FileContent) {
        let what = format!("content file {:x}.{:x} belongs to no vnode", id.vnode, id.version);
        self.set_file_aside(Some(id.vnode), what, content.path(id));
    }

    /// The generation of what a repair makes. Not that of the incarnation before it, which may have given out the same
    /// vnode number and lost it in a power cut.
    pub(super) fn generation(&self) -> u64 {
        self.mending.as_ref().map_or(0, |mending| mending.incarnation)
    }

    pub(super) fn list_mut(&mut self) -> &mut [Finding] {
        &mut self.list
    }

    pub(super) fn into_parts(self) -> (Vec<Finding>, Option<Mending<'a>>) {
        (self.list, self.mending)
    }
}

/// Changes a vnode's record, if it is there.
pub(super) fn edit(draft: &mut Draft<'_>, vnode: u64, change: impl FnOnce(&mut VnodeRecord)) -> StoreResult<()> {
    if let Some(mut record) = draft.vnode(vnode)? {
        change(&mut record);
        draft.put_vnode(vnode, &record)?;
    }
    Ok(())
}
