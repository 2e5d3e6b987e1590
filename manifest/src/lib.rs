//! The MotionGear array format, version 1: what lies on a transport array, how it is written, and how a stranger checks it.
//! `FORMAT.md` is the specification; this crate is the format and nothing else.

pub mod allowed;
pub mod catalogue;
pub mod check;
pub mod code;
pub mod database;
pub mod documents;
pub mod envelope;
pub mod error;
pub mod geometry;
pub mod names;
pub mod pack;
pub mod record;
pub mod sign;
mod sign_short;
mod spelling;
pub mod sums;
pub mod tree;

pub use error::{FormatError, Result};

/// The format version that this crate writes and reads.
pub const FORMAT: u32 = 1;
