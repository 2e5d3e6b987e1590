//! A custody event.

use super::{Verdict, document};
use motiongear_manifest::documents::custody::CustodyEvent;

const VALID: &[u8] = include_bytes!("valid/custody.json");

pub fn run(data: &[u8]) -> Verdict {
    document::run::<CustodyEvent>(data, VALID)
}

pub fn seeds() -> Vec<Vec<u8>> {
    document::seeds(VALID)
}
