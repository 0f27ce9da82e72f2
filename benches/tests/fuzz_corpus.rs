//! Replays what the fuzz targets found worth keeping (`fuzz/corpus/TARGET/`), without a fuzzer.
#![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

use std::fs;
use std::path::Path;

use larder_benches::fuzzing;

/// Runs every file of a corpus; its name is printed first, so that a panic tells which it was.
fn replay(target: &str, run: impl Fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let mut files: Vec<_> = fs::read_dir(&corpus).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 10, "{} holds next to nothing", corpus.display());
    for file in files {
        println!("{}", file.display());
        run(&fs::read(&file).unwrap());
    }
}

#[test]
fn the_corpus_of_decode_passes() {
    replay("decode", fuzzing::decode);
}

#[test]
fn the_corpus_of_handle_passes() {
    replay("handle", fuzzing::handle::handle);
}
