use std::os::unix::fs::PermissionsExt;

use super::*;

#[test]
fn a_copy_is_found_at_its_version_only_and_by_all_the_same() {
    let dir = temporary();
    let cache = open(&dir);
    assert!(cache.find(fid(1), 5).is_none());
    let file = install(&cache, 1, 5, b"hello");
    assert!(cache.find(fid(1), 6).is_none() && cache.find(fid(2), 5).is_none());
    assert!(cache.has(fid(1), 5) && !cache.has(fid(1), 6) && !cache.has(fid(2), 5));
    assert!(Arc::ptr_eq(&cache.find(fid(1), 5).unwrap(), &file));
    assert_eq!((file.fid(), file.id(), file.path()), (fid(1), 1, dir.path().join("files/01/1")));
    drop(file);
    let again = cache.find(fid(1), 5).unwrap();
    assert_eq!(contents(&again), b"hello");
    assert!(Arc::ptr_eq(&cache.find(fid(1), 5).unwrap(), &again));
    let mode = again.file().metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "files of users are nobody else's to read");
}

#[test]
fn an_empty_file_can_be_cached() {
    let dir = temporary();
    let cache = open(&dir);
    install(&cache, 1, 5, b"");
    cache.flush().unwrap();
    drop(cache);
    assert_eq!(contents(&open(&dir).find(fid(1), 5).unwrap()), b"");
}

#[test]
fn a_fetch_that_is_given_up_leaves_nothing() {
    let dir = temporary();
    let cache = open(&dir);
    let file = fetched(&cache, 1, b"half");
    assert_eq!(on_disk(&dir), ["new/1"]);
    drop(file);
    assert!(on_disk(&dir).is_empty());
}

#[test]
fn a_newer_version_replaces_the_older_one_which_stays_readable() {
    let dir = temporary();
    let cache = open(&dir);
    let old = install(&cache, 1, 5, b"old");
    let new = install(&cache, 1, 6, b"newer");
    assert!(!cache.has(fid(1), 5) && cache.find(fid(1), 5).is_none());
    assert!(Arc::ptr_eq(&cache.find(fid(1), 6).unwrap(), &new));
    assert_eq!((contents(&old), contents(&new)), (b"old".to_vec(), b"newer".to_vec()));
    assert_eq!((cache.usage().files, cache.usage().bytes), (1, 5));
    drop(old);
    assert_eq!(on_disk(&dir), ["files/02/2"], "removed when it is closed");
    drop(new);
    install(&cache, 1, 7, b"newest");
    assert_eq!(on_disk(&dir), ["files/03/3"], "one that nobody has open is removed at once");
}

#[test]
fn a_replaced_copy_that_is_open_can_still_become_dirty() {
    let dir = temporary();
    let cache = open(&dir);
    let old = install(&cache, 1, 5, b"old");
    install(&cache, 1, 6, b"new");
    cache.mark_dirty(&old, 5, 0, 0).unwrap();
    drop(old);
    assert_eq!(on_disk(&dir), ["dirty/1.1.3.5.0.0.77.1", "files/02/2"]);
    assert!(cache.has(fid(1), 6));
}

#[test]
fn checksums_must_cover_the_file() {
    let dir = temporary();
    let cache = open(&dir);
    let file = fetched(&cache, 1, b"data");
    let error = cache.install(&file, 5, vec![], None).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    assert!(!cache.has(fid(1), 5));
    cache.install(&file, 5, vec![checksum(b"data")], None).unwrap();
}

