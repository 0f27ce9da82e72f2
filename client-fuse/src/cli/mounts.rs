//! The kernel's table of mounts, and what can be learned from it without touching a mount that may hang.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// The type of file system that the table shows for Larder.
pub(super) const FS_TYPE: &str = "fuse.larder";

/// How many symbolic links are followed from a name to a mount point.
const MAX_LINKS: usize = 8;

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    /// The device number's major part; 0 for FUSE.
    pub major: u32,
    /// The device number's minor part.
    pub minor: u32,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// The type of file system.
    pub fs_type: String,
    /// What is mounted.
    pub source: String,
    /// The user who mounted it, as FUSE records it.
    pub user_id: Option<u32>,
}

impl Mount {
    /// Whether it is a mount of Larder.
    pub(super) fn is_larder(&self) -> bool {
        self.fs_type == FS_TYPE
    }

    /// `MAJOR:MINOR`.
    pub(super) fn device(&self) -> String {
        format!("{}:{}", self.major, self.minor)
    }
}

/// All mounts of this process's mount namespace, in the order they were made in.
///
/// # Errors
/// What reading `/proc/self/mountinfo` says.
pub(super) fn table() -> io::Result<Vec<Mount>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// The mount on top at this path, which must be absolute and without symbolic links.
///
/// # Errors
/// Those of [`table`].
pub(super) fn at(path: &Path) -> io::Result<Option<Mount>> {
    Ok(table()?.into_iter().rev().find(|mount| mount.mountpoint == path))
}

/// The mount that this path is in, which must be absolute and without symbolic links.
///
/// # Errors
/// Those of [`table`].
pub(super) fn containing(path: &Path) -> io::Result<Option<Mount>> {
    let above = |mount: &Mount| path.starts_with(&mount.mountpoint);
    // Of those at the longest path, the one on top.
    Ok(table()?.into_iter().filter(above).max_by_key(|mount| mount.mountpoint.components().count()))
}

/// Whether anything is mounted below this path, which must be absolute and without symbolic links.
///
/// # Errors
/// Those of [`table`].
pub(super) fn any_inside(path: &Path) -> io::Result<bool> {
    Ok(table()?.iter().any(|mount| mount.mountpoint != path && mount.mountpoint.starts_with(path)))
}

/// Parses the format of proc_pid_mountinfo(5). Lines that do not follow it are passed over.
fn parse(text: &[u8]) -> Vec<Mount> {
    text.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = std::str::from_utf8(fields.nth(2)?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let mountpoint = unescape(fields.nth(1)?);
    // Mount options, and any number of tags, end at a single dash.
    fields.find(|field| *field == b"-")?;
    let fs_type = unescape(fields.next()?);
    let source = unescape(fields.next()?);
    let options = fields.next().unwrap_or_default();
    let user_id = options
        .split(|byte| *byte == b',')
        .find_map(|option| std::str::from_utf8(option.strip_prefix(b"user_id=")?).ok()?.parse().ok());
    Some(Mount {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        mountpoint: std::ffi::OsString::from_vec(mountpoint).into(),
        fs_type: String::from_utf8_lossy(&fs_type).into_owned(),
        source: String::from_utf8_lossy(&source).into_owned(),
        user_id,
    })
}

/// Undoes the kernel's escapes: a backslash and three octal digits for space, tab, newline, `#` and backslash.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let escaped = match (first, after.get(..3)) {
            (b'\\', Some(digits)) => {
                std::str::from_utf8(digits).ok().and_then(|digits| u8::from_str_radix(digits, 8).ok())
            }
            _ => None,
        };
        match escaped {
            Some(byte) => {
                plain.push(byte);
                rest = &after[3..];
            }
            None => {
                plain.push(*first);
                rest = after;
            }
        }
    }
    plain
}

/// The absolute path of a possible mount point, with everything above it resolved. The last component is not touched,
/// for it may be a mount whose server is gone.
///
/// # Errors
/// What resolving the directory above it says.
pub(super) fn resolve(path: &Path) -> io::Result<PathBuf> {
    // `Path` drops trailing slashes and inner dots, but keeps a path that is one dot.
    match path.components().next_back() {
        None => Err(io::Error::new(io::ErrorKind::InvalidInput, "the path is empty")),
        Some(std::path::Component::Normal(name)) => Ok(parent_of(path)?.join(name)),
        Some(std::path::Component::CurDir) => std::env::current_dir(),
        // Nothing of Larder is mounted on `/`, and what is above a mount can be asked.
        Some(_) => path.canonicalize(),
    }
}

