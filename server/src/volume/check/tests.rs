//! A sound volume, broken in one way at a time.

use std::fs;
use std::path::PathBuf;

use larder_protocol::attr::{FileType, Timestamp};
use larder_protocol::cell::Quota;
use larder_protocol::ids::{ClientId, OpId, ROOT_VNODE, VolumeId};
use larder_protocol::name::Name;

use super::*;
use crate::volume::content::{Content, ContentId};
use crate::volume::context::CHANGES;
use crate::volume::data::checksums::{self, Group};
use crate::volume::keys::Table;
use crate::volume::meta::Batch;
use crate::volume::record::*;

const CLIENT: ClientId = ClientId(77);
const LARGE: ContentId = ContentId { vnode: 4, version: 9 };
const SIZE: u64 = 3 * BLOCK + 1000;
const ROW: &str = "does not match its checksum";

struct Fixture(tempfile::TempDir);

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

fn record(nlink: u32, size: u64, blocks: u64, body: Body) -> VnodeRecord {
    let at = Timestamp { secs: 1, nanos: 2 };
    let (generation, mode, uid, gid, xattrs) = (0, 0o755, 0, 0, 0);
    let (change, data_change) = (5, 5);
    let times = (at, at, at, at);
    let (atime, mtime, ctime, btime) = times;
    VnodeRecord {
        generation,
        mode,
        nlink,
        uid,
        gid,
        size,
        blocks,
        atime,
        mtime,
        ctime,
        btime,
        change,
        data_change,
        xattrs,
        body,
    }
}

fn directory(nlink: u32, parent: u64, entries: u64) -> VnodeRecord {
    record(nlink, 4096, 8, Body::Directory { parent, entries, next_cookie: entries + 1 })
}

fn link(draft: &mut Draft<'_>, dir: u64, text: &str, cookie: u64, vnode: u64, kind: FileType) {
    let generation = 0;
    let entry = EntryRecord { vnode, generation, kind, cookie };
    draft.put(Table::Entries, &keys::entry(dir, &name(text)), &entry).unwrap();
    let place = CookieRecord { name: name(text), vnode, generation, kind };
    draft.put(Table::Cookies, &keys::cookie(dir, cookie), &place).unwrap();
}

fn slot(seq: u64) -> SlotRecord {
    SlotRecord { id: OpId { client: CLIENT, incarnation: 3, slot: 1, seq }, result: "result".into() }
}

