#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pglease::fuzz::template(data));
