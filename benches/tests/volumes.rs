//! Volumes as an administrator and programs see them: made, mounted in the tree, crossed, filled to their quota, taken away and
//! brought back.
#![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use larder_benches::cell::Cell;
use larder_benches::mount::{Mode, Mount, wait_until};
use larder_benches::process::{binary, run};
use rustix::io::Errno;
use serde_json::Value;

fn errno<T>(result: std::io::Result<T>) -> Option<Errno> {
    result.err().and_then(|error| error.raw_os_error()).map(Errno::from_raw_os_error)
}

fn in_each_mode(promise: impl Fn(Cell)) {
    for mode in Mode::ALL {
        println!("in {} mode", mode.name());
        promise(Cell::new(mode).unwrap());
    }
}

#[test]
fn a_volume_appears_where_it_is_mounted_and_is_crossed_like_a_directory() {
    in_each_mode(|cell| {
        cell.add("home", &[]).unwrap();
        let home = cell.mount.at("home");
        assert!(home.metadata().unwrap().is_dir());
        fs::create_dir(home.join("anna")).unwrap();
        fs::write(home.join("anna/letter"), "dear").unwrap();
        assert_eq!(fs::read_to_string(home.join("anna/../../home/anna/letter")).unwrap(), "dear");
        assert_eq!(cell.show("home").unwrap()["files"], 3, "the root directory, a directory and a file");
        assert_eq!(cell.show("root").unwrap()["files"], 2, "the root directory and the mount point");
        // Numbers are those of one file system.
        let numbers: BTreeSet<u64> =
            [cell.mount.path().to_owned(), home.clone(), home.join("anna"), home.join("anna/letter")]
                .iter()
                .map(|path| path.metadata().unwrap().ino())
                .collect();
        assert_eq!(numbers.len(), 4);
        // A listing shows it as a directory.
        let mut listed = fs::read_dir(cell.mount.path()).unwrap().map(Result::unwrap);
        assert!(listed.any(|entry| entry.file_name() == "home" && entry.file_type().unwrap().is_dir()));
        drop(listed);
        // Another client crosses it, too.
        let other = Mount::new(cell.dir.path(), "other", &cell.server, Mode::Direct, "").unwrap();
        assert_eq!(fs::read_to_string(other.at("home/anna/letter")).unwrap(), "dear");
        other.close(false).unwrap();
        cell.end().unwrap();
    });
}

#[test]
fn what_a_volume_refuses_at_first_costs_nothing_elsewhere() {
    in_each_mode(|cell| {
        cell.add("home", &[]).unwrap();
        let home = cell.mount.at("home");
        // Open here, and without a name: it is there for as long as this client lives.
        let kept = cell.mount.at("kept");
        fs::write(&kept, "kept").unwrap();
        let mut open = File::options().read(true).write(true).open(&kept).unwrap();
        fs::remove_file(&kept).unwrap();
        fs::write(cell.mount.at("beside"), "").unwrap();
        // The first that a volume is asked for is refused, for this reason and that.
        assert_eq!(errno(fs::hard_link(cell.mount.at("beside"), home.join("linked"))), Some(Errno::XDEV));
        cell.larder(&["volume", "offline", "home"]).unwrap();
        assert_eq!(errno(fs::create_dir(home.join("dir"))), Some(Errno::NOMEDIUM));
        cell.larder(&["volume", "online", "home"]).unwrap();
        fs::create_dir(home.join("dir")).unwrap();
        fs::write(home.join("dir/file"), "x").unwrap();
        open.write_all(b"more").unwrap();
        open.sync_all().unwrap();
        let mut seen = [0; 4];
        open.read_exact_at(&mut seen, 0).unwrap();
        assert_eq!(&seen, b"more");
        drop(open);
        cell.end().unwrap();
    });
}

#[test]
fn a_mount_point_appears_where_nothing_was_seen_before() {
    in_each_mode(|cell| {
        cell.larder(&["volume", "create", "home"]).unwrap();
        let home = cell.mount.at("home");
        assert!(!home.exists());
        cell.larder(&["mountpoint", "add", home.to_str().unwrap(), "home"]).unwrap();
        wait_until("the volume appears", || home.exists());
        // Volumes that others are mounted in stay.
        cell.larder(&["volume", "create", "inner"]).unwrap();
        cell.larder(&["mountpoint", "add", home.join("inner").to_str().unwrap(), "inner"]).unwrap();
        cell.larder(&["mountpoint", "remove", home.to_str().unwrap()]).unwrap();
        wait_until("the mount point is gone", || !home.exists());
        assert!(cell.refused(&["volume", "delete", "home"]).unwrap().contains("inner"));
        assert!(cell.refused(&["volume", "rename", "root", "other"]).unwrap().contains("root"));
        cell.end().unwrap();
    });
}

