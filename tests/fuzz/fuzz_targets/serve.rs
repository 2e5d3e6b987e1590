#![no_main]
libfuzzer_sys::fuzz_target!(
    init: motiongear_fuzz::write_seeds("serve"),
    |data: &[u8]| {
        motiongear_fuzz::serve::run(data);
    }
);
