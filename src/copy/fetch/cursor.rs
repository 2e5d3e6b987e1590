//! The rows of one disk in block order, a slice at a time, and all disks merged by where their records lie.

use super::{Pick, Wanted};
use crate::error::{Error, Result};
use motiongear_manifest::catalogue::{BlockRow, Catalogue, Place};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// Rows of one disk that are kept, however many disks there are: 65536 rows of about 80 bytes are 5 MiB in all.
const KEPT_ROWS: usize = 65_536;
/// Rows fetched at once from one disk.
const SLICE_ROWS: usize = 1024;

/// Walks the wanted rows of one disk.
pub struct Cursor<'a> {
    catalogue: &'a Catalogue,
    wanted: &'a Wanted,
    encrypted: bool,
    slice: usize,
    rows: VecDeque<BlockRow>,
    /// With [`Pick::From`]: the next block. With [`Pick::Blocks`]: the index of the next in the list.
    next: u64,
}

impl<'a> Cursor<'a> {
    /// Starts at the first wanted block.
    pub fn new(catalogue: &'a Catalogue, wanted: &'a Wanted, encrypted: bool) -> Self {
        let next = match wanted.pick {
            Pick::From(block) => block,
            Pick::Blocks(_) => 0,
        };
        Cursor { catalogue, wanted, encrypted, slice: SLICE_ROWS, rows: VecDeque::new(), next }
    }

    /// The next row without taking it.
    ///
    /// # Errors
    /// A row is missing or breaks a rule.
    pub fn peek(&mut self) -> Result<Option<&BlockRow>> {
        if self.rows.is_empty() {
            self.fill()?;
        }
        Ok(self.rows.front())
    }

    /// Takes the next row.
    ///
    /// # Errors
    /// A row is missing or breaks a rule.
    pub fn take(&mut self) -> Result<Option<BlockRow>> {
        if self.rows.is_empty() {
            self.fill()?;
        }
        Ok(self.rows.pop_front())
    }

    fn fill(&mut self) -> Result<()> {
        let Wanted { generation, geometry, .. } = self.wanted;
        match &self.wanted.pick {
            Pick::From(_) => {
                if self.next >= geometry.blocks() {
                    return Ok(());
                }
                let rows = self.catalogue.rows(generation, geometry, self.encrypted, self.next, self.slice)?;
                for row in &rows {
                    self.expect(self.next, row)?;
                    self.next += 1;
                }
                if rows.is_empty() {
                    return Err(self.missing(self.next));
                }
                self.rows = rows.into();
            }
            Pick::Blocks(blocks) => {
                let Some(block) = usize::try_from(self.next).ok().and_then(|at| blocks.get(at)) else { return Ok(()) };
                let row = self.catalogue.rows(generation, geometry, self.encrypted, *block, 1)?.into_iter().next();
                let row = row.ok_or_else(|| self.missing(*block))?;
                self.expect(*block, &row)?;
                self.next += 1;
                self.rows.push_back(row);
            }
        }
        Ok(())
    }

    fn expect(&self, block: u64, row: &BlockRow) -> Result<()> {
        if row.block == block { Ok(()) } else { Err(self.missing(block)) }
    }

    fn missing(&self, block: u64) -> Error {
        Error::failed(format!("Manifest of disk {}: expected a row for block {block}, found none", self.wanted.name))
            .next("this manifest does not describe the whole disk; ask the branch to seal again")
    }
}

/// All wanted disks, merged so that the packs are read from front to back.
pub(super) struct Merged<'a> {
    cursors: Vec<Cursor<'a>>,
    /// The place of each cursor's next row, smallest on top; rows without record come at once.
    order: BinaryHeap<Reverse<(Option<Place>, usize)>>,
}

impl<'a> Merged<'a> {
    pub fn new(catalogue: &'a Catalogue, wanted: &'a [Wanted], encrypted: bool) -> Result<Self> {
        let slice = (KEPT_ROWS / wanted.len().max(1)).clamp(16, SLICE_ROWS);
        let mut merged = Merged { cursors: Vec::with_capacity(wanted.len()), order: BinaryHeap::new() };
        for (at, wanted) in wanted.iter().enumerate() {
            let mut cursor = Cursor { slice, ..Cursor::new(catalogue, wanted, encrypted) };
            if let Some(row) = cursor.peek()? {
                merged.order.push(Reverse((row.place, at)));
            }
            merged.cursors.push(cursor);
        }
        Ok(merged)
    }

    /// The next row, with the index of its disk among the wanted ones.
    pub fn take(&mut self) -> Result<Option<(usize, BlockRow)>> {
        let Some(Reverse((_, at))) = self.order.pop() else { return Ok(None) };
        let row = self.cursors[at].take()?;
        if let Some(next) = self.cursors[at].peek()? {
            self.order.push(Reverse((next.place, at)));
        }
        Ok(row.map(|row| (at, row)))
    }
}