#[test]
fn a_mount_point_is_busy_and_names_do_not_cross_it() {
    in_each_mode(|cell| {
        cell.add("home", &[]).unwrap();
        let (home, beside) = (cell.mount.at("home"), cell.mount.at("beside"));
        fs::write(home.join("file"), "x").unwrap();
        fs::write(&beside, "y").unwrap();
        assert_eq!(errno(fs::rename(&beside, home.join("moved"))), Some(Errno::XDEV));
        assert_eq!(errno(fs::rename(home.join("file"), cell.mount.at("moved"))), Some(Errno::XDEV));
        assert_eq!(errno(fs::hard_link(&beside, home.join("linked"))), Some(Errno::XDEV));
        assert_eq!(errno(fs::remove_dir(&home)), Some(Errno::BUSY));
        assert_eq!(errno(fs::rename(&home, cell.mount.at("elsewhere"))), Some(Errno::BUSY));
        assert_eq!(errno(fs::create_dir(&home)), Some(Errno::EXIST));
        // What moves between file systems copies.
        run(Command::new("mv").arg(&beside).arg(home.join("moved"))).unwrap();
        assert_eq!(fs::read_to_string(home.join("moved")).unwrap(), "y");
        cell.end().unwrap();
    });
}

#[test]
fn a_mount_point_that_is_removed_leaves_the_volume() {
    in_each_mode(|cell| {
        cell.add("home", &[]).unwrap();
        let home = cell.mount.at("home");
        fs::write(home.join("file"), "kept").unwrap();
        assert_eq!(cell.larder(&["mountpoint", "show", home.to_str().unwrap()]).unwrap().trim(), "2");
        let told = cell.refused(&["volume", "delete", "home"]).unwrap();
        assert!(told.contains("mountpoint remove"), "{told}");
        let told = cell.refused(&["mountpoint", "add", cell.mount.at("twice").to_str().unwrap(), "home"]).unwrap();
        assert!(told.contains("one place"), "{told}");
        assert!(!cell.mount.at("twice").exists(), "what was refused leaves nothing");
        cell.larder(&["mountpoint", "remove", home.to_str().unwrap()]).unwrap();
        wait_until("the mount point is gone", || !home.exists());
        let there = cell.mount.at("there");
        cell.larder(&["mountpoint", "add", there.to_str().unwrap(), "home"]).unwrap();
        assert_eq!(fs::read_to_string(there.join("file")).unwrap(), "kept");
        cell.end().unwrap();
    });
}

#[test]
fn a_volume_does_not_appear_inside_itself() {
    let cell = Cell::new(Mode::Nfs).unwrap();
    cell.add("outer", &[]).unwrap();
    cell.larder(&["volume", "create", "inner"]).unwrap();
    let inner = cell.mount.at("outer/inner");
    cell.larder(&["mountpoint", "add", inner.to_str().unwrap(), "inner"]).unwrap();
    for (place, volume) in [("outer/inner/loop", "root"), ("outer/self", "outer"), ("outer/inner/up", "outer")] {
        cell.refused(&["mountpoint", "add", cell.mount.at(place).to_str().unwrap(), volume]).unwrap();
        assert!(!cell.mount.at(place).exists(), "{place}");
    }
    cell.end().unwrap();
}

#[test]
fn what_is_not_there_is_an_error_on_its_path_alone() {
    in_each_mode(|cell| {
        cell.add("home", &[]).unwrap();
        cell.add("work", &[]).unwrap();
        let (home, work) = (cell.mount.at("home"), cell.mount.at("work"));
        fs::write(home.join("file"), "here").unwrap();
        fs::write(work.join("file"), "there").unwrap();
        cell.larder(&["volume", "offline", "home"]).unwrap();
        assert_eq!(errno(fs::read(home.join("file"))), Some(Errno::NOMEDIUM), "{:?}", cell.mount.mode());
        assert_eq!(fs::read(work.join("file")).unwrap(), b"there");
        assert_eq!(fs::read_dir(cell.mount.path()).unwrap().count(), 2, "the directory above can be listed");
        cell.larder(&["volume", "online", "home"]).unwrap();
        assert_eq!(fs::read(home.join("file")).unwrap(), b"here");
        cell.larder(&["mountpoint", "remove", home.to_str().unwrap()]).unwrap();
        cell.larder(&["volume", "delete", "home"]).unwrap();
        cell.refused(&["volume", "show", "home"]).unwrap();
        cell.larder(&["volume", "create", "home"]).unwrap();
        let told = cell.refused(&["volume", "restore", "2"]).unwrap();
        assert!(told.contains("--name"), "{told}");
        cell.larder(&["volume", "restore", "2", "--name", "old-home"]).unwrap();
        cell.larder(&["mountpoint", "add", home.to_str().unwrap(), "old-home"]).unwrap();
        assert_eq!(fs::read(home.join("file")).unwrap(), b"here");
        cell.end().unwrap();
    });
}

