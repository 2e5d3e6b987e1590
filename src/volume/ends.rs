//! Block 0 and the last block of a disk, fetched into memory for [`super::head::release`].

use crate::copy::fetch::{Damage, Fetch, Pick, Sink, Wanted, fetch};
use crate::error::{Error, Result};
use crate::io::Buffer;
use motiongear_manifest::catalogue::{BlockRow, Catalogue};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// The proven blocks, or why they are not.
pub enum Ends {
    /// Block 0, and the last block where that is another one.
    Proven {
        /// Block 0.
        first: Vec<u8>,
        /// The last block.
        last: Option<Vec<u8>>,
    },
    /// At least one is damaged.
    Damaged(Vec<Damage>),
}

/// Fetches both of a disk that is not empty; `wanted.pick` is not looked at. Up to 32 MiB of memory.
///
/// # Errors
/// An interruption, or a manifest that does not fit its disk.
pub fn fetch_ends(job: &Fetch<'_>, catalogue: &Catalogue, wanted: &Wanted) -> Result<Ends> {
    let geometry = wanted.geometry;
    let last = geometry.blocks().saturating_sub(1);
    let mut blocks = vec![0, last];
    blocks.dedup();
    let held = Held::default();
    fetch(job, catalogue, &[Wanted { pick: Pick::Blocks(blocks), ..wanted.clone() }], &held)?;
    let mut held = held.0.into_inner().unwrap_or_else(PoisonError::into_inner);
    if !held.damaged.is_empty() {
        return Ok(Ends::Damaged(held.damaged));
    }
    let mut take = |block: u64| match held.blocks.remove(&block) {
        Some(Some(bytes)) => Ok(bytes),
        Some(None) => Ok(vec![0; geometry.len(block) as usize]),
        None => Err(Error::failed(format!("Disk {}: block {block} was lost on its way", wanted.name))),
    };
    let first = take(0)?;
    let last = if last > 0 { Some(take(last)?) } else { None };
    Ok(Ends::Proven { first, last })
}

/// Keeps the few blocks in memory.
#[derive(Default)]
struct Held(Mutex<HeldBlocks>);

#[derive(Default)]
struct HeldBlocks {
    /// `None`: all zeros.
    blocks: BTreeMap<u64, Option<Vec<u8>>>,
    damaged: Vec<Damage>,
}

impl Held {
    fn keep(&self, change: impl FnOnce(&mut HeldBlocks)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Sink for Held {
    fn zeros(&self, _: usize, rows: &[BlockRow]) -> Result<()> {
        self.keep(|held| held.blocks.extend(rows.iter().map(|row| (row.block, None))));
        Ok(())
    }
    fn block(&self, _: usize, row: &BlockRow, data: Buffer) -> Result<()> {
        self.keep(|held| drop(held.blocks.insert(row.block, Some(data.to_vec()))));
        Ok(())
    }
    fn damaged(&self, _: usize, damage: Damage) -> Result<()> {
        self.keep(|held| held.damaged.push(damage));
        Ok(())
    }
}
