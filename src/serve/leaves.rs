//! The leaves of a disk's blocks as an export: a scan moves 32 bytes a block instead of the block.

use super::source::SourceExport;
use crate::copy::crew::cpu_time;
use crate::copy::handles::Handles;
use crate::copy::throttle::Throttle;
use crate::copy::zeros::{ZeroLeaves, is_zero};
use crate::error::Result;
use crate::nbd::Sizes;
use crate::nbd::serve::{Export, Unread};
use crate::nbd::wire::Extent;
use motiongear_manifest::geometry::Geometry;
use motiongear_manifest::tree::leaf;
use std::sync::Arc;

/// Bytes of a leaf.
pub const LEAF_BYTES: u64 = 32;
/// What one request may make us read.
const MAX_READ_BYTES: u64 = 64 << 20;

/// The leaves of one disk at one block size.
pub struct LeavesExport {
    disk: Arc<SourceExport>,
    geometry: Geometry,
    zeros: Arc<ZeroLeaves>,
    /// Shared by all clients of the disk: what is hashed at once.
    buffers: Arc<Handles<Vec<u8>>>,
    throttle: Arc<Throttle>,
}

impl LeavesExport {
    /// Of `disk`.
    pub fn new(
        disk: Arc<SourceExport>,
        geometry: Geometry,
        zeros: Arc<ZeroLeaves>,
        buffers: Arc<Handles<Vec<u8>>>,
        throttle: Arc<Throttle>,
    ) -> LeavesExport {
        LeavesExport { disk, geometry, zeros, buffers, throttle }
    }

    fn leaf(&self, block: u64, buffer: &mut Vec<u8>, into: &mut [u8]) -> Result<Result<(), Unread>> {
        let (offset, len) = (self.geometry.offset(block), self.geometry.len(block));
        buffer.resize(len as usize, 0);
        if let Err(unread) = self.disk.read(offset, buffer) {
            return Ok(Err(Unread { offset: block * LEAF_BYTES, ..unread }));
        }
        let before = cpu_time();
        let found = if is_zero(buffer) { self.zeros.leaf(block, len)? } else { leaf(offset, buffer) };
        into.copy_from_slice(found.as_bytes());
        self.throttle.worked(cpu_time().saturating_sub(before));
        Ok(Ok(()))
    }
}

impl Export for LeavesExport {
    fn bytes(&self) -> u64 {
        self.geometry.blocks() * LEAF_BYTES
    }

    fn sizes(&self) -> Sizes {
        // Block sizes are powers of two, and so is this.
        let blocks = (MAX_READ_BYTES / u64::from(self.geometry.block_bytes())).max(1);
        let maximum = u32::try_from(blocks * LEAF_BYTES).unwrap_or(LEAF_BYTES as u32);
        Sizes { minimum: LEAF_BYTES as u32, preferred: maximum, maximum }
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Unread> {
        for (at, into) in into.chunks_mut(LEAF_BYTES as usize).enumerate() {
            let block = offset / LEAF_BYTES + at as u64;
            let failed = |error: crate::error::Error| {
                tracing::debug!(%error, "a leaf cannot be told");
                Unread::at(block * LEAF_BYTES)
            };
            let work = |buffer: &mut Vec<u8>| (self.leaf(block, buffer, into), true);
            let told = self.buffers.with(|| Ok(Vec::new()), || self.throttle.check(), work);
            told.and_then(|told| told).map_err(failed)??;
        }
        Ok(())
    }

    fn extents(&self, _: u64, bytes: u64, _: usize) -> Result<Vec<Extent>, Unread> {
        Ok(vec![Extent { bytes, status: 0 }])
    }
}
