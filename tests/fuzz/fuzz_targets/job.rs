#![no_main]
libfuzzer_sys::fuzz_target!(
    init: motiongear_fuzz::write_seeds("job"),
    |data: &[u8]| {
        motiongear_fuzz::job::run(data);
    }
);
