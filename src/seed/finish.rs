//! Marks disks complete: digest and time, as soon as the last block of each is durable.

use super::outcome::SeededDisk;
use crate::context::now;
use crate::error::{Error, Result};
use crate::monitor::DiskProgress;
use motiongear_manifest::catalogue::{BlockState, Catalogue, Generation};
use motiongear_manifest::geometry::Geometry;
use motiongear_manifest::tree::Digest;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// What the threads of a run need for it.
pub struct Finish<'a> {
    /// The live manifest.
    pub catalogue: &'a Mutex<Catalogue>,
    /// Whether its records are encrypted.
    pub encrypted: bool,
}

impl Finish<'_> {
    /// Merges the leaves and marks the generation complete; `counters` are those of its disk, and `single` is the digest of a disk of one block.
    ///
    /// # Errors
    /// A block is missing, or the manifest cannot be written.
    pub fn disk(
        &self,
        generation: &Generation,
        geometry: &Geometry,
        single: Option<Digest>,
        counters: &DiskProgress,
    ) -> Result<SeededDisk> {
        let path = self.lock().path().to_owned();
        // A connection of its own: millions of rows take their time, and others commit meanwhile.
        let reader = Catalogue::open_reader(&path)?;
        let (blocks, merged) = reader.summarise(generation, geometry, self.encrypted)?;
        let digest = match (geometry.blocks(), merged) {
            (0, _) => Digest::of(&[]),
            (_, Some(digest)) => digest,
            (_, None) => generation.digest.or(single).ok_or_else(|| {
                Error::failed(format!("Disk {}: the digest of its only block is missing", counters.name))
            })?,
        };
        if generation.finished_at.is_none() {
            let Generation { id, consistency, basis, point_in_time, source, .. } = generation;
            let catalogue = self.lock();
            catalogue.set_point_in_time(*id, *consistency, *basis, point_in_time.as_deref(), source)?;
            catalogue.finish_generation(*id, now()?, &digest)?;
        }
        let unreadable = reader.unreadable(generation)?.iter().map(|r| r.bytes).sum();
        debug_assert!(blocks.unreadable > 0 || unreadable == 0, "{:?}", BlockState::Unreadable);
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Ok(SeededDisk {
            disk: counters.name.clone(),
            bytes: geometry.bytes(),
            digest,
            consistency: generation.consistency,
            basis: generation.basis,
            blocks,
            unreadable_bytes: unreadable,
            read_bytes: get(&counters.read),
            skipped_bytes: get(&counters.skipped),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Catalogue> {
        self.catalogue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
