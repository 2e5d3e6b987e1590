//! Fault suites: power loss at every sync, damage in every file, media and sources that fail, random histories.
//!
//! `tests/run` runs a bounded selection of each; `tests/faults/full` runs all of it and says how long it took.

mod damage;
mod history;
mod layer;
mod media;
mod power;
