#![no_main]
libfuzzer_sys::fuzz_target!(
    init: motiongear_fuzz::write_seeds("holder"),
    |data: &[u8]| {
        motiongear_fuzz::holder::run(data);
    }
);
