//! A few known blocks by which a disk is recognised where no id of hardware decides: clones of one template have one size and one
//! partition table, but not one content.

use super::known::Known;
use super::patience::{Medium, Patient};
use crate::error::{Error, IoContext, Result};
use crate::io::{Completion, Engine, Pool, Readable};
use motiongear_manifest::catalogue::{BlockRow, BlockState, Catalogue};
use motiongear_manifest::tree::leaf;
use std::collections::BTreeMap;
use std::sync::Arc;
use uuid::Uuid;

/// Blocks that are picked by chance, besides the first and the last.
const RANDOM: usize = 16;
/// Draws for them, at most: of a nearly empty disk most draws meet zeros only.
const DRAWS: usize = 64;
/// Rows looked at for one block that is not zero.
const ROWS: usize = 256;
/// Times [`ROWS`] for the first and the last block that is not zero.
const STRETCHES: usize = 64;
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

/// Compares the first, the last and some other committed blocks of `known` that are not zero with what is on `disk` now. Blocks that
/// cannot be read are left out: what is wrong with them shows when they are copied.
///
/// # Errors
/// The manifest cannot be read; the way to the disk is lost; the job was stopped.
pub fn compare(disk: &Arc<dyn Readable>, known: &Known, engine: Engine, medium: Option<&Medium>) -> Result<Samples> {
    let picked = pick(known)?;
    let mut found = Samples::default();
    if picked.is_empty() {
        return Ok(found);
    }
    let geometry = known.geometry;
    let pool = Pool::new(geometry.block_bytes() as usize, DEPTH)?;
    let mut queue = Patient::new(disk.clone().queue(engine, DEPTH)?, medium.cloned());
    let mut left = picked.values();
    loop {
        while queue.in_flight() < DEPTH {
            let Some(row) = left.next() else { break };
            queue.read(row.block, geometry.offset(row.block), pool.take(), geometry.len(row.block) as usize);
        }
        let Some(Completion { token: block, buffer, result, .. }) = queue.wait()? else { return Ok(found) };
        match (result, buffer, picked.get(&block)) {
            (Ok(()), Some(buffer), Some(row)) => {
                found.compared += 1;
                found.differing += u64::from(leaf(geometry.offset(block), &buffer) != row.leaf);
            }
            (Err(error), ..) if disk.is_lost(&error) => {
                return Err(error).context(|| format!("Block {block}: comparing it with what was copied"));
            }
            _ => {}
        }
    }
}

/// The rows to compare, by block.
fn pick(known: &Known) -> Result<BTreeMap<u64, BlockRow>> {
    let catalogue = Catalogue::open_reader(&known.manifest)?;
    let rows = |from: u64, limit: usize| {
        catalogue.rows(&known.generation, &known.geometry, known.encrypted, from, limit).map_err(Error::from)
    };
    let stored = |row: &BlockRow| row.state == BlockState::Stored;
    let mut picked = BTreeMap::new();
    // What was committed need not reach the end of the disk: the last row is where nothing follows any more.
    let (mut low, mut high) = (0, known.geometry.blocks());
    while low < high {
        let middle = low + (high - low) / 2;
        match rows(middle, 1)?.first() {
            Some(row) => low = row.block + 1,
            None => high = middle,
        }
    }
    let end = low;
    let mut at = 0;
    for _ in 0..STRETCHES {
        let stretch = rows(at, ROWS)?;
        let found = stretch.iter().copied().find(stored);
        at = stretch.last().map_or(end, |row| row.block + 1);
        if found.is_some() || at >= end {
            picked.extend(found.map(|row| (row.block, row)));
            break;
        }
    }
    let mut before = end;
    for _ in 0..STRETCHES {
        let from = before.saturating_sub(ROWS as u64);
        let found = rows(from, ROWS)?.into_iter().rev().find(|row| row.block < before && stored(row));
        before = from;
        if found.is_some() || before == 0 {
            picked.extend(found.map(|row| (row.block, row)));
            break;
        }
    }
    let wanted = picked.len() + RANDOM;
    for _ in 0..DRAWS {
        if picked.len() == wanted || end == 0 {
            break;
        }
        let from = Uuid::new_v4().as_u64_pair().1 % end;
        picked.extend(rows(from, ROWS)?.into_iter().find(stored).map(|row| (row.block, row)));
    }
    Ok(picked)
}
