//! Content files on disk against those in memory, and what only files on disk can do.

mod segments;

use proptest::prelude::*;

use super::*;
use crate::volume::content::memory::MemoryContent;

/// Small enough that the files here have several.
const SMALL_SEGMENT: u64 = 8192;

const IDS: [ContentId; 3] = [
    ContentId { vnode: 3, version: 1 },
    ContentId { vnode: 3, version: u64::MAX },
    ContentId { vnode: 0x12_3456, version: 9 },
];

#[derive(Clone, Debug)]
enum Step {
    Create,
    Remove,
    Write(u64, usize, u8),
    Truncate(u64),
    Punch(u64, u64),
    Reserve(u64, u64, bool),
    Copy(usize, u64, u64, u64),
    Sync,
    Distrust,
    Read(u64, usize),
    Seek(u64, bool),
}

fn step() -> impl Strategy<Value = Step> {
    // Around the ends of blocks and pages is where it goes wrong.
    let at = || {
        prop_oneof![0u64..20_000, (0u64..5, 0u64..3).prop_map(|(block, off)| (block * 4096 + off).saturating_sub(1))]
    };
    prop_oneof![
        2 => Just(Step::Create),
        1 => Just(Step::Remove),
        6 => (at(), 0usize..9000, 1u8..).prop_map(|(at, len, byte)| Step::Write(at, len, byte)),
        2 => at().prop_map(Step::Truncate),
        3 => (at(), at()).prop_map(|(at, len)| Step::Punch(at, len)),
        2 => (at(), at(), any::<bool>()).prop_map(|(at, len, keep)| Step::Reserve(at, len, keep)),
        2 => (0..IDS.len(), at(), at(), at()).prop_map(|(to, from, at, len)| Step::Copy(to, from, at, len)),
        1 => Just(Step::Sync),
        1 => Just(Step::Distrust),
        4 => (at(), 0usize..20_000).prop_map(|(at, len)| Step::Read(at, len)),
        3 => (at(), any::<bool>()).prop_map(|(at, data)| Step::Seek(at, data)),
    ]
}

fn kind<T>(result: io::Result<T>) -> Result<T, ErrorKind> {
    result.map_err(|error| error.kind())
}

/// A seek may find smaller or larger holes than the model has, but never holds data for a hole's.
fn check_seek(content: &dyn Content, id: ContentId, offset: u64, data: bool) {
    let Ok(stat) = content.stat(id) else { return };
    let what = if data { SeekWhat::Data } else { SeekWhat::Hole };
    let found = content.seek(id, offset, what).unwrap();
    let skipped_to = match found {
        Some(found) => {
            assert!(found >= offset && found <= stat.size);
            found
        }
        None => stat.size.max(offset),
    };
    if data {
        let skipped = content.read(id, offset, (skipped_to - offset) as usize).unwrap();
        assert!(skipped.iter().all(|byte| *byte == 0));
    } else {
        assert_eq!(found.is_none(), offset >= stat.size, "the end is a hole");
    }
}

