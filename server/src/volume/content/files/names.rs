//! What segments of content files are called.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::volume::content::ContentId;

/// Names one file of the file system: a segment of a content file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct SegmentId {
    pub(super) id: ContentId,
    /// 0 is the first.
    pub(super) number: u64,
}

impl SegmentId {
    pub(super) fn first(id: ContentId) -> SegmentId {
        SegmentId { id, number: 0 }
    }

    pub(super) fn relative_path(self) -> PathBuf {
        let (upper, lower) = levels(self.id);
        let ContentId { vnode, version } = self.id;
        let first = format!("{upper:02x}/{lower:02x}/{vnode:x}.{version:x}");
        if self.number == 0 { first.into() } else { format!("{first}.{:x}", self.number).into() }
    }
}

/// The two levels of directories above a content file.
pub(super) fn levels(id: ContentId) -> (u8, u8) {
    ((id.vnode >> 16) as u8, (id.vnode >> 8) as u8)
}

/// The lower of the two directories, relative to that of all content files.
pub(super) fn lower_directory((upper, lower): (u8, u8)) -> PathBuf {
    format!("{upper:02x}/{lower:02x}").into()
}

/// The segment that a name stands for. Only the name that [`SegmentId::relative_path`] would give counts.
fn parse(upper: &str, lower: &str, name: &str) -> Option<SegmentId> {
    let number = |text| u64::from_str_radix(text, 16).ok();
    let mut parts = name.splitn(3, '.');
    let id = ContentId { vnode: number(parts.next()?)?, version: number(parts.next()?)? };
    let segment = SegmentId { id, number: parts.next().map_or(Some(0), number)? };
    (segment.relative_path() == Path::new(&format!("{upper}/{lower}/{name}"))).then_some(segment)
}

/// As [`Content::list`](crate::volume::content::Content::list), in `directory`.
pub(super) fn list(
    directory: &Path,
    each: &mut dyn FnMut(ContentId),
    strange: &mut dyn FnMut(String),
) -> io::Result<()> {
    let is_level = |name: &str| name.len() == 2 && u8::from_str_radix(name, 16).is_ok();
    for (upper, upper_is_dir) in entries(directory)? {
        if !upper_is_dir || !is_level(&upper) {
            strange(upper);
            continue;
        }
        for (lower, lower_is_dir) in entries(&directory.join(&upper))? {
            if !lower_is_dir || !is_level(&lower) {
                strange(format!("{upper}/{lower}"));
                continue;
            }
            // In order, a first segment comes before the others of its content file.
            let mut with_first = BTreeSet::new();
            for (name, is_dir) in entries(&directory.join(&upper).join(&lower))? {
                match parse(&upper, &lower, &name).filter(|_| !is_dir) {
                    Some(segment) if segment.number == 0 => {
                        with_first.insert(segment.id);
                        each(segment.id);
                    }
                    Some(segment) if with_first.contains(&segment.id) => {}
                    _ => strange(format!("{upper}/{lower}/{name}")),
                }
            }
        }
    }
    Ok(())
}

/// The numbers of the segments of a content file after the first.
pub(super) fn further_segments(directory: &Path, id: ContentId) -> io::Result<Vec<u64>> {
    let first = SegmentId::first(id).relative_path();
    let levels = lower_directory(levels(id));
    let mut found = Vec::new();
    for entry in fs::read_dir(directory.join(&levels))? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| {
            let (start, number) = name.rsplit_once('.')?;
            (levels.join(start) == first).then(|| u64::from_str_radix(number, 16).ok()).flatten()
        });
        found.extend(
            number.filter(|number| {
                *number > 0 && levels.join(&name) == (SegmentId { id, number: *number }).relative_path()
            }),
        );
    }
    Ok(found)
}

/// Names in a directory, and whether each is a directory itself, in order: a name before all longer ones that begin
/// with it.
fn entries(directory: &Path) -> io::Result<Vec<(String, bool)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        // A name that is not UTF-8 is none of ours, and stays so in this spelling.
        found.push((entry.file_name().to_string_lossy().into_owned(), entry.file_type()?.is_dir()));
    }
    found.sort_unstable();
    Ok(found)
}