fn parent_of(path: &Path) -> io::Result<PathBuf> {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.canonicalize(),
        _ => std::env::current_dir(),
    }
}

/// The mount that `path` names, following symbolic links that lead to it, without touching the mount itself.
///
/// # Errors
/// What resolving the path or reading the table says.
pub(super) fn find(path: &Path) -> io::Result<Option<Mount>> {
    let mounts = table()?;
    let mut path = resolve(path)?;
    for _ in 0..MAX_LINKS {
        if let Some(mount) = mounts.iter().rev().find(|mount| mount.mountpoint == path) {
            return Ok(Some(mount.clone()));
        }
        match std::fs::read_link(&path) {
            Ok(target) => path = resolve(&path.parent().unwrap_or(Path::new("/")).join(target))?,
            Err(_) => return Ok(None),
        }
    }
    Ok(None)
}

/// A path as one file name: slashes become dashes, other bytes than letters, digits, `.` and `_` are written `\xNN`.
pub(super) fn escape(path: &Path) -> String {
    let mut name = String::new();
    for byte in path.as_os_str().as_bytes().iter().skip_while(|byte| **byte == b'/') {
        match byte {
            b'/' => name.push('-'),
            b'.' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => name.push(char::from(*byte)),
            byte => name.push_str(&format!("\\x{byte:02x}")),
        }
    }
    // Room for a suffix within NAME_MAX.
    name.truncate(200);
    name
}

/// Whether a path looks like one of an existing object, without asking a mount that may hang.
pub(super) fn exists(path: &OsStr) -> bool {
    match find(Path::new(path)) {
        Ok(Some(_)) => true,
        _ => Path::new(path).symlink_metadata().is_ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"22 1 254:1 / / rw,relatime - ext4 /dev/root rw\n\
        36 22 0:32 / /mnt/with\\040space\\134x rw,nosuid shared:1 master:2 - fuse.larder h:1/root rw,user_id=1000,group_id=1\n\
        nonsense\n\
        37 22 0:33 / /mnt/a rw - fuse.larder [::1]:7425/root rw,user_id=0,group_id=0,allow_other\n\
        38 37 0:34 / /mnt/a rw - tmpfs none rw\n";

    #[test]
    fn the_table_is_parsed() {
        let mounts = parse(TABLE);
        assert_eq!(mounts.len(), 4);
        let larder = &mounts[1];
        assert_eq!(larder.mountpoint, Path::new("/mnt/with space\\x"));
        assert_eq!((larder.source.as_str(), larder.user_id), ("h:1/root", Some(1000)));
        assert_eq!(larder.device(), "0:32");
        assert!(larder.is_larder() && !mounts[3].is_larder());
        assert_eq!(mounts[0].user_id, None);
    }

    #[test]
    fn escapes_that_are_none_stay() {
        assert_eq!(unescape(b"a\\04"), b"a\\04");
        assert_eq!(unescape(b"\\999"), b"\\999");
        assert_eq!(unescape(b"\\011\\012"), b"\t\n");
    }

    #[test]
    fn only_the_parent_is_resolved() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        std::fs::create_dir(base.join("real")).unwrap();
        std::os::unix::fs::symlink("real", base.join("link")).unwrap();
        assert_eq!(resolve(&base.join("link/absent/")).unwrap(), base.join("real/absent"));
        assert_eq!(resolve(&base.join("link")).unwrap(), base.join("link"));
        assert!(resolve(&base.join("absent/x")).is_err());
        assert_eq!(resolve(Path::new(".")).unwrap(), std::env::current_dir().unwrap());
    }

    #[test]
    fn paths_become_file_names() {
        assert_eq!(escape(Path::new("/mnt/a b-c")), "mnt-a\\x20b\\x2dc");
        assert!(escape(Path::new(&"/x".repeat(500))).len() <= 200);
    }
}