impl Fixture {
    /// ```text
    /// /            1
    /// /dir         2
    /// /dir/small   3, also /hard; inline, one extended attribute
    /// /dir/large   4; a content file whose second block is a hole
    /// /dir/sub     5
    /// /link        6
    ///              7, kept by a client
    /// ```
    fn new() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        crate::volume::create(dir.path(), VolumeId::ROOT, "root", Quota::default()).unwrap();
        let fixture = Fixture(dir);
        let content = fixture.content();
        content.create(LARGE).unwrap();
        content.write(LARGE, 0, &[1; BLOCK as usize]).unwrap();
        content.write(LARGE, 2 * BLOCK, &[2; BLOCK as usize + 1000]).unwrap();
        fixture.edit(|draft| {
            draft.put_vnode(1, &directory(3, 1, 3)).unwrap();
            draft.put_vnode(2, &directory(3, 1, 3)).unwrap();
            let mut small = record(2, 5, 1, Body::Inline);
            small.xattrs = 1;
            draft.put_vnode(3, &small).unwrap();
            draft.put_bytes(Table::Inline, &keys::vnode(3), b"hello".to_vec());
            draft.put_bytes(Table::Xattrs, &keys::xattr(3, b"user.x"), b"y".to_vec());
            draft.put_vnode(4, &record(1, SIZE, 400, Body::Content { version: 9 })).unwrap();
            let mut sums = Group::default();
            sums.set(0, Some(checksums::of_block(&[1; BLOCK as usize])));
            sums.set(2, Some(checksums::of_block(&[2; BLOCK as usize])));
            sums.set(3, Some(checksums::of_block(&[2; 1000])));
            checksums::store(draft, 4, 0, sums);
            draft.put_vnode(5, &directory(2, 2, 0)).unwrap();
            draft.put_vnode(6, &record(1, 3, 0, Body::Symlink { target: "dir".into() })).unwrap();
            draft.put_vnode(7, &record(0, 0, 0, Body::Inline)).unwrap();
            let since = Timestamp::default();
            draft.put(Table::Orphans, &keys::orphan(7, CLIENT), &OrphanRecord { since }).unwrap();
            link(draft, 1, "dir", 1, 2, FileType::Directory);
            link(draft, 1, "hard", 2, 3, FileType::Regular);
            link(draft, 1, "link", 3, 6, FileType::Symlink);
            link(draft, 2, "small", 1, 3, FileType::Regular);
            link(draft, 2, "large", 2, 4, FileType::Regular);
            link(draft, 2, "sub", 3, 5, FileType::Directory);
            draft
                .put(Table::Clients, &keys::client(CLIENT), &ClientRecord { incarnation: 3, last_seen: since })
                .unwrap();
            draft.put(Table::Slots, &keys::slot(CLIENT, 1), &slot(4)).unwrap();
            header(draft, |header| {
                header.incarnation = 2;
                header.next_vnode = 8;
                header.vnodes = 7;
                header.blocks = 3 * 8 + 1 + 400;
            });
        });
        fixture
    }

    fn dir(&self) -> &Path {
        self.0.path()
    }

    fn content(&self) -> FileContent {
        FileContent::open(&self.dir().join("content")).unwrap()
    }

    fn file(&self) -> PathBuf {
        self.content().path(LARGE)
    }

    fn meta(&self) -> SqliteMetadata {
        SqliteMetadata::open(&self.dir().join("meta.sqlite"), Durability::Power).unwrap()
    }

    fn edit(&self, change: impl FnOnce(&mut Draft<'_>)) {
        let meta = self.meta();
        let snapshot = meta.snapshot().unwrap();
        let view = Verified(&*snapshot);
        let mut draft = Draft::new(&view);
        change(&mut draft);
        let batch = draft.into_batch();
        drop(snapshot);
        meta.commit(1, &batch, true).unwrap();
    }

    /// Flips a bit in a row.
    fn flip(&self, table: Table, key: &[u8]) {
        let meta = self.meta();
        let mut value = meta.snapshot().unwrap().get(table, key).unwrap().unwrap();
        value[0] ^= 4;
        meta.commit(1, &Batch { changes: vec![(table, key.to_vec(), Some(value))] }, true).unwrap();
    }

    fn check(&self, repair: bool) -> Vec<Finding> {
        check_volume(self.dir(), "root", Some(VolumeId::ROOT), repair).unwrap().findings
    }

    fn names(&self, dir: u64) -> Vec<(String, u64)> {
        let meta = self.meta();
        let snapshot = meta.snapshot().unwrap();
        let listing = Verified(&*snapshot).listing(dir, 0, 100).unwrap();
        let mut names: Vec<_> = listing.into_iter().map(|(_, row)| (row.name.to_string(), row.vnode)).collect();
        names.sort();
        names
    }
}

fn header(draft: &mut Draft<'_>, change: impl FnOnce(&mut HeaderRecord)) {
    let mut header = draft.header().unwrap();
    change(&mut header);
    draft.put(Table::Header, keys::HEADER, &header).unwrap();
}

fn edit(draft: &mut Draft<'_>, vnode: u64, change: impl FnOnce(&mut VnodeRecord)) {
    found::edit(draft, vnode, change).unwrap();
}

fn body(record: &mut VnodeRecord, change: impl FnOnce(&mut u64, &mut u64, &mut u64)) {
    let Body::Directory { parent, entries, next_cookie } = &mut record.body else { panic!("no directory") };
    change(parent, entries, next_cookie);
}

type Break = fn(&Fixture);

/// Breaks a volume, and expects exactly these findings: the vnode and a part of the text. Then what the repair is to
/// do: mend all, so that a second check finds nothing.
fn is_mended(broken: Break, expected: &[(u64, &str)]) -> Fixture {
    let fixture = Fixture::new();
    assert_eq!(fixture.check(false), []);
    broken(&fixture);
    let seen = fixture.check(false);
    let matches = |findings: &[Finding]| {
        findings.len() == expected.len()
            && expected
                .iter()
                .all(|(vnode, text)| findings.iter().any(|f| f.vnode.unwrap_or(0) == *vnode && f.what.contains(text)))
    };
    assert!(matches(&seen), "{seen:#?}");
    assert!(seen.iter().all(|finding| finding.outcome == Outcome::Repairable), "{seen:#?}");
    assert_eq!(fixture.check(false), seen, "a check changes nothing");
    let repaired = fixture.check(true);
    assert!(expected.iter().all(|(_, text)| repaired.iter().any(|f| f.what.contains(text))), "{repaired:#?}");
    assert!(repaired.iter().all(|finding| matches!(finding.outcome, Outcome::Repaired(_))), "{repaired:#?}");
    assert_eq!(fixture.check(false), [], "after {repaired:#?}");
    fixture
}

