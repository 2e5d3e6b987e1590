//! What happens to a block between reader and pack: zero or not, leaf, unchanged or not, compressed, encrypted, framed.

use super::disk::SeedDisk;
use crate::array::packs::Output;
use crate::copy::credits::Credits;
use crate::copy::crew::cpu_time;
use crate::copy::priority::compute_in_idle_time;
use crate::copy::read::Piece;
use crate::copy::throttle::Throttle;
use crate::copy::zeros::{ZeroLeaves, is_zero};
use crate::error::{Error, Result};
use crate::io::{Buffer, Pool};
use crate::monitor::DiskProgress;
use crossbeam_channel::{Receiver, Sender};
use motiongear_manifest::catalogue::{BlockRow, BlockState, UnreadableRange};
use motiongear_manifest::record::{Encoder, RecordId};
use motiongear_manifest::tree::{Digest, leaf};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

/// One of the threads that turn blocks into records.
pub struct Worker<'a> {
    /// Compresses and encrypts.
    pub encoder: Encoder,
    /// Leaves of zero blocks.
    pub zeros: Arc<ZeroLeaves>,
    /// Buffers for records.
    pub records: Pool,
    /// The CPU limit.
    pub throttle: &'a Throttle,
    /// Given back at once for a block that did not change.
    pub credits: &'a Credits,
    /// What the disks are.
    pub disks: &'a [SeedDisk],
    /// Counters by disk.
    pub progress: &'a [DiskProgress],
    /// Where each disk stands among the counters.
    pub slots: &'a [usize],
    /// Digests of disks that are a single block, by index: no leaves merge to them.
    pub singles: &'a Mutex<BTreeMap<usize, Digest>>,
}

impl Worker<'_> {
    /// Works until the readers are done or the writer is gone.
    ///
    /// # Errors
    /// Encoding failed.
    pub fn run(mut self, pieces: &Receiver<Piece>, out: &Sender<Output>) -> Result<()> {
        compute_in_idle_time();
        for piece in pieces {
            let before = cpu_time();
            let open = match piece {
                Piece::Data { disk, block, buffer, unreadable, known } => {
                    match self.block(disk, block, &buffer, unreadable, known)? {
                        Some(output) => {
                            drop(buffer);
                            out.send(output).is_ok()
                        }
                        None => true,
                    }
                }
                Piece::Zeros { disk, first, known } => self.hole(disk, first, known, out)?,
            };
            self.throttle.worked(cpu_time().saturating_sub(before));
            if !open {
                break;
            }
        }
        Ok(())
    }

    fn hole(&self, disk: usize, first: u64, known: Vec<Option<BlockRow>>, out: &Sender<Output>) -> Result<bool> {
        let SeedDisk { geometry, generation, .. } = &self.disks[disk];
        let (mut rows, mut bytes) = (Vec::with_capacity(known.len()), 0);
        for (block, known) in (first..).zip(known) {
            let len = geometry.len(block);
            let leaf = self.zeros.leaf(block, len)?;
            if geometry.blocks() == 1 {
                self.single(disk, &vec![0; len as usize]);
            }
            if known.is_some_and(|row| row.leaf == leaf && row.state == BlockState::Zero) {
                self.unchanged(disk, len);
                continue;
            }
            rows.push(BlockRow { block, leaf, state: BlockState::Zero, place: None });
            bytes += u64::from(len);
        }
        let generation = generation.id;
        let output = Output { disk, generation, rows, record: None, unreadable: Vec::new(), bytes, credit: 0 };
        Ok(output.rows.is_empty() || out.send(output).is_ok())
    }

    fn block(
        &mut self,
        disk: usize,
        block: u64,
        buffer: &Buffer,
        unreadable: Vec<UnreadableRange>,
        known: Option<BlockRow>,
    ) -> Result<Option<Output>> {
        let SeedDisk { geometry, generation, number, .. } = &self.disks[disk];
        let len = geometry.len(block);
        let zero = is_zero(buffer);
        let leaf = if zero { self.zeros.leaf(block, len)? } else { leaf(geometry.offset(block), buffer) };
        if geometry.blocks() == 1 {
            self.single(disk, buffer);
        }
        let state = match (unreadable.is_empty(), zero) {
            (false, _) => BlockState::Unreadable,
            (true, true) => BlockState::Zero,
            (true, false) => BlockState::Stored,
        };
        if known.is_some_and(|row| row.leaf == leaf && row.state == state) && state != BlockState::Unreadable {
            self.unchanged(disk, len);
            self.credits.release(u64::from(len));
            return Ok(None);
        }
        let record = if zero {
            None
        } else {
            let Some(mut out) = self.records.take_while_open() else {
                self.throttle.check()?;
                return Err(Error::failed("Records: their buffers are gone"));
            };
            out.set_len(out.capacity());
            let id = RecordId { disk: *number, generation: generation.number, block };
            let encoded = self.encoder.encode(id, buffer, &mut out).map_err(Error::from)?;
            Some((out, encoded))
        };
        let row = BlockRow { block, leaf, state, place: None };
        Ok(Some(Output {
            disk,
            generation: generation.id,
            rows: vec![row],
            record,
            unreadable,
            bytes: u64::from(len),
            credit: u64::from(len),
        }))
    }

    fn unchanged(&self, disk: usize, len: u32) {
        self.progress[self.slots[disk]].skipped.fetch_add(u64::from(len), Ordering::Relaxed);
    }

    fn single(&self, disk: usize, bytes: &[u8]) {
        self.singles.lock().unwrap_or_else(PoisonError::into_inner).insert(disk, Digest::of(bytes));
    }
}
