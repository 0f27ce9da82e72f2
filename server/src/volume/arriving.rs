//! A volume that is being copied here from another server: engines that are filled from outside, and what is missing still.
//!
//! It is no volume before the copying is done. What is there when it is interrupted is used again: files that are known to
//! be whole (the *journal*) are not copied a second time if they have not changed. Rows are few, and copied anew.
//!
//! - **C1** A file counts as whole only while its record says that its data is what it was when it was copied.
//! - **C2** The journal names a file only after that is durable.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use larder_protocol::ids::{Epoch, VolumeId};

use super::codec;
use super::content::files::FileContent;
use super::content::{Content, ContentId};
use super::error::{StoreError, StoreResult};
use super::keys::{self, Table};
use super::lifecycle::{CONTENT, META};
use super::meta::sqlite::SqliteMetadata;
use super::meta::{Batch, Metadata};
use super::record::{Body, VnodeRecord};
use super::view::{Records, Verified};
use super::{Durability, MAX_VOUCHED};

const JOURNAL: &str = "copied";
/// What follows the name of each file of an SQLite database.
const SQLITE_FILES: [&str; 3] = ["", "-wal", "-shm"];

/// A row, or that there is none any more.
pub type RowChange = (Table, Vec<u8>, Option<Vec<u8>>);

/// The contents of a vnode here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Have {
    version: u64,
    /// The file was taken over from an earlier copying, when its data was at this change attribute (C1).
    kept_at: Option<u64>,
}

/// The engines.
pub struct Arriving {
    meta: SqliteMetadata,
    content: Arc<FileContent>,
    sequence: u64,
    have: BTreeMap<u64, Have>,
    /// Files to be copied, with the change attributes of their data.
    wanted: BTreeMap<ContentId, u64>,
    /// What an earlier copying left: version and change attribute by vnode.
    before: BTreeMap<u64, (u64, u64)>,
    journal: File,
    /// Open all the time, so that no failure to write is missed that the kernel meets meanwhile (syncfs(2)).
    disk: File,
    /// What the journal is to name next.
    whole: Vec<(ContentId, u64)>,
}

fn parse(line: &str) -> Option<(u64, (u64, u64))> {
    let mut numbers = line.split(' ').map(|number| u64::from_str_radix(number, 16).ok());
    let (vnode, version, change) = (numbers.next()??, numbers.next()??, numbers.next()??);
    // The last line may be half of one.
    (numbers.next()?? == (vnode ^ version ^ change)).then_some((vnode, (version, change)))
}

fn line(id: ContentId, change: u64) -> String {
    format!("{:x} {:x} {change:x} {:x}\n", id.vnode, id.version, id.vnode ^ id.version ^ change)
}

impl Arriving {
    /// Begins to copy into a directory, which is there, and may hold what an earlier copying has left.
    ///
    /// # Errors
    /// The operating system's, and the metadata engine's.
    pub fn open(dir: &Path) -> StoreResult<Arriving> {
        let meta = dir.join(META);
        for suffix in SQLITE_FILES {
            let mut path = meta.clone().into_os_string();
            path.push(suffix);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        let content = Arc::new(FileContent::open(&dir.join(CONTENT))?);
        // Nothing counts before all of it is durable.
        let meta = SqliteMetadata::create(&meta, Durability::Process)?;
        let path = dir.join(JOURNAL);
        let before = match fs::read_to_string(&path) {
            Ok(text) => text.lines().filter_map(parse).collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error.into()),
        };
        let mut journal = OpenOptions::new().create(true).append(true).open(&path)?;
        // Behind what may be half a line.
        journal.write_all(b"\n")?;
        Ok(Arriving {
            meta,
            content,
            sequence: 0,
            have: BTreeMap::new(),
            wanted: BTreeMap::new(),
            before,
            journal,
            disk: File::open(dir)?,
            whole: Vec::new(),
        })
    }

    /// Where contents go.
    pub fn content(&self) -> Arc<FileContent> {
        Arc::clone(&self.content)
    }

    /// Takes in rows, and learns from them which files are needed and which are not any more.
    ///
    /// # Errors
    /// `Corrupt` for a vnode's row that is damaged; the engines'.
    pub fn apply(&mut self, rows: Vec<RowChange>) -> StoreResult<()> {
        for (table, key, value) in &rows {
            if *table != Table::Vnodes {
                continue;
            }
            let vnode = keys::number(key)
                .ok_or_else(|| StoreError::Corrupt("a key of the table of vnodes is malformed".to_owned()))?;
            let record: Option<VnodeRecord> = match value {
                Some(sealed) => Some(codec::decode(&codec::open(*table, key, sealed.clone())?)?),
                None => None,
            };
            self.vnode(vnode, record.as_ref())?;
        }
        self.sequence += 1;
        self.meta.commit(self.sequence, &Batch { changes: rows }, false)?;
        self.meta.tidy()
    }

