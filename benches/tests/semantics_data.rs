//! What programs may rely on about the contents of files, in each mode.
#![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

use std::ffi::CString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use larder_benches::mount::{Mode, Mount};
use larder_benches::on_a_mount_of_each_mode;
use rustix::fs::{FallocateFlags, SeekFrom, copy_file_range, fallocate, seek};
use rustix::io::Errno;
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};

on_a_mount_of_each_mode![
    what_is_written_is_read_back_at_every_size,
    what_is_being_written_in_parts_is_read_back,
    holes_read_as_zeros_and_take_no_space,
    seek_finds_data_and_holes,
    offsets_reach_eight_exbibytes,
    truncate_cuts_and_extends_with_zeros,
    truncate_by_name_shows_in_the_contents,
    an_open_file_keeps_its_number_when_only_its_attributes_change,
    holes_stay_holes,
    punched_ranges_read_as_zeros,
    fallocate_extends_unless_told_not_to,
    append_goes_to_the_end_whatever_the_offset,
    copy_file_range_copies,
    shared_mappings_reach_the_file,
    private_mappings_do_not_reach_the_file,
    a_removed_open_file_lives_until_it_is_closed,
    a_replaced_open_file_keeps_its_old_contents,
    o_trunc_empties_and_o_excl_refuses,
];

fn read_write(mount: &Mount, name: &str) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(mount.at(name)).unwrap()
}

/// Bytes that depend on their place, so that a misplaced one shows.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn what_is_written_is_read_back_at_every_size(mount: &Mount) {
    // Around the inline limit, the checksum block, the page, the largest request.
    for size in [0, 1, 4095, 4097, 16383, 16384, 16385, 65535, 65537, 1 << 20, (1 << 20) + 1, 5_000_011] {
        let (path, bytes) = (mount.at(format!("of-{size}")), pattern(size));
        fs::write(&path, &bytes).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), size as u64);
        assert!(fs::read(&path).unwrap() == bytes, "{size} bytes come back changed");
    }
}

fn what_is_being_written_in_parts_is_read_back(mount: &Mount) {
    let data = pattern(20_000);
    let file = read_write(mount, "parts");
    let mut model: Vec<u8> = Vec::new();
    // As linkers do: here and there, with looks at what is around.
    for (at, len) in [(9000, 500), (64, 100), (0, 64), (15_000, 5000), (300, 200), (4000, 300), (0, 64)] {
        file.write_all_at(&data[at..at + len], at as u64).unwrap();
        model.resize(model.len().max(at + len), 0);
        model[at..at + len].copy_from_slice(&data[at..at + len]);
        let mut seen = vec![1; model.len()];
        file.read_exact_at(&mut seen, 0).unwrap();
        assert!(seen == model, "after {len} bytes at {at}");
    }
    drop(file);
    assert!(fs::read(mount.at("parts")).unwrap() == model);
    // What the server has is around what is here.
    let file = read_write(mount, "parts");
    file.write_all_at(b"new", 10_001).unwrap();
    model[10_001..10_004].copy_from_slice(b"new");
    let mut seen = vec![1; model.len()];
    file.read_exact_at(&mut seen, 0).unwrap();
    assert!(seen == model);
}

fn holes_read_as_zeros_and_take_no_space(mount: &Mount) {
    let file = read_write(mount, "sparse");
    file.write_all_at(b"begin", 0).unwrap();
    file.write_all_at(b"end", 1 << 30).unwrap();
    file.sync_all().unwrap();
    let mut middle = [1; 4096];
    file.read_exact_at(&mut middle, 1 << 29).unwrap();
    assert_eq!(middle, [0; 4096]);
    let info = fs::metadata(mount.at("sparse")).unwrap();
    assert_eq!(info.len(), (1 << 30) + 3);
    assert!(info.blocks() * 512 < 1 << 20, "a hole of 1 GiB takes {} blocks", info.blocks());
}

fn seek_finds_data_and_holes(mount: &Mount) {
    let file = read_write(mount, "seek");
    let (mib, data) = (1 << 20, pattern(1 << 20));
    file.write_all_at(&data, 4 * mib).unwrap();
    file.set_len(16 * mib).unwrap();
    file.sync_all().unwrap();
    assert_eq!(seek(&file, SeekFrom::Data(0)), Ok(4 * mib));
    assert_eq!(seek(&file, SeekFrom::Hole(4 * mib)), Ok(5 * mib));
    assert_eq!(seek(&file, SeekFrom::Hole(0)), Ok(0));
    assert_eq!(seek(&file, SeekFrom::Data(6 * mib)), Err(Errno::NXIO));
    assert_eq!(seek(&file, SeekFrom::Data(16 * mib)), Err(Errno::NXIO));
}

