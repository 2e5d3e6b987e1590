#![no_main]
libfuzzer_sys::fuzz_target!(
    init: motiongear_fuzz::write_seeds("signature"),
    |data: &[u8]| {
        motiongear_fuzz::signature::run(data);
    }
);
