//! report
pub mod facts;
mod html;
#[cfg(test)]
mod sample;
mod svg;
mod words;
