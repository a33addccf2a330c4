#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pglease::fuzz::admission(data));
