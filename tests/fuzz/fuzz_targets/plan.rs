#![no_main]
libfuzzer_sys::fuzz_target!(
    init: motiongear_fuzz::write_seeds("plan"),
    |data: &[u8]| {
        motiongear_fuzz::plan::run(data);
    }
);