/// As [`is_mended`], for what no repair can mend.
fn stays(broken: Break, vnode: u64, text: &str) {
    let fixture = Fixture::new();
    broken(&fixture);
    for repair in [false, true, false] {
        let findings = fixture.check(repair);
        assert_eq!(findings.len(), 1, "{findings:#?}");
        assert!(findings[0].vnode.unwrap_or(0) == vnode && findings[0].what.contains(text), "{findings:#?}");
        assert!(matches!(findings[0].outcome, Outcome::Unrepairable(_)), "{findings:#?}");
    }
}

#[test]
fn counters_of_the_volume_are_mended() {
    is_mended(|f| f.edit(|d| header(d, |h| h.vnodes = 9)), &[(0, "9 vnodes, and it has 7")]);
    is_mended(|f| f.edit(|d| header(d, |h| h.blocks = 9)), &[(0, "425")]);
    is_mended(|f| f.edit(|d| header(d, |h| h.next_vnode = 7)), &[(0, "7 is taken")]);
    is_mended(|f| f.edit(|d| edit(d, 3, |r| r.change = CHANGES + 9)), &[(0, "from 9")]);
    is_mended(|f| f.edit(|d| edit(d, 7, |r| r.generation = 4)), &[(0, "from 4")]);
    is_mended(|f| f.edit(|d| d.delete(Table::Clients, &keys::client(CLIENT))), &[(0, "does not know it")]);
}

#[test]
fn what_is_mended_looks_changed_to_clients() {
    let fixture = is_mended(
        |fixture| {
            fixture.edit(|draft| {
                edit(draft, 5, |record| record.nlink = 7);
                draft.delete(Table::Entries, &keys::entry(1, &name("link")));
            });
        },
        &[(5, "links"), (1, "cannot be looked up")],
    );
    let meta = fixture.meta();
    let snapshot = meta.snapshot().unwrap();
    let view = Verified(&*snapshot);
    assert!(view.header().unwrap().incarnation > 2);
    for (vnode, was_touched) in [(1, true), (2, false), (3, false), (5, true), (6, false)] {
        let record = view.vnode(vnode).unwrap().unwrap();
        assert_eq!((record.change > 5, record.data_change > 5), (was_touched, was_touched), "vnode {vnode}");
    }
}

#[test]
fn counters_of_vnodes_are_mended() {
    is_mended(|f| f.edit(|d| edit(d, 3, |r| r.nlink = 1)), &[(3, "1 links, and it has 2")]);
    is_mended(|f| f.edit(|d| edit(d, 2, |r| r.nlink = 9)), &[(2, "9 links, and it has 3")]);
    is_mended(|f| f.edit(|d| edit(d, 7, |r| r.nlink = 1)), &[(7, "1 links, and it has 0")]);
    is_mended(|f| f.edit(|d| edit(d, 3, |r| r.xattrs = 0)), &[(3, "0 extended attributes, and it has 1")]);
    is_mended(|f| f.edit(|d| edit(d, 2, |r| body(r, |_, e, _| *e = 1))), &[(2, "1 names, and there are 3")]);
    is_mended(|f| f.edit(|d| edit(d, 2, |r| body(r, |_, _, n| *n = 3))), &[(2, "3 is taken")]);
    is_mended(|f| f.edit(|d| edit(d, 5, |r| body(r, |p, _, _| *p = 1))), &[(5, "in 1, and its name is in 2")]);
    is_mended(
        |f| f.edit(|d| edit(d, 1, |r| body(r, |p, _, _| *p = 2))),
        &[(1, "directory above")].map(|_| (1, "in 2")),
    );
    let wrong_blocks: Break = |f| {
        f.edit(|d| {
            edit(d, 3, |r| r.blocks = 2);
            header(d, |h| h.blocks += 1);
        });
    };
    is_mended(wrong_blocks, &[(3, "2 blocks, and it is 1")]);
}

