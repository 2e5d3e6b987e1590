//! What a platform noted of changes, and how far it is believed: blocks that it calls clean are not read, but for a
//! rolling share of them, which is audited. It may only ever save reading: once caught lying, every block is read.

use crate::copy::bitmap::Bitmap;
use crate::copy::known::Known;
use crate::error::Result;
use crate::ledger::branch::Tracked;
use crate::source::tracking::{Distrust, Noted};
use motiongear_manifest::catalogue::Catalogue;
use serde::Serialize;

/// How far a record of changes was believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Trust {
    /// Blocks that were not read, because it called them clean.
    pub trusted_blocks: u64,
    /// Blocks that it called clean and that were read all the same.
    pub audited_blocks: u64,
    /// Why every block was read.
    pub reread: Option<Distrust>,
}

/// What to read of a disk.
pub struct Hint {
    /// Blocks to leave out.
    pub skip: Bitmap,
    /// Blocks that are called clean and are read.
    pub audited: Bitmap,
    /// Where the next audit begins.
    pub audit_next: u64,
    /// Why nothing is left out.
    pub distrust: Option<Distrust>,
}

impl Hint {
    /// Everything is read.
    pub fn none(blocks: u64, why: Distrust, audit_next: u64) -> Hint {
        Hint { skip: Bitmap::new(blocks), audited: Bitmap::new(blocks), audit_next, distrust: Some(why) }
    }

    /// What a record of changes leaves to read, if its `reference` can be believed: the ranges that `tell` tells, blocks that had changed
    /// or could not be read before, and `percent` of the rest.
    ///
    /// # Errors
    /// The platform does not tell; the ledger cannot be read.
    pub fn of(
        reference: &Result<Noted, Distrust>,
        tell: &dyn Fn(&mut dyn FnMut(u64, u64)) -> Result<()>,
        tracked: Option<(Tracked, Vec<u8>)>,
        known: &Known,
        percent: u8,
    ) -> Result<Hint> {
        let geometry = known.geometry;
        let blocks = geometry.blocks();
        let (tracked, changed) = match (tracked, reference) {
            (Some(tracked), Ok(_)) => tracked,
            (tracked, reference) => {
                let why = reference.as_ref().err().copied().unwrap_or(Distrust::Missing);
                return Ok(Hint::none(blocks, why, tracked.map_or(0, |(tracked, _)| tracked.audit_next)));
            }
        };
        let mut read = Bitmap::from_bytes(blocks, &changed);
        let block_bytes = u64::from(geometry.block_bytes());
        let mut add = |offset: u64, bytes: u64| {
            let end = offset.saturating_add(bytes).min(geometry.bytes());
            (offset / block_bytes..end.div_ceil(block_bytes)).for_each(|block| read.insert(block));
        };
        tell(&mut add)?;
        for range in Catalogue::open_reader(&known.manifest)?.unreadable(&known.generation)? {
            add(range.offset, range.bytes);
        }
        Ok(Hint::auditing(&read, tracked.audit_next, percent))
    }

    /// What leaves that were told leave to read: all that they do not call `unchanged`, and `percent` of the disk besides.
    pub fn of_leaves(unchanged: &Bitmap, from: u64, percent: u8) -> Hint {
        let mut read = Bitmap::new(unchanged.len());
        (0..read.len()).filter(|block| !unchanged.contains(*block)).for_each(|block| read.insert(block));
        Hint::auditing(&read, from, percent)
    }

    /// Of what is not to be `read`, `percent` of the disk from block `from` on, and from the front when the end is reached.
    fn auditing(read: &Bitmap, from: u64, percent: u8) -> Hint {
        let blocks = read.len();
        let from = if from < blocks { from } else { 0 };
        let share = (blocks * u64::from(percent)).div_ceil(100);
        let (mut skip, mut audited) = (Bitmap::new(blocks), Bitmap::new(blocks));
        let mut audit_next = from;
        let mut left = share;
        for block in (from..blocks).chain(0..from).filter(|block| !read.contains(*block)) {
            match left {
                0 => skip.insert(block),
                _ => {
                    audited.insert(block);
                    audit_next = block + 1;
                    left -= 1;
                }
            }
        }
        Hint { skip, audited, audit_next, distrust: None }
    }

    /// Whether an audited block is among those that were found to `differ`: then all that was left out is to be read, and nothing else.
    pub fn is_a_lie(&mut self, differ: &Bitmap) -> bool {
        let lied = (0..differ.len()).any(|block| self.audited.contains(block) && differ.contains(block));
        if lied {
            self.doubt(Distrust::Lied);
        }
        lied
    }

    /// All that was left out is to be read, and nothing else: because of `why`, nothing is believed any more.
    pub fn doubt(&mut self, why: Distrust) {
        let mut rest = Bitmap::new(self.skip.len());
        (0..rest.len()).filter(|block| !self.skip.contains(*block)).for_each(|block| rest.insert(block));
        self.skip = rest;
        self.distrust = Some(why);
    }

    /// How far it was believed, in the end.
    pub fn trust(&self) -> Trust {
        let trusted_blocks = if self.distrust.is_some() { 0 } else { self.skip.count() };
        Trust { trusted_blocks, audited_blocks: self.audited.count(), reread: self.distrust }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(of: &Bitmap) -> Vec<u64> {
        (0..of.len()).filter(|block| of.contains(*block)).collect()
    }

    #[test]
    fn audits_go_round_the_clean_blocks_until_each_was_read() {
        let mut read = Bitmap::new(10);
        [2, 3, 9].into_iter().for_each(|block| read.insert(block));
        let (mut from, mut seen) = (0, Vec::new());
        for _ in 0..4 {
            let hint = Hint::auditing(&read, from, 20);
            assert_eq!((hint.audited.count(), hint.skip.count()), (2, 5));
            seen.extend(blocks(&hint.audited));
            from = hint.audit_next;
        }
        // The last one began at 8 and went on at the front.
        assert_eq!((seen, from), ([0, 1, 4, 5, 6, 7, 0, 8].to_vec(), 1));
        assert_eq!(Hint::auditing(&read, 0, 0).skip.count(), 7);
        assert_eq!(Hint::auditing(&read, 99, 100).skip.count(), 0);
        assert_eq!(Hint::auditing(&Bitmap::new(3), 0, 1).audited.count(), 1, "of a small disk one block at least");
    }

    #[test]
    fn a_lie_turns_what_was_left_out_into_what_is_read() {
        let mut hint = Hint::auditing(&Bitmap::new(4), 1, 50);
        let mut differ = Bitmap::new(4);
        differ.insert(0);
        assert!(!hint.is_a_lie(&differ));
        assert_eq!(hint.trust(), Trust { trusted_blocks: 2, audited_blocks: 2, reread: None });
        differ.insert(2);
        assert!(hint.is_a_lie(&differ));
        assert_eq!(blocks(&hint.skip), [1, 2]);
        assert_eq!(hint.trust(), Trust { trusted_blocks: 0, audited_blocks: 2, reread: Some(Distrust::Lied) });
    }
}
