//! What a volume holds now: `STATE/volumes/DISKUUID.leaves`, one leaf of 32 bytes a block behind a page that says whose they
//! are. Flat, so that a delta re-digests a 1 TiB disk in a fraction of a second. A cache of what the volume is, written by
//! read-back; its root is in the ledger.

use crate::error::{Error, IoContext, Result};
use motiongear_manifest::geometry::Geometry;
use motiongear_manifest::tree::{Digest, Leaf, Merger};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use uuid::Uuid;

const MAGIC: [u8; 8] = *b"MGLEAVES";
const HEAD_BYTES: u64 = 4096;
/// Leaves that are gathered before they are written.
const GATHERED_BYTES: usize = 128 << 10;

/// The open file of one disk.
pub struct Leaves {
    file: File,
    path: PathBuf,
    geometry: Geometry,
    start: u64,
    gathered: Vec<u8>,
}

impl Leaves {
    /// Where the leaves of a disk's volume are kept.
    pub fn path(state: &Path, disk: Uuid) -> PathBuf {
        state.join("volumes").join(format!("{disk}.leaves"))
    }

    /// Opens the file of a disk, or makes it; leaves that were never put read as zeros.
    ///
    /// # Errors
    /// It belongs to another disk or geometry, or cannot be written.
    pub fn open(state: &Path, disk: Uuid, geometry: Geometry) -> Result<Leaves> {
        let path = Self::path(state, disk);
        let what = || format!("Leaves of a volume {}", path.display());
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path).context(what)?;
        let mut head = [0u8; 48];
        head[0..8].copy_from_slice(&MAGIC);
        head[8..12].copy_from_slice(&1u32.to_le_bytes());
        head[12..16].copy_from_slice(&geometry.block_bytes().to_le_bytes());
        head[16..24].copy_from_slice(&geometry.bytes().to_le_bytes());
        head[24..40].copy_from_slice(disk.as_bytes());
        let length = file.metadata().context(what)?.len();
        let mut found = [0u8; 48];
        if length >= HEAD_BYTES {
            file.read_exact_at(&mut found, 0).context(what)?;
        }
        if found != head {
            // A new file, one of a power cut before its head was written, or a disk that has another size by now.
            file.set_len(0).context(what)?;
            file.set_len(HEAD_BYTES + geometry.blocks() * 32).context(what)?;
            file.write_all_at(&head, 0).context(what)?;
            file.sync_all().context(what)?;
        }
        // Also where the file was there: the process that made it may have been killed before its name was durable.
        crate::io::sync_dir(&state.join("volumes"))?;
        Ok(Leaves { file, path, geometry, start: 0, gathered: Vec::new() })
    }

    /// Puts the leaf of a block. Durable after [`Self::sync`].
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn put(&mut self, block: u64, leaf: Leaf) -> Result<()> {
        let next = self.start + self.gathered.len() as u64 / 32;
        if block != next || self.gathered.len() >= GATHERED_BYTES {
            self.write_out()?;
            self.start = block;
        }
        self.gathered.extend_from_slice(leaf.as_bytes());
        Ok(())
    }

    fn write_out(&mut self) -> Result<()> {
        if !self.gathered.is_empty() {
            let what = || format!("Leaves of a volume {}", self.path.display());
            self.file.write_all_at(&self.gathered, HEAD_BYTES + self.start * 32).context(what)?;
            self.gathered.clear();
        }
        Ok(())
    }

    /// Makes all leaves durable.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn sync(&mut self) -> Result<()> {
        self.write_out()?;
        self.file.sync_data().context(|| format!("Leaves of a volume {}", self.path.display()))
    }

    /// The digest that the leaves merge to, with some of them replaced (block, leaf); `None` for a disk of fewer than two
    /// blocks.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn digest(&mut self, replaced: &[(u64, Leaf)]) -> Result<Option<Digest>> {
        self.write_out()?;
        let mut merger = Merger::new();
        let mut piece = vec![0; GATHERED_BYTES];
        let blocks = self.geometry.blocks();
        let mut block = 0;
        while block < blocks {
            let count = (blocks - block).min(GATHERED_BYTES as u64 / 32);
            let piece = &mut piece[..count as usize * 32];
            self.file
                .read_exact_at(piece, HEAD_BYTES + block * 32)
                .context(|| format!("Leaves of a volume {}", self.path.display()))?;
            for (at, leaf) in piece.chunks_exact(32).enumerate() {
                let number = block + at as u64;
                let other = replaced.iter().find(|(replaced, _)| *replaced == number);
                merger.push(other.map_or_else(|| Leaf::from_slice(leaf), |(_, leaf)| Ok(*leaf))?);
            }
            block += count;
        }
        Ok(merger.finish())
    }

    /// The leaf of one block.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn get(&mut self, block: u64) -> Result<Leaf> {
        self.write_out()?;
        let mut leaf = [0; 32];
        let read = self.file.read_exact_at(&mut leaf, HEAD_BYTES + block * 32);
        read.context(|| format!("Leaves of a volume {}", self.path.display()))?;
        if block >= self.geometry.blocks() {
            return Err(Error::failed(format!("Leaves of a volume {}: no block {block}", self.path.display())));
        }
        Ok(Leaf::from_bytes(leaf))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use motiongear_manifest::tree::leaf;

    #[test]
    fn leaves_come_back_and_merge_to_the_digest() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("volumes")).unwrap();
        let disk = Uuid::from_u128(9);
        let data: Vec<u8> = (0..9000 * 64).map(|i| (i / 7) as u8).collect();
        let geometry = Geometry::new(data.len() as u64, 65536).unwrap();
        let mut leaves = Leaves::open(dir.path(), disk, geometry).unwrap();
        let leaf_of = |block: u64| {
            let offset = geometry.offset(block);
            leaf(offset, &data[offset as usize..][..geometry.len(block) as usize])
        };
        for block in [3, 4, 5, 0, 1, 2, 6, 8] {
            leaves.put(block, leaf_of(block)).unwrap();
        }
        assert_ne!(leaves.digest(&[]).unwrap(), Some(Digest::of(&data)));
        assert_eq!(leaves.digest(&[(7, leaf_of(7))]).unwrap(), Some(Digest::of(&data)));
        leaves.put(7, leaf_of(7)).unwrap();
        leaves.sync().unwrap();
        let mut again = Leaves::open(dir.path(), disk, geometry).unwrap();
        assert_eq!(again.digest(&[]).unwrap(), Some(Digest::of(&data)));
        assert_eq!(again.get(8).unwrap(), leaf_of(8));
        let other = Geometry::new(100, 65536).unwrap();
        assert_eq!(Leaves::open(dir.path(), disk, other).unwrap().digest(&[]).unwrap(), None);
    }
}
