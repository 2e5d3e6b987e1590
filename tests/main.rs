//! All integration tests in one program: one link instead of one a file.

mod source;
mod udev;
