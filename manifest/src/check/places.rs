//! Where the manifest's rows put records: within their packs as sealed, and no two of them in one place.

use crate::catalogue::Place;
use crate::documents::seal::{Seal, pack_number};
use crate::error::{FormatError, Result};
use crate::geometry::PAGE_BYTES;
use crate::pack::MAX_PACK_BYTES;
use crate::record::record_bytes;
use std::collections::BTreeMap;

/// Runs of pages before they are sorted and joined for the first time.
const FIRST_JOIN: usize = 1 << 20;
/// Bits of a count of pages; that of a pack's pages needs 22 at most.
const COUNT_BITS: u32 = 27;
/// Bits of a page's number in its pack.
const PAGE_BITS: u32 = 21;

/// Runs of pages that records take, 8 bytes each: pack, first page, count. What lies together is one run, so that a disk that was
/// copied alone takes next to nothing, and 50 TB of many disks at once 400 MB before they join.
pub(super) struct Places {
    /// By number: place in the seal's list, and length, bytes.
    packs: BTreeMap<u32, (u64, u64)>,
    /// Of the seal's list, for messages.
    files: Vec<String>,
    runs: Vec<u64>,
    join_at: usize,
}

impl Places {
    pub(super) fn new(seal: &Seal) -> Self {
        let packs = seal.packs.iter().zip(0..).filter_map(|(p, at)| Some((pack_number(&p.file)?, (at, p.bytes))));
        Places {
            packs: packs.collect(),
            files: seal.packs.iter().map(|pack| pack.file.clone()).collect(),
            runs: Vec::new(),
            join_at: FIRST_JOIN,
        }
    }

    /// Takes in the place of a record.
    ///
    /// # Errors
    /// Its pack is not sealed, or it does not end within it; it lies in another record.
    pub(super) fn add(&mut self, place: &Place) -> Result<()> {
        debug_assert!(MAX_PACK_BYTES / u64::from(PAGE_BYTES) <= 1 << PAGE_BITS);
        let Some((pack, bytes)) = self.packs.get(&place.pack) else {
            let found = format!("pack {}", place.pack);
            return Err(FormatError::damaged("Manifest row of a block", "a pack that the seal lists", found));
        };
        let length = record_bytes(place.stored_bytes);
        let end = place.offset.saturating_add(length);
        if end > *bytes {
            let (expected, found) = (format!("a record within {bytes} bytes"), format!("one that ends at {end}"));
            return Err(FormatError::damaged(format!("Manifest row in pack {}", place.pack), expected, found));
        }
        let page = u64::from(PAGE_BYTES);
        let run = run((pack << PAGE_BITS) | (place.offset / page), length / page);
        match self.runs.last_mut() {
            Some(last) if start(*last) + count(*last) == start(run) && pack_of(*last) == pack_of(run) => {
                *last += count(run)
            }
            _ => self.runs.push(run),
        }
        if self.runs.len() >= self.join_at {
            self.join()?;
            self.join_at = FIRST_JOIN.max(2 * self.runs.len());
        }
        Ok(())
    }

    /// Sorts and joins what there is.
    ///
    /// # Errors
    /// Two records lie in one place.
    pub(super) fn join(&mut self) -> Result<()> {
        self.runs.sort_unstable();
        let mut joined: usize = 0;
        for at in 1..self.runs.len() {
            let (last, next) = (self.runs[joined], self.runs[at]);
            let end = start(last) + count(last);
            if pack_of(last) == pack_of(next) && start(next) < end {
                let file = usize::try_from(pack_of(next)).ok().and_then(|at| self.files.get(at));
                let page = start(next) & ((1 << PAGE_BITS) - 1);
                return Err(FormatError::damaged(
                    file.map_or("Manifest", String::as_str),
                    "each record in a place of its own",
                    format!("one that begins within another, at byte {}", page * u64::from(PAGE_BYTES)),
                ));
            }
            if pack_of(last) == pack_of(next) && start(next) == end {
                self.runs[joined] += count(next);
            } else {
                joined += 1;
                self.runs[joined] = next;
            }
        }
        self.runs.truncate(joined + 1);
        Ok(())
    }
}

fn run(start: u64, pages: u64) -> u64 {
    start << COUNT_BITS | pages
}
fn start(run: u64) -> u64 {
    run >> COUNT_BITS
}
fn pack_of(run: u64) -> u64 {
    run >> (COUNT_BITS + PAGE_BITS)
}
fn count(run: u64) -> u64 {
    run & ((1 << COUNT_BITS) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Codec;

    fn places() -> Places {
        let packs = BTreeMap::from([(7, (0, 1 << 20)), (9, (1, MAX_PACK_BYTES))]);
        Places { packs, files: vec!["packs/7".into(), "packs/9".into()], runs: Vec::new(), join_at: 4 }
    }
    fn place(pack: u32, page: u64, pages: u32) -> Place {
        let (offset, stored_bytes) = (page * 4096, pages * 4096 - 128);
        Place { pack, offset, stored_bytes, codec: Codec::None }
    }

    #[test]
    fn records_fill_their_packs_in_any_order_and_none_lies_in_another() {
        let mut all = places();
        let mut order: Vec<u64> = (1..256).collect();
        order.sort_by_key(|page| page * 97 % 257);
        order.iter().for_each(|page| all.add(&place(7, *page, 1)).unwrap());
        let last = MAX_PACK_BYTES / 4096 - 1;
        all.add(&place(9, last, 1)).unwrap();
        all.join().unwrap();
        assert_eq!(all.runs.len(), 2);
        assert_eq!(count(all.runs[0]), 255);
        assert!(all.add(&place(7, 255, 2)).is_err(), "behind the end of its pack");
        assert!(all.add(&place(8, 1, 1)).is_err(), "in a pack that is not sealed");
        let twice = all.add(&place(9, last, 1)).and_then(|()| all.join());
        assert!(twice.is_err(), "in one place with another");
        let mut inside = places();
        inside.add(&place(9, 10, 20)).unwrap();
        inside.add(&place(9, 15, 1)).unwrap();
        assert!(inside.join().is_err(), "inside another");
    }
}
