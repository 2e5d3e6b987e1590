//! Machines that run under libvirt, with a guest that writes to both of its disks all the time; a real libvirtd, which sees nothing of
//! this host's own.
//!
//! * `host`: libvirtd, the machine and its guest
//! * `seed`: one instant of both disks; what becomes of the job when anything ends or fails; what is refused
//! * `scan`: the checkpoint as a hint: believed, missing, broken, lying

mod host;
mod scan;
mod seed;