#[test]
fn names_and_listing_are_brought_together() {
    let small = || keys::entry(2, &name("small"));
    let all = [("large".to_owned(), 4), ("small".to_owned(), 3), ("sub".to_owned(), 5)];
    let fixture =
        is_mended(|f| f.edit(|d| d.delete(Table::Cookies, &keys::cookie(2, 1))), &[(2, "not in the listing")]);
    assert_eq!(fixture.names(2), all);
    let fixture = is_mended(
        |f| f.edit(|d| d.delete(Table::Entries, &keys::entry(2, &name("small")))),
        &[(2, "cannot be looked up")],
    );
    assert!(fixture.meta().snapshot().unwrap().get(Table::Entries, &small()).unwrap().is_some());
    let other_kind: Break = |f| f.edit(|d| link(d, 2, "small", 1, 3, FileType::Fifo));
    is_mended(other_kind, &[(2, "wrong kind")]);
    let stray: Break = |f| {
        f.edit(|d| {
            let place = CookieRecord { name: name("small"), vnode: 3, generation: 0, kind: FileType::Regular };
            d.put(Table::Cookies, &keys::cookie(2, 0), &place).unwrap();
        });
    };
    is_mended(stray, &[(2, "in a place where it is not")]);
    let shared: Break = |f| {
        f.edit(|d| {
            let twin = EntryRecord { vnode: 3, generation: 0, kind: FileType::Regular, cookie: 2 };
            d.put(Table::Entries, &keys::entry(2, &name("small")), &twin).unwrap();
            d.delete(Table::Cookies, &keys::cookie(2, 1));
        });
    };
    assert_eq!(is_mended(shared, &[(2, "one place in the listing")]).names(2), all);
}

#[test]
fn names_of_nothing_are_removed() {
    let nothing: Break = |f| {
        f.edit(|d| {
            link(d, 2, "gone", 4, 99, FileType::Regular);
            edit(d, 2, |r| body(r, |_, e, n| (*e, *n) = (4, 5)));
        });
    };
    let seen = &[(2, "\"gone\" points at a vnode"), (2, "the listing has \"gone\""), (2, "4 names")];
    assert_eq!(is_mended(nothing, seen).names(2).len(), 3);
    let replaced: Break = |f| {
        f.edit(|d| edit(d, 6, |r| r.generation = 1));
    };
    let fixture = is_mended(
        replaced,
        &[(1, "another generation"), (1, "the listing has \"link\""), (1, "3 names"), (6, "no name")],
    );
    assert!(fixture.names(ROOT_VNODE).iter().any(|(name, _)| name == "lost+found"));
}

#[test]
fn what_has_no_name_gets_one() {
    let nameless: Break = |f| {
        f.edit(|d| {
            d.delete(Table::Entries, &keys::entry(1, &name("dir")));
            d.delete(Table::Cookies, &keys::cookie(1, 1));
            edit(d, 1, |r| {
                r.nlink = 2;
                body(r, |_, e, _| *e = 2);
            });
            d.delete(Table::Orphans, &keys::orphan(7, CLIENT));
        });
    };
    let fixture = is_mended(nameless, &[(2, "no name"), (7, "no name")]);
    let names = fixture.names(ROOT_VNODE);
    let (_, lost) = names.iter().find(|(name, _)| name == "lost+found").unwrap();
    assert_eq!(fixture.names(*lost), [("2".to_owned(), 2), ("7".to_owned(), 7)]);
    assert_eq!(fixture.names(2).len(), 3);
    let meta = fixture.meta();
    let snapshot = meta.snapshot().unwrap();
    let view = Verified(&*snapshot);
    // The incarnation of before may have given out that number to what a power cut has undone.
    assert_eq!(view.vnode(*lost).unwrap().unwrap().generation, view.header().unwrap().incarnation);
    assert!(view.header().unwrap().incarnation > 2);
}

