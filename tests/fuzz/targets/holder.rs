//! `holder.json`.

use super::{Verdict, document};
use motiongear_manifest::documents::holder::Holder;

const VALID: &[u8] = include_bytes!("valid/holder.json");

pub fn run(data: &[u8]) -> Verdict {
    document::run::<Holder>(data, VALID)
}

pub fn seeds() -> Vec<Vec<u8>> {
    document::seeds(VALID)
}
