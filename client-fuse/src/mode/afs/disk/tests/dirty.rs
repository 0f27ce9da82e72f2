use std::time::SystemTime;

use super::*;

#[test]
fn the_place_of_a_file_follows_what_it_is() {
    let dir = temporary();
    let cache = open(&dir);
    let file = install(&cache, 1, 5, b"data");
    assert_eq!(on_disk(&dir), ["files/01/1"]);
    cache.mark_dirty(&file, 5, 1000, 100).unwrap();
    assert_eq!(on_disk(&dir), ["dirty/1.1.3.5.1000.100.77.1"]);
    cache.sync_dirty(&file).unwrap();
    assert_eq!(on_disk(&dir), ["dirty/1.1.3.5.1000.100.0.1"]);
    cache.mark_dirty(&file, 5, 1000, 100).unwrap();
    assert_eq!(on_disk(&dir), ["dirty/1.1.3.5.1000.100.0.1"], "it stays synced");
    cache.mark_dirty(&file, 5, 1001, 101).unwrap();
    assert_eq!(on_disk(&dir), ["dirty/1.1.3.5.1001.101.0.1"], "whoever writes");
    assert!(cache.find(fid(1), 5).is_none(), "a dirty file is no copy of any version");
    cache.mark_dirty(&file, 6, 0, 0).unwrap();
    assert_eq!(on_disk(&dir), ["dirty/1.1.3.6.0.0.77.1"], "what it is based on now is not");
    file.file().write_all_at(b"more data", 0).unwrap();
    assert_eq!(cache.usage().dirty_bytes, 9);
    cache.mark_clean(&file, 7, vec![checksum(b"more data")]).unwrap();
    assert_eq!(on_disk(&dir), ["files/01/1"]);
    assert!(Arc::ptr_eq(&cache.find(fid(1), 7).unwrap(), &file));
    assert_eq!(cache.list()[0].name.as_deref(), Some(&b"f1"[..]), "the name stays");
    let usage = cache.usage();
    assert_eq!((usage.files, usage.bytes, usage.dirty_files), (1, 9, 0));
}

#[test]
fn a_store_drops_the_copy_of_the_former_version() {
    let dir = temporary();
    let cache = open(&dir);
    install(&cache, 1, 5, b"old");
    let file = fetched(&cache, 1, b"written anew");
    cache.mark_dirty(&file, 5, 0, 0).unwrap();
    assert!(cache.has(fid(1), 5), "until the store, the server has that one");
    cache.mark_clean(&file, 6, vec![checksum(b"written anew")]).unwrap();
    assert!(cache.has(fid(1), 6));
    drop(file);
    assert_eq!(on_disk(&dir), ["files/02/2"]);
}

#[test]
fn what_is_dirty_when_the_process_is_killed_is_left() {
    let dir = temporary();
    let cache = open(&dir);
    let before = SystemTime::now() - std::time::Duration::from_secs(5);
    for (vnode, base) in [(3, 7), (1, 5)] {
        let file = install(&cache, vnode, base, b"old");
        cache.mark_dirty(&file, base, 10, 20).unwrap();
        file.file().write_all_at(b"newer", 0).unwrap();
    }
    let file = fetched(&cache, 2, b"");
    cache.mark_dirty(&file, 0, 0, 0).unwrap();
    assert!(cache.left_dirty().is_empty(), "this life's own are not left over");
    drop((file, cache));

    let cache = open(&dir);
    let left = cache.left_dirty();
    let found: Vec<_> = left.iter().map(|left| (left.fid, left.base, left.uid, left.gid, left.size)).collect();
    assert_eq!(found, [(fid(1), 5, 10, 20, 5), (fid(2), 0, 0, 0, 0), (fid(3), 7, 10, 20, 5)]);
    assert!(left[0].modified >= before);
    assert_eq!(contents(&left[0].file), b"newer");
    assert!(Arc::ptr_eq(&cache.left_dirty()[0].file, &left[0].file));
    cache.mark_dirty(&left[2].file, 8, 10, 20).unwrap();
    assert_eq!(cache.left_dirty().len(), 3, "it is still not stored");
    cache.mark_clean(&left[0].file, 6, vec![checksum(b"newer")]).unwrap();
    assert_eq!(cache.left_dirty().len(), 2);
    assert!(cache.has(fid(1), 6));
    let new = fetched(&cache, 9, b"");
    assert!(left.iter().all(|left| left.file.id() < new.id()), "numbers are not used twice");
}

#[test]
fn what_was_not_synced_is_uncertain_once_the_machine_was_started_anew() {
    let dir = temporary();
    let cache = open_in(&dir, 1);
    let files: Vec<_> = (1..=4).map(|vnode| install(&cache, vnode, 5, b"data")).collect();
    files.iter().for_each(|file| cache.mark_dirty(file, 5, 0, 0).unwrap());
    cache.sync_dirty(&files[1]).unwrap();
    cache.sync_dirty(&files[2]).unwrap();
    cache.mark_dirty(&files[2], 6, 0, 0).unwrap();
    drop((files, cache));
    let certain = |cache: &DiskCache| cache.left_dirty().iter().map(|left| left.is_certain).collect::<Vec<_>>();
    assert_eq!(certain(&open_in(&dir, 1)), [true; 4], "only the process was killed");
    let cache = open_in(&dir, 2);
    assert_eq!(certain(&cache), [false, true, false, false]);
    // What was written before does not become certain by a sync of what is left of it.
    cache.sync_all_dirty().unwrap();
    assert_eq!(certain(&cache), [false, true, false, false]);
}