fn offsets_reach_eight_exbibytes(mount: &Mount) {
    let file = read_write(mount, "huge");
    let last = i64::MAX as u64 - 1;
    if mount.mode() == Mode::Afs {
        // As far as the file system that has the cache allows, which may be 16 TiB.
        file.write_all_at(b"x", 1 << 40).unwrap();
        if let Err(error) = file.write_all_at(b"x", last) {
            assert_eq!(error.kind(), ErrorKind::FileTooLarge);
        } else {
            file.set_len((1 << 40) + 1).unwrap();
        }
        drop(file);
        let file = File::open(mount.at("huge")).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, 1 << 40).unwrap();
        assert_eq!((&byte, file.metadata().unwrap().len()), (b"x", (1 << 40) + 1));
        return;
    }
    for offset in [1 << 40, 1 << 50, 1 << 62, last] {
        file.write_all_at(b"x", offset).unwrap_or_else(|error| panic!("writing at {offset}: {error}"));
    }
    file.sync_all().unwrap();
    assert_eq!(fs::metadata(mount.at("huge")).unwrap().len(), i64::MAX as u64);
    let mut byte = [0];
    for offset in [1 << 40, 1 << 50, 1 << 62, last] {
        file.read_exact_at(&mut byte, offset).unwrap();
        assert_eq!(&byte, b"x", "at {offset}");
    }
    file.read_exact_at(&mut byte, (1 << 61) + 5).unwrap();
    assert_eq!(byte, [0]);
}

fn truncate_cuts_and_extends_with_zeros(mount: &Mount) {
    let (file, bytes) = (read_write(mount, "cut"), pattern(100_000));
    file.write_all_at(&bytes, 0).unwrap();
    file.set_len(70_001).unwrap();
    file.set_len(100_000).unwrap();
    drop(file);
    let now = fs::read(mount.at("cut")).unwrap();
    assert!(now[..70_001] == bytes[..70_001] && now[70_001..].iter().all(|b| *b == 0) && now.len() == 100_000);
}

fn truncate_by_name_shows_in_the_contents(mount: &Mount) {
    let path = mount.at("cut-by-name");
    let bytes = pattern(10_000);
    fs::write(&path, &bytes).unwrap();
    for size in [4_000, 7_000] {
        truncate(&path, size);
        let now = fs::read(&path).unwrap();
        assert_eq!(now.len() as u64, size);
        assert!(now[..4_000] == bytes[..4_000] && now[4_000..].iter().all(|byte| *byte == 0), "cut to {size}");
    }
}

/// As truncate(2), which opens nothing.
fn truncate(path: &Path, size: u64) {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: `path` is a string that ends with a zero byte, and nothing is kept of it.
    let done = unsafe { libc::truncate(path.as_ptr(), size.cast_signed()) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

fn an_open_file_keeps_its_number_when_only_its_attributes_change(mount: &Mount) {
    let (path, link) = (mount.at("numbered"), mount.at("numbered-link"));
    fs::write(&path, "text").unwrap();
    let open = File::open(&path).unwrap();
    let number = open.metadata().unwrap().ino();
    fs::hard_link(&path, &link).unwrap();
    fs::set_permissions(&link, Permissions::from_mode(0o600)).unwrap();
    open.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(1)).unwrap();
    let again = File::open(&link).unwrap();
    for seen in [fs::metadata(&path), fs::metadata(&link), again.metadata(), open.metadata()].map(Result::unwrap) {
        assert_eq!((seen.ino(), seen.nlink(), seen.mode() & 0o777, seen.mtime()), (number, 2, 0o600, 1));
    }
}

fn holes_stay_holes(mount: &Mount) {
    let file = read_write(mount, "holes");
    file.set_len(40 << 20).unwrap();
    file.write_all_at(b"some data", 20 << 20).unwrap();
    drop(file);
    let blocks = fs::metadata(mount.at("holes")).unwrap().blocks();
    assert!((1..200).contains(&blocks), "{blocks} blocks");
}

fn punched_ranges_read_as_zeros(mount: &Mount) {
    let (file, bytes) = (read_write(mount, "punched"), pattern(1 << 20));
    file.write_all_at(&bytes, 0).unwrap();
    fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 1000, 500_000).unwrap();
    drop(file);
    let now = fs::read(mount.at("punched")).unwrap();
    assert!(now[..1000] == bytes[..1000] && now[501_000..] == bytes[501_000..]);
    assert!(now[1000..501_000].iter().all(|b| *b == 0));
}

fn fallocate_extends_unless_told_not_to(mount: &Mount) {
    let file = read_write(mount, "reserved");
    fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 1 << 20).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 0);
    fallocate(&file, FallocateFlags::empty(), 0, 1 << 20).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 1 << 20);
    fallocate(&file, FallocateFlags::ZERO_RANGE, 1 << 20, 1 << 20).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 2 << 20);
}

