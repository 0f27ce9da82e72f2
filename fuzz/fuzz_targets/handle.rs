//! Whatever a client that has said hello may ask.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| larder_benches::fuzzing::handle::handle(bytes));
