//! Machines that run under libvirt: snapshots of their disks, taken through its backup jobs by stock `virsh`.
//! Source: <https://libvirt.org/formatbackup.html>, formatcheckpoint.html and formatdomain.html beside it, virsh(1).
//!
//! * `drive`: how a disk of a machine is named as a source
//! * `virsh`: one call; nothing that it says is believed before it is bounded
//! * `xml`: what is read from XML and written to it
//! * `domain`: what libvirt says of a machine and its disks
//! * `checkpoint`: the records of changes: their names, and which of them may be believed
//! * `job`: the backup job of a machine: whose it is, and its end
//! * `snapshot`: all disks of a machine at one instant, as NBD exports

mod checkpoint;
mod domain;
mod drive;
mod job;
mod snapshot;
mod virsh;
mod xml;

pub use checkpoint::Mark;
pub use drive::DomainDisk;
pub use snapshot::{Taking, Wish, release_domain};
