//! Whether a machine that told a wrong leaf lied, or told what was so then: of a disk that is written to, leaf and block are two moments.

use super::leaves::{LEAF_BYTES, reach};
use crate::copy::known::Known;
use crate::copy::patience::{Medium, Patient};
use crate::error::{Error, Result};
use crate::io::{Completion, Engine, Pool, Readable};
use crate::nbd::{NbdQueue, Uri, is_lost};
use crate::source::served::leaves_of;
use motiongear_manifest::tree::{Leaf, leaf};
use std::sync::Arc;
use std::time::Duration;

/// How often leaf and bytes of one block are asked for, until they tell something.
const TURNS: usize = 8;
/// How often in a row the way there may be lost over one block.
const MOST_LOSSES: usize = 5;
/// From one attempt to reach the machine to the next.
const AGAIN: Duration = Duration::from_secs(1);

/// What a second look says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It tells the leaf of the block as it is, or as it was just now.
    Honest,
    /// The block was another one each time, and so was its leaf: that proves nothing, either way.
    Restless,
    /// The block stays as it is, and the leaf is another one's; or the leaf stays, and the block does not.
    Lied,
    /// It does not tell any more.
    Unasked,
}

/// Asks the machine that serves `uri` once more for the leaf of `block`, between reads of it.
///
/// # Errors
/// The job was stopped; the disk cannot be opened any more.
pub fn judge(uri: &Uri, disk: &Arc<dyn Readable>, known: &Known, medium: &Medium, block: u64) -> Result<Verdict> {
    let geometry = known.geometry;
    let uri = uri.with_export(&leaves_of(&uri.export, geometry.block_bytes()));
    for _ in 0..=MOST_LOSSES {
        let Some(sessions) = reach(&uri, geometry.blocks() * LEAF_BYTES, 1, medium)? else {
            return Ok(Verdict::Unasked);
        };
        let asked = disk.clone();
        let bytes = medium.call(move || {
            loop {
                match asked.clone().queue(Engine::Auto, 1) {
                    Err(error) if error.io_cause().is_some_and(|cause| asked.is_lost(cause)) => {
                        std::thread::sleep(AGAIN);
                    }
                    opened => return opened,
                }
            }
        })?;
        let mut both = Both {
            leaves: Patient::new(Box::new(NbdQueue::new(sessions, 1)), Some(medium.clone())),
            bytes: Patient::new(bytes, Some(medium.clone())),
            small: Pool::new(LEAF_BYTES as usize, 1)?,
            large: Pool::new(geometry.block_bytes() as usize, 1)?,
        };
        let (offset, len) = (geometry.offset(block), geometry.len(block) as usize);
        let mut look = || both.look(block, offset, len);
        if let Some(verdict) = weigh(&mut look)? {
            return Ok(verdict);
        }
    }
    Ok(Verdict::Unasked)
}

/// One of two things that were asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Had {
    Leaf(Leaf),
    /// An error there.
    Unread,
    /// The way there was lost: nothing was said.
    Lost,
}

/// Looks at leaf and block in turn until they say something; `None` where the way was lost.
fn weigh(look: &mut dyn FnMut() -> Result<(Had, Had)>) -> Result<Option<Verdict>> {
    let (mut before, mut silent) = (None, false);
    let (mut first, mut moved) = (None, false);
    for _ in 0..TURNS {
        let (told, read) = look()?;
        if let Had::Leaf(told) = told {
            moved |= *first.get_or_insert(told) != told;
        }
        match (told, read) {
            (Had::Lost, _) | (_, Had::Lost) => return Ok(None),
            // As the block cannot be read, its leaf cannot be told; but what was wrong before is not excused by it.
            (Had::Unread, Had::Unread) if first.is_none() => return Ok(Some(Verdict::Honest)),
            (Had::Leaf(told), Had::Leaf(read)) if told == read || before == Some(told) => {
                return Ok(Some(Verdict::Honest));
            }
            (Had::Leaf(_), Had::Leaf(read)) if before == Some(read) => return Ok(Some(Verdict::Lied)),
            (Had::Leaf(_), Had::Leaf(read)) => before = Some(read),
            (Had::Unread, _) | (_, Had::Unread) => (before, silent) = (None, true),
        }
    }
    Ok(Some(match (silent, moved) {
        (true, _) => Verdict::Unasked,
        (false, true) => Verdict::Restless,
        // Of a block that is another one each time no honest leaf is always the same.
        (false, false) => Verdict::Lied,
    }))
}

/// Where leaf and bytes come from.
struct Both {
    leaves: Patient,
    bytes: Patient,
    small: Pool,
    large: Pool,
}

impl Both {
    fn look(&mut self, block: u64, offset: u64, len: usize) -> Result<(Had, Had)> {
        self.leaves.read(0, block * LEAF_BYTES, self.small.take(), LEAF_BYTES as usize);
        let told = had(self.leaves.wait()?, |bytes| Leaf::from_slice(bytes).ok())?;
        self.bytes.read(0, offset, self.large.take(), len);
        let read = had(self.bytes.wait()?, |bytes| Some(leaf(offset, &bytes[..len])))?;
        Ok((told, read))
    }
}

fn had(done: Option<Completion>, leaf: impl Fn(&[u8]) -> Option<Leaf>) -> Result<Had> {
    let Some(Completion { buffer, result, .. }) = done else {
        return Err(Error::failed("Leaf of a block: a read never came back"));
    };
    Ok(match (result, buffer) {
        (Ok(()), Some(buffer)) => leaf(&buffer).map_or(Had::Unread, Had::Leaf),
        (Err(error), _) if is_lost(&error) => Had::Lost,
        _ => Had::Unread,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(content: u8) -> Had {
        Had::Leaf(leaf(0, &[content]))
    }

    fn weighed(looks: &[(Had, Had)]) -> Option<Verdict> {
        let mut looks = looks.iter().cycle().copied();
        weigh(&mut || Ok(looks.next().unwrap())).unwrap()
    }

    #[test]
    fn only_what_is_wrong_of_a_block_that_stays_is_a_lie() {
        use Had::{Lost, Unread};
        assert_eq!(weighed(&[(of(1), of(1))]), Some(Verdict::Honest));
        assert_eq!(weighed(&[(of(0), of(1))]), Some(Verdict::Lied));
        // Told of the moment before the block was read once more.
        assert_eq!(weighed(&[(of(0), of(1)), (of(1), of(2))]), Some(Verdict::Honest));
        let restless: Vec<_> = (0..100).map(|at| (of(2 * at), of(2 * at + 1))).collect();
        assert_eq!(weighed(&restless), Some(Verdict::Restless));
        // What is stale stays, whatever the block does.
        let stale: Vec<_> = (1..100).map(|at| (of(0), of(at))).collect();
        assert_eq!(weighed(&stale), Some(Verdict::Lied));
        assert_eq!(weighed(&[(of(0), of(1)), (Unread, Unread)]), Some(Verdict::Unasked));
        // A lie of a block that comes to rest.
        assert_eq!(weighed(&[(of(0), of(1)), (of(0), of(2)), (of(0), of(2))]), Some(Verdict::Lied));
        assert_eq!(weighed(&[(of(0), of(1)), (Lost, of(1))]), None);
        assert_eq!(weighed(&[(of(0), Lost)]), None);
        assert_eq!(weighed(&[(Unread, Unread)]), Some(Verdict::Honest));
        assert_eq!(weighed(&[(Unread, of(1))]), Some(Verdict::Unasked));
        assert_eq!(weighed(&[(of(0), Unread)]), Some(Verdict::Unasked));
    }
}
