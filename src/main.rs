//! motiongear
fn main() {}
