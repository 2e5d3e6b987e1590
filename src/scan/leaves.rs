//! Leaves that the machine told which serves the disk: a block whose leaf is still the one in the ledger is not read. It is that
//! machine's word, so it only ever saves reading: a rolling share of what it calls unchanged is audited, as with a dirty bitmap.
//! Sessions that are lost are begun anew, and what was not answered is asked again.

use crate::copy::bitmap::Bitmap;
use crate::copy::known::Known;
use crate::copy::patience::{Medium, Patient};
use crate::copy::throttle::Throttle;
use crate::error::Result;
use crate::io::{Completion, Pool, Readable};
use crate::nbd::{Connection, NbdQueue, SESSIONS, Style, Uri, connect, is_lost, with_more};
use crate::source::served::leaves_of;
use motiongear_manifest::catalogue::{BlockRow, BlockState, Catalogue};
use motiongear_manifest::tree::Leaf;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// Bytes of a leaf.
pub const LEAF_BYTES: u64 = 32;
/// Leaves of one request, where the server lets us: that much is read there before the first one comes.
const MOST_LEAVES: u64 = 16;
/// Requests under way.
const DEPTH: usize = 32;
/// How often in a row sessions may be lost without an answer before the rest is read.
const MOST_LOSSES: u32 = 5;
/// From one attempt to reach the machine to the next.
const AGAIN: Duration = Duration::from_secs(1);
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
    let bytes = geometry.blocks() * LEAF_BYTES;
    let Some(sessions) = reach(&uri, bytes, SESSIONS, medium)? else { return Ok(None) };
    let longest = sessions.first().map_or(0, |session| u64::from(session.export().sizes.maximum)) / LEAF_BYTES;
    let most = longest.clamp(1, MOST_LEAVES);
    let mut asking = Asking {
        uri: &uri,
        bytes,
        medium,
        queue: Patient::new(Box::new(NbdQueue::new(sessions, DEPTH)), Some(medium.clone())),
        pool: Pool::new((most * LEAF_BYTES) as usize, DEPTH)?,
        next: VecDeque::new(),
        waiting: HashMap::new(),
        lost: Vec::new(),
        losses: 0,
        over: false,
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
    asking.finish()?;
    Ok(Some(asking.clean))
}

/// Sessions with the export of leaves at `uri`, `wanted` where the server lets us, as soon as it can be reached; `None` where it
/// tells no leaves of a disk of this size.
///
/// # Errors
/// The job was stopped.
pub fn reach(uri: &Uri, bytes: u64, wanted: usize, medium: &Medium) -> Result<Option<Vec<Connection>>> {
    let uri = uri.clone();
    medium.call(move || {
        loop {
            match connect(&uri, &[], Style::Simple) {
                Ok(session) if session.export().bytes == bytes => {
                    return Ok(Some(with_more(&uri, session, &[], Style::Simple, wanted)));
                }
                Err(error) if error.io_cause().is_some_and(is_lost) => std::thread::sleep(AGAIN),
                _ => return Ok(None),
            }
        }
    })
}

struct Asking<'a> {
    uri: &'a Uri,
    bytes: u64,
    medium: &'a Medium,
    queue: Patient,
    pool: Pool,
    /// What is to be asked for.
    next: VecDeque<Vec<BlockRow>>,
    /// What was asked for, by the first block.
    waiting: HashMap<u64, Vec<BlockRow>>,
    /// What was asked for in sessions that are lost.
    lost: Vec<Vec<BlockRow>>,
    /// How often they were lost since the last answer.
    losses: u32,
    /// Nobody tells any more: the rest is read.
    over: bool,
    clean: Bitmap,
}

impl Asking<'_> {
    /// Asks for the leaves of blocks that follow one another.
    fn ask(&mut self, rows: Vec<BlockRow>) -> Result<()> {
        if !rows.is_empty() && !self.over {
            self.next.push_back(rows);
        }
        self.send()
    }

    /// Waits for all answers.
    fn finish(&mut self) -> Result<()> {
        while self.take_one()? || !self.lost.is_empty() {
            self.send()?;
        }
        Ok(())
    }

    fn send(&mut self) -> Result<()> {
        loop {
            if !self.lost.is_empty() {
                self.recover()?;
            }
            let Some(first) = self.next.front().and_then(|rows| rows.first()).map(|row| row.block) else {
                return Ok(());
            };
            match (self.pool.try_take(), self.next.pop_front()) {
                (Some(buffer), Some(rows)) => {
                    let len = rows.len() * LEAF_BYTES as usize;
                    self.waiting.insert(first, rows);
                    self.queue.read(first, first * LEAF_BYTES, buffer, len);
                }
                (_, rows) => {
                    rows.into_iter().for_each(|rows| self.next.push_front(rows));
                    if !self.take_one()? {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// The sessions are lost: begins others as soon as that goes, to ask again for what was not answered.
    fn recover(&mut self) -> Result<()> {
        // One of them that is lost answers everything at once: the others are given up with it.
        while self.take_one()? {}
        self.losses += 1;
        let again = match self.losses {
            ..=MOST_LOSSES => reach(self.uri, self.bytes, SESSIONS, self.medium)?,
            _ => None,
        };
        tracing::debug!(uri = %self.uri, asked = self.lost.len(), again = again.is_some(), "sessions for leaves were lost");
        let lost = std::mem::take(&mut self.lost);
        match again {
            Some(sessions) => {
                self.queue = Patient::new(Box::new(NbdQueue::new(sessions, DEPTH)), Some(self.medium.clone()));
                self.next.extend(lost);
            }
            None => {
                self.over = true;
                self.next.clear();
            }
        }
        Ok(())
    }

    /// Compares one answer; false where none is to come. Blocks whose leaves cannot be had stay to be read.
    fn take_one(&mut self) -> Result<bool> {
        let Some(Completion { token, buffer, result, .. }) = self.queue.wait()? else { return Ok(false) };
        let rows = self.waiting.remove(&token).unwrap_or_default();
        match (result, buffer) {
            (Ok(()), Some(told)) => {
                self.losses = 0;
                for (row, leaf) in rows.iter().zip(told.chunks(LEAF_BYTES as usize)) {
                    if Leaf::from_slice(leaf).is_ok_and(|leaf| leaf == row.leaf) {
                        self.clean.insert(row.block);
                    }
                }
            }
            (Err(error), _) if is_lost(&error) => self.lost.push(rows),
            _ => {}
        }
        Ok(true)
    }
}
