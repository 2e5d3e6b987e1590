//! One disk on its way to the array.

use crate::copy::bitmap::Bitmap;
use crate::copy::known::Known;
use crate::copy::patience::Medium;
use crate::copy::read::{Reopen, Verify};
use crate::io::Readable;
use motiongear_manifest::catalogue::Generation;
use motiongear_manifest::geometry::Geometry;
use std::sync::Arc;

/// One disk of the job.
pub struct SeedDisk {
    /// The number that records carry.
    pub number: u32,
    /// MACHINE/DISK.
    pub name: String,
    /// What is read.
    pub source: Arc<dyn Readable>,
    /// Its source.
    pub medium: Medium,
    /// Size and blocks.
    pub geometry: Geometry,
    /// What is being captured.
    pub generation: Generation,
    /// Blocks that are committed and stay.
    pub skip: Option<Bitmap>,
    /// What earlier blocks were, where all are read again.
    pub known: Option<Known>,
    /// Opens it anew, if it is still the same disk.
    pub reopen: Reopen,
    /// Compares what is read with what is committed; none where all is read again and compared anyway.
    pub verify: Option<Verify>,
}
