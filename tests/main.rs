//! All tests that drive the engine as a whole, in one program: one link instead of one a file.

mod common;
mod custody;
mod erase;
mod import;
mod ledger;
mod report;
mod restore;
mod shipment;
mod source;
mod udev;
mod verify;
