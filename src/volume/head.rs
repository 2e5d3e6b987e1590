//! The head and tail of a volume are withheld until everything else is proven: without them nothing boots or mounts it.
//!
//! Order, and what each wrong order breaks:
//! 1. block 0 and the last block (UEFI falls back to the backup GPT there; and the end of a larger volume, where an older one
//!    may lie) are zeroed and flushed before anything else is written (else a volume that held a system boots half of it);
//! 2. all other blocks are written, flushed, read back;
//! 3. the last block and block 0 without its first 4 KiB are written, flushed and read back;
//! 4. those 4 KiB follow, flushed and read back: the one write that makes the volume usable is the last.

use super::Volume;
use crate::copy::zeros::is_zero;
use crate::error::{Error, Result};
use crate::io::{Buffer, Completion, Engine, Pool};
use motiongear_manifest::geometry::{Geometry, PAGE_BYTES};
use motiongear_manifest::tree::{Digest, Leaf, leaf};

/// How much of the end of a volume larger than its disk is zeroed with the head: more than any backup of a partition table.
const END_BYTES: u64 = 1 << 20;
/// Zeroes are asked for in steps, so that an interruption is not waited for too long.
const ZERO_STEP_BYTES: u64 = 1 << 30;

/// Zeroes block 0, the last block, and the end of a larger volume; flushed when it returns.
///
/// # Errors
/// The volume cannot be written.
pub fn withhold(volume: &dyn Volume, geometry: &Geometry) -> Result<()> {
    if let Some(last) = geometry.blocks().checked_sub(1) {
        volume.write_zeroes(0, u64::from(geometry.len(0)))?;
        volume.write_zeroes(geometry.offset(last), u64::from(geometry.len(last)))?;
    }
    let beyond = volume.bytes().saturating_sub(geometry.bytes());
    let end = beyond.min(END_BYTES);
    if end > 0 {
        volume.write_zeroes(volume.bytes() - end, end)?;
    }
    volume.flush()
}

/// Whether block 0 and the last block read as zeros.
///
/// # Errors
/// The volume cannot be read.
pub fn is_withheld(volume: &dyn Volume, geometry: &Geometry, engine: Engine) -> Result<bool> {
    let pool = Pool::new(geometry.block_bytes() as usize, 1)?;
    let ends = [0, geometry.blocks().saturating_sub(1)];
    for block in ends.into_iter().filter(|_| !geometry.is_empty()) {
        let found = read(volume, engine, &pool, geometry.offset(block), geometry.len(block) as usize)?;
        if !is_zero(&found) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Zeroes all of a volume behind its disk, step by step; `check` is asked in between.
///
/// # Errors
/// The volume cannot be written, or what `check` returns.
pub fn zero_beyond(volume: &dyn Volume, geometry: &Geometry, check: &dyn Fn() -> Result<()>) -> Result<()> {
    let mut at = geometry.bytes();
    while at < volume.bytes() {
        check()?;
        let step = ZERO_STEP_BYTES.min(volume.bytes() - at);
        volume.write_zeroes(at, step)?;
        at += step;
    }
    volume.flush()
}

/// What was released, as read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Released {
    /// Leaf of block 0 on the volume.
    pub first: Leaf,
    /// Leaf of the last block on the volume; the same as `first` for a disk of one block.
    pub last: Leaf,
    /// Plain BLAKE3 of block 0: the digest of a disk of one block.
    pub first_hash: Digest,
}

/// Writes block 0 and the last block in the order above. `first` and `last` are proven; for a disk of one block they are the
/// same bytes, and `last` is `None`.
///
/// # Errors
/// The volume cannot be written or read; what was read back differs from what was written: then both are withheld again.
pub fn release(
    volume: &dyn Volume,
    geometry: &Geometry,
    engine: Engine,
    first: &[u8],
    last: Option<&[u8]>,
) -> Result<Released> {
    let released = write_and_check(volume, geometry, engine, first, last);
    if released.is_err() {
        // The error counts; if this fails too, the first 4 KiB are at worst good data on a volume called unfinished.
        let _ = withhold(volume, geometry);
    }
    released
}

fn write_and_check(
    volume: &dyn Volume,
    geometry: &Geometry,
    engine: Engine,
    first: &[u8],
    last: Option<&[u8]>,
) -> Result<Released> {
    let page = first.len().min(PAGE_BYTES as usize);
    let (head, rest) = first.split_at(page);
    let pool = Pool::new(geometry.block_bytes() as usize, 1)?;
    let last_offset = geometry.offset(geometry.blocks() - 1);
    if let Some(last) = last {
        write(volume, engine, &pool, last_offset, last)?;
    }
    write(volume, engine, &pool, page as u64, rest)?;
    volume.flush()?;
    let expect = |what: &str, found: &Buffer, offset: u64, expected: &[u8]| {
        if **found == *expected {
            return Ok(());
        }
        let (expected, found) = (leaf(offset, expected), leaf(offset, found));
        Err(Error::failed(format!(
            "Volume {}: {what} read back: expected leaf {expected}, found {found}",
            volume.name()
        ))
        .next("the volume does not keep what is written; do not use it"))
    };
    let last_leaf = match last {
        None => None,
        Some(last) => {
            let back = read(volume, engine, &pool, last_offset, last.len())?;
            expect("its last block", &back, last_offset, last)?;
            Some(leaf(last_offset, &back))
        }
    };
    if !rest.is_empty() {
        let back = read(volume, engine, &pool, page as u64, rest.len())?;
        if *back != *rest {
            return Err(Error::failed(format!(
                "Volume {}: block 0 behind its first 4 KiB read back: expected what was written, found other bytes",
                volume.name()
            ))
            .next("the volume does not keep what is written; do not use it"));
        }
    }
    write(volume, engine, &pool, 0, head)?;
    volume.flush()?;
    let back = read(volume, engine, &pool, 0, first.len())?;
    expect("block 0", &back, 0, first)?;
    let first_leaf = leaf(0, &back);
    Ok(Released { first: first_leaf, last: last_leaf.unwrap_or(first_leaf), first_hash: Digest::of(&back) })
}

fn write(volume: &dyn Volume, engine: Engine, pool: &Pool, offset: u64, bytes: &[u8]) -> Result<()> {
    // Zeros are there already: they were withheld. Writing them would only fill a sparse volume.
    if is_zero(bytes) {
        return Ok(());
    }
    let mut buffer = pool.take();
    buffer.set_len(bytes.len());
    buffer.copy_from_slice(bytes);
    let mut queue = volume.writer(engine, 1)?;
    queue.write(0, offset, buffer);
    finish(volume, offset, queue.wait()?).map(drop)
}

fn read(volume: &dyn Volume, engine: Engine, pool: &Pool, offset: u64, bytes: usize) -> Result<Buffer> {
    let mut queue = volume.reader(engine, 1)?;
    queue.read(0, offset, pool.take(), bytes);
    finish(volume, offset, queue.wait()?)
}

fn finish(volume: &dyn Volume, offset: u64, done: Option<Completion>) -> Result<Buffer> {
    let what = || format!("Volume {}: head or tail at byte {offset}", volume.name());
    match done {
        Some(Completion { result: Ok(()), buffer: Some(buffer), .. }) => Ok(buffer),
        Some(Completion { result: Err(error), .. }) => Err(Error::io(what(), error)),
        _ => Err(Error::failed(format!("{}: a request was lost", what()))),
    }
}
