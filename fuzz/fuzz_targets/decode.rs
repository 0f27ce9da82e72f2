//! Whatever bytes arrive on a connection.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| larder_benches::fuzzing::decode(bytes));
