#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| multiraft_tests::fuzz::snapshot_chunks(data));