fn run(content: &dyn Content, id: ContentId, step: &Step) -> Result<(Bytes, u64), ErrorKind> {
    let nothing = |()| (Bytes::new(), 0);
    kind(match *step {
        Step::Create => content.create(id).map(nothing),
        Step::Remove => content.remove(id).map(nothing),
        Step::Write(at, len, byte) => content.write(id, at, &vec![byte; len]).map(nothing),
        Step::Truncate(size) => content.truncate(id, size).map(nothing),
        Step::Punch(at, len) => content.punch(id, at, len).map(nothing),
        Step::Reserve(at, len, keep_size) => content.reserve(id, at, len, keep_size).map(nothing),
        // Within one file the ranges may not overlap: the caller sees to that.
        Step::Copy(to, ..) if IDS[to] == id => Ok(nothing(())),
        Step::Copy(to, from, at, len) => content.copy(id, from, IDS[to], at, len).map(|count| (Bytes::new(), count)),
        Step::Sync => content.sync(id).map(nothing),
        Step::Distrust => content.distrust(id).map(nothing),
        Step::Read(at, len) => content.read(id, at, len).map(|data| (data, 0)),
        Step::Seek(at, data) => {
            check_seek(content, id, at, data);
            Ok(nothing(()))
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]
    #[test]
    fn both_do_the_same(steps in prop::collection::vec((0..IDS.len(), step()), 1..60)) {
        let dir = tempfile::tempdir().unwrap();
        let files = FileContent::open_with_segments(&dir.path().join("content"), SMALL_SEGMENT).unwrap();
        let memory = MemoryContent::new();
        for (id, step) in steps {
            let id = IDS[id];
            // Nothing and no file at all: what a file system says of these is its own affair.
            if matches!(step, Step::Write(_, 0, _) | Step::Punch(_, 0) | Step::Reserve(_, 0, _)) && files.stat(id).is_err() {
                continue;
            }
            // Segments past the end would change the size.
            if let Step::Reserve(at, len, true) = step
                && files.stat(id).is_ok_and(|stat| at + len > stat.size.max(1).next_multiple_of(SMALL_SEGMENT))
                && at + len >= SMALL_SEGMENT
            {
                let before = files.stat(id).unwrap().size;
                prop_assert!(files.reserve(id, at, len, true).is_err() || len == 0);
                prop_assert_eq!(files.stat(id).unwrap().size, before);
                continue;
            }
            prop_assert_eq!(run(&files, id, &step), run(&memory, id, &step), "{:?}", step);
            let (ours, model) = (kind(files.stat(id)), kind(memory.stat(id)));
            prop_assert_eq!(ours.map(|stat| stat.size), model.map(|stat| stat.size));
            if let Ok(Some(cached)) = files.read_cached(id, 0, 20_000) {
                prop_assert_eq!(cached, memory.read(id, 0, 20_000).unwrap());
            }
        }
        let list = |content: &dyn Content| {
            let (mut found, mut strange) = (Vec::new(), Vec::new());
            content.list(&mut |id| found.push(id), &mut |name| strange.push(name)).unwrap();
            found.sort();
            (found, strange)
        };
        prop_assert_eq!(list(&files), list(&memory));
        // Another process sees the same.
        let reopened = FileContent::open_with_segments(&dir.path().join("content"), SMALL_SEGMENT).unwrap();
        for id in list(&memory).0 {
            prop_assert_eq!(reopened.read(id, 0, 40_000).unwrap(), memory.read(id, 0, 40_000).unwrap());
        }
    }
}

#[test]
fn what_does_not_belong_there_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let files = FileContent::open(dir.path()).unwrap();
    files.create(IDS[2]).unwrap();
    for path in ["stray", "12/stray", "12/34/stray", "12/34/123457.G", "12/34/0123456.9", "12/34/3.1"] {
        fs::write(dir.path().join(path), b"").unwrap();
    }
    fs::create_dir(dir.path().join("12/34/123456.a")).unwrap();
    let (mut found, mut strange) = (Vec::new(), Vec::new());
    files.list(&mut |id| found.push(id), &mut |name| strange.push(name)).unwrap();
    assert_eq!(found, [IDS[2]]);
    strange.sort();
    let expected =
        ["12/34/0123456.9", "12/34/123456.a", "12/34/123457.G", "12/34/3.1", "12/34/stray", "12/stray", "stray"];
    assert_eq!(strange, expected);
}

#[test]
fn more_files_than_are_kept_open_work() {
    let dir = tempfile::tempdir().unwrap();
    let files = FileContent::open(dir.path()).unwrap();
    let id = |vnode| ContentId { vnode, version: 1 };
    for vnode in 0..1100u64 {
        files.create(id(vnode)).unwrap();
        files.write(id(vnode), 0, &vnode.to_le_bytes()).unwrap();
    }
    for vnode in 0..1100u64 {
        assert_eq!(files.read(id(vnode), 0, 8).unwrap(), vnode.to_le_bytes().as_slice());
    }
}

#[test]
fn what_is_in_memory_is_read_without_waiting_and_ends_where_the_file_does() {
    let dir = tempfile::tempdir().unwrap();
    let files = FileContent::open(dir.path()).unwrap();
    files.create(IDS[0]).unwrap();
    files.write(IDS[0], 0, &[7; 10_000]).unwrap();
    if let Some(data) = files.read_cached(IDS[0], 4000, 20_000).unwrap() {
        assert_eq!(data, vec![7; 6000]);
    }
    assert_eq!(files.read_cached(IDS[1], 0, 1).unwrap_err().kind(), ErrorKind::NotFound);
    let space = files.space().unwrap();
    assert!(space.total >= space.free && space.free >= space.available && space.total > 0);
}
