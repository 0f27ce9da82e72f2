//! What workloads work on: made once, on the local disk, the same in every run.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::process::run;

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Enough to see that it works.
    Quick,
    /// What `scripts/bench` does by itself.
    Usual,
    /// What `scripts/bench --full` does.
    Full,
}

impl Scale {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Scale::Quick => "quick",
            Scale::Usual => "usual",
            Scale::Full => "full",
        }
    }

    /// MiB of disk that each candidate needs.
    pub fn room(self) -> u64 {
        self.pick(64, 1024, 4096)
    }

    /// One of three amounts.
    pub fn pick<T>(self, quick: T, usual: T, full: T) -> T {
        match self {
            Scale::Quick => quick,
            Scale::Usual => usual,
            Scale::Full => full,
        }
    }
}

/// The line that each text file has once.
pub const LAST_LINE: &str = "the end";

/// The inputs.
#[derive(Debug)]
pub struct Inputs {
    /// How much is measured.
    pub scale: Scale,
    /// A C program in many files, with a Makefile.
    pub source: PathBuf,
    /// The directories of [`source`](Inputs::source), below it.
    pub source_directories: Vec<String>,
    /// An archive with text files in `tree/`.
    pub tree: PathBuf,
    /// How many files these are.
    pub tree_files: usize,
    /// An archive of a git repository in `repository/`.
    pub repository: PathBuf,
    /// What git is to take for the user's configuration.
    pub git_config: PathBuf,
}

impl Inputs {
    /// Makes them in `DIR/inputs`.
    ///
    /// # Errors
    /// If they cannot be made.
    pub fn make(dir: &Path, scale: Scale) -> Result<Inputs> {
        let dir = dir.join("inputs");
        fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
        let source = dir.join("source");
        let source_directories = c_program(&source, scale.pick(2, 8, 16), scale.pick(2, 8, 10))?;
        let tree_files = scale.pick(60, 1500, 5000);
        texts(&dir.join("tree"), tree_files)?;
        texts(&dir.join("repository"), tree_files * 2 / 3)?;
        let git_config = dir.join("gitconfig");
        fs::write(
            &git_config,
            "[safe]\ndirectory = *\n[user]\nname = bench\nemail = bench@localhost\n[gc]\nauto = 0\n[init]\n\
             defaultBranch = main\n",
        )?;
        let inputs = Inputs {
            scale,
            source,
            source_directories,
            tree: dir.join("tree.tar"),
            tree_files,
            repository: dir.join("repository.tar"),
            git_config,
        };
        let git = |arguments: &[&str]| run(inputs.git(&dir.join("repository")).args(arguments)).map(drop);
        git(&["init", "-q"])?;
        git(&["add", "."])?;
        git(&["commit", "-q", "-m", "All of it"])?;
        git(&["repack", "-q", "-a", "-d"])?;
        for (archive, name) in [(&inputs.tree, "tree"), (&inputs.repository, "repository")] {
            run(Command::new("tar").arg("-C").arg(&dir).arg("-cf").arg(archive).arg(name))?;
        }
        Ok(inputs)
    }

    /// Git in this directory, without what whoever runs this has set up.
    pub fn git(&self, dir: &Path) -> Command {
        let mut command = Command::new("timeout");
        command.args(["600", "git", "-C"]).arg(dir);
        command.env("GIT_CONFIG_GLOBAL", &self.git_config).env("GIT_CONFIG_NOSYSTEM", "1");
        command.env("GIT_OPTIONAL_LOCKS", "0");
        command
    }
}

/// Unpacks an archive, without the times, which not every peer can set.
///
/// # Errors
/// If it cannot be unpacked.
pub fn unpack(archive: &Path, into: &Path) -> Result<()> {
    run(Command::new("timeout").args(["600", "tar", "--no-same-owner", "-xmf"]).arg(archive).arg("-C").arg(into))?;
    Ok(())
}

