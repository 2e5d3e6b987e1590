//! A few known blocks by which a disk is recognised where no id of hardware decides: clones of one template have one size and one
//! partition table, but not one content.

use super::known::Known;
use super::patience::{Medium, Patient};
use super::zeros::is_zero;
use crate::error::{Error, IoContext, Result};
use crate::io::{Completion, Engine, Pool, Readable};
use motiongear_manifest::catalogue::Catalogue;
use motiongear_manifest::geometry::Geometry;
use motiongear_manifest::tree::{Leaf, leaf};
use std::collections::BTreeMap;
use std::sync::Arc;
use uuid::Uuid;

/// Blocks that are picked by chance, besides the first and the last.
const RANDOM: usize = 16;
/// Draws for them, at most: of a nearly empty disk most meet the same ones.
const DRAWS: usize = 64;
/// Reads under way.
const DEPTH: usize = 4;

/// What a comparison of samples found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Samples {
    /// Blocks that were read.
    pub compared: u64,
    /// Those that hold other bytes than were committed.
    pub differing: u64,
}

impl Samples {
    /// Whether it may be the same disk. A disk in use changes while nobody looks; another one differs wherever it is not the template.
    pub fn fit(&self) -> bool {
        self.differing * 4 <= self.compared
    }
}

/// Blocks by which a disk is recognised, with their leaves.
pub type Picked = BTreeMap<u64, Leaf>;

/// Compares the first, the last and some other committed blocks of `known` that are not zero with what is on `disk` now. Blocks that
/// cannot be read are left out: what is wrong with them shows when they are copied.
///
/// # Errors
/// The manifest cannot be read; the way to the disk is lost; the job was stopped.
pub fn compare(disk: &Arc<dyn Readable>, known: &Known, engine: Engine, medium: Option<&Medium>) -> Result<Samples> {
    let picked = pick(known)?;
    if picked.is_empty() {
        return Ok(Samples::default());
    }
    let mut queue = Patient::new(disk.clone().queue(engine, DEPTH)?, medium.cloned());
    compare_by(&mut queue, disk, &known.geometry, &picked)
}

/// As [`compare`], by a queue on `disk` that is read from afterwards: where the way to a disk may lead to another one next time, what
/// this very way leads to is compared.
///
/// # Errors
/// As [`compare`].
pub fn compare_by(
    queue: &mut Patient,
    disk: &Arc<dyn Readable>,
    geometry: &Geometry,
    picked: &Picked,
) -> Result<Samples> {
    let mut found = Samples::default();
    if picked.is_empty() {
        return Ok(found);
    }
    let depth = queue.depth().clamp(1, DEPTH);
    let pool = Pool::new(geometry.block_bytes() as usize, depth)?;
    let mut left = picked.keys().copied();
    loop {
        while queue.in_flight() < depth {
            let Some(block) = left.next() else { break };
            queue.read(block, geometry.offset(block), pool.take(), geometry.len(block) as usize);
        }
        let Some(Completion { token: block, buffer, result, .. }) = queue.wait()? else { return Ok(found) };
        match (result, buffer, picked.get(&block)) {
            (Ok(()), Some(buffer), Some(known)) => {
                found.compared += 1;
                found.differing += u64::from(leaf(geometry.offset(block), &buffer) != *known);
            }
            (Err(error), ..) if disk.is_lost(&error) => {
                return Err(error).context(|| format!("Block {block}: comparing it with what was copied"));
            }
            _ => {}
        }
    }
}

/// The committed blocks to compare.
///
/// # Errors
/// The manifest cannot be read.
pub fn pick(known: &Known) -> Result<Picked> {
    let catalogue = Catalogue::open_reader(&known.manifest)?;
    let stored = |from: u64, backwards: bool| {
        catalogue.stored_row(&known.generation, &known.geometry, known.encrypted, from, backwards).map_err(Error::from)
    };
    let Some(first) = stored(0, false)? else { return Ok(Picked::new()) };
    let last = stored(known.geometry.blocks(), true)?.unwrap_or(first);
    let mut picked = Picked::from([(first.block, first.leaf), (last.block, last.leaf)]);
    let (wanted, span) = (picked.len() + RANDOM, last.block - first.block + 1);
    for _ in 0..DRAWS {
        if picked.len() == wanted {
            break;
        }
        let from = first.block + random() % span;
        picked.extend(stored(from, false)?.map(|row| (row.block, row.leaf)));
    }
    Ok(picked)
}

/// Some of the blocks that were read in this run: where all is read again, these and no others say what the disk is.
#[derive(Debug, Default)]
pub struct Seen {
    /// Each block that was read is among them with the same chance.
    picked: Picked,
    met: u64,
}

impl Seen {
    /// Takes down a block that was read at `offset`, if chance picks it.
    pub fn note(&mut self, block: u64, offset: u64, bytes: &[u8]) {
        if is_zero(bytes) {
            return;
        }
        self.met += 1;
        if self.picked.len() >= RANDOM {
            let at = usize::try_from(random() % self.met).unwrap_or(usize::MAX);
            let Some(old) = self.picked.keys().nth(at).copied() else { return };
            self.picked.remove(&old);
        }
        self.picked.insert(block, leaf(offset, bytes));
    }

    /// Those that were picked.
    pub fn picked(&self) -> &Picked {
        &self.picked
    }
}

fn random() -> u64 {
    Uuid::new_v4().as_u64_pair().1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_what_was_read_some_are_kept_from_all_over_the_disk_and_no_zeros() {
        let mut seen = Seen::default();
        (0..1000).for_each(|block| seen.note(block, block * 4096, &[(block % 2) as u8; 4096]));
        let picked = seen.picked();
        assert!(picked.len() == RANDOM && picked.keys().all(|block| block % 2 == 1), "{picked:?}");
        assert!(picked.keys().any(|block| *block > 100), "{picked:?}");
        assert!(picked.iter().all(|(block, known)| *known == leaf(block * 4096, &[1; 4096])));
    }

    #[test]
    fn a_quarter_of_a_disk_may_have_changed() {
        let of = |compared, differing| Samples { compared, differing };
        assert!(of(18, 4).fit() && !of(18, 5).fit() && of(0, 0).fit() && !of(1, 1).fit());
    }
}
