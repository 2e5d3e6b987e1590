//! Disks behind NBD servers, with the servers of the field: qemu-nbd and nbdkit.
//!
//! * `client`: every style of the protocol, TLS, what is written
//! * `source`: seeded and scanned as any other disk, and the servers' faults
//! * `image`: images in QEMU's formats, through a server of our own
//! * `vddk`: disks under VMware, by a stand-in for the plugin that needs VMware's library
//! * `volume`: imported into, and the servers' faults

mod client;
mod image;
pub mod servers;
mod source;
mod vddk;
mod volume;