/// Small text files, thirty in a directory, each with one line [`LAST_LINE`].
fn texts(dir: &Path, count: usize) -> Result<()> {
    let mut random = SmallRng::seed_from_u64(1);
    for number in 0..count {
        let sub = dir.join(format!("dir-{:03}", number / 30));
        fs::create_dir_all(&sub)?;
        // Most are small.
        let lines = 5 + (random.random::<f64>() * random.random::<f64>() * 300.0) as u32;
        let mut text = String::new();
        for line in 0..lines {
            writeln!(text, "{number} {line} {:.6} {:.6}", random.random::<f64>(), random.random::<f64>())?;
        }
        writeln!(text, "{LAST_LINE}")?;
        fs::write(sub.join(format!("file-{number:04}")), text)?;
    }
    Ok(())
}

/// A program of so many directories with so many files each; the names of the directories.
fn c_program(dir: &Path, directories: usize, files: usize) -> Result<Vec<String>> {
    let mut objects = String::new();
    let mut header = "#pragma once\n#include <stddef.h>\n".to_owned();
    let mut calls = String::new();
    let mut names = Vec::new();
    for directory in 0..directories {
        let name = format!("part-{directory:02}");
        fs::create_dir_all(dir.join(&name))?;
        for file in 0..files {
            let unit = format!("unit_{directory}_{file}");
            let mut text = "#include \"../program.h\"\n\n".to_owned();
            for function in 0..12 {
                writeln!(
                    text,
                    "static unsigned step_{function}(unsigned value, const char *text, size_t length) {{\n    for \
                     (size_t at = 0; at < length; at++) {{\n        value = value * {}u + (unsigned char)text[at];\n        \
                     if (value % {}u == 0) value ^= {}u;\n    }}\n    return value;\n}}\n",
                    31 + function * 2,
                    7 + function,
                    directory * 131 + file
                )?;
            }
            writeln!(text, "unsigned {unit}(unsigned value, const char *text, size_t length) {{")?;
            for function in 0..12 {
                writeln!(text, "    value = step_{function}(value, text, length);")?;
            }
            writeln!(text, "    return value;\n}}")?;
            fs::write(dir.join(&name).join(format!("{unit}.c")), text)?;
            writeln!(header, "unsigned {unit}(unsigned value, const char *text, size_t length);")?;
            writeln!(calls, "    value = {unit}(value, argv[0], 3);")?;
            write!(objects, " {name}/{unit}.o")?;
        }
        names.push(name);
    }
    fs::write(dir.join("program.h"), header)?;
    fs::write(
        dir.join("main.c"),
        format!(
            "#include \"program.h\"\n\nint main(int argc, char **argv) {{\n    unsigned value = (unsigned)argc;\n{calls}    \
             return value == 0;\n}}\n"
        ),
    )?;
    fs::write(
        dir.join("Makefile"),
        format!("CFLAGS = -O1\n\nprogram: main.o{objects}\n\t$(CC) -o $@ $^\n\nmain.o{objects}: program.h\n"),
    )?;
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_are_what_they_are_taken_for() {
        let dir = tempfile::tempdir().unwrap();
        let inputs = Inputs::make(dir.path(), Scale::Quick).unwrap();
        let place = dir.path().join("place");
        fs::create_dir(&place).unwrap();
        unpack(&inputs.tree, &place).unwrap();
        let found = run(Command::new("grep").args(["-r", "-x", "-c", LAST_LINE]).arg(place.join("tree"))).unwrap();
        let lines = String::from_utf8(found.stdout).unwrap();
        assert_eq!(lines.lines().filter(|line| line.ends_with(":1")).count(), inputs.tree_files);
        unpack(&inputs.repository, &place).unwrap();
        let status = run(inputs.git(&place.join("repository")).args(["status", "--porcelain"])).unwrap();
        assert!(status.stdout.is_empty());
        assert_eq!(inputs.source_directories, ["part-00", "part-01"]);
        run(Command::new("make").args(["-s", "-C"]).arg(&inputs.source)).unwrap();
        assert!(inputs.source.join("program").exists());
    }
}
