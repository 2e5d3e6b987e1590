//! Machines that run under QEMU: its monitor, and snapshots of their disks taken through it.
//! Source: <https://www.qemu.org/docs/master/interop/qmp-spec.html>, qmp-ref, bitmaps, live-block-operations beside it.
//!
//! * `client`: one conversation with a monitor; nothing in it is believed before it is bounded
//! * `machine`: what the monitor says of the machine's disks
//! * `drive`: how a disk of a machine is named as a source
//! * `snapshot`: all disks of a machine at one instant, as NBD exports
//! * `scratch`: where the guest's overwritten data go meanwhile
//! * `release`: takes everything of ours out of a QEMU again, whoever left it there
//! * `tracking`: dirty bitmaps: their names, and which of them may be believed

mod client;
mod drive;
mod machine;
mod release;
mod scratch;
mod snapshot;
mod tracking;

pub use client::Qmp;
pub use drive::Drive;
pub use machine::{Disk, Machine};
pub use release::{Released, release};
pub use snapshot::{Taking, Wish, release_machine};
pub use tracking::Bitmap;

use crate::source::tracking::OURS;