#[test]
fn what_is_dirty_at_the_end_of_a_mount_is_synced() {
    let dir = temporary();
    let cache = open_in(&dir, 1);
    let files = [1, 2].map(|vnode| install(&cache, vnode, 5, b"data"));
    cache.mark_dirty(&files[0], 5, 0, 0).unwrap();
    cache.sync_all_dirty().unwrap();
    assert_eq!(on_disk(&dir), ["dirty/1.1.3.5.0.0.0.1", "files/02/2"]);
    cache.mark_dirty(&files[1], 5, 0, 0).unwrap();
    drop((files, cache));
    // The next life has not looked at it.
    open_in(&dir, 1).sync_all_dirty().unwrap();
    assert!(open_in(&dir, 2).left_dirty().iter().all(|left| left.is_certain));
}

#[test]
fn the_names_of_dirty_files_are_remembered() {
    let dir = temporary();
    let cache = open(&dir);
    let (stored, left) = (install(&cache, 1, 5, b"a"), fetched(&cache, 2, b"b"));
    for file in [&stored, &left] {
        cache.mark_dirty(file, 5, 0, 0).unwrap();
    }
    cache.set_name(&left, b"new name");
    cache.flush().unwrap();
    cache.mark_clean(&stored, 6, vec![checksum(b"a")]).unwrap();
    cache.set_name(&stored, b"stored name");
    cache.flush().unwrap();
    drop((stored, left, cache));
    let cache = open(&dir);
    assert_eq!(cache.left_dirty()[0].name.as_deref(), Some(&b"new name"[..]));
    assert_eq!(cache.list()[0].name.as_deref(), Some(&b"stored name"[..]));
}

#[test]
fn what_became_clean_just_before_a_kill_is_fetched_again() {
    let dir = temporary();
    let cache = open(&dir);
    let file = install(&cache, 1, 5, b"data");
    cache.flush().unwrap();
    cache.mark_dirty(&file, 5, 0, 0).unwrap();
    file.file().write_all_at(b"DATA", 0).unwrap();
    cache.mark_clean(&file, 6, vec![checksum(b"DATA")]).unwrap();
    drop((file, cache));
    let cache = open(&dir);
    assert!(!cache.has(fid(1), 5), "the index is behind, but the file is not as it says");
    assert!(!cache.has(fid(1), 6) && on_disk(&dir).is_empty());
}

#[test]
fn a_file_that_is_too_large_to_keep_is_stored_all_the_same() {
    let dir = temporary();
    let cache = open_limited(&dir, 10);
    let file = fetched(&cache, 1, b"");
    cache.mark_dirty(&file, 0, 0, 0).unwrap();
    file.file().write_all_at(&[1; 20], 0).unwrap();
    cache.mark_clean(&file, 1, vec![checksum(&[1; 20])]).unwrap();
    assert!(!cache.has(fid(1), 1));
    assert_eq!(contents(&file), [1; 20]);
    assert_eq!(cache.usage().dirty_files, 0);
    drop(file);
    assert!(on_disk(&dir).is_empty());
}

#[test]
fn conflicts_are_kept_until_they_are_forgotten() {
    let dir = temporary();
    let cache = open(&dir);
    let file = install(&cache, 1, 5, b"mine");
    cache.mark_dirty(&file, 5, 0, 0).unwrap();
    let path = cache.keep_as_conflict(&file, 5, None, "another client stored it first").unwrap();
    assert_eq!(cache.keep_as_conflict(&file, 5, None, "another client stored it first").unwrap(), path);
    assert_eq!((file.path(), std::fs::read(&path).unwrap()), (path.clone(), b"mine".to_vec()));
    let id = file.id();
    drop((file, cache));

    // Killed: but the reason is written at once.
    let cache = open(&dir);
    assert!(cache.left_dirty().is_empty());
    let listed = cache.list();
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].id, listed[0].fid, listed[0].version, listed[0].size), (id, fid(1), 5, 4));
    assert_eq!(listed[0].name.as_deref(), Some(&b"f1"[..]));
    let why = "another client stored it first".to_owned();
    assert_eq!(listed[0].state, ListedState::Conflict { path: path.clone(), why });
    assert_eq!((cache.usage().conflicts, cache.usage().conflict_bytes), (1, 4));
    assert_eq!(cache.forget_conflict(id + 1).unwrap_err().kind(), io::ErrorKind::NotFound);
    cache.forget_conflict(id).unwrap();
    assert!(!path.exists() && cache.list().is_empty());
    cache.flush().unwrap();
    drop(cache);
    assert!(open(&dir).list().is_empty());
}

#[test]
fn a_copy_that_was_removed_cannot_become_dirty() {
    let dir = temporary();
    let cache = open(&dir);
    let file = install(&cache, 1, 5, b"data");
    std::fs::remove_file(file.path()).unwrap();
    assert_eq!(cache.mark_dirty(&file, 5, 0, 0).unwrap_err().kind(), io::ErrorKind::NotFound);
    assert!(cache.find(fid(1), 5).is_none());
    let file = install(&cache, 1, 5, b"data");
    cache.mark_dirty(&file, 5, 0, 0).unwrap();
}
