//! Machines that run under QEMU, with a guest that writes to both of its disks all the time.
//!
//! * `guest`: the guest (`guest.c`), which makes a point in time checkable
//! * `machine`: a machine with it
//! * `seed`: one instant of both disks, and what becomes of QEMU and of the guest when anything ends or fails
//! * `scan`: the dirty bitmap as a hint: believed, missing, inconsistent, lying
//! * `cloud`: the whole way, from the machine that runs into volumes of a cloud, and what changed since
//! * `monitor`: monitors that are away, taken, hostile or not QEMU's

mod cloud;
pub mod guest;
pub mod machine;
mod monitor;
pub mod scan;
pub mod seed;
