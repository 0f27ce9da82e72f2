//! A cache in a temporary directory. Dropping it without a flush is what a kill does: nothing is written on the way out.

mod contents;
mod dirty;
mod opening;
mod upkeep;

use std::os::unix::fs::FileExt;
use std::path::Path;

use larder_protocol::ids::VolumeId;
use tempfile::TempDir;

use super::*;

const VOLUME: &str = "server:7000/root";

fn fid(vnode: u64) -> larder_protocol::ids::Fid {
    larder_protocol::ids::Fid { volume: VolumeId(1), vnode, generation: 3 }
}

fn temporary() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn options(dir: &Path) -> Options {
    Options { dir: dir.to_owned(), limit: 1 << 30, volume: VOLUME.to_owned(), new_client: 42, wall_nanos: 1000 }
}

fn open(dir: &TempDir) -> DiskCache {
    open_in(dir, 77)
}

fn boot(number: u64) -> NonZeroU64 {
    NonZeroU64::new(number).unwrap()
}

fn open_in(dir: &TempDir, number: u64) -> DiskCache {
    DiskCache::open_in_boot(options(dir.path()), boot(number)).unwrap()
}

fn open_limited(dir: &TempDir, limit: u64) -> DiskCache {
    DiskCache::open(Options { limit, ..options(dir.path()) }).unwrap()
}

/// A copy of `data` as version `change`, installed.
fn install(cache: &DiskCache, vnode: u64, change: u64, data: &[u8]) -> Arc<CacheFile> {
    let file = fetched(cache, vnode, data);
    cache.install(&file, change, checksums_of(file.file()).unwrap(), Some(format!("f{vnode}").as_bytes())).unwrap();
    file
}

/// A file with `data` that is not installed yet.
fn fetched(cache: &DiskCache, vnode: u64, data: &[u8]) -> Arc<CacheFile> {
    let file = cache.create(fid(vnode)).unwrap();
    file.file().write_all_at(data, 0).unwrap();
    file
}

fn contents(file: &CacheFile) -> Vec<u8> {
    let mut data = vec![0; file.file().metadata().unwrap().len() as usize];
    file.file().read_exact_at(&mut data, 0).unwrap();
    data
}

/// What is in `files`, `new`, `dirty` and `conflicts`, by name.
fn on_disk(dir: &TempDir) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![];
    for top in ["files", "new", "dirty", "conflicts"] {
        open.push(dir.path().join(top));
    }
    while let Some(path) = open.pop() {
        for entry in std::fs::read_dir(path).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                found.push(path.strip_prefix(dir.path()).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}
