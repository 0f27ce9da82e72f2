//! Files to unpack.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::process::run;

/// A tree of files of many sizes, and an archive of it beside it.
#[derive(Debug)]
pub struct Source {
    /// The files.
    pub tree: PathBuf,
    /// An archive of them, in which the tree is called `tree`.
    pub archive: PathBuf,
}

impl Source {
    /// Makes so many files.
    ///
    /// # Errors
    /// If they cannot be made.
    pub fn new(dir: &Path, files: usize) -> Result<Source> {
        let (tree, archive) = (dir.join("tree"), dir.join("tree.tar"));
        for i in 0..files {
            let sub = tree.join(format!("dir-{}", i % 37));
            fs::create_dir_all(&sub)?;
            let line = format!("{i} {}\n", "text ".repeat(i % 13));
            fs::write(sub.join(format!("file-{i}")), line.repeat(1 + (i * i) % 900))?;
        }
        run(Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(dir).arg("tree"))?;
        Ok(Source { tree, archive })
    }
}
