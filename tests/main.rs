//! All tests that drive the engine as a whole, in one program: one link instead of one a file.

mod import;
mod shipment;
mod source;
mod udev;