fn append_goes_to_the_end_whatever_the_offset(mount: &Mount) {
    let path = mount.at("log");
    fs::write(&path, "first\n").unwrap();
    let mut log = OpenOptions::new().append(true).read(true).open(&path).unwrap();
    log.rewind().unwrap();
    log.write_all(b"second\n").unwrap();
    // Another handle moves the end meanwhile.
    OpenOptions::new().append(true).open(&path).unwrap().write_all(b"third\n").unwrap();
    log.write_all(b"fourth\n").unwrap();
    let mut text = String::new();
    log.rewind().unwrap();
    log.read_to_string(&mut text).unwrap();
    assert_eq!(text, "first\nsecond\nthird\nfourth\n");
}

fn copy_file_range_copies(mount: &Mount) {
    let (from, to, bytes) = (read_write(mount, "from"), read_write(mount, "to"), pattern(3 << 20));
    from.write_all_at(&bytes, 0).unwrap();
    let (mut at, mut into, end) = (77, 11, bytes.len() as u64);
    while at < end {
        let rest = (end - at) as usize;
        let copied = copy_file_range(&from, Some(&mut at), &to, Some(&mut into), rest).unwrap();
        assert!(copied > 0, "nothing more is copied at {at} of {end}");
    }
    drop(to);
    let now = fs::read(mount.at("to")).unwrap();
    assert!(now[..11] == [0; 11] && now[11..] == bytes[77..]);
}

/// Maps the first `len` bytes of `file`, lets `work` change them, and unmaps.
fn with_mapping(file: &File, len: usize, flags: MapFlags, work: impl FnOnce(&mut [u8])) {
    // SAFETY: a fresh mapping at an address of the kernel's choice; it lives until the `munmap` below, no other
    // reference to it exists, and the file (which nobody shrinks meanwhile) is at least `len` bytes long.
    unsafe {
        let address = mmap(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, flags, file, 0).unwrap();
        work(std::slice::from_raw_parts_mut(address.cast(), len));
        msync(address, len, MsyncFlags::SYNC).unwrap();
        munmap(address, len).unwrap();
    }
}

fn shared_mappings_reach_the_file(mount: &Mount) {
    let (file, bytes) = (read_write(mount, "shared"), pattern(300_000));
    file.write_all_at(&bytes, 0).unwrap();
    with_mapping(&file, bytes.len(), MapFlags::SHARED, |map| {
        assert!(map == bytes, "the mapping shows what was written");
        map[123_456..123_466].copy_from_slice(b"by mapping");
    });
    drop(file);
    assert_eq!(&fs::read(mount.at("shared")).unwrap()[123_456..123_466], b"by mapping");
}

fn private_mappings_do_not_reach_the_file(mount: &Mount) {
    let (file, bytes) = (read_write(mount, "private"), pattern(300_000));
    file.write_all_at(&bytes, 0).unwrap();
    with_mapping(&file, bytes.len(), MapFlags::PRIVATE, |map| {
        assert!(map == bytes, "the mapping shows what was written");
        map.fill(7);
    });
    drop(file);
    assert!(fs::read(mount.at("private")).unwrap() == bytes);
}

fn a_removed_open_file_lives_until_it_is_closed(mount: &Mount) {
    let (file, bytes) = (read_write(mount, "doomed"), pattern(200_000));
    file.write_all_at(&bytes, 0).unwrap();
    fs::remove_file(mount.at("doomed")).unwrap();
    assert_eq!(fs::metadata(mount.at("doomed")).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(fs::read_dir(mount.path()).unwrap().count(), 0, "no other name stands in for it");
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    file.write_all_at(b"still", 200_000).unwrap();
    let mut now = vec![0; 200_005];
    file.read_exact_at(&mut now, 0).unwrap();
    assert!(now[..200_000] == bytes && &now[200_000..] == b"still");
}

fn a_replaced_open_file_keeps_its_old_contents(mount: &Mount) {
    fs::write(mount.at("target"), "old").unwrap();
    fs::write(mount.at("source"), "new").unwrap();
    let mut old = File::open(mount.at("target")).unwrap();
    fs::rename(mount.at("source"), mount.at("target")).unwrap();
    let mut text = String::new();
    old.read_to_string(&mut text).unwrap();
    assert_eq!(text, "old");
    assert_eq!(fs::read_to_string(mount.at("target")).unwrap(), "new");
}

fn o_trunc_empties_and_o_excl_refuses(mount: &Mount) {
    let path = mount.at("file");
    fs::write(&path, pattern(50_000)).unwrap();
    File::create(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    assert_eq!(File::create_new(&path).unwrap_err().kind(), ErrorKind::AlreadyExists);
    File::create_new(mount.at("other")).unwrap();
}