    fn vnode(&mut self, vnode: u64, record: Option<&VnodeRecord>) -> io::Result<()> {
        let needed = match record.map(|record| (&record.body, record.data_change)) {
            Some((Body::Content { version }, data)) => Some((*version, data)),
            _ => None,
        };
        if let Some(have) = self.have.get(&vnode)
            && needed.is_none_or(|(version, _)| version != have.version)
        {
            let id = ContentId { vnode, version: have.version };
            self.content.remove(id)?;
            self.wanted.remove(&id);
            self.have.remove(&vnode);
        }
        let Some((version, data)) = needed else { return Ok(()) };
        let id = ContentId { vnode, version };
        match self.have.get(&vnode) {
            // It is copied, or will be, and what changes after that is noted.
            Some(Have { kept_at: None, .. }) => {}
            Some(Have { kept_at: Some(at), .. }) if *at == data => {}
            Some(Have { kept_at: Some(_), .. }) => self.want(id, data),
            None if self.before.get(&vnode) == Some(&(version, data)) && self.content.stat(id).is_ok() => {
                self.have.insert(vnode, Have { version, kept_at: Some(data) });
            }
            None => self.want(id, data),
        }
        Ok(())
    }

    fn want(&mut self, id: ContentId, data: u64) {
        self.have.insert(id.vnode, Have { version: id.version, kept_at: None });
        self.wanted.insert(id, data);
    }

    /// The files to be copied whole, with what [`copied`](Arriving::copied) is to be told.
    pub fn take_wanted(&mut self) -> Vec<(ContentId, u64)> {
        std::mem::take(&mut self.wanted).into_iter().collect()
    }

    /// Whether a file belongs to the volume, and is not to be copied whole anyway.
    pub fn follows(&self, id: ContentId) -> bool {
        self.have.get(&id.vnode).is_some_and(|have| have.version == id.version) && !self.wanted.contains_key(&id)
    }

    /// A file is copied whole, and has not changed since its record was read.
    pub fn copied(&mut self, id: ContentId, data: u64) {
        self.whole.push((id, data));
    }

    /// Removes files that an earlier copying left and that are of no use.
    ///
    /// # Errors
    /// The operating system's.
    pub fn drop_unused(&self) -> io::Result<()> {
        let mut unused = Vec::new();
        let is_used = |id: &ContentId| self.have.get(&id.vnode).is_some_and(|have| have.version == id.version);
        self.content.list(
            &mut |id| {
                if !is_used(&id) {
                    unused.push(id);
                }
            },
            &mut |_| {},
        )?;
        unused.into_iter().try_for_each(|id| self.content.remove(id))
    }

    /// Makes all files durable that are here, and remembers those that are whole (C2).
    ///
    /// # Errors
    /// The operating system's.
    pub fn sync_contents(&mut self) -> io::Result<()> {
        rustix::fs::syncfs(&self.disk)?;
        let lines: String = self.whole.drain(..).map(|(id, data)| line(id, data)).collect();
        self.journal.write_all(lines.as_bytes())?;
        self.journal.sync_data()
    }

    /// All is here: makes the rows durable. `vouched` are the lives of servers that have changed the volume elsewhere: what
    /// they acknowledged is durable now, but for those of `here`, of which more may come.
    ///
    /// # Errors
    /// It is another volume; the engines'.
    pub fn finish(&mut self, id: VolumeId, vouched: &[Epoch], here: &[Epoch]) -> StoreResult<String> {
        let (header, mut lives) = {
            let snapshot = self.meta.snapshot()?;
            let view = Verified(&*snapshot);
            let lives: Option<Vec<Epoch>> = view.record(Table::Header, keys::VOUCHED)?;
            (view.header()?, lives.unwrap_or_default())
        };
        if header.id != id {
            return Err(StoreError::Corrupt(format!("volume {} came in place of volume {id}", header.id)));
        }
        lives.retain(|life| !vouched.contains(life));
        lives.extend_from_slice(vouched);
        lives.retain(|life| !here.contains(life));
        lives.drain(..lives.len().saturating_sub(MAX_VOUCHED));
        let row = codec::seal(Table::Header, keys::VOUCHED, codec::encode(&lives)?);
        self.sequence += 1;
        let batch = Batch { changes: vec![(Table::Header, keys::VOUCHED.to_vec(), Some(row))] };
        self.meta.commit(self.sequence, &batch, false)?;
        self.content.sync_removals()?;
        self.meta.sync()?;
        Ok(header.name)
    }

