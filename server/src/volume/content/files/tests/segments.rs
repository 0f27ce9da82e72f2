//! Content files of several segments: how far they reach, and what is on disk meanwhile.

use larder_protocol::limits::MAX_FILE_SIZE;

use super::*;

const ID: ContentId = IDS[0];
const BLOCK: u64 = 65_536;

fn small(dir: &tempfile::TempDir) -> FileContent {
    FileContent::open_with_segments(dir.path(), SMALL_SEGMENT).unwrap()
}

fn names(dir: &tempfile::TempDir) -> Vec<String> {
    let lower = dir.path().join("00/00");
    let mut names: Vec<String> =
        fs::read_dir(lower).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn reaches_the_largest_offset(content: &dyn Content) {
    let last = MAX_FILE_SIZE - 1;
    content.create(ID).unwrap();
    let places = [1 << 40, 1 << 50, 1 << 62, last];
    for place in places {
        content.write(ID, place, b"x").unwrap();
        assert_eq!(content.stat(ID).unwrap().size, place + 1);
    }
    content.sync(ID).unwrap();
    content.distrust(ID).unwrap();
    let mut at = 0;
    for place in places {
        assert_eq!(content.read(ID, place, 1).unwrap(), "x");
        let data = content.seek(ID, at, SeekWhat::Data).unwrap().unwrap();
        assert!(data <= place && place - data < BLOCK, "data at {data}, not {place}");
        at = (data / BLOCK + 1) * BLOCK;
    }
    assert_eq!(content.seek(ID, at, SeekWhat::Data).unwrap(), None);
    assert_eq!(content.seek(ID, last, SeekWhat::Hole).unwrap(), Some(MAX_FILE_SIZE));
    assert_eq!(content.seek(ID, 1 << 61, SeekWhat::Hole).unwrap(), Some(1 << 61));
    assert_eq!(content.read(ID, (1 << 61) + 5, 3).unwrap(), vec![0; 3]);
    // The last block would end one byte past the largest size.
    assert_eq!(content.read(ID, last / BLOCK * BLOCK, BLOCK as usize).unwrap().len() as u64, BLOCK - 1);
    assert_eq!(content.read(ID, u64::MAX, 10).unwrap(), "");
    for error in [
        content.write(ID, last, b"xy").unwrap_err(),
        content.truncate(ID, MAX_FILE_SIZE + 1).unwrap_err(),
        content.reserve(ID, last, 2, false).unwrap_err(),
    ] {
        assert_eq!(error.raw_os_error(), Some(Errno::FBIG.raw_os_error()));
    }
    // Copies go over holes of exbibytes at once.
    content.create(IDS[1]).unwrap();
    assert_eq!(content.copy(ID, 1, IDS[1], 1, u64::MAX).unwrap(), last);
    assert_eq!(content.stat(IDS[1]).unwrap().size, MAX_FILE_SIZE);
    for place in places {
        assert_eq!(content.read(IDS[1], place - 1, 2).unwrap()[1..], *b"x");
    }
    content.punch(ID, 1 << 50, u64::MAX).unwrap();
    assert_eq!(content.read(ID, last, 1).unwrap(), vec![0]);
    content.truncate(ID, 7).unwrap();
    content.truncate(ID, MAX_FILE_SIZE).unwrap();
    assert_eq!(content.stat(ID).unwrap().size, MAX_FILE_SIZE);
    assert_eq!(content.read(ID, 1 << 40, 1).unwrap(), vec![0]);
}

#[test]
fn on_disk_the_largest_offset_is_reached() {
    let dir = tempfile::tempdir().unwrap();
    let files = FileContent::open(dir.path()).unwrap();
    reaches_the_largest_offset(&files);
    let copied = |number: &str| format!("3.ffffffffffffffff{number}");
    let expected = ["3.1", "3.1.fffff"].map(str::to_owned).into_iter();
    let expected = expected.chain(["", ".80", ".80000", ".fffff"].map(copied));
    assert_eq!(names(&dir), expected.collect::<Vec<_>>());
}

#[test]
fn in_memory_the_largest_offset_is_reached() {
    reaches_the_largest_offset(&MemoryContent::new());
}

#[test]
fn all_but_the_last_are_full_or_missing() {
    let dir = tempfile::tempdir().unwrap();
    let files = small(&dir);
    let len = |name: &str| fs::metadata(dir.path().join("00/00").join(name)).unwrap().len();
    files.create(ID).unwrap();
    files.write(ID, 0, &[1; SMALL_SEGMENT as usize]).unwrap();
    assert_eq!(names(&dir), ["3.1"]);
    files.truncate(ID, 17 * SMALL_SEGMENT).unwrap();
    assert_eq!(names(&dir), ["3.1", "3.1.10"]);
    files.write(ID, 3 * SMALL_SEGMENT + 5, b"x").unwrap();
    files.write(ID, 18 * SMALL_SEGMENT + 5, b"x").unwrap();
    assert_eq!(names(&dir), ["3.1", "3.1.10", "3.1.12", "3.1.3"]);
    assert_eq!([len("3.1"), len("3.1.3"), len("3.1.10"), len("3.1.12")], [8192, 8192, 8192, 6]);
    // Another process finds the same.
    assert_eq!(small(&dir).stat(ID).unwrap(), files.stat(ID).unwrap());
    files.truncate(ID, 7 * SMALL_SEGMENT + 1).unwrap();
    assert_eq!(names(&dir), ["3.1", "3.1.3", "3.1.7"]);
    assert_eq!(len("3.1.7"), 1);
    files.truncate(ID, 4 * SMALL_SEGMENT).unwrap();
    assert_eq!(names(&dir), ["3.1", "3.1.3"]);
    files.sync(ID).unwrap();
    files.remove(ID).unwrap();
    files.sync_removals().unwrap();
    assert_eq!(names(&dir), Vec::<String>::new());
}

#[test]
fn what_a_power_cut_left_behind_a_short_first_segment_does_not_appear() {
    let dir = tempfile::tempdir().unwrap();
    let files = small(&dir);
    files.create(ID).unwrap();
    files.write(ID, 0, b"short").unwrap();
    fs::write(dir.path().join("00/00/3.1.1"), b"stale").unwrap();
    let files = small(&dir);
    assert_eq!(files.stat(ID).unwrap().size, 5);
    files.truncate(ID, 2 * SMALL_SEGMENT).unwrap();
    assert_eq!(files.read(ID, SMALL_SEGMENT, 10).unwrap(), vec![0; 10]);
}

#[test]
fn what_a_short_segment_before_the_last_lacks_is_a_hole() {
    let dir = tempfile::tempdir().unwrap();
    let files = small(&dir);
    files.create(ID).unwrap();
    files.truncate(ID, 3 * SMALL_SEGMENT).unwrap();
    fs::write(dir.path().join("00/00/3.1.1"), b"short").unwrap();
    let files = small(&dir);
    assert_eq!(files.read(ID, SMALL_SEGMENT, 8).unwrap(), b"short\0\0\0".as_slice());
    files.create(IDS[1]).unwrap();
    assert_eq!(files.copy(ID, 0, IDS[1], 1, u64::MAX).unwrap(), 3 * SMALL_SEGMENT);
    assert_eq!(files.read(IDS[1], SMALL_SEGMENT + 1, 8).unwrap(), b"short\0\0\0".as_slice());
    files.truncate(ID, 2 * SMALL_SEGMENT).unwrap();
    assert_eq!(files.stat(ID).unwrap().size, 2 * SMALL_SEGMENT);
}

#[test]
fn segments_are_listed_once_and_strange_without_their_first() {
    let dir = tempfile::tempdir().unwrap();
    let files = small(&dir);
    files.create(ID).unwrap();
    files.truncate(ID, 2 * SMALL_SEGMENT).unwrap();
    for name in ["3.1.0", "3.1.01", "3.1.1.1", "3.2.1"] {
        fs::write(dir.path().join("00/00").join(name), b"").unwrap();
    }
    let (mut found, mut strange) = (Vec::new(), Vec::new());
    files.list(&mut |id| found.push(id), &mut |name| strange.push(name)).unwrap();
    assert_eq!(found, [ID]);
    assert_eq!(strange, ["00/00/3.1.0", "00/00/3.1.01", "00/00/3.1.1.1", "00/00/3.2.1"]);
}

#[test]
fn removals_where_nothing_ever_was_can_be_synced() {
    let dir = tempfile::tempdir().unwrap();
    let files = small(&dir);
    files.remove(ID).unwrap();
    files.sync_removals().unwrap();
    files.create(ID).unwrap();
    files.remove(ID).unwrap();
    files.sync_removals().unwrap();
    assert_eq!(files.stat(ID).unwrap_err().kind(), ErrorKind::NotFound);
}
