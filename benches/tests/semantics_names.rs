//! What programs may rely on about names, links and directories, in each mode.
#![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::PathBuf;

use larder_benches::mount::Mount;
use larder_benches::on_a_mount_of_each_mode;
use larder_benches::size::Size;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, linkat, mkdirat, mknodat, openat, renameat_with};
use rustix::io::Errno;

on_a_mount_of_each_mode![
    names_hold_255_bytes_of_any_kind,
    paths_reach_4096_bytes_and_deeper_trees_work,
    large_directories_list_each_name_once,
    listing_survives_removal_of_what_was_listed,
    hard_links_share_one_file,
    symbolic_links_keep_any_target,
    rename_replaces_and_moves_trees,
    rename_noreplace_and_exchange,
    a_directory_cannot_move_below_itself,
    fifos_sockets_and_devices_keep_their_type,
    directory_link_counts_follow_subdirectories,
    only_empty_directories_are_removed,
];

fn names(dir: PathBuf) -> Vec<OsString> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect()
}

fn names_hold_255_bytes_of_any_kind(mount: &Mount) {
    let all: Vec<u8> = (1..=255).filter(|b| *b != b'/').collect();
    let mut made = BTreeSet::new();
    for name in [all, vec![0xff; 255], b"new\nline".to_vec(), "größe 日本".as_bytes().to_vec(), b"...".to_vec()] {
        let name = OsString::from_vec(name);
        fs::write(mount.at(&name), name.as_bytes()).unwrap();
        assert_eq!(fs::read(mount.at(&name)).unwrap(), name.as_bytes());
        made.insert(name);
    }
    assert_eq!(names(mount.path().to_owned()).into_iter().collect::<BTreeSet<_>>(), made);
    let long = OsString::from_vec(vec![b'n'; 256]);
    assert_eq!(File::create(mount.at(long)).unwrap_err().raw_os_error(), Some(Errno::NAMETOOLONG.raw_os_error()));
}

fn paths_reach_4096_bytes_and_deeper_trees_work(mount: &Mount) {
    // One system call takes 4,095 bytes and a terminator; a tree may be deeper than that.
    let part = "d".repeat(200);
    let mut dir = openat(CWD, mount.path(), OFlags::DIRECTORY | OFlags::PATH, Mode::empty()).unwrap();
    let mut path = mount.path().to_owned();
    for _ in 0..40 {
        mkdirat(&dir, part.as_str(), Mode::RWXU).unwrap();
        dir = openat(&dir, part.as_str(), OFlags::DIRECTORY | OFlags::PATH, Mode::empty()).unwrap();
        path.push(&part);
    }
    openat(&dir, "leaf", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU).unwrap();
    openat(&dir, "leaf", OFlags::RDONLY, Mode::empty()).unwrap();
    assert!(path.as_os_str().len() > 8000);
    assert_eq!(fs::metadata(&path).unwrap_err().raw_os_error(), Some(Errno::NAMETOOLONG.raw_os_error()));
    let longest = OsStr::from_bytes(&path.as_os_str().as_bytes()[..4095]);
    let parent = longest.as_bytes().iter().rposition(|b| *b == b'/').unwrap();
    let parent = OsStr::from_bytes(&longest.as_bytes()[..parent]);
    assert!(fs::metadata(parent).unwrap().is_dir(), "a path of {} bytes", parent.len());
    fs::remove_dir_all(mount.at(&part)).unwrap();
}

fn large_directories_list_each_name_once(mount: &Mount) {
    let count = Size::get().pick(2_000, 5_000, 1_000_000);
    fs::create_dir(mount.at("many")).unwrap();
    for i in 0..count {
        File::create_new(mount.at(format!("many/file-{i:07}"))).unwrap();
    }
    let listed = names(mount.at("many"));
    let distinct: BTreeSet<_> = listed.iter().collect();
    assert_eq!((listed.len(), distinct.len()), (count, count));
    assert!(mount.at(format!("many/file-{:07}", count / 2)).exists());
}

fn listing_survives_removal_of_what_was_listed(mount: &Mount) {
    let count = 5_000;
    fs::create_dir(mount.at("shrinking")).unwrap();
    for i in 0..count {
        File::create_new(mount.at(format!("shrinking/{i}"))).unwrap();
    }
    // As `rm -r` does: removing while the listing goes on must skip no name.
    let mut removed = 0;
    for entry in fs::read_dir(mount.at("shrinking")).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
        removed += 1;
    }
    assert_eq!(removed, count);
    fs::remove_dir(mount.at("shrinking")).unwrap();
}

fn hard_links_share_one_file(mount: &Mount) {
    fs::write(mount.at("one"), "a").unwrap();
    fs::create_dir(mount.at("dir")).unwrap();
    fs::hard_link(mount.at("one"), mount.at("dir/two")).unwrap();
    let (one, two) = (fs::metadata(mount.at("one")).unwrap(), fs::metadata(mount.at("dir/two")).unwrap());
    assert_eq!((one.ino(), one.nlink()), (two.ino(), 2));
    fs::write(mount.at("dir/two"), "b").unwrap();
    assert_eq!(fs::read_to_string(mount.at("one")).unwrap(), "b");
    fs::remove_file(mount.at("one")).unwrap();
    assert_eq!(fs::metadata(mount.at("dir/two")).unwrap().nlink(), 1);
    assert_eq!(
        linkat(CWD, mount.at("dir"), CWD, mount.at("dir2"), AtFlags::empty()),
        Err(Errno::PERM),
        "directories have one name"
    );
}

