#![no_main]
libfuzzer_sys::fuzz_target!(
    init: motiongear_fuzz::write_seeds("partition"),
    |data: &[u8]| {
        motiongear_fuzz::partition::run(data);
    }
);
