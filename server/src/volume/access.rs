//! Who may do what: Linux's permission rules on a credential and a record.
//!
//! Everything here is a pure function. Capabilities are not known to the server: uid 0 stands for all of them.

use larder_protocol::attr::{Credential, FileType, MAY_EXEC, MAY_READ, MAY_WRITE, SETGID, SETUID, STICKY};
use larder_protocol::error::ErrorCode;
use larder_protocol::limits::MAX_XATTR_NAME;

use super::record::VnodeRecord;

/// The group's execute bit, which gives setgid its meaning.
const GROUP_EXEC: u32 = 0o010;

/// Whether the caller stands above the mode bits.
pub fn is_root(cred: &Credential) -> bool {
    cred.uid == 0
}

/// Whether the caller is the object's owner or stands above owners.
pub fn is_owner(cred: &Credential, record: &VnodeRecord) -> bool {
    is_root(cred) || cred.uid == record.uid
}

/// Whether the caller has all permissions in `mask` (`MAY_READ`, `MAY_WRITE`, `MAY_EXEC`).
///
/// Only one class of the mode counts: the owner's, else the group's, else that of others (path_resolution(7)).
pub fn may(cred: &Credential, record: &VnodeRecord, mask: u32) -> bool {
    if is_root(cred) {
        return mask & MAY_EXEC == 0 || record.kind() == FileType::Directory || record.mode & 0o111 != 0;
    }
    let class = if cred.uid == record.uid {
        record.mode >> 6
    } else if cred.in_group(record.gid) {
        record.mode >> 3
    } else {
        record.mode
    };
    mask & !class & 0o7 == 0
}

/// As [`may`], for `?`.
///
/// # Errors
/// `AccessDenied` without the permission.
pub fn need(cred: &Credential, record: &VnodeRecord, mask: u32) -> Result<(), ErrorCode> {
    if may(cred, record, mask) { Ok(()) } else { Err(ErrorCode::AccessDenied) }
}

/// Whether the caller may read the data of a file that it has open.
///
/// The server knows no open files, so it cannot tell what was allowed at open. As NFS servers do
/// (RFC 1813 section 4.4), it lets the owner read in any case, and lets those read who may execute, for whom the
/// client's kernel reads to run the program.
pub fn may_read_data(cred: &Credential, record: &VnodeRecord) -> bool {
    is_owner(cred, record) || may(cred, record, MAY_READ) || may(cred, record, MAY_EXEC)
}

/// Whether the caller may write the data of a file that it has open; the owner may in any case, see
/// [`may_read_data`].
pub fn may_write_data(cred: &Credential, record: &VnodeRecord) -> bool {
    is_owner(cred, record) || may(cred, record, MAY_WRITE)
}

/// Checks that the caller may take the name of `object` out of `dir` (unlink(2), `EACCES` and `EPERM`).
///
/// # Errors
/// `AccessDenied` without write and search permission; `NotPermitted` if the directory is sticky and the caller owns
/// neither it nor the object.
pub fn may_delete(cred: &Credential, dir: &VnodeRecord, object: &VnodeRecord) -> Result<(), ErrorCode> {
    need(cred, dir, MAY_WRITE | MAY_EXEC)?;
    if dir.mode & STICKY != 0 && !is_owner(cred, dir) && !is_owner(cred, object) {
        return Err(ErrorCode::NotPermitted);
    }
    Ok(())
}

/// Whether a setgid bit that the caller gives an object of this group stays.
pub fn may_set_setgid(cred: &Credential, gid: u32) -> bool {
    is_root(cred) || cred.in_group(gid)
}

/// The mode that is left of a file's when its owner or group changes, whoever changes it.
///
/// setuid falls; setgid falls where it means something (with group execute), or where the caller could not set it.
pub fn mode_after_chown(cred: &Credential, record: &VnodeRecord) -> u32 {
    if record.kind() == FileType::Directory {
        return record.mode;
    }
    let mode = record.mode & !SETUID;
    if mode & GROUP_EXEC != 0 || !may_set_setgid(cred, record.gid) { mode & !SETGID } else { mode }
}

