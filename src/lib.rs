//! MotionGear: the map of the code.
//!
//! ```text
//! branch          inspect → init → seed → seal → verify → custody dispatch → report handover      scan
//! data centre     custody receive → verify → import (or restore) → drill → report import → erase
//! between         serve: a branch server's disks for the seeding host; a shipment's disks, unimported
//! both            status · pause · resume · limit · keygen · ledger · rehearse (all of it on one machine)
//! ```
//! Data flows one way. `cli` turns what was typed into a verb's `Options`; a verb knows the modules below and never another
//! verb (`rehearse`, which plays them all, excepted); nothing below `cli` looks at the environment.
//!
//! | module | one outside thing |
//! | --- | --- |
//! | [`io`] | how bytes move: one trait over io_uring and threads, aligned buffers, durable files |
//! | [`copy`] | the data plane that verbs share: reading disks, fetching records, leaves of zeros, limits |
//! | [`nbd`] | disks and volumes behind a socket: the NBD protocol, both sides of it |
//! | [`rbd`], [`openstack`] | what makes volumes: Ceph's images; Identity and Block Storage |
//! | [`ssh`] | disks of machines that are too old for us: the `dd` there, over stock OpenSSH |
//! | [`qmp`], [`libvirt`] | machines that run: snapshots of their disks, taken through QEMU's monitor or by libvirt |
//! | [`source`] | what a disk is: file or block device, bound by identity; snapshot hooks and the thaw watchdog |
//! | [`array`] | the medium: names of the files on it, and who holds it |
//! | [`sealed`] | disks of a sealed shipment as exports, unimported, each block proven before it is given |
//! | [`volume`] | where disks land: image files, devices; head and tail withheld; read-back |
//! | [`ledger`] | what this host knows, in SQLite |
//! | [`trust`] | signers, recipients, keys; opening a shipment in the right order |
//! | [`drill`] | machines booted from clones of recovery points, or from a sealed array: the one verb that leaves a process behind |
//! | [`monitor`], [`job`] | progress for people; control of a running job |
//! | [`screen`] | what reaches a terminal, without what would steer it |
//!
//! The format on the array is the crate `motiongear-manifest` (`manifest/FORMAT.md`). Words: a *disk* of a *machine* of a
//! *site* is read from a *source* into *blocks*; a block's *leaf* is its BLAKE3 subtree at its offset, and leaves merge to the
//! disk's *digest*, which equals `b3sum`; *records* in *packs* hold blocks; the *manifest* says where each lies; the *seal*
//! is the signed statement that pins everything; *custody* follows it; a *volume* is where a disk lands, and belongs to it
//! for ever; the *ledger* is what this host remembers.

pub mod context;
pub mod error;
pub mod lang;
pub mod plan;
pub mod program;
pub mod screen;
pub mod toml_text;
pub mod units;

pub mod array;
pub mod copy;
pub mod io;
pub mod job;
pub mod ledger;
pub mod libvirt;
pub mod monitor;
pub mod nbd;
pub mod openstack;
pub mod qmp;
pub mod rbd;
pub mod sealed;
pub mod source;
pub mod ssh;
pub mod trust;
pub mod volume;

pub mod cli;
pub mod custody;
pub mod drill;
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
pub mod serve;
pub mod status;
pub mod verify;
