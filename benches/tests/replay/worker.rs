//! A client with its whole file system, in a directory of its own: each operation comes to what it must.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use larder_client::vfs::{Entry, Error, LookupResult, Opened, ROOT, Vfs};
use larder_protocol::attr::{FileType, SetAttr};
use larder_protocol::error::ErrorCode;
use larder_protocol::service::file::RenameHow;
use rand::Rng;
use rand::rngs::SmallRng;
use rustix::fs::OFlags;

use crate::mounts::{cred, find, flags};
use crate::tree::Tree;

/// Names that operations use.
const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
/// The largest offset of a write. Files move out of the metadata at 16 KiB.
const MAX_OFFSET: u64 = 24_000;

/// A name in the directory, as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Thing {
    /// The number of a file; two names may have the same.
    File(usize),
    Link(String),
    Dir,
}

/// A file, as it should be.
#[derive(Clone, Debug)]
struct Contents {
    data: Vec<u8>,
    mode: u32,
}

/// One client at work.
pub(crate) struct Worker {
    vfs: Arc<Vfs>,
    random: SmallRng,
    dir: u64,
    names: BTreeMap<&'static str, Thing>,
    files: Vec<Contents>,
    operations: u32,
}

impl Worker {
    /// In the directory of this name below the root.
    pub(crate) async fn new(vfs: Arc<Vfs>, random: SmallRng, dir: &str) -> Worker {
        let dir = find(&vfs, ROOT, dir).await.node;
        Worker { vfs, random, dir, names: BTreeMap::new(), files: Vec::new(), operations: 0 }
    }

    /// Performs random operations, and sees to it that all data is at the server in the end.
    pub(crate) async fn work(mut self, operations: u32) -> Worker {
        for _ in 0..operations {
            self.step().await;
        }
        self.vfs.sync_all().await;
        self
    }

    async fn step(&mut self) {
        self.operations += 1;
        let name = NAMES[self.random.random_range(0..NAMES.len())];
        match self.random.random_range(0..24) {
            0..7 => self.write(name).await,
            7 => self.truncate(name).await,
            8 => self.chmod(name).await,
            9..12 => self.read(name).await,
            12 => self.create_exclusively(name).await,
            13 => {
                let made = self.vfs.mkdir(&cred(), self.dir, name.as_bytes(), 0o755, 0).await;
                self.made(name, made, Thing::Dir);
            }
            14 => {
                let target = format!("to-{}", self.operations);
                let made = self.vfs.symlink(&cred(), self.dir, name.as_bytes(), target.as_bytes()).await;
                self.made(name, made, Thing::Link(target));
            }
            15 => self.link(name).await,
            16..18 => self.unlink(name).await,
            18 => self.rmdir(name).await,
            19..22 => self.rename(name).await,
            22 => self.unlink_open(name).await,
            _ => self.list().await,
        }
    }

    /// Adds the name if it was free, and checks that the operation said the same.
    fn made(&mut self, name: &'static str, result: Result<Entry, Error>, thing: Thing) {
        if self.names.contains_key(name) {
            assert_eq!(result.err(), Some(ErrorCode::Exists.into()), "{name} is there");
        } else {
            assert_eq!(result.err(), None, "{name} is free");
            self.names.insert(name, thing);
        }
    }

    fn file_at(&self, name: &str) -> Option<usize> {
        match self.names.get(name) {
            Some(Thing::File(number)) => Some(*number),
            _ => None,
        }
    }

    fn new_file(&mut self, name: &'static str) -> usize {
        self.files.push(Contents { data: Vec::new(), mode: 0o644 });
        self.names.insert(name, Thing::File(self.files.len() - 1));
        self.files.len() - 1
    }

    async fn open(&mut self, name: &str, with: OFlags) -> Opened {
        let entry = find(&self.vfs, self.dir, name).await;
        self.vfs.open(&cred(), entry.node, flags(with)).await.unwrap()
    }

    /// Opens or makes a file, writes here and there, and closes it.
    async fn write(&mut self, name: &'static str) {
        let (append, empty) = (self.random.random_bool(0.2), self.random.random_bool(0.2));
        let mut with = OFlags::RDWR;
        with.set(OFlags::APPEND, append);
        with.set(OFlags::TRUNC, empty);
        let (number, opened) = match (self.names.get(name).cloned(), self.random.random_bool(0.5)) {
            (Some(Thing::File(number)), false) => (number, self.open(name, with).await),
            (Some(Thing::File(number)), true) => {
                let (_, opened) = self.create(name, with).await.unwrap();
                (number, opened)
            }
            (None, _) => {
                let (_, opened) = self.create(name, with).await.unwrap();
                (self.new_file(name), opened)
            }
            (Some(Thing::Dir), _) => {
                assert_eq!(self.create(name, with).await.err(), Some(ErrorCode::IsDirectory.into()));
                return;
            }
            (Some(Thing::Link(_)), _) => return,
        };
        if empty {
            self.files[number].data.clear();
        }
        for _ in 0..self.random.random_range(0..4) {
            self.write_piece(opened.handle, number, append).await;
        }
        if self.random.random_bool(0.2) {
            self.vfs.fsync(opened.handle, false).await.unwrap();
        }
        // A close without flush leaves the data to the background, and must not lose it either.
        if self.random.random_bool(0.8) {
            self.vfs.flush(opened.handle).await.unwrap();
        }
        self.vfs.release(opened.handle).await;
    }