    /// Forgets the journal of a volume that has arrived in `dir`.
    ///
    /// # Errors
    /// The operating system's.
    pub fn settle(dir: &Path) -> io::Result<()> {
        match fs::remove_file(dir.join(JOURNAL)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(vnode: u64, body: Body, data_change: u64) -> RowChange {
        let key = keys::vnode(vnode).to_vec();
        let record = VnodeRecord { data_change, ..VnodeRecord::empty(body) };
        let value = codec::seal(Table::Vnodes, &key, codec::encode(&record).unwrap());
        (Table::Vnodes, key, Some(value))
    }

    fn file(vnode: u64, version: u64, data_change: u64) -> RowChange {
        row(vnode, Body::Content { version }, data_change)
    }

    fn id(vnode: u64, version: u64) -> ContentId {
        ContentId { vnode, version }
    }

    /// As whoever copies files does.
    fn copy(arriving: &mut Arriving) -> Vec<ContentId> {
        let wanted = arriving.take_wanted();
        for (id, data) in &wanted {
            arriving.content().create(*id).unwrap();
            arriving.copied(*id, *data);
        }
        arriving.sync_contents().unwrap();
        wanted.into_iter().map(|(id, _)| id).collect()
    }

    #[test]
    fn what_is_whole_is_not_copied_again_unless_it_has_changed() {
        let dir = tempfile::tempdir().unwrap();
        let mut arriving = Arriving::open(dir.path()).unwrap();
        arriving.apply(vec![file(1, 1, 10), file(2, 1, 20), file(3, 1, 30), row(4, Body::Inline, 40)]).unwrap();
        assert_eq!(copy(&mut arriving), [id(1, 1), id(2, 1), id(3, 1)]);
        drop(arriving);

        let mut arriving = Arriving::open(dir.path()).unwrap();
        arriving.apply(vec![file(1, 1, 10), file(2, 1, 21), file(3, 2, 31), file(5, 1, 50)]).unwrap();
        assert_eq!(copy(&mut arriving), [id(2, 1), id(3, 2), id(5, 1)]);
        assert!(arriving.follows(id(1, 1)) && !arriving.follows(id(3, 1)));
        arriving.drop_unused().unwrap();
        assert!(arriving.content().stat(id(3, 1)).is_err(), "an older version");
        // It was being written when it was copied the first time (C1).
        arriving.apply(vec![file(1, 1, 11)]).unwrap();
        assert_eq!(copy(&mut arriving), [id(1, 1)]);
        arriving.apply(vec![file(1, 1, 12)]).unwrap();
        assert!(copy(&mut arriving).is_empty(), "what has changed since is noted at the other end");
    }

    #[test]
    fn files_go_with_their_vnodes_and_versions() {
        let dir = tempfile::tempdir().unwrap();
        let mut arriving = Arriving::open(dir.path()).unwrap();
        arriving.apply(vec![file(1, 1, 10), file(2, 1, 20), file(3, 1, 30)]).unwrap();
        copy(&mut arriving);
        let gone = (Table::Vnodes, keys::vnode(1).to_vec(), None);
        arriving.apply(vec![gone, file(2, 5, 21), row(3, Body::Inline, 31)]).unwrap();
        for old in [id(1, 1), id(2, 1), id(3, 1)] {
            assert!(arriving.content().stat(old).is_err(), "{old:?}");
        }
        assert_eq!(copy(&mut arriving), [id(2, 5)]);
    }

    #[test]
    fn half_a_line_of_the_journal_is_none() {
        let whole = line(id(1, 0xab), 0xcd);
        assert_eq!(parse(whole.trim_end()), Some((1, (0xab, 0xcd))));
        for cut in 1..whole.len() - 1 {
            assert_eq!(parse(&whole[..cut]), None, "{cut}");
        }
    }

    #[test]
    fn a_damaged_row_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let mut arriving = Arriving::open(dir.path()).unwrap();
        let (table, key, value) = file(1, 1, 10);
        let mut value = value.unwrap();
        value[0] ^= 1;
        assert!(matches!(arriving.apply(vec![(table, key, Some(value))]), Err(StoreError::Corrupt(_))));
    }
}
