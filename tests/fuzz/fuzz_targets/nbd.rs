#![no_main]
libfuzzer_sys::fuzz_target!(
    init: motiongear_fuzz::write_seeds("nbd"),
    |data: &[u8]| {
        motiongear_fuzz::nbd::run(data);
    }
);
