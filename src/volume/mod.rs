//! Volumes: what a disk is imported into. One volume belongs to one disk UUID for ever.
//!
//! * `target`: what `--to` says: `dir:PATH`, `dev:MACHINE/DISK=PATH`, `nbd:MACHINE/DISK=URI`, `rbd:POOL`, `cinder:CLOUD`; `place`:
//!   what that is for one disk; `places`: from the one to the other
//! * `local`: files and block devices of this host; `export`: exports of NBD servers
//! * `store`: volumes that are made in a cloud: `rbd` (Ceph), `cinder` (OpenStack); `served`: one of them, opened
//! * `completed`: by what a volume was completed, as its own mark says
//! * `attachment`: ours, in Block Storage; `attached`: a volume that Compute attaches to this host
//! * `demand`: what volumes that are to be made ask of a cloud; `quota`: of a project's quota
//! * `layer`: what a drill's machine has instead of a volume
//! * `refuse`: what must not be written to
//! * `landing`: the sink that writes proven blocks, flushes, and says how far it has come
//! * `readback`: reading back from the medium by a new handle
//! * `head`: withholding and releasing block 0 and the last block; `ends`: having those two at hand
//! * `leaves`: what each volume holds now, 32 bytes a block
//! * `look`: whether a volume still is what an earlier process left: ends and samples

pub mod attached;
mod attachment;
pub mod cinder;
pub mod completed;
pub mod demand;
pub mod ends;
mod export;
pub mod head;
pub mod landing;
pub mod layer;
pub mod leaves;
pub mod local;
pub mod look;
mod place;
pub mod places;
mod quota;
pub mod rbd;
pub mod readback;
pub mod refuse;
mod served;
pub mod store;
pub mod target;

pub use export::NbdVolume;
pub use local::LocalVolume;
pub use place::Place;
pub use store::Store;

use crate::copy::patience::Patient;
use crate::error::Result;
use crate::io::Engine;
use crate::source::{Identity, SysRoot};

/// A target block device. Whatever asks it for something waits with patience (`copy::patience`): `Interrupted` is an error of
/// every method that does.
pub trait Volume: Send + Sync {
    /// How messages name it: `/dev/vdb`, `/srv/bank/db01/sda.raw`.
    fn name(&self) -> String;
    /// Its size, bytes; at least the disk's.
    fn bytes(&self) -> u64;
    /// What it is bound by, so that another one at its place tomorrow is noticed.
    ///
    /// # Errors
    /// It is gone.
    fn identity(&self, sys: &SysRoot) -> Result<Identity>;
    /// How many writes under way keep it busy: a disk of this host has queues of its own below.
    fn depth(&self) -> usize {
        4
    }
    /// A queue for writing, `depth` requests deep.
    ///
    /// # Errors
    /// The engine cannot be had.
    fn writer(&self, engine: Engine, depth: usize) -> Result<Patient>;
    /// A queue for reading back: where the volume is of this host opened anew, so that nothing the writer did is answered from its
    /// handle.
    ///
    /// # Errors
    /// The volume cannot be opened again, or is another one by now.
    fn reader(&self, engine: Engine, depth: usize) -> Result<Patient>;
    /// Makes a range read as zeros.
    ///
    /// # Errors
    /// The range cannot be written.
    fn write_zeroes(&self, offset: u64, bytes: u64) -> Result<()>;
    /// The first range at or behind `offset` that may hold data; what lies before it are holes, which read as zeros.
    ///
    /// # Errors
    /// The file system does not answer.
    fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>>;
    /// Makes all that was written durable.
    ///
    /// # Errors
    /// Nothing since the last success may be believed.
    fn flush(&self) -> Result<()>;
    /// Whether reads may be answered by a cache instead of the medium: of this host, or of a server that does not tell.
    fn through_cache(&self) -> bool;
    /// Whether the way to the volume is lost: whatever is asked fails from now on. Opened anew, it may go on from the last flush.
    fn is_lost(&self) -> bool {
        false
    }
}
