#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| multiraft_tests::fuzz::logdb_recover(data));
