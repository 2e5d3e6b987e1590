//! Leaves of zero blocks. A leaf depends on its offset, so every zero block of a disk has another one; hashing them costs as
//! much as hashing data (204 s per TiB and core). They are computed once per host and kept in `STATE/zero`.
//!
//! One file per block size, in segments of [`SEGMENT_LEAVES`] leaves, each followed by a BLAKE3 of the segment, its place and the
//! block size: a file that was cut short, damaged or mixed up costs time, never a wrong leaf.

use crate::error::{IoContext, Result};
use motiongear_manifest::tree::{Leaf, leaf};
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Leaves in a segment: 512 bytes of them, which stand for 16 MiB of zeros at 1 MiB blocks. Small, for a segment is computed
/// whole, 3 ms of a worker in which reads pile up: with 4096 the first zero block of 16 MiB cost 15 s, and workers that shared
/// a segment both computed it (382 s of CPU for 1 TiB instead of 204).
pub(super) const SEGMENT_LEAVES: u64 = 16;
const SEGMENT_BYTES: usize = SEGMENT_LEAVES as usize * 32;
/// A segment on disk: the leaves and their BLAKE3.
const STORED_BYTES: u64 = SEGMENT_BYTES as u64 + 32;
/// Segments kept in memory; readers walk forwards, a few disks at once.
const KEPT_SEGMENTS: usize = 256;

/// The cache for one block size; shared by all threads of a job.
pub struct ZeroLeaves {
    file: File,
    path: PathBuf,
    block_bytes: u32,
    zeros: Box<[u8]>,
    segments: Mutex<Segments>,
}

#[derive(Default)]
struct Segments {
    kept: HashMap<u64, (u64, Arc<[u8]>)>,
    clock: u64,
}

impl ZeroLeaves {
    /// Opens or creates `STATE/zero/BLOCKBYTES.leaves`.
    ///
    /// # Errors
    /// The state directory cannot be written.
    pub fn open(state: &Path, block_bytes: u32) -> Result<Arc<Self>> {
        let path = state.join("zero").join(format!("{block_bytes}.leaves"));
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.context(|| format!("Cache of zero leaves {}", path.display()))?;
        let zeros = vec![0; block_bytes as usize].into_boxed_slice();
        Ok(Arc::new(ZeroLeaves { file, path, block_bytes, zeros, segments: Mutex::default() }))
    }

    /// The leaf of block `block` of `len` zero bytes; `len` is less than the block size for a disk's last block only.
    ///
    /// # Errors
    /// The cache file cannot be read or extended.
    pub fn leaf(&self, block: u64, len: u32) -> Result<Leaf> {
        if len != self.block_bytes {
            return Ok(leaf(block * u64::from(self.block_bytes), &self.zeros[..len as usize]));
        }
        let segment = self.segment(block / SEGMENT_LEAVES)?;
        let at = (block % SEGMENT_LEAVES) as usize * 32;
        Ok(Leaf::from_slice(&segment[at..at + 32])?)
    }

    fn segment(&self, index: u64) -> Result<Arc<[u8]>> {
        let mut segments = self.segments.lock().unwrap_or_else(PoisonError::into_inner);
        segments.clock += 1;
        let now = segments.clock;
        if let Some((used, segment)) = segments.kept.get_mut(&index) {
            *used = now;
            return Ok(segment.clone());
        }
        drop(segments);
        // Without the lock: two threads may compute one segment, and both are right.
        let segment: Arc<[u8]> = match self.load(index) {
            Some(segment) => segment.into(),
            None => self.compute(index)?.into(),
        };
        let mut segments = self.segments.lock().unwrap_or_else(PoisonError::into_inner);
        if segments.kept.len() >= KEPT_SEGMENTS
            && let Some(oldest) = segments.kept.iter().min_by_key(|(_, (used, _))| *used).map(|(index, _)| *index)
        {
            segments.kept.remove(&oldest);
        }
        segments.kept.insert(index, (now, segment.clone()));
        Ok(segment)
    }

    fn load(&self, index: u64) -> Option<Vec<u8>> {
        let mut stored = vec![0; STORED_BYTES as usize];
        self.file.read_exact_at(&mut stored, index.checked_mul(STORED_BYTES)?).ok()?;
        let sum = stored.split_off(SEGMENT_BYTES);
        (self.sum(index, &stored).as_bytes().as_slice() == sum).then_some(stored)
    }

    fn sum(&self, index: u64, leaves: &[u8]) -> blake3::Hash {
        blake3::Hasher::new()
            .update(leaves)
            .update(&index.to_le_bytes())
            .update(&self.block_bytes.to_le_bytes())
            .finalize()
    }

    fn compute(&self, index: u64) -> Result<Vec<u8>> {
        let mut stored = Vec::with_capacity(STORED_BYTES as usize);
        for block in index * SEGMENT_LEAVES..(index + 1) * SEGMENT_LEAVES {
            stored.extend_from_slice(leaf(block * u64::from(self.block_bytes), &self.zeros).as_bytes());
        }
        let mut whole = stored.clone();
        whole.extend_from_slice(self.sum(index, &stored).as_bytes());
        // No sync: what a power cut takes from a cache is only computed again.
        self.file
            .write_all_at(&whole, index * STORED_BYTES)
            .context(|| format!("Cache of zero leaves {}", self.path.display()))?;
        Ok(stored)
    }
}

/// Whether all bytes are zero. Page by page, so that data is told from zeros at its first page; the fold becomes vector code.
pub fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(4096).all(|page| page.iter().fold(0u8, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cached_leaves_are_the_leaves_of_zeros_also_from_a_damaged_file() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("zero")).unwrap();
        let expected = |block: u64| leaf(block * 65536, &[0; 65536]);
        let cache = ZeroLeaves::open(dir.path(), 65536).unwrap();
        for block in [0, 1, 15, 16, 4095, 4096, 8191] {
            assert_eq!(cache.leaf(block, 65536).unwrap(), expected(block));
        }
        assert_eq!(cache.leaf(3, 100).unwrap(), leaf(3 * 65536, &[0; 100]));
        let path = dir.path().join("zero/65536.leaves");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[100] ^= 1;
        bytes.truncate(bytes.len() - 5);
        std::fs::write(&path, &bytes).unwrap();
        let cache = ZeroLeaves::open(dir.path(), 65536).unwrap();
        for block in [3, 5000] {
            assert_eq!(cache.leaf(block, 65536).unwrap(), expected(block));
        }
        // Segment 1 where segment 0 belongs, and whole files of another block size.
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.copy_within(STORED_BYTES as usize..2 * STORED_BYTES as usize, 0);
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(ZeroLeaves::open(dir.path(), 65536).unwrap().leaf(3, 65536).unwrap(), expected(3));
        std::fs::write(dir.path().join("zero/4096.leaves"), &bytes).unwrap();
        assert_eq!(ZeroLeaves::open(dir.path(), 4096).unwrap().leaf(3, 4096).unwrap(), leaf(3 * 4096, &[0; 4096]));
    }

    #[test]
    fn one_bit_is_not_zero() {
        let mut bytes = vec![0; 70_001];
        assert!(is_zero(&bytes));
        for at in [0, 4095, 4096, 70_000] {
            bytes[at] = 1;
            assert!(!is_zero(&bytes));
            bytes[at] = 0;
        }
        assert!(is_zero(&[]));
    }
}
