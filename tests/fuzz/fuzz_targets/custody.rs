#![no_main]
libfuzzer_sys::fuzz_target!(
    init: motiongear_fuzz::write_seeds("custody"),
    |data: &[u8]| {
        motiongear_fuzz::custody::run(data);
    }
);
