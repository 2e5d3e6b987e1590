#![no_main]
libfuzzer_sys::fuzz_target!(
    init: motiongear_fuzz::write_seeds("allowed"),
    |data: &[u8]| {
        motiongear_fuzz::allowed::run(data);
    }
);