    async fn create(&self, name: &str, with: OFlags) -> Result<(Entry, Opened), Error> {
        let with = flags(with | OFlags::CREATE);
        self.vfs.create(&cred(), self.dir, name.as_bytes(), 0o644, 0, with).await
    }

    async fn write_piece(&mut self, handle: u64, number: usize, append: bool) {
        let data = vec![self.random.random::<u8>(); self.random.random_range(1..6000)];
        let offset = if append { 0 } else { self.random.random_range(0..MAX_OFFSET) };
        let written = self.vfs.write(handle, offset, Bytes::from(data.clone())).await.unwrap();
        assert_eq!(written as usize, data.len());
        let file = &mut self.files[number].data;
        let start = if append { file.len() } else { offset as usize };
        if file.len() < start + data.len() {
            file.resize(start + data.len(), 0);
        }
        file[start..start + data.len()].copy_from_slice(&data);
        if self.random.random_bool(0.2) {
            assert_same(&self.vfs.read(handle, 0, 1 << 20).await.unwrap(), file, "what was just written");
        }
    }

    async fn truncate(&mut self, name: &'static str) {
        let Some(number) = self.file_at(name) else { return };
        let entry = find(&self.vfs, self.dir, name).await;
        let size = self.random.random_range(0..MAX_OFFSET);
        let set = SetAttr { size: Some(size), ..SetAttr::default() };
        let after = self.vfs.setattr(&cred(), entry.node, None, set).await.unwrap();
        assert_eq!(after.attr.size, size);
        self.files[number].data.resize(size as usize, 0);
    }

    async fn chmod(&mut self, name: &'static str) {
        let Some(number) = self.file_at(name) else { return };
        let entry = find(&self.vfs, self.dir, name).await;
        let mode = self.random.random_range(0..0o1000);
        let set = SetAttr { mode: Some(mode), ..SetAttr::default() };
        assert_eq!(self.vfs.setattr(&cred(), entry.node, None, set).await.unwrap().attr.mode, mode);
        self.files[number].mode = mode;
    }

    async fn read(&mut self, name: &'static str) {
        match self.names.get(name).cloned() {
            Some(Thing::File(number)) => {
                let opened = self.open(name, OFlags::RDONLY).await;
                let data = self.vfs.read(opened.handle, 0, 1 << 20).await.unwrap();
                assert_same(&data, &self.files[number].data, name);
                self.vfs.release(opened.handle).await;
            }
            Some(Thing::Link(target)) => {
                let entry = find(&self.vfs, self.dir, name).await;
                assert_eq!(self.vfs.readlink(&cred(), entry.node).await.unwrap(), target);
            }
            Some(Thing::Dir) => assert_eq!(find(&self.vfs, self.dir, name).await.attr.kind, FileType::Directory),
            None => {
                let found = self.vfs.lookup(&cred(), self.dir, name.as_bytes()).await;
                assert!(matches!(found, Ok(LookupResult::Missing { .. })), "{name} should be gone: {found:?}");
            }
        }
    }

    async fn create_exclusively(&mut self, name: &'static str) {
        match (self.create(name, OFlags::RDWR | OFlags::EXCL).await, self.names.contains_key(name)) {
            (Ok((_, opened)), false) => {
                self.new_file(name);
                self.vfs.release(opened.handle).await;
            }
            (result, there) => {
                assert!(there, "{name} is free: {result:?}");
                assert_eq!(result.err(), Some(ErrorCode::Exists.into()), "{name} is there");
            }
        }
    }

    async fn link(&mut self, name: &'static str) {
        let other = NAMES[self.random.random_range(0..NAMES.len())];
        let Some(number) = self.file_at(other) else { return };
        let node = find(&self.vfs, self.dir, other).await.node;
        let made = self.vfs.link(&cred(), node, self.dir, name.as_bytes()).await;
        self.made(name, made, Thing::File(number));
    }

    async fn unlink(&mut self, name: &'static str) {
        let result = self.vfs.unlink(&cred(), self.dir, name.as_bytes()).await;
        let expected = match self.names.get(name) {
            None => Err(ErrorCode::NotFound.into()),
            Some(Thing::Dir) => Err(ErrorCode::IsDirectory.into()),
            Some(_) => Ok(()),
        };
        assert_eq!(result, expected, "unlinking {name}");
        if result.is_ok() {
            self.names.remove(name);
        }
    }

    async fn rmdir(&mut self, name: &'static str) {
        let result = self.vfs.rmdir(&cred(), self.dir, name.as_bytes()).await;
        let expected = match self.names.get(name) {
            None => Err(ErrorCode::NotFound.into()),
            Some(Thing::Dir) => Ok(()),
            Some(_) => Err(ErrorCode::NotDirectory.into()),
        };
        assert_eq!(result, expected, "removing the directory {name}");
        if result.is_ok() {
            self.names.remove(name);
        }
    }

