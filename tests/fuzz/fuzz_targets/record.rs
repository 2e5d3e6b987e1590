#![no_main]
libfuzzer_sys::fuzz_target!(
    init: motiongear_fuzz::write_seeds("record"),
    |data: &[u8]| {
        motiongear_fuzz::record::run(data);
    }
);
