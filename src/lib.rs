//! MotionGear: the map of the code.
#![allow(missing_docs)]

pub mod context;
pub mod error;
pub mod lang;
pub mod plan;
pub mod units;

pub mod array;
pub mod copy;
pub mod io;
pub mod job;
pub mod ledger;
pub mod monitor;
pub mod source;
pub mod trust;
pub mod volume;

pub mod cli;
pub mod custody;
pub mod erase;
pub mod import;
pub mod init;
pub mod inspect;
pub mod rehearse;
pub mod report;
pub mod restore;
pub mod scan;
pub mod seal;
pub mod seed;
pub mod status;
pub mod verify;