fn fill(path: &Path, bytes: usize) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(&vec![7; bytes])?;
    file.sync_all()
}

#[test]
fn a_quota_is_kept_and_df_tells_it() {
    in_each_mode(|cell| {
        cell.add("home", &["--quota", "8M", "--max-files", "20"]).unwrap();
        let home = cell.mount.at("home");
        fill(&home.join("first"), 5 << 20).unwrap();
        let space = rustix::fs::statvfs(&home).unwrap();
        assert_eq!(space.f_blocks * space.f_frsize, 8 << 20);
        assert!((space.f_bavail * space.f_frsize) < 4 << 20);
        assert_eq!(errno(fill(&home.join("second"), 5 << 20)), Some(Errno::DQUOT));
        let used = cell.show("home").unwrap()["bytes"].as_u64().unwrap();
        assert!(used <= (8 << 20) + (1 << 20), "{used}");
        fs::remove_file(home.join("second")).unwrap();
        fs::remove_file(home.join("first")).unwrap();
        fill(&home.join("second"), 5 << 20).unwrap();
        fs::remove_file(home.join("second")).unwrap();
        let made = (0..30).take_while(|number| fs::write(home.join(number.to_string()), "").is_ok()).count();
        assert_eq!(made, 19, "and the root directory");
        assert_eq!(errno(fs::create_dir(home.join("one-more"))), Some(Errno::DQUOT));
        (0..made).for_each(|number| fs::remove_file(home.join(number.to_string())).unwrap());
        cell.larder(&["volume", "set-quota", "home", "none", "--max-files", "none"]).unwrap();
        fill(&home.join("large"), 12 << 20).unwrap();
        fs::remove_file(home.join("large")).unwrap();
        // What a client removes that has files open is kept for a second or so.
        wait_until("what was removed is let go", || cell.show("home").unwrap()["files"] == 1);
        assert_eq!(cell.show("home").unwrap()["bytes"], 4096, "of the root directory");
        cell.end().unwrap();
    });
}

#[test]
fn only_the_superuser_changes_volumes_and_mistakes_are_named() {
    let cell = Cell::new(Mode::Nfs).unwrap();
    for name in ["", "12", "a/b", ".hidden"] {
        let told = cell.refused(&["volume", "create", name]).unwrap();
        assert!(told.contains("no name for a volume"), "{told}");
    }
    cell.larder(&["volume", "create", "home"]).unwrap();
    assert!(cell.refused(&["volume", "create", "home"]).unwrap().contains("already"));
    assert!(cell.refused(&["volume", "show", "hom"]).unwrap().contains("no volume hom"));
    assert!(cell.refused(&["volume", "delete", "root"]).unwrap().contains("cannot be deleted"));
    assert!(
        cell.refused(&["mountpoint", "add", "/tmp/elsewhere", "home"]).unwrap().contains("not in a mount of Larder")
    );
    let listed: Value = serde_json::from_str(&cell.larder(&["volume", "list", "--json"]).unwrap()).unwrap();
    let names: Vec<&str> = listed.as_array().unwrap().iter().map(|volume| volume["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["root", "home"]);
    let servers: Value = serde_json::from_str(&cell.larder(&["server", "list", "--json"]).unwrap()).unwrap();
    assert_eq!((servers[0]["answers"].clone(), servers[0]["status"]["volumes"].clone()), (true.into(), 2.into()));
    let mut as_nobody = Command::new("setpriv");
    as_nobody.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(binary("larder").unwrap());
    let output =
        as_nobody.args(["volume", "create", "mine"]).env("LARDER_SERVER", cell.server.address()).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("only the superuser"), "{output:?}");
    cell.end().unwrap();
}