#[test]
fn a_ring_of_directories_is_cut() {
    let ring: Break = |f| {
        f.edit(|d| {
            d.delete(Table::Entries, &keys::entry(1, &name("dir")));
            d.delete(Table::Cookies, &keys::cookie(1, 1));
            edit(d, 1, |r| {
                r.nlink = 2;
                body(r, |_, e, _| *e = 2);
            });
            link(d, 5, "ring", 1, 2, FileType::Directory);
            edit(d, 5, |r| {
                r.nlink = 3;
                body(r, |_, e, n| (*e, *n) = (1, 2));
            });
            edit(d, 2, |r| body(r, |p, _, _| *p = 5));
        });
    };
    is_mended(ring, &[(2, "hangs below itself")]);
}

#[test]
fn a_directory_has_one_name() {
    let twice: Break = |f| {
        f.edit(|d| {
            link(d, 1, "again", 4, 5, FileType::Directory);
            edit(d, 1, |r| {
                r.nlink += 1;
                body(r, |_, e, n| (*e, *n) = (4, 5));
            });
        });
    };
    let fixture = Fixture::new();
    twice(&fixture);
    let seen = fixture.check(false);
    assert!(seen.iter().any(|f| f.vnode == Some(5) && f.what.contains("has two names")), "{seen:#?}");
    let repaired = fixture.check(true);
    assert!(repaired.iter().all(|f| matches!(f.outcome, Outcome::Repaired(_))), "{repaired:#?}");
    assert_eq!(fixture.check(false), []);
}

#[test]
fn damaged_rows_are_set_aside_where_others_make_up_for_them() {
    let fixture =
        is_mended(|f| f.flip(Table::Entries, &keys::entry(2, &name("small"))), &[(2, ROW), (2, "cannot be looked up")]);
    assert_eq!(fs::read_dir(fixture.dir().join("lost-rows")).unwrap().count(), 1);
    is_mended(|f| f.flip(Table::Cookies, &keys::cookie(2, 1)), &[(2, ROW), (2, "not in the listing")]);
    is_mended(|f| f.flip(Table::Slots, &keys::slot(CLIENT, 1)), &[(0, ROW)]);
    is_mended(|f| f.flip(Table::Orphans, &keys::orphan(7, CLIENT)), &[(7, ROW), (7, "no name")]);
    is_mended(|f| f.flip(Table::Xattrs, &keys::xattr(3, b"user.x")), &[(3, ROW), (3, "1 extended attributes")]);
    let dangling: Break = |f| f.edit(|d| d.put_bytes(Table::Checksums, &keys::checksums(3, 0), vec![1; 5]));
    is_mended(dangling, &[(3, "without a content file")]);
    let dirty: Break = |f| f.edit(|d| d.put(Table::Dirty, &keys::vnode(3), &DirtyRecord::InPlace).unwrap());
    is_mended(dirty, &[(3, "without a content file")]);
    let intent: Break =
        |f| f.edit(|d| d.put(Table::Intents, &keys::intent(4, 1), &Intent::Truncate { version: 8, size: 0 }).unwrap());
    is_mended(intent, &[(4, "contents that are not there")]);
}

#[test]
fn a_damaged_vnode_leaves_its_contents_to_be_found() {
    let fixture = Fixture::new();
    fixture.flip(Table::Vnodes, &keys::vnode(4));
    let repaired = fixture.check(true);
    assert!(repaired.iter().all(|f| matches!(f.outcome, Outcome::Repaired(_))), "{repaired:#?}");
    assert_eq!(fixture.check(false), []);
    let saved = fixture.dir().join("lost-content").join("00_00_4.9");
    assert_eq!(fs::metadata(saved).unwrap().len(), SIZE);
    assert!(fixture.dir().join("lost-rows").join("vnodes-0000000000000004").exists());
}

#[test]
fn damaged_contents_stay_damaged() {
    let damaged = "do not match their checksums";
    stays(|f| f.content().write(LARGE, 7, &[9]).unwrap(), 4, "bytes 0 to 65536 do not match");
    stays(|f| f.content().write(LARGE, BLOCK, &[9]).unwrap(), 4, damaged);
    stays(|f| f.content().punch(LARGE, 2 * BLOCK, BLOCK).unwrap(), 4, damaged);
    stays(|f| f.content().truncate(LARGE, SIZE - 1).unwrap(), 4, "its content file has");
    stays(|f| fs::remove_file(f.file()).unwrap(), 4, "content file is missing");
    stays(|f| f.edit(|d| d.put_bytes(Table::Inline, &keys::vnode(3), b"hell".to_vec())), 3, "says 5 bytes, and 4");
}

