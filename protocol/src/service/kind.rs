//! The kinds of requests, as statistics and logs name them.

use std::fmt;

use super::file::{Op, Query};

macro_rules! kinds {
    ($($variant:ident $name:literal),* $(,)?) => {
        /// A kind of request.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Kind {
            $(#[doc = concat!("`", $name, "`")] $variant),*
        }

        impl Kind {
            /// All kinds, in the order of their numbers.
            pub const ALL: &'static [Kind] = &[$(Kind::$variant),*];

            /// The name in statistics.
            pub fn name(self) -> &'static str {
                match self { $(Kind::$variant => $name),* }
            }
        }
    };
}

kinds! {
    Hello "hello", Lookup "lookup", Parent "parent", Getattr "getattr", Setattr "setattr", Access "access",
    Readlink "readlink", Read "read", Write "write", Commit "commit", Append "append", Create "create",
    Mkdir "mkdir", Mknod "mknod", Symlink "symlink", Link "link", Remove "remove", Rmdir "rmdir",
    Rename "rename", Readdir "readdir", Statfs "statfs", Getxattr "getxattr", Setxattr "setxattr",
    Listxattr "listxattr", Removexattr "removexattr", Allocate "allocate", Seek "seek", CopyRange "copy_range",
    Forget "forget", Volume "volume", Goodbye "goodbye", Fetch "fetch", Recheck "recheck", Stage "stage",
    Store "store", Renew "renew", Breaks "breaks", Sync "sync", Admin "admin", Locate "locate", Registry "registry",
    Graft "graft", Ungraft "ungraft", Transfer "transfer",
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Query {
    /// This query's kind.
    pub fn kind(&self) -> Kind {
        match self {
            Query::Lookup { .. } => Kind::Lookup,
            Query::Parent { .. } => Kind::Parent,
            Query::Getattr { .. } => Kind::Getattr,
            Query::Access { .. } => Kind::Access,
            Query::Readlink { .. } => Kind::Readlink,
            Query::Read { .. } => Kind::Read,
            Query::Fetch { .. } => Kind::Fetch,
            Query::Recheck { .. } => Kind::Recheck,
            Query::Readdir { .. } => Kind::Readdir,
            Query::Statfs { .. } => Kind::Statfs,
            Query::Getxattr { .. } => Kind::Getxattr,
            Query::Listxattr { .. } => Kind::Listxattr,
            Query::Seek { .. } => Kind::Seek,
        }
    }
}

impl Op {
    /// This operation's kind.
    pub fn kind(&self) -> Kind {
        match self {
            Op::Create { .. } => Kind::Create,
            Op::Mkdir { .. } => Kind::Mkdir,
            Op::Mknod { .. } => Kind::Mknod,
            Op::Symlink { .. } => Kind::Symlink,
            Op::Graft { .. } => Kind::Graft,
            Op::Ungraft { .. } => Kind::Ungraft,
            Op::Link { .. } => Kind::Link,
            Op::Remove { .. } => Kind::Remove,
            Op::Rmdir { .. } => Kind::Rmdir,
            Op::Rename { .. } => Kind::Rename,
            Op::Setattr { .. } => Kind::Setattr,
            Op::Setxattr { .. } => Kind::Setxattr,
            Op::Removexattr { .. } => Kind::Removexattr,
            Op::Append { .. } => Kind::Append,
            Op::Allocate { .. } => Kind::Allocate,
            Op::CopyRange { .. } => Kind::CopyRange,
            Op::Store { .. } => Kind::Store,
            Op::Forget { .. } => Kind::Forget,
        }
    }
}
