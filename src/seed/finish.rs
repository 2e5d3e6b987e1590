//! Marks disks complete: digest and time, as soon as the last block of each is durable.

use super::outcome::SeededDisk;
use crate::context::now;
use crate::error::{Error, Result};
use crate::monitor::DiskProgress;
use motiongear_manifest::catalogue::{BlockState, Catalogue, Generation};
use motiongear_manifest::documents::seal::{Basis, Consistency};
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
    /// Merges the leaves and marks the generation complete: fuzzy, where its disk `moved` while it was read. `counters` are those of
    /// its disk, and `single` is the digest of a disk of one block.
    ///
    /// # Errors
    /// A block is missing, or the manifest cannot be written.
    pub fn disk(
        &self,
        generation: &Generation,
        geometry: &Geometry,
        single: Option<Digest>,
        moved: Option<&str>,
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
        let mut generation = generation.clone();
        if generation.finished_at.is_none() {
            let catalogue = self.lock();
            if let Some(why) = moved {
                (generation.consistency, generation.basis) = (Consistency::Fuzzy, Basis::None);
                generation.point_in_time = Some(format!("asserted, but {why}"));
                let text = format!("{} is fuzzy although it was asserted to stand still: {why}", counters.name);
                catalogue.add_event(now()?, "fuzzy", None, Some(generation.disk), &text)?;
            }
            let Generation { id, consistency, basis, point_in_time, source, .. } = &generation;
            catalogue.set_point_in_time(*id, *consistency, *basis, point_in_time.as_deref(), source)?;
            catalogue.finish_generation(*id, now()?, &digest)?;
        }
        let unreadable = reader.unreadable(&generation)?.iter().map(|r| r.bytes).sum();
        debug_assert!(blocks.unreadable > 0 || unreadable == 0, "{:?}", BlockState::Unreadable);
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Ok(SeededDisk {
            disk: counters.name.clone(),
            bytes: geometry.bytes(),
            digest,
            consistency: generation.consistency,
            basis: generation.basis,
            fuzzy_because: moved.map(str::to_owned),
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
