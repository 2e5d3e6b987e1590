//! motiongear-verify
fn main() {}