#[test]
fn versions_are_renamed_in_clean_copies_and_under_dirty_ones() {
    let dir = temporary();
    let cache = open(&dir);
    install(&cache, 1, 5, b"clean");
    let dirty = install(&cache, 2, 5, b"dirty");
    cache.mark_dirty(&dirty, 5, 10, 20).unwrap();
    for vnode in [1, 2] {
        cache.rename_version(fid(vnode), 4, 9);
        cache.rename_version(fid(vnode), 5, 6);
    }
    assert!(cache.has(fid(1), 6) && !cache.has(fid(1), 5));
    assert_eq!(dirty.path(), dir.path().join("dirty/1.2.3.6.10.20.77.2"));
    cache.flush().unwrap();
    drop((cache, dirty));
    let cache = open(&dir);
    assert!(cache.find(fid(1), 6).is_some());
    let left = cache.left_dirty();
    assert_eq!((left[0].base, left[0].uid, left[0].gid), (6, 10, 20));
    cache.rename_version(fid(2), 6, 7);
    assert_eq!(on_disk(&dir), ["dirty/1.2.3.7.10.20.77.2", "files/01/1"]);
    assert_eq!(left[0].file.path(), dir.path().join("dirty/1.2.3.7.10.20.77.2"));
}

#[test]
fn what_is_discarded_is_gone_wherever_it_was() {
    let dir = temporary();
    let cache = open(&dir);
    let (new, clean, dirty) = (fetched(&cache, 1, b"1"), install(&cache, 2, 5, b"2"), install(&cache, 3, 5, b"3"));
    cache.mark_dirty(&dirty, 5, 0, 0).unwrap();
    let conflict = fetched(&cache, 4, b"4");
    cache.keep_as_conflict(&conflict, 1, None, "why").unwrap();
    for file in [&new, &clean, &dirty, &conflict] {
        cache.discard(file);
        cache.discard(file);
    }
    assert!(on_disk(&dir).is_empty() && cache.list().is_empty());
    assert_eq!(contents(&clean), b"2", "what is open stays readable");
    cache.mark_clean(&dirty, 6, vec![checksum(b"3")]).unwrap();
    assert!(!cache.has(fid(3), 6), "a store that ends afterwards brings nothing back");
    assert_eq!(cache.mark_dirty(&clean, 5, 0, 0).unwrap_err().kind(), io::ErrorKind::NotFound);
}

/// Flips one byte and sets the time of the file's last change back.
fn flip(path: &Path, offset: u64) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let before = file.metadata().unwrap().modified().unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
    file.set_modified(before).unwrap();
}

#[test]
fn a_flipped_byte_is_found_by_the_checksums() {
    let dir = temporary();
    let cache = open(&dir);
    let data = vec![7; CHECK_BLOCK + 100];
    let path = install(&cache, 1, 5, &data).path();
    install(&cache, 2, 5, b"good");
    cache.flush().unwrap();
    drop(cache);
    flip(&path, CHECK_BLOCK as u64 + 50);
    let cache = open(&dir);
    assert!(cache.has(fid(1), 5), "not noticed at open");
    assert!(cache.find(fid(1), 5).is_none());
    assert!(!path.exists() && !cache.has(fid(1), 5));
    assert_eq!(cache.usage().damaged, 1);
    assert!(cache.find(fid(2), 5).is_some());
}

#[test]
fn a_file_that_was_changed_behind_the_cache_is_dropped() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 4] = [
        ("truncated", |path| std::fs::File::options().write(true).open(path).unwrap().set_len(3).unwrap()),
        ("written", |path| std::fs::File::options().write(true).open(path).unwrap().write_all_at(b"x", 0).unwrap()),
        ("replaced", |path| {
            let time = path.metadata().unwrap().modified().unwrap();
            let other = path.with_extension("other");
            std::fs::write(&other, b"data").unwrap();
            std::fs::File::options().write(true).open(&other).unwrap().set_modified(time).unwrap();
            std::fs::rename(other, path).unwrap();
        }),
        ("a link", |path| {
            std::fs::remove_file(path).unwrap();
            std::os::unix::fs::symlink("/etc/passwd", path).unwrap();
        }),
    ];
    for (what, change) in changes {
        for (open_too, reopened) in [(false, false), (true, false), (false, true)] {
            let dir = temporary();
            let mut cache = open(&dir);
            let file = install(&cache, 1, 5, b"data");
            let (path, held) = (file.path(), open_too.then_some(file));
            cache.flush().unwrap();
            // Even within one tick of the file system's clock.
            change(&path);
            if reopened {
                drop(cache);
                cache = open(&dir);
            }
            assert!(cache.find(fid(1), 5).is_none(), "{what}, open: {open_too}, reopened: {reopened}");
            assert_eq!(cache.usage().damaged, u64::from(!reopened), "{what}");
            assert_eq!(cache.usage().files, 0);
            drop(held);
            install(&cache, 1, 5, b"data");
            assert!(cache.find(fid(1), 5).is_some(), "{what}: it can be fetched again");
        }
    }
}

