//! Disks of other machines, over a real sshd of the test's own, with the shells and `dd` of the field.
//!
//! * `far`: the machine: an sshd, its configuration and keys, and what runs below it
//! * `source`: seeded and scanned as any other disk
//! * `faults`: what goes wrong on the way and there

mod far;
mod faults;
mod source;
