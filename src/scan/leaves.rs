//! Leaves that the machine told which serves the disk: a block whose leaf is still the one in the ledger is not read. It is that
//! machine's word, so it only ever saves reading: a rolling share of what it calls unchanged is audited, as with a dirty bitmap.

use crate::copy::bitmap::Bitmap;
use crate::copy::known::Known;
use crate::copy::patience::{Medium, Patient};
use crate::copy::throttle::Throttle;
use crate::error::{Kind, Result};
use crate::io::{Buffer, Completion, Engine, Pool, Readable};
use crate::nbd::{NbdQueue, SESSIONS, Style, Uri, connect, with_more};
use crate::source::served::leaves_of;
use motiongear_manifest::catalogue::{BlockRow, BlockState, Catalogue};
use motiongear_manifest::tree::{Leaf, leaf};
use std::collections::HashMap;
use std::sync::Arc;

/// Bytes of a leaf.
const LEAF_BYTES: u64 = 32;
/// Leaves of one request, where the server lets us: that much is read there before the first one comes.
const MOST_LEAVES: u64 = 16;
/// Requests under way.
const DEPTH: usize = 32;
/// How often leaf and bytes of one block are asked for, until they agree.
const HONEST_TRIES: usize = 3;
/// Rows fetched at a time.
const ROWS: usize = 1024;

/// The blocks that the server of `uri` calls unchanged; `None` where it tells nothing of leaves.
///
/// # Errors
/// The ledger cannot be read, or the job was stopped.
pub fn unchanged(
    uri: &Uri,
    disk: &Arc<dyn Readable>,
    known: &Known,
    medium: &Medium,
    throttle: &Throttle,
) -> Result<Option<Bitmap>> {
    let geometry = known.geometry;
    let uri = uri.with_export(&leaves_of(&uri.export, geometry.block_bytes()));
    let wanted = uri.clone();
    let session = medium.call(move || Ok(connect(&wanted, &[], Style::Simple)));
    let Some(session) = session?.ok().filter(|session| session.export().bytes == geometry.blocks() * LEAF_BYTES) else {
        return Ok(None);
    };
    let longest = u64::from(session.export().sizes.maximum) / LEAF_BYTES;
    let most = longest.clamp(1, MOST_LEAVES);
    let queue = NbdQueue::new(with_more(&uri, session, &[], Style::Simple, SESSIONS), DEPTH);
    let mut asking = Asking {
        queue: Patient::new(Box::new(queue), Some(medium.clone())),
        pool: Pool::new((most * LEAF_BYTES) as usize, DEPTH)?,
        waiting: HashMap::new(),
        clean: Bitmap::new(geometry.blocks()),
    };
    let catalogue = Catalogue::open_reader(&known.manifest)?;
    let (mut next, mut data) = (0, (0, 0));
    let mut run: Vec<BlockRow> = Vec::new();
    while next < geometry.blocks() {
        let rows = catalogue.rows(&known.generation, &geometry, known.encrypted, next, ROWS)?;
        let Some(last) = rows.last() else { break };
        next = last.block + 1;
        for row in rows {
            throttle.check()?;
            let (from, to) =
                (geometry.offset(row.block), geometry.offset(row.block) + u64::from(geometry.len(row.block)));
            if data.1 <= from {
                // What it does not know may hold data.
                data = disk.next_data(from).unwrap_or(Some((from, to))).unwrap_or((geometry.bytes(), geometry.bytes()));
                data.1 = data.1.max(data.0);
            }
            if data.0 >= to {
                // A hole, which is not read either way.
                if row.state == BlockState::Zero {
                    asking.clean.insert(row.block);
                }
                continue;
            }
            // What was not readable has to be tried.
            if row.state == BlockState::Unreadable {
                continue;
            }
            if run.last().is_some_and(|last| last.block + 1 != row.block) || run.len() as u64 == most {
                asking.ask(std::mem::take(&mut run))?;
            }
            run.push(row);
        }
    }
    asking.ask(run)?;
    while asking.take_one()? {}
    Ok(Some(asking.clean))
}

/// Whether the server of `uri` tells the leaf of `block` as it is now: what it told before may have been so then, of a disk that is
/// written to all the time.
///
/// # Errors
/// The job was stopped.
pub fn is_honest(uri: &Uri, disk: &Arc<dyn Readable>, known: &Known, medium: &Medium, block: u64) -> Result<bool> {
    let geometry = known.geometry;
    let uri = uri.with_export(&leaves_of(&uri.export, geometry.block_bytes()));
    let (disk, wanted) = (disk.clone(), medium.clone());
    let asked = medium.call(move || {
        let session = connect(&uri, &[], Style::Simple)?;
        let mut leaves = Patient::new(Box::new(NbdQueue::new(vec![session], 1)), Some(wanted.clone()));
        let mut bytes = Patient::new(disk.queue(Engine::Auto, 1)?, Some(wanted));
        let (small, large) = (Pool::new(LEAF_BYTES as usize, 1)?, Pool::new(geometry.block_bytes() as usize, 1)?);
        for _ in 0..HONEST_TRIES {
            leaves.read(0, block * LEAF_BYTES, small.take(), LEAF_BYTES as usize);
            let told = leaves.wait()?;
            bytes.read(0, geometry.offset(block), large.take(), geometry.len(block) as usize);
            let read = bytes.wait()?;
            let (Some(told), Some(read)) = (told.and_then(whole), read.and_then(whole)) else { return Ok(false) };
            if Leaf::from_slice(&told).is_ok_and(|told| told == leaf(geometry.offset(block), &read)) {
                return Ok(true);
            }
        }
        Ok(false)
    });
    match asked {
        // Who cannot say it is not believed.
        Err(error) if error.kind != Kind::Interrupted => Ok(false),
        asked => asked,
    }
}

/// The bytes of a read that went well.
fn whole(done: Completion) -> Option<Buffer> {
    done.result.ok().and(done.buffer)
}

struct Asking {
    queue: Patient,
    pool: Pool,
    /// What was asked for, by the first block.
    waiting: HashMap<u64, Vec<BlockRow>>,
    clean: Bitmap,
}

impl Asking {
    /// Asks for the leaves of blocks that follow one another.
    fn ask(&mut self, rows: Vec<BlockRow>) -> Result<()> {
        let Some(first) = rows.first().map(|row| row.block) else { return Ok(()) };
        let buffer = loop {
            match self.pool.try_take() {
                Some(buffer) => break buffer,
                None if self.take_one()? => {}
                None => return Ok(()),
            }
        };
        let len = rows.len() * LEAF_BYTES as usize;
        self.waiting.insert(first, rows);
        self.queue.read(first, first * LEAF_BYTES, buffer, len);
        Ok(())
    }

    /// Compares one answer; false where none is to come. Blocks whose leaves cannot be had stay to be read.
    fn take_one(&mut self) -> Result<bool> {
        let Some(Completion { token, buffer, result, .. }) = self.queue.wait()? else { return Ok(false) };
        let rows = self.waiting.remove(&token).unwrap_or_default();
        if let (Ok(()), Some(told)) = (result, buffer) {
            for (row, leaf) in rows.iter().zip(told.chunks(LEAF_BYTES as usize)) {
                if Leaf::from_slice(leaf).is_ok_and(|leaf| leaf == row.leaf) {
                    self.clean.insert(row.block);
                }
            }
        }
        Ok(true)
    }
}