fn symbolic_links_keep_any_target(mount: &Mount) {
    let long = "t".repeat(4095);
    for (name, target) in [("a", "nowhere"), ("b", long.as_str()), ("c", "/etc/hostname"), ("d", "../.././x\n")] {
        symlink(target, mount.at(name)).unwrap();
        assert_eq!(fs::read_link(mount.at(name)).unwrap(), PathBuf::from(target));
        assert_eq!(fs::symlink_metadata(mount.at(name)).unwrap().len(), target.len() as u64);
    }
    fs::create_dir(mount.at("dir")).unwrap();
    fs::write(mount.at("dir/file"), "through").unwrap();
    symlink("dir", mount.at("link")).unwrap();
    assert_eq!(fs::read_to_string(mount.at("link/file")).unwrap(), "through");
    symlink("loop", mount.at("loop")).unwrap();
    assert_eq!(fs::metadata(mount.at("loop")).unwrap_err().raw_os_error(), Some(Errno::LOOP.raw_os_error()));
}

fn rename_replaces_and_moves_trees(mount: &Mount) {
    fs::create_dir_all(mount.at("from/deep/er")).unwrap();
    fs::write(mount.at("from/deep/er/file"), "moved").unwrap();
    fs::create_dir(mount.at("to")).unwrap();
    fs::rename(mount.at("from/deep"), mount.at("to/deep")).unwrap();
    assert_eq!(fs::read_to_string(mount.at("to/deep/er/file")).unwrap(), "moved");
    assert!(names(mount.at("from")).is_empty());
    // An empty directory may be replaced, one with entries may not.
    fs::create_dir(mount.at("empty")).unwrap();
    fs::rename(mount.at("from"), mount.at("empty")).unwrap();
    assert_eq!(fs::rename(mount.at("empty"), mount.at("to")).unwrap_err().kind(), ErrorKind::DirectoryNotEmpty);
    let parent = fs::metadata(mount.at("to/deep/..")).unwrap().ino();
    assert_eq!(parent, fs::metadata(mount.at("to")).unwrap().ino());
}

fn rename_noreplace_and_exchange(mount: &Mount) {
    fs::write(mount.at("a"), "a").unwrap();
    fs::create_dir(mount.at("b")).unwrap();
    let rename = |from: &str, to: &str, how| renameat_with(CWD, mount.at(from), CWD, mount.at(to), how);
    assert_eq!(rename("a", "b", RenameFlags::NOREPLACE), Err(Errno::EXIST));
    assert_eq!(rename("a", "c", RenameFlags::EXCHANGE), Err(Errno::NOENT));
    rename("a", "b", RenameFlags::EXCHANGE).unwrap();
    assert!(fs::metadata(mount.at("a")).unwrap().is_dir());
    assert_eq!(fs::read_to_string(mount.at("b")).unwrap(), "a");
    rename("b", "c", RenameFlags::NOREPLACE).unwrap();
    assert_eq!(fs::read_to_string(mount.at("c")).unwrap(), "a");
}

fn a_directory_cannot_move_below_itself(mount: &Mount) {
    fs::create_dir_all(mount.at("up/down")).unwrap();
    let error = fs::rename(mount.at("up"), mount.at("up/down/under")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::INVAL.raw_os_error()));
}

fn fifos_sockets_and_devices_keep_their_type(mount: &Mount) {
    // Device 1:5 is /dev/zero; device numbers are in the encoding of makedev(3).
    let zero = rustix::fs::makedev(1, 5);
    for (name, kind, device) in [
        ("fifo", FileType::Fifo, 0),
        ("socket", FileType::Socket, 0),
        ("char", FileType::CharacterDevice, zero),
        ("block", FileType::BlockDevice, rustix::fs::makedev(259, 70_000)),
    ] {
        mknodat(CWD, mount.at(name), kind, Mode::RUSR, device).unwrap();
        assert_eq!(fs::metadata(mount.at(name)).unwrap().rdev(), device, "{name}");
    }
    assert!(fs::metadata(mount.at("fifo")).unwrap().file_type().is_fifo());
    assert!(fs::metadata(mount.at("socket")).unwrap().file_type().is_socket());
    assert!(fs::metadata(mount.at("char")).unwrap().file_type().is_char_device());
    assert!(fs::metadata(mount.at("block")).unwrap().file_type().is_block_device());
}

fn directory_link_counts_follow_subdirectories(mount: &Mount) {
    let links = || fs::metadata(mount.at("d")).unwrap().nlink();
    fs::create_dir(mount.at("d")).unwrap();
    assert_eq!(links(), 2);
    fs::create_dir(mount.at("d/a")).unwrap();
    fs::create_dir(mount.at("d/b")).unwrap();
    fs::write(mount.at("d/file"), "").unwrap();
    assert_eq!(links(), 4);
    fs::rename(mount.at("d/a"), mount.at("a")).unwrap();
    fs::remove_dir(mount.at("d/b")).unwrap();
    assert_eq!(links(), 2);
}

fn only_empty_directories_are_removed(mount: &Mount) {
    fs::create_dir(mount.at("d")).unwrap();
    fs::write(mount.at("d/file"), "").unwrap();
    assert_eq!(fs::remove_dir(mount.at("d")).unwrap_err().kind(), ErrorKind::DirectoryNotEmpty);
    assert_eq!(fs::remove_dir(mount.at("d/file")).unwrap_err().kind(), ErrorKind::NotADirectory);
    assert_eq!(fs::remove_file(mount.at("d")).unwrap_err().kind(), ErrorKind::IsADirectory);
    fs::remove_file(mount.at("d/file")).unwrap();
    fs::remove_dir(mount.at("d")).unwrap();
}
