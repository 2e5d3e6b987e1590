//! All tests that drive the engine as a whole, in one program: one link instead of one a file.

mod chain;
mod cloud;
mod common;
mod crash;
mod custody;
mod erase;
mod faults;
mod fixtures;
mod fuzz_corpus;
mod import;
mod interrupt;
mod ledger;
mod manual;
mod nbd;
mod qmp;
mod report;
mod restore;
mod seal;
mod seed;
mod serve;
mod shipment;
mod snapshot;
mod source;
mod ssh;
mod udev;
mod verify;