#[test]
fn large_files_are_checked_whole_only_after_the_machine_started_anew() {
    let dir = temporary();
    let cache = open_in(&dir, 1);
    let data = vec![7; VERIFY_MAX as usize + 1];
    let path = install(&cache, 1, 5, &data).path();
    install(&cache, 2, 5, &data);
    cache.flush().unwrap();
    drop(cache);
    flip(&path, 99);
    let cache = open_in(&dir, 1);
    assert!(cache.find(fid(1), 5).is_some(), "too large to be checked at each start");
    drop(cache);
    let cache = open_in(&dir, 2);
    assert!(cache.find(fid(1), 5).is_none());
    assert!(cache.find(fid(2), 5).is_some());
    cache.flush().unwrap();
    drop(cache);
    let cache = open_in(&dir, 2);
    flip(&dir.path().join("files/02/2"), 99);
    assert!(cache.find(fid(2), 5).is_some(), "it was found good in this boot");
}

#[test]
fn a_deleted_directory_is_survived() {
    let dir = temporary();
    let cache = open(&dir);
    let held = install(&cache, 1, 5, b"held");
    install(&cache, 2, 5, b"closed");
    let dirty = install(&cache, 3, 5, b"dirty");
    cache.mark_dirty(&dirty, 5, 0, 0).unwrap();
    let refused = install(&cache, 4, 5, b"refused");
    cache.mark_dirty(&refused, 5, 0, 0).unwrap();
    let fetching = fetched(&cache, 5, b"fetching");
    cache.flush().unwrap();
    std::fs::remove_dir_all(dir.path()).unwrap();

    assert_eq!(contents(&held), b"held");
    dirty.file().write_all_at(b"D", 0).unwrap();
    cache.mark_dirty(&dirty, 5, 0, 0).unwrap();
    assert!(cache.sync_dirty(&dirty).is_err(), "it cannot be durable");
    assert!(cache.find(fid(1), 5).is_none() && cache.find(fid(2), 5).is_none());
    assert_eq!(cache.usage().damaged, 0);
    cache.install(&fetching, 5, vec![checksum(b"fetching")], None).unwrap();
    assert!(!cache.has(fid(5), 5));
    assert_eq!(cache.mark_dirty(&held, 5, 0, 0).unwrap_err().kind(), io::ErrorKind::NotFound);
    cache.mark_clean(&dirty, 6, vec![checksum(b"Dirty")]).unwrap();
    assert!(!cache.has(fid(3), 6));
    let aside = cache.keep_as_conflict(&refused, 5, Some(b"name"), "another client was first").unwrap();
    assert_eq!(std::fs::read(&aside).unwrap(), b"refused", "the data is saved from what is open");
    drop((held, dirty, refused, fetching));

    install(&cache, 6, 5, b"after");
    cache.flush().unwrap();
    assert!(matches!(DiskCache::open(options(dir.path())), Err(CacheError::InUse { .. })), "it is locked again");
    let identity = cache.identity();
    drop(cache);
    let cache = open(&dir);
    assert_eq!(cache.identity(), (identity.0, identity.1 + 1));
    assert_eq!(contents(&cache.find(fid(6), 5).unwrap()), b"after");
    assert_eq!(cache.usage().conflicts, 1);
}

#[test]
fn a_directory_that_another_mount_took_is_left_to_it() {
    let dir = temporary();
    let cache = open(&dir);
    let file = install(&cache, 1, 5, b"first");
    let replaced = install(&cache, 2, 5, b"replaced");
    install(&cache, 2, 6, b"newer");
    std::fs::remove_dir_all(dir.path()).unwrap();
    let other = open(&dir);
    install(&other, 1, 5, b"other");
    let _held = install(&other, 2, 5, b"other2");
    assert_eq!(cache.flush().unwrap_err().kind(), io::ErrorKind::ResourceBusy);
    drop((file, replaced, cache));
    assert_eq!(contents(&other.find(fid(1), 5).unwrap()), b"other");
    assert_eq!(contents(&other.find(fid(2), 5).unwrap()), b"other2");
}

