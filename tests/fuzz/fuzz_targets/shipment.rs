#![no_main]
libfuzzer_sys::fuzz_target!(
    init: motiongear_fuzz::write_seeds("shipment"),
    |data: &[u8]| {
        motiongear_fuzz::shipment::run(data);
    }
);
