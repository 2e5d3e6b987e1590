//! What of a disk comes next: blocks to read, and holes. Holes are found some way before the reader is there, for their leaves
//! are work for a worker that would otherwise wait for the disk; met in order, a long hole leaves the disk idle instead.
//!
//! Each block is looked at once: what was a hole then is zeros, whatever is written there later.

use super::bitmap::Bitmap;
use super::known::KnownRows;
use super::zeros::SEGMENT_LEAVES;
use crate::copy::patience::Medium;
use crate::error::Result;
use crate::io::Readable;
use motiongear_manifest::catalogue::BlockRow;
use motiongear_manifest::geometry::Geometry;
use std::collections::VecDeque;
use std::sync::Arc;

/// Blocks looked at in one step, so that the first read does not wait for a whole disk to be looked at.
const STEP: usize = 32;
/// Blocks to read that are kept: 0.5 MiB of rows.
const KEPT_BLOCKS: usize = 4096;
/// Holes that are kept, each of [`SEGMENT_LEAVES`] blocks at most: 0.3 MiB of rows.
const KEPT_HOLES: usize = 256;

/// A block to read, and its known row.
pub(super) type Wanted = (u64, Option<BlockRow>);
/// The first block of a hole, and the known row of each.
pub(super) type Hole = (u64, Vec<Option<BlockRow>>);

/// Walks the wanted blocks of a disk once, in order.
pub(super) struct Ahead<'a> {
    medium: &'a Medium,
    geometry: Geometry,
    skip: Option<&'a Bitmap>,
    known: Option<KnownRows>,
    /// The data extent that `next` is in or before; `None` means no data from there on.
    extent: Option<(u64, u64)>,
    /// The first block not looked at; `None` at the end.
    next: Option<u64>,
    blocks: VecDeque<Wanted>,
    holes: VecDeque<Hole>,
}

impl<'a> Ahead<'a> {
    pub(super) fn new(
        medium: &'a Medium,
        geometry: Geometry,
        skip: Option<&'a Bitmap>,
        known: Option<KnownRows>,
    ) -> Self {
        let extent = Some((0, 0));
        Ahead { medium, geometry, skip, known, extent, next: Some(0), blocks: VecDeque::new(), holes: VecDeque::new() }
    }

    /// Looks a step further on `disk`, unless enough is kept. After an error it may be called again.
    ///
    /// # Errors
    /// The disk cannot tell its holes, or the manifest not its rows.
    pub(super) fn look(&mut self, disk: &Arc<dyn Readable>) -> Result<()> {
        for _ in 0..STEP {
            if self.blocks.len() >= KEPT_BLOCKS || self.holes.len() >= KEPT_HOLES {
                break;
            }
            let Some(block) = self.next.and_then(|from| self.wanted(from)) else {
                self.next = None;
                break;
            };
            let (start, len) = (self.geometry.offset(block), u64::from(self.geometry.len(block)));
            if self.extent.is_some_and(|(_, end)| end <= start) {
                self.extent = self.next_data(disk, start)?;
            }
            let known = self.known.as_mut().map(|rows| rows.row(block)).transpose()?.flatten();
            self.next = Some(block + 1);
            if self.extent.is_none_or(|(data, _)| data >= start + len) {
                self.hole(block, known);
            } else {
                self.blocks.push_back((block, known));
            }
        }
        Ok(())
    }

    fn next_data(&self, disk: &Arc<dyn Readable>, start: u64) -> Result<Option<(u64, u64)>> {
        if !disk.is_far() {
            return disk.next_data(start);
        }
        let disk = disk.clone();
        self.medium.call(move || disk.next_data(start))
    }

    fn wanted(&self, from: u64) -> Option<u64> {
        match self.skip {
            Some(skip) => skip.next_missing(from),
            None => (from < self.geometry.blocks()).then_some(from),
        }
    }

    fn hole(&mut self, block: u64, known: Option<BlockRow>) {
        match self.holes.back_mut() {
            // A run ends with its segment of the cache of zero leaves, so that no two workers compute the same one.
            Some((first, rows)) if *first + rows.len() as u64 == block && !block.is_multiple_of(SEGMENT_LEAVES) => {
                rows.push(known)
            }
            _ => self.holes.push_back((block, vec![known])),
        }
    }

    /// The next block to read.
    pub(super) fn block(&mut self) -> Option<Wanted> {
        self.blocks.pop_front()
    }

    /// The next hole; not the last one that was found while it may still grow.
    pub(super) fn take_hole(&mut self) -> Option<Hole> {
        (self.holes.len() > 1 || self.next.is_none()).then(|| self.holes.pop_front()).flatten()
    }

    /// Whether all was looked at.
    pub(super) fn ended(&self) -> bool {
        self.next.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::copy::throttle::{Limits, Throttle};
    use crate::io::{Access, DirectFile};
    use crate::monitor::{MediumKind, Progress};
    use proptest::prelude::*;
    use std::os::unix::fs::FileExt;

    const BLOCK: u32 = 64 << 10;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn every_wanted_block_comes_once_and_only_holes_as_holes(
            data in prop::collection::btree_set(0u64..200, 0..40),
            skipped in prop::collection::btree_set(0u64..200, 0..40),
            hole_first in any::<bool>(),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("disk");
            let file = std::fs::File::create(&path).unwrap();
            file.set_len(200 * u64::from(BLOCK)).unwrap();
            data.iter().for_each(|block| file.write_all_at(&[1; 100], block * u64::from(BLOCK) + 7000).unwrap());
            file.sync_all().unwrap();
            let mut skip = Bitmap::new(200);
            skipped.iter().for_each(|block| skip.insert(*block));
            let file: Arc<dyn Readable> = Arc::new(DirectFile::open(&path, Access::Read).unwrap());
            let progress = Progress::new("seed", vec![]);
            let medium = Medium::new(MediumKind::Source, "db01/sda", &Throttle::new(Limits::default()), &progress);
            let geometry = Geometry::new(200 * u64::from(BLOCK), BLOCK).unwrap();
            let mut ahead = Ahead::new(&medium, geometry, Some(&skip), None);
            let (mut read, mut zeros) = (Vec::new(), Vec::new());
            loop {
                ahead.look(&file).unwrap();
                let hole = if hole_first { ahead.take_hole() } else { None };
                if let Some((first, rows)) = hole {
                    zeros.extend(first..first + rows.len() as u64);
                } else if let Some((block, _)) = ahead.block() {
                    read.push(block);
                } else if let Some((first, rows)) = ahead.take_hole() {
                    prop_assert_eq!(first / SEGMENT_LEAVES, (first + rows.len() as u64 - 1) / SEGMENT_LEAVES);
                    zeros.extend(first..first + rows.len() as u64);
                } else if ahead.ended() {
                    break;
                }
            }
            prop_assert!(zeros.iter().all(|block| !data.contains(block)));
            prop_assert!(read.is_sorted() && zeros.is_sorted());
            let mut all = [read, zeros].concat();
            all.sort_unstable();
            prop_assert_eq!(all, (0..200).filter(|block| !skipped.contains(block)).collect::<Vec<_>>());
        }
    }
}