#[test]
fn single_directories_and_files_may_be_deleted_too() {
    for victim in ["new", "files", "dirty", "conflicts", "lock", "identity", "volume", "index.sqlite"] {
        let dir = temporary();
        let cache = open(&dir);
        install(&cache, 1, 5, b"one");
        cache.pin(fid(8), true);
        cache.flush().unwrap();
        let path = dir.path().join(victim);
        if path.is_dir() {
            std::fs::remove_dir_all(&path).unwrap()
        } else {
            std::fs::remove_file(&path).unwrap()
        }
        let file = install(&cache, 2, 5, b"two");
        cache.mark_dirty(&file, 5, 0, 0).unwrap();
        let other = install(&cache, 3, 5, b"three");
        cache.keep_as_conflict(&other, 5, None, "why").unwrap();
        install(&cache, 4, 5, b"four");
        cache.flush().unwrap();
        let client = cache.identity().0;
        drop((file, other, cache));
        let cache = open(&dir);
        assert_eq!(cache.identity().0, client, "{victim}");
        assert_eq!(cache.find(fid(1), 5).is_some(), victim != "files", "{victim}");
        assert!(cache.find(fid(4), 5).is_some() && cache.is_pinned(fid(8)), "{victim}");
        assert_eq!((cache.left_dirty().len(), cache.usage().conflicts), (1, 1), "{victim}");
    }
}

#[test]
fn many_threads_agree() {
    let dir = temporary();
    let cache = open_limited(&dir, 40_000);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let cache = &cache;
            scope.spawn(move || {
                for round in 0..100u64 {
                    let vnode = (round * 7 + thread) % 13;
                    let file = cache.find(fid(vnode), vnode).unwrap_or_else(|| {
                        cache.make_room(5000);
                        install(cache, vnode, vnode, &vec![vnode as u8; 5000])
                    });
                    assert_eq!(contents(&file), vec![vnode as u8; 5000]);
                    match round % 10 {
                        1 => {
                            cache.mark_dirty(&file, vnode, 0, 0).ok();
                            cache.mark_clean(&file, vnode, checksums_of(file.file()).unwrap()).unwrap();
                        }
                        3 => drop(cache.evict(fid(vnode))),
                        5 => drop(cache.list()),
                        7 => cache.flush().unwrap(),
                        9 => assert!(cache.verify(Some(fid(vnode))).iter().all(|found| found.ok.is_ok())),
                        _ => {}
                    }
                }
            });
        }
    });
    let usage = cache.usage();
    assert_eq!((usage.damaged, usage.dirty_files), (0, 0));
    assert_eq!(usage.files, on_disk(&dir).len() as u64);
    cache.flush().unwrap();
    let before = cache.list();
    drop(cache);
    assert_eq!(open_limited(&dir, 40_000).list(), before);
}

#[test]
fn a_file_that_was_prepared_is_the_next_and_leaves_nothing() {
    let dir = temporary();
    let cache = open(&dir);
    cache.prepare();
    cache.prepare();
    assert_eq!(on_disk(&dir), ["new/1"]);
    let file = install(&cache, 9, 5, b"x");
    assert_eq!((file.fid(), file.id()), (fid(9), 1));
    cache.prepare();
    assert_eq!(on_disk(&dir), ["files/01/1", "new/2"]);
    // Whatever has the name now, it is not the file that was prepared.
    std::fs::remove_file(dir.path().join("new/2")).unwrap();
    std::fs::write(dir.path().join("new/2"), "a stranger's").unwrap();
    assert_eq!(fetched(&cache, 10, b"").id(), 3);
    std::fs::remove_file(dir.path().join("new/2")).unwrap();
    cache.prepare();
    drop((file, cache));
    assert_eq!(on_disk(&dir), ["files/01/1"]);
}
