use super::*;

fn cached(cache: &DiskCache) -> Vec<u64> {
    (1..20).filter(|vnode| cache.has(fid(*vnode), 5)).collect()
}

#[test]
fn the_least_recently_used_goes_first() {
    let dir = temporary();
    let cache = open_limited(&dir, 40);
    for vnode in 1..=4 {
        assert!(cache.make_room(10));
        install(&cache, vnode, 5, &[1; 10]);
    }
    assert!(cache.find(fid(1), 5).is_some());
    assert!(cache.make_room(0), "all fits as it is");
    assert_eq!(cached(&cache), [1, 2, 3, 4]);
    assert!(cache.make_room(11));
    assert_eq!(cached(&cache), [1, 4]);
    assert_eq!((cache.usage().evicted, cache.usage().bytes), (2, 20));
    assert_eq!(on_disk(&dir), ["files/01/1", "files/04/4"]);
    assert!(!cache.make_room(41), "more than there ever is");
    assert_eq!(cached(&cache), [1, 4], "and nothing is evicted in vain");
    assert!(cache.make_room(40));
    assert!(cached(&cache).is_empty());
}

#[test]
fn the_order_of_use_survives() {
    let dir = temporary();
    let cache = open_limited(&dir, 30);
    for vnode in 1..=3 {
        install(&cache, vnode, 5, &[1; 10]);
    }
    cache.flush().unwrap();
    assert!(cache.find(fid(1), 5).is_some());
    cache.flush().unwrap();
    drop(cache);
    let cache = open_limited(&dir, 30);
    assert!(cache.make_room(10));
    assert_eq!(cached(&cache), [1, 3]);
    drop(cache);
    let cache = open_limited(&dir, 19);
    assert_eq!(cached(&cache), [1], "a lower limit holds from the start");
}

#[test]
fn an_installation_makes_its_own_room() {
    let dir = temporary();
    let cache = open_limited(&dir, 25);
    for vnode in 1..=3 {
        install(&cache, vnode, 5, &[1; 10]);
    }
    assert_eq!(cached(&cache), [2, 3]);
    let file = fetched(&cache, 4, &[1; 26]);
    let error = cache.install(&file, 5, vec![checksum(&[1; 26])], None).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert_eq!(contents(&file), [1; 26], "it can be used as it is");
    drop(file);
    assert_eq!(cached(&cache), [2, 3]);
    assert_eq!(on_disk(&dir).len(), 2);
}

#[test]
fn what_is_open_pinned_dirty_or_in_conflict_stays_and_counts() {
    let dir = temporary();
    let cache = open_limited(&dir, 60);
    cache.pin(fid(1), true);
    install(&cache, 1, 5, &[1; 10]);
    let held = install(&cache, 2, 5, &[1; 10]);
    let dirty = install(&cache, 3, 5, &[1; 10]);
    cache.mark_dirty(&dirty, 5, 0, 0).unwrap();
    let conflict = install(&cache, 4, 5, &[1; 10]);
    cache.keep_as_conflict(&conflict, 5, None, "why").unwrap();
    let fetching = fetched(&cache, 5, &[1; 10]);
    drop(conflict);
    assert!(cache.make_room(10) && !cache.make_room(11));
    install(&cache, 6, 5, &[1; 10]);
    assert!(cache.make_room(10) && !cache.make_room(11));
    assert_eq!(cached(&cache), [1, 2]);
    dirty.file().write_all_at(&[1; 10], 10).unwrap();
    assert!(cache.make_room(0) && !cache.make_room(1), "a dirty file has grown");
    drop(fetching);
    assert!(cache.make_room(10));
    drop(held);
    assert!(cache.make_room(20));
    assert_eq!(cached(&cache), [1]);
    cache.pin(fid(1), false);
    assert!(cache.make_room(30) && cached(&cache).is_empty());
    assert!(!cache.make_room(31));
    assert_eq!(contents(&dirty), [1; 20]);
}

