#![no_main]
libfuzzer_sys::fuzz_target!(
    init: motiongear_fuzz::write_seeds("envelope"),
    |data: &[u8]| {
        motiongear_fuzz::envelope::run(data);
    }
);
