//! Names in afs mode: the kernel keeps them where it can be told to look all of them up again, and is given none to keep
//! where it cannot, or where it would detach what is mounted inside.
#![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

use std::fs;
use std::path::{Path, PathBuf};

use larder_benches::mount::{Mode, Mount, Pair};
use larder_benches::size::Size;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// A tmpfs, unmounted when dropped.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn new(at: &Path) -> Tmpfs {
        mount("larder-test", at, "tmpfs", MountFlags::empty(), None).unwrap();
        Tmpfs(at.to_owned())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// Names that one makes and removes are there and gone for the other at once.
fn names_are_fresh(a: &Mount, b: &Mount) {
    for round in 0..Size::get().pick(30, 200, 1_000) {
        let name = format!("dir/name-{}", round % 3);
        let (maker, looker) = if round % 2 == 0 { (a, b) } else { (b, a) };
        assert!(!looker.at(&name).exists(), "round {round}: it is there before it is made");
        fs::write(maker.at(&name), "text").unwrap();
        assert_eq!(fs::read_to_string(looker.at(&name)).unwrap(), "text", "round {round}");
        fs::remove_file(maker.at(&name)).unwrap();
        assert!(!looker.at(&name).exists(), "round {round}: it is there after it was removed");
    }
}

#[test]
fn names_are_fresh_where_the_kernel_keeps_them() {
    let pair = Pair::new(Mode::Afs, "").unwrap();
    fs::create_dir(pair.a.at("dir")).unwrap();
    names_are_fresh(&pair.a, &pair.b);
}

#[test]
fn names_are_fresh_where_the_kernel_keeps_none() {
    let pair = Pair::new(Mode::Afs, "lookupcache=none").unwrap();
    fs::create_dir(pair.a.at("dir")).unwrap();
    names_are_fresh(&pair.a, &pair.b);
}

#[test]
fn what_is_mounted_inside_stays_while_names_change_around_it() {
    let pair = Pair::new(Mode::Afs, "").unwrap();
    for dir in ["dir", "inside", "inside/below"] {
        fs::create_dir(pair.a.at(dir)).unwrap();
    }
    names_are_fresh(&pair.a, &pair.b);
    let tmpfs = Tmpfs::new(&pair.b.at("inside/below"));
    fs::write(tmpfs.0.join("of-tmpfs"), "text").unwrap();
    names_are_fresh(&pair.a, &pair.b);
    fs::write(pair.a.at("inside/beside"), "text").unwrap();
    fs::rename(pair.a.at("dir"), pair.a.at("moved")).unwrap();
    assert_eq!(fs::read_to_string(pair.b.at("inside/below/of-tmpfs")).unwrap(), "text");
    assert_eq!(fs::read_to_string(pair.b.at("inside/beside")).unwrap(), "text");
    assert!(!pair.b.at("dir").exists() && pair.b.at("moved").exists());
    drop(tmpfs);
    fs::rename(pair.a.at("moved"), pair.a.at("dir")).unwrap();
    names_are_fresh(&pair.a, &pair.b);
}
