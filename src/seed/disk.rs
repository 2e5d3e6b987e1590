//! One disk on its way to the array.

use crate::copy::bitmap::Bitmap;
use crate::copy::known::Known;
use crate::copy::patience::Medium;
use crate::copy::read::{Reopen, Verify};
use crate::error::Result;
use crate::io::Readable;
use crate::source::{Stillness, Watch};
use motiongear_manifest::catalogue::Generation;
use motiongear_manifest::geometry::Geometry;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

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
    /// Compares what is read with what is committed after every reconnect; none where all is read again and compared anyway.
    pub verify: Option<Verify>,
    /// Set by that where a disk that must stand still was written to.
    pub written: Arc<AtomicBool>,
    /// Of a disk that is asserted to stand still: where to see that, and what was seen.
    pub still: Option<(Watch, Stillness)>,
}

impl SeedDisk {
    /// Why a disk that was asserted to stand still did not, as far as can be seen.
    ///
    /// # Errors
    /// It is gone, or its server does not answer.
    pub fn moved(&self) -> Result<Option<String>> {
        let Some((watch, before)) = self.still.clone().filter(|_| self.generation.finished_at.is_none()) else {
            return Ok(None);
        };
        let now = self.medium.call(move || watch.look())?;
        Ok(match now {
            Some(now) => now.moved_since(&before),
            None => Some("nobody can see any more whether it was written to".into()),
        })
    }
}