#[test]
fn an_eviction_says_why_not() {
    let dir = temporary();
    let cache = open(&dir);
    assert_eq!(cache.evict(fid(1)), Evicted::Absent);
    let file = install(&cache, 1, 5, b"data");
    assert!(cache.pin(fid(1), true));
    assert_eq!(cache.evict(fid(1)), Evicted::Open);
    cache.mark_dirty(&file, 5, 0, 0).unwrap();
    assert_eq!(cache.evict(fid(1)), Evicted::Dirty);
    cache.mark_clean(&file, 6, vec![checksum(b"data")]).unwrap();
    drop(file);
    assert_eq!(cache.evict(fid(1)), Evicted::Pinned);
    assert!(cache.pin(fid(1), false));
    assert_eq!(cache.evict(fid(1)), Evicted::Done);
    assert!(on_disk(&dir).is_empty() && cache.find(fid(1), 6).is_none());
}

#[test]
fn pins_are_remembered_without_a_copy() {
    let dir = temporary();
    let cache = open(&dir);
    assert!(cache.pin(fid(2), true) && cache.pin(fid(1), true) && !cache.pin(fid(1), true));
    cache.flush().unwrap();
    drop(cache);
    let cache = open(&dir);
    assert_eq!(cache.pinned(), [fid(1), fid(2)]);
    assert!(cache.pin(fid(1), false) && !cache.pin(fid(1), false) && cache.is_pinned(fid(2)));
    assert_eq!(cache.usage().pinned, 1);
    cache.flush().unwrap();
    drop(cache);
    assert_eq!(open(&dir).pinned(), [fid(2)]);
}

#[test]
fn verification_reads_everything_and_drops_what_is_damaged() {
    let dir = temporary();
    let cache = open(&dir);
    let large = vec![1; VERIFY_MAX as usize + 1];
    let path = install(&cache, 3, 5, &large).path();
    install(&cache, 1, 5, b"good");
    let gone = install(&cache, 2, 5, b"gone").path();
    let dirty = install(&cache, 4, 5, b"dirty");
    cache.mark_dirty(&dirty, 5, 0, 0).unwrap();
    std::fs::remove_file(gone).unwrap();
    let time = path.metadata().unwrap().modified().unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"x", VERIFY_MAX).unwrap();
    file.set_modified(time).unwrap();
    assert!(cache.find(fid(3), 5).is_some(), "an ordinary use does not notice");
    assert_eq!(cache.verify(Some(fid(1))), [Verified { fid: fid(1), name: Some(b"f1".to_vec()), ok: Ok(()) }]);
    let report = cache.verify(None);
    let found: Vec<_> = report.iter().map(|found| (found.fid, found.ok.is_ok())).collect();
    assert_eq!(found, [(fid(1), true), (fid(2), false), (fid(3), false)]);
    assert_eq!(cached(&cache), [1]);
    assert_eq!(cache.usage().damaged, 1);
    assert!(!path.exists());
    assert!(cache.verify(Some(fid(3))).is_empty());
}

#[test]
fn the_list_is_in_order_and_complete() {
    let dir = temporary();
    let cache = open(&dir);
    let conflict = fetched(&cache, 1, b"conflict");
    cache.keep_as_conflict(&conflict, 3, Some(b"a name"), "why").unwrap();
    install(&cache, 2, 5, b"clean");
    let dirty = fetched(&cache, 1, b"dirty");
    cache.mark_dirty(&dirty, 4, 0, 0).unwrap();
    let held = install(&cache, 1, 5, b"held");
    cache.pin(fid(1), true);
    let found: Vec<_> = cache
        .list()
        .into_iter()
        .map(|listed| (listed.fid.vnode, listed.version, listed.size, listed.pinned, listed.open))
        .collect();
    assert_eq!(found, [(1, 5, 4, true, true), (1, 4, 5, true, true), (1, 3, 8, true, false), (2, 5, 5, false, false)]);
    drop(held);
    let list = cache.list();
    assert!(!list[0].open && list[0].last_used > list[3].last_used);
    assert_eq!(list[2].state, ListedState::Conflict { path: conflict.path(), why: "why".to_owned() });
}
