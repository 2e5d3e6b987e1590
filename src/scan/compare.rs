//! One block against its row in the ledger.

use crate::copy::bitmap::Bitmap;
use crate::copy::crew::cpu_time;
use crate::copy::priority::compute_in_idle_time;
use crate::copy::read::Piece;
use crate::copy::throttle::Throttle;
use crate::copy::zeros::{ZeroLeaves, is_zero};
use crate::error::{Error, Result};
use crate::monitor::DiskProgress;
use crossbeam_channel::Receiver;
use motiongear_manifest::catalogue::{BlockRow, BlockState};
use motiongear_manifest::geometry::Geometry;
use motiongear_manifest::tree::{Leaf, leaf};
use serde::Serialize;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

/// Blocks by what became of them; they add up to all blocks of the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// The same bytes; with those that a bitmap calls clean, as far as it is trusted.
    pub unchanged: u64,
    /// Other bytes, or readable for the first time.
    pub changed: u64,
    /// Zeros now, and not before.
    pub zeroed: u64,
    /// Cannot be read now, and could before.
    pub newly_unreadable: u64,
    /// Cannot be read now, as before.
    pub unreadable: u64,
}

/// What was found on one disk.
pub struct Comparison {
    /// Counts.
    pub tally: Tally,
    /// What a sync has to look at: all but the unchanged blocks.
    pub wanted: Bitmap,
    /// Blocks with data that are as they were, or are taken to be.
    kept: u64,
    /// Of what was shipped in records: bytes on the disk, and bytes stored.
    shipped: (u64, u64),
    geometry: Geometry,
}

impl Comparison {
    /// Nothing compared yet.
    pub fn new(geometry: Geometry) -> Self {
        Comparison {
            tally: Tally::default(),
            wanted: Bitmap::new(geometry.blocks()),
            kept: 0,
            shipped: (0, 0),
            geometry,
        }
    }

    fn add(&mut self, block: u64, found: Leaf, zero: bool, unreadable: bool, known: Option<BlockRow>) {
        if let Some(place) = known.and_then(|row| row.place) {
            self.shipped.0 += u64::from(self.geometry.len(block));
            self.shipped.1 += u64::from(place.stored_bytes);
        }
        let was_unreadable = known.is_some_and(|row| row.state == BlockState::Unreadable);
        let count = match (unreadable, was_unreadable) {
            (true, true) => &mut self.tally.unreadable,
            (true, false) => &mut self.tally.newly_unreadable,
            (false, false) if known.is_some_and(|row| row.leaf == found) => {
                self.tally.unchanged += 1;
                self.kept += u64::from(!zero);
                return;
            }
            (false, _) if zero => &mut self.tally.zeroed,
            (false, _) => &mut self.tally.changed,
        };
        *count += 1;
        self.wanted.insert(block);
    }

    /// Blocks that are taken to be the same without having been read.
    pub fn trust(&mut self, blocks: u64) {
        self.tally.unchanged += blocks;
        self.kept += blocks;
    }

    /// Whether less is as it was than is different, of all that is or was no zeros.
    pub fn is_mostly_changed(&self) -> bool {
        self.tally.changed + self.tally.zeroed > self.kept
    }

    /// Bytes of blocks with other content; zeroed blocks cost a sync nothing, unreadable ones cannot be sent.
    pub fn changed_bytes(&self) -> u64 {
        (self.tally.changed.saturating_mul(u64::from(self.geometry.block_bytes()))).min(self.geometry.bytes())
    }

    /// Stored bytes ÷ plain bytes of what was shipped. Counted on the way: a walk over the rows before the first read took 20 s
    /// for 50 million blocks.
    pub fn ratio(&self) -> f64 {
        match self.shipped {
            (0, _) => 1.0,
            (plain, stored) => (stored as f64 / plain as f64).min(1.0),
        }
    }
}

/// Works until the readers are done.
///
/// # Errors
/// The cache of zero leaves cannot be used.
pub fn compare(
    pieces: &Receiver<Piece>,
    comparisons: &[Mutex<Comparison>],
    zeros: &[(u32, Arc<ZeroLeaves>)],
    throttle: &Throttle,
    progress: &[DiskProgress],
) -> Result<()> {
    compute_in_idle_time();
    let lock = |disk: usize| comparisons[disk].lock().unwrap_or_else(PoisonError::into_inner);
    let zeros_of = |geometry: &Geometry| {
        let found = zeros.iter().find(|(bytes, _)| *bytes == geometry.block_bytes());
        found
            .map(|(_, zeros)| zeros.clone())
            .ok_or_else(|| Error::failed("Leaves of zero blocks: none for this block size"))
    };
    for piece in pieces {
        let before = cpu_time();
        match piece {
            Piece::Data { disk, block, buffer, unreadable, known } => {
                let geometry = lock(disk).geometry;
                let zero = is_zero(&buffer);
                let found = if zero {
                    zeros_of(&geometry)?.leaf(block, geometry.len(block))?
                } else {
                    leaf(geometry.offset(block), &buffer)
                };
                lock(disk).add(block, found, zero, !unreadable.is_empty(), known);
                progress[disk].done.fetch_add(buffer.len() as u64, Ordering::Relaxed);
            }
            Piece::Zeros { disk, first, known } => {
                let geometry = lock(disk).geometry;
                let zeros = zeros_of(&geometry)?;
                for (block, known) in (first..).zip(known) {
                    let len = geometry.len(block);
                    let found = zeros.leaf(block, len)?;
                    lock(disk).add(block, found, true, false, known);
                    progress[disk].done.fetch_add(u64::from(len), Ordering::Relaxed);
                    progress[disk].zero.fetch_add(u64::from(len), Ordering::Release);
                }
            }
        }
        throttle.worked(cpu_time().saturating_sub(before));
    }
    Ok(())
}
