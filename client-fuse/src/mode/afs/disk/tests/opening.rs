use std::os::unix::fs::PermissionsExt;

use larder_protocol::ids::ClientId;

use super::*;

#[test]
fn the_client_is_the_same_for_as_long_as_the_directory_is_kept() {
    let dir = temporary();
    assert_eq!(open(&dir).identity(), (ClientId(42), 1000));
    let later = |new_client, wall_nanos| Options { new_client, wall_nanos, ..options(dir.path()) };
    assert_eq!(DiskCache::open(later(43, 2000)).unwrap().identity(), (ClientId(42), 2000));
    assert_eq!(DiskCache::open(later(44, 10)).unwrap().identity(), (ClientId(42), 2001), "whatever the clock says");
    std::fs::remove_dir_all(dir.path()).unwrap();
    assert_eq!(DiskCache::open(later(45, 3000)).unwrap().identity(), (ClientId(45), 3000));
}

#[test]
fn one_mount_at_a_time() {
    let dir = temporary();
    let first = open(&dir);
    let error = DiskCache::open(options(dir.path())).unwrap_err();
    assert!(matches!(&error, CacheError::InUse { dir: named } if named == dir.path()));
    let text = error.to_string();
    assert!(text.contains(dir.path().to_str().unwrap()) && text.contains("another mount"), "{text}");
    drop(first);
    open(&dir);
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    let dir = temporary();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    for dir in [file.clone(), file.join("cache"), "/proc/larder-cache".into()] {
        let error = DiskCache::open(options(&dir)).unwrap_err();
        assert!(matches!(&error, CacheError::NotWritable { dir: named, .. } if *named == dir), "{error:?}");
        assert!(error.to_string().contains(dir.to_str().unwrap()), "{error}");
    }
}

#[test]
fn a_directory_that_cannot_be_written_to_is_named() {
    let dir = temporary();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o500)).unwrap();
    if std::fs::write(dir.path().join("probe"), "").is_ok() {
        eprintln!("NOT RUN: this user may write anywhere");
        return;
    }
    assert!(matches!(DiskCache::open(options(dir.path())), Err(CacheError::NotWritable { .. })));
}

#[test]
fn nobody_else_may_look_into_the_cache() {
    let dir = temporary();
    let path = dir.path().join("a/b");
    let _cache = DiskCache::open(options(&path)).unwrap();
    for name in ["", "files", "new", "dirty", "conflicts"] {
        assert_eq!(path.join(name).metadata().unwrap().permissions().mode() & 0o077, 0, "{name}");
    }
}

#[test]
fn clean_copies_survive_if_the_index_knows_them() {
    let dir = temporary();
    let cache = open(&dir);
    install(&cache, 1, 5, b"known");
    cache.pin(fid(1), true);
    cache.pin(fid(9), true);
    cache.flush().unwrap();
    install(&cache, 2, 5, b"unknown");
    let fetching = fetched(&cache, 3, b"half");
    let before = cache.list();
    std::mem::forget(fetching);
    drop(cache);
    assert_eq!(on_disk(&dir), ["files/01/1", "files/02/2", "new/3"]);

    let cache = open(&dir);
    assert_eq!(on_disk(&dir), ["files/01/1"]);
    assert_eq!(cache.list(), before[..1]);
    assert_eq!(contents(&cache.find(fid(1), 5).unwrap()), b"known");
    assert_eq!(cache.pinned(), [fid(1), fid(9)]);
    assert_eq!(cache.usage().damaged, 0);
    assert_eq!(fetched(&cache, 3, b"").id(), 4, "numbers go on");
}

/// Where the process that is to be killed finds its cache.
const TO_BE_KILLED: &str = "LARDER_TEST_CACHE";

/// What the process does that is killed.
fn be_killed(dir: &Path) -> ! {
    let cache = DiskCache::open(options(dir)).unwrap();
    install(&cache, 1, 5, b"known");
    let dirty = install(&cache, 2, 5, b"dirty");
    cache.flush().unwrap();
    install(&cache, 3, 5, b"unknown");
    cache.mark_dirty(&dirty, 5, 0, 0).unwrap();
    dirty.file().write_all_at(b"DIRTY", 0).unwrap();
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
    unreachable!("nobody survives that");
}

