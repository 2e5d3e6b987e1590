#![no_main]
libfuzzer_sys::fuzz_target!(
    init: motiongear_fuzz::write_seeds("manifest"),
    |data: &[u8]| {
        motiongear_fuzz::manifest::run(data);
    }
);
