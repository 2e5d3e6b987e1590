//! All integration tests in one program: one link instead of one a file.

mod import;
mod restore;
mod shipment;
mod source;
mod udev;
mod verify;
