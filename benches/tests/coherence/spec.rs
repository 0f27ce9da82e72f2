//! What one file and a set of directories would be like if everything happened one after the other, for the checker.

use std::collections::BTreeMap;

use larder_protocol::service::file::RenameHow;
use todc_utils::specifications::Specification;

use crate::contents::Value;

/// An operation.
pub(crate) trait Changes {
    /// Whether it is more than a look.
    fn changes(&self) -> bool;
}

/// Something done to a file as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileOp {
    /// It was opened and this was in it.
    Read(Value),
    /// It was closed with this in it.
    Write(Value),
}

impl Changes for FileOp {
    fn changes(&self) -> bool {
        matches!(self, FileOp::Write(_))
    }
}

impl Changes for NameOp {
    fn changes(&self) -> bool {
        !matches!(self, NameOp::Lookup { .. } | NameOp::List { .. })
    }
}

/// A file is a register.
pub(crate) struct FileSpec;

impl Specification for FileSpec {
    type State = Value;
    type Operation = FileOp;

    fn init() -> Value {
        Value::EMPTY
    }

    fn apply(op: &FileOp, state: &Value) -> (bool, Value) {
        match op {
            FileOp::Read(value) => (value == state, *state),
            FileOp::Write(value) => (true, *value),
        }
    }
}

/// A name in a directory, both by number.
pub(crate) type Place = (usize, usize);

/// An object, named by the number of the operation that made it.
pub(crate) type Object = u32;

/// Something done to names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NameOp {
    /// A name made for a new object; it was free if that went well.
    Create { at: Place, object: Object, done: Done },
    /// A name removed; it was not there if that did not go well.
    Unlink { at: Place, done: Done },
    /// An object given another name.
    Rename { from: Place, to: Place, how: RenameHow, done: Done },
    /// A name looked up.
    Lookup { at: Place, found: Option<Object> },
    /// A directory listed. Of some objects only the names are known.
    List { dir: usize, names: BTreeMap<usize, Option<Object>> },
}

/// How a change ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    /// It was made.
    Yes,
    /// The name was not as it must be.
    No,
    /// Nobody knows.
    Unknown,
}

/// Directories are one map from names to objects.
pub(crate) struct NameSpec;

type Names = BTreeMap<Place, Object>;

/// What a rename comes to, if it comes to anything.
fn renamed(from: Place, to: Place, how: RenameHow, names: &Names) -> Option<Names> {
    let (object, other) = (*names.get(&from)?, names.get(&to).copied());
    let mut after = names.clone();
    match (how, other) {
        (RenameHow::NoReplace, Some(_)) | (RenameHow::Exchange, None) => return None,
        (RenameHow::Exchange, Some(other)) => after.insert(from, other),
        (RenameHow::NoReplace | RenameHow::Replace, _) => after.remove(&from),
    };
    after.insert(to, object);
    Some(after)
}

impl Specification for NameSpec {
    type State = Names;
    type Operation = NameOp;

    fn init() -> Names {
        Names::new()
    }

    fn apply(op: &NameOp, names: &Names) -> (bool, Names) {
        let (after, done) = match op {
            NameOp::Create { at, object, done } => {
                let mut after = names.clone();
                let free = after.insert(*at, *object).is_none();
                (free.then_some(after), done)
            }
            NameOp::Unlink { at, done } => {
                let mut after = names.clone();
                let was_there = after.remove(at).is_some();
                (was_there.then_some(after), done)
            }
            NameOp::Rename { from, to, how, done } => (renamed(*from, *to, *how, names), done),
            NameOp::Lookup { at, found } => return (names.get(at) == found.as_ref(), names.clone()),
            NameOp::List { dir, names: shown } => {
                let there: Vec<(usize, Object)> =
                    names.range((*dir, 0)..(*dir + 1, 0)).map(|((_, name), object)| (*name, *object)).collect();
                let same = there.len() == shown.len()
                    && there.iter().all(|(name, object)| {
                        shown.get(name).is_some_and(|shown| shown.is_none_or(|shown| shown == *object))
                    });
                return (same, names.clone());
            }
        };
        let valid = match done {
            Done::Yes => after.is_some(),
            Done::No => after.is_none(),
            Done::Unknown => true,
        };
        (valid, after.filter(|_| valid).unwrap_or_else(|| names.clone()))
    }
}