#[test]
fn a_process_that_is_killed() {
    use std::os::unix::process::ExitStatusExt;
    // The test runs itself once more.
    if let Some(dir) = std::env::var_os(TO_BE_KILLED) {
        be_killed(Path::new(&dir));
    }
    let dir = temporary();
    let (_crate, module) = module_path!().split_once("::").unwrap();
    let run = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("{module}::a_process_that_is_killed")])
        .env(TO_BE_KILLED, dir.path())
        .output()
        .unwrap();
    assert_eq!(run.status.signal(), Some(9), "{run:?}");
    assert!(dir.path().join("index.sqlite-wal").exists(), "the log was left as it was");
    let cache = open(&dir);
    assert_eq!(contents(&cache.find(fid(1), 5).unwrap()), b"known");
    assert!(!cache.has(fid(2), 5) && !cache.has(fid(3), 5));
    assert_eq!(contents(&cache.left_dirty()[0].file), b"DIRTY");
    assert_eq!(cache.identity(), (ClientId(42), 1001));
}

#[test]
fn a_row_without_its_file_is_dropped() {
    let dir = temporary();
    let cache = open(&dir);
    let path = install(&cache, 1, 5, b"data").path();
    cache.flush().unwrap();
    drop(cache);
    std::fs::remove_file(path).unwrap();
    let cache = open(&dir);
    assert!(!cache.has(fid(1), 5));
    assert_eq!(cache.usage().files, 0);
    cache.flush().unwrap();
}

#[test]
fn files_of_others_are_left_alone() {
    let dir = temporary();
    for name in ["new", "files/zz", "files/01", "dirty", "conflicts"] {
        std::fs::create_dir_all(dir.path().join(name)).unwrap();
        std::fs::write(dir.path().join(name).join("notes.txt"), "").unwrap();
    }
    let cache = open(&dir);
    install(&cache, 1, 5, b"data");
    assert!(cache.left_dirty().is_empty());
    drop(cache);
    open(&dir);
    let left = on_disk(&dir);
    assert_eq!(left.len(), 5, "{left:?}");
}

fn fill(dir: &TempDir) {
    let cache = open(dir);
    install(&cache, 1, 5, b"clean");
    let dirty = install(&cache, 2, 5, b"dirty");
    cache.mark_dirty(&dirty, 5, 0, 0).unwrap();
    let conflict = install(&cache, 3, 5, b"conflict");
    cache.keep_as_conflict(&conflict, 4, None, "why").unwrap();
    cache.flush().unwrap();
}

#[test]
fn a_damaged_index_costs_clean_copies_only() {
    for (at, bytes) in [(0, &b"this is no database"[..]), (100, &[0xff; 3000]), (20_000, &[0xff; 30_000])] {
        let dir = temporary();
        fill(&dir);
        let path = dir.path().join("index.sqlite");
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        assert!(file.metadata().unwrap().len() > 0, "the log was moved when it was closed");
        file.write_all_at(bytes, at).unwrap();
        drop(file);
        let damaged = std::fs::read(&path).unwrap();
        let cache = open(&dir);
        if at > 10_000 {
            // Only rows are hit; some may be readable. What counts is that nothing wrong is believed.
            assert!(cache.find(fid(1), 5).is_none_or(|file| contents(&file) == b"clean"));
        } else {
            assert_eq!(std::fs::read(dir.path().join("index.sqlite.damaged")).unwrap(), damaged);
            assert!(!cache.has(fid(1), 5));
        }
        assert_eq!(contents(&cache.left_dirty()[0].file), b"dirty");
        let conflict = cache.list().pop().unwrap();
        assert_eq!((conflict.fid, conflict.version, conflict.size), (fid(3), 4, 8));
        install(&cache, 1, 6, b"again");
        cache.flush().unwrap();
        drop(cache);
        assert!(open(&dir).find(fid(1), 6).is_some());
    }
}

#[test]
fn an_index_of_another_format_is_put_aside() {
    let dir = temporary();
    fill(&dir);
    let path = dir.path().join("index.sqlite");
    rusqlite::Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let cache = open(&dir);
    assert!(!cache.has(fid(1), 5) && dir.path().join("index.sqlite.damaged").exists());
    assert_eq!((cache.left_dirty().len(), cache.usage().conflicts), (1, 1));
    drop(cache);
    rusqlite::Connection::open(&path).unwrap().execute_batch("DROP TABLE clean; CREATE TABLE clean (x)").unwrap();
    assert_eq!(open(&dir).left_dirty().len(), 1, "tables that are not as they should be");
}

#[test]
fn a_row_with_a_flipped_bit_is_not_believed() {
    for column in ["volume", "vnode", "generation", "id", "version", "size", "mtime", "inode", "boot", "seal"] {
        let dir = temporary();
        fill(&dir);
        let sql = format!("UPDATE clean SET {column} = {column} + 1");
        assert_eq!(rusqlite::Connection::open(dir.path().join("index.sqlite")).unwrap().execute(&sql, []).unwrap(), 1);
        let cache = open(&dir);
        assert_eq!(cache.usage().files, 0, "{column}");
    }
}