/// The mode that a write or truncation by this caller leaves: as [`mode_after_chown`], but root changes nothing and
/// only regular files have anything to lose.
pub fn mode_after_write(cred: &Credential, record: &VnodeRecord) -> u32 {
    if is_root(cred) || record.kind() != FileType::Regular { record.mode } else { mode_after_chown(cred, record) }
}

/// Clears setuid and setgid as a write or truncation by this caller does, and says whether that changed anything.
pub fn drop_privileges(cred: &Credential, record: &mut VnodeRecord) -> bool {
    let mode = mode_after_write(cred, record);
    let changed = mode != record.mode;
    record.mode = mode;
    changed
}

/// The mode and group of a new object, from the mode asked for (after the umask) and the directory.
pub fn mode_and_group(cred: &Credential, dir: &VnodeRecord, kind: FileType, mode: u32) -> (u32, u32) {
    if dir.mode & SETGID == 0 {
        return (mode, cred.gid);
    }
    let gid = dir.gid;
    if kind == FileType::Directory {
        return (mode | SETGID, gid);
    }
    // Otherwise anyone who may create here could make a program that runs as the directory's group.
    let runs_as_group = mode & (SETGID | GROUP_EXEC) == SETGID | GROUP_EXEC;
    if runs_as_group && !may_set_setgid(cred, gid) { (mode & !SETGID, gid) } else { (mode, gid) }
}

/// What a caller wants with an extended attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XattrUse {
    /// Its value.
    Get,
    /// To set it.
    Set,
    /// To remove it.
    Remove,
}

/// Checks an extended attribute's name and the caller's right to it, by the rules of xattr(7).
///
/// # Errors
/// `Range` for a name that is empty or too long, `Invalid` for one with NUL or nothing behind its namespace,
/// `NotSupported` for a namespace there is not, POSIX ACLs among them; `AccessDenied`, `NotPermitted`, or for reading
/// what the caller must not know of, `NoXattr`.
pub fn may_use_xattr(cred: &Credential, record: &VnodeRecord, name: &[u8], what: XattrUse) -> Result<(), ErrorCode> {
    if name.is_empty() || name.len() > MAX_XATTR_NAME {
        return Err(ErrorCode::Range);
    }
    if name.contains(&0) {
        return Err(ErrorCode::Invalid);
    }
    let refusal = if what == XattrUse::Get { ErrorCode::NoXattr } else { ErrorCode::NotPermitted };
    if let Some(rest) = name.strip_prefix(b"user.") {
        not_empty(rest)?;
        return may_use_user_xattr(cred, record, what, refusal);
    }
    if let Some(rest) = name.strip_prefix(b"trusted.") {
        not_empty(rest)?;
        return if is_root(cred) { Ok(()) } else { Err(refusal) };
    }
    if let Some(rest) = name.strip_prefix(b"security.") {
        not_empty(rest)?;
        // Before a write the client's kernel removes file capabilities in the name of the writer.
        let by_writer = what == XattrUse::Remove && rest == b"capability" && may_write_data(cred, record);
        let allowed = what == XattrUse::Get || is_root(cred) || by_writer;
        return if allowed { Ok(()) } else { Err(ErrorCode::NotPermitted) };
    }
    Err(ErrorCode::NotSupported)
}

fn not_empty(rest: &[u8]) -> Result<(), ErrorCode> {
    if rest.is_empty() { Err(ErrorCode::Invalid) } else { Ok(()) }
}

