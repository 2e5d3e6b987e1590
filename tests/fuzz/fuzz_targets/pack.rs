#![no_main]
libfuzzer_sys::fuzz_target!(
    init: motiongear_fuzz::write_seeds("pack"),
    |data: &[u8]| {
        motiongear_fuzz::pack::run(data);
    }
);