#[test]
fn an_index_that_is_damaged_while_in_use_is_begun_anew() {
    let dir = temporary();
    let cache = open(&dir);
    install(&cache, 1, 5, b"one");
    cache.flush().unwrap();
    let path = dir.path().join("index.sqlite");
    // As if somebody had put another file there.
    std::fs::rename(&path, dir.path().join("away")).unwrap();
    std::fs::write(&path, "this is no database").unwrap();
    install(&cache, 2, 5, b"two");
    cache.flush().unwrap();
    drop(cache);
    let cache = open(&dir);
    assert!(cache.find(fid(1), 5).is_some() && cache.find(fid(2), 5).is_some());
}

#[test]
fn an_index_that_cannot_be_opened_is_an_error_that_names_it() {
    let dir = temporary();
    drop(open(&dir));
    let path = dir.path().join("index.sqlite");
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    let error = DiskCache::open(options(dir.path())).unwrap_err();
    assert!(matches!(&error, CacheError::Io { path: named, .. } if *named == path), "{error:?}");
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
}

#[test]
fn what_cannot_be_written_is_written_later() {
    let dir = temporary();
    let cache = open(&dir);
    let path = dir.path().join("index.sqlite");
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    install(&cache, 1, 5, b"one");
    assert!(cache.flush().is_err());
    assert!(cache.flush().is_err());
    std::fs::remove_dir(&path).unwrap();
    cache.flush().unwrap();
    drop(cache);
    assert!(open(&dir).find(fid(1), 5).is_some());
}

#[test]
fn a_cache_is_of_one_volume() {
    let dir = temporary();
    fill(&dir);
    let other = || DiskCache::open(Options { volume: "other:7000/home".to_owned(), ..options(dir.path()) });
    let error = other().unwrap_err();
    assert!(matches!(&error, CacheError::OtherVolume { found, dirty: 2, .. } if found == VOLUME), "{error:?}");
    assert!(error.to_string().contains(VOLUME), "{error}");
    let cache = open(&dir);
    assert!(cache.has(fid(1), 5), "the refused mount has spoilt nothing");
    let file = cache.left_dirty().remove(0).file;
    cache.mark_clean(&file, 6, vec![checksum(b"dirty")]).unwrap();
    assert!(matches!(other(), Err(CacheError::InUse { .. })));
    cache.flush().unwrap();
    let conflict = cache.list().pop().unwrap().id;
    drop((cache, file));
    assert!(matches!(other(), Err(CacheError::OtherVolume { dirty: 1, .. })), "a conflict counts");
    let cache = open(&dir);
    cache.forget_conflict(conflict).unwrap();
    cache.pin(fid(1), true);
    cache.flush().unwrap();
    let identity = cache.identity();
    drop(cache);
    let cache = other().unwrap();
    assert!(cache.list().is_empty() && cache.pinned().is_empty() && on_disk(&dir).is_empty());
    assert_eq!(cache.identity().0, identity.0);
    drop(cache);
    assert!(open(&dir).list().is_empty(), "and back");
}

#[test]
fn dirty_files_of_an_unknown_volume_are_not_stored() {
    let dir = temporary();
    fill(&dir);
    std::fs::remove_file(dir.path().join("volume")).unwrap();
    assert!(matches!(DiskCache::open(options(dir.path())), Err(CacheError::OtherVolume { dirty: 2, .. })));
}

#[test]
fn a_directory_of_somebody_elses_is_left_alone() {
    for stranger in ["volume", "notes.txt", "index"] {
        let dir = temporary();
        std::fs::write(dir.path().join(stranger), "mine").unwrap();
        let error = DiskCache::open(options(dir.path())).unwrap_err();
        assert!(matches!(&error, CacheError::NotACache { dir: named } if named == dir.path()), "{error:?}");
        assert_eq!(std::fs::read(dir.path().join(stranger)).unwrap(), b"mine");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing was added");
    }
    // A file system of its own, and a cache whose making was cut short.
    let dir = temporary();
    std::fs::create_dir(dir.path().join("lost+found")).unwrap();
    open(&dir);
    for name in ["identity", "index.sqlite"] {
        std::fs::remove_file(dir.path().join(name)).unwrap();
    }
    for log in ["index.sqlite-wal", "index.sqlite-shm"] {
        let _ = std::fs::remove_file(dir.path().join(log));
    }
    open(&dir);
}
