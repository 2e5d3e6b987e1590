//! `seal.json`: the first thing that is read on an array, by everyone.

use super::{Verdict, document};
use motiongear_manifest::documents::seal::Seal;

const VALID: &[u8] = include_bytes!("valid/seal.json");

pub fn run(data: &[u8]) -> Verdict {
    document::run::<Seal>(data, VALID)
}

pub fn seeds() -> Vec<Vec<u8>> {
    document::seeds(VALID)
}
