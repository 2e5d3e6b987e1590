//! What the ledger already knows of a disk's blocks, read alongside the disk.

use crate::error::Result;
use motiongear_manifest::catalogue::{BlockRow, Catalogue, Generation};
use motiongear_manifest::geometry::Geometry;
use std::path::PathBuf;

/// Rows fetched at a time.
const CHUNK: usize = 1024;

/// Where a disk's known rows are.
#[derive(Debug, Clone)]
pub struct Known {
    /// The live manifest.
    pub manifest: PathBuf,
    /// Which generation.
    pub generation: Generation,
    /// Of the disk.
    pub geometry: Geometry,
    /// Whether its records are encrypted.
    pub encrypted: bool,
}

/// Walks the rows forwards, with a connection of its own.
pub struct KnownRows {
    known: Known,
    catalogue: Catalogue,
    rows: std::collections::VecDeque<BlockRow>,
    next: u64,
    done: bool,
}

impl KnownRows {
    /// Opens the manifest.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn open(known: &Known) -> Result<Self> {
        let catalogue = Catalogue::open_reader(&known.manifest)?;
        Ok(KnownRows { known: known.clone(), catalogue, rows: Default::default(), next: 0, done: false })
    }

    /// The row of `block`, if there is one. Blocks must be asked for in rising order.
    ///
    /// # Errors
    /// The manifest cannot be read.
    pub fn row(&mut self, block: u64) -> Result<Option<BlockRow>> {
        loop {
            while self.rows.front().is_some_and(|row| row.block < block) {
                self.rows.pop_front();
            }
            if let Some(row) = self.rows.front() {
                return Ok((row.block == block).then_some(*row));
            }
            if self.done {
                return Ok(None);
            }
            let from = self.next.max(block);
            let rows =
                self.catalogue.rows(&self.known.generation, &self.known.geometry, self.known.encrypted, from, CHUNK)?;
            self.done = rows.len() < CHUNK;
            self.next = rows.last().map_or(from, |row| row.block + 1);
            self.rows = rows.into();
        }
    }
}