fn may_use_user_xattr(
    cred: &Credential,
    record: &VnodeRecord,
    what: XattrUse,
    refusal: ErrorCode,
) -> Result<(), ErrorCode> {
    let sticky_dir = match record.kind() {
        FileType::Regular => false,
        FileType::Directory => record.mode & STICKY != 0,
        _ => return Err(refusal),
    };
    if what == XattrUse::Get {
        return need(cred, record, MAY_READ);
    }
    if sticky_dir && !is_owner(cred, record) {
        return Err(ErrorCode::NotPermitted);
    }
    need(cred, record, MAY_WRITE)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::volume::record::Body;

    fn record(body: Body, mode: u32, uid: u32, gid: u32) -> VnodeRecord {
        VnodeRecord { mode, uid, gid, ..VnodeRecord::empty(body) }
    }

    fn file(mode: u32) -> VnodeRecord {
        record(Body::Inline, mode, 10, 20)
    }

    fn dir(mode: u32) -> VnodeRecord {
        record(Body::Directory { parent: 1, entries: 0, next_cookie: 1 }, mode, 10, 20)
    }

    fn user(uid: u32, gid: u32, groups: &[u32]) -> Credential {
        Credential { uid, gid, groups: groups.to_vec() }
    }

    #[test]
    fn only_the_first_class_that_fits_counts() {
        let file = file(0o047);
        assert!(!may(&user(10, 20, &[]), &file, MAY_READ), "the owner's class is empty");
        assert!(may(&user(11, 20, &[]), &file, MAY_READ));
        assert!(!may(&user(11, 20, &[]), &file, MAY_WRITE), "others may, but not the group");
        assert!(may(&user(11, 21, &[20]), &file, MAY_READ), "a supplementary group");
        assert!(!may(&user(11, 21, &[20]), &file, MAY_READ | MAY_WRITE));
        assert!(may(&user(11, 21, &[22]), &file, MAY_READ | MAY_WRITE | MAY_EXEC));
    }

    #[test]
    fn root_needs_an_execute_bit_for_files_only() {
        let root = Credential::root();
        assert!(may(&root, &file(0), MAY_READ | MAY_WRITE));
        assert!(!may(&root, &file(0o666), MAY_EXEC));
        assert!(may(&root, &file(0o001), MAY_EXEC));
        assert!(may(&root, &dir(0), MAY_EXEC));
    }

    #[test]
    fn an_open_file_is_its_owners_in_any_mode() {
        let owner = user(10, 0, &[]);
        assert!(may_read_data(&owner, &file(0)) && may_write_data(&owner, &file(0)));
        let other = user(11, 0, &[]);
        assert!(!may_read_data(&other, &file(0o770)) && !may_write_data(&other, &file(0o775)));
        assert!(may_read_data(&other, &file(0o001)), "who may execute may page in the program");
        assert!(may_write_data(&other, &file(0o002)) && !may_read_data(&other, &file(0o002)));
    }

    #[test]
    fn sticky_directories_protect_names_of_others() {
        let mut sticky = dir(0o1777);
        sticky.uid = 50;
        assert_eq!(may_delete(&user(11, 0, &[]), &sticky, &file(0o777)), Err(ErrorCode::NotPermitted));
        assert_eq!(may_delete(&user(10, 0, &[]), &sticky, &file(0)), Ok(()), "own object");
        assert_eq!(may_delete(&user(50, 0, &[]), &sticky, &file(0)), Ok(()), "own directory");
        assert_eq!(may_delete(&Credential::root(), &sticky, &file(0)), Ok(()));
        assert_eq!(may_delete(&user(11, 0, &[]), &dir(0o777), &file(0)), Ok(()));
        assert_eq!(may_delete(&user(10, 0, &[]), &dir(0o577), &file(0)), Err(ErrorCode::AccessDenied));
        assert_eq!(may_delete(&user(10, 0, &[]), &dir(0o677), &file(0)), Err(ErrorCode::AccessDenied));
    }

    #[test]
    fn a_write_by_another_than_root_drops_setuid_and_setgid() {
        let writer = user(11, 20, &[]);
        let dropped = |cred: &Credential, mode| {
            let mut file = file(mode);
            let changed = drop_privileges(cred, &mut file);
            assert_eq!(changed, file.mode != mode);
            file.mode
        };
        assert_eq!(dropped(&writer, 0o6777), 0o777);
        assert_eq!(dropped(&writer, 0o2767), 0o2767, "without group execute it is no privilege");
        assert_eq!(dropped(&user(11, 21, &[]), 0o2767), 0o767, "but not for a stranger to the group");
        assert_eq!(dropped(&Credential::root(), 0o6777), 0o6777);
    }

    #[test]
    fn a_change_of_owner_drops_them_for_root_too_but_not_on_directories() {
        let root = Credential::root();
        assert_eq!(mode_after_chown(&root, &file(0o6755)), 0o755);
        assert_eq!(mode_after_chown(&root, &file(0o6745)), 0o2745);
        assert_eq!(mode_after_chown(&user(10, 99, &[]), &file(0o2745)), 0o745);
        assert_eq!(mode_after_chown(&root, &dir(0o6755)), 0o6755);
    }

    #[test]
    fn setgid_directories_give_their_group_and_to_directories_their_bit() {
        let cred = user(11, 21, &[]);
        assert_eq!(mode_and_group(&cred, &dir(0o777), FileType::Regular, 0o2755), (0o2755, 21));
        assert_eq!(mode_and_group(&cred, &dir(0o2777), FileType::Directory, 0o755), (0o2755, 20));
        assert_eq!(mode_and_group(&cred, &dir(0o2777), FileType::Regular, 0o2755), (0o755, 20));
        assert_eq!(mode_and_group(&cred, &dir(0o2777), FileType::Regular, 0o2744), (0o2744, 20));
        assert_eq!(mode_and_group(&user(11, 20, &[]), &dir(0o2777), FileType::Regular, 0o2755), (0o2755, 20));
    }

    #[test]
    fn each_xattr_namespace_has_its_rule() {
        use XattrUse::{Get, Remove, Set};
        let (root, owner, other) = (Credential::root(), user(10, 20, &[]), user(11, 21, &[]));
        let check = |cred, record: &VnodeRecord, name: &[u8], what| may_use_xattr(cred, record, name, what);
        assert_eq!(check(&other, &file(0o604), b"user.a", Get), Ok(()));
        assert_eq!(check(&other, &file(0o604), b"user.a", Set), Err(ErrorCode::AccessDenied));
        assert_eq!(check(&other, &file(0o602), b"user.a", Get), Err(ErrorCode::AccessDenied));
        let link = record(Body::Symlink { target: Bytes::from_static(b"x") }, 0o777, 10, 20);
        assert_eq!(check(&root, &link, b"user.a", Set), Err(ErrorCode::NotPermitted));
        assert_eq!(check(&root, &link, b"user.a", Get), Err(ErrorCode::NoXattr));
        assert_eq!(check(&other, &dir(0o1777), b"user.a", Set), Err(ErrorCode::NotPermitted));
        assert_eq!(check(&owner, &dir(0o1777), b"user.a", Set), Ok(()));
        assert_eq!(check(&owner, &file(0o777), b"trusted.a", Set), Err(ErrorCode::NotPermitted));
        assert_eq!(check(&owner, &file(0o777), b"trusted.a", Get), Err(ErrorCode::NoXattr));
        assert_eq!(check(&root, &link, b"trusted.a", Set), Ok(()));
        assert_eq!(check(&other, &file(0), b"security.a", Get), Ok(()));
        assert_eq!(check(&owner, &file(0o777), b"security.a", Set), Err(ErrorCode::NotPermitted));
        assert_eq!(check(&owner, &file(0o777), b"security.capability", Set), Err(ErrorCode::NotPermitted));
        assert_eq!(check(&other, &file(0o602), b"security.capability", Remove), Ok(()));
        assert_eq!(check(&other, &file(0o604), b"security.capability", Remove), Err(ErrorCode::NotPermitted));
        for name in [&b"system.posix_acl_access"[..], b"system.nfs4_acl", b"other.a", b"user"] {
            assert_eq!(check(&root, &file(0), name, Set), Err(ErrorCode::NotSupported));
        }
        assert_eq!(check(&root, &file(0), b"user.", Set), Err(ErrorCode::Invalid));
        assert_eq!(check(&root, &file(0), b"user.a\0", Set), Err(ErrorCode::Invalid));
        assert_eq!(check(&root, &file(0), b"", Get), Err(ErrorCode::Range));
        assert_eq!(check(&root, &file(0), &[b'a'; 256], Get), Err(ErrorCode::Range));
    }
}
