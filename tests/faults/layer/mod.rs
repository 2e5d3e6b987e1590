//! A file system of the tests' own that knows what is durable: mounted by FUSE under state and volumes, and once more under
//! the array, it can cut the power of both at any sync and say what a real file system might hold afterwards.
//!
//! * `tree`: files, directories and the operations that change them; pure
//! * `journal`: two trees, what a program sees and what is on stable storage, and between them every operation that is not
//!   durable yet; what each kind of sync makes durable
//! * `crash`: what may be left of a journal when the power goes; its tests
//! * `fuse`: the mount; counts syncs, and freezes the world at the n-th
//!
//! What is durable, read strictly, so that a program may rely on nothing that only one file system gives:
//! * fsync and fdatasync of a file: its data and its size; not its name, nor that of a directory above it;
//! * fsync of a directory: the names in it, not its own; a rename between two directories is one step, made durable by
//!   either; what an operation needs comes with it (the creation of what is renamed, an earlier use of the same name);
//! * a write by a handle opened with O_SYNC or O_DSYNC: as if followed by fdatasync.
//!
//! Modes, owners and times of files are taken as durable at once: nothing depends on them. syncfs and sync(2) do not reach a
//! FUSE file system, so a program that relied on them would be found to have synced nothing.

mod crash;
mod fuse;
mod journal;
mod tree;

pub use crash::{Fate, survive};
pub use fuse::{APART, mount};
pub use journal::{World, Written};
pub use tree::{PAGE, Tree};
