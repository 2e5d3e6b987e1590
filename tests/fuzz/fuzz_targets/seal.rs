#![no_main]
libfuzzer_sys::fuzz_target!(
    init: motiongear_fuzz::write_seeds("seal"),
    |data: &[u8]| {
        motiongear_fuzz::seal::run(data);
    }
);
