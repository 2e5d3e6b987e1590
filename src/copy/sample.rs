//! Whether a disk still is the one that was copied: a few of its committed blocks are read once more and compared with their leaves.
//!
//! Size and partition table do not tell clones of one template apart, and a name may lead to another machine after every
//! reconnect. What was copied does: the first and the last block that is not zero, and some between.

use super::known::Known;
use crate::error::{Error, IoContext, Result};
use crate::io::{BlockIo, Completion, Pool, Waited};
use motiongear_manifest::catalogue::{BlockRow, Catalogue};
use motiongear_manifest::tree::leaf;
use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Blocks between the first and the last that are compared.
pub const BETWEEN: usize = 16;
/// Reads under way.
const DEPTH: usize = 4;
/// How long one read may take before the way to the disk counts as lost.
const LIMIT: Duration = Duration::from_secs(120);

/// What a comparison showed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sampled {
    /// Blocks that were read and compared.
    pub compared: usize,
    /// Those that are not what was committed.
    pub differing: Vec<u64>,
}

impl Sampled {
    /// Whether the blocks may be of the disk that was copied: every one of a disk that stands still; of one that is written to
    /// meanwhile a third may have changed.
    pub fn fits(&self, stands_still: bool) -> bool {
        match stands_still {
            true => self.differing.is_empty(),
            false => 3 * self.differing.len() <= self.compared,
        }
    }

    /// Refuses a disk whose blocks do not fit.
    ///
    /// # Errors
    /// Names the first block that differs, and the way out.
    pub fn expect_fit(&self, name: &str, known: &Known, stands_still: bool) -> Result<()> {
        if self.fits(stands_still) {
            return Ok(());
        }
        let (compared, differing) = (self.compared, self.differing.len());
        let block = self.differing.first().copied().unwrap_or(0);
        let at = known.geometry.offset(block);
        let refused = Error::failed(format!(
            "Disk {name} is not the disk that was copied: {differing} of {compared} blocks that were read again differ, \
             block {block} at byte {at} first"
        ));
        let may_be_written = self.fits(false) || compared < BETWEEN;
        Err(refused.next(match stands_still && may_be_written {
            true => "Name the disk that was meant. If it was written to meanwhile, it is of no one point in time: leave out the \
                     assertion (--point-in-time), then run the same command again",
            false => "Name the disk that was meant; or seed this one under another name, and leave the first out: seal --without",
        }))
    }
}

/// The rows to compare, `between` of them besides the first and the last; fewer where less is committed.
///
/// # Errors
/// The manifest cannot be read.
pub fn choose(known: &Known, between: usize) -> Result<Vec<BlockRow>> {
    let catalogue = Catalogue::open_reader(&known.manifest)?;
    let row = |from: u64, backwards: bool| {
        catalogue.stored_row(&known.generation, &known.geometry, known.encrypted, from, backwards)
    };
    let Some(first) = row(0, false)? else { return Ok(Vec::new()) };
    let last = row(known.geometry.blocks(), true)?.unwrap_or(first);
    let mut rows = BTreeMap::from([(first.block, first), (last.block, last)]);
    let span = last.block - first.block;
    for _ in 0..between {
        let random = Uuid::new_v4().as_u64_pair().1;
        if let Some(found) = row(first.block + random % (span + 1), false)? {
            rows.insert(found.block, found);
        }
    }
    Ok(rows.into_values().collect())
}

/// Reads the blocks of `rows` by `queue` and compares them. What the disk cannot give is passed over.
///
/// # Errors
/// The way to the disk is lost.
pub fn compare(rows: &[BlockRow], known: &Known, queue: &mut dyn BlockIo) -> Result<Sampled> {
    let mut sampled = Sampled::default();
    if rows.is_empty() {
        return Ok(sampled);
    }
    let failed = |error| Error::io("Blocks that were copied, read again", error);
    let pool = Pool::new(known.geometry.block_bytes() as usize, DEPTH)?;
    let (mut next, mut under_way) = (rows.iter(), 0);
    loop {
        while under_way < DEPTH.min(queue.depth().max(1))
            && let Some(row) = next.next()
        {
            let Some(buffer) = pool.try_take() else { break };
            queue.read(row.block, known.geometry.offset(row.block), buffer, known.geometry.len(row.block) as usize);
            under_way += 1;
        }
        if under_way == 0 {
            return Ok(sampled);
        }
        let since = Instant::now();
        let completion = loop {
            match queue.wait_for(LIMIT) {
                Waited::Done(completion) => break completion,
                Waited::Late if since.elapsed() < LIMIT => {}
                Waited::Late | Waited::Idle => return Err(failed(io::ErrorKind::TimedOut.into())),
            }
        };
        under_way -= 1;
        let Completion { token: block, buffer, result, .. } = completion;
        match (buffer, result) {
            (Some(buffer), Ok(())) => {
                let Some(row) = rows.iter().find(|row| row.block == block) else { continue };
                sampled.compared += 1;
                if leaf(known.geometry.offset(block), &buffer) != row.leaf {
                    sampled.differing.push(block);
                }
            }
            // A bad sector says nothing of which disk it is.
            (_, Err(error)) if error.raw_os_error() == Some(libc::EIO) => {}
            (_, result) => result.context(|| "Blocks that were copied, read again".to_owned())?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_stands_still_fits_whole_and_a_live_one_by_two_thirds() {
        let of = |compared, differing: u64| Sampled { compared, differing: (0..differing).collect() };
        assert!(of(18, 0).fits(true) && !of(18, 1).fits(true));
        assert!(of(18, 6).fits(false) && !of(18, 7).fits(false));
        assert!(of(0, 0).fits(true) && of(0, 0).fits(false) && !of(1, 1).fits(false));
    }
}
