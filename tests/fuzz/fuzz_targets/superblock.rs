#![no_main]
libfuzzer_sys::fuzz_target!(
    init: motiongear_fuzz::write_seeds("superblock"),
    |data: &[u8]| {
        motiongear_fuzz::superblock::run(data);
    }
);