    async fn rename(&mut self, name: &'static str) {
        let to = NAMES[self.random.random_range(0..NAMES.len())];
        let how = [RenameHow::Replace, RenameHow::NoReplace, RenameHow::Exchange][self.random.random_range(0..3)];
        let result = self.vfs.rename(&cred(), self.dir, name.as_bytes(), self.dir, to.as_bytes(), how).await;
        let (from, target) = (self.names.get(name).cloned(), self.names.get(to).cloned());
        let expected: Result<(), ErrorCode> = match (&from, &target, how) {
            (None, ..) => Err(ErrorCode::NotFound),
            (_, Some(_), RenameHow::NoReplace) => Err(ErrorCode::Exists),
            (_, None, RenameHow::Exchange) => Err(ErrorCode::NotFound),
            (Some(from), Some(target), RenameHow::Replace) if name != to => match (from, target) {
                (Thing::Dir, Thing::Dir) => Ok(()),
                (Thing::Dir, _) => Err(ErrorCode::NotDirectory),
                (_, Thing::Dir) => Err(ErrorCode::IsDirectory),
                _ => Ok(()),
            },
            _ => Ok(()),
        };
        assert_eq!(result, expected.map_err(Error::from), "renaming {name} to {to}, {how:?}");
        let (Ok(()), Some(from)) = (result, from) else { return };
        let one_object = name == to || matches!((&from, &target), (Thing::File(a), Some(Thing::File(b))) if a == b);
        if one_object {
            return;
        }
        self.names.insert(to, from);
        match (how, target) {
            (RenameHow::Exchange, Some(target)) => self.names.insert(name, target),
            _ => self.names.remove(name),
        };
    }

    /// A file that is open outlives its name.
    async fn unlink_open(&mut self, name: &'static str) {
        let Some(number) = self.file_at(name) else { return };
        let opened = self.open(name, OFlags::RDWR).await;
        self.vfs.unlink(&cred(), self.dir, name.as_bytes()).await.unwrap();
        self.names.remove(name);
        self.write_piece(opened.handle, number, false).await;
        let data = self.vfs.read(opened.handle, 0, 1 << 20).await.unwrap();
        assert_same(&data, &self.files[number].data, "a file without a name");
        self.vfs.flush(opened.handle).await.unwrap();
        self.vfs.release(opened.handle).await;
    }

    async fn list(&mut self) {
        let handle = self.vfs.opendir(&cred(), self.dir).await.unwrap();
        let (mut found, mut offset) = (Vec::new(), 0);
        loop {
            let before = offset;
            let mut sink = |item: larder_client::vfs::DirItem| {
                offset = item.offset;
                found.push(String::from_utf8_lossy(item.name.as_bytes()).into_owned());
                true
            };
            self.vfs.readdir(handle, before, false, &mut sink).await.unwrap();
            if offset == before {
                break;
            }
        }
        self.vfs.releasedir(handle);
        found.sort();
        let expected: Vec<&str> = [".", ".."].into_iter().chain(self.names.keys().copied()).collect();
        assert_eq!(found, expected);
    }

    /// Checks the directory as it is at the server.
    pub(crate) fn check(&self, tree: &Tree) {
        let dir = tree.len() - 1;
        assert_eq!(dir, self.names.len(), "names: {:?} instead of {:?}", tree.keys(), self.names);
        for (name, thing) in &self.names {
            let node = &tree[&format!("/{name}/")];
            match thing {
                Thing::File(number) => {
                    let links = self.names.values().filter(|other| *other == thing).count();
                    assert_eq!((node.kind, node.nlink as usize), (FileType::Regular, links), "{name}");
                    assert_same(&node.data, &self.files[*number].data, name);
                    assert_eq!(node.mode, self.files[*number].mode, "mode of {name}");
                }
                Thing::Link(target) => assert_eq!(node.data, target.as_bytes(), "{name}"),
                Thing::Dir => assert_eq!(node.kind, FileType::Directory, "{name}"),
            }
        }
    }

    /// Reads all files through another mount: what was closed here is seen there at the next open.
    pub(crate) async fn check_from(&self, other: &Vfs, dir: &str) {
        let dir = find(other, ROOT, dir).await.node;
        for (name, thing) in &self.names {
            let Thing::File(number) = thing else { continue };
            let entry = find(other, dir, name).await;
            let opened = other.open(&cred(), entry.node, flags(OFlags::RDONLY)).await.unwrap();
            let data = other.read(opened.handle, 0, 1 << 20).await.unwrap();
            assert_same(&data, &self.files[*number].data, name);
            other.release(opened.handle).await;
        }
    }
}

/// # Panics
/// If two contents differ, saying where.
fn assert_same(found: &[u8], expected: &[u8], what: &str) {
    if found != expected {
        let at = found.iter().zip(expected).position(|(a, b)| a != b).unwrap_or(found.len().min(expected.len()));
        panic!(
            "{what}: {} bytes instead of {}, different from byte {at} on ({:?} instead of {:?})",
            found.len(),
            expected.len(),
            found.get(at),
            expected.get(at)
        );
    }
}