#[test]
fn damaged_rows_that_hold_data_stay() {
    let fixture = Fixture::new();
    fixture.flip(Table::Checksums, &keys::checksums(4, 0));
    let findings = fixture.check(true);
    assert!(findings.len() == 1 && findings[0].what.contains(ROW), "{findings:#?}");
    stays(|f| f.flip(Table::Vnodes, &keys::vnode(1)), 0, "damaged");
}

#[test]
fn files_that_belong_to_nothing_are_moved_away() {
    let stray = |f: &Fixture| f.content().create(ContentId { vnode: 4, version: 8 }).unwrap();
    let fixture = is_mended(stray, &[(4, "4.8 belongs to no vnode")]);
    assert!(fixture.dir().join("lost-content").join("00_00_4.8").exists());
    is_mended(|f| fs::write(f.dir().join("content/core"), "x").unwrap(), &[(0, "content/core")]);
    let beyond: Break = |f| {
        f.edit(|d| {
            let mut sums = checksums::load(d, 4, 0).unwrap();
            sums.set(4, Some(1));
            checksums::store(d, 4, 0, sums);
        });
    };
    is_mended(beyond, &[(4, "behind its end")]);
}

#[test]
fn what_recovery_will_finish_is_not_wrong() {
    let fixture = Fixture::new();
    fixture.edit(|d| {
        d.put(Table::Dirty, &keys::vnode(4), &DirtyRecord::InPlace).unwrap();
        d.put(Table::Intents, &keys::intent(9, 1), &Intent::Remove { version: 3 }).unwrap();
    });
    fixture.content().write(LARGE, SIZE, b"more").unwrap();
    fixture.content().create(ContentId { vnode: 9, version: 3 }).unwrap();
    assert_eq!(fixture.check(true), []);
}

#[test]
fn damage_of_the_database_is_reported_and_nothing_touched() {
    let fixture = Fixture::new();
    let path = fixture.dir().join("meta.sqlite");
    let mut bytes = fs::read(&path).unwrap();
    for page in bytes.chunks_mut(4096).skip(2) {
        page[..64].fill(0xff);
    }
    fs::write(&path, &bytes).unwrap();
    let findings = fixture.check(true);
    assert!(
        !findings.is_empty() && findings.iter().all(|f| f.what.contains("meta.sqlite is damaged")),
        "{findings:#?}"
    );
    assert_eq!(fs::read(&path).unwrap(), bytes);
}

#[test]
fn findings_name_paths_and_the_report_reads_well() {
    let fixture = Fixture::new();
    fixture.edit(|d| edit(d, 5, |r| r.nlink = 7));
    let findings = fixture.check(false);
    let report = Report { volumes: 1, vnodes: 7, kept: Kept::default(), findings };
    let text = report.to_string();
    let line = "volume root, vnode 5 (/dir/sub): it says that it has 7 links, and it has 2; --repair can mend it";
    assert_eq!(text.lines().next(), Some(line));
    assert_eq!(text.lines().last(), Some("1 volumes, 7 vnodes: 1 findings, 0 of them repaired"));
    assert!(!report.is_clean() && !report.is_sound());
    assert!(Report::default().is_clean());
}

#[test]
fn it_says_what_is_kept_for_clients_that_are_away() {
    let fixture = Fixture::new();
    fixture.edit(|d| edit(d, 7, |r| r.blocks = 24));
    let kept = check_volume(fixture.dir(), "root", Some(VolumeId::ROOT), false).unwrap().kept;
    assert_eq!(kept, Kept { files: 1, bytes: 12 << 10 });
    let report = Report { volumes: 1, vnodes: 7, kept, findings: Vec::new() };
    let line = "1 volumes, 7 vnodes: sound\n1 vnodes (12 KiB) are removed files that clients had open; those of clients that \
                do not come back go 24 hours after they were last heard of, where room is scarce 15 minutes";
    assert_eq!(report.to_string(), line);
    assert!(report.is_clean(), "it is nothing wrong");
    // With the client's claim it goes.
    fixture.edit(|d| {
        d.delete(Table::Orphans, &keys::orphan(7, CLIENT));
        d.delete(Table::Vnodes, &keys::vnode(7));
    });
    assert_eq!(check_volume(fixture.dir(), "root", Some(VolumeId::ROOT), false).unwrap().kept, Kept::default());
}
