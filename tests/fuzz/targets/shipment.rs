//! `shipment.json`.

use super::{Verdict, document};
use motiongear_manifest::documents::shipment::Shipment;

const VALID: &[u8] = include_bytes!("valid/shipment.json");

pub fn run(data: &[u8]) -> Verdict {
    document::run::<Shipment>(data, VALID)
}

pub fn seeds() -> Vec<Vec<u8>> {
    document::seeds(VALID)
}
