//! How a disk is cut into blocks: sizes, counts, offsets. All checked; nothing here can overflow on hostile numbers.

use crate::error::{FormatError, Result};

/// Smallest block, bytes.
pub const MIN_BLOCK_BYTES: u32 = 64 << 10;
/// Largest block, bytes.
pub const MAX_BLOCK_BYTES: u32 = 16 << 20;
/// Block size unless set otherwise, bytes.
pub const DEFAULT_BLOCK_BYTES: u32 = 1 << 20;
/// Page within a block, bytes; also what packs are padded to.
pub const PAGE_BYTES: u32 = 4096;
/// Largest disk that any document may name: 8 EiB − 1, the largest offset of a file.
pub const MAX_DISK_BYTES: u64 = i64::MAX as u64;

/// A disk's size and the size of its blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    bytes: u64,
    block_bytes: u32,
}

impl Geometry {
    /// A disk of `bytes` bytes in blocks of `block_bytes` bytes.
    ///
    /// # Errors
    /// `block_bytes` is no power of two within 64 KiB–16 MiB, or `bytes` exceeds [`MAX_DISK_BYTES`].
    pub fn new(bytes: u64, block_bytes: u32) -> Result<Self> {
        check_block_bytes(block_bytes)?;
        if bytes > MAX_DISK_BYTES {
            return Err(FormatError::damaged(
                "Disk size",
                format!("at most {MAX_DISK_BYTES} bytes"),
                bytes.to_string(),
            ));
        }
        Ok(Geometry { bytes, block_bytes })
    }
    /// Size of the disk, bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
    /// Size of a full block, bytes.
    pub fn block_bytes(&self) -> u32 {
        self.block_bytes
    }
    /// Number of blocks; the last may be shorter.
    pub fn blocks(&self) -> u64 {
        self.bytes.div_ceil(u64::from(self.block_bytes))
    }
    /// First byte of `block`. `block` must be below [`Self::blocks`].
    pub fn offset(&self, block: u64) -> u64 {
        debug_assert!(block < self.blocks());
        block * u64::from(self.block_bytes)
    }
    /// Bytes in `block`: the block size, less for the last one. 0 past the end.
    pub fn len(&self, block: u64) -> u32 {
        let Some(offset) = block.checked_mul(u64::from(self.block_bytes)) else { return 0 };
        self.bytes.saturating_sub(offset).min(u64::from(self.block_bytes)) as u32
    }
    /// True for a disk without a byte.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }
}

/// Refuses block sizes outside the format.
///
/// # Errors
/// Not a power of two, or outside 64 KiB–16 MiB.
pub fn check_block_bytes(block_bytes: u32) -> Result<()> {
    if block_bytes.is_power_of_two() && (MIN_BLOCK_BYTES..=MAX_BLOCK_BYTES).contains(&block_bytes) {
        return Ok(());
    }
    Err(FormatError::damaged("Block size", "a power of two from 64 KiB to 16 MiB", format!("{block_bytes} bytes")))
}
