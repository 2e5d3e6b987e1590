//! report
pub mod facts;
